"""Commands that compare: record, compare, matrix, report. Only the first needs torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlmrepro.cli.goldens import Goldens, chosen_goldens, project_goldens, read_record, record_path
from mlmrepro.cli.guide import offline_unless
from mlmrepro.cli.output import Json, JUnit, Markdown, Output, print_json
from mlmrepro.errors import UserError, first_line

if TYPE_CHECKING:
    from mlmrepro.compare.drift import Drift, Outcome
    from mlmrepro.compare.judge import Expectations

__all__ = ["compare", "matrix", "record", "report"]

MATRIX = Path("mlmrepro-runs") / "matrix"

Tests = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEST",
        help="Your own tests, as pytest takes them: what they hold with the golden fixture is recorded; repeatable.",
    ),
]
Page = Annotated[Path | None, typer.Option(help="Where to write the HTML page (default: report.html in the folder).")]


def record(
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("record.json"),
    goldens: Goldens = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; records agree exactly only for the same number.")
    ] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="An off-path observation or a group of them; repeatable (default: all; an unknown name lists them)."
        ),
    ] = None,
    tests: Tests = None,
    as_json: Json = False,
) -> None:
    """Record what the installed versions do: the golden run, each stage in isolation, and off-path behaviour.

    The record says which observations it was asked for. Example: mlmrepro record --output today.json
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder", remedy="give --output a file")
    offline_unless(False)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the goldens were made on the CPU
    from mlmrepro.observations.golden_run import check_subject, take_record
    from mlmrepro.observations.own_tests import add_tests, check_tests
    from mlmrepro.observations.registry import choose
    from mlmrepro.record import write_unfinished
    from mlmrepro.report.progress import RunDisplay

    stored = chosen_goldens(goldens) / "inputs"
    observers = choose(only or [])
    check_subject(stored)
    check_tests(tests or [])
    write_unfinished(output, "it was killed")  # so that an old record is not mistaken for this run's
    try:
        with RunDisplay(quiet=as_json) as display:
            taken = take_record(stored, threads=threads, observers=observers, progress=display)
        if tests:
            print(add_tests(taken, tests), end="", file=sys.stderr)
    except BaseException as error:
        write_unfinished(output, f"{type(error).__name__}: {first_line(error)}")
        raise
    taken.write(output)
    if as_json:
        print_json(taken.to_dict())
    else:
        print(output)


def compare(
    reference: Annotated[Path, typer.Argument(help="The reference: a record, a run folder, or a folder of goldens.")],
    candidates: Annotated[list[Path], typer.Argument(help="Records or run folders to compare with it.")],
    goldens: Goldens = None,
    as_json: Json = False,
    markdown: Markdown = False,
    junit: JUnit = None,
) -> None:
    """Compare records: which stages changed by themselves, which inherited a change, and what was expected.

    Exits with 0 if every change is declared or an improvement, 1 for a regression or a value that was not measured,
    2 for bad input. Example: mlmrepro compare golden/embedded today.json
    """
    from mlmrepro.compare.drift import Outcome, compare_with
    from mlmrepro.compare.judge import Expectations
    from mlmrepro.report.comparison import comparison_document

    records = [read_record(path) for path in candidates]
    if record_path(reference):
        against, declared = Expectations.from_record(read_record(reference)), _declared(goldens)
        declared = declared and declared.with_tests(records)
    else:
        against, declared = Expectations.from_goldens(reference).with_tests(records), None
    outcomes = [Outcome(str(path), record) for path, record in zip(candidates, records, strict=True)]
    comparisons = [compare_with(against, str(reference), outcome, declared) for outcome in outcomes]
    output = Output(as_json, markdown, junit)
    output.write(comparison_document(comparisons), [comparison.to_dict() for comparison in comparisons])
    raise typer.Exit(max(comparison.exit_code for comparison in comparisons))


