"""The summary prints user text unchanged."""

from __future__ import annotations

import io

from rich.console import Console

from mlmrepro.report.document import Section
from mlmrepro.report.summary import filled
from mlmrepro.report.terminal import print_blocks


def test_square_brackets_are_no_markup() -> None:
    """Prompts and tokens with square brackets are printed unchanged."""
    row = {"sequence": "[/i] a [b]c[/b]", "score": 0.5}
    out = io.StringIO()
    section = Section("[/i] <mask>", [filled([row], [row])])
    print_blocks([section], Console(file=out, markup=False, width=120))
    assert "[/i] a [b]c[/b]" in out.getvalue()
    assert "[/i] <mask>" in out.getvalue()
