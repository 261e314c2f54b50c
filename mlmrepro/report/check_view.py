"""A check on the terminal and in Markdown: the answer comes first, what to do next comes last."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmrepro.gate.result import CheckResult
from mlmrepro.report import old_markdown as markdown
from mlmrepro.report.check_words import (
    HEADLINE,
    VERDICT,
    Scale,
    changed_probes,
    facts,
    level,
    origins,
    probe_line,
    said,
    slice_name,
    unused_line,
)
from mlmrepro.report.terminal import say, standard_output, styled
from mlmrepro.report.words import SYMBOL, clean, number

__all__ = ["check_markdown", "print_check"]

_PROBES = 3  # shown on the terminal, the most changed ones


def print_check(result: CheckResult, console: Console | None = None) -> None:
    """Print the answer and its reason, the numbers, where the model changed, and what to do next."""
    console = console or standard_output()
    verdict = VERDICT[result.answer]
    console.print()
    say(console, styled(verdict, result.answer.value), f"  {said(result)}")
    console.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, line in facts(result):
        table.add_row(Text(name), Text(line))
    for probe in changed_probes(result)[:_PROBES]:
        table.add_row("", Text(probe_line(probe)))
    for unused in result.unused:
        table.add_row("not used", Text(unused_line(unused)))
    for note in result.notes:
        table.add_row(Text("note"), Text(clean(note)))
    console.print(table, highlight=False)
    if result.advice:
        console.print()
        say(console, clean(result.advice), bold="Next: ")


def check_markdown(result: CheckResult, *, limit: int = markdown.PR_LIMIT) -> str:
    """Return the answer, the numbers and the folded details as Markdown of at most `limit` characters."""
    page = markdown.Page(limit)
    page.add(f"### {SYMBOL[VERDICT[result.answer]]} {HEADLINE[result.answer]}")
    page.add(markdown.sentence(said(result)))
    page.add("\n".join(f"- **{name}**: {markdown.prose(line)}" for name, line in facts(result)))
    besides = [f"- not used: {markdown.sentence(unused_line(unused))}" for unused in result.unused]
    besides += [f"- note: {markdown.sentence(note)}" for note in result.notes]
    if besides:
        page.add("\n".join(besides))
    if result.advice:
        page.add(f"**Next:** {markdown.sentence(result.advice)}")
    page.fold("Slices", _slices(result))
    page.fold("Probes that changed", [f"- {markdown.prose(probe_line(probe))}" for probe in changed_probes(result)])
    page.fold("Documents that got worse", _worst(result))
    page.fold("Where the checkpoints come from", _origins(result))
    return str(page)


def _slices(result: CheckResult) -> list[str]:
    if not result.slices:
        return []
    scale = Scale(result.measure)
    changed_first = sorted(result.slices, key=lambda part: not part.answer)
    rows = [
        (
            markdown.prose(slice_name(part)),
            f"**{part.answer}**" if part.answer else "",
            scale.signed(part.paired.difference),
            scale.interval(part.paired),
            number(part.adjusted, 2),
        )
        for part in changed_first
    ]
    head = ("slice", "answer", "change", f"{level(result.slices[0].paired)} interval", "p (Holm)")
    return _lines(head, rows)


def _worst(result: CheckResult) -> list[str]:
    scale = Scale(result.measure)
    rows = [(markdown.code(d.name), markdown.prose(d.topic), scale.signed(d.difference)) for d in result.worst]
    return _lines(("document", "topic", "change"), rows) if rows else []


def _origins(result: CheckResult) -> list[str]:
    rows = [
        (
            f"{markdown.prose(row.name)}{' **≠**' if row.differs else ''}",
            markdown.code(row.before),
            markdown.code(row.after),
        )
        for row in origins(result)
    ]
    return _lines(("", "baseline", "candidate"), rows) if rows else []


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return markdown.table(head, rows).splitlines()
