"""A model and texts that nobody here wrote, from poor to trained: the gate says what an ordinary evaluation says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

from mlmrepro.gate.result import Answer, CheckResult
from mlmrepro.retraining.check import check_checkpoint, make_baseline
from mlmrepro.scoring.documents import read_text
from mlmrepro.scoring.scorer import Scorer

STEPS = 100  # two minutes on two cores
HELD_OUT = 10  # every tenth introduction
DOCUMENTS = 150  # of the baseline; as many others for the ordinary evaluation


@pytest.fixture(scope="module")
def held_out(introductions: list[dict[str, str]]) -> list[dict[str, str]]:
    return introductions[::HELD_OUT]


@pytest.fixture(scope="module")
def trained(
    stranger: Path, introductions: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Checkpoints after half and all of a short training with transformers' Trainer, and noisy copies of the last."""
    work = tmp_path_factory.mktemp("training")
    tokenizer = AutoTokenizer.from_pretrained(stranger)
    rows = [row for n, row in enumerate(introductions) if n % HELD_OUT]
    arguments = TrainingArguments(
        str(work),
        max_steps=STEPS,
        save_steps=STEPS // 2,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        warmup_steps=10,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=1,
    )
    Trainer(
        model=AutoModelForMaskedLM.from_pretrained(stranger, use_safetensors=True),
        args=arguments,
        train_dataset=[tokenizer(row["extract"], truncation=True, max_length=128) for row in rows],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        processing_class=tokenizer,
    ).train()
    whole = work / f"checkpoint-{STEPS}"
    noisy = {f"{share:.0%} noise": _noisy(whole, share, work / str(share)) for share in (0.01, 0.1)}
    return {"half": work / f"checkpoint-{STEPS // 2}", "whole": whole, **noisy}


def _noisy(checkpoint: Path, share: float, folder: Path) -> Path:
    """Save a checkpoint with normal noise of `share` of each weight matrix's own standard deviation."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoint)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += share * weight.std() * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def _baseline(checkpoint: Path, rows: list[dict[str, str]], folder: Path) -> Path:
    text = folder.with_suffix(".jsonl")
    text.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    documents = read_text(text, column="extract", topic="topic")
    make_baseline(Scorer.load(str(checkpoint), device="cpu"), documents, checkpoint=checkpoint.name).write(folder)
    return folder


@pytest.fixture(scope="module")
def poor(stranger: Path, held_out: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of the model as it came."""
    return _baseline(stranger, held_out[:DOCUMENTS], tmp_path_factory.mktemp("poor") / "baseline")


@pytest.fixture(scope="module")
def good(trained: dict[str, Path], held_out: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of the trained model."""
    return _baseline(trained["whole"], held_out[:DOCUMENTS], tmp_path_factory.mktemp("good") / "baseline")


def _checked(checkpoint: Path, baseline: Path) -> CheckResult:
    result = check_checkpoint(str(checkpoint), baseline, device="cpu")
    print(f"\n{checkpoint.name}: {result.answer.value}. {result.reason}")
    return result


def _measured(before: Path, after: Path, rows: list[dict[str, str]]) -> tuple[float, float]:
    """Return the mean loss of `after` minus that of `before` and its standard error, with transformers alone.

    The library's own collator masks other documents at random, the same for both; documents are independent.
    """
    tokenizer = AutoTokenizer.from_pretrained(before)
    models = [AutoModelForMaskedLM.from_pretrained(folder).eval() for folder in (before, after)]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    set_seed(7)
    sums = np.zeros((len(rows), 2))  # nats of difference, tokens
    for n, row in enumerate(rows):
        encoding = tokenizer(row["extract"], return_special_tokens_mask=True)
        batch = collator([encoding] * 2)  # two draws
        count = int((batch["labels"] != -100).sum())
        if count:
            with torch.no_grad():
                old, new = (float(model(**batch).loss) for model in models)
            sums[n] = (new - old) * count, count
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    residuals = sums[:, 0] - mean * sums[:, 1]
    return mean, math.sqrt(float((residuals**2).sum())) / float(sums[:, 1].sum())


def test_the_same_weights_are_the_same(stranger: Path, poor: Path, trained: dict[str, Path], good: Path) -> None:
    """Poor or trained, a checkpoint against itself differs by exactly nothing."""
    for checkpoint, baseline in ((stranger, poor), (trained["whole"], good)):
        result = _checked(checkpoint, baseline)
        assert result.answer is Answer.SAME
        assert result.largest_change == 0
        assert result.before == result.after


def test_minutes_of_training_are_called_better(poor: Path, trained: dict[str, Path]) -> None:
    """Half of the training is better than none, and all of it better still."""
    half, whole = _checked(trained["half"], poor), _checked(trained["whole"], poor)
    assert half.answer is whole.answer is Answer.BETTER
    assert whole.after < half.after < half.before / 10


@pytest.mark.parametrize(
    ("candidate", "answer"),
    [("half", Answer.REGRESSION), ("1% noise", Answer.SAME), ("10% noise", Answer.REGRESSION)],
)
def test_damage_is_judged_as_measured(
    good: Path, trained: dict[str, Path], held_out: list[dict[str, str]], candidate: str, answer: Answer
) -> None:
    """An ordinary evaluation, on other documents and masks, finds the same change, and so the same answer."""
    result = _checked(trained[candidate], good)
    assert result.paired is not None
    others = held_out[DOCUMENTS : 2 * DOCUMENTS]
    difference, error = _measured(trained["whole"], trained[candidate], others)
    print(f"measured {difference:+.5f} +- {error:.5f}, checked {result.paired.difference:+.5f}")
    assert abs(result.paired.difference - difference) < 4 * math.hypot(error, result.paired.standard_error)
    assert result.answer is answer
    if answer is Answer.SAME:
        assert difference < result.margin_nats
    else:
        assert difference > result.margin_nats
