"""`mlmrepro laws` and `mlmrepro faults`: what is printed, written and returned, and what is said of bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlmrepro import cli
from mlmrepro.config import EMBEDDED
from mlmrepro.faults import bench
from mlmrepro.faults.fault import all_faults
from mlmrepro.faults.result import Alarm, BenchResult, CaseResult

CHECKPOINT = EMBEDDED / "checkpoint"


def main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a copy of the embedded checkpoint of which one weight is no number."""
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "broken"))
    tensors = load_file(folder / "model.safetensors")
    tensors["roberta.encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_embedded_checkpoint_keeps_a_group_of_laws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, one line, JSON with every number, and JUnit with a case for each law."""
    code, out, _ = main(capsys, "laws", "embedded", "--only", "steps", "--junit", tmp_path / "laws.xml")
    assert code == 0
    assert " laws hold" in out
    assert "<testcase" in (tmp_path / "laws.xml").read_text()
    code, out, _ = main(capsys, "laws", "embedded", "--only", "steps", "--json")
    laws = json.loads(out)
    assert code == 0
    assert {law["verdict"] for law in laws} == {"holds"}
    assert all(row["holds"] for law in laws for row in law["measured"])
    assert all(law["measured"] for law in laws)


def test_a_broken_checkpoint_names_law_numbers_and_cause(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight that is no number: a law finds it, with its numbers and likely cause, and the exit code is 1."""
    code, out, _ = main(capsys, "laws", broken, "--only", "checkpoint")
    assert code == 1
    assert "BROKEN" in out
    assert "Likely cause: " in out
    assert " at most " in out or " exactly " in out
    code, out, _ = main(capsys, "laws", broken, "--only", "checkpoint", "--markdown")
    assert code == 1
    assert out.startswith("### ✗")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["laws", "no-such/folder/here"], "does not exist"),
        (["laws", "embedded", "--only", "gravity"], "there is no law or group 'gravity'"),
        (["laws", "embedded", "--text", "absent.txt"], "the text absent.txt does not exist"),
        (["faults", "gremlin"], "no fault or control is named by 'gremlin'"),
        (["faults", "model", "--output", "somewhere"], "somewhere/detection.json cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, what is wrong and the remedy on standard error, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, err = main(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Remedy: " in err
    assert list(tmp_path.iterdir()) == []


def test_the_column_of_the_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Laws on a table name the column that they took; as JSON is a list of laws, next to it on standard error."""
    rows = [{"id": n, "body": f"The keeper wrote the number {n} into his book."} for n in range(6)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("laws", "embedded", "--only", "saving_twice", "--text", path)
    _, out, _ = main(capsys, *arguments)
    assert "is its column 'body'" in " ".join(out.split())
    _, out, err = main(capsys, *arguments, "--json")
    assert isinstance(json.loads(out), list)
    assert f"note: the text of {path} is its column 'body'" in err


def test_short_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two short lines are no text to measure laws on."""
    (tmp_path / "short.txt").write_text("One.\n\nTwo.\n")
    code, _, err = main(capsys, "laws", "embedded", "--text", tmp_path / "short.txt")
    assert code == 2
    assert "the laws need 4 texts of 6 words, here are 0" in err


def test_faults_writes_table_and_page_and_fails_where_something_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table in JSON and Markdown, the page, and exit 1 where a fault was missed, all made of one result."""
    seen = CaseResult("rate", "masked_batches", "serious", "A story.", "masks", (Alarm("law", "masked_batches", "x"),))
    missed = dataclasses.replace(seen, name="tie", alarms=())
    result = BenchResult({"packages": {}}, [seen])
    monkeypatch.setattr(bench, "run_bench", lambda *args, **kwargs: result)
    code, out, _ = main(capsys, "faults", "--output", tmp_path / "table", "--html", tmp_path / "page.html")
    assert code == 0
    assert "1 of 1 fault detected" in out
    assert BenchResult.read(tmp_path / "table" / "detection.json") == result
    assert "| `rate` |" in (tmp_path / "table" / "detection.md").read_text()
    assert "1 of 1 fault detected" in (tmp_path / "page.html").read_text()
    result.cases.append(missed)
    code, out, _ = main(capsys, "faults", "masked_batches", "--json")
    assert code == 1
    assert [case["name"] for case in json.loads(out)["cases"]] == ["rate", "tie"]
    assert main(capsys, "faults", "masked_batches", "--markdown")[1].startswith("### ✗ 1 of 2 faults")


def test_names_update_their_rows_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With names the other rows stay, and a table of other versions is refused rather than mixed."""
    names = [fault.name for fault in all_faults() if fault.stage == "masked_batches"][:2]
    first = CaseResult(names[0], "masked_batches", "serious", "A story.", "masks")
    kept = dataclasses.replace(first, name=names[1], alarms=(Alarm("law", "masked_batches", "x"),))
    table = tmp_path / "detection.json"
    told = {"packages": {"torch": "2.13.0"}, "laws": ["padding"]}
    BenchResult(told, [first, kept]).write(table)
    seen = dataclasses.replace(first, alarms=kept.alarms)
    monkeypatch.setattr(bench, "run_bench", lambda *a, **k: BenchResult(told, [seen]))
    assert main(capsys, "faults", "masked_batches", "--output", tmp_path)[0] == 0
    assert BenchResult.read(table).cases == [seen, kept]
    before = table.read_bytes()
    monkeypatch.setattr(bench, "run_bench", lambda *a, **k: BenchResult({"packages": {"torch": "2.14.0"}}, [seen]))
    code, _, err = main(capsys, "faults", "masked_batches", "--output", tmp_path)
    assert code == 2
    assert "the table was made with other packages than this run" in err
    assert table.read_bytes() == before
