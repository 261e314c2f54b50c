"""GitHub-flavoured Markdown; text from users and records is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mlmrepro.report.words import clean, count

__all__ = ["PR_LIMIT", "Page", "code", "details", "link", "prose", "sentence", "table"]

PR_LIMIT = 60_000  # GitHub allows 65,536 characters in a comment

_ADDRESS = re.compile(r"https?://[^\s<>\"'`\\|\[\]]+")


def code(text: object) -> str:
    """Return a code span, in which nothing is read as Markdown, HTML or a mention."""
    line = clean(text)
    if not line:
        return ""
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def prose(text: object) -> str:
    """Return escaped text, in which nothing is read as Markdown, HTML or a mention."""
    return _escaped(clean(text))


def _escaped(line: str) -> str:
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]#~!])", r"\\\1", line)
    return line.replace("@", "@\u2060")  # the word joiner prevents a mention


def sentence(text: str) -> str:
    """Return one of our own sentences: escaped, except for its code spans."""
    return "".join(code(part) if n % 2 else _escaped(part) for n, part in enumerate(clean(text).split("`")))


def link(address: str) -> str:
    """Return a web address as a link, any other text as plain text."""
    if not _ADDRESS.fullmatch(address):
        return prose(address)
    return f"<{address}>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are already Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)  # a pipe ends a cell even in code
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def details(summary: str, body: str) -> str:
    """Return a folded block; the summary is plain text."""
    safe = clean(summary).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u2060")
    return f"<details><summary>{safe}</summary>\n\n{body}\n\n</details>"


class Page:
    """Blocks of Markdown up to a limit of characters; a block that does not fit is left out and counted."""

    def __init__(self, limit: int) -> None:
        self.left = limit - 200  # room for the note
        self.blocks: list[str] = []
        self.dropped = 0

    def add(self, block: str) -> bool:
        """Add a block if it fits."""
        if len(block) + 2 > self.left:
            self.dropped += 1
            return False
        self.left -= len(block) + 2
        self.blocks.append(block)
        return True

    def fold(self, summary: str, lines: Sequence[str], before: str = "") -> None:
        """Add a folded block with as many lines as fit, and a count of the rest."""
        room = self.left - len(summary) - len(before) - 200
        kept: list[str] = []
        for line in lines:
            room -= len(line) + 1
            if room < 0:
                break
            kept.append(line)
        if len(kept) < len(lines):
            kept += ["", f"… and {count(len(lines) - len(kept), 'more line')} in the HTML report."]
        if lines:
            self.add(details(summary, "\n".join([before, "", *kept] if before else kept)))

    def __str__(self) -> str:
        note = f"_{count(self.dropped, 'part')} left out here; the HTML report is complete._"
        return "\n\n".join([*self.blocks, *([note] if self.dropped else [])]) + "\n"
