"""The command line of pretraining."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mlmrepro.errors import UserError

from .pretrain import RECIPE, pretrain


def main(
    work: Annotated[Path, typer.Option(help="Working folder: corpus, tokens, state; continues what is there.")],
    start: Annotated[
        Path | None, typer.Option(help="A checkpoint of this command to continue from (default: from nothing).")
    ] = None,
    recipe: Annotated[Path, typer.Option(help="The recipe.", exists=True, dir_okay=False)] = RECIPE,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Make the embedded checkpoint: corpus, tokenizer, embeddings, training, export."""
    torch.set_num_threads(threads)
    console = Console(stderr=True, markup=False)
    columns = (
        TextColumn("{task.completed:,}/{task.total:,} steps"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("", total=1, loss=float("nan"))
        try:
            figures = pretrain(
                work,
                start=start,
                recipe_path=recipe,
                report=console.print,
                progress=lambda done, total, loss: bars.update(task, completed=done, total=total, loss=loss),
            )
        except UserError as error:
            sys.exit(f"error: {error}")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
