"""A copy in another number format is the same model: never better, and a regression only where rounding damages it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mlmrepro.gate.result import Answer, Rounded
from mlmrepro.report.check_words import said
from mlmrepro.retraining.baseline import Baseline
from mlmrepro.retraining.check import check, check_checkpoint, make_baseline
from mlmrepro.scoring.scorer import Scorer

from . import tiny

FORMATS = ["float16", "bfloat16"]
TOKENIZER = tiny.tokenizer()


def counts() -> torch.Tensor:
    ids = TOKENIZER([document.text for document in tiny.TEXT.documents])["input_ids"]
    return torch.from_numpy(np.bincount(np.concatenate(ids), minlength=len(TOKENIZER)) + 0.1).float()


def with_bias(bias: torch.Tensor) -> Any:
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.bias.copy_(bias)
    return model


def plain() -> Any:
    return with_bias(counts().log())


def made_better_by(name: str) -> Any:
    """Return a model that rounding makes better: it takes frequent words for less frequent, rare ones for less rare.

    The biases share a number whose last place in the format is an eighth, and are off by nearly half of it.
    """
    shared = {"float16": 192, "bfloat16": 24}[name]
    good = (0.5 * counts().log() + shared).to(getattr(torch, name)).float()
    return with_bias(good - 0.06 * (2 * (counts() > 2).float() - 1))


def damaged_by(name: str) -> Any:
    """Return a model whose biases share a large number, which no probability sees, but the format's digits do."""
    return with_bias(counts().log() + 60_000)


def rounded(model: Any, name: str, *, as_float32: bool = True) -> Any:
    copy = tiny.model()
    copy.load_state_dict(model.state_dict())
    copy = copy.to(getattr(torch, name))
    return copy.float() if as_float32 else copy


def baseline_of(model: Any) -> Baseline:
    return make_baseline(Scorer(model, TOKENIZER), tiny.TEXT, checkpoint="old")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("make", [plain, made_better_by, damaged_by])
def test_a_rounded_copy_is_never_better(make: Callable[..., Any], name: str) -> None:
    """Same where rounding helps or does nothing that counts, a regression where it damages, and said to be rounding."""
    model = make() if make is plain else make(name)
    baseline, candidate = baseline_of(model), Scorer(rounded(model, name), TOKENIZER)
    result = check(candidate, baseline)
    assert result.answer is (Answer.REGRESSION if make is damaged_by else Answer.SAME)
    assert result.rounded == Rounded("candidate", name)
    assert f"The candidate's weights are the baseline's rounded to {name}, so the difference of " in said(result)
    assert not [part for part in result.slices if part.answer == "better"]
    if make is made_better_by:
        unknown = dataclasses.replace(baseline, about={k: v for k, v in baseline.about.items() if k != "rounded"})
        old = check(candidate, unknown)
        assert old.rounded is None
        assert old.answer is Answer.BETTER  # so the rule above is what held it back
        assert "measurably better" in old.reason
        assert "measurably better" not in said(result)


def test_other_weights_are_judged_as_ever() -> None:
    """One changed weight makes it another model, which may be better."""
    baseline = baseline_of(tiny.model())
    result = check(Scorer(plain(), TOKENIZER), baseline)
    assert (result.answer, result.rounded) == (Answer.BETTER, None)


def test_another_configuration_is_no_matter_of_digits() -> None:
    """A rounded copy that computes otherwise is judged as any other model."""
    model, copy = made_better_by("float16"), rounded(made_better_by("float16"), "float16")
    copy.config.layer_norm_eps = 1e-3
    result = check(Scorer(copy, TOKENIZER), baseline_of(model))
    assert (result.answer, result.rounded) == (Answer.BETTER, None)


@pytest.mark.parametrize("name", FORMATS)
def test_the_unrounded_original_is_no_better_than_its_copy(name: str) -> None:
    """The other way round: a baseline of the rounded weights."""
    model = damaged_by(name)
    result = check(Scorer(model, TOKENIZER), baseline_of(rounded(model, name)))
    assert (result.answer, result.rounded) == (Answer.SAME, Rounded("baseline", name))
    assert f"The baseline's weights are the candidate's rounded to {name}" in said(result)


@pytest.mark.parametrize("name", FORMATS)
def test_a_copy_is_recognised_in_whatever_format_it_is_stored(tmp_path: Any, name: str) -> None:
    """Stored in the narrow format or as float32 again, and scored in either: the weights are compared as stored."""
    model = plain()
    model.save_pretrained(tmp_path / "old")
    TOKENIZER.save_pretrained(tmp_path / "old")
    make_baseline(Scorer.load(str(tmp_path / "old"), device="cpu"), tiny.TEXT, checkpoint="old").write(tmp_path / "b")
    for stored in ("narrow", "wide"):
        rounded(model, name, as_float32=stored == "wide").save_pretrained(tmp_path / stored)
        TOKENIZER.save_pretrained(tmp_path / stored)
        for dtype in ("float32", "bfloat16"):
            result = check_checkpoint(str(tmp_path / stored), tmp_path / "b", device="cpu", dtype=dtype)
            assert (result.answer, result.rounded) == (Answer.SAME, Rounded("candidate", name))


def test_an_evaluation_in_another_format_is_said(tmp_path: Any) -> None:
    """Equal weights, scored in bfloat16: same, with the format as the reason, never better."""
    made_better_by("bfloat16").save_pretrained(tmp_path / "old")
    TOKENIZER.save_pretrained(tmp_path / "old")
    make_baseline(Scorer.load(str(tmp_path / "old"), device="cpu"), tiny.TEXT, checkpoint="old").write(tmp_path / "b")
    result = check_checkpoint(str(tmp_path / "old"), tmp_path / "b", device="cpu", dtype="bfloat16")
    assert (result.answer, result.rounded) == (Answer.SAME, Rounded("evaluation", "bfloat16"))
    assert "one of them was scored in bfloat16, so the difference of " in said(result)
    assert check_checkpoint(str(tmp_path / "old"), tmp_path / "b", device="cpu").rounded is None
