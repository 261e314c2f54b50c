"""Two values, compared both ways: what is missing, what is added, and what differs by more than the tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.record import Lane

__all__ = ["ABSENT", "Difference", "differences"]

_SHOWN = 80  # characters of a value in a line


class _Absent:
    """Stands for a value that one side does not have; None would be a value."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


@dataclass(frozen=True)
class Difference:
    """One place inside a value where the two sides differ."""

    place: str  # "" for the value itself, else such as "['counts'][3]"
    expected: Any
    obtained: Any
    note: str = ""

    @property
    def size(self) -> float | None:
        """Return obtained minus expected, None unless both are numbers."""
        sides = (self.expected, self.obtained)
        if all(_is_number(side) and _is_float(side) for side in sides):
            return float(self.obtained) - float(self.expected)
        return None

    def __str__(self) -> str:
        note = self.note
        if not note and self.size is not None and math.isfinite(self.size):
            note = f"differs by {self.size:+.3g}"
        text = f"expected {_short(self.expected)}, obtained {_short(self.obtained)}" + (f" ({note})" if note else "")
        return f"{self.place}: {text}" if self.place else text


def differences(lane: Lane, expected: Any, obtained: Any, tolerance: Tolerance | None = None) -> list[Difference]:
    """Return every difference that the lane does not allow; none means that the values match.

    NaN and infinity match nothing, not even themselves: such a value measures nothing. Raises ValueError if a lane of
    floats has no tolerance.
    """
    if not lane.compared:
        raise ValueError(f"values of the {lane.value} lane are never compared")
    if lane is Lane.EXACT:
        return _compare("", expected, obtained, lambda _: 0.0)
    if tolerance is None:
        raise ValueError(f"the {lane.value} lane needs a tolerance")
    if lane is Lane.RANKING and _is_ranking(expected) and _is_ranking(obtained):
        return _compare_rankings(expected, obtained, tolerance.atol)
    return _compare("", expected, obtained, tolerance.limit)


def _compare(place: str, expected: Any, obtained: Any, limit: Callable[[float], float]) -> list[Difference]:
    """`limit(expected)` is the largest difference allowed."""
    if isinstance(expected, dict) and isinstance(obtained, dict):
        found = [Difference(f"{place}[{key!r}]", expected[key], ABSENT) for key in expected if key not in obtained]
        found += [Difference(f"{place}[{key!r}]", ABSENT, obtained[key]) for key in obtained if key not in expected]
        for key in expected:
            if key in obtained:
                found += _compare(f"{place}[{key!r}]", expected[key], obtained[key], limit)
        return found
    if isinstance(expected, list) and isinstance(obtained, list):
        found = []
        if len(expected) != len(obtained):
            note = f"{len(expected)} values expected, {len(obtained)} obtained"
            found.append(Difference(place, expected, obtained, note))
        for index, pair in enumerate(zip(expected, obtained, strict=False)):
            found += _compare(f"{place}[{index}]", *pair, limit)
        return found
    if _is_number(expected) and _is_number(obtained) and _is_float(expected) and _is_float(obtained):
        if math.isfinite(expected) and math.isfinite(obtained):
            if abs(expected - obtained) <= limit(expected):
                return []
            return [Difference(place, expected, obtained)]
        return [Difference(place, expected, obtained, "not a finite number")]
    if type(expected) is type(obtained) and expected == obtained:
        return []  # includes integers that no float can hold
    return [Difference(place, expected, obtained)]


def _compare_rankings(expected: list[dict[str, Any]], obtained: list[dict[str, Any]], band: float) -> list[Difference]:
    """Compare rows, best first, each with `token`, `score` and fields that depend on the token.

    Two tokens may swap places only if their expected scores lie within the band. A token tied with the last one may be
    replaced by an unexpected token, if its score is tied with the last one too. Scores may move by the band.
    """
    found = []
    if len(expected) != len(obtained):
        found.append(Difference("", expected, obtained, f"{len(expected)} rows expected, {len(obtained)} obtained"))
    rows = {row["token"]: row for row in expected}
    last = expected[-1]["score"] if expected else math.nan
    for rank, (wanted, row) in enumerate(zip(expected, obtained, strict=False), start=1):
        place, names = f"rank {rank}", (wanted.get("token_str", wanted["token"]), row.get("token_str", row["token"]))
        match = rows.get(row["token"])
        if match is None:
            tied = abs(row["score"] - last) <= band and abs(wanted["score"] - last) <= band
            if not tied:
                found.append(Difference(place, *names, "an unexpected token"))
            continue
        if row["token"] != wanted["token"] and not abs(match["score"] - wanted["score"]) <= band:
            found.append(Difference(place, *names, f"not a tie: {abs(match['score'] - wanted['score']):.3g} apart"))
        found += _compare(f"{place} score", match["score"], row["score"], lambda _: band)
        found += _compare(place, _without_score(match), _without_score(row), lambda _: 0.0)
    if len({row["token"] for row in obtained}) < len(obtained):
        found.append(Difference("", expected, obtained, "a token occurs twice"))
    return found


def _is_ranking(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, dict) and isinstance(row.get("token"), (int, str)) and _is_number(row.get("score"))
        for row in value
    )


def _is_float(value: float) -> bool:
    """Return whether a float can hold a number; others, such as 10**400, are compared exactly."""
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _without_score(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "score"}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
