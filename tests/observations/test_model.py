"""The laws of the model hold on any architecture, and each is broken by a fault of its kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.observations import forward as passes
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject
from mlmrepro.scoring.shortcuts import Forward

from ..scoring.test_architectures import WORDS
from . import held

NAMES = held.names("model")
UNTRAINED = ("better_than_guessing",)  # nobody has taught a random model anything


@pytest.mark.parametrize("name", held.ARCHITECTURES)
def test_the_laws_hold_on_other_architectures(tmp_path: Path, name: str) -> None:
    """On random models, as far as they have what a law speaks of."""
    assert held.failing(held.small(tmp_path, name), "model", UNTRAINED) == {}


Model = Any
Change = Callable[..., Any]


def _forward(change: Change) -> Change:
    """Return a forward that lets `change(model, output, arguments)` change what the model gives."""

    def forward(
        self: Model,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        **more: Any,
    ) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        output = super(type(self), self).forward(**given, labels=labels, **more)
        return change(self, output, {**given, "labels": labels}) or output

    return forward


def _no_mask(model: Model, output: Any, given: dict[str, Any]) -> Any:
    if given["attention_mask"] is not None:
        return model.forward(input_ids=given["input_ids"], labels=given["labels"])
    return None


def _mixed_rows(model: Model, output: Any, given: dict[str, Any]) -> None:
    output.logits = output.logits + 1e-3 * output.logits.mean(0)


def _first_row(model: Model, output: Any, given: dict[str, Any]) -> None:
    output.logits[0] = output.logits[0] * 1.001


def _cross_entropy(output: Any, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), **options)


def _loss(reduced: Callable[[Any, torch.Tensor], torch.Tensor]) -> Change:
    def change(model: Model, output: Any, given: dict[str, Any]) -> None:
        if given["labels"] is not None:
            output.loss = reduced(output, given["labels"])

    return _forward(change)


def _mean_of_rows(output: Any, labels: torch.Tensor) -> torch.Tensor:
    each = _cross_entropy(output, labels, reduction="none").view_as(labels)
    return (each.sum(1) / (labels != IGNORE_INDEX).sum(1)).mean()


def _coarse(model: Model, output: Any, given: dict[str, Any]) -> None:
    if model.dtype == torch.float32:
        output.logits = output.logits.bfloat16().float()


def _scaled_embeddings(model: Model, output: Any, given: dict[str, Any]) -> None:
    if given["inputs_embeds"] is not None:
        output.logits = output.logits * 1.001


def _noisy(model: Model, output: Any, given: dict[str, Any]) -> None:
    output.logits = torch.nn.functional.dropout(output.logits, 0.01, training=True)


# A forward pass as a release may break it, for the laws that must see it.
FORWARDS: dict[str, Change] = {
    "padding": _forward(_no_mask),
    "hidden_tokens": _forward(_no_mask),
    "companions": _forward(_mixed_rows),
    "row_order": _forward(_first_row),
    "float64_reference": _forward(_coarse),
    "inputs_embeds": _forward(_scaled_embeddings),
    "same_bits": _forward(_noisy),
    "mean_loss": _loss(lambda output, labels: _cross_entropy(output, labels, reduction="sum")),
    "ignored_labels": _loss(lambda output, labels: _cross_entropy(output, labels.clamp(min=0))),
    "loss_batch_size": _loss(_mean_of_rows),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_wrong_forward_pass_breaks_the_law(small: Subject, tmp_path: Path, name: str) -> None:
    """Each of these changes is seen by the law of its kind, with a number out of its bound."""
    result = held.measure(name, held.with_class(small, tmp_path, forward=FORWARDS[name]))
    assert result.verdict is BoundVerdict.BROKEN
    assert result.broken
    assert not result.problem


def _repeat_a_position(tensors: dict[str, torch.Tensor]) -> None:
    tensors["roberta.embeddings.position_embeddings.weight"][7] = tensors[
        "roberta.embeddings.position_embeddings.weight"
    ][8]


# A checkpoint as a script may break it.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "both_directions": {"is_decoder": True},
    "token_order": {"weights": lambda t: t["roberta.embeddings.position_embeddings.weight"].zero_()},
    "all_positions": {"weights": _repeat_a_position},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrong_checkpoint_breaks_the_law(small: Subject, tmp_path: Path, name: str) -> None:
    """Files that load without complaint are seen through."""
    result = held.measure(name, held.copied(small, tmp_path, **CHECKPOINTS[name]))
    assert result.verdict is BoundVerdict.BROKEN
    assert result.broken


def test_positions_that_count_pads_are_seen(small: Subject, tmp_path: Path) -> None:
    """Padding before a row is no token: the positions of RoBERTa's kind begin behind it."""

    def counted(model: Model, output: Any, given: dict[str, Any]) -> Any:
        places = torch.arange(given["input_ids"].shape[1])[None] + 2
        arguments = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
        return super(type(model), model).forward(**arguments, position_ids=places)

    (measured,) = held.measure("padding", held.with_class(small, tmp_path, forward=_forward(counted))).broken
    assert measured.slug == "logit_difference_pads_before"


