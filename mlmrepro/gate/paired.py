"""The mean of paired differences and its interval; documents, not tokens, are the independent units.

Every choice here was made by simulation; `tests.gate.simulation` measures the promised error rates again, and their
limit: if the documents' differences have a long tail to one side, many hundreds of them are needed (`cautions`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import nctdtrinc, ndtri, stdtr, stdtrit

from mlmrepro.errors import UserError
from mlmrepro.gate.result import Paired

__all__ = ["cautions", "detectable", "p_value", "paired", "paired_units"]

Floats = NDArray[np.float64]

# Below it, a kind of document that makes up 5 % of all may be missing from the text (chance above 1 %).
FEW_DOCUMENTS = 90
# The skewness is assumed to be this many of its standard errors greater than seen: the smallest number that keeps false
# alarms at alpha with few documents of equal size and skewed tokens.
UNSURE = 0.5
# A standard error below this share of the difference is rounding: all differences are equal.
_ROUNDING = 1e-12


def paired(sums: ArrayLike, sizes: ArrayLike, *, alpha: float = 0.01, power: float = 0.95, units: int) -> Paired:
    """Return the micro-average of paired differences with an interval of level ``1 - 2 alpha``.

    `sums` and `sizes`, shape (documents,), hold for each document the sum of its units' differences, in nats or as
    a share, and the sum of their sizes; the estimate is ``sums.sum() / sizes.sum()``. Its standard error is the
    jackknife over documents (CR3; Bell and McCaffrey 2002), with their degrees of freedom for documents of unequal
    sizes. Hall's transformation (1992, "On the removal of skewness by transformation") widens a side to which a few
    documents may pull the mean, by the skewness seen plus half a standard error; no side is narrower than Student's t.
    `smallest_effect` is the true difference at which such data exclude 0 with `power`. Raises UserError for
    fewer than two documents.
    """
    if not (0 < alpha < 0.5 and alpha < power < 1):
        raise UserError(f"alpha {alpha:g} and power {power:g} are no error rates", remedy="use alpha 0.01, power 0.95")
    total, size = _documents(sums, sizes)
    share = size / size.sum()
    scale = float(np.abs(total).max()) or 1.0  # so that no square leaves the range of a float
    difference = float(total.sum() / size.sum())
    residual = _residuals(total / scale, size)
    error = float(math.sqrt((residual @ residual) * (1 - 1 / len(size))) / size.sum() * scale)
    if error <= _ROUNDING * abs(difference):
        residual, error = np.zeros_like(residual), 0.0
    degrees = _degrees(share)
    quantile = float(stdtrit(degrees, 1 - alpha))
    skewness, unsure = _skewness(residual), UNSURE * math.sqrt(6) / len(size)
    below = error * quantile * _widening(unsure - skewness, 1 - alpha)
    above = error * quantile * _widening(unsure + skewness, 1 - alpha)
    beyond = error * (detectable(degrees, alpha, power) - quantile) * _widening(unsure + skewness, power)
    return Paired(
        difference=difference,
        standard_error=error,
        degrees=degrees,
        low=difference - below,
        high=difference + above,
        alpha=alpha,
        power=power,
        smallest_effect=below + beyond,
        units=units,
        documents=len(size),
    )


def paired_units(
    differences: ArrayLike, sizes: ArrayLike, documents: ArrayLike, *, alpha: float = 0.01, power: float = 0.95
) -> Paired:
    """Return `paired` for single units: difference, size and document index of each, all of shape (units,).

    Indices are whole numbers from 0; an index without units, as in a slice of the text, does not count as a document.
    Raises UserError if the units lie in fewer than two documents.
    """
    index = np.asarray(documents, np.int64)
    present = np.bincount(index) > 0
    sums = np.bincount(index, weights=np.asarray(differences, np.float64))[present]
    totals = np.bincount(index, weights=np.asarray(sizes, np.float64))[present]
    return paired(sums, totals, alpha=alpha, power=power, units=len(index))


def p_value(result: Paired) -> float:
    """Return the two-sided p-value of no difference; it is ``2 alpha`` exactly if the interval ends at 0."""
    if result.difference == 0 or result.standard_error == 0:
        return float(result.difference == 0)
    side = result.difference - result.low if result.difference > 0 else result.high - result.difference
    quantile = stdtrit(result.degrees, 1 - result.alpha)
    return float(2 * stdtr(result.degrees, -abs(result.difference) / side * quantile))


def detectable(degrees: float, alpha: float, power: float) -> float:
    """Return the true difference, in standard errors, that a one-sided t-test at `alpha` finds with `power`."""
    return float(nctdtrinc(degrees, 1 - power, stdtrit(degrees, 1 - alpha)))


def cautions(sums: ArrayLike, sizes: ArrayLike, *, alpha: float = 0.01, skewed: bool = True) -> tuple[str, ...]:
    """Return sentences on why the promised rate of false alarms may not hold for this text; arguments as `paired`.

    With few documents a kind of document may be missing altogether, which no statistic can see. And if a few documents
    cause most of the change, Student's t errs by more than `alpha` in the first term of its Edgeworth expansion; the
    widened interval corrects most of that error, not all. Without `skewed` the second check is left out.
    """
    total, size = _documents(sums, sizes)
    found = []
    if len(size) < FEW_DOCUMENTS:
        rare = 1 / (1 - alpha ** (1 / len(size)))
        found.append(
            f"{len(size)} documents are too few to stand for any other text."
            if rare < 3
            else f"With {len(size)} documents, a kind of document as rare as 1 in {rare:.0f} may be missing from the "
            "text, and what changed there is not seen."
        )
    skewness = _skewness(_residuals(total / (float(np.abs(total).max()) or 1.0), size))
    normal = float(ndtri(1 - alpha))
    density = math.exp(-(normal**2) / 2) / math.sqrt(2 * math.pi)
    if skewed and abs(skewness) / 6 * (2 * normal**2 + 1) * density > alpha:
        found.append(
            f"A few documents make most of the change (skewness {skewness * math.sqrt(len(size)):+.1f}), so the chance "
            f"of a false alarm may be above {alpha * 100:g} %: look at the worst documents, or give more text."
        )
    return tuple(found)


def _documents(sums: ArrayLike, sizes: ArrayLike) -> tuple[Floats, Floats]:
    total, size = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    if total.shape != size.shape or total.ndim != 1:
        raise ValueError(f"sums of shape {total.shape}, sizes of shape {size.shape}")
    if len(size) < 2:
        raise UserError(
            f"a difference of {len(size)} document{'s' * (len(size) != 1)} has no interval: at least 2 are needed",
            remedy="give text with more documents; in a .txt file a blank line ends one",
        )
    if not (np.isfinite(total).all() and np.isfinite(size).all() and (size > 0).all()):
        raise ValueError("differences must be finite, and sizes positive")
    return total, size


def _residuals(total: Floats, size: Floats) -> Floats:
    """Return how much the sum would change without each document: the jackknife's pseudo-residuals."""
    return (total - total.sum() / size.sum() * size) / (1 - size / size.sum())


