"""Retraining variance: what few seeds can tell, and that they say what they cannot."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import permutation_test

from mlmrepro.errors import UserError
from mlmrepro.gate.result import Answer
from mlmrepro.gate.seeds import SeedComparison, _arrangements, compare_seeds, seeds_needed

few = settings(max_examples=25)
loss = st.integers(0, 10_000).map(lambda n: 4 + n / 10_000)
losses = st.lists(loss, min_size=1, max_size=5)
several = st.lists(loss, min_size=2, max_size=4)


def compare(before: list[float], after: list[float], margin: float = 0.01, **options: float) -> SeedComparison:
    return compare_seeds(before, after, margin_nats=margin, **options)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([4.05, 4.06, 4.07], Answer.REGRESSION),
        ([3.96, 3.97, 3.98], Answer.BETTER),
        ([4.000, 4.001, 4.004], Answer.SAME),
        ([3.98, 4.02, 4.03], Answer.INCONCLUSIVE),
    ],
)
def test_three_against_three_can_tell(after: list[float], expected: Answer) -> None:
    """With 1/20 as smallest p-value, three seeds on each side reach alpha 0.05 where the losses part in full."""
    found = compare([4.0, 4.002, 4.003], after)
    assert found.answer is expected
    assert found.smallest_p == 1 / 20


@few
@given(several, several, st.floats(0, 0.5))
def test_p_values_are_scipys(before: list[float], after: list[float], margin: float) -> None:
    """All three equal scipy's exact permutation test of the difference of means, shifted by the margin."""
    found = compare(before, after, margin)

    def p(moved: float, side: str) -> float:
        samples = (np.array(after) - moved, np.array(before))
        test = permutation_test(
            samples,
            lambda x, y, axis: x.mean(axis) - y.mean(axis),
            alternative=side,
            vectorized=True,
            n_resamples=math.inf,
        )
        return float(test.pvalue)

    thresholds = [
        abs(np.mean(a) - np.mean(b) - shift)
        for k in range(1, min(len(before), len(after)) + 1)
        for a in itertools.combinations(after, k)
        for b in itertools.combinations(before, k)
        for shift in (0, margin)
    ]
    if min(thresholds) > 1e-9:  # no ties that rounding decides
        assert found.p_worse == pytest.approx(p(margin, "greater"))
        assert found.p_same == pytest.approx(p(margin, "less"))
        assert found.p_better == pytest.approx(p(0, "less"))


@few
@given(losses, losses, st.floats(0, 0.5), st.sampled_from([0.02, 0.05, 0.1]))
def test_the_answer_is_that_of_the_p_values(
    before: list[float], after: list[float], margin: float, alpha: float
) -> None:
    """A claim is made exactly where its p-value is at most alpha, so the interval and the test never disagree."""
    found = compare(before, after, margin, alpha=alpha)
    if sorted(before) == sorted(after):
        expected = Answer.SAME
    elif found.p_better <= alpha:
        expected = Answer.BETTER
    elif found.p_worse <= alpha:
        expected = Answer.REGRESSION
    else:
        expected = Answer.SAME if found.p_same <= alpha else Answer.INCONCLUSIVE
    assert found.answer is expected
    assert (found.low is None) == (found.smallest_p > alpha)


@few
@given(st.floats(1e-6, 0.1), st.floats(0.001, 100))
def test_two_against_two_always_refuse(alpha: float, difference: float) -> None:
    """However far apart, and whatever the alpha: 1/6 is the smallest p-value, and how many would do is said."""
    found = compare([4.0, 4.001], [4 + difference, 4.001 + difference], alpha=alpha)
    assert found.answer is Answer.INCONCLUSIVE
    assert (found.low, found.high, found.smallest_effect) == (None, None, None)
    assert "2 against 2 seeds cannot give a p-value below 0.17" in found.reason
    assert found.advice == f"Run at least {seeds_needed(alpha)} seeds on each side."


