"""The terminal while a text is scored: a bar and the time that is left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["ScoringDisplay"]


class ScoringDisplay:
    """One bar for each kind of unit; nothing where standard error is no terminal, or when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(stderr=True, quiet=quiet, markup=False)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ScoringDisplay:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the bar of `what`."""
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(f"score {what}", total=total)
        self.bars.update(self.tasks[what], completed=done)
