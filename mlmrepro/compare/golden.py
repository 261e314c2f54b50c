"""Golden files: what a stage is expected to give, with the tolerance of each value and the reason for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write
from mlmrepro.record import Lane

__all__ = ["Expected", "differences", "disagreements", "read_golden", "write_golden"]


@dataclass(frozen=True)
class Expected:
    """One expected value.

    `tolerance` is absolute for the approximate lane (nats) and for the ranking lane (the tie band, a difference of
    scores), relative for the statistical lane, and has no meaning for the exact one.
    """

    lane: Lane
    value: Any
    tolerance: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if self.lane is Lane.INFO:
            raise ValueError("what is only shown is never expected")
        if self.lane is not Lane.EXACT and not (self.tolerance >= 0 and self.reason):
            raise ValueError(f"a {self.lane.value} value needs a tolerance and the reason for it")


def write_golden(path: Path, provenance: Mapping[str, Any], expected: Mapping[str, Expected]) -> None:
    """Write one stage's golden, whole or not at all."""
    entries = {name: asdict(entry) | {"lane": entry.lane.value} for name, entry in expected.items()}
    content = {"provenance": dict(provenance), "expected": entries}
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_golden(path: Path) -> dict[str, Expected]:
    """Return one stage's expected values; raises UserError where the file is absent or damaged."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["expected"]
        return {name: Expected(**entry | {"lane": Lane(entry["lane"])}) for name, entry in entries.items()}
    except FileNotFoundError as error:
        raise UserError(f"the golden {path} does not exist", remedy="make it: tox run -e goldens") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a golden: {type(error).__name__}: {error}", remedy="restore it or make it again"
        ) from error


def disagreements(expected: Mapping[str, Expected], obtained: Mapping[str, Any]) -> list[str]:
    """Return one line for each expected value that is absent or does not agree; none means that all agree."""
    lines = []
    for name, entry in expected.items():
        if name not in obtained:
            lines.append(f"{name}: expected, not obtained")
        else:
            lines += [f"{name}{line}" for line in differences(entry, obtained[name])]
    return lines


def differences(expected: Expected, obtained: Any) -> list[str]:
    """Compare one value both ways: what is missing, what is added and what differs by more than the tolerance."""
    if expected.lane is Lane.RANKING:
        return _ranking(expected.value, obtained, expected.tolerance)
    return _compare(expected.value, obtained, _LIMITS[expected.lane](expected.tolerance))


_LIMITS: dict[Lane, Callable[[float], Callable[[float], float]]] = {
    Lane.EXACT: lambda tolerance: lambda value: 0.0,
    Lane.APPROXIMATE: lambda tolerance: lambda value: tolerance,
    Lane.STATISTICAL: lambda tolerance: lambda value: tolerance * abs(value),
}


def _compare(expected: Any, obtained: Any, limit: Callable[[float], float]) -> list[str]:
    """`limit(expected)` is the largest difference allowed; each line begins with the place inside the value."""
    if isinstance(expected, dict) and isinstance(obtained, dict):
        lines = [f"[{key!r}]: expected, not obtained" for key in expected if key not in obtained]
        lines += [f"[{key!r}]: obtained, not expected" for key in obtained if key not in expected]
        for key in expected:
            if key in obtained:
                lines += [f"[{key!r}]{line}" for line in _compare(expected[key], obtained[key], limit)]
        return lines
    if isinstance(expected, list) and isinstance(obtained, list):
        if len(expected) != len(obtained):
            return [f": {len(expected)} values expected, {len(obtained)} obtained"]
        return [
            f"[{index}]{line}"
            for index, pair in enumerate(zip(expected, obtained, strict=True))
            for line in _compare(*pair, limit)
        ]
    if _is_number(expected) and _is_number(obtained):
        # NaN and infinity agree with nothing: a value that is no number was not measured.
        if not (math.isfinite(expected) and math.isfinite(obtained)):
            return [f": expected {expected}, obtained {obtained}"]
        if abs(expected - obtained) <= limit(expected):
            return []
        return [f": expected {expected}, obtained {obtained} (differs by {obtained - expected:+.3g})"]
    if type(expected) is type(obtained) and expected == obtained:
        return []
    return [f": expected {expected!r}, obtained {obtained!r}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _ranking(expected: list[dict[str, Any]], obtained: list[dict[str, Any]], band: float) -> list[str]:
    """Rows best first, each with `token`, `score` and what follows from the token.

    Two tokens may change places only where their expected scores lie within the band. The scores themselves may
    move by the band.
    """
    if len(expected) != len(obtained):
        return [f": {len(expected)} rows expected, {len(obtained)} obtained"]
    rows = {row["token"]: row for row in expected}
    lines = []
    for place, (wanted, row) in enumerate(zip(expected, obtained, strict=True), start=1):
        match = rows.get(row["token"])
        if match is None:
            lines.append(f" rank {place}: expected {wanted['token_str']!r}, obtained {row['token_str']!r}")
            continue
        if abs(match["score"] - wanted["score"]) > band:
            lines.append(f" rank {place}: expected {wanted['token_str']!r}, obtained {row['token_str']!r} (no tie)")
        score = _compare(match["score"], row["score"], lambda _: band)
        rest = _compare(_without_score(match), _without_score(row), lambda _: 0.0)
        lines += [f" rank {place} score{line}" for line in score] + [f" rank {place}{line}" for line in rest]
    if len({row["token"] for row in obtained}) < len(obtained):
        lines.append(": a token occurs twice")
    return lines


def _without_score(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "score"}