def matrix(
    envs: Annotated[
        list[str] | None,
        typer.Option(
            help="pairs, all, oldest, newest, a name, or e.g. 'transformers==4.50.0 datasets==3.5.0'; "
            "==latest is the newest release on the index, ==pre also counts pre-releases."
        ),
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where to write records, logs and the page.")] = MATRIX,
    jobs: Annotated[int, typer.Option(min=1, help="Environments to run at the same time.")] = 1,
    goldens: Goldens = None,
    tests: Tests = None,
    html: Page = None,
    as_json: Json = False,
    markdown: Markdown = False,
    junit: JUnit = None,
) -> None:
    """Make an environment for each pair of versions (default: pairs), record a run in it, and report on all of them.

    A version that cannot be installed or crashes is listed with the reason. To continue a killed matrix, run the same
    command again; with --tests it begins anew, for their code may have changed.
    Example: mlmrepro matrix --envs oldest --envs newest --jobs 2
    """
    from mlmrepro.environments.matrix import run_matrix
    from mlmrepro.environments.releases import with_newest
    from mlmrepro.environments.spec import parse_environments
    from mlmrepro.observations.own_tests import check_tests
    from mlmrepro.report.progress import MatrixDisplay

    asked = [with_newest(text) for text in envs or ["pairs"]]
    for note in dict.fromkeys(note for _, notes in asked for note in notes):
        print(f"note: {note}", file=sys.stderr)
    chosen = parse_environments(text for text, _ in asked)
    check_tests(tests or [])
    used = chosen_goldens(goldens)
    with MatrixDisplay(quiet=as_json) as display:
        outcomes = run_matrix(chosen, directory, jobs=jobs, goldens=used, progress=display, tests=tests or ())
    _report(outcomes, used, html or directory / "report.html", Output(as_json, markdown, junit))


def report(
    directory: Annotated[
        Path, typer.Argument(help="A folder of records, such as the one that matrix writes.")
    ] = MATRIX,
    envs: Annotated[
        list[str] | None, typer.Option(help="Environments that must have a record, named as for matrix.")
    ] = None,
    goldens: Goldens = None,
    html: Page = None,
    as_json: Json = False,
    markdown: Markdown = False,
    junit: JUnit = None,
) -> None:
    """Combine the records of many versions in one page: what changed, in which stage, since which version.

    Example: mlmrepro report mlmrepro-runs/matrix --html drift.html
    """
    from mlmrepro.compare.drift import Outcome
    from mlmrepro.environments.matrix import read_outcomes
    from mlmrepro.environments.spec import parse_environments

    outcomes = read_outcomes(directory)
    found = {outcome.name for outcome in outcomes}
    outcomes += [
        Outcome(environment.name, None, "there is no record: the environment was not made or not run")
        for environment in (parse_environments(envs) if envs else [])
        if environment.name not in found
    ]
    _report(outcomes, chosen_goldens(goldens), html or directory / "report.html", Output(as_json, markdown, junit))


def _report(outcomes: Sequence[Outcome], goldens: Path, page: Path, output: Output) -> None:
    from mlmrepro.compare.drift import Drift
    from mlmrepro.report.drift import drift_document

    drift = Drift(outcomes, goldens)
    output = replace(output, html=page)
    output.write(drift_document(drift), _drift_content(drift, page))
    if not output.quiet:
        print(f"page  {page}")
    raise typer.Exit(drift.exit_code)


def _drift_content(drift: Drift, html: Path) -> dict[str, Any]:
    return {
        "verdict": drift.verdict.value,
        "exit_code": drift.exit_code,
        "page": str(html),
        "environments": [
            {"name": o.name, "problem": o.problem, "log": o.log, "versions": o.versions} for o in drift.outcomes
        ],
        "against_goldens": {name: comparison.to_dict() for name, comparison in drift.comparisons.items()},
        "steps": [{**step.comparison.to_dict(), "packages": step.packages} for step in drift.steps],
        "variations": [{**step.comparison.to_dict(), "packages": step.packages} for step in drift.variations],
    }


def _declared(goldens: Path | None) -> Expectations | None:
    """Return the goldens that declare expected changes, None if none are shipped or given."""
    from mlmrepro.compare.judge import Expectations
    from mlmrepro.config import golden_directory

    chosen = project_goldens(goldens)
    if chosen is not None:
        return Expectations.from_goldens(chosen)
    try:
        return Expectations.from_goldens(golden_directory())
    except UserError:
        return None
