"""The golden run: every stage gives what its golden holds, again and again, and a fault in it is seen."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mlmrepro import cli
from mlmrepro.compare.golden import lint
from mlmrepro.config import golden_directory
from mlmrepro.observations.golden_run import SPLIT
from mlmrepro.record import STAGES, Part, RunRecord

from ..waiting import until

GOLDENS = golden_directory()


@pytest.fixture(scope="module")
def golden_record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Return what `mlmrepro record` writes."""
    path = tmp_path_factory.mktemp("golden") / "record.json"
    with pytest.raises(SystemExit) as exit_:
        cli.main(["record", "--output", str(path), "--goldens", str(GOLDENS)])
    assert not exit_.value.code
    return RunRecord.read(path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_agrees_with_its_golden(golden_record: RunRecord, golden: Any, stage: str) -> None:
    """Everything that a stage does, on the guide's path, isolated and off it, is what its golden holds."""
    golden.stage(golden_record, stage, folder="embedded")


def test_every_observation_was_made(golden_record: RunRecord) -> None:
    """None failed as a whole, and every stage but the first has its stored-input twin."""
    names = [f"{o.stage}.{o.name}" for o in golden_record]
    assert [name for name in names if name.endswith(".outcome") and ".resuming_unaided." not in name] == []
    twins = {o.stage for o in golden_record if o.part is Part.ISOLATED}
    assert twins == set(STAGES) - {"dataset"}


@pytest.mark.quick
def test_the_goldens_are_sound() -> None:
    """Every golden has its provenance, links that are addresses, and one variant for the versions it was made with."""
    paths = sorted(GOLDENS.glob("*.json"))
    assert {path.stem for path in paths} == set(STAGES)
    assert [problem for path in paths for problem in lint(path)] == []


def test_the_figures_of_a_run_are_numbers_of_the_right_size(golden_record: RunRecord) -> None:
    """Step losses, one a step, and a perplexity that is exp(eval_loss) and that training has lowered."""
    assert len(golden_record["loss.step_losses"]) == golden_record["loss.steps"] > 10
    assert len(golden_record["evaluation.epoch_eval_losses"]) == 3
    eval_loss = torch.tensor(golden_record["evaluation.eval_loss"], dtype=torch.float64)
    assert golden_record["evaluation.perplexity"] == pytest.approx(float(eval_loss.exp()), rel=1e-12)
    pair = golden_record["evaluation.same_masks_perplexity"]
    assert 1 < pair["after"] < pair["before"]


def test_both_ways_of_filling_the_mask_agree(golden_record: RunRecord) -> None:
    """Pipeline and manual way name the same tokens with the same scores; by hand a second space stands before it."""
    for row, by_hand in zip(golden_record["fill_mask.pipeline"], golden_record["fill_mask.by_hand"], strict=True):
        assert (row["token"], row["token_str"]) == (by_hand["token"], by_hand["token_str"])
        assert row["score"] == pytest.approx(by_hand["score"], abs=1e-6)
        assert by_hand["sequence"].replace("  ", " ") == row["sequence"]
        assert "  " in by_hand["sequence"]


def test_a_killed_run_resumed_equals_an_unbroken_one(golden_record: RunRecord, tmp_path: Path) -> None:
    """A process killed in its second epoch and resumed gives, value for value, the record of another process."""
    command = [sys.executable, "-m", "mlmrepro", "reproduce", "--output-dir", "run", "--set", f"split={SPLIT[1]}"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        saved = "run/model/checkpoint-*/step_losses.json"
        until(lambda: list(tmp_path.glob(saved)) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "run" / "record.json").exists()
    subprocess.run([*command, "--resume"], cwd=tmp_path, check=True, capture_output=True)
    resumed = RunRecord.read(tmp_path / "run" / "record.json").results()
    assert resumed == {name: value for name, value in golden_record.results().items() if name in resumed}
    assert len(resumed) > 30
    assert not (tmp_path / "run" / "cache").exists()
