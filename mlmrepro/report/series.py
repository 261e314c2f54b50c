"""The figures' numbers, out of records that may lack any of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mlmrepro.compare.drift import Drift, Outcome
from mlmrepro.compare.tolerance import QUANTITIES, Tolerance
from mlmrepro.record import RunRecord

__all__ = ["Expected", "Group", "expected", "floats", "grouped", "measured", "observed"]


@dataclass(frozen=True)
class Group:
    """Environments that obtained the very same."""

    names: tuple[str, ...]
    content: Any


@dataclass(frozen=True)
class Expected:
    """The reference of a value, and how far rounding may take a float from it."""

    content: Any
    tolerance: Tolerance | None

    def limit(self, figure: float) -> float:
        """Return how far a float may lie from `figure`."""
        return self.tolerance.limit(figure) if self.tolerance else 0.0


def measured(drift: Drift) -> list[Outcome]:
    """Return the outcomes with a record, the upgrade path first."""
    return [*drift.chain, *drift.aside]


def observed(record: RunRecord | None, stage: str, name: str) -> Any:
    """Return an observation's value, None where the record lacks it."""
    observation = record.stages.get(stage, {}).get(name) if record else None
    return None if observation is None else observation.value


def floats(content: Any) -> list[float]:
    """Return the numbers of a list, NaN in place of what is none; [] for anything else."""
    if not isinstance(content, list):
        return []
    return [float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else math.nan for x in content]


def expected(drift: Drift, stage: str, name: str) -> Expected | None:
    """Return what the map compares a value with: the golden's own variant, or the first record's value."""
    if drift.goldens is not None:
        entry = drift.goldens.entries.get(stage, {}).get(name)
        if entry is None:
            return None
        variants = entry.matching(drift.goldens.versions) or entry.variants
        return Expected(variants[0].value, entry.tolerance)
    first = drift.chain[0].record if drift.chain else None
    observation = first.stages.get(stage, {}).get(name) if first else None
    return Expected(observation.value, QUANTITIES.get(observation.quantity)) if observation else None


def grouped(pairs: Iterable[tuple[str, Any]]) -> list[Group]:
    """Put names with the very same content together: curves that coincide are drawn once. NaN is itself here."""
    groups: dict[str, tuple[list[str], Any]] = {}
    for name, content in pairs:
        groups.setdefault(repr(content), ([], content))[0].append(name)
    return [Group(tuple(names), content) for names, content in groups.values()]
