"""The result of an observation: its values, the verdict on their bounds, and what went wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from mlmrepro.record import Bound, Lane, plain

__all__ = ["BoundVerdict", "ObservationResult", "Value"]


class BoundVerdict(str, Enum):
    """The verdict on the bounds of one observation, best first."""

    HOLDS = "holds"
    NOT_APPLICABLE = "not applicable"  # the observation does not apply to this subject
    KNOWN = "expected change"  # broken by a fault of these versions that known.toml declares
    UNMEASURED = "unmeasured"
    BROKEN = "BROKEN"

    @property
    def fails(self) -> bool:
        """Return whether the verdict fails the check; what was not measured never passes."""
        return self in (BoundVerdict.BROKEN, BoundVerdict.UNMEASURED)


@dataclass(frozen=True)
class Value:
    """One named value of an observation: held to a bound, compared with a golden, or only shown (lane INFO)."""

    slug: str
    value: Any
    title: str = ""
    lane: Lane = Lane.EXACT
    quantity: str = ""
    bound: Bound = field(default_factory=Bound)
    unit: str = ""

    @property
    def name(self) -> str:
        """Return the title, or the slug if there is none."""
        return self.title or self.slug

    @property
    def holds(self) -> bool:
        """Return whether the value is within its bound, as all values without one are."""
        return self.bound.holds(self.value)


@dataclass(frozen=True)
class ObservationResult:
    """The result of one observation on one subject. `problem` says why nothing was observed, or what was raised."""

    name: str
    group: str
    stage: str
    claim: str
    source: str
    cause: str
    verdict: BoundVerdict
    values: tuple[Value, ...] = ()
    problem: str = ""
    known: str = ""  # the declared reasons if the verdict is KNOWN
    link: str = ""  # the links of these reasons, separated by spaces
    seconds: float = 0.0

    @property
    def broken(self) -> tuple[Value, ...]:
        """Return the values that are outside their bounds."""
        return tuple(each for each in self.values if not each.holds)

    @property
    def outcome(self) -> str:
        """Return what went wrong without its details, such as ``raises KeyError``; "" if nothing did.

        An observation that does not apply, or stops early after a declared breach, has gone wrong in nothing.
        """
        sound = self.verdict in (BoundVerdict.NOT_APPLICABLE, BoundVerdict.KNOWN)
        return "" if sound else self.problem.partition(":")[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        content: dict[str, Any] = plain(asdict(self))
        content["verdict"] = self.verdict.value
        content["values"] = [
            {"slug": each.slug, "title": each.title, "value": plain(each.value), "unit": each.unit}
            | each.bound.to_dict()
            | {"holds": each.holds}
            for each in self.values
        ]
        return content
