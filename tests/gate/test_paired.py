"""The mean of paired differences: what it must not depend on, and what is known in closed form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from mlmrepro.errors import UserError
from mlmrepro.gate.paired import FEW_DOCUMENTS, cautions, detectable, p_value, paired, paired_units
from mlmrepro.gate.result import Paired

pytestmark = pytest.mark.quick

IN_THE_UNIT = ("difference", "standard_error", "low", "high", "smallest_effect")
few = settings(max_examples=25)


@st.composite
def texts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return sums and sizes of 2 to 40 documents."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    documents = draw(st.integers(2, 40))
    sizes = rng.integers(1, draw(st.sampled_from([2, 10, 1000])), documents)
    noise = rng.standard_t(draw(st.sampled_from([1.5, 3, 30])), documents)
    return sizes * draw(st.floats(-1, 1)) + np.sqrt(sizes) * noise, sizes


def close(found: Paired, expected: Paired) -> None:
    size = max(abs(expected.low), abs(expected.high))
    for field in dataclasses.fields(Paired):
        wanted = getattr(expected, field.name)
        assert getattr(found, field.name) == pytest.approx(wanted, rel=1e-9, abs=1e-9 * size), field.name


@few
@given(texts(), st.sampled_from([1e-200, 1e-6, 3.0, 1e150]))
def test_another_unit_of_loss_gives_the_same_answer(text: tuple[np.ndarray, np.ndarray], factor: float) -> None:
    """In another unit every figure is multiplied, however small or large the unit: no square over- or underflows."""
    sums, sizes = text
    expected = paired(sums, sizes, units=9)
    scaled = {name: getattr(expected, name) * factor for name in IN_THE_UNIT}
    found = paired(sums * factor, sizes, units=9)
    for name, value in scaled.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-9 * abs(scaled["high"]))


@few
@given(texts())
def test_swapping_the_checkpoints_mirrors_the_interval(text: tuple[np.ndarray, np.ndarray]) -> None:
    """Baseline against candidate is candidate against baseline with the sign turned."""
    sums, sizes = text
    one, other = paired(sums, sizes, units=9), paired(-sums, sizes, units=9)
    assert (one.low, one.high, one.standard_error) == pytest.approx((-other.high, -other.low, other.standard_error))
    assert p_value(one) == pytest.approx(p_value(other))


@few
@given(texts(), st.randoms(use_true_random=False))
def test_the_order_of_documents_is_irrelevant(text: tuple[np.ndarray, np.ndarray], random: st.DataObject) -> None:
    """Documents in another order give the same figures."""
    sums, sizes = text
    order = list(range(len(sums)))
    random.shuffle(order)
    close(paired(sums[order], sizes[order], units=9), paired(sums, sizes, units=9))


@few
@given(texts(), st.floats(-2, 2))
def test_a_shift_moves_the_interval_and_nothing_else(text: tuple[np.ndarray, np.ndarray], shift: float) -> None:
    """The same change of every unit moves the estimate by it: width, degrees and smallest effect stay."""
    sums, sizes = text
    still, moved = paired(sums, sizes, units=9), paired(sums + shift * sizes, sizes, units=9)
    assert moved.low - still.low == pytest.approx(shift, abs=1e-7)
    assert moved.high - still.high == pytest.approx(shift, abs=1e-7)
    assert moved.smallest_effect == pytest.approx(still.smallest_effect, rel=1e-6, abs=1e-12)


@few
@given(texts(), st.integers(2, 5))
def test_repeated_tokens_are_no_evidence(text: tuple[np.ndarray, np.ndarray], times: int) -> None:
    """Every unit several times within its document changes nothing: only documents vary independently."""
    sums, sizes = text
    close(paired(sums * times, sizes * times, units=9), paired(sums, sizes, units=9))


@few
@given(texts())
def test_no_side_is_narrower_than_students_t(text: tuple[np.ndarray, np.ndarray]) -> None:
    """The interval holds Student's t with the same degrees of freedom, which are 1 to documents - 1."""
    found = paired(*text, units=9)
    half = stats.t.ppf(0.99, found.degrees) * found.standard_error
    assert found.low <= found.difference - half * (1 - 1e-9)
    assert found.high >= found.difference + half * (1 - 1e-9)
    assert 1 - 1e-6 <= found.degrees <= found.documents - 1 + 1e-6


