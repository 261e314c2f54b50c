"""Commands for an upgrade from one lock file to another: gate and attribute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlmrepro.cli.drift import Goldens, JUnit, Markdown, tell_ci
from mlmrepro.cli.guide import Json

if TYPE_CHECKING:
    from mlmrepro.compare.changes import Comparison
    from mlmrepro.compare.drift import Outcome
    from mlmrepro.environments.attribute import Attribution
    from mlmrepro.environments.upgrade import Upgrade

__all__ = ["attribute", "gate"]

FOLDER = Path("mlmrepro-runs") / "gate"

_LOCK = "requirements.txt, pip freeze output, uv.lock, poetry.lock or pylock.toml; installed; or a name such as oldest"
Directory = Annotated[Path, typer.Option(help="Where to keep records and logs; a second run continues from them.")]


def gate(
    before: Annotated[str, typer.Option("--from", help=f"The versions of today: {_LOCK}.")],
    after: Annotated[str, typer.Option("--to", help="The versions of the upgrade, likewise.")],
    goldens: Goldens = None,
    budget: Annotated[
        float, typer.Option(min=0, help="If the gate is red, minutes to spend on finding the packages behind it.")
    ] = 0.0,
    directory: Directory = FOLDER,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page to this file.")] = None,
    as_json: Json = False,
    markdown: Markdown = False,
    junit: JUnit = None,
) -> None:
    """Judge an upgrade from one lock file to another: make both environments, record in each, and compare.

    Exits with 0 if every change is declared or an improvement, 1 for a regression or a value that was not measured,
    2 for bad input. Example: mlmrepro gate --from requirements.lock --to requirements.new --budget 30
    """
    from mlmrepro.compare.drift import Drift
    from mlmrepro.compare.judge import Verdict
    from mlmrepro.report.attribution_view import attribution_content, attribution_markdown, print_attribution
    from mlmrepro.report.ci import append_step_summary
    from mlmrepro.report.compare_view import comparison_markdown, print_comparison
    from mlmrepro.report.html import write_html

    with _upgrade(before, after, goldens, directory, quiet=as_json) as upgrade:
        outcome = upgrade.take()
    if html is not None:
        write_html(Drift([upgrade.before, outcome]), html)
    if outcome.record is None:
        _say_unmade(outcome, upgrade.notes, as_json=as_json)
        tell_ci({}, {outcome.name: outcome.problem}, junit, quiet=as_json or markdown)
        raise typer.Exit(int(Verdict.UNMEASURED.fails))
    comparison = upgrade.compare(outcome)
    if not as_json:  # before the search, which takes long
        print(comparison_markdown(comparison)) if markdown else print_comparison(comparison)
        _say(upgrade.notes, markdown=markdown)
    found = None
    if comparison.exit_code and budget:
        found = _search(upgrade, comparison, budget, only_failing=True, quiet=as_json)
    if as_json:
        searched = attribution_content(found, upgrade.packages) if found else None
        content = {**comparison.to_dict(), "notes": upgrade.notes, "attribution": searched}
        print(json.dumps(content, ensure_ascii=False))
    elif found:
        text = attribution_markdown(found, upgrade.packages) if markdown else ""
        print(text) if text else print_attribution(found, upgrade.packages)
    elif comparison.exit_code and not markdown:
        print(f"To find the packages behind it: mlmrepro attribute {before} {after}")
    tell_ci({outcome.name: comparison}, {}, junit, quiet=as_json or markdown)
    parts = [comparison_markdown(comparison), *([attribution_markdown(found, upgrade.packages)] if found else [])]
    append_step_summary(lambda: "\n\n".join(parts))
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
    from mlmrepro.report.attribution_view import attribution_content, attribution_markdown, print_attribution

    with _upgrade(before, after, goldens, directory, quiet=as_json) as upgrade:
        outcome = upgrade.take()
    if outcome.record is None:
        raise UserError(f"{after} cannot be measured: {outcome.problem}", remedy=f"read {outcome.log}")
    found = _search(upgrade, upgrade.compare(outcome), budget, only_failing=False, quiet=as_json)
    if as_json:
        content = {**attribution_content(found, upgrade.packages), "notes": upgrade.notes}
        print(json.dumps(content, ensure_ascii=False))
    elif markdown:
        print(attribution_markdown(found, upgrade.packages))
    else:
        _say(upgrade.notes)
        print_attribution(found, upgrade.packages)
    raise typer.Exit(int(not found.complete))


@contextmanager
def _upgrade(before: str, after: str, goldens: Path | None, directory: Path, *, quiet: bool) -> Iterator[Upgrade]:
    """Yield the upgrade while its progress is shown."""
    from mlmrepro.config import golden_directory
    from mlmrepro.environments.upgrade import Upgrade, lock_of
    from mlmrepro.report.progress import MatrixDisplay

    locks = lock_of(before), lock_of(after)
    with MatrixDisplay(quiet=quiet) as display:
        yield Upgrade(locks, directory, goldens=goldens or golden_directory(), progress=display)


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


def _say_unmade(outcome: Outcome, notes: list[str], *, as_json: bool) -> None:
    if as_json:
        content = {"obtained": outcome.name, "exit_code": 1, "problem": outcome.problem, "log": outcome.log}
        print(json.dumps({**content, "notes": notes}, ensure_ascii=False))
        return
    print(f"Not measured: {outcome.name}: {outcome.problem}" + (f" (log: {outcome.log})" if outcome.log else ""))
    _say(notes)


def _say(notes: list[str], *, markdown: bool = False) -> None:
    for note in notes:
        print(f"- note: {note}" if markdown else f"note: {note}")
