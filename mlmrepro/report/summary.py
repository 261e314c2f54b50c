"""The summary of a run on the terminal."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmrepro.record import STAGES, RunRecord
from mlmrepro.report.progress import ACTIONS

__all__ = ["print_fill_mask", "print_summary"]


def print_summary(record: RunRecord, directory: Path, console: Console | None = None) -> None:
    """Print the results of the run, its overrides of the guide, and the paths of its files."""
    console = console or Console(file=sys.stdout, markup=False)
    versions = record.provenance["packages"]
    console.print()
    console.print(
        f"Profile {record.config['profile']}, transformers {versions['transformers']}, "
        f"datasets {versions['datasets']}, torch {versions['torch']}, "
        f"{record.provenance['device']['type']}, {record.config['threads']} threads",
        highlight=False,
    )
    pair = record["evaluation.same_masks_perplexity"]
    table = _table("Perplexity, exp(eval_loss)", "", "test blocks")
    table.add_row("before fine-tuning", _figure(pair["before"]))
    table.add_row("after fine-tuning, same masks", _figure(pair["after"]))
    table.add_row("evaluated as in the guide (fresh masks)", _figure(record["evaluation.perplexity"]))
    console.print(table)
    console.print(_data_table(record))
    prompt = record.config["guide"]["prompt"]
    print_fill_mask(record["fill_mask.pipeline"], record["fill_mask.by_hand"], prompt=prompt, console=console)
    table = _table("Overrides of the guide", "name", "guide", "this run", "reason")
    for override in record.config["overrides"]:
        table.add_row(override["name"], str(override["guide"]), str(override["value"]), override["reason"])
    console.print(table)
    console.print(_time_table(record))
    console.print(f"checkpoint  {directory / 'model'}", highlight=False, soft_wrap=True)
    console.print(f"record      {directory / 'record.json'}", highlight=False, soft_wrap=True)


def print_fill_mask(
    pipeline: list[dict[str, Any]],
    by_hand: list[dict[str, Any]],
    *,
    prompt: str | None = None,
    console: Console | None = None,
) -> None:
    """Print the predictions of the pipeline and of the manual computation next to each other."""
    console = console or Console(file=sys.stdout, markup=False)
    table = _table(prompt or "", "", "pipeline", "score", "by hand", "score")
    for rank, (left, right) in enumerate(zip(pipeline, by_hand, strict=True), start=1):
        table.add_row(str(rank), left["sequence"], f"{left['score']:.4f}", right["sequence"], f"{right['score']:.4f}")
    console.print(table)


def _data_table(record: RunRecord) -> Table:
    table = _table("Data", "", "train", "test")
    rows = [
        ("rows", "dataset.{}_rows"),
        ("tokens", "input_ids.{}_tokens"),
        ("blocks", "blocks.{}_blocks"),
        ("tokens dropped as remainders", "blocks.{}_remainder"),
    ]
    for label, key in rows:
        table.add_row(label, *(f"{record[key.format(part)]:,}" for part in ("train", "test")))
    counts = record["masked_batches.counts"]
    shares = " / ".join(f"{counts[kind] / max(counts['selected'], 1):.1%}" for kind in ("mask", "random", "unchanged"))
    table.add_row("tokens selected", f"{record['masked_batches.rate']:.2%}", "")
    table.add_row("  <mask> / random / unchanged", shares, "")
    return table


def _time_table(record: RunRecord) -> Table:
    table = _table("Time", "stage", "seconds")
    total = 0.0
    for stage in STAGES:
        seconds = record[f"{stage}.seconds"]
        total += seconds
        table.add_row(ACTIONS[stage], f"{seconds:.1f}")
    table.add_row("total", f"{total:.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        numeric = column in ("score", "seconds", "train", "test", "test blocks")
        table.add_column(column, justify="right" if numeric and position else "left", overflow="fold")
    return table


def _figure(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else str(value)
