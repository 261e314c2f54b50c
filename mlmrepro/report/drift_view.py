"""The drift across many versions, on the terminal and in Markdown."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmrepro.compare.drift import Drift, Outcome
from mlmrepro.compare.judge import Verdict
from mlmrepro.record import Part
from mlmrepro.report import markdown
from mlmrepro.report.compare_view import change_item
from mlmrepro.report.console import STYLE, say, standard_output, styled
from mlmrepro.report.outline import Cell, Item, Outline, Section, short_names
from mlmrepro.report.words import (
    CHANGED,
    LEGEND,
    OFF_PATH,
    SHORT,
    SHORT_STAGE,
    SYMBOL,
    and_more,
    cause_line,
    change_line,
    clean,
    pairs_line,
)

__all__ = ["drift_markdown", "print_drift"]

_ITEMS = 12  # changes of a step shown on the terminal


def print_drift(drift: Drift, console: Console | None = None) -> None:
    """Print the verdict, the map of stages, the changes of each step, and what to do next."""
    console = console or standard_output()
    outline = Outline(drift)
    console.print()
    say(console, styled(drift.verdict, f"{outline.headline}."))
    say(console, outline.summary)
    if outline.first_divergence:
        say(console, outline.first_divergence, bold="First divergence: ")
    if outline.settings:
        say(console, pairs_line(outline.settings), bold="The settings differ: ")
    if outline.rows:
        say(console, outline.gate)
        console.print()
        console.print(_map(outline))
        say(console, Text(_legend(outline), style="dim"))
    for outcome in outline.missing:
        say(console, _problem(outcome), bold=f"{clean(outcome.name)}: ")
    for section in outline.steps:
        _print_section(section, console)
    if outline.variations:
        console.print()
        say(console, bold="One package at a time")
    for section in outline.variations:
        say(console, _variation(section), indent=2)
    _print_unexplained(outline, console)
    console.print()
    say(console, outline.next_step, bold="Next: ")


def _problem(outcome: Outcome) -> str:
    log = f" (log: {clean(outcome.log)})" if outcome.log else ""
    return f"no record: {clean(outcome.problem) or 'reason unknown'}{log}"


def _map(outline: Outline) -> Table:
    """Use one row per environment, so that any number of them fits on a terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("environment", overflow="fold")
    for stage in outline.stages:
        table.add_column(SHORT_STAGE[stage], no_wrap=True, min_width=4)
    grouped = False
    for row in outline.rows:
        if row.aside and not grouped:
            table.add_row(Text("one package only:", style="dim"))
            grouped = True
        cells = [_cell(cell) for cell in row.cells] or [
            _cell(Cell(stage, Verdict.UNMEASURED)) for stage in outline.stages
        ]
        table.add_row(Text(clean(row.outcome.name)), *cells)
    return table


def _cell(cell: Cell) -> Text:
    if cell.verdict is None:
        return Text("")
    word = SHORT[cell.verdict] if cell.verdict.is_change else SYMBOL[cell.verdict]  # no word if nothing changed
    return Text(_marked(cell, word), style=STYLE[cell.verdict])


def _marked(cell: Cell, word: str) -> str:
    word = f"({word})" if cell.follows else word
    return f"{word}{OFF_PATH if cell.off_path else ''}{CHANGED if cell.changed else ''}"


def _legend(outline: Outline) -> str:
    cells = [cell for row in outline.rows for cell in row.cells]
    present = {cell.verdict for cell in cells} | {row.verdict for row in outline.rows if not row.cells}
    legend = [
        f"{SHORT[verdict] if verdict.is_change else SYMBOL[verdict]} {LEGEND[verdict]}"
        for verdict in Verdict
        if verdict in present
    ]
    if any(cell.follows for cell in cells):
        legend.append("(…) inherited from another stage")
    if any(cell.off_path for cell in cells):
        legend.append(f"{OFF_PATH} only off the guide's path (other arguments, files and defaults)")
    if any(cell.changed for cell in cells):
        legend.append(f"{CHANGED} changed since the environment above")
    return "; ".join(legend)


def _print_section(section: Section, console: Console) -> None:
    step = section.step
    title = f"{clean(step.before.name)} → {clean(step.after.name)}"
    console.print()
    if not section.items:
        say(console, ": nothing changed", bold=title)
        return
    say(console, bold=title)
    say(console, pairs_line(step.packages), indent=2)
    for item in section.items[:_ITEMS]:
        say(console, styled(item.change.verdict), f"  {change_line(item.change, section.measures)}", indent=2)
        if item.behind:
            say(console, ", ".join(item.behind), bold="caused by: ", indent=4)
        if cause_line(item.change):
            say(console, cause_line(item.change), bold="declared cause: ", indent=4)
    for more in and_more([item.change.stage for item in section.items[_ITEMS:]], "change", named=5):
        say(console, more, indent=2)


