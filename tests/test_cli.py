"""The command line: what it prints, and one clear line with exit code 2 for every bad input."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaModel

from mlmrepro import cli
from mlmrepro.cli import guide
from mlmrepro.config import EMBEDDED
from mlmrepro.provenance import package_versions

CHECKPOINT = EMBEDDED / "checkpoint"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line, expect exit code 2, and return the one line on standard error."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            cli.main(list(arguments))
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("mlmrepro: error")]
        assert exit_.value.code == 2, printed.err
        assert len(lines) == 1, printed.err
        assert "Remedy: " in lines[0]
        assert "Traceback" not in printed.err
        assert printed.out == ""
        return lines[0]

    return run


def _copy(tmp_path: Path, **changes: Any) -> Path:
    """Return a copy of the embedded checkpoint whose config has these values."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.quick
def test_fill_mask_prints_both_ways_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """`fill-mask` works on the embedded checkpoint and shows as many rows as asked for."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["fill-mask", "Water is made of hydrogen and <mask>.", "--top-k", "2"])
    out = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "pipeline" in out
    assert "by hand" in out
    assert "\n2  " in out
    assert "\n3  " not in out


def test_fill_mask_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one JSON object and nothing else, with scores in full precision that both ways share."""
    with pytest.raises(SystemExit):
        cli.main(["fill-mask", "The Moon moves around the <mask>.", "--json", "--checkpoint", str(CHECKPOINT)])
    content = json.loads(capsys.readouterr().out)
    assert len(content["pipeline"]) == len(content["by_hand"]) == 5
    for row, by_hand in zip(content["pipeline"], content["by_hand"], strict=True):
        assert row["token"] == by_hand["token"]
        assert row["score"] == pytest.approx(by_hand["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [("Water is wet.", "no mask token"), ("<mask> is <mask>.", "2 mask tokens"), ("", "no mask token")],
)
def test_a_prompt_without_exactly_one_mask_is_refused(
    refused: Callable[..., str], tmp_path: Path, prompt: str, problem: str
) -> None:
    """None or two masks: the message counts them, in `fill-mask` and in `reproduce`."""
    assert problem in refused("fill-mask", prompt)
    assert problem in refused("reproduce", "--output-dir", "run", "--set", f"prompt={prompt}")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_leaves_no_folder_of_runs(refused: Callable[..., str], tmp_path: Path) -> None:
    """Without --output-dir, too, bad input leaves nothing; the embedded checkpoint is named, not its path."""
    assert "but 'embedded' takes at most 128 tokens" in refused("reproduce", "--set", "block_size=129")
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_longer_than_the_model_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    """The message counts the tokens, and in `reproduce` it comes before the training, not after it."""
    prompt = "The sea is " + "very " * 200 + "<mask>."
    assert "the model takes 128" in refused("fill-mask", prompt)
    assert "the model takes 128" in refused("reproduce", "--output-dir", "run", "--set", f"prompt={prompt}")
    assert list(tmp_path.iterdir()) == []


def test_too_many_predictions_are_refused(refused: Callable[..., str]) -> None:
    """More predictions than the vocabulary has cannot be shown."""
    assert "vocabulary has 16000 tokens" in refused("fill-mask", "A <mask>.", "--top-k", "16001")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--profile", "gide"], "no profile 'gide'"),
        (["--set", "block_size=0"], "block_size is 0"),
        (["--set", "block_size=129"], "takes at most 128 tokens"),
        (["--set", "mlm_probability=0"], "mlm_probability is 0.0"),
        (["--set", "mlm_probability=1"], "mlm_probability is 1.0"),
        (["--set", "mlm_probability=1.5"], "mlm_probability is 1.5"),
        (["--set", "nonsense=1"], "names no setting"),
        (["--set", "dataset=absent.jsonl"], "absent.jsonl does not exist"),
        (["--set", "top_k=16001"], "vocabulary has 16000 tokens"),
        (["--set", "split=train_asks[:x]"], "train_asks[:x]"),
        (["--set", "split=train_asks[:1]"], "1 rows cannot be split"),
        (["--set", "checkpoint=./absent"], "folder ./absent does not exist"),
        (["--threads", "0"], "--threads is 0"),
        (["--profile", "/etc"], "no profile '/etc'"),
        (["--set", "push_to_hub=true", "--set", "split=train_asks[:20]", "--set", "num_proc=1"], "cannot be pushed"),
        (["--resume"], "no run to resume"),
    ],
)
def test_a_bad_setting_is_refused_and_leaves_nothing(
    refused: Callable[..., str], tmp_path: Path, arguments: list[str], problem: str
) -> None:
    """The message names the field and the value, and the output directory is not left behind."""
    assert problem in refused("reproduce", "--output-dir", "run", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"title": "Why?", "answers": {"a_id": ["x"], "score": [1]}}, "no column 'answers.text'"),
        ({"answers": {"text": "one string"}}, "not lists of strings"),
        ({"answers": {"text": [1, 2]}}, "not lists of strings"),
        ({"answers": {"text": ["a", None]}}, "rows or texts that are null"),
    ],
)
def test_data_without_lists_of_answers_are_refused(
    refused: Callable[..., str], tmp_path: Path, row: dict[str, Any], problem: str
) -> None:
    """A data file must have `answers.text`, a list of strings a row; the message names what it has."""
    (tmp_path / "mine.jsonl").write_text((json.dumps(row) + "\n") * 20)
    assert problem in refused("reproduce", "--output-dir", "run", "--set", "dataset=mine.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl"]


