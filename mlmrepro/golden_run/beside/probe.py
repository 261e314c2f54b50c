"""How a probe is defined: its stage, its name, and a bench with what the probes share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlmrepro.guide.observe import captured_warnings, digest, preserved_generators
from mlmrepro.record import STAGES, Lane, RunRecord

__all__ = ["Bench", "Measured", "Probe", "all_probes", "attempt", "measure", "observe_probes", "probe"]


@dataclass(frozen=True)
class Measured:
    """A value that is not exact."""

    value: Any
    quantity: str
    lane: Lane = Lane.APPROXIMATE


@dataclass(frozen=True)
class Probe:
    """A function that looks at one behaviour of one stage."""

    stage: str
    name: str
    look: Callable[[Bench], Mapping[str, Any]]


_PROBES: list[Probe] = []


def probe(stage: str) -> Callable[[Callable[[Bench], Mapping[str, Any]]], Callable[[Bench], Mapping[str, Any]]]:
    """Register a probe under its function's name."""

    def register(look: Callable[[Bench], Mapping[str, Any]]) -> Callable[[Bench], Mapping[str, Any]]:
        _PROBES.append(Probe(stage, look.__name__, look))
        return look

    return register


@dataclass(frozen=True)
class Bench:
    """What the probes share: the embedded checkpoint and its tokenizer, the stored inputs, and a folder to write in."""

    checkpoint: Path
    inputs: Path
    folder: Path

    @cached_property
    def tokenizer(self) -> Any:
        """The embedded tokenizer, loaded as in the guide; probes must not change it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.checkpoint))

    def new(self, name: str) -> Path:
        """Return a fresh folder."""
        path = self.folder / name
        path.mkdir(parents=True)
        return path


def attempt(look: Callable[[], Any]) -> Any:
    """Return the result of `look`, or the class of the error it raises: failing is a behaviour too."""
    try:
        return look()
    except Exception as error:  # whatever a version raises
        return f"raises {type(error).__name__}"


def measure(look: Callable[[], float], quantity: str) -> Measured:
    """Return the float that `look` gives, or the class of the error it raises, to be compared as this quantity."""
    return Measured(attempt(lambda: float(look())), quantity)


def all_probes() -> list[Probe]:
    """Return every probe there is."""
    from mlmrepro.golden_run.beside import collator, data, filling, model, saved, tokenizer, training  # noqa: F401

    return list(_PROBES)


def observe_probes(record: RunRecord, bench: Bench, probes: list[Probe]) -> None:
    """Run probes and record their values; none of them disturbs the global generators.

    Only deprecation warnings are kept: a probe provokes the others on purpose.
    """
    for stage in STAGES:
        with captured_warnings(record, stage, "beside.warnings", keep=lambda message: "eprecat" in message):
            for entry in probes:
                if entry.stage == stage:
                    _observe(record, bench, entry)


def _observe(record: RunRecord, bench: Bench, entry: Probe) -> None:
    with preserved_generators():
        found = attempt(lambda: entry.look(bench))
    values = found if isinstance(found, Mapping) else {"outcome": found}
    for name, value in values.items():
        measured = value if isinstance(value, Measured) else Measured(value, "", Lane.EXACT)
        record.observe(entry.stage, f"beside.{entry.name}.{name}", measured.value, measured.lane, measured.quantity)


def json_digest(value: Any) -> str:
    """Return the digest of one plain value."""
    return digest([json.loads(json.dumps(value))])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator, and restore them afterwards."""
    from transformers import set_seed

    with preserved_generators():
        set_seed(seed)
        yield
