"""A checkpoint of the user's own: goldens that hold on a rerun, name what changed, and refuse other weights."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlmrepro import cli
from mlmrepro.compare.golden import Variant, read_golden
from mlmrepro.compare.judge import Expectations, Verdict, judge_record
from mlmrepro.config import golden_directory
from mlmrepro.errors import UserError
from mlmrepro.observations import adopt, golden_run
from mlmrepro.observations.registry import choose
from mlmrepro.record import STAGES, RunRecord

from . import held

# A few observations of each kind: all of them take half a minute.
SOME = ["better_than_guessing", "accumulation", "several", "edge_texts", "argument_names"]


@pytest.fixture(scope="module", autouse=True)
def few() -> object:
    """Make only some observations in this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden_run, "all_observers", lambda: choose(SOME))
        yield


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT, a text, and the goldens of both; nobody may change it."""
    folder = tmp_path_factory.mktemp("project")
    held.checkpoint("WordPiece", folder).rename(folder / "my-model")
    generator = torch.Generator().manual_seed(0)
    weights = load_file(folder / "my-model" / "model.safetensors")
    for name, weight in weights.items():  # far from a trained model, so that it is worse than guessing
        weights[name] = torch.randn(weight.shape, generator=generator) if weight.dim() > 1 else weight
    save_file(weights, folder / "my-model" / "model.safetensors", metadata={"format": "pt"})
    rows = [{"id": n, "body": text} for n, text in enumerate(held.texts()[:48])]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as exit_:
        cli.main(
            ["adopt", str(folder / "my-model"), "--text", str(folder / "eval.jsonl"), "-o", str(folder / "goldens")]
        )
    assert not exit_.value.code
    (folder / "printed.txt").write_text(out.getvalue(), encoding="utf-8")
    return folder


def copied(adopted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adopted, tmp_path / "moved"))


def record(folder: Path, name: str = "goldens") -> RunRecord:
    return golden_run.take_record(folder / name / "inputs", threads=1)


def verdicts(folder: Path, made: RunRecord) -> dict[str, Verdict]:
    findings = judge_record(Expectations.from_goldens(folder / "goldens"), made)
    return {f"{f.stage}.{f.name}": f.verdict for f in findings if f.verdict.is_change}


def test_the_goldens_are_complete_and_hold_no_weights(adopted: Path) -> None:
    """Each stage has its golden; paths of this machine and the weights are in none of the files."""
    files = {path.relative_to(adopted / "goldens").as_posix() for path in (adopted / "goldens").rglob("*.json")}
    assert files == {"subject.json", *(f"{stage}.json" for stage in STAGES)}
    assert sum(path.stat().st_size for path in (adopted / "goldens").rglob("*") if path.is_file()) < 500_000
    for path in (adopted / "goldens").rglob("*.json"):
        assert str(adopted) not in path.read_text(encoding="utf-8")
    names = [name for stage in STAGES for name in read_golden(adopted / "goldens" / f"{stage}.json").entries]
    for start in ("step_losses", "isolated.step_losses", "off_path.edge_texts.", "off_path.several."):
        assert any(name.startswith(start) for name in names)


def test_what_was_used_and_what_is_broken_is_said(adopted: Path) -> None:
    """The number of values, the column of the text, the sample, and the bounds that are broken from the start."""
    printed = (adopted / "printed.txt").read_text(encoding="utf-8")
    assert re.search(r"goldens: \d+ values", printed)
    assert "is in its column 'body'" in printed
    assert "the sample is the first 32 documents" in printed
    assert "already outside their bounds" in printed


def test_a_rerun_elsewhere_is_no_change(adopted: Path, tmp_path: Path) -> None:
    """Also where the project lies in another folder, with another number of threads, and with bounds that it breaks."""
    folder = copied(adopted, tmp_path)
    assert verdicts(folder, record(folder)) == {}
    broken = set(Expectations.from_goldens(folder / "goldens").broken)
    assert any(name.startswith("model.off_path.better_than_guessing.") for name in broken)  # the weights are random
    accepted = json.loads((folder / "goldens" / "model.json").read_text(encoding="utf-8"))
    assert set(accepted["provenance"]["broken"]) == broken


def test_another_tokenizer_is_named_as_the_first_change(adopted: Path, tmp_path: Path) -> None:
    """A tokenizer that no longer lowers letters changes the ids; that stage changed by itself."""
    folder = copied(adopted, tmp_path)
    path = folder / "my-model" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["normalizer"]["lowercase"] = True
    path.write_text(json.dumps(content), encoding="utf-8")
    found = verdicts(folder, record(folder))
    assert found["input_ids.isolated.columns"] is Verdict.REGRESSION
    assert not [name for name in found if name.startswith(("dataset.", "flatten."))]


def test_other_weights_are_refused(adopted: Path, tmp_path: Path) -> None:
    """The goldens are of these weights; a checkpoint that was moved away is bad input too."""
    folder = copied(adopted, tmp_path)
    weights = load_file(folder / "my-model" / "model.safetensors")
    weights["cls.predictions.bias"] += torch.ones(())
    save_file(weights, folder / "my-model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has other weights than those that"):
        record(folder)
    shutil.move(folder / "my-model", folder / "elsewhere")
    with pytest.raises(UserError, match="is not at"):
        record(folder)


def test_what_a_release_changes_for_every_checkpoint_is_declared(adopted: Path) -> None:
    """A value that is the embedded checkpoint's takes its variants; one of its own has none."""
    ours = read_golden(golden_directory() / "loss.json").entries
    theirs = read_golden(adopted / "goldens" / "loss.json").entries
    changed = [name for name, entry in ours.items() if "argument_names" in name and len(entry.variants) > 1]
    assert len(changed) > 5
    assert [theirs[name].variants for name in changed] == [ours[name].variants for name in changed]
    assert len(theirs["step_losses"].variants) == 1
    # BERT had SDPA attention before RoBERTa, whose golden says since when.
    attention = read_golden(adopted / "goldens" / "model.json").entries["attention"]
    assert len(read_golden(golden_directory() / "model.json").entries["attention"].variants) > 1
    assert len(attention.variants) == 1


