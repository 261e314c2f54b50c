"""The result of a law: the numbers that it measured, each with its bound, and a verdict."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from mlmrepro.record import plain

__all__ = ["LawResult", "LawVerdict", "Measured"]


class LawVerdict(str, Enum):
    """The verdict on a law, best first."""

    HOLDS = "holds"
    NOT_APPLICABLE = "not applicable"  # the law does not apply to this checkpoint
    KNOWN = "expected change"  # broken by a fault of these versions that known.toml declares
    UNMEASURED = "unmeasured"
    BROKEN = "BROKEN"

    @property
    def fails(self) -> bool:
        """Return whether the verdict fails the check; an unmeasured law never passes."""
        return self in (LawVerdict.BROKEN, LawVerdict.UNMEASURED)


@dataclass(frozen=True)
class Measured:
    """One number that a law measured, with its bound (`at_most`, `at_least` or `equals`) and the reason for it.

    A number without a bound is only shown. NaN violates every bound.
    """

    what: str
    value: float | int | str | bool
    at_most: float | None = None
    at_least: float | None = None
    equals: float | int | str | bool | None = None
    unit: str = ""
    reason: str = ""

    @property
    def bounded(self) -> bool:
        """Return whether the number has a bound and so can break its law."""
        return not (self.at_most is None and self.at_least is None and self.equals is None)

    @property
    def holds(self) -> bool:
        """Return whether the number is within its bounds."""
        if isinstance(self.value, float) and math.isnan(self.value):
            return not self.bounded
        if self.equals is not None and self.value != self.equals:
            return False
        if self.at_most is not None and not (not isinstance(self.value, str) and self.value <= self.at_most):
            return False
        return self.at_least is None or (not isinstance(self.value, str) and self.value >= self.at_least)

    @property
    def bound(self) -> str:
        """Return the bound in words, such as ``at most 1e-05``."""
        parts = [
            f"{word} {value:.3g}" if isinstance(value, float) else f"{word} {value}"
            for word, value in (("exactly", self.equals), ("at least", self.at_least), ("at most", self.at_most))
            if value is not None
        ]
        return " and ".join(parts)


@dataclass(frozen=True)
class LawResult:
    """The result of one law on one checkpoint. `problem` says why nothing was measured, or what was raised."""

    name: str
    group: str
    stage: str
    claim: str
    source: str
    cause: str
    verdict: LawVerdict
    measured: tuple[Measured, ...] = ()
    problem: str = ""
    known: str = ""  # the declared reasons if the verdict is KNOWN
    link: str = ""  # the links of these reasons, separated by spaces
    seconds: float = 0.0

    @property
    def broken(self) -> tuple[Measured, ...]:
        """Return the numbers that are outside their bounds."""
        return tuple(each for each in self.measured if not each.holds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        content: dict[str, Any] = plain(asdict(self))
        content["verdict"] = self.verdict.value
        for row, each in zip(content["measured"], self.measured, strict=True):
            row["holds"] = each.holds
        return content
