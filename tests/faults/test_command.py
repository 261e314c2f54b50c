"""The command of the fault bench: what is printed and written, and what is said of bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mlmrepro.errors import UserError
from tests.faults import __main__ as command
from tests.faults import bench
from tests.faults.fault import all_faults
from tests.faults.result import Alarm, BenchResult, CaseResult


def test_the_bench_writes_its_table_and_fails_where_something_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table in JSON and Markdown, and no success where a fault was missed, all made of one result."""
    seen = CaseResult("rate", "masked_batches", "serious", "A story.", "masks", (Alarm("law", "masked_batches", "x"),))
    missed = dataclasses.replace(seen, name="tie", alarms=())
    result = BenchResult({"packages": {}}, [seen])
    monkeypatch.setattr(bench, "run_bench", lambda *args, **kwargs: result)
    assert command.measure([], tmp_path / "table", 1)
    assert "1 of 1 fault detected" in capsys.readouterr().out
    assert BenchResult.read(tmp_path / "table" / "detection.json") == result
    assert "| `rate` |" in (tmp_path / "table" / "detection.md").read_text()
    result.cases.append(missed)
    assert not command.measure(["masked_batches"], None, 1)
    assert "missed tie: A story." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "said"),
    [(["gremlin"], "no fault or control is named by 'gremlin'"), (["model"], "detection.json cannot be read")],
)
def test_bad_input_of_the_bench_has_a_remedy(names: list[str], said: str, tmp_path: Path) -> None:
    """An unknown name and a table that is not there are told from a fault that was missed."""
    with pytest.raises(UserError, match=f"{said}.*Remedy"):
        command.measure(names, tmp_path if names == ["model"] else None, 1)


def test_names_update_their_rows_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With names the other rows stay, and a table of other versions is refused rather than mixed."""
    names = [fault.name for fault in all_faults() if fault.stage == "masked_batches"][:2]
    first = CaseResult(names[0], "masked_batches", "serious", "A story.", "masks")
    kept = dataclasses.replace(first, name=names[1], alarms=(Alarm("law", "masked_batches", "x"),))
    table = tmp_path / "detection.json"
    told = {"packages": {"torch": "2.13.0"}, "laws": ["padding"]}
    BenchResult(told, [first, kept]).write(table)
    seen = dataclasses.replace(first, alarms=kept.alarms)
    monkeypatch.setattr(bench, "run_bench", lambda *a, **k: BenchResult(told, [seen]))
    assert command.measure(["masked_batches"], tmp_path, 1)
    assert BenchResult.read(table).cases == [seen, kept]
    before = table.read_bytes()
    monkeypatch.setattr(bench, "run_bench", lambda *a, **k: BenchResult({"packages": {"torch": "2.14.0"}}, [seen]))
    with pytest.raises(UserError, match="the table was made with other packages than this run"):
        command.measure(["masked_batches"], tmp_path, 1)
    assert table.read_bytes() == before
