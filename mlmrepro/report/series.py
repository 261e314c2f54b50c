"""The numbers of the figures, from records that may lack any of them."""

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
    """Environments with identical values."""

    names: tuple[str, ...]
    content: Any


@dataclass(frozen=True)
class Expected:
    """The reference of a value and its tolerance for rounding."""

    content: Any
    tolerance: Tolerance | None

    def limit(self, figure: float) -> float:
        """Return how far a float may differ from `figure`."""
        return self.tolerance.limit(figure) if self.tolerance else 0.0


def measured(drift: Drift) -> list[Outcome]:
    """Return the outcomes with a record, the upgrade path first."""
    return [*drift.chain, *drift.aside]


def observed(record: RunRecord | None, stage: str, name: str) -> Any:
    """Return the value of an observation, None if the record lacks it."""
    observation = record.stages.get(stage, {}).get(name) if record else None
    return None if observation is None else observation.value


def floats(content: Any) -> list[float]:
    """Return a list as floats, with NaN for items that are not numbers; [] for anything but a list."""
    if not isinstance(content, list):
        return []
    return [float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else math.nan for x in content]


def expected(drift: Drift, stage: str, name: str) -> Expected | None:
    """Return the reference for a value: the golden's own variant, or the value in the first record."""
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
    """Group names with identical content, so that equal curves are drawn once. Here NaN equals NaN."""
    groups: dict[str, tuple[list[str], Any]] = {}
    for name, content in pairs:
        groups.setdefault(repr(content), ([], content))[0].append(name)
    return [Group(tuple(names), content) for names, content in groups.values()]
