"""The summary prints user text unchanged."""

from __future__ import annotations

import io

from rich.console import Console

from mlmrepro.report.summary import print_fill_mask


def test_square_brackets_are_no_markup() -> None:
    """Prompts and tokens with square brackets are printed unchanged."""
    row = {"sequence": "[/i] a [b]c[/b]", "score": 0.5}
    out = io.StringIO()
    print_fill_mask([row], [row], prompt="[/i] <mask>", console=Console(file=out, markup=False, width=120))
    assert "[/i] a [b]c[/b]" in out.getvalue()
    assert "[/i] <mask>" in out.getvalue()
