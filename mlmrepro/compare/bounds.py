"""What must hold within every record: each perplexity is exp(loss)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlmrepro.compare.values import Difference

__all__ = ["Breach", "breaches"]

Values = Mapping[tuple[str, str], Any]  # by stage and name


@dataclass(frozen=True)
class Breach:
    """A perplexity that is not exp(loss); `difference` says what it should be."""

    stage: str
    name: str
    difference: Difference


# A perplexity is computed from its loss in float64, where exp has an error of about 1e-16 per nat.
_RTOL = 1e-9


def breaches(values: Values) -> Iterator[Breach]:
    """Yield every perplexity that is not exp(loss); one whose loss was not observed is skipped."""
    for (stage, name), value in values.items():
        for place, perplexity, loss_name in _perplexities(name, value):
            loss: Any = values.get((stage, loss_name))
            if _is_number(loss) and not _agree(perplexity, loss):
                note = f"perplexity must be exp({loss_name}), here exp({loss:.6g})"
                yield Breach(stage, name, Difference(place, _exp(loss), perplexity, note))


def _perplexities(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield the place of each perplexity in an observation, its value, and the name of its loss."""
    prefix, _, last = name.rpartition(".")
    prefix += "." if prefix else ""
    if last == "perplexity":
        yield "", value, f"{prefix}eval_loss"
    elif last == "same_masks_perplexity" and isinstance(value, dict):
        yield "['before']", value.get("before"), f"{prefix}before_eval_loss"
        yield "['after']", value.get("after"), f"{prefix}same_masks_eval_loss"


def _agree(perplexity: Any, loss: float) -> bool:
    """Return whether a perplexity is exp(loss); if that is infinite or NaN, the perplexity must be the same."""
    if not _is_number(perplexity):
        return False
    expected = _exp(loss)
    if not math.isfinite(expected):
        return perplexity == expected or (math.isnan(perplexity) and math.isnan(expected))
    return abs(perplexity - expected) <= _RTOL * expected


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