def test_one_unlucky_seed_is_a_rank_and_no_verdict() -> None:
    """One seed against five: where it stands among them is a fact, but 1/6 is no evidence; nineteen give 1/20."""
    before = [4.0, 4.01, 4.02, 4.03, 4.04]
    found = compare(before, [4.5])
    assert found.answer is Answer.INCONCLUSIVE
    assert found.deviation is found.smallest_effect is None
    assert "the run after ranks 6 of 6 (1 is best)" in found.reason
    assert "the run before ranks 1 of 6 (1 is best)" in compare([3.0], before).reason
    assert compare(list(np.linspace(4, 4.01, 19)), [4.5]).answer is Answer.REGRESSION


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 3), (0.05, 3), (0.04, 4), (0.01, 5), (0.001, 7)])
def test_the_seeds_needed_reach_alpha(alpha: float, needed: int) -> None:
    """They are the fewest on each side whose smallest p-value is at most alpha."""
    assert seeds_needed(alpha) == needed
    apart = np.linspace(0, 0.001, needed)
    assert compare(list(4 + apart), list(5 + apart), alpha=alpha).answer is Answer.REGRESSION
    fewer = compare(list(4 + apart[1:]), list(5 + apart[1:]), alpha=alpha)
    assert fewer.answer is Answer.INCONCLUSIVE


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_regression(broken: float) -> None:
    """A training that broke is worse, whatever the other seeds gave; its value is kept, and is JSON."""
    found = compare([4.0, 4.1, 4.2], [3.0, broken, 3.1])
    assert found.answer is Answer.REGRESSION
    assert found.reason == "1 of 3 seeds after gave a loss that is NaN or infinite"
    assert compare([4.0], [broken]).reason == "1 of 1 seed after gave a loss that is NaN or infinite"
    assert found.advice == "Look at the log of the training that failed."
    assert "NaN" in json.dumps(found.to_dict(), allow_nan=False) or broken == math.inf
    with np.errstate(invalid="raise"):  # no warning of the library's about a mean that there is not
        assert compare([4.0], [broken, -math.inf]).answer is Answer.REGRESSION


def test_every_raw_value_is_kept() -> None:
    """The result holds the loss of each seed as it was given, in its order, and can be written as JSON."""
    before, after = [4.1, 4.0, 4.2], [4.4, 4.3, 4.5]
    plain = json.loads(json.dumps(compare(before, after).to_dict(), allow_nan=False))
    assert (plain["before"], plain["after"], plain["answer"]) == (before, after, "REGRESSION")
    assert type(compare(before, after).to_dict()["answer"]) is str


def test_the_same_losses_are_the_same() -> None:
    """Equal values on both sides are the same, with any number of seeds; nearly equal ones are not for two."""
    assert compare([4.0, 4.1], [4.1, 4.0]).answer is Answer.SAME
    assert compare([4.0], [4.0]).answer is Answer.SAME
    assert compare([4.0, 4.1], [4.1, 4.0000001]).answer is Answer.INCONCLUSIVE


def test_what_could_be_seen_is_stated() -> None:
    """The smallest effect is in the advice, and moves with the spread between seeds; more seeds are asked for."""
    found = compare([4.0, 4.01, 4.02], [4.0, 4.011, 4.021], 0.005)
    wider = compare([4.0, 4.02, 4.04], [4.0, 4.022, 4.042], 0.005)
    assert found.answer is wider.answer is Answer.INCONCLUSIVE
    assert wider.smallest_effect == pytest.approx(2 * found.smallest_effect)
    assert f"These runs detect a difference of {found.smallest_effect:.3g} nats with 95 % power" in found.advice
    assert "seeds on each side would decide" in found.advice


def test_many_seeds_are_sampled_and_agree() -> None:
    """Beyond what can be tried in full, arrangements are drawn, the same in every run, and p-values hardly move."""
    rng = np.random.default_rng(0)
    before, after = rng.normal(4, 1, 12), rng.normal(4.9, 1, 12)
    drawn = compare(list(before), list(after), 0.0)
    _arrangements.cache_clear()  # as in another run
    assert compare(list(before), list(after), 0.0) == drawn
    test = permutation_test(
        (after, before), lambda x, y: x.mean() - y.mean(), alternative="greater", n_resamples=4000, rng=1
    )
    assert drawn.p_worse == pytest.approx(test.pvalue, abs=0.01)


