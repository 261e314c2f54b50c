"""Every literal of the guide, with its place and reason, and what each profile changes.

The guide is "Masked language modeling" of the Hugging Face documentation. A field of `GuideConfig` is either a
literal of the guide's code or a default of the libraries that the guide leaves alone but that decides the result.
Other modules that need one, such as the mask rate or the prompt, take it from here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError

__all__ = [
    "IGNORE_INDEX",
    "OURS",
    "PROFILES",
    "TRAINER_SEED",
    "GuideConfig",
    "Override",
    "Profile",
    "RunConfig",
    "golden_directory",
    "parse_setting",
    "resolve",
]

EMBEDDED = Path(__file__).parent / "embedded"


def golden_directory(profile: str = "embedded") -> Path:
    """Return the folder of a profile's goldens: in the package if shipped, or next to it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "golden" / profile, package.parent / "golden" / profile):
        if folder.is_dir():
            return folder
    raise UserError(f"no goldens of the profile {profile!r} are installed", remedy="give their folder with --goldens")


IGNORE_INDEX = -100  # the label of positions that are not predicted (torch's cross_entropy ignores it)
TRAINER_SEED = 42  # TrainingArguments' default

# Places of the guide, in its order.
LOAD = "Load ELI5 dataset"
PREPROCESS = "Preprocess"
TRAIN = "Train"
INFERENCE = "Inference"
DEFAULT = "not in the guide: the libraries' default"


def _literal(default: Any, place: str, reason: str) -> Any:
    return field(default=default, metadata={"place": place, "reason": reason})


@dataclass(frozen=True)
class GuideConfig:
    """The settings in the guide's code, in its order."""

    dataset: str = _literal("eli5", LOAD, "the hub name, or a .jsonl, .json, .csv or .parquet file with its columns")
    split: str = _literal("train_asks[:5000]", LOAD, "the first 5,000 rows: a small subset to try everything on")
    test_size: float = _literal(0.2, LOAD, "share of the rows held out by train_test_split")
    checkpoint: str = _literal("distilbert/distilroberta-base", PREPROCESS, "tokenizer and model start from it")
    text_column: str = _literal("answers.text", PREPROCESS, "the list of answers, after flattening")
    separator: str = _literal(" ", PREPROCESS, "joins the answers of one question")
    num_proc: int = _literal(4, PREPROCESS, "worker processes of both map calls; decides the shard boundaries")
    map_batch_size: int = _literal(1000, DEFAULT, "rows a call of group_texts; each call drops its own remainder")
    block_size: int = _literal(128, PREPROCESS, "tokens a block: below the model's maximum, small enough for memory")
    pad_token: str = _literal("eos_token", PREPROCESS, "the end-of-sequence token pads")
    mlm_probability: float = _literal(0.15, PREPROCESS, "chance that a token is selected (Devlin et al. 2019)")
    eval_strategy: str = _literal("epoch", TRAIN, "evaluate after each epoch")
    learning_rate: float = _literal(2e-5, TRAIN, "peak of AdamW's linearly decaying rate")
    num_train_epochs: float = _literal(3.0, TRAIN, "passes over the training blocks")
    weight_decay: float = _literal(0.01, TRAIN, "AdamW's, not on biases and layer norms")
    push_to_hub: bool = _literal(True, TRAIN, "needs a login; the model's page is made from it")
    hub_model: str = _literal("my_awesome_eli5_mlm_model", TRAIN, "the guide's output_dir, from which it is pushed")
    batch_size: int = _literal(8, DEFAULT, "rows a device in training and evaluation")
    save_strategy: str = _literal("steps", DEFAULT, "when Trainer writes checkpoints")
    logging_steps: int = _literal(500, DEFAULT, "steps between two training losses in the log")
    disable_tqdm: bool = _literal(False, DEFAULT, "whether Trainer shows no progress bars of its own")
    report_to: str = _literal("all", DEFAULT, "experiment trackers that Trainer reports to (transformers 4)")
    inference_model: str = _literal(
        "stevhliu/my_awesome_eli5_mlm_model", INFERENCE, "the author's own fine-tuned copy on the hub"
    )
    prompt: str = _literal("The Milky Way is a <mask> galaxy.", INFERENCE, "the sentence to fill")
    top_k: int = _literal(3, INFERENCE, "predictions shown")
    seed: int | None = _literal(None, DEFAULT, "none for the split; Trainer takes its own")