def test_variants_of_other_versions_are_taken_only_where_they_hold_for_any_checkpoint(adopted: Path) -> None:
    """A value of its own takes the error of other versions; what another tokenizer gave there is not expected here."""
    ours = read_golden(golden_directory() / "masked_batches.json").entries["off_path.own_seed.draw"]
    own = dataclasses.replace(ours, variants=(Variant("own"),))
    versions = {"transformers": "5.23.0"}
    taken = adopt.with_variants(own, ours, versions, general=False)
    assert [v.value for v in taken.matching({"transformers": "4.48.3"})] == ["raises TypeError"]
    assert [v.value for v in taken.matching(versions)] == ["own"]
    built = read_golden(golden_directory() / "input_ids.json").entries["off_path.special_tokens.added_by_build"]
    here = dataclasses.replace(built, variants=(Variant(built.matching(versions)[0].value),))
    assert adopt.with_variants(here, built, versions, general=True) == built
    assert adopt.with_variants(here, built, versions, general=False) == here


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["my-model", "--text", "short.txt"], "0 documents of at least 6 words"),
        (["my-model", "--text", "some.txt"], "too few to train on"),
        (["my-model", "--text", "eval.jsonl", "--prompt", "no mask here"], "holds no mask token"),
        (["goldens/../my-model", "--text", "eval.jsonl", "-o", ".", "--overwrite"], "which is replaced"),
        (["my-model", "--text", "absent.txt"], "does not exist"),
        (["no-model/at/all", "--text", "eval.jsonl"], "does not exist"),
        (["my-model", "--text", "eval.jsonl", "-o", "goldens"], "exists already"),
        (["my-model", "--text", "eval.jsonl", "-o", "other", "--overwrite"], "is not the folder of an adopted"),
    ],
    ids=["short text", "little text", "no mask", "inside", "no text", "no model", "taken", "something else"],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    adopted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    """Exit 2, the problem and the remedy, and no file is written or lost."""
    folder = copied(adopted, tmp_path)
    (folder / "short.txt").write_text("A few words only.\n\nAnd a few more.\n", encoding="utf-8")
    (folder / "some.txt").write_text(
        "\n\n".join(f"This is document {n} of a short text." for n in range(6)), encoding="utf-8"
    )
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("something else", encoding="utf-8")
    monkeypatch.chdir(folder)
    before = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["adopt", *arguments, *(() if "-o" in arguments else ("-o", "new"))])
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Remedy: " in printed
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == before


def test_a_damaged_subject_is_named(tmp_path: Path) -> None:
    """The file and the remedy are given."""
    for content, said in (
        ({"schema": 9}, "its schema is 9"),
        ({"schema": 1}, "it lacks 'checkpoint'"),
        ({"schema": 1, "checkpoint": "m", "settings": [["block_sise", 1, ""]]}, "there is no setting 'block_sise'"),
    ):
        (tmp_path / "subject.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"subject\.json does not describe a checkpoint: {said}"):
            adopt.read_subject(tmp_path)
    adopt.check_free(tmp_path, overwrite=True)  # adopting again is the remedy


def test_a_failed_replacement_keeps_the_old_goldens(tmp_path: Path) -> None:
    """The new folder is not there to be moved: the old one is where it was."""
    (tmp_path / "goldens").mkdir()
    (tmp_path / "goldens" / "a").write_text("kept")
    with pytest.raises(OSError, match="absent"):
        adopt.replace_folder(tmp_path / "absent", tmp_path / "goldens")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]
    assert (tmp_path / "goldens" / "a").read_text() == "kept"


def test_pytest_takes_the_goldens(adopted: Path) -> None:
    """The adopted values are compared too, and a bound that was broken from the start is an xfail."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--mlm-observe=goldens", "-rx"]
    command += ["-k", "argument_names or edge_texts or better_than_guessing"]
    done = subprocess.run(command, cwd=adopted, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert "1 xfailed" in done.stdout
    assert "outside its bound since the checkpoint was adopted" in done.stdout
