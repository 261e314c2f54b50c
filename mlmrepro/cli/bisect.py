"""The command bisect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlmrepro.cli.goldens import Goldens, chosen_goldens
from mlmrepro.cli.output import Html, Json, Markdown, Output
from mlmrepro.errors import UserError

if TYPE_CHECKING:
    from packaging.version import Version

__all__ = ["bisect"]

FOLDER = Path("mlmrepro-runs") / "bisect"


def bisect(
    package: Annotated[str, typer.Argument(help="The package, such as transformers, datasets, tokenizers or torch.")],
    first: Annotated[str, typer.Argument(help="A release with the old value.")],
    last: Annotated[str, typer.Argument(help="A later release with the new value.")],
    command: Annotated[
        list[str] | None, typer.Argument(help="After --: watch the exit code of this command instead of a record.")
    ] = None,
    watch: Annotated[
        list[str] | None,
        typer.Option(
            help="A value, such as model.isolated.logits; * matches any characters (default: the first change)."
        ),
    ] = None,
    fixed: Annotated[
        list[str] | None, typer.Option("--with", help="Another package's version, such as datasets==4.4.2; repeatable.")
    ] = None,
    pre: Annotated[bool, typer.Option("--pre", help="Also try pre-releases.")] = False,
    yanked: Annotated[bool, typer.Option("--yanked", help="Also try releases that were withdrawn (yanked).")] = False,
    goldens: Goldens = None,
    directory: Annotated[Path, typer.Option(help="Where to keep records and logs; a later search uses them.")] = FOLDER,
    html: Html = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Find the release of a package that changed a value of the record, or the outcome of a command.

    A release that cannot be installed or measured is skipped, never blamed. To continue a killed search, run the same
    command again. Exits with 0 if each change was found, 1 if nothing changed, 2 for bad input.

    Examples: mlmrepro bisect transformers 4.57.6 5.23.0 --watch 'loss.*' ; mlmrepro bisect datasets 2.19.2 4.4.2 --
    pytest tests/test_x.py
    """
    from packaging.utils import canonicalize_name

    from mlmrepro.environments.bisect import Measure
    from mlmrepro.environments.bisect import bisect as search
    from mlmrepro.environments.releases import between, releases
    from mlmrepro.environments.spec import parse_exact
    from mlmrepro.environments.trials import Commands, Records
    from mlmrepro.report.bisection import bisection_content, bisection_document, step_line
    from mlmrepro.report.progress import StepDisplay

    name = canonicalize_name(package)
    old, new = _version(first), _version(last)
    if not old < new:
        raise UserError(f"{first} is not older than {last}", remedy="give the older release first")
    if command and watch:
        raise UserError("--watch and a command are given", remedy="give one of them")
    companions = parse_exact(fixed or [])
    if name in companions:
        raise UserError(f"--with {name}: it is the package that is searched", remedy="leave it out")
    found, note = releases(name)
    chosen = between(found, old, new, pre=pre, yanked=yanked)
    measure: Measure = Commands(command, name, directory) if command else Records(directory, chosen_goldens(goldens))
    with StepDisplay(step_line, quiet=as_json) as display:
        result = search(name, chosen, measure, watch=watch or [], fixed=companions, progress=display)
    if note:
        print(f"note: {note}", file=sys.stderr)
    Output(as_json, markdown, html=html).write(bisection_document(result), bisection_content(result))
    raise typer.Exit(int(not result.found))


def _version(text: str) -> Version:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(text)
    except InvalidVersion:
        raise UserError(f"{text!r} is not a version", remedy="write one such as 4.57.6") from None
