"""Commands that compare: record, adopt, compare, matrix, report, expect, lint. Only the first two need torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlmrepro.cli.guide import offline_unless, say_unused
from mlmrepro.cli.output import Json, JUnit, Markdown, Output, print_json
from mlmrepro.errors import UserError, first_line

if TYPE_CHECKING:
    from mlmrepro.compare.drift import Drift, Outcome
    from mlmrepro.compare.judge import Expectations

__all__ = ["adopt", "compare", "expect", "lint", "matrix", "record", "report"]

MATRIX = Path("mlmrepro-runs") / "matrix"

Goldens = Annotated[Path | None, typer.Option(help="Folder of goldens (default: golden/embedded, as shipped).")]
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
    as_json: Json = False,
) -> None:
    """Record what the installed versions do: the golden run, each stage in isolation, and off-path behaviour.

    The record says which observations it was asked for. Example: mlmrepro record --output today.json
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder", remedy="give --output a file")
    offline_unless(False)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the goldens were made on the CPU
    from mlmrepro.config import golden_directory
    from mlmrepro.observations.golden_run import check_subject, take_record
    from mlmrepro.observations.registry import choose
    from mlmrepro.record import write_unfinished
    from mlmrepro.report.progress import RunDisplay

    stored = (goldens or golden_directory()) / "inputs"
    observers = choose(only or [])
    check_subject(stored)
    write_unfinished(output, "it was killed")  # so that an old record is not mistaken for this run's
    try:
        with RunDisplay(quiet=as_json) as display:
            taken = take_record(stored, threads=threads, observers=observers, progress=display)
    except BaseException as error:
        write_unfinished(output, f"{type(error).__name__}: {first_line(error)}")
        raise
    taken.write(output)
    if as_json:
        print_json(taken.to_dict())
    else:
        print(output)