@pytest.mark.parametrize(
    ("before", "after", "options", "problem", "remedy"),
    [
        ([], [4.0], {}, "one of the recipes has no run", "give the loss of at least one seed on each side"),
        ([4.0], [], {}, "one of the recipes has no run", "give the loss of at least one seed on each side"),
        (
            [4, math.nan],
            [4],
            {},
            "a loss of the recipe before is NaN or infinite",
            "run the seed again, or leave it out",
        ),
        ([4], [4], {"margin": -1.0}, "the margin is -1 nats", "give a margin of 0 or more, such as 0.01"),
        (
            [4],
            [4],
            {"margin": math.inf},
            "the margin is inf nats",
            "give a margin of 0 or more, such as 0.01",
        ),
        (
            [4],
            [4],
            {"alpha": 0.168},
            "alpha 0.168 and power 0.95 are not valid error rates",
            "use alpha 0.05, power 0.95",
        ),
        ([4], [4], {"alpha": 0.0}, "alpha 0 and power 0.95 are not valid error rates", "use alpha 0.05, power 0.95"),
        (
            [4],
            [4],
            {"power": 0.01},
            "alpha 0.05 and power 0.01 are not valid error rates",
            "use alpha 0.05, power 0.95",
        ),
        (
            [4],
            [4],
            {"power": 0.05},
            "alpha 0.05 and power 0.05 are not valid error rates",
            "use alpha 0.05, power 0.95",
        ),
        ([4], [4], {"power": 1.0}, "alpha 0.05 and power 1 are not valid error rates", "use alpha 0.05, power 0.95"),
    ],
)
def test_bad_input_is_told(
    before: list[float], after: list[float], options: dict[str, float], problem: str, remedy: str
) -> None:
    """No runs, a baseline that broke, and arguments out of range are bad input; 2 against 2 cannot be forced."""
    with pytest.raises(UserError) as error:
        compare(before, after, **options)
    assert (error.value.problem, error.value.remedy) == (problem, remedy)


def test_a_tie_is_no_evidence() -> None:
    """An arrangement as extreme as the observed one counts against a claim, at 0 and at the margin: losses may tie."""
    before, after = [4.25, 4.25, 4.0], [4.25, 4.0, 4.0]
    test = permutation_test((after, before), lambda x, y: np.mean(x) - np.mean(y), alternative="less")
    found = compare(before, after, 0.25)
    assert found.p_better == pytest.approx(test.pvalue)
    assert found.p_better > 0.25
    touching = compare([4.0, 4.0, 4.0], [4.25, 4.25, 4.25], 0.25)
    assert (touching.low, touching.high, touching.p_worse, touching.p_same) == (0.25, 0.25, 1, 1)
    assert touching.answer is Answer.INCONCLUSIVE
    assert compare([4.0, 4.0, 4.0], [4.25, 4.25, 4.25], 0.2).answer is Answer.REGRESSION
    level = compare([4.25, 4.25, 4.5], [4.25, 4.0, 4.0])
    assert (level.high, level.answer) == (0, Answer.SAME)


