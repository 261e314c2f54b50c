"""Documents as an HTML page: one file without scripts or external resources, with all external text escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mlmrepro.compare.judge import Verdict
from mlmrepro.files import atomic_write
from mlmrepro.report import document as doc
from mlmrepro.report.words import SYMBOL, clean, count

__all__ = ["TEMPLATES", "document_page", "visible", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"
_VISIBLE = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_ADDRESS = r"https?://[^\s\"'<>`\\]+"


def write_page(document: doc.Document, path: Path) -> None:
    """Write the page atomically; equal documents give equal bytes."""
    atomic_write(path, document_page(document))


def document_page(document: doc.Document) -> str:
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
        "css": _css,
        "kind": lambda block: type(block).__name__,
        "line": _inline,
        "lone": lambda cell: cell.verdict if isinstance(cell, doc.Mark) else None,
        "plain": doc.plain,
        "symbol": SYMBOL.__getitem__,
        "trusted": Markup,
        "visible": lambda text: _escape(visible(text)),  # keeps the spaces that `clean` would collapse
    }
    pages.globals |= {
        "count": count,
        "folded": lambda section: doc.In.PAGE in section.fold,
        "on_page": lambda blocks: [b for b in blocks if not isinstance(b, doc.Section) or doc.In.PAGE in b.shown],
    }
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return pages.get_template("page.html.j2").render(document=document, style=style)


def _css(verdict: Verdict | None) -> str:
    return (verdict or Verdict.IDENTICAL).name.lower().replace("_", "-")


def visible(text: str) -> str:
    """Return a token with visible whitespace and with escapes for unprintable characters."""
    if not text.strip(" "):
        return "␣" * len(text)
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def _escape(text: str) -> Any:
    from markupsafe import escape

    return escape(text)


def _inline(line: doc.Line) -> Any:
    from markupsafe import Markup

    return Markup("").join(_span(span) for span in doc.spans(line))


def _span(span: doc.Span) -> Any:
    from markupsafe import Markup

    match span:
        case doc.Code(text):
            return Markup("<code>{}</code>").format(doc.flat(text))
        case doc.Strong(text):
            return Markup("<strong><bdi>{}</bdi></strong>").format(doc.flat(text))
        case doc.Link(address) if re.fullmatch(_ADDRESS, address):
            return Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(address)
        case doc.Link(address):
            return _escape(doc.flat(address))
        case doc.Mark():
            return _mark(span)
        case doc.Short(text):
            return Markup("<wbr>").join(re.split(r"(?<=_)|(?<=[a-z])(?=[A-Z])", doc.flat(text)))
        case doc.Tag(text, good):
            if good:
                mark = '<span class="tag good"><span aria-hidden="true">✓</span><span class="hidden"> {}</span></span>'
                return Markup(mark).format(doc.flat(text))
            return Markup('<span class="tag">{}</span>').format(doc.flat(text))
        case doc.Share(size, text):
            bar = '<span class="bar" aria-hidden="true"><span style="width: {:.1f}%"></span></span>'
            return Markup(f'<span class="share">{{}}{bar}</span>').format(doc.flat(text), 100 * size)
        case _:
            return _escape(doc.plain(span))


def _mark(mark: doc.Mark) -> Any:
    from markupsafe import Markup

    words = Markup('<span aria-hidden="true">{}</span> <span class="word">{}</span>').format(
        mark.symbol or SYMBOL[mark.verdict], doc.flat(mark.words or mark.verdict.value)
    )
    if mark.note:
        words += Markup(' <span class="from">{}</span>').format(doc.flat(mark.note))
    css = _css(mark.verdict)
    if mark.to:
        return Markup('<a class="badge v-{}" href="#{}">{}</a>').format(css, mark.to, words)
    return Markup('<span class="badge v-{}">{}</span>').format(css, words)
