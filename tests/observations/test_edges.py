"""The laws of padding, ties and dropout hold on other architectures, and each is broken by a fault of its kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import FillMaskPipeline, RobertaForMaskedLM, RobertaModel

from mlmrepro.guide import fill_mask
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject

from . import held
from .test_training import OTHERS, a_subject

LAWS = held.names("edges")
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("kind", ["embedded", *OTHERS])
def test_the_laws_hold_on_other_architectures(tmp_path: Path, kind: str) -> None:
    """With positions that skip pads and such that do not, kernels of other kinds, and shared layers."""
    subject = a_subject(tmp_path, kind)
    results = [held.measure(name, subject) for name in LAWS]
    assert {r.name: held.broken(r) for r in results if r.verdict is not BoundVerdict.HOLDS} == {}


def _no_mask_in_training(patch: Patch) -> None:
    original = RobertaModel.forward

    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        return original(self, input_ids, None if self.training else attention_mask, *args, **kwargs)

    patch.setattr(RobertaModel, "forward", forward)


def _padding_row_learns(patch: Patch) -> None:
    original = functional.embedding

    def embedding(ids: Any, weight: Any, padding_idx: Any = None, *args: Any, **kwargs: Any) -> Any:
        rows = original(ids, weight, None, *args, **kwargs)
        if rows.requires_grad and padding_idx == 1:
            rows.register_hook(lambda slope: torch.where((ids == 1)[..., None], slope.mean((0, 1)), slope))
        return rows

    patch.setattr(functional, "embedding", embedding)


def _scaled_in_training(patch: Patch) -> None:
    original = RobertaForMaskedLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        output.logits = output.logits * (1.001 if self.training else 1.0)
        return output

    patch.setattr(RobertaForMaskedLM, "forward", forward)


def _attention(rate: Callable[[float], float]) -> Callable[[Patch], None]:
    """Let both kernels of attention drop at another rate than they are told."""

    def plant(patch: Patch) -> None:
        sdpa, dropout = functional.scaled_dot_product_attention, functional.dropout
        patch.setattr(
            functional,
            "scaled_dot_product_attention",
            lambda *args, dropout_p=0.0, **kwargs: sdpa(*args, dropout_p=rate(dropout_p), **kwargs),
        )
        patch.setattr(
            functional,
            "dropout",
            lambda x, p=0.5, training=True, *args, **kwargs: (
                dropout(x, rate(p if training else 0.0), True, *args, **kwargs)
                if x.dim() == 4
                else dropout(x, p, training, *args, **kwargs)
            ),
        )

    return plant


def _shuffled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(random.sample(rows, len(rows)), key=lambda row: -row["score"])


def _pipeline(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        original = FillMaskPipeline.postprocess
        patch.setattr(FillMaskPipeline, "postprocess", lambda *args, **kwargs: change(original(*args, **kwargs)))

    return plant


def _by_hand_shuffled(patch: Patch) -> None:
    original = fill_mask.by_hand
    patch.setattr(fill_mask, "by_hand", lambda *args: _shuffled(original(*args)))


def _another_score(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"score": row["score"] * (1 - 1e-6 * rank)} for rank, row in enumerate(rows)]


FAULTS: list[tuple[str, Callable[[Patch], None], str]] = [
    ("padded_training", _no_mask_in_training, "difference of the loss"),
    ("padded_training", _padding_row_learns, "change of the padding row's gradient by padding"),
    ("training_mode", _scaled_in_training, "difference of the logits in the two modes"),
    ("attention_dropout", _attention(lambda rate: rate or 0.1), "when evaluation mode is repeated"),
    ("attention_dropout", _attention(lambda rate: 0.0), "difference between two passes of training mode"),
    ("exact_ties", _pipeline(_shuffled), "orders in eight calls, pipeline"),
    ("exact_ties", _by_hand_shuffled, "orders in eight calls, by hand"),
    ("exact_ties", _pipeline(_another_score), "scores of the tied tokens, pipeline"),
    ("exact_ties", _pipeline(lambda rows: rows[:-1] + rows[:1]), "tied tokens that are lost or replaced, pipeline"),
]


@pytest.mark.parametrize(("name", "plant", "what"), FAULTS)
def test_a_fault_of_its_kind_breaks_the_law(
    embedded: Subject, monkeypatch: Patch, name: str, plant: Callable[[Patch], None], what: str
) -> None:
    """Each is seen by a number out of its bound."""
    plant(monkeypatch)
    held.assert_broken(name, embedded, what)


def test_every_law_has_its_fault() -> None:
    """No law of the edges is without a test in which it is broken."""
    assert set(LAWS) == {name for name, _, _ in FAULTS}
