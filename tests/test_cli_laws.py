"""`mlmrepro laws`: what is printed, written and returned, and what is said of bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlmrepro import cli
from mlmrepro.config import EMBEDDED

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
    assert all(row["holds"] for law in laws for row in law["values"])
    assert all(law["values"] for law in laws)


def test_a_broken_checkpoint_names_law_numbers_and_cause(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight that is no number: a law finds it, with its numbers and likely cause, and the exit code is 1."""
    code, out, _ = main(capsys, "laws", broken, "--only", "checkpoint")
    assert code == 1
    assert "BROKEN" in out
    assert "likely cause: " in out
    assert " at most " in out or " exactly " in out
    code, out, _ = main(capsys, "laws", broken, "--only", "checkpoint", "--markdown")
    assert code == 1
    assert out.startswith("### ✗")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["laws", "no-such/folder/here"], "does not exist"),
        (["laws", "embedded", "--only", "gravity"], "there is no observation or group 'gravity'"),
        (["laws", "embedded", "--text", "absent.txt"], "the text absent.txt does not exist"),
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
    assert "is in its column 'body'" in " ".join(out.split())
    _, out, err = main(capsys, *arguments, "--json")
    assert isinstance(json.loads(out), list)
    assert f"note: the text of {path} is in its column 'body'" in err


def test_short_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two short lines are no text to measure laws on."""
    (tmp_path / "short.txt").write_text("One.\n\nTwo.\n")
    code, _, err = main(capsys, "laws", "embedded", "--text", tmp_path / "short.txt")
    assert code == 2
    assert "texts of at least 6 words, but 4 are needed" in err
