"""Reports; `shown` prints a document for the tests."""

from __future__ import annotations

import io

from rich.console import Console

from mlmrepro.report.document import Document
from mlmrepro.report.terminal import print_document


def shown(document: Document, width: int = 80, *, colour: bool = False) -> str:
    """Return what the terminal shows of a document."""
    out = io.StringIO()
    system = "standard" if colour else None
    print_document(document, Console(file=out, markup=False, width=width, force_terminal=colour, color_system=system))
    return out.getvalue()


def words(text: str) -> str:
    """Return text without its layout."""
    return " ".join(text.split())