def test_documents_of_equal_size_are_a_one_sample_t_test() -> None:
    """With equal sizes the standard error and the degrees of freedom are those of the mean of the documents."""
    sums = np.random.default_rng(1).normal(0.1, 1, 50)
    found = paired(sums * 7, np.full(50, 7), units=350)
    known = stats.ttest_1samp(sums, 0)
    assert found.difference / found.standard_error == pytest.approx(known.statistic)
    assert found.degrees == pytest.approx(known.df)


def test_the_standard_error_is_the_jackknife() -> None:
    """It equals what leaving out each document in turn gives, also with documents of unequal size."""
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 200, 12)
    sums = rng.normal(0, 1, 12) * sizes
    kept = ~np.eye(12, dtype=bool)
    left_out = (kept @ sums) / (kept @ sizes)
    whole = sums.sum() / sizes.sum()
    jackknife = math.sqrt(11 / 12 * ((left_out - whole) ** 2).sum())
    assert paired(sums, sizes, units=9).standard_error == pytest.approx(jackknife)


def test_degrees_of_freedom_are_those_of_bell_and_mccaffrey() -> None:
    """They equal 2 E^2 / Var of the variance estimate, from its matrix in full, when units are independent."""
    sizes = np.array([3.0, 50, 7, 120, 9, 14])
    share = sizes / sizes.sum()
    make = np.eye(6) - np.outer(sizes, np.ones(6)) / sizes.sum()  # sums -> residuals
    covariance = make @ np.diag(sizes) @ make.T
    form = np.diag((1 - share) ** -2) @ covariance
    assert paired(sizes**2, sizes, units=9).degrees == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))


def test_a_pull_to_one_side_widens_that_side() -> None:
    """A few documents that got much worse say less about how bad it may be than about how good it may be."""
    found = paired([1.0] * 30 + [30.0], [10] * 31, units=310)
    assert found.high - found.difference > 1.2 * (found.difference - found.low)
    assert p_value(found) > stats.t.sf(found.difference / found.standard_error, found.degrees)


@pytest.mark.parametrize("sign", [1, -1])
def test_each_side_is_as_wide_as_halls_transformation_says(sign: int) -> None:
    """His cubic is solved for the skewness seen and half a standard error of it, sqrt(6 / n) for n documents, more."""
    sums = sign * np.random.default_rng(6).exponential(size=30)
    found = paired(sums, np.ones(30), units=30)
    seen = stats.skew(sums) * (30 / 29) ** 1.5 / math.sqrt(30)
    more = 0.5 * math.sqrt(6 / 30) / math.sqrt(30)
    normal = stats.norm.isf(0.01)
    half = stats.t.isf(0.01, found.degrees) * found.standard_error
    for side, s in ((found.high - found.difference, seen + more), (found.difference - found.low, more - seen)):
        t = brentq(lambda t, s=s: t + s * t**2 / 3 + s**2 * t**3 / 27 + s / 6 + normal, -50, 0)
        assert side == pytest.approx(half * max(1, -t / normal))


def test_equal_differences_are_a_point() -> None:
    """Where every unit changes by the same, the standard error is exactly 0, and what is seen is any change."""
    sizes = np.array([3, 70, 11, 5])
    for change in (0.0, 0.1, -1e-9, 1 / 3):
        with np.errstate(invalid="raise"):  # a warning would stand in the output of every such check
            found = paired(change * sizes, sizes, units=89)
        assert (found.standard_error, found.smallest_effect) == (0, 0)
        assert found.low == found.high == found.difference == pytest.approx(change, rel=1e-15)
        assert p_value(found) == (1 if change == 0 else 0)