@dataclass(frozen=True)
class Override:
    """One deliberate deviation from the guide."""

    name: str
    guide: Any
    value: Any
    reason: str


@dataclass(frozen=True)
class Profile:
    """A named set of overrides."""

    name: str
    description: str
    changes: tuple[tuple[str, Any, str], ...]  # (field, value, reason)


# What every profile changes, so that a run can be watched, repeated and resumed.
OURS: tuple[tuple[str, Any, str], ...] = (
    ("inference_model", "this run's", "the mask is filled by the model that the run has just trained"),
    ("disable_tqdm", True, "the run shows its own progress"),
    (
        "seed",
        TRAINER_SEED,
        "the guide's split is unseeded; one seed, set once before the first step, makes the run repeatable",
    ),
    ("save_strategy", "epoch", "a killed run continues from its last epoch"),
    ("logging_steps", 1, "every step's loss goes into the record; the training does not depend on it"),
    ("report_to", "none", "no tracker that happens to be installed is called"),
)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "embedded",
            "checkpoint, tokenizer and data shipped in the package; works offline",
            (
                ("dataset", "embedded", "original prose in ELI5's schema; the eli5 data set cannot be loaded any more"),
                (
                    "checkpoint",
                    "embedded",
                    "a RoBERTa of 7.4 million parameters in place of DistilRoBERTa's 82 million",
                ),
                ("push_to_hub", False, "nothing leaves the machine"),
                *OURS,
            ),
        ),
        Profile(
            "guide",
            "the guide's own model and data set, from the hub",
            (
                ("push_to_hub", False, "publishing needs a login: --set push_to_hub=true does as the guide"),
                *OURS,
            ),
        ),
    )
}

# The data set that the guide's later revisions load: same questions, other split names, still on the hub.
SUCCESSOR: tuple[tuple[str, Any, str], ...] = (
    ("dataset", "dany0407/eli5_category", "--eli5-category: the successor that the hub still serves"),
    ("split", "train[:5000]", "--eli5-category: its name for the training split"),
)


@dataclass(frozen=True)
class RunConfig:
    """One run: the guide's literals after the overrides, and where and how to run them."""

    profile: str
    guide: GuideConfig
    overrides: tuple[Override, ...]
    output_dir: Path
    threads: int = 2  # torch's intra-op threads: one or two threads already differ in the loss by about 1e-6
    resume: bool = False
    fast: str = ""  # the number format of guide/fast.py, "float32" or "bfloat16"; "" is the guide's own way

    @property
    def checkpoint(self) -> str:
        """Name or folder of the checkpoint that the run starts from."""
        return str(EMBEDDED / "checkpoint") if self.guide.checkpoint == "embedded" else self.guide.checkpoint

    @property
    def dataset(self) -> str:
        """Hub name or file of the data set."""
        return str(EMBEDDED / "data" / "askscience.jsonl") if self.guide.dataset == "embedded" else self.guide.dataset

    @property
    def needs_hub(self) -> bool:
        """Return whether something must be fetched from the hub or pushed to it."""
        return self.guide.push_to_hub or not (Path(self.checkpoint).is_dir() and Path(self.dataset).is_file())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the record; `output_dir` is left out, because results do not depend on it."""
        return {
            "profile": self.profile,
            "guide": dataclasses.asdict(self.guide),
            "overrides": [dataclasses.asdict(override) for override in self.overrides],
            "threads": self.threads,
            **({"fast": self.fast} if self.fast else {}),
        }


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse ``name=value`` into a field of GuideConfig and a value of its type."""
    name, separator, raw = text.partition("=")
    name = name.strip()
    types = {f.name: f.type for f in dataclasses.fields(GuideConfig)}
    if not separator or name not in types:
        raise UserError(
            f"--set {text!r} names no setting" if separator else f"--set {text!r} is not of the form name=value",
            remedy=f"use one of: {', '.join(types)}",
        )
    kind = str(types[name])
    try:
        if kind == "bool":
            return name, {"true": True, "1": True, "false": False, "0": False}[raw.strip().lower()]
        if kind == "float":
            return name, float(raw)
        if kind.startswith("int"):
            return name, None if "None" in kind and raw.strip().lower() == "none" else int(raw)
    except (KeyError, ValueError):
        what = {"bool": "true or false", "float": "a number"}.get(kind, "a whole number")
        raise UserError(f"--set {name}={raw!r} is not {what}", remedy=f"give {what}") from None
    return name, raw


