"""What a test sees of a golden: a method for each lane, and a whole stage of a record at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlmrepro import provenance
from mlmrepro.compare.golden import read_golden
from mlmrepro.compare.store import GoldenFile, GoldenMismatch, GoldenStore, Update, file_key
from mlmrepro.compare.tolerance import QUANTITIES, Tolerance
from mlmrepro.errors import UserError
from mlmrepro.record import Lane, RunRecord

ROWS = [{"token": 7, "score": 0.5}, {"token": 8, "score": 0.2}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "golden"


def make_file(folder: Path, update: Update = "", test: str = "") -> GoldenFile:
    return GoldenFile(GoldenStore(folder, update), "f.json", test)


def test_every_method_is_its_lane(folder: Path) -> None:
    """Each method of a golden file compares, and writes, in its lane with its tolerance."""
    for update in ("new", ""):
        golden = make_file(folder, update)
        golden.exact("ids", [1, 2])
        golden.approximate("loss", 2.0, quantity="nats")
        golden.approximate("angle", 2.0, quantity="degrees", atol=1, reason="test")
        golden.approximate("zero", 2.0, quantity="nats", reason="no difference at all")
        golden.ranking("top", ROWS, tie_band=0.01, reason="test")
        golden.statistical("perplexity", 50.0, rtol=0.1, reason="test")
    golden.approximate("loss", 2.00009, quantity="nats")
    golden.approximate("angle", 2.9, quantity="degrees", atol=1, reason="test")
    golden.ranking("top", [ROWS[0], ROWS[1] | {"score": 0.209}], tie_band=0.01, reason="test")
    golden.statistical("perplexity", 54.9, rtol=0.1, reason="test")
    for name, call in {
        "ids": lambda: golden.exact("ids", [2, 1]),
        "loss": lambda: golden.approximate("loss", 2.00011, quantity="nats"),
        "angle": lambda: golden.approximate("angle", 3.1, quantity="degrees", atol=1, reason="test"),
        "zero": lambda: golden.approximate("zero", 2.00005, quantity="nats", reason="no difference at all"),
        "top": lambda: golden.ranking("top", ROWS[::-1], tie_band=0.01, reason="test"),
        "perplexity": lambda: golden.statistical("perplexity", 56.0, rtol=0.1, reason="test"),
    }.items():
        with pytest.raises(GoldenMismatch, match=f"'{name}': REGRESSION"):
            call()
    entries = read_golden(folder / "f.json").entries
    assert [entry.lane for entry in entries.values()] == [
        Lane.EXACT,
        *[Lane.APPROXIMATE] * 3,
        Lane.RANKING,
        Lane.STATISTICAL,
    ]
    assert entries["loss"].tolerance == QUANTITIES["nats"]
    assert entries["perplexity"].better == "lower"
    assert entries["perplexity"].tolerance == Tolerance("perplexity", rtol=0.1, reason="test")
    assert entries["top"].tolerance == Tolerance("probability", atol=0.01, reason="test")


def test_a_tolerance_of_ones_own_needs_its_reason(folder: Path) -> None:
    """No number without why, and no quantity alone that was never measured."""
    golden = make_file(folder)
    with pytest.raises(ValueError, match="a quantity and a reason"):
        golden.approximate("x", 1.0, quantity="nats", atol=0.5)
    with pytest.raises(UserError, match="degrees"):
        golden.approximate("x", 1.0, quantity="degrees")
    assert not folder.exists()


def a_record(**values: Any) -> RunRecord:
    record = RunRecord({}, {"profile": "embedded"})
    for name, value in values.items():
        lane, quantity = {
            "loss": (Lane.APPROXIMATE, ""),
            "norm": (Lane.APPROXIMATE, "norm"),
            "perplexity": (Lane.STATISTICAL, ""),
            "seconds": (Lane.INFO, ""),
        }.get(name, (Lane.EXACT, ""))
        record.observe("evaluation", name, value, lane, quantity)
    return record


WHOLE = {"steps": 18, "loss": 4.0, "norm": 100.0, "perplexity": 50.0}


def test_a_stage_is_checked_whole(folder: Path) -> None:
    """All of a stage but what is only shown, with measured tolerances; every mismatch is in the one message."""
    make_file(folder, "new").stage(a_record(**WHOLE, seconds=1.0), "evaluation", "embedded")
    entries = read_golden(folder / "embedded" / "evaluation.json").entries
    assert [(name, entry.tolerance) for name, entry in entries.items()] == [
        ("steps", None),
        ("loss", QUANTITIES["nats"]),
        ("norm", QUANTITIES["norm"]),
        ("perplexity", QUANTITIES["perplexity"]),
    ]
    assert entries["perplexity"].better == "lower"
    store = GoldenStore(folder)
    golden = GoldenFile(store, "f.json", "tests/test_x.py::test[a b]")
    golden.stage(a_record(**WHOLE | {"loss": 4.00009, "seconds": 2.0}), "evaluation", "embedded")
    assert store.used == {("embedded/evaluation.json", name) for name in WHOLE}
    bad = a_record(steps=17, loss=4.1, perplexity=50.0, new=1)
    with pytest.raises(GoldenMismatch) as error:
        golden.stage(bad, "evaluation", "embedded")
    heads = [problem.splitlines()[0].partition("evaluation.json: ")[2] for problem in error.value.problems]
    assert heads == [
        "'steps': REGRESSION",
        "'loss': REGRESSION",
        "'new': there was no golden; this one was written: the next run compares with it; "
        "--golden-update=new writes all missing ones at once",
        "'norm': expected, not obtained",
    ]
    assert all(problem in str(error.value) for problem in error.value.problems)
    assert "    pytest 'tests/test_x.py::test[a b]' --golden-update\n" in str(error.value)
    make_file(folder, "all").stage(bad, "evaluation", "embedded")
    make_file(folder).stage(bad, "evaluation", "embedded")


def test_the_header_of_a_stage_has_the_settings_of_its_run(folder: Path) -> None:
    """What a run was set to is beside the versions, in the goldens of its stages and in no other."""
    golden = make_file(folder, "new")
    golden.stage(a_record(steps=18), "evaluation")
    golden.exact("x", 1)
    assert read_golden(folder / "evaluation.json").provenance["config"] == {"profile": "embedded"}
    assert not {"config", "commit", "guide"} & set(read_golden(folder / "f.json").provenance)


def test_the_same_values_from_another_commit_are_of_that_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updating a stage writes where it comes from now, though nothing in it changed; checking writes nothing."""
    make_file(folder, "new").stage(a_record(steps=18), "evaluation")
    made = provenance.collect()
    monkeypatch.setattr(provenance, "collect", lambda: made | {"commit": {"id": "0123", "dirty": False}})
    make_file(folder).stage(a_record(steps=18), "evaluation")
    assert read_golden(folder / "evaluation.json").provenance["commit"] != {"id": "0123", "dirty": False}
    make_file(folder, "all").stage(a_record(steps=18), "evaluation")
    assert read_golden(folder / "evaluation.json").provenance["commit"] == {"id": "0123", "dirty": False}


