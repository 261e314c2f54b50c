"""The command that needs no golden: laws, the observations with bounds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlmrepro.cli.gate import Checkpoint, Column, Threads, check_targets, prepared
from mlmrepro.cli.guide import say_unused
from mlmrepro.cli.output import Json, JUnit, Markdown, Output

__all__ = ["laws"]


def laws(
    checkpoint: Checkpoint,
    only: Annotated[
        list[str] | None, typer.Option(help="An observation or a group of them; repeatable (default: all with bounds).")
    ] = None,
    text: Annotated[
        str, typer.Option(help="Text of the checkpoint's own language (default: embedded, which is English).")
    ] = "embedded",
    text_column: Column = None,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.")] = 0,
    threads: Threads = None,
    numbers: Annotated[bool, typer.Option("--numbers", help="Print what every observation measured.")] = False,
    as_json: Json = False,
    markdown: Markdown = False,
    junit: JUnit = None,
) -> None:
    """Check a checkpoint and the installed libraries against bounds that hold for every checkpoint and version.

    Exits with 0 if every bound holds or is declared as broken for these versions, 1 if one is broken or could not be
    measured, 2 for bad input. Example: mlmrepro laws my-model --text eval.jsonl
    """
    check_targets(junit, beside=[Path(checkpoint)])
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the bounds are for the CPU
    path = prepared(checkpoint, threads)
    say_unused(path)
    from mlmrepro.observations.observe import observe_all, sample
    from mlmrepro.observations.registry import bounded_observers, choose
    from mlmrepro.report.laws import laws_document
    from mlmrepro.report.progress import CountDisplay

    chosen = choose(only or [], bounded_observers())
    texts, notes = sample(text, column=text_column)
    output = Output(as_json, markdown, junit)
    with CountDisplay(len(chosen), quiet=output.quiet) as display:
        results = observe_all(path, texts, observers=chosen, seed=seed, progress=display)
    document = laws_document(results, checkpoint=checkpoint, numbers=numbers, notes=notes)
    output.write(document, [result.to_dict() for result in results])
    if as_json:
        for note in notes:  # the list holds observations only
            print(f"note: {note}", file=sys.stderr)
    raise typer.Exit(int(any(result.verdict.fails for result in results)))
