"""Progress on standard error: bars on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from mlmrepro.record import STAGES

__all__ = [
    "ACTIONS",
    "CountDisplay",
    "MatrixDisplay",
    "RunDisplay",
    "ScoringDisplay",
    "StageDisplay",
    "StepDisplay",
    "duration",
]


class _Display:
    """Bars with these columns, which are shown while the display is entered."""

    def __init__(
        self,
        *columns: ProgressColumn,
        quiet: bool = False,
        console: Console | None = None,
        transient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, markup=False)
        self.clock = clock
        disable = quiet or not self.console.is_terminal
        self.bars = Progress(*columns, console=self.console, disable=disable, transient=transient, get_time=clock)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def line(self, text: str) -> None:
        """Print a plain line if there are no bars."""
        if self.bars.disable:
            self.console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)


class CountDisplay(_Display):
    """One bar over things that are done one after the other, with the name of the current one; it leaves no trace."""

    def __init__(self, total: int | None, *, quiet: bool = False, console: Console | None = None) -> None:
        name = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), name)
        super().__init__(*columns, quiet=quiet, console=console, transient=True)
        self.task = self.bars.add_task("", total=total, completed=-1)

    def __call__(self, name: str) -> None:
        """Show that the next one has started."""
        self.bars.update(self.task, advance=1, description=name)

    def done(self, name: str, done: int, total: int, outcome: str) -> None:
        """Show that one has ended, with a line if there is no bar."""
        self.bars.update(self.task, completed=done, total=total, description=name)
        self.line(f"{done}/{total} {name}: {outcome}")


class StepDisplay(_Display):
    """The release that is measured, and a line for each that has been."""

    def __init__(self, describe: Callable[[Any], str], *, quiet: bool = False) -> None:
        super().__init__(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), quiet=quiet
        )
        self.describe = describe
        self.task = self.bars.add_task("", total=None)

    def begin(self, release: Any, note: str) -> None:
        """A release is measured."""
        self.bars.reset(self.task, description=f"{release.version} {note}".rstrip())

    def end(self, step: Any) -> None:
        """It has been measured."""
        self.bars.update(self.task, description="")
        self.console.print(self.describe(step), highlight=False, markup=False, soft_wrap=True)


# A few words on each stage of a run.
ACTIONS = {
    "dataset": "load and split the data set",
    "flatten": "flatten nested columns",
    "input_ids": "join and tokenise the answers",
    "blocks": "group into blocks",
    "masked_batches": "draw masks",
    "model": "load and evaluate the model",
    "loss": "fine-tune",
    "evaluation": "evaluate and save",
    "fill_mask": "fill the mask",
    "off_path": "observe the libraries",
}
_WIDTH = max(map(len, ACTIONS.values()))


class StageDisplay(_Display):
    """Show one stage after the other, each with its time, and the loss of a training."""

    def __init__(self, *, quiet: bool = False) -> None:
        columns = SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(bar_width=12)
        super().__init__(*columns, TextColumn("{task.fields[note]}"), quiet=quiet)
        self.current: TaskID | None = None
        self.name = ""
        self.note = ""
        self.started = self.clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        super().__exit__(kind, error, trace)

    def stage(self, name: str) -> None:
        """Finish the previous stage and start this one."""
        self._begin(f"{name:<32}")

    def step(self, done: int, total: int, loss: float) -> None:
        """Update the training bar."""
        self.note = f"{done}/{total}  loss {loss:.3f}"
        if self.current is not None:
            self.bars.update(self.current, completed=done, total=total, note=self.note)

    def _begin(self, name: str, position: str = "") -> None:
        self._finish()
        self.name, self.note, self.started = name, "", self.clock()
        self.current = self.bars.add_task(f"{position} {name}".lstrip(), total=None, note="")

    def _finish(self) -> None:
        if self.current is None:
            return
        note = f"{self.clock() - self.started:6.1f} s  {self.note}"
        self.bars.update(self.current, completed=1, total=1, note=note)
        self.line(f"{self.name} {note}")
        self.current = None


class RunDisplay(StageDisplay):
    """Show each stage of a run of the guide."""

    def stage(self, name: str) -> None:
        """Start a stage of the guide."""
        position = f"{STAGES.index(name) + 1}/{len(STAGES)}" if name in STAGES else "+"
        self._begin(f"{ACTIONS[name]:<{_WIDTH}}", position)


_MEASURED = 5.0  # seconds of scoring before the first estimate
_WORTH_A_LINE = 30.0  # seconds; shorter runs print no lines
_LINES = 10  # at most, per kind of unit


class ScoringDisplay(_Display):
    """One bar per kind of unit, updated after each batch, so within long documents too, with the estimated time."""

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        columns = TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn()
        estimate = TextColumn("{task.fields[estimate]}")
        super().__init__(*columns, estimate, quiet=quiet, console=console, clock=clock)
        self.tasks: dict[str, TaskID] = {}
        self.lines: dict[str, int] = {}  # tenths of the work already reported in lines
        self.started = clock()

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
            self.line(f"score {what}: {done:,} of {total:,} in {duration(spent)}, {estimate}")


def duration(seconds: float) -> str:
    """Format a time: in seconds below two minutes, in minutes below two hours, else in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


_MARKS = {"waiting": Text("·", "dim"), "done": Text("✓", "green"), "failed": Text("✗", "red")}


class MatrixDisplay(_Display):
    """Show the phase of each environment."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        columns = (
            _Mark(table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[phase]:<10}", markup=False),
            _Seconds(table_column=Column(no_wrap=True)),
            _Note(),  # the only column that shrinks on a narrow terminal
        )
        super().__init__(*columns, quiet=quiet, console=console)
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}

    def environment(self, name: str, phase: str, note: str = "") -> None:
        """Show an environment's new phase: waiting, installing, recording, done or failed."""
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, start=False, total=1, phase=phase, note="")
        task = self.tasks[name]
        ended = phase in ("done", "failed")
        self.bars.update(task, phase=phase, note=note, completed=int(ended))
        if phase != "waiting":
            now = self.clock()
            seconds = now - self.started.setdefault(name, now)
            self.bars.start_task(task)
            self.line(f"{name} {phase} {f'{seconds:.0f} s' if ended and not note else note}")


class _Mark(SpinnerColumn):
    def render(self, task: Task) -> RenderableType:
        return _MARKS.get(task.fields["phase"]) or super().render(task)


class _Seconds(ProgressColumn):
    def render(self, task: Task) -> RenderableType:
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text("" if elapsed is None else f"{elapsed:4.0f} s")


class _Note(ProgressColumn):
    def render(self, task: Task) -> RenderableType:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")
