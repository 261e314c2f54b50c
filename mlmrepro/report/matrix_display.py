"""Progress of a matrix on the terminal: one line per environment."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

__all__ = ["MatrixDisplay"]

_MARKS = {"waiting": Text("·", "dim"), "done": Text("✓", "green"), "failed": Text("✗", "red")}


class MatrixDisplay:
    """Show the phase of each environment; print plain lines if the output is not a terminal, nothing if quiet."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, markup=False)
        self.lines = Progress(
            _Mark(table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[phase]:<10}", markup=False),
            _Seconds(table_column=Column(no_wrap=True)),
            _Note(),  # the only column that shrinks on a narrow terminal
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}

    def __enter__(self) -> MatrixDisplay:
        self.lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lines.stop()

    def environment(self, name: str, phase: str, note: str = "") -> None:
        """Show an environment's new phase: waiting, installing, recording, done or failed."""
        if name not in self.tasks:
            self.tasks[name] = self.lines.add_task(name, start=False, total=1, phase=phase, note="")
        task = self.tasks[name]
        ended = phase in ("done", "failed")
        self.lines.update(task, phase=phase, note=note, completed=int(ended))
        if phase != "waiting":
            now = time.monotonic()
            seconds = now - self.started.setdefault(name, now)
            self.lines.start_task(task)
            if self.lines.disable:
                figure = f"{seconds:.0f} s" if ended and not note else note
                self.console.print(f"{name} {phase} {figure}".rstrip(), highlight=False, markup=False, soft_wrap=True)


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