@pytest.mark.parametrize("update", ["", "new", "all"])
def test_an_empty_stage_never_passes(folder: Path, update: Update) -> None:
    """A stage that a record does not have fails, with a golden and without one, and the golden stays."""
    golden = make_file(folder, update)
    for record in (RunRecord({}, {}), a_record(seconds=1.0)):
        with pytest.raises(GoldenMismatch, match="nothing for the stage 'evaluation'"):
            golden.stage(record, "evaluation")
    make_file(folder, "new").file("evaluation").exact("steps", 18)
    with pytest.raises(GoldenMismatch, match="nothing for the stage"):
        golden.stage(RunRecord({}, {}), "evaluation")
    make_file(folder).file("evaluation").exact("steps", 18)


def test_what_was_not_checked_is_told(folder: Path) -> None:
    """Entries of this file that no check reached are named with the test; those of other files are not its own."""
    for name in ("steps", "loss"):
        make_file(folder, "new").exact(name, 1)
        make_file(folder, "new").file("shared").exact(name, 1)
    golden = make_file(folder, test="tests/test_x.py::test")
    golden.exact("steps", 1)
    golden.file("shared").exact("steps", 1)
    text = golden.unchecked()
    assert text.startswith(f"{folder}/f.json: 'loss': expected, not obtained\n\nIs this a regression?")
    assert "pytest tests/test_x.py::test --golden-update" in text
    golden.exact("loss", 1)
    assert golden.unchecked() == ""


