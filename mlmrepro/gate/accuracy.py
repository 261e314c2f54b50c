"""How often the most probable token is the true one, and how honest its probability is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlmrepro.gate.paired import paired_units
from mlmrepro.gate.result import Accuracy
from mlmrepro.scores import Scores

__all__ = ["BINS", "accuracy", "brier_score", "calibration_error"]

BINS = 15  # the usual number, from Guo et al., "On calibration of modern neural networks" (2017)


def calibration_error(confidence: NDArray, correct: NDArray, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean distance of confidence from accuracy over bins of equal count.

    `confidence` and `correct` have shape (units,). The units are sorted by confidence and cut into `bins` bins whose
    counts differ by at most one (adaptive bins, Nixon et al., "Measuring calibration in deep learning", 2019; bins of
    equal width leave most of them empty for a good model). Units of equal confidence share their mean accuracy, so that
    it does not matter which of them a bin's edge takes. Raises ValueError if there is nothing to bin.
    """
    if not len(confidence):
        raise ValueError("no units, so no calibration")
    values, place, counts = np.unique(np.asarray(confidence, np.float64), return_inverse=True, return_counts=True)
    right = np.bincount(place, weights=correct) / counts
    gaps = np.repeat(right - values, counts)
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, min(bins, len(gaps)))) / len(gaps))


def brier_score(confidence: NDArray, correct: NDArray) -> float:
    """Return the mean of (confidence - correct) squared, both of shape (units,): 0 is best, 1 worst (Brier 1950)."""
    return float(np.mean((np.asarray(confidence, np.float64) - correct) ** 2))


def accuracy(before: Scores, after: Scores, *, alpha: float, power: float) -> Accuracy:
    """Return both checkpoints' accuracy and calibration on the same units, every unit counted once.

    The paired difference is one of shares, clustered by document; here positive is better.
    """
    gained = after.correct.astype(np.float64) - before.correct
    return Accuracy(
        before=float(np.mean(before.correct)),
        after=float(np.mean(after.correct)),
        paired=paired_units(gained, np.ones(len(gained)), before.document, alpha=alpha, power=power),
        calibration_before=calibration_error(before.confidence, before.correct),
        calibration_after=calibration_error(after.confidence, after.correct),
        brier_before=brier_score(before.confidence, before.correct),
        brier_after=brier_score(after.confidence, after.correct),
    )
