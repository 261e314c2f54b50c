"""Comparisons of two records, or of several records with the first, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmrepro.compare.changes import Change, Comparison
from mlmrepro.compare.drift import Step
from mlmrepro.compare.judge import Verdict, worst
from mlmrepro.record import ALL_STAGES, Part
from mlmrepro.report import markdown
from mlmrepro.report.console import say, standard_output, styled
from mlmrepro.report.words import (
    SYMBOL,
    Pairs,
    Quantities,
    and_more,
    cause_line,
    change_line,
    clean,
    count,
    finding_line,
    headline,
    next_step,
    pairs_line,
    tally,
)

__all__ = ["Compared", "change_item", "comparison_markdown", "print_comparison"]

_CHANGES = 20  # shown on the terminal
_NAMED = 4  # observations in a line


@dataclass(frozen=True)
class Compared:
    """A comparison and the quantities of its floats."""

    comparison: Comparison
    measures: Quantities

    @property
    def packages(self) -> Pairs:
        """Return the versions that differ."""
        return self.comparison.packages

    @property
    def settings(self) -> Pairs:
        """Return the settings of the run that differ."""
        return self.comparison.settings

    @property
    def not_asked(self) -> str:
        """Return which expected observations the record was not asked for, "" if none."""
        names = [clean(name) for name in self.comparison.not_asked]
        return ", ".join([*names[:_NAMED], *and_more(names[_NAMED:], "observation")])

    @classmethod
    def of(cls, source: Step | Comparison) -> Compared:
        """Take the quantities from the findings."""
        comparison = source if isinstance(source, Comparison) else source.comparison
        return cls(comparison, {(f.stage, f.name): f.quantity for f in comparison.findings})

    @property
    def names(self) -> tuple[str, str]:
        """Return the printable names of both sides."""
        before, after = self.comparison.names
        return clean(before), clean(after)

    @property
    def first(self) -> str:
        """Return the first value in which the two runs diverge, "" if they do not."""
        found = self.comparison.first_divergence
        return f"{found.stage}.{finding_line(found, self.measures)}" if found else ""

    @property
    def next(self) -> str:
        """Return what to do next."""
        verdict = self.comparison.verdict
        first = self.comparison.first_divergence
        carrying = sorted(
            (f for f in self.comparison.findings if f.verdict is verdict),
            key=lambda f: (f is not first, f.part is Part.OFF_PATH),
        )
        return next_step(verdict, next(iter(carrying), None), self.settings)

    def cell(self, stage: str) -> tuple[Verdict, str] | None:
        """Return a stage's verdict and the stage it inherits it from; None if neither side has the stage."""
        verdict = self.comparison.stages().get(stage)
        own = {c.stage for c in self.comparison.changes if verdict is not None and c.verdict.fails == verdict.fails}
        cause = "" if stage in own else self.comparison.follows().get(stage, "")
        return None if verdict is None else (verdict, cause)

    def values(self, stage: str) -> str:
        """Return how many of a stage's values changed."""
        findings = [finding for finding in self.comparison.findings if finding.stage == stage]
        changed = sum(finding.verdict.is_change for finding in findings)
        return f"{changed} of {len(findings)}"


Source = Step | Comparison | Sequence[Step | Comparison]


def print_comparison(source: Source, console: Console | None = None) -> None:
    """Print one comparison, or several that share the first record, one column each."""
    console = console or standard_output()
    compared = _compared(source)
    verdict = worst(each.comparison.verdict for each in compared)
    if not compared:
        console.print("Nothing was compared.", markup=False)
        return
    console.print()
    say(console, styled(verdict, f"{headline(verdict)}."))
    for each in compared:
        say(console, " → ".join(each.names))
        if each.settings:
            say(console, pairs_line(each.settings), bold="settings  ", indent=2)
        if each.packages:
            say(console, pairs_line(each.packages), bold="packages  ", indent=2)
        if each.not_asked:
            say(console, each.not_asked, bold="not asked for  ", indent=2)
    console.print()
    console.print(_table(compared))
    for each in compared:
        _print_changes(each, console, named=len(compared) > 1)
    console.print()
    worst_one = next(each for each in compared if each.comparison.verdict is verdict)
    say(console, worst_one.next, bold="Next: ")


def _compared(source: Source) -> list[Compared]:
    sources = [source] if isinstance(source, (Step, Comparison)) else source
    return [Compared.of(each) for each in sources]


