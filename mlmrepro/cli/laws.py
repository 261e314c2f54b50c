"""Commands that need no golden: laws, and the bench that measures the whole suite: faults."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlmrepro.cli.gate import Checkpoint, Column, Threads, check_targets, prepared
from mlmrepro.cli.guide import Json, offline_unless, say_unused
from mlmrepro.errors import UserError

__all__ = ["faults", "laws"]


def laws(
    checkpoint: Checkpoint,
    only: Annotated[
        list[str] | None, typer.Option(help="A law or a group of laws; repeatable (default: all of them).")
    ] = None,
    text: Annotated[
        str, typer.Option(help="Text of the checkpoint's own language (default: embedded, which is English).")
    ] = "embedded",
    text_column: Column = None,
    seed: Annotated[int, typer.Option(help="Seed of what the laws draw.")] = 0,
    threads: Threads = None,
    numbers: Annotated[bool, typer.Option("--numbers", help="Print what every law measured.")] = False,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML to this file.")] = None,
) -> None:
    """Hold a checkpoint and the installed libraries against what must hold for every one of them.

    Exits with 0 where every law holds, or is broken as declared for these versions; 1 where one is broken or could
    not be measured; 2 for bad input. Example: mlmrepro laws my-model --text eval.jsonl
    """
    check_targets(junit, beside=[Path(checkpoint)])
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the laws' bounds are of the processor
    path = prepared(checkpoint, threads)
    say_unused(path)
    from mlmrepro.laws.run import choose, run_laws, sample_and_notes
    from mlmrepro.report.ci import append_step_summary
    from mlmrepro.report.laws_view import LawsDisplay, laws_junit, laws_markdown, print_laws

    chosen = choose(only or [])
    texts, notes = sample_and_notes(text, column=text_column)
    with LawsDisplay(len(chosen), quiet=as_json or markdown) as display:
        results = run_laws(path, texts, laws=chosen, seed=seed, progress=lambda law: display(law.name))
    if as_json:
        print(json.dumps([result.to_dict() for result in results], ensure_ascii=False))
        for note in notes:  # the list holds laws only
            print(f"note: {note}", file=sys.stderr)
    elif markdown:
        print(laws_markdown(results, notes=notes))
    else:
        print_laws(results, numbers=numbers, notes=notes)
    if junit:
        laws_junit(results, junit, checkpoint, notes=notes)
    append_step_summary(lambda: laws_markdown(results, notes=notes))
    raise typer.Exit(int(any(result.verdict.fails for result in results)))


def faults(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Faults, stages, parts, controls, versions; * stands for any letters; stale: the rows of the table in "
            "--output whose code has changed since, and those it lacks (default: all)."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the detection table to this folder (default: none).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cases at work at the same time.")] = os.cpu_count() or 1,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
) -> None:
    """Measure the suite itself: plant each fault of the catalogue, run clean controls, and say what was seen.

    Exits with 0 where every fault is detected, 95 % of them at their stage, and no clean control raises an alarm;
    else with 1. Example: mlmrepro faults masked_batches 'seeds-*' --html faults.html
    """
    check_targets(html, output / DETECTION if output else None, beside=[])
    offline_unless(False)
    from mlmrepro.faults.bench import case_names, choose, merged, run_bench
    from mlmrepro.faults.digests import stale
    from mlmrepro.faults.result import BenchResult
    from mlmrepro.guide import versions
    from mlmrepro.report.faults_html import write_faults_html
    from mlmrepro.report.faults_view import FaultsDisplay, faults_markdown, print_faults

    versions.set_up()
    earlier = BenchResult.read(output / DETECTION) if output and names else None
    if "stale" in (names or []):
        if earlier is None:
            raise UserError("stale needs the table whose rows are looked at", remedy="give its folder with --output")
        # A row whose fault is gone is left out of the table, and a fault without a row needs one.
        changed, rows = stale(earlier), {case.name for case in earlier.cases}
        names = [name for name in names or [] if name != "stale"]
        names += [name for name in case_names() if name in changed or name not in rows]
        if not names:
            print(f"{output / DETECTION if output else ''}: every row measured the code of today")
            raise typer.Exit(0)
    chosen, controls, records = choose(names or [])
    with FaultsDisplay(quiet=as_json or markdown) as display:
        result = run_bench(chosen, controls, versions=records, jobs=jobs, progress=display)
    if earlier is not None:
        result = merged(earlier, result)
    if output is not None:
        from mlmrepro.faults.upstream import upstream_bugs
        from mlmrepro.files import atomic_write
        from mlmrepro.report.upstream_view import upstream_markdown

        result.write(output / DETECTION)
        atomic_write(output / TABLE, faults_markdown(result, limit=None))
        atomic_write(output / UPSTREAM, upstream_markdown(upstream_bugs(), result))
    if html is not None:
        write_faults_html(result, html)
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
    elif markdown:
        print(faults_markdown(result))
    else:
        print_faults(result)
    raise typer.Exit(int(not result.passes))


DETECTION, TABLE, UPSTREAM = "detection.json", "detection.md", "upstream.md"