def test_units_are_gathered_by_document() -> None:
    """Units of any order and with gaps in the document numbers, as in a slice, give what their sums give."""
    rng = np.random.default_rng(3)
    documents = rng.permutation(np.repeat([2, 5, 9, 40], [3, 8, 1, 6])).astype(np.int32)
    differences, sizes = rng.normal(size=18).astype(np.float32), rng.integers(1, 9, 18).astype(np.int32)
    groups = [documents == d for d in (2, 5, 9, 40)]
    sums = [differences[g].astype(float).sum() for g in groups]
    found = paired_units(differences, sizes, documents)
    close(found, paired(sums, [sizes[g].sum() for g in groups], units=18))
    assert (found.units, found.documents) == (18, 4)


def test_the_p_value_is_that_of_the_interval() -> None:
    """At 2 alpha the interval ends at 0: a p-value and an interval never contradict each other."""
    rng = np.random.default_rng(4)
    sums, sizes = rng.exponential(1, 20), rng.integers(5, 50, 20)
    found = paired(sums, sizes, units=9)
    touching = paired(sums - found.low * sizes, sizes, units=9)
    assert touching.low == pytest.approx(0, abs=1e-12)
    assert p_value(touching) == pytest.approx(2 * found.alpha)
    assert p_value(paired(sums - 1.01 * found.low * sizes, sizes, units=9)) > 2 * found.alpha
    one = paired([0.5, 1.5], [1, 1], units=2)
    assert one.difference == 1
    assert stats.ttest_1samp([0.5, 1.5], 0).pvalue < p_value(one) < 1


@pytest.mark.parametrize("degrees", [1.0, 4.3, 40.0, 1e5])
def test_the_detectable_difference_has_its_power(degrees: float) -> None:
    """By scipy's noncentral t, the test at alpha finds it with the power."""
    effect = detectable(degrees, 0.01, 0.95)
    assert stats.nct.sf(stats.t.ppf(0.99, degrees), degrees, effect) == pytest.approx(0.95, abs=1e-4)


def test_one_document_is_refused() -> None:
    """One document has no interval, and none neither: the message says how to give more."""
    with pytest.raises(UserError) as error:
        paired([1.0], [10], units=10)
    assert error.value.problem == "a difference of 1 document has no interval: at least 2 are needed"
    assert error.value.remedy == "give text with more documents; in a .txt file a blank line ends one"
    with pytest.raises(UserError, match="of 0 documents has no interval"):
        paired([], [], units=0)
    with pytest.raises(UserError, match="of 1 document has no interval"):
        paired_units([0.1, 0.2], [1, 1], [7, 7])


@pytest.mark.parametrize(
    ("alpha", "power"), [(0, 0.9), (0.5, 0.9), (0.01, 1), (0.1, 0.05), (0.1, 0.1), (math.nan, 0.95)]
)
def test_error_rates_are_checked(alpha: float, power: float) -> None:
    """An alpha or a power that is no error rate is bad input."""
    with pytest.raises(UserError) as error:
        paired([1.0, 2], [1, 1], units=2, alpha=alpha, power=power)
    assert error.value.problem == f"alpha {alpha:g} and power {power:g} are no error rates"
    assert error.value.remedy == "use alpha 0.01, power 0.95"


def test_what_is_no_number_never_passes() -> None:
    """NaN, infinity and documents of no size are mistakes of the caller, not skipped."""
    for sums, sizes in (([1.0, math.nan], [1, 1]), ([1.0, math.inf], [1, 1]), ([1.0, 2.0], [1, 0]), ([1.0], [1, 2])):
        with pytest.raises(ValueError, match=r"finite|shape"):
            paired(sums, sizes, units=2)


