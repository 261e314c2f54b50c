"""What has to hold inside one record, whatever was expected of it: bounds that need no golden."""

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
    """The largest value of an observation that is not an error, and the reason for that number."""

    at_most: float
    reason: str


@dataclass(frozen=True)
class Breach:
    """One observation that breaks a bound; `difference` says what it has to be."""

    stage: str
    name: str
    difference: Difference


# An eager and an SDPA pass of the embedded checkpoint lie 1.9e-7 of their norm from float64, which is 3 roundings of
# float32 (2^-24); 64 is the factor that the laws allow (mlmrepro.laws.forward). TF32 makes it 8e-5.
_PASS = "a float32 pass: at most 64 times 2^-24 of the norm of the logits, 20 times what was measured"
_BOUNDS = {
    ("model", "alone.float32_error"): Bound(64 * 2.0**-24, f"{_PASS}; more means a lower precision than float32"),
    ("model", "alone.padding_error"): Bound(64 * 2.0**-24, f"{_PASS}; more means that padding is not hidden"),
    ("model", "alone.matrices_changed_by_saving"): Bound(0, "none: saving and loading again is exact"),
}
# A perplexity is computed from its loss in float64, where exp errs by some 1e-16 for each nat.
_RTOL = 1e-9


def breaches(values: Values) -> Iterator[Breach]:
    """Yield every value that breaks a bound. A bound of which one side was not observed is passed over."""
    for (stage, name), bound in _BOUNDS.items():
        value = values.get((stage, name), 0.0)
        if not (_is_number(value) and value <= bound.at_most):
            yield Breach(stage, name, Difference("", bound.at_most, value, f"more than {bound.reason}"))
    for (stage, name), value in values.items():
        for place, perplexity, loss_name in _perplexities(name, value):
            loss: Any = values.get((stage, loss_name))
            if _is_number(loss) and not _agree(perplexity, loss):
                note = f"a perplexity has to be exp({loss_name}), e to the {loss:.6g}"
                yield Breach(stage, name, Difference(place, _exp(loss), perplexity, note))


def _perplexities(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield the place of each perplexity in an observation, its value, and the name of the loss that it is made of."""
    prefix, _, last = name.rpartition(".")
    prefix += "." if prefix else ""
    if last == "perplexity":
        yield "", value, f"{prefix}eval_loss"
    elif last == "same_masks_perplexity" and isinstance(value, dict):
        yield "['before']", value.get("before"), f"{prefix}before_eval_loss"
        yield "['after']", value.get("after"), f"{prefix}same_masks_eval_loss"


def _agree(perplexity: Any, loss: float) -> bool:
    """Tell whether a perplexity is exp(loss); of a loss that is not finite it is infinite, or NaN too."""
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
