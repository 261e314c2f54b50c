"""The committed detection table: it is of this catalogue, it passes, and its pages are made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mlmrepro.faults.conditions import all_controls
from mlmrepro.faults.fault import all_faults
from mlmrepro.faults.result import BenchResult, CaseResult, Score
from mlmrepro.laws.law import all_laws
from mlmrepro.report.faults_view import faults_markdown

FOLDER = Path(__file__).parents[2] / "golden" / "faults"


@pytest.fixture(scope="module")
def committed() -> BenchResult:
    return BenchResult.read(FOLDER / "detection.json")


def problems(result: BenchResult) -> list[str]:
    """Return what keeps the table from being that of this version."""
    found = []
    wanted = {f.name: (f.stage, f.severity.value, f.part, f.required) for f in all_faults()}
    held = {c.name: (c.stage, c.severity, c.part, c.required) for c in result.cases if not c.is_control}
    found += [f"{name} is not in the table, or another one" for name in wanted if wanted[name] != held.get(name)]
    found += [f"{name} is not in the catalogue" for name in held if name not in wanted]
    runs = {control.name for control in all_controls()}
    runs |= {path.stem for path in (FOLDER.parent / "matrix").glob("*.json")}
    found += [f"the control {name} was not run" for name in sorted(runs - {c.name for c in result.controls})]
    found += [f"the law {law.name} was not held" for law in all_laws() if law.name not in result.provenance["laws"]]
    if not result.passes:
        found.append("it does not pass")
    return found


def test_the_table_is_of_this_catalogue_and_passes(committed: BenchResult) -> None:
    """Every fault, control and law of this version was run; nothing was missed, and nothing raised a false alarm."""
    assert problems(committed) == []


def test_a_stale_or_failing_table_is_seen(committed: BenchResult) -> None:
    """The check above can fail: a fault left out, one of another stage, one missed, a false alarm."""
    cases = committed.cases

    def changed(*replaced: CaseResult, drop: str = "") -> list[str]:
        by_name = {case.name: case for case in replaced}
        kept = [by_name.get(case.name, case) for case in cases if case.name != drop]
        return problems(BenchResult(committed.provenance, kept))

    fault, control = committed.faults[0], committed.controls[-1]
    assert changed(drop=fault.name) != []
    assert changed(drop=control.name) != []
    assert changed(dataclasses.replace(fault, severity="none")) != []
    assert changed(dataclasses.replace(fault, alarms=())) == ["it does not pass"]
    assert changed(dataclasses.replace(control, alarms=fault.alarms)) == ["it does not pass"]


def test_the_figures_that_were_promised(committed: BenchResult) -> None:
    """At least 80 faults and 100 clean controls, all detected, 95 % at their stage, no alarm; later faults apart."""
    score, later = Score.of(committed.faults), Score.of(committed.later)
    assert score.faults >= 80
    assert score.detected == score.faults
    assert score.placed >= 0.95 * score.faults
    assert len(committed.controls) >= 100
    assert committed.false_alarms == []
    assert later.faults >= 20
    assert all(seen for seen, _ in committed.by_layer([*committed.faults, *committed.later]).values())


def test_the_markdown_is_made_of_the_table(committed: BenchResult) -> None:
    """What is read on the repository's page is what was measured."""
    assert (FOLDER / "detection.md").read_text(encoding="utf-8") == faults_markdown(committed, limit=None)