def test_a_layer_that_is_skipped_has_no_say(small: Subject, tmp_path: Path) -> None:
    """The law names it; and it counts weights that may not learn."""
    broken = Subject(small.checkpoint, small.texts, tmp_path)
    layers = broken.model.roberta.encoder.layer
    layers[1].register_forward_hook(lambda module, given, out: (given[0],) if isinstance(out, tuple) else given[0])
    (measured,) = held.measure("every_layer", broken).broken
    assert measured.value == "roberta.encoder.layer.1"
    broken.model.lm_head.dense.requires_grad_(False)
    frozen = held.measure("every_layer", broken).broken[0]
    assert frozen.value == "lm_head.dense.weight, lm_head.dense.bias"


def test_a_kernel_of_another_scale_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part in a hundred on the scores of attention, in one of the two kernels."""
    bert = held.small(tmp_path, "BERT")  # RoBERTa has one kernel only before transformers 4.45
    assert held.measure("kernels", bert).verdict is BoundVerdict.HOLDS
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, *args, **kwargs: original(query * 1.01, *args, **kwargs),
    )
    assert held.measure("kernels", bert).verdict is BoundVerdict.BROKEN


def test_a_scorer_that_reads_other_positions_is_seen(small: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head on masked positions is compared position by position."""
    original = Forward.__call__
    monkeypatch.setattr(Forward, "__call__", lambda self, ids, mask, at: original(self, ids, mask, at.flip(1)))
    assert held.measure("head_on_masked", small).verdict is BoundVerdict.BROKEN


@pytest.mark.parametrize(("rate", "slug"), [(0.0, "logit_difference"), (0.3, "unknown_dropout_rates")])
def test_dropout_of_another_rate_is_seen(small: Subject, tmp_path: Path, rate: float, slug: str) -> None:
    """None at all, and one that the configuration does not name."""
    broken = Subject(small.checkpoint, small.texts, tmp_path)
    for module in broken.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
    if rate == 0.0:  # of attention too, which the kernels apply
        broken.model.train = lambda mode=True: broken.model  # type: ignore[method-assign]
    result = held.measure("dropout_switch", broken)
    assert result.verdict is BoundVerdict.BROKEN
    assert result.broken[0].slug == slug


def test_a_tokenizer_with_more_tokens_than_the_model_is_seen(small: Subject, tmp_path: Path) -> None:
    """A token was added, and the embeddings were not resized."""
    broken = Subject(small.checkpoint, small.texts, tmp_path)
    broken.tokenizer.add_tokens(["planet"])
    (measured,) = held.measure("vocabulary_rows", broken).broken
    assert measured.slug == "max_token_id"


@pytest.mark.parametrize(("places", "tokens"), [(1, 0), (-1, 0), (0, 1)])
def test_predictions_that_are_shifted_are_seen(embedded: Subject, tmp_path: Path, places: int, tokens: int) -> None:
    """By one place to either side, or by one id: then a neighbour, or a guess, is the better prediction."""

    def shift(model: Model, output: Any, given: dict[str, Any]) -> None:
        output.logits = output.logits.roll((places, tokens), (1, 2))

    broken = held.with_class(embedded, tmp_path, forward=_forward(shift))
    assert held.measure("better_than_guessing", broken).verdict is BoundVerdict.BROKEN


