"""The laws of filling the mask hold on any architecture, and each is broken by a fault of its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pipelines.fill_mask import FillMaskPipeline

from mlmrepro.guide import fill_mask as guide
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject

from ..scoring.test_architectures import WORDS
from . import held

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", held.ARCHITECTURES)
def test_the_laws_hold_on_other_architectures(tmp_path: Path, name: str) -> None:
    """On random models; those that see padding cannot be asked for batches."""
    assert held.failing(held.small(tmp_path, name), "fill_mask") == {}


def _rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[Patch], None]:
    """Change the rows that the pipeline gives for each mask."""

    def plant(patch: Patch) -> None:
        original = FillMaskPipeline.postprocess

        def postprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
            rows = original(self, *args, **kwargs)
            return [change(each) for each in rows] if isinstance(rows[0], list) else change(rows)

        patch.setattr(FillMaskPipeline, "postprocess", postprocess)

    return plant


def _logits(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Patch], None]:
    """Change the logits, (rows, tokens, vocabulary), that the pipeline makes its rows of."""

    def plant(patch: Patch) -> None:
        original = FillMaskPipeline.postprocess

        def postprocess(self: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
            outputs["logits"] = change(outputs["logits"])
            return original(self, outputs, *args, **kwargs)

        patch.setattr(FillMaskPipeline, "postprocess", postprocess)

    return plant


def _swap(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tokens = [row["token"] for row in rows]
    tokens[:2] = reversed(tokens[:2])
    return [row | {"token": token} for row, token in zip(rows, tokens, strict=True)]


def _renormalised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    total = sum(row["score"] for row in rows)
    return [row | {"score": row["score"] / total} for row in rows]


def _by_hand(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        original = guide.by_hand
        patch.setattr(guide, "by_hand", lambda *given: [change(row) for row in original(*given)])

    return plant


def _answers_reversed(patch: Patch) -> None:
    original = FillMaskPipeline.__call__

    def called(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, inputs, *args, **kwargs)
        return found[::-1] if isinstance(inputs, list) else found

    patch.setattr(FillMaskPipeline, "__call__", called)


def _padding_seen(patch: Patch) -> None:
    original = FillMaskPipeline._forward

    def forward(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}, *args, **kwargs)

    patch.setattr(FillMaskPipeline, "_forward", forward)


def _next_targets(patch: Patch) -> None:
    original = FillMaskPipeline.get_target_ids
    patch.setattr(FillMaskPipeline, "get_target_ids", lambda *given: np.minimum(original(*given) + 1, 20))


# Each with the laws that must see it, those of its kind first.
FAULTS: dict[str, tuple[Callable[[Patch], None], tuple[str, ...]]] = {
    "two tokens swapped": (_rows(_swap), ("pipeline_by_logits", "guide_by_hand", "several_masks", "batched_prompts")),
    "the worst first": (_rows(lambda rows: rows[::-1]), ("pipeline_by_logits", "full_ranking", "targets_in_ranking")),
    "the place before the mask": (_logits(lambda x: x.roll(1, 1)), ("pipeline_by_logits", "several_masks")),
    "a temperature of 1.01": (_logits(lambda x: x / 1.01), ("pipeline_by_logits", "targets_in_ranking")),
    "logarithms": (_rows(lambda rows: [r | {"score": float(np.log(r["score"]))} for r in rows]), ("full_ranking",)),
    "scores of those shown sum to 1": (_rows(_renormalised), ("pipeline_by_logits", "ranking_prefix")),
    "sums to more than 1": (_rows(lambda rows: [r | {"score": 1.001 * r["score"]} for r in rows]), ("full_ranking",)),
    "one row too few": (_rows(lambda rows: rows[:-1]), ("ranking_prefix", "guide_by_hand", "full_ranking")),
    "another sentence": (
        _rows(lambda rows: [r | {"sequence": rows[0]["sequence"]} for r in rows]),
        ("filled_sentences",),
    ),
    "another word": (
        _rows(lambda rows: [r | {"token_str": rows[0]["token_str"]} for r in rows]),
        ("filled_sentences",),
    ),
    "by hand, no softmax": (_by_hand(lambda row: row | {"score": 1.0}), ("guide_by_hand",)),
    "by hand, another word": (_by_hand(lambda row: row | {"token_str": "x"}), ("guide_by_hand",)),
    "answers in reverse": (_answers_reversed, ("batched_prompts",)),
    "padding is read": (_padding_seen, ("batched_prompts",)),
    "other targets": (_next_targets, ("targets_in_ranking",)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_breaks_the_laws_of_its_kind(small: Subject, monkeypatch: Patch, name: str) -> None:
    """What a release may break in the pipeline, or a reader in the guide's lines."""
    plant, laws = FAULTS[name]
    plant(monkeypatch)
    assert {law for law in laws if held.measure(law, small).verdict is BoundVerdict.BROKEN} == set(laws)


def test_every_law_has_its_fault() -> None:
    """No law is without a fault that breaks it."""
    assert {law for _, laws in FAULTS.values() for law in laws} == set(held.names("fill_mask"))


def test_a_pipeline_that_leaves_training_mode_on_is_seen(small: Subject, monkeypatch: Patch, tmp_path: Path) -> None:
    """Dropout in the pipeline is seen, and the next law finds the model in evaluation mode again."""
    original = FillMaskPipeline._forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.model.train()
        return original(self, *args, **kwargs)

    fresh = Subject(small.checkpoint, small.texts, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(FillMaskPipeline, "_forward", forward)
        assert held.measure("pipeline_by_logits", fresh).verdict is BoundVerdict.BROKEN
    assert held.measure("pipeline_by_logits", fresh).verdict is BoundVerdict.HOLDS


def test_what_cannot_be_asked_is_not_applicable(small: Subject, tmp_path: Path) -> None:
    """Without a text whose first words fit, and without a token to pad with."""
    narrow = Subject(small.checkpoint, small.texts, tmp_path)
    narrow.__dict__["row_limit"] = 3
    assert held.measure("pipeline_by_logits", narrow).verdict is BoundVerdict.NOT_APPLICABLE
    bare = Subject(small.checkpoint, small.texts, tmp_path)
    bare.tokenizer.pad_token = None
    assert held.measure("batched_prompts", bare).verdict is BoundVerdict.NOT_APPLICABLE


@settings(max_examples=4)
@given(words=st.lists(st.sampled_from(WORDS), min_size=6, max_size=14))
def test_the_laws_hold_for_any_words(small: Subject, words: list[str]) -> None:
    """Whatever stands around the mask."""
    drawn = Subject(small.checkpoint, (" ".join(words), " ".join(words[::-1])), small.folder)
    drawn.__dict__.update(model=small.model, tokenizer=small.tokenizer)
    assert held.failing(drawn, "fill_mask") == {}
