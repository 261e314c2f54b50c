"""GitHub-flavoured Markdown, with text of users and records made safe to stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mlmrepro.report.words import clean, count

__all__ = ["PR_LIMIT", "Page", "code", "details", "link", "prose", "sentence", "table"]

PR_LIMIT = 60_000  # GitHub takes 65,536 characters of a comment

_ADDRESS = re.compile(r"https?://[^\s<>\"'`\\|\[\]]+")


def code(text: object) -> str:
    """Return a code span: nothing in it is Markdown, HTML or a mention."""
    line = clean(text)
    if not line:
        return ""
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def prose(text: object) -> str:
    """Return text that reads as it stands: no markup, no HTML, no mention of a user."""
    return _escaped(clean(text))


def _escaped(line: str) -> str:
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]#~!])", r"\\\1", line)
    return line.replace("@", "@\u2060")  # the word joiner keeps a mention from forming


def sentence(text: str) -> str:
    """Return our own words: escaped, but with their code spans."""
    return "".join(code(part) if n % 2 else _escaped(part) for n, part in enumerate(clean(text).split("`")))


def link(address: str) -> str:
    """Return an address as a link, as plain text where it is none."""
    if not _ADDRESS.fullmatch(address):
        return prose(address)
    return f"<{address}>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)  # a pipe ends a cell even in code
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def details(summary: str, body: str) -> str:
    """Return a block that unfolds; the summary is plain text."""
    safe = clean(summary).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u2060")
    return f"<details><summary>{safe}</summary>\n\n{body}\n\n</details>"


class Page:
    """Blocks of Markdown up to a limit of characters: what does not fit is counted, never cut in its middle."""

    def __init__(self, limit: int) -> None:
        self.left = limit - 200  # room for the note
        self.blocks: list[str] = []
        self.dropped = 0

    def add(self, block: str) -> bool:
        """Add a block where it fits."""
        if len(block) + 2 > self.left:
            self.dropped += 1
            return False
        self.left -= len(block) + 2
        self.blocks.append(block)
        return True

    def fold(self, summary: str, lines: Sequence[str], before: str = "") -> None:
        """Add lines as one block that unfolds: as many as fit, and how many are left out."""
        room = self.left - len(summary) - len(before) - 200
        kept: list[str] = []
        for line in lines:
            room -= len(line) + 1
            if room < 0:
                break
            kept.append(line)
        if len(kept) < len(lines):
            kept += ["", f"… and {count(len(lines) - len(kept), 'more line')}, in the HTML report."]
        if lines:
            self.add(details(summary, "\n".join([before, "", *kept] if before else kept)))

    def __str__(self) -> str:
        note = f"_{count(self.dropped, 'part')} left out here: the HTML report has all._"
        return "\n\n".join([*self.blocks, *([note] if self.dropped else [])]) + "\n"
