"""Documents on the terminal. Colour only repeats what a verdict's word says."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text as Words

from mlmrepro.compare.judge import Verdict
from mlmrepro.report import document as doc
from mlmrepro.report.words import SYMBOL, and_more

__all__ = ["print_blocks", "print_document", "say", "standard_output", "styled"]

STYLE = {
    Verdict.IDENTICAL: "dim",
    Verdict.WITHIN_NOISE: "dim",
    Verdict.EXPECTED: "blue",
    Verdict.IMPROVEMENT: "green",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.UNMEASURED: "yellow",
    Verdict.REGRESSION: "bold red",
}


def standard_output() -> Console:
    """Return a console for standard output that does not interpret square brackets."""
    return Console(file=sys.stdout, markup=False)


def print_document(document: doc.Document, console: Console | None = None) -> None:
    """Print the headline, the facts, the details, and what to do next."""
    console = console or standard_output()
    console.print()
    headline = f"{doc.flat(document.headline)}."
    say(console, headline if document.verdict is None else styled(document.verdict, headline))
    if document.lead:
        say(console, document.lead)
    if document.facts:
        table = Grid.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, line in document.facts:
            table.add_row(Words(doc.flat(name)), words(line))
        console.print()
        console.print(table, highlight=False)
    print_blocks(document.blocks, console)
    if document.next_step:
        console.print()
        say(console, document.next_step, bold="Next: ")


def print_blocks(blocks: Iterable[doc.Block], console: Console, indent: int = 0, hang: int = 0) -> None:
    """Print blocks one below the other; `hang` indents lists further."""
    for block in blocks:
        match block:
            case doc.Section() if doc.In.TERMINAL in block.shown:
                console.print()
                if block.title:
                    say(console, bold=doc.plain(block.title), indent=indent)
                if block.note:
                    say(console, Words.assemble(words(block.note), style="dim"), indent=indent)
                print_blocks(block.blocks, console, indent, 2 if block.title else 0)
            case doc.Items():
                _print_items(block, console, indent + hang)
            case doc.Table():
                console.print(Padding(_grid(block), (0, 0, 0, indent), expand=False), highlight=False)
            case doc.Text(line):
                say(console, line, indent=indent)
            case doc.Figure(drawing):
                say(console, drawing.description, bold=f"{doc.flat(drawing.title)}: ", indent=indent)
            case doc.Passage():
                say(console, "".join(text for _, text, _ in block.words), indent=indent)


def _print_items(block: doc.Items, console: Console, indent: int) -> None:
    for item in block.items[: block.brief]:
        say(console, *_head(item), indent=indent)
        for name, note in item.notes:
            say(console, note, bold=f"{name}: " if name else "", indent=indent + 2)
        print_blocks(item.blocks, console, indent + 2)
    for line in and_more([item.name for item in block.items[block.brief :]], block.noun, named=5):
        say(console, line, indent=indent)


def _head(item: doc.Item) -> Iterator[doc.Line]:
    yield item.head
    for n, line in enumerate(doc.first_points(item)):
        yield ": " if n == 0 else "; "
        yield line


def _grid(block: doc.Table) -> Grid:
    named = any(map(doc.plain, block.head))
    grid = Grid(box=None, pad_edge=False, padding=(0, 1 if block.tight else 2, 0, 0), show_header=named)
    for n, name in enumerate(block.head):
        short = block.tight and n > 0
        right = block.numeric and n > 0
        grid.add_column(
            words(name),
            overflow="fold",
            no_wrap=short,
            min_width=4 if short else None,
            justify="right" if right else "left",
        )
    for row in block.rows:
        spans_all = len(row) == 1
        grid.add_row(*(words(cell, style="dim" if spans_all else "") for cell in row))
    return grid


def words(line: doc.Line, style: str = "") -> Words:
    """Return a line in the colours of the terminal."""
    text = Words(style=style, overflow="fold")
    for span in doc.spans(line):
        match span:
            case doc.Mark():
                text.append_text(_mark(span))
            case doc.Short():
                text.append(doc.flat(span.short))
            case doc.Strong():
                text.append(doc.flat(span.text), "bold")
            case _:
                text.append(doc.plain(span))
    return text


def _mark(mark: doc.Mark) -> Words:
    if mark.short:
        return Words(doc.flat(mark.short), style=STYLE[mark.verdict])
    text = styled(mark.verdict, doc.flat(mark.words), mark.symbol)
    return text.append(f" ({doc.flat(mark.note)})", "not bold default") if mark.note else text


def styled(verdict: Verdict, words: str = "", symbol: str = "") -> Words:
    """Return a verdict's symbol and its word, or `words` instead, in the verdict's colour."""
    return Words(f"{symbol or SYMBOL[verdict]} {words or verdict.value}", style=STYLE[verdict])


def say(console: Console, *lines: Words | doc.Line, bold: str = "", indent: int = 0) -> None:
    """Print `bold` in bold and then the lines as one; where it wraps, it keeps the indent."""
    line = Words(overflow="fold").append(bold, "bold")
    for each in lines:
        line.append_text(each if isinstance(each, Words) else words(each))
    console.print(Padding(line, (0, 0, 0, indent), expand=False), highlight=False)
