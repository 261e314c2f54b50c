"""The record: read as it was written, refused when it is damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mlmrepro import provenance
from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write
from mlmrepro.record import Bound, Lane, Part, RunRecord, write_unfinished

pytestmark = pytest.mark.quick


def a_record() -> RunRecord:
    record = RunRecord({"python": "3"}, {"profile": "embedded"})
    record.observe("loss", "step_losses", [1.5, math.nan, math.inf], Lane.APPROXIMATE)
    record.observe("dataset", "train_rows", 3, Lane.EXACT)
    record.observe("dataset", "seconds", 0.1, Lane.INFO)
    return record


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Values, lanes and even numbers that JSON has no word for survive; the file is strict JSON."""
    path = tmp_path / "record.json"
    a_record().write(path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    read = RunRecord.read(path)
    assert read.to_dict() == a_record().to_dict()
    assert math.isnan(read["loss.step_losses"][1])
    assert math.isinf(read["loss.step_losses"][2])


def test_results_are_all_that_a_rerun_must_repeat() -> None:
    """Observations come in the order of the stages; times are no results."""
    assert list(a_record().results()) == ["dataset.train_rows", "loss.step_losses"]


def test_an_observation_is_written_once() -> None:
    """A second value under one name, and a stage that does not exist, are errors of ours."""
    record = a_record()
    with pytest.raises(KeyError, match="twice"):
        record.observe("dataset", "train_rows", 4, Lane.EXACT)
    with pytest.raises(KeyError, match="nowhere"):
        record.observe("nowhere", "x", 1, Lane.EXACT)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"schema": 1', "not a complete record"),
        ("[]", "not a complete record"),
        ('{"schema": 2, "provenance": {}, "config": {}, "stages": {"x": {"y": {}}}}', "not a complete record"),
        ('{"schema": 99}', "schema 99"),
    ],
)
def test_a_damaged_record_is_bad_input(tmp_path: Path, content: str, problem: str) -> None:
    """A truncated or foreign file is refused with its path; so is an absent one."""
    path = tmp_path / "record.json"
    with pytest.raises(UserError, match="cannot be read"):
        RunRecord.read(path)
    path.write_text(content)
    with pytest.raises(UserError, match=problem):
        RunRecord.read(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that breaks off leaves the old content and no temporary file."""
    path = tmp_path / "x.json"
    atomic_write(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlmrepro.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_provenance_names_what_decides_a_result() -> None:
    """Versions, platform, device and threads are in it, and it is plain JSON."""
    content = provenance.collect()
    assert content["packages"]["transformers"].count(".") == 2
    assert content["device"]["type"] in ("cpu", "cuda")
    assert json.loads(json.dumps(content)) == content


@pytest.mark.parametrize(
    "change",
    [{"config": None}, {"provenance": []}, {"provenance": {"packages": None}}, {"stages": {"bogus": {}}}],
)
def test_a_record_of_another_form_is_bad_input(tmp_path: Path, change: dict[str, Any]) -> None:
    """What a comparison would stumble over is refused when it is read; so is a stage of another version."""
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"schema": 2, "provenance": {}, "config": {}, "stages": {}} | change))
    with pytest.raises(UserError, match="not a complete record"):
        RunRecord.read(path)


def test_an_unfinished_run_says_so_in_the_records_place(tmp_path: Path) -> None:
    """The reason is what reading it as a record gives."""
    path = tmp_path / "record.json"
    write_unfinished(path, "RuntimeError: boom")
    with pytest.raises(UserError, match="did not finish: RuntimeError: boom"):
        RunRecord.read(path)


def test_a_record_of_schema_2_is_read_under_todays_names(tmp_path: Path) -> None:
    """Its parts and some observations had other names, and it was asked for the observations that it has."""
    old = {
        "schema": 2,
        "provenance": {"packages": {"transformers": "5.23.0"}},
        "config": {},
        "stages": {
            "model": {
                "alone.loss": {"lane": "approximate", "quantity": "nats", "value": 4.1},
                "beside.attention.default": {"lane": "exact", "value": "sdpa"},
                "beside.warnings": {"lane": "info", "value": ["x"]},
                "beside.tied_weights.biases": {"lane": "exact", "value": True},
                "beside.accumulation.step_over_wanted": {"lane": "approximate", "quantity": "ratio", "value": 1.0},
                "attention": {"lane": "exact", "value": "sdpa"},
            }
        },
    }
    path = tmp_path / "record.json"
    path.write_text(json.dumps(old))
    read = RunRecord.read(path)
    names = {o.name: o.part for o in read}
    assert names == {
        "isolated.loss": Part.ISOLATED,
        "off_path.attention.default": Part.OFF_PATH,
        "off_path.warnings": Part.OFF_PATH,
        "off_path.tied_after_loading.biases": Part.OFF_PATH,
        "attention": Part.FLOW,
    }
    assert read.asked == {"model.attention": "", "model.tied_after_loading": ""}
    read.write(path)
    assert RunRecord.read(path) == read


@pytest.mark.parametrize(
    "bound",
    [
        *(Bound(equals=wanted) for wanted in ("", "x", False, True, 0, 0.0)),
        Bound(at_most=0.0, reason="why"),
        Bound(at_least=-math.inf, at_most=1),
        Bound(),
    ],
    ids=repr,
)
def test_a_bound_is_read_as_it_was_written(tmp_path: Path, bound: Bound) -> None:
    """Also one that is empty text, false or 0: a bound that is lost would hold for any value."""
    made = RunRecord({"packages": {}}, {}, asked={})
    made.observe("model", "off_path.a.b", "anything", Lane.BOUND, bound=bound)
    made.write(tmp_path / "record.json")
    (read,) = RunRecord.read(tmp_path / "record.json")
    assert read.bound == bound
    assert bool(read.bound) == bool(bound)
    assert read.bound.holds("anything") == bound.holds("anything")


def test_a_limit_that_is_no_number_is_bad_input(tmp_path: Path) -> None:
    """It is found when the record is read, not when it is judged."""
    content = a_record().to_dict()
    content["stages"]["model"] = {"off_path.a.b": {"lane": "bound", "bound": {"at_most": "x"}, "value": 1}}
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="are not numbers"):
        RunRecord.read(tmp_path / "record.json")
