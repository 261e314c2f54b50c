"""Turn an interval and a margin into one answer, and say what would settle an inconclusive one."""

from __future__ import annotations

import bisect
import math

from scipy.special import stdtrit

from mlmrepro.errors import UserError
from mlmrepro.gate.paired import detectable
from mlmrepro.gate.result import Answer, Paired

__all__ = ["MOST_TIMES", "answer", "documents_needed", "explain"]

MOST_TIMES = 100  # never ask for more text than this many times the present one


def answer(paired: Paired, margin_nats: float) -> Answer:
    """Return the answer for a non-inferiority margin in the unit of `paired`, 0 or more.

    Better if the interval lies below 0, a regression if it lies above the margin, the same if it ends at or below the
    margin. Each answer is wrong with probability alpha at most. Raises UserError for a margin below 0.
    """
    if not 0 <= margin_nats < math.inf:
        raise UserError(f"a margin of {margin_nats:g} is no bound", remedy="give a margin of 0 or more, such as 0.01")
    if paired.high < 0:
        return Answer.BETTER
    if paired.low > margin_nats:
        return Answer.REGRESSION
    return Answer.SAME if paired.high <= margin_nats else Answer.INCONCLUSIVE


def documents_needed(paired: Paired, margin_nats: float) -> int | None:
    """Return how many documents of this kind would show on which side of the margin the difference lies.

    Assumes that the true difference is the observed one, and uses the power of `paired`. The standard error
    shrinks with the root of the number of documents, the degrees of freedom grow with the number, and what skewness
    adds to the interval shrinks with it. None if more than `MOST_TIMES` as many would be needed.
    """
    gap = abs(paired.difference - margin_nats)
    above = paired.difference > margin_nats
    side = paired.difference - paired.low if above else paired.high - paired.difference
    skew = side - float(stdtrit(paired.degrees, 1 - paired.alpha)) * paired.standard_error

    def enough(documents: int) -> bool:
        less = paired.documents / documents
        reach = detectable(paired.degrees / less, paired.alpha, paired.power) * paired.standard_error * math.sqrt(less)
        return reach + skew * less <= gap

    tried = range(2, MOST_TIMES * paired.documents + 1)
    first = bisect.bisect_left(tried, True, key=enough)
    return tried[first] if first < len(tried) and gap > 0 else None


def explain(
    paired: Paired,
    margin: float,
    margin_nats: float,
    measure: str,
    before: float,
    after: float,
    *,
    given: Answer | None = None,
) -> tuple[str, str]:
    """Return (reason, advice), one sentence each: the numbers behind the answer, and what to do next.

    `measure` is "perplexity" (`paired` in nats per token, shown as relative change) or "bits per byte" (`paired` in
    nats per byte, shown in bits); `before` and `after` are in the measure, `margin` is relative: 0.01 is one per cent.
    `given` is the answer if it does not follow from the interval.
    """
    scale = _Scale(measure)
    found = given or answer(paired, margin_nats)
    change = f"{measure} {before:.5g} → {after:.5g}"
    if paired.difference == 0 and paired.standard_error == 0:
        return f"{change}, no difference at all", ""
    limit = (
        f"{100 * margin:.3g} %"
        if scale.relative
        else f"{scale.plain(margin_nats)} ({100 * margin:.3g} % of the old perplexity)"
    )
    low, high = scale.signed(paired.low).removesuffix(scale.unit), scale.signed(paired.high)
    level = f"{100 * (1 - 2 * paired.alpha):.4g} % interval"
    numbers = f"{change}, {scale.signed(paired.difference)} ({level} {low} to {high}), margin {limit}"
    return f"{numbers}: {_finding(found, paired)}", _advice(found, paired, margin_nats)


def _finding(found: Answer, paired: Paired) -> str:
    if found is Answer.BETTER:
        return "measurably better"
    if found is Answer.REGRESSION:
        return "worse by more than the margin"
    if found is Answer.INCONCLUSIVE:
        return "the interval holds the margin"
    return "measurably worse, but within the margin" if paired.low > 0 else "not worse than the margin allows"


def _advice(found: Answer, paired: Paired, margin_nats: float) -> str:
    if found is Answer.REGRESSION:
        return "Look at the slices and documents that got worse."
    if found is not Answer.INCONCLUSIVE:
        return ""
    needed = documents_needed(paired, margin_nats)
    if needed is None:
        return f"The difference is as good as the margin itself: {MOST_TIMES} times as much text would not decide."
    return (
        f"If the difference is as it looks, {needed:,} documents of this kind, {_times(needed / paired.documents)} as "
        "many, would decide."
    )


def _times(factor: float) -> str:
    return f"{factor:.2g} times" if factor < 10 else f"{factor:.0f} times"


class _Scale:
    """Shows a number of nats in the unit of a measure."""

    def __init__(self, measure: str) -> None:
        self.relative = measure == "perplexity"
        self.unit = " %" if self.relative else " bits"

    def _number(self, nats: float) -> float:
        if not self.relative:
            return nats / math.log(2)
        try:
            return 100 * math.expm1(nats)
        except OverflowError:
            return math.inf

    def plain(self, nats: float) -> str:
        return f"{_digits(self._number(nats))}{self.unit}"

    def signed(self, nats: float) -> str:
        text = self.plain(nats)
        return text if text.startswith("-") else f"+{text}"


def _digits(figure: float) -> str:
    """Format with two decimals; small numbers get two significant digits, large ones three."""
    if figure == 0 or 0.1 <= abs(figure) < 1000:
        return f"{figure:.2f}"
    return f"{figure:.2g}" if abs(figure) < 1 else f"{figure:.3g}"
