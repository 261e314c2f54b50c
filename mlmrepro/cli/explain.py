"""The command explain."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from mlmrepro.cli.goldens import Goldens, chosen_goldens
from mlmrepro.cli.output import Html, Json, Markdown, Output

__all__ = ["explain"]

RECORDS = Path("golden") / "matrix"


def explain(
    change: Annotated[str, typer.Argument(help="A value such as model.attention, the end of its name, or a pattern.")],
    goldens: Goldens = None,
    records: Annotated[
        Path | None, typer.Option(help="A folder of records, such as that of matrix (default: golden/matrix, if any).")
    ] = None,
    html: Html = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Say what is known of a value: where it is observed, what each version gives, and what is declared of it.

    Exits with 0, or 2 for bad input, such as an unknown name.
    Example: mlmrepro explain loss.isolated.learning_rates
    """
    from mlmrepro.compare.judge import Expectations
    from mlmrepro.environments.matrix import read_outcomes
    from mlmrepro.observations.registry import all_observers
    from mlmrepro.report.explanation import explain as known_of
    from mlmrepro.report.explanation import explanation_content, explanation_document

    folder = records or (RECORDS if RECORDS.is_dir() else None)
    outcomes = read_outcomes(folder) if folder else []
    expectations = Expectations.from_goldens(chosen_goldens(goldens))
    expectations = expectations.with_tests(outcome.record for outcome in outcomes if outcome.record is not None)
    sources = {}
    for each in all_observers():
        code = inspect.unwrap(each.look).__code__
        sources[each.key] = (each.claim, f"mlmrepro/observations/{Path(code.co_filename).name}:{code.co_firstlineno}")
    found = known_of(change, expectations, outcomes, sources)
    Output(as_json, markdown, html=html).write(explanation_document(found), explanation_content(found))