def test_thousands_of_documents_take_no_time() -> None:
    """The cost is linear: 200 times the documents cost nowhere near the 40,000 times of a comparison of all pairs."""
    import time

    def seconds(documents: int) -> float:
        sums, sizes = np.linspace(-1, 1, documents) ** 3, np.full(documents, 7)
        taken = []
        for _ in range(9):
            start = time.thread_time()
            paired(sums, sizes, units=9)
            taken.append(time.thread_time() - start)
        return min(taken)

    assert seconds(20_000) < 2000 * seconds(100)  # ten times linear: other processes take the caches


def test_what_cannot_be_promised_is_said() -> None:
    """Few documents, and a change that few of them make, are cautions; many that change alike are none."""
    rng = np.random.default_rng(5)
    sizes = np.full(400, 100)
    assert cautions(rng.normal(size=400), sizes) == ()
    (rare,) = cautions(rng.normal(size=20), sizes[:20])
    assert rare == (
        "With 20 documents, a kind of document as rare as 1 in 5 may be missing from the text, and what changed there "
        "is not seen."
    )
    pulled = np.where(np.arange(400) < 3, 50, rng.normal(size=400))
    (heavy,) = cautions(pulled, sizes)
    assert cautions(pulled * 1e200, sizes) == cautions(pulled * 1e-200, sizes) == (heavy,)
    assert heavy.startswith("A few documents make most of the change (skewness +")
    assert heavy.endswith(
        "), so the chance of a false alarm may be above 1 %: look at the worst documents, or give more text."
    )
    # 1 in 3 is missing from n documents with the chance (2/3)^n: 1 % where n is 11.4.
    for documents, few in ((11, True), (12, False)):
        told = cautions(np.arange(documents) % 2, sizes[:documents])
        assert (told[0] == f"{documents} documents are too few to stand for any other text.") is few
    assert len(cautions([0.0, 0.0], [1, 1])) == 1
    enough = rng.normal(size=FEW_DOCUMENTS)
    assert cautions(enough, sizes[:FEW_DOCUMENTS]) == ()
    assert len(cautions(enough[1:], sizes[1:FEW_DOCUMENTS])) == 1


@few
@given(st.integers(90, 300), st.floats(0, 9), st.sampled_from([0.01, 0.05]), st.sampled_from([1e-200, 1.0, 1e200]))
def test_the_caution_begins_where_the_first_edgeworth_term_exceeds_alpha(
    documents: int, pull: float, alpha: float, scale: float
) -> None:
    """Student's t of a sample of skewness g errs by about g (2 z^2 + 1) phi(z) / (6 sqrt(n)), in any unit."""
    values = stats.norm.ppf((np.arange(documents) + 0.5) / documents)
    values[0] += pull
    z = stats.norm.isf(alpha)
    error = stats.skew(values) / math.sqrt(documents - 1) / 6 * (2 * z**2 + 1) * stats.norm.pdf(z)
    told = cautions(values * scale, np.full(documents, 10), alpha=alpha)
    if abs(abs(error) / alpha - 1) > 0.02:
        assert bool(told) == (abs(error) > alpha)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
@pytest.mark.parametrize("documents", [90, 300])
def test_the_caution_is_exact_to_three_per_cent(documents: int, alpha: float) -> None:
    """A little below the threshold there is none, a little above it is told, with the skewness of the documents."""
    sizes, middle = np.full(documents, 10), stats.norm.ppf((np.arange(documents) + 0.5) / documents)
    z = stats.norm.isf(alpha)

    def pulled(by: float) -> np.ndarray:
        return middle + by * (np.arange(documents) == 0)

    def skewness(by: float) -> float:
        return float(stats.skew(pulled(by)) * (documents / (documents - 1)) ** 1.5)  # of the jackknife's residuals

    def error(by: float) -> float:
        return float(skewness(by) / math.sqrt(documents) / 6 * (2 * z**2 + 1) * stats.norm.pdf(z) / alpha)

    for factor in (0.97, 1.03):
        by = brentq(lambda by, factor=factor: error(by) - factor, 4, 100)
        told = cautions(pulled(by), sizes, alpha=alpha)
        assert len(told) == (factor > 1)
    assert f"(skewness {skewness(by):+.1f})" in told[0]