def resolve(
    profile: str = "embedded",
    *,
    output_dir: Path,
    changes: Iterable[tuple[str, Any, str]] = (),
    threads: int = 2,
    resume: bool = False,
    fast: str = "",
) -> RunConfig:
    """Apply a profile's overrides, then `changes` (field, value, reason), and check the values.

    Raises UserError for an unknown profile or a value outside its domain.
    """
    if profile not in PROFILES:
        raise UserError(f"there is no profile {profile!r}", remedy=f"use one of: {', '.join(PROFILES)}")
    original = GuideConfig()
    latest: dict[str, Override] = {}
    for name, value, reason in (*PROFILES[profile].changes, *changes):
        latest[name] = Override(name, getattr(original, name), value, reason)
    overrides = tuple(o for o in latest.values() if o.value != o.guide)
    guide = dataclasses.replace(original, **{o.name: o.value for o in latest.values()})
    _check(guide)
    if threads < 1:
        raise UserError(f"--threads is {threads}", remedy="give 1 or more")
    return RunConfig(profile, guide, overrides, Path(output_dir), threads, resume, fast)


def _check(guide: GuideConfig) -> None:
    """Refuse invalid values; what depends on the model or the data is checked when these are loaded."""
    choices = {
        "pad_token": ("eos_token", "pad_token"),
        "eval_strategy": ("epoch", "no"),
        "save_strategy": ("epoch", "no", "steps"),
    }
    rules: list[tuple[str, bool, str]] = [
        ("test_size", 0 < guide.test_size < 1, "a share between 0 and 1, neither included"),
        ("mlm_probability", 0 < guide.mlm_probability < 1, "a probability between 0 and 1, neither included"),
        ("block_size", guide.block_size >= 1, "a number of tokens, 1 or more"),
        ("num_proc", guide.num_proc >= 1, "a number of processes, 1 or more"),
        ("map_batch_size", guide.map_batch_size >= 1, "a number of rows, 1 or more"),
        ("batch_size", guide.batch_size >= 1, "a number of rows, 1 or more"),
        ("logging_steps", guide.logging_steps >= 1, "a number of steps, 1 or more"),
        ("top_k", guide.top_k >= 1, "a number of predictions, 1 or more"),
        ("learning_rate", 0 <= guide.learning_rate < math.inf, "a finite number, 0 or more"),
        ("weight_decay", 0 <= guide.weight_decay < math.inf, "a finite number, 0 or more"),
        ("num_train_epochs", 0 < guide.num_train_epochs < math.inf, "a finite number above 0"),
        ("seed", guide.seed is None or 0 <= guide.seed < 2**32, "none, or a whole number below 2**32"),
        *((name, getattr(guide, name) in values, " or ".join(values)) for name, values in choices.items()),
    ]
    for name, holds, domain in rules:
        if not holds:
            raise UserError(f"{name} is {getattr(guide, name)!r}", remedy=f"give {domain}")