def test_two_seeds_on_a_side_have_a_spread() -> None:
    """It is pooled over both sides: squares over the seeds less two."""
    assert compare([4.0, 4.2], [5.0, 5.4]).deviation == pytest.approx(math.sqrt((0.02 + 0.08) / 2))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (
            [4.0, 4.002, 4.003],
            [4.05, 4.06, 4.07],
            "loss 4.0017 (4 to 4.003) → 4.06 (4.05 to 4.07), +0.0583 nats (90 % interval +0.047 to +0.07), "
            "margin 0.01, 3 against 3 seeds: the recipe is worse by more than the margin",
        ),
        (
            [4.0, 4.002, 4.003],
            [3.96, 3.97, 3.98],
            "loss 4.0017 (4 to 4.003) → 3.97 (3.96 to 3.98), -0.0317 nats (90 % interval -0.043 to -0.02), "
            "margin 0.01, 3 against 3 seeds: the recipe is better",
        ),
        (
            [4.0, 4.002, 4.003],
            [4.0, 4.001, 4.005],
            "loss 4.0017 (4 to 4.003) → 4.002 (4 to 4.005), +0.000333 nats (90 % interval -0.003 to +0.005), "
            "margin 0.01, 3 against 3 seeds: the recipe is not worse than the margin allows",
        ),
        (
            [4.0, 4.002, 4.003],
            [3.98, 4.02, 4.03],
            "loss 4.0017 (4 to 4.003) → 4.01 (3.98 to 4.03), +0.00833 nats (90 % interval -0.023 to +0.03), "
            "margin 0.01, 3 against 3 seeds: the seeds differ too much among themselves to tell",
        ),
        (
            [4.0, 4.01],
            [4.1, 4.2],
            "loss 4.005 (4 to 4.01) → 4.15 (4.1 to 4.2), +0.145 nats: 2 against 2 seeds cannot give a p-value below "
            "0.17, and alpha is 0.05",
        ),
        (
            [4.0, 4.1],
            [4.1, 4.0],
            "loss 4.05 (4 to 4.1) → 4.05 (4 to 4.1), +0 nats, 2 against 2 seeds: both recipes gave the same losses",
        ),
        (
            [4.0, 4.01, 4.02, 4.02],
            [4.02],
            "loss 4.0125 (4 to 4.02) → 4.02, +0.0075 nats, the run after ranks 3 of 5 (1 is best): 4 against 1 "
            "seeds cannot give a p-value below 0.2, and alpha is 0.05",
        ),
        (
            [4.02],
            [4.0, 4.01, 4.02, 4.02],
            "loss 4.02 → 4.0125 (4 to 4.02), -0.0075 nats, the run before ranks 3 of 5 (1 is best): 1 against 4 "
            "seeds cannot give a p-value below 0.2, and alpha is 0.05",
        ),
    ],
)
def test_each_answer_is_one_sentence_with_its_numbers(before: list[float], after: list[float], reason: str) -> None:
    """Means and ranges, difference, interval, margin, seeds and finding; equal losses share the better rank."""
    assert compare(before, after).reason == reason


def test_the_seeds_that_would_decide_are_fewer_where_more_is_to_see() -> None:
    """The advice names them by the power of the t-test, and no more than a hundred; a clear answer needs none."""
    near, far = compare([4.0, 4.02, 4.04], [4.01, 4.03, 4.05], 0.0), compare([4.0, 4.02, 4.04], [4.03, 4.05, 4.07], 0.0)
    assert near.answer is far.answer is Answer.INCONCLUSIVE
    # Means 0.01 and 0.03 apart, standard deviation 0.02: for 0.05 and 0.95 about 2 (1.645 + 1.645)^2 (0.02 / d)^2.
    assert near.advice.startswith(
        "If the true difference is the observed one, about 88 seeds on each side would decide. These runs"
    )
    assert far.advice.startswith(
        "If the true difference is the observed one, about 11 seeds on each side would decide. These runs"
    )
    never = compare([4.0, 4.02, 4.04], [4.001, 4.021, 4.041], 0.0)
    assert never.advice.startswith(
        "If the true difference is the observed one, more than 100 seeds on each side would decide. "
    )
    assert compare([4.0, 4.002, 4.003], [4.05, 4.06, 4.07]).advice == ""


def test_one_run_says_nothing_of_how_many_would_decide() -> None:
    """Nineteen seeds against one can be tested, but how far two runs of the one lie apart nobody knows."""
    for before, after in ((list(np.linspace(4, 4.05, 19)), [4.02]), ([4.02], list(np.linspace(4, 4.05, 19)))):
        found = compare(before, after)
        assert (found.answer, found.low is None, found.deviation) == (Answer.INCONCLUSIVE, False, None)
        assert found.advice == "Run at least 3 seeds on each side."


@pytest.mark.parametrize("difference", [0.047, 0.0475])
def test_so_many_seeds_as_are_named_have_the_power_and_one_less_has_not(difference: float) -> None:
    """By scipy's noncentral t with 2 n - 2 degrees, for the distance of the difference from the margin."""
    before = [4.0, 4.02, 4.04]
    found = compare(before, [loss + difference for loss in before], 0.01)

    def power(n: int) -> float:
        return float(
            stats.nct.sf(stats.t.isf(0.05, 2 * n - 2), 2 * n - 2, (difference - 0.01) / 0.02 * math.sqrt(n / 2))
        )

    needed = next(n for n in range(4, 100) if power(n) >= 0.95)
    assert f"about {needed} seeds on each side would decide" in found.advice
