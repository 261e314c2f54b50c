"""Documents as an HTML page: one file without scripts or external resources, with all external text escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mlmrepro.files import atomic_write
from mlmrepro.report import document as parts
from mlmrepro.report.document import Code, Document, In, Line, Link, Mark, Section, Share, Short, Strong, Tag, flat
from mlmrepro.report.words import SYMBOL, clean, count

__all__ = ["TEMPLATES", "document_page", "visible", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"
_VISIBLE = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_ADDRESS = r"https?://[^\s\"'<>`\\]+"


def write_page(document: Document, path: Path) -> None:
    """Write the page atomically; equal documents give equal bytes."""
    atomic_write(path, document_page(document))


def document_page(document: Document) -> str:
    """Return the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    # Everything is escaped, except for our own style sheet and figures.
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda text: text if isinstance(text, Markup) else clean(text),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "css": lambda verdict: verdict.name.lower().replace("_", "-"),
        "kind": lambda block: type(block).__name__,
        "line": _inline,
        "lone": lambda cell: cell.verdict if isinstance(cell, Mark) else None,
        "plain": parts.plain,
        "symbol": SYMBOL.__getitem__,
        "trusted": Markup,
        "visible": lambda text: _escape(visible(text)),  # keeps the spaces that `clean` would collapse
    }
    pages.globals |= {
        "count": count,
        "folded": lambda section: In.PAGE in section.fold,
        "on_page": lambda blocks: [b for b in blocks if not isinstance(b, Section) or In.PAGE in b.shown],
    }
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return pages.get_template("new_page.html.j2").render(document=document, style=style)


def visible(text: str) -> str:
    """Return a token with visible whitespace and with escapes for unprintable characters."""
    if not text.strip(" "):
        return "␣" * len(text)
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def _escape(text: str) -> Any:
    from markupsafe import escape

    return escape(text)


def _inline(line: Line) -> Any:
    from markupsafe import Markup

    return Markup("").join(_span(span) for span in parts.spans(line))


def _span(span: parts.Span) -> Any:
    from markupsafe import Markup

    match span:
        case Code(text):
            return Markup("<code>{}</code>").format(flat(text))
        case Strong(text):
            return Markup("<strong><bdi>{}</bdi></strong>").format(flat(text))
        case Link(address) if re.fullmatch(_ADDRESS, address):
            return Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(address)
        case Link(address):
            return _escape(flat(address))
        case Mark():
            return _mark(span)
        case Short(text):
            return Markup("<wbr>").join(re.split(r"(?<=_)|(?<=[a-z])(?=[A-Z])", flat(text)))
        case Tag(text, good):
            sign = Markup('<span aria-hidden="true">✓</span> ') if good else ""
            return Markup('<span class="tag{}">{}{}</span>').format(" good" if good else "", sign, flat(text))
        case Share(size, text):
            bar = '<span class="bar" aria-hidden="true"><span style="width: {:.1f}%"></span></span>'
            return Markup(f'<span class="share">{{}}{bar}</span>').format(flat(text), 100 * size)
        case _:
            return _escape(parts.plain(span))


def _mark(mark: Mark) -> Any:
    from markupsafe import Markup

    words = Markup('<span aria-hidden="true">{}</span> <span class="word">{}</span>').format(
        mark.symbol or SYMBOL[mark.verdict], flat(mark.words or mark.verdict.value)
    )
    if mark.note:
        words += Markup(' <span class="from">{}</span>').format(flat(mark.note))
    css = mark.verdict.name.lower().replace("_", "-")
    if mark.to:
        return Markup('<a class="badge v-{}" href="#{}">{}</a>').format(css, mark.to, words)
    return Markup('<span class="badge v-{}">{}</span>').format(css, words)
