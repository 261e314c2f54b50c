"""The command line of the fault bench."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlmrepro.cli.guide import offline_unless
from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write

DETECTION, TABLE, UPSTREAM = "detection.json", "detection.md", "upstream.md"


def main(
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
    jobs: Annotated[int, typer.Option(min=1, help="Cases at work at the same time.")] = os.cpu_count() or 1,
) -> None:
    """Measure the suite itself: plant each fault of the catalogue, run clean controls, and say what was seen.

    Exits with 0 where every fault is detected, 95 % of them at their stage, and no clean control raises an alarm;
    else with 1. Example: python -m tests.faults masked_batches 'seeds-*'
    """
    try:
        passes = measure(names or [], output, jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    raise typer.Exit(int(not passes))


def measure(names: list[str], output: Path | None, jobs: int) -> bool:
    """Run the named cases, print and write what was seen, and tell whether nothing was missed.

    Raises UserError for a name that nothing has, or a table in `output` that cannot be read.
    """
    offline_unless(False)
    from mlmrepro.guide import versions
    from mlmrepro.report.progress import CountDisplay
    from tests.faults.bench import case_names, choose, merged, run_bench
    from tests.faults.digests import stale
    from tests.faults.result import BenchResult, CaseResult
    from tests.faults.upstream import upstream_bugs
    from tests.faults.upstream_view import upstream_markdown
    from tests.faults.view import faults_markdown, outcome, print_faults

    versions.set_up()
    earlier = BenchResult.read(output / DETECTION) if output and names else None
    if "stale" in names:
        if earlier is None:
            raise UserError("stale needs the table whose rows are looked at", remedy="give its folder with --output")
        # A row whose fault is gone is left out of the table, and a fault without a row needs one.
        changed, rows = stale(earlier), {case.name for case in earlier.cases}
        names = [name for name in names if name != "stale"]
        names += [name for name in case_names() if name in changed or name not in rows]
        if not names:
            print(f"{output / DETECTION if output else ''}: every row measured the code of today")
            return True
    chosen, controls, records = choose(names)
    with CountDisplay(None) as display:

        def progress(case: CaseResult, done: int, total: int) -> None:
            display.done(case.name, done, total, outcome(case))

        result = run_bench(chosen, controls, versions=records, jobs=jobs, progress=progress)
    if earlier is not None:
        result = merged(earlier, result)
    if output is not None:
        result.write(output / DETECTION)
        atomic_write(output / TABLE, faults_markdown(result, limit=None))
        atomic_write(output / UPSTREAM, upstream_markdown(upstream_bugs(), result))
    print_faults(result)
    return result.passes


if __name__ == "__main__":
    typer.run(main)
