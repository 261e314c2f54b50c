"""The document of two recipes compared over several seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mlmrepro.gate.result import Answer
from mlmrepro.gate.seeds import SeedComparison
from mlmrepro.report import document as doc
from mlmrepro.report.check_words import VERDICT, ended
from mlmrepro.report.words import count, number

__all__ = ["seeds_document"]

_HEADLINE = {
    Answer.BETTER: "better: the recipe got better",
    Answer.SAME: "same: the recipe is not worse than the margin allows",
    Answer.REGRESSION: "REGRESSION: the recipe got worse",
    Answer.INCONCLUSIVE: "inconclusive: the difference may come from the seeds, not from the recipe",
}


def seeds_document(comparison: SeedComparison) -> doc.Document:
    """Return the answer, the test with its power, the loss of each run, and what to do next."""
    return doc.Document(
        VERDICT[comparison.answer],
        _HEADLINE[comparison.answer],
        lead=doc.sentence(ended(comparison.reason)),
        facts=list(_facts(comparison)),
        blocks=[doc.Section("", [_losses(comparison)])],
        next_step=doc.sentence(comparison.advice),
    )


def _losses(comparison: SeedComparison) -> doc.Table:
    before, after = comparison.before, comparison.after
    runs = range(max(len(before), len(after)))
    rows = [[str(n + 1), *(number(side[n], 7) if n < len(side) else "" for side in (before, after))] for n in runs]
    rows.append(["mean", *(number(_mean(side), 7) for side in (before, after))])
    return doc.Table(["run", "loss before (nats)", "loss after (nats)"], rows, numeric=True)


def _facts(comparison: SeedComparison) -> Iterator[tuple[str, doc.Line]]:
    """Yield (name, line): the difference, the spread, the test, and the detectable difference."""
    change = f"{comparison.difference:+.3g} nats"
    if math.isfinite(comparison.difference) and change not in comparison.reason:
        yield "difference", f"{change}{_interval(comparison)}, margin {number(comparison.margin_nats, 3)}"
    if comparison.deviation is not None:
        yield "spread", f"standard deviation between seeds {number(comparison.deviation, 3)} nats"
    yield "test", _test(comparison)
    yield from _sight(comparison)


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)


def _interval(comparison: SeedComparison) -> str:
    if comparison.low is None or comparison.high is None:
        return ""
    level = f"{100 * (1 - 2 * comparison.alpha):.4g} %"
    return f" ({level} interval {comparison.low:+.3g} to {comparison.high:+.3g})"


def _test(comparison: SeedComparison) -> str:
    found = (
        ("better", comparison.p_better),
        ("worse by more than the margin", comparison.p_worse),
        ("no worse than the margin", comparison.p_same),
    )
    told = [f"p = {number(p, 3)} for {claim}" for claim, p in found if p is not None]
    seeds = f"{len(comparison.before)} against {count(len(comparison.after), 'seed')}"
    least, alpha = number(comparison.smallest_p, 3), number(comparison.alpha, 3)
    reach = f"the smallest possible p with {seeds} is {least} (alpha {alpha})"
    return f"permutation test: {'; '.join([*told, reach])}"


def _sight(comparison: SeedComparison) -> Iterator[tuple[str, doc.Line]]:
    if comparison.smallest_p > comparison.alpha:
        yield "detectable", "no difference, however large: too few seeds"
    elif comparison.smallest_effect is not None and math.isfinite(comparison.smallest_effect):
        power = f"power {100 * comparison.power:.4g} %"
        yield "detectable", f"a true difference of {number(comparison.smallest_effect, 3)} nats ({power})"
