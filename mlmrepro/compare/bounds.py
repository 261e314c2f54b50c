"""What must hold within every record: bounds that need no golden."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlmrepro.compare.values import Difference

__all__ = ["Bound", "Breach", "breaches"]

Values = Mapping[tuple[str, str], Any]  # by stage and name


@dataclass(frozen=True)
class Bound:
    """The largest allowed value of an observation, and the reason for that number."""

    at_most: float
    reason: str


@dataclass(frozen=True)
class Breach:
    """One observation that breaks a bound; `difference` says what it should be."""

    stage: str
    name: str
    difference: Difference


# Eager and SDPA passes of the embedded checkpoint differ from float64 by 1.9e-7 of their norm, which is 3 roundings of
# float32 (2^-24). The laws allow a factor of 64 (mlmrepro.laws.forward). With TF32 the difference is 8e-5.
_PASS = "float32 rounding allows 64 times 2^-24 of the norm of the logits, 20 times the measured value"
_BOUNDS = {
    ("model", "alone.float32_error"): Bound(64 * 2.0**-24, f"{_PASS}; more means a lower precision than float32"),
    ("model", "alone.padding_error"): Bound(64 * 2.0**-24, f"{_PASS}; more means that padding is not hidden"),
    ("model", "alone.matrices_changed_by_saving"): Bound(0, "saving and loading a model must not change it"),
}
# A perplexity is computed from its loss in float64, where exp has an error of about 1e-16 per nat.
_RTOL = 1e-9


def breaches(values: Values) -> Iterator[Breach]:
    """Yield every value that breaks a bound. A bound is skipped if one side was not observed."""
    for (stage, name), bound in _BOUNDS.items():
        value = values.get((stage, name), 0.0)
        if not (_is_number(value) and value <= bound.at_most):
            yield Breach(stage, name, Difference("", bound.at_most, value, f"above the bound: {bound.reason}"))
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
