"""Progress of scoring: the estimated time, measured on the first batches, and progress within a document."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mlmrepro.report.progress import ScoringDisplay, duration


def _shown(batches: int, seconds: float, *, terminal: bool = False, quiet: bool = False) -> str:
    """Return the output for this number of batches of 100 tokens, each of which takes this many seconds."""
    out, now = io.StringIO(), 0.0
    console = Console(file=out, width=120, force_terminal=terminal, quiet=quiet, markup=False, color_system=None)
    with ScoringDisplay(quiet=quiet, console=console, clock=lambda: now) as display:
        for n in range(batches + 1):
            display("tokens", 100 * n, 100 * batches)
            if terminal:
                display.bars.refresh()
            now += seconds
    return out.getvalue()


def test_lines_say_how_long_it_will_take() -> None:
    """Without a terminal, the first line comes after five seconds, then one after each tenth of the work."""
    lines = _shown(200, 3.0).splitlines()
    assert lines[0] == "score tokens: 200 of 20,000 in 6 s, about 10 min in total"
    assert lines[1] == "score tokens: 2,000 of 20,000 in 60 s, about 10 min in total"
    assert len(lines) == 10
    assert lines[-1].startswith("score tokens: 18,000 of 20,000 in 9 min")


def test_what_ends_soon_needs_no_lines() -> None:
    """A run of twenty seconds prints no line, and a quiet run prints nothing at all."""
    assert _shown(20, 1.0) == ""
    assert _shown(200, 3.0, quiet=True) == ""
    assert _shown(200, 3.0, terminal=True, quiet=True) == ""


def test_the_bar_moves_within_a_document_and_names_the_whole_time() -> None:
    """On a terminal, the counts and the estimate are next to the bar, and there are no lines."""
    shown = _shown(200, 3.0, terminal=True)
    assert "10000/20000" in shown
    assert "about 10 min in total" in shown
    assert "of 20,000" not in shown


def test_each_kind_of_unit_has_its_own_clock() -> None:
    """The time spent on tokens does not count for words."""
    out, now = io.StringIO(), 0.0
    with ScoringDisplay(console=Console(file=out, width=120, markup=False), clock=lambda: now) as display:
        display("tokens", 0, 100)
        now = 1000.0
        display("words", 0, 100)
        now = 1010.0
        display("words", 10, 100)
    assert out.getvalue() == "score words: 10 of 100 in 10 s, about 100 s in total\n"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2.0 h")])
def test_a_duration_is_short(seconds: float, words: str) -> None:
    """Durations are in seconds, then minutes, then hours."""
    assert duration(seconds) == words
