"""Commands about goldens: adopt, expect, lint; and which goldens and records a command uses."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlmrepro.cli.guide import say_unused
from mlmrepro.cli.output import Json, print_json
from mlmrepro.errors import UserError

__all__ = ["Goldens", "adopt", "chosen_goldens", "expect", "lint", "project_goldens", "read_record", "record_path"]

_DEFAULT = "goldens in the table tool.mlmrepro of pyproject.toml"  # brackets would be read as a style

Goldens = Annotated[
    Path | None, typer.Option(help=f"Folder of goldens (default: {_DEFAULT}, else golden/embedded, as shipped).")
]


def project_goldens(given: Path | None) -> Path | None:
    """Return the goldens that are given, else those of the project, None if it names none.

    Says on standard error if they are the project's. Raises UserError if its pyproject.toml is wrong.
    """
    from mlmrepro.pyproject import project

    found = None if given is not None else project()
    if found is None or found.goldens is None:
        return given
    print(f"goldens: {found.origin}", file=sys.stderr)
    return found.goldens


def chosen_goldens(given: Path | None, otherwise: Path | None = None) -> Path:
    """Return the goldens to use: as `project_goldens`, else the shipped ones or `otherwise`."""
    from mlmrepro.config import golden_directory

    return project_goldens(given) or otherwise or golden_directory()


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
    from mlmrepro.observations.adopt import cost
    from mlmrepro.report.progress import RunDisplay

    if not as_json:
        print(f"adopt {cost(path)}", file=sys.stderr)
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


def expect(
    name: Annotated[str, typer.Argument(help="STAGE.NAME as shown in a report; * matches any characters.")],
    when: Annotated[str, typer.Option(help="The versions with the new value, such as 'transformers>=5.0'.")],
    source: Annotated[Path, typer.Option("--from", help="A record that holds the new value.")],
    reason: Annotated[str, typer.Option(help="Why it changed, in one line.")],
    link: Annotated[str, typer.Option(help="Address of a page that documents the change.")],
    goldens: Annotated[
        Path | None, typer.Option(help=f"Folder of goldens to write to (default: {_DEFAULT}, else golden/embedded).")
    ] = None,
) -> None:
    """Declare an expected change: these versions get the record's value, all others keep the golden's.

    Example: mlmrepro expect model.attention --when 'transformers>=4.45' --from new.json --reason '...' --link https://...
    """
    from fnmatch import fnmatchcase

    from mlmrepro.compare.declare import declare
    from mlmrepro.compare.golden import Golden, read_golden, versions_of, write_golden
    from mlmrepro.compare.own_tests import golden_path
    from mlmrepro.record import TESTS

    taken = read_record(source)
    stage, _, pattern = name.partition(".")
    folder = Path() if stage == TESTS else chosen_goldens(goldens, Path("golden/embedded"))
    versions = versions_of(taken.provenance)
    shared = folder / f"{stage}.json"
    files: dict[Path, Golden] = {} if stage == TESTS else {shared: read_golden(shared)}
    found = []  # the file, the entry, and the record's value under its name
    for observed in taken:
        if observed.stage != stage or not observed.compared or not fnmatchcase(observed.name, pattern):
            continue
        key, _, entry = observed.name.partition("::") if stage == TESTS else (stage, "", observed.name)
        path = golden_path(taken, key) if stage == TESTS else shared
        golden = files.get(path) or files.setdefault(path, read_golden(path))
        if entry in golden.entries:
            found.append((golden, entry, observed))
    if not found:
        where = "the goldens of the tests" if stage == TESTS else str(shared)
        raise UserError(f"{where} and {source} do not both have {name!r}", remedy="copy the name from a report")
    changed = []
    for golden, entry, observed in found:
        try:
            new = declare(golden.entries[entry], when, observed.value, versions, reason=reason, link=link)
            golden.entries[entry] = new
            (variant,) = new.matching(versions)
            changed.append(f"{stage}.{observed.name}: expected for {' and '.join(variant.when)}")
        except UserError as error:
            if len(found) == 1 or "already" not in error.problem:  # a pattern may also match unchanged values
                raise
    if not changed:
        raise UserError(f"{source} has the values that are expected for {name!r}", remedy="there is nothing to declare")
    for path, golden in files.items():
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


def record_path(path: Path) -> Path | None:
    """Return the path of the record, None for a folder of goldens."""
    if path.is_dir():
        inside = path / "record.json"
        return inside if inside.is_file() else None
    return path


def read_record(path: Path) -> Any:
    """Read a record, or that of a run's folder; raises UserError if there is none."""
    from mlmrepro.record import RunRecord

    found = record_path(path)
    if found is None:
        raise UserError(f"the folder {path} has no record.json", remedy="give a record, or the folder of a run")
    return RunRecord.read(found)