def _skewness(residual: Floats) -> float:
    """Return the skewness of the estimate: that of the residuals, divided by the root of their number."""
    spread = float(residual @ residual) * (1 - 1 / len(residual))
    return float((residual**3).sum() / spread**1.5) if spread > 0 else 0.0


def _degrees(share: Floats) -> float:
    """Return Bell and McCaffrey's degrees of freedom, for independent units, from each document's share of all units.

    The variance estimate is a quadratic form; with its weights w = 1 / (1 - share)^2 and the covariance Q of the
    residuals, Q = diag(share) - share share', it has (sum w Q_ii)^2 / (sum w_i w_j Q_ij^2) degrees.
    """
    weight = (1 - share) ** -2
    diagonal = share * (1 - share)
    squares = (weight @ share**2) ** 2 + weight**2 @ (diagonal**2 - share**4)
    return float((weight @ diagonal) ** 2 / squares)


def _widening(skewness: float, level: float) -> float:
    """Return the factor, 1 or more, by which the side that the skewness points to is wider than Student's t."""
    normal = float(ndtri(level))
    return max(1.0, -_untransformed(-normal, skewness) / normal)


def _untransformed(normal: float, skewness: float) -> float:
    """Solve Hall's ``t + s t^2 / 3 + s^2 t^3 / 27 + s / 6 = normal`` for t, with s the skewness of the estimate."""
    moved = normal - skewness / 6
    root = float(np.cbrt(1 + skewness * moved))
    return 3 * moved / (root * root + root + 1)