def test_a_file_that_is_no_data_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    """A file that cannot be parsed is named, with the library's reason in one line."""
    (tmp_path / "mine.jsonl").write_text('{"answers": \n{{{\n')
    assert "mine.jsonl cannot be read" in refused("reproduce", "--output-dir", "run", "--set", "dataset=mine.jsonl")


def _causal(tmp_path: Path) -> Path:
    folder = _copy(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=128, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    return folder


def _headless(tmp_path: Path) -> Path:
    folder = _copy(tmp_path)
    config = RobertaConfig.from_pretrained(str(CHECKPOINT), num_hidden_layers=1)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def _pickled(tmp_path: Path) -> Path:
    folder = _copy(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _truncated(tmp_path: Path) -> Path:
    folder = _copy(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    return folder


def _remote_code(tmp_path: Path) -> Path:
    folder = _copy(
        tmp_path, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForMaskedLM": "mine.M"}
    )
    (folder / "mine.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    return folder


def _other_shape(tmp_path: Path) -> Path:
    return _copy(tmp_path, intermediate_size=512)


def _no_config(tmp_path: Path) -> Path:
    folder = _copy(tmp_path)
    (folder / "config.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_causal, "no masked-language-model head"),
        (_headless, "has no weights for lm_head"),
        (_pickled, "has no model.safetensors"),
        (_truncated, "cannot be loaded"),
        (_other_shape, "cannot be loaded"),
        (_no_config, "config.json is not valid JSON"),
        (_remote_code, "cannot be loaded"),
    ],
)
def test_a_checkpoint_that_is_no_masked_language_model_is_refused(
    refused: Callable[..., str], tmp_path: Path, make: Callable[[Path], Path], problem: str
) -> None:
    """Causal, headless, pickled, truncated or mismatched: named with the reason, and never loaded half."""
    message = refused("fill-mask", "A <mask>.", "--checkpoint", str(make(tmp_path)))
    assert problem in message
    assert str(tmp_path / "checkpoint") in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["file", "not empty"])
def test_an_output_directory_that_is_in_use_is_refused(refused: Callable[..., str], tmp_path: Path, kind: str) -> None:
    """A file, or a folder with something in it, is left as it is."""
    target = tmp_path / "run"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    assert "output directory" in refused("reproduce", "--output-dir", "run")
    assert (target if kind == "file" else target / "mine").read_text() == "mine"


def test_a_full_disk_is_one_line(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing more can be written, the message says so, and no half-written file is left."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlmrepro.files.os.replace", full)
    message = refused("reproduce", "--output-dir", "run", "--set", "split=train_asks[:20]", "--set", "num_proc=1")
    assert "No space left on device" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Not enough disk space. Needed: 1 GB"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_later_is_one_line_too(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """However the libraries wrap it: as a cause, without a number, or as words of another language's error."""

    def fail(*_: object) -> None:
        raise ValueError("writing failed") from error

    monkeypatch.setattr("mlmrepro.guide.run.run", fail)
    assert "disk space" in (message := refused("reproduce", "--output-dir", "run")) or "No space left" in message


def test_an_output_directory_below_a_file_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    """A path that cannot be a directory is one line."""
    (tmp_path / "file").write_text("mine")
    assert "Not a directory" in refused("reproduce", "--output-dir", "file/run")


def test_a_run_is_resumed_with_its_own_settings_only(refused: Callable[..., str], tmp_path: Path) -> None:
    """The message names the setting that differs from the killed run's."""
    from mlmrepro.config import resolve

    (tmp_path / "run").mkdir()
    settings = resolve(output_dir=tmp_path / "run").to_dict() | {"packages": dict(package_versions())}
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    message = refused("reproduce", "--output-dir", "run", "--resume", "--set", "block_size=64")
    assert "block_size 128, now 64" in message
    settings["packages"]["transformers"] = "4.0.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    assert "transformers '4.0.0', now" in refused("reproduce", "--output-dir", "run", "--resume")


def test_a_training_that_diverges_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses that are no numbers go into the record as such, and the exit code is 1."""
    small = ["--set", "split=train_asks[:12]", "--set", "num_train_epochs=1", "--set", "num_proc=1"]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["reproduce", "--output-dir", "run", "--set", "learning_rate=1e30", *small])
    assert exit_.value.code == 1
    assert "diverged: eval_loss is nan" in capsys.readouterr().err
    assert '"value": "NaN"' in (tmp_path / "run" / "record.json").read_text()


def test_runs_are_numbered_and_the_newest_is_resumed(tmp_path: Path) -> None:
    """Without --output-dir nothing is overwritten: each run has a folder of its own."""
    assert guide._run_folder("embedded", resume=False) == Path("mlmrepro-runs/embedded-1")
    (tmp_path / "mlmrepro-runs" / "embedded-9").mkdir(parents=True)
    (tmp_path / "mlmrepro-runs" / "embedded-10").mkdir()
    (tmp_path / "mlmrepro-runs" / "embedded-old").mkdir()
    assert guide._run_folder("embedded", resume=False).name == "embedded-11"
    assert guide._run_folder("embedded", resume=True).name == "embedded-10"
