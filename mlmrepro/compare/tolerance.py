"""How much two floats may differ, for which quantity, and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from mlmrepro.errors import UserError

__all__ = ["QUANTITIES", "Tolerance", "default_tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """The largest difference of a quantity that counts as rounding: ``atol + rtol * abs(expected)``.

    In the ranking lane `atol` is the tie band, a difference of scores.
    """

    quantity: str
    atol: float = 0.0
    rtol: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if not (self.quantity and self.reason):
            raise ValueError("a tolerance needs a quantity and a reason")
        if not all(math.isfinite(x) and x >= 0 for x in (self.atol, self.rtol)):
            raise ValueError(f"the tolerance of {self.quantity} is not a finite number, 0 or more")

    def limit(self, expected: float) -> float:
        """Return the largest difference from `expected` that is allowed."""
        return self.atol + self.rtol * abs(expected)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


# Rounding differs between kernels, processors and numbers of threads. golden/README.md says how this was measured; the
# factor and the minimum leave room for processors that were not measured.
_MEASURED = "rounding: 20 times the largest difference among 20 reruns with 1 to 4 threads"

QUANTITIES = {
    tolerance.quantity: tolerance
    for tolerance in (
        Tolerance("nats", atol=1e-4, reason=f"{_MEASURED} (1.2e-6), and no less than 1e-4"),
        Tolerance("probability", atol=2e-5, reason=f"{_MEASURED} (6.6e-7), rounded up"),
        Tolerance("perplexity", rtol=1e-4, reason=f"{_MEASURED} (1.2e-6, relative), and no less than 1e-4"),
        Tolerance("norm", rtol=1e-5, reason=f"{_MEASURED} (1.6e-7, relative), and no less than 1e-5"),
        Tolerance("ratio", atol=2e-3, reason="rounded to 3 decimals where it is observed"),
    )
}


def default_tolerance(quantity: str) -> Tolerance:
    """Return the measured tolerance of a quantity; raises UserError for an unknown one."""
    try:
        return QUANTITIES[quantity]
    except KeyError:
        raise UserError(
            f"no tolerance is known for the quantity {quantity!r}", remedy=f"use one of: {', '.join(QUANTITIES)}"
        ) from None
