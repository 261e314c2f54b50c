"""Accuracy and calibration: hand-computed, blind to order, and paired by document."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlmrepro.gate.accuracy import accuracy, brier_score, calibration_error
from mlmrepro.gate.paired import paired_units
from mlmrepro.scores import Scores


def scores(correct: NDArray, confidence: NDArray, document: NDArray, size: int = 1) -> Scores:
    units = len(correct)
    ids, one = np.arange(units, dtype=np.int32), np.ones(units, np.int32)
    return Scores(
        document.astype(np.int32),
        ids,
        ids,
        one.astype(np.float32),
        one * size,
        correct.astype(bool),
        confidence.astype(np.float32),
    )


def test_calibration_by_hand() -> None:
    """Two bins of two: confidence 0.2 and 0.9 on average, right in 0 and 1 of 2; (0.2 + 0.4) / 2. One bin: 0.3."""
    confidence, correct = np.array([0.1, 0.8, 0.3, 1.0]), np.array([0, 1, 0, 0])
    assert calibration_error(confidence, correct, bins=2) == pytest.approx(0.3)
    assert calibration_error(confidence, correct, bins=1) == pytest.approx(0.55 - 0.25)
    assert calibration_error(confidence, correct, bins=4) == pytest.approx((0.1 + 0.3 + 0.2 + 1.0) / 4)
    assert calibration_error(confidence, correct, bins=99) == calibration_error(confidence, correct, bins=4)
    with pytest.raises(ValueError, match="no units"):
        calibration_error(confidence[:0], correct[:0])


def test_brier_score_by_hand() -> None:
    """0.5 squared and 0.2 squared, on average; the wrong answer with full confidence is 1."""
    assert brier_score(np.array([0.5, 0.8]), np.array([False, True])) == pytest.approx((0.25 + 0.04) / 2)
    assert brier_score(np.array([1.0]), np.array([False])) == 1


UNITS = st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.9]), st.booleans()), min_size=1, max_size=60)


@given(UNITS, st.integers(1, 20), st.randoms(use_true_random=False))
def test_calibration_is_blind_to_the_order(units: list[tuple[float, bool]], bins: int, random: Random) -> None:
    """Even where most confidences are equal, so that a bin's edge falls between equals, order does not matter."""
    shuffled = units.copy()
    random.shuffle(shuffled)
    first, second = (calibration_error(*np.array(rows, float).T, bins) for rows in (units, shuffled))
    assert first == pytest.approx(second, abs=1e-12)
    assert 0 <= first <= 1


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large() -> None:
    """Answers that are right as often as said are off by chance alone; said 0.2 more often, they are off by 0.2."""
    rng = np.random.default_rng(0)
    said = rng.uniform(0.2, 0.8, 20_000)
    honest, boasting = rng.random(said.size) < said, rng.random(said.size) < said - 0.2
    assert calibration_error(said, honest) < 0.02
    assert calibration_error(said, boasting) == pytest.approx(0.2, abs=0.02)


def test_the_difference_is_paired_by_document_and_counts_every_unit_once() -> None:
    """More right answers are a positive difference of shares, clustered by document, whatever the units' sizes."""
    rng = np.random.default_rng(1)
    document, confidence = np.repeat(np.arange(10), 20), rng.random(200)
    before, after = rng.random(200) < 0.5, rng.random(200) < 0.6
    found = accuracy(
        scores(before, confidence, document, 3), scores(after, confidence / 2, document, 3), alpha=0.01, power=0.95
    )
    assert (found.before, found.after) == (before.mean(), after.mean())
    gained = after.astype(float) - before
    assert found.paired == paired_units(gained, np.ones(200), document, alpha=0.01, power=0.95)
    assert found.paired.difference == pytest.approx(after.mean() - before.mean())
    assert found.paired.documents == 10
    assert found.brier_before == pytest.approx(brier_score(confidence, before), abs=1e-6)
    assert found.calibration_after == pytest.approx(calibration_error(confidence / 2, after), abs=1e-6)


def test_the_same_predictions_differ_by_exactly_nothing() -> None:
    """One checkpoint against itself: 0 and no interval around it."""
    rng = np.random.default_rng(2)
    same = scores(rng.random(50) < 0.5, rng.random(50), np.repeat(np.arange(5), 10))
    found = accuracy(same, same, alpha=0.01, power=0.95)
    assert (found.paired.difference, found.paired.low, found.paired.high) == (0, 0, 0)
    assert (found.before, found.calibration_before, found.brier_before) == (
        found.after,
        found.calibration_after,
        found.brier_after,
    )
