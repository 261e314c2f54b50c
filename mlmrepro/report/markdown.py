"""Documents as GitHub-flavoured Markdown; text from users and records is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mlmrepro.report import document as doc
from mlmrepro.report.words import SYMBOL, clean, count

__all__ = ["PR_LIMIT", "document_markdown", "inline"]

PR_LIMIT = 60_000  # GitHub allows 65,536 characters in a comment

_ADDRESS = re.compile(r"https?://[^\s<>\"'`\\|\[\]]+")


def document_markdown(document: doc.Document, *, limit: int = PR_LIMIT) -> str:
    """Return the verdict, the facts, what to do next, and then the details: at most `limit` characters."""
    page = _Page(limit)
    symbol = "" if document.verdict is None else f"{SYMBOL[document.verdict]} "
    page.add(f"### {symbol}{_escaped(doc.flat(document.headline))}")
    if document.lead:
        page.add(inline(document.lead))
    page.add("\n".join(f"- **{_escaped(doc.flat(name))}**: {inline(line)}" for name, line in document.facts))
    if document.next_step:
        page.add(f"**Next:** {inline(document.next_step)}")
    for block in document.blocks:
        page.add_block(block)
    return str(page)


class _Page:
    """Blocks of Markdown up to a limit of characters; what does not fit is left out and counted."""

    def __init__(self, limit: int) -> None:
        self.left = limit - 200  # room for the note
        self.blocks: list[str] = []
        self.dropped = 0

    def add(self, block: str) -> None:
        """Add a block if it fits."""
        if len(block) + 2 > self.left:
            self.dropped += 1
        elif block:
            self.left -= len(block) + 2
            self.blocks.append(block)

    def add_block(self, block: doc.Block) -> None:
        """Add a block of a document: as many of its lines as fit, and a count of the rest."""
        if isinstance(block, doc.Section):
            if doc.In.MARKDOWN not in block.shown:
                return
            lines = list(_section(block))
            if doc.In.MARKDOWN in block.fold:
                summary = _text(doc.plain(block.title))
                kept = self._fitting(lines, 200 + len(summary))
                self.add(f"<details><summary>{summary}</summary>\n\n{kept}\n\n</details>" if kept else "")
                return
            self.add(f"**{inline(block.title)}**" if block.title else "")
        else:
            lines = list(_lines(block))
        if isinstance(block, doc.Table):
            self.add("\n".join(lines))
        else:
            self.add(self._fitting(lines, 200))

    def _fitting(self, lines: Sequence[str], spare: int) -> str:
        room = self.left - spare
        kept: list[str] = []
        for line in lines:
            room -= len(line) + 1
            if room < 0:
                break
            kept.append(line)
        if len(kept) < min(3, len(lines)):  # not even the head of a table
            self.dropped += 1
            return ""
        if len(kept) < len(lines):
            kept += ["", f"… and {count(len(lines) - len(kept), 'more line')} in the HTML report."]
        return "\n".join(kept)

    def __str__(self) -> str:
        note = f"_{count(self.dropped, 'part')} left out here; the HTML report is complete._"
        return "\n\n".join([*self.blocks, *([note] if self.dropped else [])]) + "\n"


def _section(section: doc.Section) -> Iterator[str]:
    """Return the lines of a section without its title, a blank line between its blocks."""
    blocks = [[inline(section.note)]] if section.note else []
    blocks += [list(_lines(block)) for block in section.blocks]
    for n, lines in enumerate(filter(None, blocks)):
        yield from ([""] if n else [])
        yield from lines


def _lines(block: doc.Block) -> Iterator[str]:
    match block:
        case doc.Section() if doc.In.MARKDOWN in block.shown:
            yield from (f"**{inline(block.title)}**", "")
            yield from _section(block)
        case doc.Items():
            for item in block.items:
                yield from _item(item)
        case doc.Table():
            yield from _table([block.head, *block.rows])
        case doc.Text(line):
            yield inline(line)
        case doc.Figure(drawing):
            yield f"**{_escaped(doc.flat(drawing.title))}**: {_escaped(doc.flat(drawing.description))}"
        case doc.Passage():
            yield code("".join(text for _, text, _ in block.words))


def _item(item: doc.Item) -> Iterator[str]:
    points = [inline(line) for line in doc.first_points(item)]
    notes = [f"{name}: {inline(note)}" if name else inline(note) for name, note in item.notes]
    yield "- " + "<br>".join([": ".join(filter(None, [inline(item.head), "; ".join(points)])), *notes])
    for block in item.blocks:
        yield from ("", *_lines(block), "")


def _table(rows: Sequence[Sequence[doc.Line]]) -> Iterator[str]:
    width = len(rows[0])
    for n, row in enumerate(rows):
        cells = [inline(cell).replace("|", "\\|") for cell in row]  # a pipe ends a cell even in code
        yield f"| {' | '.join(cells + [''] * (width - len(cells)))} |"
        if n == 0:
            yield f"| {' | '.join(['---'] * width)} |"


def inline(line: doc.Line) -> str:
    """Return a line as Markdown."""
    return "".join(map(_span, doc.spans(line)))


def _span(span: doc.Span) -> str:
    match span:
        case doc.Code(text):
            return code(text)
        case doc.Strong(text):
            return f"**{_escaped(doc.flat(text))}**" if text.strip() else ""
        case doc.Link(address):
            return f"<{address}>" if _ADDRESS.fullmatch(address) else _escaped(doc.flat(address))
        case doc.Mark():
            words = _escaped(doc.flat(span.short or span.words or span.verdict.value))
            symbol = span.symbol or SYMBOL[span.verdict]
            words = f"**{words}**" if span.verdict.fails else words
            words = words if words.startswith(symbol) else f"{symbol} {words}"
            return words + (f" ({_escaped(doc.flat(span.note))})" if span.note and not span.short else "")
        case doc.Short():
            return _escaped(doc.flat(span.text))
        case _:
            return _escaped(doc.plain(span))


def code(text: str) -> str:
    """Return a code span, in which nothing is read as Markdown, HTML or a mention."""
    line = clean(text)
    if not line:
        return ""
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _text(line: str) -> str:
    """Return text for an HTML tag, in which no tag and no mention is read."""
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u2060")


def _escaped(line: str) -> str:
    """Return text in which nothing is read as Markdown, HTML or a mention; an underscore within a word is harmless."""
    return re.sub(r"([\\`*{}\[\]#~!]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", _text(line))
