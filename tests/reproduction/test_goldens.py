"""The golden run: every stage gives what its golden holds, again and again, and a fault in it is seen."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import set_seed

from mlmrepro.compare.golden import Expected, differences, disagreements, read_golden
from mlmrepro.config import EMBEDDED, RunConfig
from mlmrepro.guide import blocks, collate, dataset, observe, tokens, versions
from mlmrepro.guide.run import run
from mlmrepro.record import RunRecord

from .golden_run import GOLDENS, NAMES, SPLIT, golden_config, obtained


@pytest.fixture(scope="module")
def golden_record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return run(golden_config(tmp_path_factory.mktemp("golden") / "run"))


def golden(stage: str) -> dict[str, Expected]:
    return read_golden(GOLDENS / f"{stage}.json")


@pytest.mark.parametrize("stage", NAMES)
def test_a_stage_agrees_with_its_golden(golden_record: RunRecord, stage: str) -> None:
    """Token ids, blocks, mask draw, weights, losses, perplexity and rankings are those of the golden run."""
    expected = golden(stage)
    assert set(expected) == set(NAMES[stage])
    assert disagreements(expected, obtained(golden_record, stage)) == []


def test_every_golden_is_read() -> None:
    """No golden lies in the folder that no stage reads."""
    assert {path.stem for path in GOLDENS.glob("*.json")} == set(NAMES)


def test_the_figures_of_a_run_are_numbers_of_the_right_size(golden_record: RunRecord) -> None:
    """Step losses, one a step, and a perplexity that is exp(eval_loss) and that training has lowered."""
    assert len(golden_record["loss.step_losses"]) == golden_record["loss.steps"] > 10
    assert len(golden_record["loss.epoch_eval_losses"]) == 3
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
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/model/checkpoint-*/step_losses.json")):
            assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
            assert time.monotonic() < deadline, "no checkpoint after two minutes"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "run" / "record.json").exists()
    subprocess.run([*command, "--resume"], cwd=tmp_path, check=True, capture_output=True)
    resumed = RunRecord.read(tmp_path / "run" / "record.json")
    assert resumed.results() == golden_record.results()
    assert not (tmp_path / "run" / "cache").exists()


def _data_stages(config: RunConfig) -> RunRecord:
    """Run the stages before the model: a fault in them is seen without training."""
    record, guide = RunRecord({}, {}), config.guide
    versions.set_up()
    set_seed(guide.seed)
    split = dataset.split(dataset.load(config.dataset, guide.split, config.output_dir), guide.test_size)
    tokenizer = tokens.load_tokenizer(config.checkpoint)
    tokenized = tokens.tokenize(
        dataset.flatten(split), tokenizer, column=guide.text_column, separator=guide.separator, num_proc=guide.num_proc
    )
    grouped = blocks.group(
        tokenized, block_size=guide.block_size, num_proc=guide.num_proc, batch_size=guide.map_batch_size
    )
    collator = collate.data_collator(tokenizer, mlm_probability=guide.mlm_probability, pad_token=guide.pad_token)
    observe.observe_input_ids(record, tokenized, tokenizer.all_special_ids)
    observe.observe_blocks(record, tokenized, grouped)
    observe.observe_batches(
        record,
        grouped["train"],
        collator,
        batch_size=guide.batch_size,
        mask_token_id=tokenizer.mask_token_id,
        seed=guide.seed,
    )
    return record


def test_leftovers_of_another_run_do_not_change_the_blocks(tmp_path: Path) -> None:
    """One process gives the blocks of one process, also where four have just left their files in the same cache."""
    four, one = (golden_config(tmp_path / "shared", ("num_proc", number, "test")) for number in (4, 1))
    alone = _data_stages(golden_config(tmp_path / "alone", ("num_proc", 1, "test")))
    assert _data_stages(four).results() != alone.results()
    assert _data_stages(one).results() == alone.results()


@pytest.mark.parametrize(
    ("name", "value", "untouched", "broken"),
    [
        ("separator", "", [], ["input_ids", "blocks", "masked_batches"]),
        ("block_size", 127, ["input_ids"], ["blocks", "masked_batches"]),
        ("num_proc", 1, ["input_ids"], ["blocks"]),  # each process drops a remainder of its own
        ("mlm_probability", 0.12, ["input_ids", "blocks"], ["masked_batches"]),
    ],
)
def test_a_wrong_setting_breaks_the_goldens_from_its_stage_on(
    tmp_path: Path, name: str, value: float, untouched: list[str], broken: list[str]
) -> None:
    """A planted fault is seen at its own stage, and the goldens before it still agree."""
    record = _data_stages(golden_config(tmp_path / "run", (name, value, "planted")))
    for stage in untouched:
        assert disagreements(golden(stage), obtained(record, stage)) == []
    for stage in broken:
        assert disagreements(golden(stage), obtained(record, stage))


def test_a_scaled_weight_breaks_model_losses_perplexity_and_ranking(tmp_path: Path) -> None:
    """One matrix of one layer scaled by 1.05 is seen in every stage from the model on, and in none before."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(EMBEDDED / "checkpoint", checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    weights["roberta.encoder.layer.1.output.dense.weight"] *= 1.05
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    record = run(golden_config(tmp_path / "run", ("checkpoint", str(checkpoint), "planted")))
    stages = list(NAMES)
    first = stages.index("model")
    for stage in stages[:first]:
        assert disagreements(golden(stage), obtained(record, stage)) == []
    for stage in stages[first:]:
        assert disagreements(golden(stage), obtained(record, stage)), stage
    assert any("eval_loss" in line for line in disagreements(golden("model"), obtained(record, "model")))
    assert any("step_losses" in line for line in disagreements(golden("loss"), obtained(record, "loss")))
    assert any("perplexity" in line for line in disagreements(golden("evaluation"), obtained(record, "evaluation")))


def test_a_shuffled_ranking_is_seen() -> None:
    """The golden ranking turned round does not agree with itself."""
    for expected in golden("fill_mask").values():
        assert differences(expected, expected.value) == []
        assert differences(expected, expected.value[::-1])


def test_a_seed_changes_the_split(tmp_path: Path) -> None:
    """Another seed is another split: the goldens hold for their own seed only."""
    config = golden_config(tmp_path, ("seed", 7, "planted"))
    set_seed(config.guide.seed)
    split = dataset.split(dataset.load(config.dataset, config.guide.split, tmp_path), config.guide.test_size)
    record = RunRecord({}, {})
    observe.observe_split(record, split)
    assert disagreements(golden("dataset"), obtained(record, "dataset"))
