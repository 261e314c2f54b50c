"""A subject of one's own: the goldens of a checkpoint on some of its text, taken under the installed versions.

golden/my-model/subject.json   which checkpoint, the digest of its weights, and the settings of its golden run
golden/my-model/inputs/        the text that was sampled, and the stored input of each stage; no copy of the weights
golden/my-model/<stage>.json   the goldens
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmrepro import loading, provenance
from mlmrepro.compare.golden import Entry, Golden, versions_of, write_golden
from mlmrepro.compare.judge import Expectations, broken_bounds
from mlmrepro.compare.values import differences
from mlmrepro.config import TRAINER_SEED, GuideConfig, golden_directory
from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write
from mlmrepro.guide import fill_mask
from mlmrepro.observations.observe import FEWEST_TEXTS, FEWEST_WORDS
from mlmrepro.observations.registry import LIBRARY_MODULES, observers_of
from mlmrepro.record import Part, RunRecord, observer, part, plain
from mlmrepro.scoring.documents import read_text

__all__ = ["DATA", "Adopted", "cost", "read_subject", "store_subject", "with_variants", "write_goldens"]

SUBJECT, DATA = "subject.json", "text.jsonl"
SCHEMA = 1
ROWS, WORDS = 32, 120  # documents, and words of each: some 5,000 tokens, which a CPU trains on in a minute
_PROMPT_WORDS = 10
# The same for all checkpoints in some versions, but not in others, whose variants are those of the embedded one alone.
_OWN_ELSEWHERE = ("input_ids.off_path.special_tokens.added_by_build", "input_ids.off_path.saved_files.names")

Change = tuple[str, Any, str]  # a setting of the guide, its value, and the reason


@dataclass(frozen=True)
class Adopted:
    """An adopted checkpoint, as its folder of goldens describes it."""

    folder: Path
    name: str
    checkpoint: str  # a folder, or a hub name
    weights: str  # the digest of the safetensors files, "" of a hub name
    settings: tuple[Change, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Return what its golden run changes in the guide."""
        return (
            ("checkpoint", self.checkpoint, "the adopted checkpoint"),
            ("dataset", str(self.folder / "inputs" / DATA), "a sample of its text, in the schema of ELI5"),
            *self.settings,
        )

    def check(self) -> None:
        """Raise UserError if the checkpoint is not there or has other weights than those that were adopted."""
        if not self.weights:
            return
        if not Path(self.checkpoint).is_dir():
            raise UserError(
                f"the checkpoint of {self.folder} is not at {self.checkpoint}",
                remedy=f"put it there, or correct `checkpoint` in {self.folder / SUBJECT}, relative to that file",
            )
        if weights_digest(Path(self.checkpoint)) != self.weights:
            raise UserError(
                f"{self.checkpoint} has other weights than those that {self.folder} was made of",
                remedy="use the adopted weights, or adopt the new ones with mlmrepro adopt --overwrite; to compare the "
                "quality of two checkpoints, use mlmrepro check",
            )

    def anonymous(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a run without paths, which differ between machines."""
        names = {"checkpoint": self.name, "dataset": DATA}
        overrides = [each | {"value": names.get(each["name"], each["value"])} for each in config["overrides"]]
        return config | {"guide": config["guide"] | names, "overrides": overrides, "subject": self.name}


def read_subject(goldens: Path) -> Adopted | None:
    """Return the subject of a folder of goldens, None if they are not those of an adopted checkpoint."""
    path = goldens / SUBJECT
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']}, but this version reads {SCHEMA}")
        place, settings = str(content["checkpoint"]), tuple((n, v, r) for n, v, r in content["settings"])
        fields = {each.name for each in dataclasses.fields(GuideConfig)}
        if unknown := [name for name, *_ in settings if name not in fields]:
            raise ValueError(f"there is no setting {unknown[0]!r}")
        local = bool(content["weights"])
        place = os.path.normpath(goldens.resolve() / place) if local else place
        return Adopted(goldens, content["name"], place, content["weights"], settings)
    except (KeyError, TypeError, ValueError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} does not describe a checkpoint: {what}", remedy="adopt the checkpoint again with mlmrepro adopt"
        ) from error


def cost(checkpoint: str) -> str:
    """Return what adopting will take, in words: rows, seed, memory and time.

    A short training holds the weights, their gradients and Adam's two averages, next to a second model.
    """
    size = sum(path.stat().st_size for path in Path(checkpoint).glob("*.safetensors"))
    memory = f", about {1 + 5 * size / 1e9:.1f} GB of memory ({size / 1e6:,.0f} MB of weights, trained)" if size else ""
    time = "1 to 3 minutes on two cores for a small model, longer the more weights are trained"
    return f"uses at most {ROWS} documents of {WORDS} words, seed {TRAINER_SEED}{memory}; {time}"


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's safetensors files, with their names."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        sha.update(path.name.encode())
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def store_subject(
    checkpoint: str,
    text: str,
    folder: Path,
    *,
    home: Path,
    column: str | None = None,
    prompt: str | None = None,
) -> tuple[Adopted, tuple[str, ...]]:
    """Write subject.json and the sampled text to `folder`, and return the subject with notes on how text was read.

    `home` is where the folder will lie in the end: a local checkpoint is stored relative to it. Raises UserError if the
    checkpoint cannot be loaded or there is too little text.
    """
    documents = read_text(text, column=column, limit=ROWS)
    tokenizer = loading.load_tokenizer(checkpoint)
    block_size = min(GuideConfig.block_size, loading.max_block_size(checkpoint, tokenizer.model_max_length))
    texts = [" ".join(document.text.split()[:WORDS]) for document in documents.documents]
    long_enough = [each for each in texts if len(each.split()) >= FEWEST_WORDS]
    if len(long_enough) < FEWEST_TEXTS:
        raise UserError(
            f"{text} has {len(long_enough)} documents of at least {FEWEST_WORDS} words among its first {len(texts)}",
            remedy=f"give --text at least {FEWEST_TEXTS} of them; words are what spaces separate",
        )
    tokens = sum(len(ids) for ids in tokenizer(texts)["input_ids"])
    if tokens < 2 * GuideConfig.batch_size * block_size:
        raise UserError(
            f"{text} has {tokens:,} tokens in its first {len(texts)} documents, too few to train on",
            remedy=f"give --text at least {2 * GuideConfig.batch_size * block_size:,} tokens",
        )
    lines = [json.dumps({"answers": {"text": [each]}}, ensure_ascii=False) for each in texts]
    atomic_write(folder / "inputs" / DATA, "\n".join(lines) + "\n")
    mask = str(tokenizer.mask_token)
    prompt = prompt or _prompt(next((each for each in long_enough if mask not in each), ""))
    fill_mask.check_prompt(tokenizer, prompt, block_size)
    pad = "eos_token" if tokenizer.eos_token else "pad_token"
    settings: tuple[Change, ...] = (
        ("split", "train_asks", "all of the sampled text"),
        ("block_size", block_size, "the guide's, or the longest row that the model takes"),
        ("pad_token", pad, "the guide's, or the tokenizer's own if it has no end-of-sequence token"),
        ("num_train_epochs", 1.0, "a short fine-tuning"),
        ("save_strategy", "no", "nothing is resumed"),
        ("prompt", prompt, "given, or the beginning of the text"),
        ("seed", TRAINER_SEED, "as for the embedded checkpoint"),
    )
    local = Path(checkpoint).is_dir()
    place = os.path.relpath(Path(checkpoint).resolve(), home.resolve()) if local else checkpoint
    weights = weights_digest(Path(checkpoint)) if local else ""
    name = Path(checkpoint).resolve().name if local else checkpoint
    content = {"schema": SCHEMA, "name": name, "checkpoint": place, "weights": weights, "settings": settings}
    atomic_write(folder / SUBJECT, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    adopted = Adopted(folder, name, str(Path(checkpoint).resolve()) if local else checkpoint, weights, settings)
    used = f"the sample is the first {len(texts)} documents of {text}, at most {WORDS} words of each"
    return adopted, (*documents.notes, used)


def _prompt(text: str) -> str:
    return " ".join([*text.split()[: _PROMPT_WORDS - 1], "<mask>"])


def write_goldens(record: RunRecord, folder: Path) -> tuple[int, list[str]]:
    """Write a record as goldens, one file a stage; return the number of values, and the bounds that are broken already.

    What a checkpoint breaks from the start is no change later: the goldens' header names it.

    A value that is the same for the embedded checkpoint takes the variants that its golden declares: what a release
    changes for every checkpoint is an expected change for this one too. What depends on the architecture does so only
    if the architectures are the same. A value of its own takes them if all other versions raise an error.
    """
    expected, versions = Expectations.from_record(record), versions_of(record.provenance)
    try:
        embedded = Expectations.from_goldens(golden_directory())
    except UserError:  # none are installed
        embedded = Expectations({}, {})
    found = {f"{f.stage}.{f.name}" for f in broken_bounds(record)}
    broken = {name: plain(o.value) for o in record if (name := f"{o.stage}.{o.name}") in found}
    alike = record.config.get("model_type") == embedded.config.get("model_type")
    of_libraries = {each.key for each in observers_of(LIBRARY_MODULES)}

    def general(stage: str, name: str) -> bool:
        if alike or (part(name) is Part.OFF_PATH and f"{stage}.{observer(name)}" in of_libraries):
            return True
        return stage not in ("model", "fill_mask") and f"{stage}.{name}" not in _OWN_ELSEWHERE

    header = provenance.collect() | {"config": record.config, "broken": broken}
    for stage, entries in expected.entries.items():
        known: Mapping[str, Entry] = embedded.entries.get(stage, {})
        chosen = {
            name: with_variants(entry, known[name], versions, general(stage, name)) if name in known else entry
            for name, entry in entries.items()
        }
        write_golden(folder / f"{stage}.json", Golden(header, chosen))
    return sum(map(len, expected.entries.values())), list(broken)


def with_variants(entry: Entry, known: Entry, versions: Mapping[str, str | None], general: bool) -> Entry:
    """Return an entry with the variants of the embedded checkpoint's, as far as they hold for this checkpoint too."""
    matching = known.matching(versions)
    if known.lane is not entry.lane or len(known.variants) == 1 or len(matching) != 1:
        return entry
    (here,), own = matching, json.loads(json.dumps(entry.variants[0].value))
    if not differences(entry.lane, here.value, own, entry.tolerance):
        return known if general else entry
    others = [variant for variant in known.variants if variant is not here]
    if _raises(here.value) or not all(_raises(variant.value) for variant in others):
        return entry
    variants = tuple(dataclasses.replace(v, value=own) if v is here else v for v in known.variants)
    return dataclasses.replace(entry, variants=variants)


def _raises(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("raises ")


def replace_folder(made: Path, target: Path) -> None:
    """Put a finished folder in its place, whole or not at all; an older one is removed last.

    If the process is killed in between, the older one is in a hidden folder next to it.
    """
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)) / "old"
        target.rename(aside)
        try:
            made.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside.parent)
    else:
        made.rename(target)


def check_free(target: Path, *read: str, overwrite: bool) -> None:
    """Raise UserError if the goldens' folder is taken; with `overwrite`, only if it is that of no adopted checkpoint.

    Also if it holds something that is to be `read`, which would be lost.
    """
    for each in read:
        if Path(each).exists() and Path(each).resolve().is_relative_to(target.resolve()):
            raise UserError(f"{each} is in the folder {target}, which is replaced", remedy="give -o another folder")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{target} exists already", remedy="give -o another folder, or --overwrite to replace it")
    if not (target / SUBJECT).is_file():
        raise UserError(f"{target} is not the folder of an adopted checkpoint", remedy="give -o another folder")
