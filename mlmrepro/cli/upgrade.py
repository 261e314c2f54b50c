"""Commands for an upgrade from one lock file to another: gate and attribute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlmrepro.cli.goldens import Goldens, chosen_goldens
from mlmrepro.cli.output import Html, Json, JUnit, Markdown, Output

if TYPE_CHECKING:
    from mlmrepro.compare.changes import Comparison
    from mlmrepro.environments.attribute import Attribution
    from mlmrepro.environments.upgrade import Behind, Upgrade

__all__ = ["attribute", "gate"]

FOLDER = Path("mlmrepro-runs") / "gate"

_LOCK = "requirements.txt, pip freeze output, uv.lock, poetry.lock or pylock.toml; installed; or a name such as oldest"
Directory = Annotated[Path, typer.Option(help="Where to keep records and logs; a second run continues from them.")]


def gate(
    before: Annotated[str, typer.Option("--from", help=f"The versions of today: {_LOCK}.")],
    after: Annotated[str, typer.Option("--to", help="The versions of the upgrade, likewise.")],
    goldens: Goldens = None,
    budget: Annotated[
        float,
        typer.Option(min=0, help="If the gate is red, minutes to find the packages and releases behind it."),
    ] = 0.0,
    directory: Directory = FOLDER,
    html: Html = None,
    as_json: Json = False,
    markdown: Markdown = False,
    junit: JUnit = None,
) -> None:
    """Judge an upgrade from one lock file to another: make both environments, record in each, and compare.

    Exits with 0 if every change is declared or an improvement, 1 for a regression or a value that was not measured,
    2 for bad input. Example: mlmrepro gate --from requirements.lock --to requirements.new --budget 30
    """
    from mlmrepro.compare.judge import Verdict
    from mlmrepro.report.attribution import attribution_content, attribution_document
    from mlmrepro.report.bisection import behind_content, behind_section
    from mlmrepro.report.comparison import comparison_document
    from mlmrepro.report.document import Section, sentence, spans
    from mlmrepro.report.drift import unmeasured_document

    output = Output(as_json, markdown, junit, html)
    with _upgrade(before, after, goldens, directory, quiet=as_json) as upgrade:
        outcome = upgrade.take()
    notes = [("note", note) for note in upgrade.notes]
    if outcome.record is None:
        content = {"obtained": outcome.name, "exit_code": 1, "problem": outcome.problem, "log": outcome.log}
        document = unmeasured_document(outcome)
        output.write(replace(document, facts=[*document.facts, *notes]), {**content, "notes": upgrade.notes})
        raise typer.Exit(int(Verdict.UNMEASURED.fails))
    comparison = upgrade.compare(outcome)
    document = comparison_document(comparison)
    document = replace(document, facts=[*document.facts, *notes])
    content = {**comparison.to_dict(), "notes": upgrade.notes, "attribution": None, "releases": None}
    if comparison.exit_code and budget:
        print(f"{document.headline}: looking for the causes (at most {budget:g} minutes)", file=sys.stderr)
        ends = time.monotonic() + budget * 60
        found = _search(upgrade, comparison, budget, only_failing=True, quiet=as_json)
        causes = attribution_document(found, upgrade.packages)
        sections = [Section(causes.headline, causes.blocks, name="causes")]
        content["attribution"] = attribution_content(found, upgrade.packages)
        behind = _releases(upgrade, found, ends - time.monotonic(), quiet=as_json)
        if behind.found or behind.notes:
            sections.append(behind_section(behind))
            content["releases"] = behind_content(behind)
        document = replace(document, blocks=[*document.blocks, *sections], next_step=causes.next_step)
    elif comparison.exit_code:
        more = sentence(f" To find the packages behind it: `mlmrepro attribute {before} {after}`.")
        document = replace(document, next_step=(*spans(document.next_step), *more))
    output.write(document, content)
    raise typer.Exit(comparison.exit_code)


def attribute(
    before: Annotated[str, typer.Argument(help=f"The versions of today: {_LOCK}.")],
    after: Annotated[str, typer.Argument(help="The versions of the upgrade, likewise.")],
    goldens: Goldens = None,
    budget: Annotated[float, typer.Option(min=0, help="Minutes after which no further environment is begun.")] = 60.0,
    directory: Directory = FOLDER,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Find which packages of an upgrade cause which changed value, by measuring mixtures of both lock files.

    A second run continues from what is stored. Exits with 0 if every change is explained, 1 if not, 2 for bad input.
    Example: mlmrepro attribute requirements.lock requirements.new --budget 120
    """
    from mlmrepro.errors import UserError
    from mlmrepro.report.attribution import attribution_content, attribution_document

    with _upgrade(before, after, goldens, directory, quiet=as_json) as upgrade:
        outcome = upgrade.take()
    if outcome.record is None:
        raise UserError(f"{after} cannot be measured: {outcome.problem}", remedy=f"read {outcome.log}")
    found = _search(upgrade, upgrade.compare(outcome), budget, only_failing=False, quiet=as_json)
    content = {**attribution_content(found, upgrade.packages), "notes": upgrade.notes}
    Output(as_json, markdown).write(attribution_document(found, upgrade.packages, upgrade.notes), content)
    raise typer.Exit(int(not found.complete))


@contextmanager
def _upgrade(before: str, after: str, goldens: Path | None, directory: Path, *, quiet: bool) -> Iterator[Upgrade]:
    """Yield the upgrade while its progress is shown."""
    from mlmrepro.environments.upgrade import Upgrade, lock_of
    from mlmrepro.report.progress import MatrixDisplay

    locks = lock_of(before), lock_of(after)
    with MatrixDisplay(quiet=quiet) as display:
        yield Upgrade(locks, directory, goldens=chosen_goldens(goldens), progress=display)


def _search(upgrade: Upgrade, comparison: Comparison, budget: float, *, only_failing: bool, quiet: bool) -> Attribution:
    from mlmrepro.environments.attribute import attribute
    from mlmrepro.report.progress import MatrixDisplay

    with MatrixDisplay(quiet=quiet) as upgrade.progress:
        return attribute(
            tuple(upgrade.packages),
            upgrade.measure,
            needs=upgrade.needs,
            recall=upgrade.recall,
            wanted=upgrade.wanted(comparison, only_failing=only_failing),
            seconds=budget * 60,
        )


def _releases(upgrade: Upgrade, found: Attribution, seconds: float, *, quiet: bool) -> Behind:
    from mlmrepro.environments.upgrade import releases_behind
    from mlmrepro.report.progress import MatrixDisplay

    with MatrixDisplay(quiet=quiet) as upgrade.progress:
        return releases_behind(upgrade, found, seconds)
