"""The records of the real matrix: everything that differs is declared, and what is planted in one is still found."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlmrepro.compare.bounds import breaches
from mlmrepro.compare.drift import Drift, Outcome, compare_with
from mlmrepro.compare.judge import Expectations, Verdict
from mlmrepro.config import golden_directory
from mlmrepro.environments.matrix import read_outcomes
from mlmrepro.environments.spec import catalogue
from mlmrepro.record import STAGES, Part, RunRecord

GOLDENS = golden_directory()
MATRIX = Path(__file__).parents[2] / "golden" / "matrix"
OUTCOMES = read_outcomes(MATRIX)


def record(name: str) -> RunRecord:
    (found,) = [outcome.record for outcome in OUTCOMES if outcome.name == name]
    assert found is not None
    return copy.deepcopy(found)


def shifted(value: Any) -> Any:
    """Return another value of the same form."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return [shifted(item) for item in value] or [1]
    if isinstance(value, dict):
        return {key: shifted(item) for key, item in value.items()} or {"x": 1}
    return "x"


def plant(into: RunRecord, stage: str) -> None:
    """Change a stage on its path and on its stored input, and the path of all stages after it.

    Each perplexity stays exp of its loss: another one would be a second fault.
    """
    for later in STAGES[STAGES.index(stage) :]:
        for name, observation in into.stages[later].items():
            wanted = (Part.FLOW, Part.ISOLATED) if later == stage else (Part.FLOW,)
            if observation.part in wanted and observation.lane.value != "info":
                into.stages[later][name] = replace(observation, value=shifted(observation.value))
    evaluation = into.stages["evaluation"]
    for breach in breaches({("evaluation", name): each.value for name, each in evaluation.items()}):
        value = evaluation[breach.name].value
        place = breach.difference.place.strip("[']")
        value = value | {place: breach.difference.expected} if place else breach.difference.expected
        evaluation[breach.name] = replace(evaluation[breach.name], value=value)


def test_every_environment_of_the_catalogue_has_its_record() -> None:
    """The committed matrix is whole."""
    names = {environment.name for environment in (*catalogue().pairs, *catalogue().variations)}
    assert {outcome.name for outcome in OUTCOMES} == names


@pytest.mark.quick
def test_everything_that_differs_is_declared() -> None:
    """The gate is open, every step's changes are expected ones, each with a reason, a link and its package."""
    drift = Drift(OUTCOMES, GOLDENS)
    assert drift.verdict is Verdict.EXPECTED
    changes = [change for step in drift.steps for change in step.comparison.changes]
    assert len(changes) > 12
    assert all(change.verdict is Verdict.EXPECTED and change.reason and change.link for change in changes)
    assert {change.stage for change in changes} == set(STAGES) - {"fill_mask"}  # which only follows from the model
    assert [(c.stage, c.follows) for c in changes if c.follows] == [("model", ("fill_mask",))] * 2


def test_without_the_goldens_a_step_is_a_regression() -> None:
    """The same records with nothing declared: the gate is shut."""
    assert Drift(OUTCOMES).exit_code == 1


def test_the_variations_tell_which_package_is_behind() -> None:
    """What one package changes is attributed to it, for both of them."""
    drift = Drift(OUTCOMES, GOLDENS)
    assert drift.packages_behind("dataset", "off_path.column_access.type") == ("datasets",)
    assert drift.packages_behind("model", "attention") == ("transformers",)


@pytest.mark.parametrize("name", ["t4.41.2-d2.19.2", "t4.44.2-d2.21.0", "t4.57.6-d4.4.2", "t5.23.0-d5.2.0"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_planted_change_is_one_regression_beside_any_declared_ones(name: str, stage: str) -> None:
    """In a version with declared changes, too, a planted one fails at its stage, once, and hides behind nothing."""
    planted = record(name)
    plant(planted, stage)
    made = compare_with(Expectations.from_goldens(GOLDENS), "goldens", Outcome(name, planted))
    failing = [change for change in made.changes if change.verdict.fails]
    assert [(change.stage, change.by_itself, change.reason) for change in failing] == [(stage, True, "")]
    assert set(failing[0].follows) == set(STAGES[STAGES.index(stage) + 1 :])
    assert made.first_divergence is not None
    assert made.first_divergence.stage == stage