def adopt(
    checkpoint: Annotated[str, typer.Argument(help="A folder with your checkpoint, or a hub name.")],
    text: Annotated[str, typer.Option(help="Your text: .jsonl, .csv, .parquet, .txt, or a folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write, such as golden/my-model.")],
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A sentence with <mask> (default: the text's beginning).")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads, of this and later records.")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace goldens of an adopted checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Take goldens of your own checkpoint: what it gives on your text under the versions that are installed now.

    record, matrix, compare, report and expect take the folder with --goldens, and pytest with --mlm-observe. It holds a
    sample of the text and no weights. Example: mlmrepro adopt my-model --text eval.jsonl -o golden/my-model
    """
    from mlmrepro.cli.gate import prepared

    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # goldens are of the CPU
    path = prepared(checkpoint, threads)
    say_unused(path)
    from mlmrepro.observations import golden_run
    from mlmrepro.report.progress import RunDisplay

    with RunDisplay(quiet=as_json) as display:
        count, notes = golden_run.adopt(
            path,
            text,
            output,
            threads=threads,
            overwrite=overwrite,
            progress=display,
            column=text_column,
            prompt=prompt,
        )
    if as_json:
        print_json({"goldens": str(output), "values": count, "notes": notes})
        return
    print(f"{output}: {count:,} values")
    for note in notes:
        print(f"note: {note}")


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

    if _record_path(reference):
        against, declared = Expectations.from_record(_read(reference)), _declared(goldens)
    else:
        against, declared = Expectations.from_goldens(reference), None
    outcomes = [Outcome(str(path), _read(path)) for path in candidates]
    comparisons = [compare_with(against, str(reference), outcome, declared) for outcome in outcomes]
    output = Output(as_json, markdown, junit)
    output.write(comparison_document(comparisons), [comparison.to_dict() for comparison in comparisons])
    raise typer.Exit(max(comparison.exit_code for comparison in comparisons))


def matrix(
    envs: Annotated[
        list[str] | None,
        typer.Option(help="pairs, all, oldest, newest, a name, or e.g. 'transformers==4.50.0 datasets==3.5.0'."),
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where to write records, logs and the page.")] = MATRIX,
    jobs: Annotated[int, typer.Option(min=1, help="Environments to run at the same time.")] = 1,
    goldens: Goldens = None,
    html: Page = None,
    as_json: Json = False,
    markdown: Markdown = False,
    junit: JUnit = None,
) -> None:
    """Make an environment for each pair of versions (default: pairs), record a run in it, and report on all of them.

    A version that cannot be installed or crashes is listed with the reason. To continue a killed matrix, run the same
    command again. Example: mlmrepro matrix --envs oldest --envs newest --jobs 2
    """
    from mlmrepro.config import golden_directory
    from mlmrepro.environments.matrix import run_matrix
    from mlmrepro.environments.spec import parse_environments
    from mlmrepro.report.progress import MatrixDisplay

    chosen = parse_environments(envs or ["pairs"])
    used = goldens or golden_directory()
    with MatrixDisplay(quiet=as_json) as display:
        outcomes = run_matrix(chosen, directory, jobs=jobs, goldens=used, progress=display)
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
    from mlmrepro.config import golden_directory
    from mlmrepro.environments.matrix import read_outcomes
    from mlmrepro.environments.spec import parse_environments

    outcomes = read_outcomes(directory)
    found = {outcome.name for outcome in outcomes}
    outcomes += [
        Outcome(environment.name, None, "there is no record: the environment was not made or not run")
        for environment in (parse_environments(envs) if envs else [])
        if environment.name not in found
    ]
    _report(
        outcomes, goldens or golden_directory(), html or directory / "report.html", Output(as_json, markdown, junit)
    )


def expect(
    name: Annotated[str, typer.Argument(help="STAGE.NAME as shown in a report; * matches any characters.")],
    when: Annotated[str, typer.Option(help="The versions with the new value, such as 'transformers>=5.0'.")],
    source: Annotated[Path, typer.Option("--from", help="A record that holds the new value.")],
    reason: Annotated[str, typer.Option(help="Why it changed, in one line.")],
    link: Annotated[str, typer.Option(help="Address of a page that documents the change.")],
    goldens: Annotated[Path, typer.Option(help="Folder of goldens to write to.")] = Path("golden/embedded"),
) -> None:
    """Declare an expected change: these versions get the record's value, all others keep the golden's.

    Example: mlmrepro expect model.attention --when 'transformers>=4.45' --from new.json --reason '...' --link https://...
    """
    from fnmatch import fnmatchcase

    from mlmrepro.compare.declare import declare
    from mlmrepro.compare.golden import read_golden, versions_of, write_golden

    taken = _read(source)
    versions = versions_of(taken.provenance)
    stage, _, pattern = name.partition(".")
    path = goldens / f"{stage}.json"
    golden = read_golden(path)
    obtained = {o.name: o.value for o in taken if o.stage == stage}
    names = [each for each in golden.entries if fnmatchcase(each, pattern) and each in obtained]
    if not names:
        raise UserError(f"{path} and {source} do not both have {name!r}", remedy="copy the name from a report")
    changed = []
    for each in names:
        entry = golden.entries[each]
        try:
            golden.entries[each] = declare(entry, when, obtained[each], versions, reason=reason, link=link)
            (variant,) = golden.entries[each].matching(versions)
            changed.append(f"{stage}.{each}: expected for {' and '.join(variant.when)}")
        except UserError as error:
            if len(names) == 1 or "already" not in error.problem:  # a pattern may also match unchanged values
                raise
    if not changed:
        raise UserError(f"{source} and {path} have the same value for {name!r}", remedy="there is nothing to declare")
    write_golden(path, golden)
    print("\n".join(changed))


def lint(
    places: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders of goldens, records and tables (default: golden).")
    ] = None,
) -> None:
    """Check committed goldens, records and tables: valid entries, and a clean commit, version and source for each.

    Exits with 0 if nothing is wrong, 1 with a line for each problem, 2 for bad input. Example: mlmrepro lint golden
    """
    from mlmrepro.compare.lint import lint_all

    problems, counts, others = lint_all(places or [Path("golden")])
    for problem in problems:
        print(problem)
    looked = ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in counts.items() if count)
    found = f"{len(problems)} problem{'s' * (len(problems) != 1)}" if problems else "nothing is wrong"
    print(f"{looked}: {found}" + (f"; not checked: {len(others)} other JSON" if others else ""))
    raise typer.Exit(int(bool(problems)))


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

    if goldens is not None:
        return Expectations.from_goldens(goldens)
    try:
        return Expectations.from_goldens(golden_directory())
    except UserError:
        return None


def _record_path(path: Path) -> Path | None:
    """Return the path of the record, None for a folder of goldens."""
    if path.is_dir():
        inside = path / "record.json"
        return inside if inside.is_file() else None
    return path


def _read(path: Path) -> Any:
    from mlmrepro.record import RunRecord

    found = _record_path(path)
    if found is None:
        raise UserError(f"the folder {path} has no record.json", remedy="give a record, or the folder of a run")
    return RunRecord.read(found)
