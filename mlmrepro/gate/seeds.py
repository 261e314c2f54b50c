"""Retraining variance: whether the recipe got worse, or a seed was unlucky.

Each value is the mean loss of one training run on one fixed mask plan, in nats. Runs of two recipes are compared by a
permutation test, which assumes no distribution of the values and respects how little a few of them can show.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb, stdtrit

from mlmrepro.errors import UserError
from mlmrepro.gate.paired import detectable
from mlmrepro.gate.result import Answer
from mlmrepro.record import plain

__all__ = ["ALPHA", "SeedComparison", "compare_seeds", "seeds_needed"]

Floats = NDArray[np.float64]

# Runs are expensive, and three against three reach 1/20 at best: so 0.05, and not 0.01 as for a check's many documents.
ALPHA = 0.05
# All arrangements of up to 10 against 10 runs are tried; of more runs, this many are drawn.
_MOST_ARRANGEMENTS = 200_000
_MOST_SEEDS = 100  # never ask for more on each side


@dataclass(frozen=True)
class SeedComparison:
    """Two recipes, each run with several seeds; differences are after minus before, in nats, positive is worse."""

    answer: Answer
    before: tuple[float, ...]  # mean loss of each seed, raw
    after: tuple[float, ...]
    margin_nats: float
    alpha: float  # of each one-sided claim
    power: float
    smallest_p: float  # the smallest p-value that this number of seeds can reach
    difference: float  # of the means
    reason: str = ""  # one sentence with the numbers
    advice: str = ""  # "" if there is nothing to do
    low: float | None = None  # interval of level 1 - 2 alpha, from the same test; None if smallest_p is above alpha
    high: float | None = None
    p_better: float | None = None  # one-sided; None if losses are NaN or infinite
    p_worse: float | None = None  # worse by more than the margin
    p_same: float | None = None  # not worse than the margin
    deviation: float | None = None  # standard deviation between seeds, pooled; None if a side has one seed
    smallest_effect: float | None = None  # the true difference detected with this power; None as above

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a float that JSON cannot hold becomes a string."""
        return plain(dataclasses.asdict(self) | {"answer": self.answer.value})


def compare_seeds(
    before: Sequence[float], after: Sequence[float], *, margin_nats: float, alpha: float = ALPHA, power: float = 0.95
) -> SeedComparison:
    """Return whether the recipe of `after` is worse than that of `before`: mean losses in nats, one for each seed.

    Permutation test of the difference of means, exact up to 10 against 10 seeds, inverted to an interval (Tritchler
    1984, "On inverting permutation tests"): better below 0, a regression above `margin_nats`, the same below it.
    If ``1 / comb(n + m, n)``, the smallest possible p-value, exceeds `alpha`, the answer is inconclusive; this always
    holds for two against two, as `alpha` is 0.1 at most. A NaN or infinite loss of `after` is a regression, and equal
    values on both sides are the same. Raises UserError for missing values, NaN or infinite losses of `before`, and
    arguments out of range.
    """
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    _check(old, new, margin_nats, alpha, power)
    with np.errstate(invalid="ignore"):
        difference = float(new.mean() - old.mean())
    result = SeedComparison(
        answer=Answer.REGRESSION,
        before=tuple(old.tolist()),
        after=tuple(new.tolist()),
        margin_nats=margin_nats,
        alpha=alpha,
        power=power,
        smallest_p=1 / comb(len(old) + len(new), len(new), exact=True),
        difference=difference,
    )
    if not np.isfinite(new).all():
        return dataclasses.replace(
            result,
            reason=f"{np.sum(~np.isfinite(new))} of {_seeds(len(new))} after gave a loss that is NaN or infinite",
            advice="Look at the log of the training that failed.",
        )
    result = _tested(result, old, new)
    answer = _answer(result)
    return dataclasses.replace(result, answer=answer, reason=_reason(result, answer), advice=_advice(result, answer))


def seeds_needed(alpha: float) -> int:
    """Return how many seeds on each side the test needs to reach `alpha`."""
    return next(n for n in itertools.count(1) if 1 / comb(2 * n, n, exact=True) <= alpha)


def _check(old: Floats, new: Floats, margin: float, alpha: float, power: float) -> None:
    if not (len(old) and len(new)):
        raise UserError("one of the recipes has no run", remedy="give the loss of at least one seed on each side")
    if not np.isfinite(old).all():
        raise UserError("a loss of the recipe before is NaN or infinite", remedy="run the seed again, or leave it out")
    if not 0 <= margin < math.inf:
        raise UserError(f"the margin is {margin:g} nats", remedy="give a margin of 0 or more, such as 0.01")
    if not (0 < alpha <= 0.1 and alpha < power < 1):
        raise UserError(
            f"alpha {alpha:g} and power {power:g} are not valid error rates", remedy="use alpha 0.05, power 0.95"
        )


def _tested(result: SeedComparison, old: Floats, new: Floats) -> SeedComparison:
    """Fill in the p-values, the interval, and the smallest effect that the test can detect."""
    thresholds, arrangements = _thresholds(old, new)
    afforded = math.floor(result.alpha * arrangements * (1 + 1e-12))  # arrangements, the observed one among them
    low, high = (float(thresholds[afforded - 1]), float(thresholds[-afforded])) if afforded else (None, None)
    deviation = _deviation(old, new)
    sight = None
    if deviation is not None and low is not None:
        quantile = stdtrit(len(old) + len(new) - 2, result.power)
        sight = result.difference - low + float(quantile) * deviation * math.sqrt(1 / len(old) + 1 / len(new))
    return dataclasses.replace(
        result,
        low=low,
        high=high,
        p_better=float(1 + np.sum(thresholds >= 0)) / arrangements,
        p_worse=float(1 + np.sum(thresholds <= result.margin_nats)) / arrangements,
        p_same=float(1 + np.sum(thresholds >= result.margin_nats)) / arrangements,
        deviation=deviation,
        smallest_effect=sight,
    )