def test_a_file_has_one_name_with_or_without_its_suffix(folder: Path) -> None:
    """``loss`` and ``loss.json`` are one golden."""
    make_file(folder, "new").file("below/loss").exact("x", 1)
    make_file(folder).file("below/loss.json").exact("x", 1)
    assert (folder / "below" / "loss.json").is_file()


def test_every_mismatch_gives_the_command_of_its_test(folder: Path) -> None:
    """Whatever fails, of this file, of a shared one or of a stage, the command that updates it is told."""
    for name, command in (("tests/test_x.py::test", "pytest tests/test_x.py::test"), ("", "pytest ...")):
        golden = make_file(folder, test=name) if name else GoldenFile(GoldenStore(folder), "f.json")
        for call in (
            lambda golden=golden: golden.exact("x", 1),
            lambda golden=golden: golden.file("shared").exact("x", 1),
            lambda golden=golden: golden.stage(RunRecord({}, {}), "evaluation"),
            lambda golden=golden: golden.stage(a_record(steps=18), "evaluation"),
        ):
            with pytest.raises(GoldenMismatch) as error:
                call()
            assert f"    {command} --golden-update\n" in str(error.value)
        for path in folder.glob("*.json"):
            path.unlink()


def test_a_message_shows_as_much_as_is_allowed(folder: Path) -> None:
    """Ten differences and 300 characters are shown whole; one more of either is counted."""
    for name, value in (("ten", list(range(10))), ("text", "x" * 298), ("longer", "x" * 299)):
        make_file(folder, "new").exact(name, value)
    golden = make_file(folder)
    with pytest.raises(GoldenMismatch) as error:
        golden.exact("ten", list(range(1, 11)))
    assert "  [9]: expected 9, obtained 10 (differs by +1)\n\nIs this" in str(error.value)
    for name, shown in (("text", repr("x" * 298)), ("longer", f"'{'x' * 299}… (301 characters)")):
        with pytest.raises(GoldenMismatch) as error:
            golden.exact(name, "y")
        assert f"  expected: {shown}\n" in str(error.value)


def test_what_a_run_has_replaced_is_compared_too(folder: Path) -> None:
    """Two tests that disagree about one entry are no update, also where the entry was there before."""
    make_file(folder, "new").exact("x", 0)
    golden = make_file(folder, "all")
    golden.exact("x", 1)
    with pytest.raises(GoldenMismatch, match="'x': REGRESSION"):
        golden.exact("x", 2)
    assert read_golden(folder / "f.json").entries["x"].variants[0].value == 1


def test_a_folder_is_never_taken_for_a_file(folder: Path) -> None:
    """A folder whose name ends as a golden's file does gets another name; slashes are folders, spaces none."""
    assert file_key("a") == "a.json"
    assert file_key("a.json", "b").startswith("a.json~")
    with pytest.raises(GoldenMismatch):
        GoldenStore(folder).check("below/loss", "x", 1, Lane.EXACT)
    assert (folder / "below" / "loss.json").is_file()


def test_a_value_that_is_never_written_is_shown(folder: Path) -> None:
    """The message says what it is that agrees with nothing."""
    with pytest.raises(GoldenMismatch) as error:
        make_file(folder, "new").approximate("x", [1.0, math.inf], quantity="nats")
    (problem,) = error.value.problems
    where = f"{folder}/f.json: 'x': not written: it can never match, such as NaN"
    assert problem == f"{where}\n  obtained: [1.0, inf]"
