"""Trainer gets the guide's literals, and what is loaded is what was asked for."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from datasets.exceptions import DatasetGenerationError

from mlmrepro import loading
from mlmrepro.config import EMBEDDED, GuideConfig
from mlmrepro.errors import UserError, causes
from mlmrepro.guide import dataset, train

pytestmark = pytest.mark.quick


def test_training_arguments_are_the_guides(tmp_path: Path) -> None:
    """Each literal of the guide's TrainingArguments, and Trainer's seed, arrives under its own name."""
    arguments = train.training_arguments(GuideConfig(report_to="none"), tmp_path, push_to_hub=False)
    wanted = {
        "learning_rate": 2e-5,
        "num_train_epochs": 3,
        "weight_decay": 0.01,
        "push_to_hub": False,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "seed": 42,
        "output_dir": str(tmp_path),
    }
    assert {name: getattr(arguments, name) for name in wanted} == wanted
    assert arguments.eval_strategy == "epoch"
    assert arguments.save_strategy == "steps"


def test_every_setting_of_the_training_arrives(tmp_path: Path) -> None:
    """Changed literals change the arguments, so none of them is fixed by accident."""
    guide = GuideConfig(
        learning_rate=1.0, num_train_epochs=5.0, weight_decay=0.5, batch_size=2, seed=7, eval_strategy="no",
        save_strategy="no", logging_steps=3, report_to="none",
    )  # fmt: skip
    arguments = train.training_arguments(guide, tmp_path, push_to_hub=False)
    names = ("learning_rate", "num_train_epochs", "weight_decay", "seed", "eval_strategy", "save_strategy")
    assert [getattr(arguments, name) for name in (*names, "logging_steps")] == [1.0, 5.0, 0.5, 7, "no", "no", 3]
    assert arguments.per_device_train_batch_size == arguments.per_device_eval_batch_size == 2


def test_positions_of_a_roberta_are_counted_from_the_padding(tmp_path: Path) -> None:
    """A RoBERTa of 130 positions takes 128 tokens, whatever its tokenizer says; a BERT takes all of its positions."""
    shutil.copy(EMBEDDED / "checkpoint" / "config.json", tmp_path)
    assert loading.max_block_size(str(tmp_path), 10**30) == 128
    assert loading.max_block_size(str(tmp_path), 100) == 100
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 64}))
    assert loading.max_block_size(str(tmp_path), 10**30) == 64


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("Dataset scripts are no longer supported, but found eli5.py", "--eli5-category"),
        ("The repository for eli5 contains custom code which must be executed", "--eli5-category"),
        ("Couldn't reach 'me/transcripts' on the Hub (ConnectionError)", "check the name and the network"),
    ],
)
def test_a_script_is_told_from_an_outage(message: str, remedy: str) -> None:
    """Only a loading script has the successor as its remedy, not a data set with such a name."""
    assert remedy in dataset._hub_error("me/transcripts", "train", RuntimeError(message)).remedy


def test_a_file_of_an_unknown_kind_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    """An existing file with another ending is named, with the endings that are read."""
    path = tmp_path / "mine.txt"
    path.write_text("x")
    with pytest.raises(UserError, match=r"\.jsonl, \.json, \.csv, \.parquet"):
        dataset.load(str(path), "train")


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.json.gz"])
def test_a_data_file_may_be_compressed(tmp_path: Path, name: str) -> None:
    """JSON lines that gzip compressed give the same rows."""
    lines = "".join(json.dumps({"answers": {"text": [f"answer {n}"]}}) + "\n" for n in range(4)).encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    rows = dataset.load(str(tmp_path / name), "train[:3]", tmp_path / "cache")
    assert [row["answers"]["text"] for row in rows] == [["answer 0"], ["answer 1"], ["answer 2"]]


def test_the_cause_of_a_wrapped_error_is_found() -> None:
    """A full disk is recognised inside the error that the libraries make of it."""
    full = OSError(28, "No space left on device")
    wrapped = DatasetGenerationError("An error occurred while generating the dataset")
    wrapped.__cause__ = full
    assert list(causes(wrapped)) == [wrapped, full]
