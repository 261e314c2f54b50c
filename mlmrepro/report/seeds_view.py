"""The comparison of two recipes over several seeds, on the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmrepro.gate.result import Answer
from mlmrepro.gate.seeds import SeedComparison
from mlmrepro.report import old_markdown as markdown
from mlmrepro.report.check_words import VERDICT, ended
from mlmrepro.report.terminal import say, standard_output, styled
from mlmrepro.report.words import SYMBOL, clean, count, number

__all__ = ["print_seeds", "seeds_markdown"]

_HEADLINE = {
    Answer.BETTER: "better: the recipe got better",
    Answer.SAME: "same: the recipe is not worse than the margin allows",
    Answer.REGRESSION: "REGRESSION: the recipe got worse",
    Answer.INCONCLUSIVE: "inconclusive: the difference may come from the seeds, not from the recipe",
}


def print_seeds(comparison: SeedComparison, console: Console | None = None) -> None:
    """Print the answer, the loss of each run, the test with its power, and what to do next."""
    console = console or standard_output()
    console.print()
    say(console, styled(VERDICT[comparison.answer], comparison.answer.value), f"  {ended(comparison.reason)}")
    console.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, line in _facts(comparison):
        table.add_row(Text(name), Text(line))
    console.print(table, highlight=False)
    if comparison.advice:
        console.print()
        say(console, clean(comparison.advice), bold="Next: ")


def seeds_markdown(comparison: SeedComparison, *, limit: int = markdown.PR_LIMIT) -> str:
    """Return the answer, the test and a table of all losses as Markdown of at most `limit` characters."""
    page = markdown.Page(limit)
    page.add(f"### {SYMBOL[VERDICT[comparison.answer]]} {_HEADLINE[comparison.answer]}")
    page.add(markdown.sentence(ended(comparison.reason)))
    lines = dict(_facts(comparison))
    for side in ("before", "after"):
        lines.pop(side)
    page.add("\n".join(f"- **{name}**: {markdown.prose(line)}" for name, line in lines.items()))
    if comparison.advice:
        page.add(f"**Next:** {markdown.sentence(comparison.advice)}")
    page.add(_table(comparison))
    return str(page)


def _table(comparison: SeedComparison) -> str:
    before, after = comparison.before, comparison.after
    runs = range(max(len(before), len(after)))
    rows = [(str(n + 1), *(number(side[n], 7) if n < len(side) else "" for side in (before, after))) for n in runs]
    rows.append(("mean", *(number(_mean(side), 7) for side in (before, after))))
    return markdown.table(("run", "loss before (nats)", "loss after (nats)"), rows)


def _facts(comparison: SeedComparison) -> Iterator[tuple[str, str]]:
    """Yield (name, line): the raw losses of both sides, their difference, the test, and the detectable difference."""
    for name, losses in (("before", comparison.before), ("after", comparison.after)):
        yield name, f"{', '.join(number(loss, 7) for loss in losses)} nats (mean {number(_mean(losses), 7)})"
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


def _sight(comparison: SeedComparison) -> Iterator[tuple[str, str]]:
    if comparison.smallest_p > comparison.alpha:
        yield "detectable", "no difference, however large: too few seeds"
    elif comparison.smallest_effect is not None and math.isfinite(comparison.smallest_effect):
        power = f"power {100 * comparison.power:.4g} %"
        yield "detectable", f"a true difference of {number(comparison.smallest_effect, 3)} nats ({power})"