def test_every_law_has_its_fault() -> None:
    """No law of the model is without a test in which it is broken."""
    single = {"kernels", "head_on_masked", "dropout_switch", "vocabulary_rows", "better_than_guessing", "every_layer"}
    assert set(NAMES) == single | set(FORWARDS) | set(CHECKPOINTS)


@pytest.mark.parametrize("strength", [2.0, 4.0, 6.0])
def test_a_mask_that_hides_too_weakly_is_seen(small: Subject, tmp_path: Path, strength: float) -> None:
    """A finite penalty in place of minus infinity leaves a share exp(-strength) of the attention to the pads."""

    def blended(model: Model, output: Any, given: dict[str, Any]) -> None:
        if given["attention_mask"] is not None:
            seen = super(type(model), model).forward(input_ids=given["input_ids"]).logits
            output.logits = output.logits + (seen - output.logits) * math.exp(-strength)

    broken = held.with_class(small, tmp_path, forward=_forward(blended))
    assert held.measure("padding", broken).verdict is BoundVerdict.BROKEN


@settings(max_examples=5)
@given(lengths=st.lists(st.integers(2, 18), min_size=4, max_size=6), start=st.integers(0, 19))
def test_laws_about_rows_hold_for_any_rows(small: Subject, lengths: list[int], start: int) -> None:
    """Whatever rows of whatever lengths a batch is made of."""
    words = (WORDS * 3)[start:]
    texts = tuple(" ".join(words[n : n + length]) for n, length in enumerate(lengths))
    drawn = Subject(small.checkpoint, texts, small.folder)
    drawn.__dict__.update(model=small.model, tokenizer=small.tokenizer)
    for name in ("padding", "companions", "row_order", "hidden_tokens", "mean_loss", "loss_batch_size"):
        if len(drawn.rows) > 1:
            result = held.measure(name, drawn)
            assert result.verdict is BoundVerdict.HOLDS, (name, result.problem, result.broken)


def test_the_bound_is_the_models_own(small: Subject, tmp_path: Path) -> None:
    """A head with ten times the weights may err ten times as far; one that computes in float32 only has a bound too."""
    fresh = Subject(small.checkpoint, small.texts, tmp_path)
    logits = passes.logits_of(fresh.model, fresh.batch(1)["input_ids"])
    bound = passes.last_digits(fresh, logits)
    assert 0 < bound < 1e-3 * float(logits.abs().max())

    louder = held.with_class(small, tmp_path / "a", forward=_forward(_ten_times))
    assert passes.last_digits(louder, 10 * logits) == pytest.approx(10 * bound, rel=1e-6)

    single = held.with_class(small, tmp_path / "b", forward=_forward(_float32_only))
    assert passes.last_digits(single, logits) == 2.0**-12 * float(logits.abs().max())
    assert held.measure("float64_reference", single).verdict is BoundVerdict.NOT_APPLICABLE


def _ten_times(model: Model, output: Any, given: dict[str, Any]) -> None:
    output.logits = output.logits * 10


def _float32_only(model: Model, output: Any, given: dict[str, Any]) -> None:
    if output.logits.dtype == torch.float64:
        raise RuntimeError("expected float32")


def test_a_model_in_half_precision_is_measured_in_float32(small: Subject, tmp_path: Path) -> None:
    """Bounds are those of float32, so a checkpoint in another dtype is copied into it, and left as it was."""
    half = Subject(small.checkpoint, small.texts, tmp_path)
    half.model.to(torch.bfloat16)
    assert held.failing(half, "model", UNTRAINED) == {}
    assert half.model.dtype == torch.bfloat16


def test_esm_with_absolute_positions_loses_them(tmp_path: Path) -> None:
    """Its model passes embeddings by their positions since 4.56: known there, a breach anywhere else."""
    held.assert_known_since("transformers>=4.56", "inputs_embeds", held.small(tmp_path, "ESM absolute"))
