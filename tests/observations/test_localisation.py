"""Localisation: a change planted in one stage is attributed to that stage, and to no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaModel, Trainer

from mlmrepro import loading
from mlmrepro.compare.changes import Change
from mlmrepro.compare.drift import Outcome, compare_records
from mlmrepro.guide import blocks, collate, dataset, fill_mask, tokens, train
from mlmrepro.observations.golden_run import store_inputs, take_record
from mlmrepro.record import STAGES, RunRecord

from . import held

# One process and one epoch of few rows: what is tested is where a change is seen, not how large it is.
SMALL = (
    ("split", "train_asks[:12]", "test"),
    ("num_train_epochs", 1.0, "test"),
    ("num_proc", 1, "test"),
)

Plant = Callable[[pytest.MonkeyPatch], None]
Record = Callable[[], RunRecord]


@pytest.fixture(scope="module")
def small_record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return what takes a record of a small RoBERTa: of every stage, on its path and isolated.

    With the embedded checkpoint a record takes five times as long; the bench of tests/faults plants its faults there.
    """
    folder = tmp_path_factory.mktemp("small")
    settings = (("checkpoint", str(held.with_few_tokens(folder)), "test"), *SMALL)
    store_inputs(folder / "inputs", *settings)
    (folder / "inputs" / "checkpoints").mkdir()  # of other versions: what reads them is an observation
    return lambda: take_record(folder / "inputs", *settings, observers=[], threads=1)


@pytest.fixture(scope="module")
def clean(small_record: Record) -> RunRecord:
    return small_record()


def changes(before: RunRecord, after: RunRecord) -> list[Change]:
    return compare_records(Outcome("clean", before), Outcome("planted", after)).comparison.changes


def wrap(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, after: Callable[[Any], Any]) -> None:
    """Let a step give `after(its result)`."""
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: after(original(*args, **kwargs)))


def other_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def reverse(parts: Any) -> Any:
        parts["train"] = parts["train"].select(range(len(parts["train"]) - 1, -1, -1))
        return parts

    wrap(monkeypatch, dataset, "split", reverse)


def changed_text(monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, dataset, "flatten", lambda flat: flat.map(_upper))


def _upper(row: dict[str, Any]) -> dict[str, Any]:
    return {"answers.text": [text.upper() for text in row["answers.text"]]}


def lost_token(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tokens.preprocess_function

    def without_last(*args: Any) -> Callable[[Any], Any]:
        inner = original(*args)
        return lambda examples: {name: [ids[:-1] for ids in rows] for name, rows in inner(examples).items()}

    monkeypatch.setattr(tokens, "preprocess_function", without_last)


def shifted_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    original = blocks.group_texts

    def cut(examples: Any, block_size: int) -> Any:
        return original({name: [rows[0][1:], *rows[1:]] for name, rows in examples.items()}, block_size)

    monkeypatch.setattr(blocks, "group_texts", cut)


def other_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(collator: Any) -> Any:
        collator.mlm_probability = 0.12
        return collator

    wrap(monkeypatch, collate, "data_collator", lower)


def scaled_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def scale(model: Any) -> Any:
        with torch.no_grad():
            model.roberta.encoder.layer[1].output.dense.weight *= 1.01
        return model

    original = loading.load_model
    # What the run saved is loaded as it is: the fault is in reading the starting checkpoint.
    monkeypatch.setattr(loading, "load_model", lambda path: original(path) if "run" in path else scale(original(path)))


def other_rate_of_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    original = train.training_arguments

    def faster(guide: Any, *args: Any, **kwargs: Any) -> Any:
        return original(dataclasses.replace(guide, learning_rate=guide.learning_rate * 1.1), *args, **kwargs)

    monkeypatch.setattr(train, "training_arguments", faster)


def shifted_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(metrics: dict[str, float]) -> dict[str, float]:
        return metrics | {"eval_loss": metrics["eval_loss"] + 0.01}

    wrap(monkeypatch, Trainer, "evaluate", shift)


def swapped_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, fill_mask, "with_pipeline", lambda rows: rows[::-1])


FAULTS: dict[str, Plant] = {
    "dataset": other_split,
    "flatten": changed_text,
    "input_ids": lost_token,
    "blocks": shifted_cut,
    "masked_batches": other_rate,
    "model": scaled_weight,
    "loss": other_rate_of_learning,
    "evaluation": shifted_loss,
    "fill_mask": swapped_ranking,
}


def test_every_stage_has_its_fault() -> None:
    """No stage is left out of the faults below."""
    assert tuple(FAULTS) == STAGES


@pytest.mark.parametrize("stage", FAULTS)
def test_a_planted_change_is_attributed_to_its_stage_alone(
    small_record: Record, clean: RunRecord, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """One change is reported, at the stage that holds the fault; all that follows is folded into it."""
    FAULTS[stage](monkeypatch)
    found = changes(clean, small_record())
    assert [change.stage for change in found] == [stage]
    assert found[0].by_itself
    assert found[0].verdict.fails
    assert set(found[0].follows) <= set(STAGES[STAGES.index(stage) + 1 :])


def evaluated_in_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.prediction_step

    def prediction_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, model.train(), *args, **kwargs)

    monkeypatch.setattr(Trainer, "prediction_step", prediction_step)


def ignored_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    original = RobertaModel.forward

    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        return original(self, input_ids, None, *args, **kwargs)

    monkeypatch.setattr(RobertaModel, "forward", forward)


def short_mantissas(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.nn.functional.linear

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + (tensor.detach().half().float() - tensor.detach()) if tensor.dtype == torch.float32 else tensor

    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, weight, bias=None: original(rounded(x), weight, bias))


@pytest.mark.parametrize(
    ("plant", "stage"),
    [(evaluated_in_training_mode, "evaluation"), (ignored_mask, "model"), (short_mantissas, "model")],
)
def test_what_shows_first_at_another_stage_is_attributed_to_its_own(
    small_record: Record, clean: RunRecord, monkeypatch: pytest.MonkeyPatch, plant: Plant, stage: str
) -> None:
    """A pass in training mode is no step, a mask that no row of the guide needs and small roundings are seen."""
    plant(monkeypatch)
    found = changes(clean, small_record())
    assert found[0].stage == stage
    assert found[0].by_itself
    assert found[0].verdict.fails


def test_two_planted_changes_are_two(small_record: Record, clean: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second cause further down is not hidden by the first."""
    other_rate(monkeypatch)
    swapped_ranking(monkeypatch)
    assert [change.stage for change in changes(clean, small_record())] == ["masked_batches", "fill_mask"]


def test_a_rerun_is_identical(
    small_record: Record, clean: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run from another directory reports nothing."""
    monkeypatch.chdir(tmp_path)
    assert changes(clean, small_record()) == []
