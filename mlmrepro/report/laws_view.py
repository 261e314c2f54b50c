"""Laws on the terminal, in Markdown and in JUnit; broken laws come first, with numbers and likely cause."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmrepro.observations.result import BoundVerdict, ObservationResult, Value
from mlmrepro.report import old_markdown as markdown
from mlmrepro.report.ci import printable, write_suites
from mlmrepro.report.terminal import say, standard_output
from mlmrepro.report.words import clean, count, number

__all__ = ["laws_headline", "laws_junit", "laws_markdown", "print_laws", "print_result"]

_SYMBOL = {
    BoundVerdict.HOLDS: "=",
    BoundVerdict.NOT_APPLICABLE: "·",
    BoundVerdict.KNOWN: "Δ",
    BoundVerdict.UNMEASURED: "–",
    BoundVerdict.BROKEN: "✗",
}
_STYLE = {
    BoundVerdict.HOLDS: "dim",
    BoundVerdict.NOT_APPLICABLE: "dim",
    BoundVerdict.KNOWN: "blue",
    BoundVerdict.UNMEASURED: "yellow",
    BoundVerdict.BROKEN: "bold red",
}


def laws_headline(results: Sequence[ObservationResult]) -> str:
    """Return the counts of all verdicts in one line."""
    tally = {verdict: sum(r.verdict is verdict for r in results) for verdict in BoundVerdict}
    parts = [f"{tally[BoundVerdict.HOLDS]} of {count(len(results), 'law')} hold"]
    words = {
        BoundVerdict.BROKEN: "broken",
        BoundVerdict.UNMEASURED: "unmeasured",
        BoundVerdict.KNOWN: "known to be broken in these versions",
        BoundVerdict.NOT_APPLICABLE: "not applicable",
    }
    return ", ".join(parts + [f"{tally[verdict]} {word}" for verdict, word in words.items() if tally[verdict]])


def print_laws(
    results: Sequence[ObservationResult],
    *,
    numbers: bool = False,
    notes: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print the headline, each broken or unmeasured law with its numbers and likely cause, then the known faults.

    `numbers` adds the measurements of the laws that do not fail; `notes` say how the text was read.
    """
    console = console or standard_output()
    worst = max((r.verdict for r in results), key=list(BoundVerdict).index, default=BoundVerdict.UNMEASURED)
    console.print()
    say(console, Text(f"{_SYMBOL[worst]} ", style=_STYLE[worst]), laws_headline(results))
    for note in notes:
        say(console, f"note: {clean(note)}")
    for result in _failing(results):
        console.print()
        print_result(result, console)
        say(console, clean(result.cause), bold="Likely cause: ", indent=2)
        say(console, clean(result.source), bold="Source: ", indent=2)
    for verdict in (BoundVerdict.KNOWN, BoundVerdict.NOT_APPLICABLE):
        chosen = [r for r in results if r.verdict is verdict]
        if chosen:
            console.print()
        for result in chosen:
            line = f": {_known(result) if verdict is BoundVerdict.KNOWN else clean(result.problem)}"
            say(console, Text(f"{_SYMBOL[verdict]} {result.name}", style=_STYLE[verdict]), line)
    if numbers:
        for result in results:
            if not result.verdict.fails:
                console.print()
                print_result(result, console)


def _failing(results: Sequence[ObservationResult]) -> list[ObservationResult]:
    return sorted((r for r in results if r.verdict.fails), key=lambda r: r.verdict is not BoundVerdict.BROKEN)


def _known(result: ObservationResult) -> str:
    return f"{clean(result.known)} {result.link}"


