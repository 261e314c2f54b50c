"""Upstream's bugs: each is linked, and is caught by a golden of an affected version or by a faithful injection."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mlmrepro.compare.declare import known_breaches
from mlmrepro.compare.golden import read_golden
from mlmrepro.config import golden_directory
from mlmrepro.record import STAGES
from tests.faults.fault import all_faults
from tests.faults.result import BenchResult
from tests.faults.upstream import Bug, upstream_bugs
from tests.faults.upstream_view import caught_by, upstream_markdown

FOLDER = Path(__file__).parents[2] / "golden" / "faults"
BUGS = upstream_bugs()


@pytest.fixture(scope="module")
def table() -> BenchResult:
    return BenchResult.read(FOLDER / "detection.json")


def test_there_are_at_least_25_and_each_has_its_own_link() -> None:
    """Real ones: an address of the project's issues, pull requests or releases, and none is counted twice."""
    assert sum(bug.evidence != "outside" for bug in BUGS) >= 25
    assert len({bug.id for bug in BUGS}) == len(BUGS)
    assert all(bug.link.startswith("https://") for bug in BUGS)
    for bug in BUGS:
        assert bug.stage in STAGES
        assert bug.symptom.endswith(".")
        assert bug.affected


@pytest.mark.parametrize("bug", [b for b in BUGS if b.evidence == "record"], ids=lambda bug: bug.id)
def test_a_recorded_bug_is_declared(bug: Bug) -> None:
    """By a known breach of a bound, or a golden that differs between versions, or holds what none has mended yet."""
    stage, _, name = bug.caught_by.partition(".")
    assert stage == bug.stage
    if any(known.name == bug.caught_by.replace("off_path.", "") for known in known_breaches()):
        return
    entry = read_golden(golden_directory() / f"{stage}.json").entries[name]
    assert len(entry.variants) > 1 or not bug.fixed


@pytest.mark.parametrize("bug", [b for b in BUGS if b.evidence == "injection"], ids=lambda bug: bug.id)
def test_an_injected_bug_was_detected(bug: Bug, table: BenchResult) -> None:
    """The catalogue plants it, the bench saw it, and something is named that catches it."""
    planted = {fault.name: fault for fault in all_faults()}[f"upstream_{bug.id}"]
    assert planted.stage == bug.stage
    assert caught_by(bug, table)


def test_what_is_not_covered_says_why() -> None:
    """A bug is shown by a record or an injection, or it is said that nothing here uses what it lies in."""
    assert {bug.evidence for bug in BUGS} <= {"record", "injection", "outside"}
    assert all(bool(bug.why) == (bug.evidence == "outside") for bug in BUGS)


def test_a_bug_that_nothing_catches_is_seen(table: BenchResult) -> None:
    """The checks above can fail: an injection that was not run is caught by nothing."""
    (bug, *_) = (b for b in BUGS if b.evidence == "injection")
    assert caught_by(dataclasses.replace(bug, id="never_planted"), table) == ""


def test_the_table_is_made_of_the_list(table: BenchResult) -> None:
    """What is read on the repository's page is what is listed and was measured."""
    assert (FOLDER / "upstream.md").read_text(encoding="utf-8") == upstream_markdown(BUGS, table)