def _thresholds(old: Floats, new: Floats) -> tuple[Floats, int]:
    """Return, ascending, the shifts at which another arrangement of the runs is as extreme, and how many exist.

    An arrangement swaps k runs after for k runs before. With `new` moved down by a shift, its difference of means is
    as great as the observed one exactly if the shift is at least the mean of those k after minus that of the k
    before. The observed arrangement has k = 0, is counted, and has no threshold.
    """
    gone, come, arrangements = _arrangements(len(old), len(new))
    return np.sort((gone @ new - come @ old) / come.sum(axis=1)), arrangements


@lru_cache(maxsize=4)
def _arrangements(before: int, after: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Return which runs after, and which before, each arrangement but the observed swaps; and how many there are."""
    runs = before + after
    number: int = min(comb(runs, after, exact=True), _MOST_ARRANGEMENTS)
    if number < _MOST_ARRANGEMENTS:
        chosen = np.array(list(itertools.combinations(range(runs), after)))
    else:
        chosen = np.argsort(np.random.default_rng(0).random((number - 1, runs)), axis=1)[:, :after]
    taken = np.zeros((len(chosen), runs), bool)
    np.put_along_axis(taken, chosen, True, axis=1)
    taken = taken[taken[:, :before].any(axis=1)]
    return ~taken[:, before:], taken[:, :before], number


def _deviation(old: Floats, new: Floats) -> float | None:
    if min(len(old), len(new)) < 2:
        return None
    squares = ((old - old.mean()) ** 2).sum() + ((new - new.mean()) ** 2).sum()
    return math.sqrt(squares / (len(old) + len(new) - 2))


def _answer(result: SeedComparison) -> Answer:
    if sorted(result.before) == sorted(result.after):
        return Answer.SAME
    if result.low is None or result.high is None:
        return Answer.INCONCLUSIVE
    if result.high < 0:
        return Answer.BETTER
    if result.low > result.margin_nats:
        return Answer.REGRESSION
    return Answer.SAME if result.high < result.margin_nats else Answer.INCONCLUSIVE


def _reason(result: SeedComparison, answer: Answer) -> str:
    counts = f"{len(result.before)} against {len(result.after)} seeds"
    numbers = f"loss {_spread(result.before)} → {_spread(result.after)}, {result.difference:+.3g} nats"
    if sorted(result.before) == sorted(result.after):
        return f"{numbers}, {counts}: both recipes gave the same losses"
    if result.low is None or result.high is None:
        refusal = f"{counts} cannot give a p-value below {result.smallest_p:.2g}, and alpha is {result.alpha:g}"
        return f"{numbers}{_rank(result)}: {refusal}"
    interval = f"({100 * (1 - 2 * result.alpha):.4g} % interval {result.low:+.3g} to {result.high:+.3g})"
    finding = {
        Answer.BETTER: "the recipe is better",
        Answer.REGRESSION: "the recipe is worse by more than the margin",
        Answer.SAME: "the recipe is not worse than the margin allows",
        Answer.INCONCLUSIVE: "the seeds differ too much among themselves to tell",
    }[answer]
    return f"{numbers} {interval}, margin {result.margin_nats:.3g}, {counts}: {finding}"


def _advice(result: SeedComparison, answer: Answer) -> str:
    if answer is not Answer.INCONCLUSIVE:
        return ""
    if result.low is None or result.deviation is None:  # a single run does not show how far others would lie
        return f"Run at least {seeds_needed(result.alpha)} seeds on each side."
    needed = _seeds_to_decide(result, result.deviation)
    more = f"about {needed} seeds on each side" if needed else f"more than {_MOST_SEEDS} seeds on each side"
    seen = f"These runs detect a difference of {result.smallest_effect:.3g} nats with {100 * result.power:.3g} % power"
    return f"If the true difference is the observed one, {more} would decide. {seen}."


def _seeds_to_decide(result: SeedComparison, spread: float) -> int | None:
    """Return how many seeds on each side, `spread` nats apart, would show the side of the margin: a t-test's power."""
    gap = abs(result.difference - result.margin_nats)
    tried = range(max(seeds_needed(result.alpha), min(len(result.before), len(result.after)) + 1), _MOST_SEEDS + 1)
    return next(
        (n for n in tried if detectable(2 * n - 2, result.alpha, result.power) * spread * math.sqrt(2 / n) <= gap), None
    )


def _rank(result: SeedComparison) -> str:
    """Say where a single run ranks among the others: a fact, not a proof."""
    if len(result.after) == 1:
        rank = 1 + sum(loss < result.after[0] for loss in result.before)
        return f", the run after ranks {rank} of {len(result.before) + 1} (1 is best)"
    if len(result.before) == 1:
        rank = 1 + sum(loss < result.before[0] for loss in result.after)
        return f", the run before ranks {rank} of {len(result.after) + 1} (1 is best)"
    return ""


def _spread(losses: Sequence[float]) -> str:
    mean = f"{np.mean(losses):.5g}"
    return mean if len(losses) == 1 else f"{mean} ({min(losses):.5g} to {max(losses):.5g})"


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"
