"""The baseline's folder: whole or not at all, and nothing in it can change unseen."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlmrepro.errors import UserError
from mlmrepro.retraining.baseline import MANIFEST, Baseline
from mlmrepro.retraining.check import make_baseline
from mlmrepro.scores import Scores
from mlmrepro.scoring.documents import Text
from mlmrepro.scoring.filling import Probe
from mlmrepro.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def made(checkpoint: Callable[..., str], text: Text) -> Baseline:
    probes = [Probe("Water is <mask>.", "wet")]
    return make_baseline(Scorer.load(checkpoint()), text, checkpoint="old", probes=probes)


@pytest.fixture
def folder(made: Baseline, tmp_path: Path) -> Path:
    made.write(tmp_path / "b")
    return tmp_path / "b"


def test_what_is_written_is_read(made: Baseline, folder: Path) -> None:
    """Documents, ids, every score, the mask plan, probes and settings come back as they were."""
    read = Baseline.read(folder)
    assert read.documents == made.documents
    assert read.probes == made.probes
    assert read.settings == json.loads(json.dumps(made.settings))
    assert all(np.array_equal(a, b) for a, b in zip(read.ids, made.ids, strict=True))
    for name in [f.name for f in dataclasses.fields(Scores)]:
        assert np.array_equal(getattr(read.tokens, name), getattr(made.tokens, name))
        assert np.array_equal(getattr(read.words, name), getattr(made.words, name))
    assert np.array_equal(read.token_draws, made.token_draws)
    assert np.array_equal(read.word_draws, made.word_draws)


def test_equal_baselines_are_equal_files(made: Baseline, folder: Path, tmp_path: Path) -> None:
    """Nothing of the time or place goes into the folder, so that git shows what changed."""
    made.write(tmp_path / "c")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes()


def test_every_token_and_word_is_masked_once(made: Baseline, text: Text) -> None:
    """The default plan holds each token exactly once, and each word."""
    assert len(made.tokens) == sum(map(len, made.ids))
    assert len({*zip(made.words.document.tolist(), made.words.position.tolist(), strict=True)}) == len(made.words)
    assert len(made.words) > 0.95 * sum(len(document.text.split()) for document in text.documents)


def _manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


def _edit_perplexity(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["about"]["perplexity"] = 1.0
    (folder / MANIFEST).write_text(json.dumps(content))


def _truncate(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def _edit_text(folder: Path) -> None:
    path = folder / "documents.jsonl"
    path.write_text(path.read_text().replace("the", "teh", 1))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / MANIFEST).unlink(), "holds no baseline"),
        (lambda folder: _manifest(folder, schema=0), "schema 0, but this version reads schema 1"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "truncated, damaged or edited"),
        (_edit_perplexity, "its checksum differs"),
        (lambda folder: _manifest(folder, settings={}), "its checksum differs"),
        (_truncate(MANIFEST), "truncated"),
        (_truncate("scores.safetensors"), "scores.safetensors is truncated"),
        (_edit_text, "documents.jsonl is truncated, damaged or edited"),
        (lambda folder: (folder / "scores.safetensors").unlink(), "No such file"),
    ],
)
def test_a_damaged_baseline_is_refused(folder: Path, damage: Callable[[Path], None], problem: str) -> None:
    """Absent, of another schema, edited or truncated: named with the file and a remedy, never used."""
    damage(folder)
    with pytest.raises(UserError, match=problem) as error:
        Baseline.read(folder)
    assert str(folder) in error.value.problem
    assert error.value.remedy


def test_what_is_there_is_kept(made: Baseline, folder: Path, tmp_path: Path) -> None:
    """A baseline is replaced only on demand, and anything else never."""
    with pytest.raises(UserError, match="already holds a baseline"):
        made.write(folder)
    made.write(folder, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(UserError, match="something other than a baseline"):
        made.write(tmp_path / "mine", overwrite=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
    (folder / "notes.md").write_text("mine")
    with pytest.raises(UserError, match="something other than a baseline"):
        made.write(folder, overwrite=True)
    assert (folder / "notes.md").read_text() == "mine"


def test_behind_a_link_the_folder_is_replaced(made: Baseline, folder: Path, tmp_path: Path) -> None:
    """A link to a baseline stays a link, and what it leads to is the new one."""
    (tmp_path / "link").symlink_to(folder)
    (folder / "baseline.json").write_text("old")
    made.write(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    Baseline.read(folder)


@pytest.mark.parametrize("after", [0, 1])
def test_a_failure_while_replacing_keeps_the_old_one(
    made: Baseline, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whichever rename fails, the old baseline is whole and nothing lies beside it."""
    real, calls = os.replace, []

    def fail(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == after + 1:
            raise OSError("no room")
        real(*paths)

    monkeypatch.setattr("mlmrepro.retraining.baseline.os.replace", fail)
    with pytest.raises(OSError, match="no room"):
        made.write(folder, overwrite=True)
    Baseline.read(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["b"]