def _variation(section: Section) -> str:
    """Return one line on what one package changed by itself."""
    step = section.step
    stages = ", ".join(dict.fromkeys(item.change.stage for item in section.items)) or "nothing"
    return f"{clean(step.before.name)} → {clean(step.after.name)} ({pairs_line(step.packages, 2)}): changed {stages}"


def _print_unexplained(outline: Outline, console: Console) -> None:
    """Print the failures that no step caused, such as a value that is wrong in every environment."""
    if not outline.unexplained:
        return
    console.print()
    say(console, bold=f"Different from {outline.reference}, but not changed by any step")
    for deviation in outline.unexplained[:_ITEMS]:
        where = short_names(deviation.names, total=len(outline.drift.comparisons))
        text = f"  {deviation.finding.stage}.{deviation.line}, in {where}"
        say(console, styled(deviation.finding.verdict), text, indent=2)
    for more in and_more([d.finding.stage for d in outline.unexplained[_ITEMS:]], "value", named=5):
        say(console, more, indent=2)


def drift_markdown(drift: Drift, *, limit: int = markdown.PR_LIMIT) -> str:
    """Return the verdict, the map and the folded changes as Markdown of at most `limit` characters."""
    outline = Outline(drift)
    page = markdown.Page(limit)
    page.add(f"### {SYMBOL[drift.verdict]} {outline.headline}")
    lines = [markdown.prose(outline.summary)]
    if outline.rows:
        lines.append(markdown.prose(outline.gate))
    if outline.first_divergence:
        lines.append(f"**First divergence:** {markdown.prose(outline.first_divergence)}.")
    page.add("\n".join(f"- {line}" for line in lines))
    page.add(f"**Next:** {markdown.sentence(outline.next_step)}")
    failing = [(s, i) for s in outline.steps for i in s.items if i.change.verdict is Verdict.REGRESSION]
    failing.sort(key=lambda pair: pair[1].change.part is Part.OFF_PATH)  # the guide's own path first
    if outline.rows:
        page.add(_markdown_map(outline))
    if failing:
        shown = [_regression(section, item) for section, item in failing[:_ITEMS]]
        rest = and_more([item.change.stage for _, item in failing[_ITEMS:]], "regression", named=5)
        page.add("\n".join(["**Regressions**", "", *shown, *(f"- {line}" for line in rest)]))
    steps = [line for section in outline.steps for line in _markdown_section(section)][1:]
    page.fold("What each step changed", steps)
    page.fold("One package at a time", [f"- {markdown.prose(_variation(section))}" for section in outline.variations])
    page.fold(f"Values that differ from {outline.reference}", _markdown_deviations(outline))
    return str(page)


def _regression(section: Section, item: Item) -> str:
    step = section.step
    where = f"step {markdown.code(step.before.name)} → {markdown.code(step.after.name)}"
    return change_item(item.change, section.measures, _behind(item, where))


def _behind(item: Item, note: str = "") -> str:
    behind = f"caused by: {', '.join(item.behind)}" if item.behind else ""
    return "; ".join(part for part in (note, behind) if part)


def _markdown_map(outline: Outline) -> str:
    """Return the map. Markdown cells cannot span columns, so problems of environments get a column of their own."""
    remarks = bool(outline.missing)
    head = ["environment", *map(markdown.prose, outline.stages), *(["remark"] if remarks else [])]
    rows = []
    for row in outline.rows:
        name = markdown.code(row.outcome.name) + (" (one package changed)" if row.aside else "")
        cells = [_markdown_cell(cell) for cell in row.cells] or [SYMBOL[Verdict.UNMEASURED]] * len(outline.stages)
        problem = "" if row.cells else f"**{markdown.prose(_problem(row.outcome))}**"
        rows.append([name, *cells, *([problem] if remarks else [])])
    return f"{markdown.table(head, rows)}\n\n<sub>{markdown.prose(_legend(outline))}</sub>"


def _markdown_cell(cell: Cell) -> str:
    if cell.verdict is None:
        return "no record"
    word = SHORT[cell.verdict] if cell.verdict.is_change else ""
    text = f"{SYMBOL[cell.verdict]} {word}".strip()
    text = _marked(cell, text)
    return f"**{text}**" if cell.verdict.fails else text


def _markdown_section(section: Section) -> list[str]:
    step = section.step
    title = f"**{markdown.code(step.before.name)} → {markdown.code(step.after.name)}**"
    if not section.items:
        return ["", f"{title}: nothing changed"]
    lines = ["", f"{title} ({markdown.prose(pairs_line(step.packages))})", ""]
    return lines + [change_item(item.change, section.measures, _behind(item)) for item in section.items]


def _markdown_deviations(outline: Outline) -> list[str]:
    total = len(outline.drift.comparisons)
    return [
        f"- {SYMBOL[d.finding.verdict]} **{d.finding.verdict.value}** {markdown.prose(f'{d.finding.stage}.{d.line}')}, "
        f"in {markdown.prose(short_names(d.names, total=total))}"
        for d in outline.deviations
    ]
