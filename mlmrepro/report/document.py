"""What a result becomes before anyone sees it: one document, which three writers show.

    document = Document(
        verdict=Verdict.REGRESSION,
        headline="REGRESSION: the loss changed",
        facts=[("compared", ("records ", Code("old"), " and ", Code("new")))],
        blocks=[Section("Changes", [Items([Item(("loss ", Mark(Verdict.REGRESSION)))])], name="changes")],
        next_step=sentence("pin the version, or declare the change with `mlmrepro expect`."),
    )
    terminal.print_document(document)        # coloured text that fits any width
    markdown.document_markdown(document)     # a comment for a pull request, cut at GitHub's limit
    page.write_page(document, path)          # one HTML file without scripts

A `Line` is text, a span, or a tuple of both, which are joined as they are. Plain text may come from anywhere: every
writer escapes it and writes control characters as escapes. Every writer shows everything, unless a `Section` says who
shows it: `shown=In.PAGE` keeps details off the terminal. The terminal and Markdown show the first two `points` of an
`Item`, and the terminal as many items as `brief` says; both count the rest.

`suites` and `alerts` are the same result for a CI server: JUnit XML and the annotations of GitHub Actions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import TYPE_CHECKING

from mlmrepro.compare.judge import Verdict
from mlmrepro.report.words import and_more

if TYPE_CHECKING:
    from mlmrepro.report.svg import Drawing

__all__ = [
    *("Alert", "Block", "Case", "Code", "Document", "Figure", "In", "Item", "Items", "Line", "Link", "Mark", "Passage"),
    *("Point", "Section", "Share", "Short", "Span", "Strong", "Suite", "Table", "Tag", "Text"),
    *("first_points", "flat", "joined", "plain", "sentence", "spans"),
]


class In(Flag):
    """The writers."""

    TERMINAL = auto()
    MARKDOWN = auto()
    PAGE = auto()
    ALL = TERMINAL | MARKDOWN | PAGE
    NONE = 0


@dataclass(frozen=True)
class Code:
    """A name or a value, set apart from the words around it."""

    text: str


@dataclass(frozen=True)
class Strong:
    """Emphasised text."""

    text: str


@dataclass(frozen=True)
class Link:
    """A web address; anything else is shown as text."""

    address: str


@dataclass(frozen=True)
class Mark:
    """A verdict: its symbol, its colour, and a word, so that colour is never the only sign.

    `short` replaces symbol and word in narrow tables of the terminal and of Markdown. `to` is the anchor of the item
    that explains it.
    """

    verdict: Verdict
    words: str = ""  # the verdict's own if empty
    short: str = ""
    note: str = ""
    to: str = ""
    symbol: str = ""  # the verdict's own if empty


@dataclass(frozen=True)
class Short:
    """A name with a short form for the terminal."""

    text: str
    short: str


@dataclass(frozen=True)
class Tag:
    """A remark next to a value; `good` adds a check mark."""

    text: str
    good: bool = False


@dataclass(frozen=True)
class Share:
    """A number from 0 to 1, on the page with a bar."""

    size: float
    text: str


Span = str | Code | Strong | Link | Mark | Short | Tag | Share
Line = Span | tuple[Span, ...]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    line: Line


@dataclass(frozen=True)
class Table:
    """A table with row heads; the last cell of a short row spans the rest of it.

    `tight` is for columns of short words that must not wrap, `numeric` for numbers, aligned at the right.
    """

    head: Sequence[Line]
    rows: Sequence[Sequence[Line]]
    numeric: bool = False
    tight: bool = False


@dataclass(frozen=True)
class Point:
    """A value of an item; `more` are further lines about it, `left` counts those that were left out."""

    line: Line
    name: str = ""  # by which it is named if it is cut
    more: Sequence[Line] = ()
    left: int = 0


@dataclass(frozen=True)
class Item:
    """One finding: what it is, its values, and notes such as the cause, each with its name ("" for none)."""

    head: Line
    points: Sequence[Point] = ()
    notes: Sequence[tuple[str, Line]] = ()
    blocks: Sequence[Block] = ()
    verdict: Verdict | None = None
    name: str = ""  # by which it is counted if the list is cut
    anchor: str = ""


@dataclass(frozen=True)
class Items:
    """A list of findings, of which the terminal shows the first `brief`."""

    items: Sequence[Item]
    noun: str = "change"
    brief: int = 20


@dataclass(frozen=True)
class Figure:
    """A drawing: a picture with its numbers on the page, its title and description elsewhere."""

    drawing: Drawing


@dataclass(frozen=True)
class Passage:
    """Text whose words (class of the style sheet, text, remark) are shaded on the page."""

    words: Sequence[tuple[str, str, str]]
    legend: Sequence[tuple[str, str]] = ()  # class and meaning; of the legend itself if there are no words


@dataclass(frozen=True)
class Section:
    """Blocks with a title. `name` is its anchor on the page, and lists it in the page's navigation."""

    title: Line
    blocks: Sequence[Block]
    name: str = ""
    note: Line = ""
    shown: In = In.ALL
    fold: In = In.NONE  # where only the title is visible at first


Block = Text | Table | Items | Figure | Passage | Section


@dataclass(frozen=True)
class Case:
    """A test case of JUnit XML: passed, or `outcome` is "failure", "error" or "skipped"."""

    name: str
    outcome: str = ""
    message: str = ""
    text: str = ""
    group: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Suite:
    """The test cases of one environment or checkpoint; `output` is what it has to say besides."""

    name: str
    cases: Sequence[Case]
    output: str = ""


@dataclass(frozen=True)
class Alert:
    """An annotation of GitHub Actions: its level is "error", "warning" or "notice"."""

    level: str
    title: str
    text: str


@dataclass(frozen=True)
class Document:
    """The verdict and its headline first, then the facts, what to do next, and the details."""

    verdict: Verdict | None  # None if there is nothing to judge
    headline: str
    lead: Line = ""
    facts: Sequence[tuple[str, Line]] = ()
    blocks: Sequence[Block] = ()
    next_step: Line = ""
    subject: str = ""  # the question it answers, above the headline of a page
    suites: Sequence[Suite] = ()
    alerts: Sequence[Alert] = ()


def spans(line: Line) -> tuple[Span, ...]:
    """Return the spans of a line."""
    return line if isinstance(line, tuple) else (line,)


def sentence(text: str) -> tuple[Span, ...]:
    """Return one of our own sentences, whose `code` becomes a span."""
    parts = text.split("`")
    return tuple(Code(part) if n % 2 else part for n, part in enumerate(parts) if part)


def flat(text: object) -> str:
    """Return text on one line, with unprintable characters as escapes; spaces at its ends stay."""
    line = re.sub(r"\s+", " ", str(text))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def plain(line: Line) -> str:
    """Return a line as text."""
    return "".join(flat(_words(span)) for span in spans(line))


def _words(span: Span) -> str:
    match span:
        case str():
            return span
        case Link(address):
            return f"<{address}>"
        case Mark():
            return span.words or span.verdict.value
        case Tag(text):
            return f"({text})"
        case _:
            return span.text


def first_points(item: Item, shown: int = 2) -> list[Line]:
    """Return the first points of an item, and how many are left, as lines."""
    rest = [point.name for point in item.points[shown:]]
    return [*(point.line for point in item.points[:shown]), *and_more(rest, "value", named=3)]


def joined(lines: Iterable[Line], by: str) -> tuple[Span, ...]:
    """Return lines as one, with text between them."""
    found: list[Span] = []
    for n, line in enumerate(lines):
        found += [by, *spans(line)] if n else spans(line)
    return tuple(found)