def print_result(result: ObservationResult, console: Console) -> None:
    """Print one result: its verdict, claim and problem, and a table of its values."""
    head = Text(f"{_SYMBOL[result.verdict]} {result.verdict.value}  ", style=_STYLE[result.verdict])
    say(console, head, Text(result.name, style="bold"), f"  {result.group}, {result.seconds:.1f} s")
    say(console, clean(result.claim), indent=2)
    if result.problem:
        say(console, clean(result.problem), indent=2)
    if not result.values:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for style in ("", "bold", "", "dim"):
        table.add_column(style=style, overflow="fold")
    for each in result.values:
        style = "red" if not each.holds else ""
        table.add_row(f"  {each.name}", Text(_value(each), style=style), str(each.bound), clean(each.bound.reason))
    console.print(table, highlight=False)


def _value(measured: Value) -> str:
    shown = number(measured.value, 4) if isinstance(measured.value, float) else clean(measured.value)
    return f"{shown} {measured.unit}".strip()


def laws_markdown(
    results: Sequence[ObservationResult], *, notes: Sequence[str] = (), limit: int = markdown.PR_LIMIT
) -> str:
    """Return the headline, the broken laws and a folded table of all laws as Markdown."""
    page = markdown.Page(limit)
    failing = _failing(results)
    page.add(f"### {'✗' if failing else '='} {laws_headline(results)}")
    if notes:
        page.add("\n".join(f"- note: {markdown.sentence(note)}" for note in notes))
    for result in failing:
        numbers = [
            f"- {markdown.prose(each.name)}: **{markdown.prose(_value(each))}**, expected {each.bound}"
            for each in result.broken
        ]
        problem = [markdown.prose(result.problem)] if result.problem else []
        lines = [f"**{result.verdict.value}** {markdown.code(result.name)}: {markdown.prose(result.claim)}"]
        page.add("\n".join([*lines, *problem, "", *numbers, f"- likely cause: {markdown.prose(result.cause)}"]))
    known = [r for r in results if r.verdict is BoundVerdict.KNOWN]
    page.fold("Known faults of these versions", [f"- {markdown.code(r.name)}: {_known_markdown(r)}" for r in known])
    rows = [
        (markdown.code(r.name), r.group, r.verdict.value, markdown.prose(r.claim), _numbers(r.values)) for r in results
    ]
    page.fold("All laws", markdown.table(("law", "group", "verdict", "claim", "numbers"), rows).splitlines())
    return str(page)


def _known_markdown(result: ObservationResult) -> str:
    return " ".join([markdown.sentence(result.known), *map(markdown.link, result.link.split())])


def _numbers(measured: Iterable[Value]) -> str:
    return "; ".join(
        markdown.prose(f"{each.name} {_value(each)}" + (f" ({each.bound})" if each.bound else "")) for each in measured
    )


def laws_junit(results: Sequence[ObservationResult], path: Path, name: str, *, notes: Sequence[str] = ()) -> None:
    """Write one test suite with a case per law: broken and unmeasured fail, known and inapplicable are skipped."""
    suite = ElementTree.Element("testsuite", name=printable(name), tests=str(len(results)), errors="0")
    failing = _failing(results)
    skipped = [r for r in results if r.verdict in (BoundVerdict.KNOWN, BoundVerdict.NOT_APPLICABLE)]
    suite.attrib.update(failures=str(len(failing)), skipped=str(len(skipped)))
    for result in results:
        classname = printable(f"mlmrepro.{name}.{result.group}")
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=result.name)
        case.attrib["time"] = f"{result.seconds:.3f}"
        if result in failing:
            message = f"{result.verdict.value}: {result.claim}"
            failure = ElementTree.SubElement(case, "failure", message=printable(message))
            lines = [f"{each.name}: {_value(each)}, expected {each.bound}" for each in result.broken]
            failure.text = printable("\n".join([*lines, result.problem, f"likely cause: {result.cause}"]))
        elif result in skipped:
            ElementTree.SubElement(case, "skipped", message=printable(result.known or result.problem))
    if notes:
        ElementTree.SubElement(suite, "system-out").text = printable("\n".join(f"note: {note}" for note in notes))
    write_suites(path, [suite])
