"""Printing on the terminal. Colour only repeats what a verdict's word says."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from mlmrepro.compare.judge import Verdict
from mlmrepro.report.words import SYMBOL

__all__ = ["STYLE", "say", "standard_output", "styled"]

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


def styled(verdict: Verdict, words: str = "") -> Text:
    """Return a verdict's symbol and its word, or `words` instead, in the verdict's colour."""
    return Text(f"{SYMBOL[verdict]} {words or verdict.value}", style=STYLE[verdict])


def say(console: Console, *parts: Text | str, bold: str = "", indent: int = 0) -> None:
    """Print `bold` in bold and then the parts; wrapped lines keep the indent."""
    line = Text.assemble((bold, "bold"), *parts, overflow="fold")
    console.print(Padding(line, (0, 0, 0, indent), expand=False), highlight=False)
