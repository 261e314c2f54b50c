"""The results of `retrain`: every raw value of every seed, with all that they depend on, in one JSON file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError, first_line
from mlmrepro.files import atomic_write
from mlmrepro.gate.seeds import SeedComparison, compare_seeds
from mlmrepro.guide.evaluate import perplexity
from mlmrepro.record import plain, restored
from mlmrepro.retraining.settings import Settings

__all__ = ["FILE", "SCHEMA", "HeldOut", "Retraining", "SeedRun", "Start", "check_comparable", "compare", "settings_of"]

SCHEMA = 1
FILE = "retraining.json"


@dataclass(frozen=True)
class HeldOut:
    """The text that every seed is scored on, and its mask plan; the lists have one entry per document."""

    documents: list[str]  # SHA-256 of each text: 16 hexadecimal digits
    tokens: list[int]  # masked tokens of each
    ids: str  # digest of the token ids of all
    plan: dict[str, Any]  # how the masks were made


@dataclass(frozen=True)
class Start:
    """The checkpoint before training."""

    weights: str  # digest
    loss: float  # nats per masked token
    document_losses: list[float]  # nats, summed over each document's tokens


@dataclass(frozen=True)
class SeedRun:
    """One training run; a training that diverged keeps its NaN."""

    seed: int
    loss: float  # nats per masked token, on the plan that all seeds share
    document_losses: list[float]  # nats, summed over each document's tokens
    eval_loss: float  # Trainer's own: nats, averaged over rows, on masks drawn afresh
    train_loss: float  # nats, mean of the last epoch's steps
    seconds: float
    warnings: list[str]


@dataclass(frozen=True)
class Retraining:
    """A recipe and the result of each seed."""

    config: dict[str, Any]  # RunConfig.to_dict()
    provenance: dict[str, Any]
    blocks: str  # digest of the training blocks
    held_out: HeldOut
    start: Start
    warnings: list[str]
    seeds: tuple[SeedRun, ...] = ()

    @property
    def losses(self) -> list[float]:
        """Mean loss of each seed in nats, in the order of the seeds."""
        return [run.loss for run in self.seeds]

    @property
    def settings(self) -> dict[str, Any]:
        """All that a value depends on except the training's seed, by name."""
        return settings_of(self.config, self.provenance["packages"]) | {
            "device": self.provenance["device"]["type"],
            "training blocks": self.blocks,
            "weights before training": self.start.weights,
            "held-out text": _digest(json.dumps(dataclasses.asdict(self.held_out), sort_keys=True)),
        }

    def with_run(self, run: SeedRun) -> Retraining:
        """Return a copy with one more seed."""
        return dataclasses.replace(self, seeds=tuple(sorted([*self.seeds, run], key=lambda each: each.seed)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a float that JSON cannot hold becomes a string."""
        content = {"schema": SCHEMA} | plain(dataclasses.asdict(self))
        for row, run in zip(content["seeds"], self.seeds, strict=True):
            row["perplexity"] = plain(perplexity(run.loss))
        return content

    def write(self, folder: Path) -> None:
        """Write ``retraining.json``, whole or not at all."""
        content = self.to_dict()
        content["checksum"] = _checksum(content)
        atomic_write(folder / FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Retraining:
        """Read a folder's file; raises UserError if it is absent, of another schema, damaged or edited by hand."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(
                f"{folder} holds no {FILE}" if folder.is_dir() else f"the folder {folder} does not exist",
                remedy="give the folder that mlmrepro retrain wrote (--output)",
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            schema = content.pop("schema")
            if schema != SCHEMA:
                raise UserError(
                    f"{path} has schema {schema}, but this version reads schema {SCHEMA}",
                    remedy="train again with this version, into another --output",
                )
            checksum = content.pop("checksum")
            if checksum != _checksum({"schema": schema, **content}):
                raise ValueError("its checksum differs")
            return cls._of(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is truncated, damaged or edited by hand: {first_line(error)}",
                remedy="restore the file, or train again into another --output",
            ) from error

    @classmethod
    def _of(cls, content: dict[str, Any]) -> Retraining:
        rows = [{name: value for name, value in row.items() if name != "perplexity"} for row in content["seeds"]]
        return cls(
            **content
            | {
                "held_out": HeldOut(**content["held_out"]),
                "start": Start(**_numbers(content["start"])),
                "seeds": tuple(SeedRun(**_numbers(row)) for row in rows),
            }
        )

    def differences(self, other: Retraining) -> dict[str, tuple[Any, Any]]:
        """Return name -> (here, there) of every setting in which two recipes differ."""
        return dict(_differing(self.settings, other.settings))

    def refuse_other(self, now: dict[str, Any], folder: Path) -> None:
        """Raise UserError if a run with the settings `now` (all of them or some) cannot continue this one."""
        here = {name: value for name, value in self.settings.items() if name in now}
        if pairs := dict(_differing(here, now)):
            told = ", ".join(f"{name} {old!r}, now {new!r}" for name, (old, new) in pairs.items())
            raise UserError(
                f"the seeds in {folder} were trained with other settings: {told}",
                remedy="continue with those settings, or give another --output",
            )


def settings_of(config: dict[str, Any], packages: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are known before anything is loaded, by name."""
    return config["guide"] | {"profile": config["profile"], "threads": config["threads"]} | packages


def check_comparable(before: Retraining, after: Retraining, name: str) -> None:
    """Raise UserError if the losses of two recipes are not of the same text, tokenization and mask plan.

    Messages call `before` by `name`; it must also have seeds, none of which diverged.
    """
    if not before.seeds:
        raise UserError(f"{name} has no finished seed", remedy="finish it with the command that began it")
    for run in before.seeds:
        if not math.isfinite(run.loss):
            raise UserError(
                f"seed {run.seed} of {name} diverged: its loss is {run.loss}",
                remedy="give --against the folder of a recipe that trains",
            )
    old, new = before.held_out, after.held_out
    if old.documents != new.documents:
        raise UserError(
            f"{name} was scored on a different text: {_first_other(old.documents, new.documents)}",
            remedy="use the same data: dataset, split, test_size, text_column, separator and --set seed decide it",
        )
    if old.ids != new.ids or old.plan["mask_token"] != new.plan["mask_token"]:
        raise UserError(
            f"{name} was scored in different tokens: the tokenizer of the checkpoint changed",
            remedy="train with --save-models, and compare single models with mlmrepro baseline and mlmrepro check",
        )
    if pairs := dict(_differing(old.plan, new.plan)):
        told = ", ".join(f"{key} {a!r}, now {b!r}" for key, (a, b) in pairs.items())
        raise UserError(f"{name} was scored with different masks: {told}", remedy="train both with the same version")


def compare(before: Retraining, after: Retraining, settings: Settings, name: str) -> SeedComparison:
    """Return whether the recipe of `after` is worse than that of `before`, which messages call `name`.

    Raises UserError if the two are not of the same text, see `check_comparable`.
    """
    check_comparable(before, after, name)
    return compare_seeds(before.losses, after.losses, margin_nats=settings.margin_nats, power=settings.power)


def _first_other(old: Sequence[str], new: Sequence[str]) -> str:
    if len(old) != len(new):
        return f"{len(old)} held-out documents, now {len(new)}"
    first = next(n for n, (a, b) in enumerate(zip(old, new, strict=True), start=1) if a != b)
    return f"the first difference is in held-out document {first} of {len(old)}"


def _differing(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            yield name, (old.get(name), new.get(name))


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name in ("weights", "warnings") else restored(value) for name, value in row.items()}


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
