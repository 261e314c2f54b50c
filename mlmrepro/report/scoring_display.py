"""Progress of scoring on the terminal: a bar, or plain lines, with the estimated time."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["ScoringDisplay", "duration"]

_MEASURED = 5.0  # seconds of scoring before the first estimate
_WORTH_A_LINE = 30.0  # seconds; shorter runs print no lines
_LINES = 10  # at most, per kind of unit


class ScoringDisplay:
    """One bar per kind of unit, updated after each batch, so within long documents too.

    If standard error is not a terminal, plain lines give the progress and the estimated time instead. If quiet,
    nothing is shown.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, markup=False)
        self.clock = clock
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[estimate]}"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            get_time=clock,
        )
        self.tasks: dict[str, TaskID] = {}
        self.lines: dict[str, int] = {}  # tenths of the work already reported in lines
        self.started = clock()

    def __enter__(self) -> ScoringDisplay:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Update the bar of `what`; the first call of each kind starts its clock."""
        now = self.clock()
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(f"score {what}", total=total, estimate="")
            self.lines[what] = -1
            self.started = now
        spent = now - self.started
        whole = spent * total / done if done else 0.0
        estimate = f"about {duration(whole)} in total" if spent >= _MEASURED and whole >= _WORTH_A_LINE else ""
        self.bars.update(self.tasks[what], completed=done, estimate=estimate)
        tenth = _LINES * done // total if total else 0
        if estimate and self.bars.disable and tenth > self.lines[what] and done < total:
            self.lines[what] = tenth
            line = f"score {what}: {done:,} of {total:,} in {duration(spent)}, {estimate}"
            self.console.print(line, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Format a time: in seconds below two minutes, in minutes below two hours, else in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