def _table(compared: Sequence[Compared]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage", overflow="fold")
    if len(compared) == 1:
        table.add_column("verdict", overflow="fold")
        table.add_column("values changed", justify="right")
        table.add_column("inherited from", overflow="fold")
    for each in compared if len(compared) > 1 else ():
        table.add_column(Text(each.names[1]), overflow="fold")
    for stage in ALL_STAGES:
        cells = [each.cell(stage) for each in compared]
        if any(cells):
            shown = [styled(cell[0]) if cell else Text("no record") for cell in cells]
            if len(compared) == 1 and cells[0]:
                table.add_row(stage, *shown, compared[0].values(stage), cells[0][1])
            else:
                causes = [f" (inherited from {cell[1]})" if cell and cell[1] else "" for cell in cells]
                table.add_row(stage, *(text.append(cause) for text, cause in zip(shown, causes, strict=True)))
    return table


def _print_changes(each: Compared, console: Console, *, named: bool) -> None:
    changes = each.comparison.changes
    if not changes:
        return
    title = f"{count(len(changes), 'change')}: {tally(change.verdict for change in changes)}"
    console.print()
    say(console, bold=f"{each.names[1]}, {title}" if named else title)
    if each.first:
        say(console, each.first, bold="First divergence: ")
    # The list may be cut, so the worst verdicts come first, and the guide's own path before the rest.
    order = sorted(changes, key=lambda c: (-list(Verdict).index(c.verdict), c.part is Part.OFF_PATH))
    for change in order[:_CHANGES]:
        say(console, styled(change.verdict), f"  {change_line(change, each.measures)}", indent=2)
        cause = cause_line(change)
        if cause:
            say(console, cause, bold="declared cause: ", indent=4)
    for more in and_more([change.stage for change in order[_CHANGES:]], "change", named=5):
        say(console, more, indent=2)


def comparison_markdown(source: Source, *, limit: int = markdown.PR_LIMIT) -> str:
    """Return one comparison, or several that share the first record, as Markdown: the verdict, then the details."""
    compared = _compared(source)
    page = markdown.Page(limit)
    if not compared:
        page.add("Nothing was compared.")
        return str(page)
    verdict = worst(each.comparison.verdict for each in compared)
    page.add(f"### {SYMBOL[verdict]} {headline(verdict)}")
    page.add("\n".join(_summary(each) for each in compared))
    worst_one = next(each for each in compared if each.comparison.verdict is verdict)
    page.add(f"**Next:** {markdown.sentence(worst_one.next)}")
    page.add(_markdown_table(compared))
    for each in compared:
        changes = each.comparison.changes
        title = f"{count(len(changes), 'change')} in {each.names[1]}"
        page.fold(title, [change_item(change, each.measures) for change in changes])
        both = {**each.settings, **(each.packages or {})}
        rows = [[markdown.code(name), *(markdown.code(side) for side in sides)] for name, sides in both.items()]
        if rows:
            head = ["setting or package", *map(markdown.code, each.names)]
            page.add(
                markdown.details(f"Settings and packages that differ in {each.names[1]}", markdown.table(head, rows))
            )
    return str(page)


def change_item(change: Change, measures: Quantities, note: str = "") -> str:
    """Return a change as a list item, with its cause."""
    line = f"- {SYMBOL[change.verdict]} **{change.verdict.value}** {markdown.prose(change_line(change, measures))}"
    cause = " ".join(
        part for part in (markdown.prose(change.reason), change.link and markdown.link(change.link)) if part
    )
    return "<br>".join(part for part in (line, cause, note) if part)


def _summary(each: Compared) -> str:
    before, after = (markdown.code(name) for name in each.names)
    changes = each.comparison.changes
    verdicts = tally(change.verdict for change in changes)
    line = f"- {count(len(changes), 'change')} between {before} and {after}" + (f": {verdicts}." if verdicts else ".")
    if each.first:
        line += f" First divergence: {markdown.prose(each.first)}."
    if each.settings:
        line += f" **Settings differ:** {markdown.prose(pairs_line(each.settings))}."
    if each.not_asked:
        line += f" Not asked for: {markdown.prose(each.not_asked)}."
    return line


def _markdown_table(compared: Sequence[Compared]) -> str:
    rows = []
    for stage in ALL_STAGES:
        cells = [each.cell(stage) for each in compared]
        if any(cells):
            rows.append([stage, *(markdown_cell(cell[0], cell[1]) if cell else "no record" for cell in cells)])
    return markdown.table(["stage", *(markdown.code(each.names[1]) for each in compared)], rows)


def markdown_cell(verdict: Verdict, follows: str = "") -> str:
    """Return a table cell: the verdict's symbol and word, and the stage it is inherited from."""
    words = f"**{verdict.value}**" if verdict.fails else verdict.value
    return f"{SYMBOL[verdict]} {words}" + (f" (inherited from {markdown.prose(follows)})" if follows else "")
