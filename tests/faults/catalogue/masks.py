"""Faults of the collator: which positions are selected, what is put there, and what is to be predicted."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.guide import collate
from tests.faults.case import Case
from tests.faults.catalogue.planting import Masked, change_batches, change_collator, collate_with, draw_masks
from tests.faults.fault import Severity, fault, graded

__all__: list[str] = []

Draw = Callable[[torch.Tensor], Masked]  # the original


def _selected(case: Case, keep: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """Take the selection back where `keep(collator, ids)` is false; the ids stay as they were there."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        inputs, labels = original(ids)
        kept = keep(collator, ids)
        return torch.where(kept, inputs, ids), labels.masked_fill(~kept, IGNORE_INDEX)

    draw_masks(case, draw)


def _replaced(case: Case, replace: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """Change the tokens that were put in at random."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        inputs, labels = original(ids)
        put_in = (inputs != ids) & (inputs != collator.tokenizer.mask_token_id)
        return torch.where(put_in, replace(collator, inputs), inputs), labels

    draw_masks(case, draw)


# How many, and what is put in


@graded(
    "masked_batches",
    Severity.SUBTLE,
    sizes=(1e-6, 1e-4, 0.001, 0.002, 0.005, 0.01, 0.03),
    required=(0.005, 0.01, 0.03),
    unit="below 0.15",
)
def mask_rate_too_low(case: Case, below: float) -> None:
    """A user mistypes mlm_probability, or a release rounds it."""

    def lower(collator: Any) -> None:
        collator.mlm_probability -= below

    change_collator(case, lower)


@graded(
    "masked_batches",
    Severity.SUBTLE,
    sizes=(1e-5, 0.001, 0.01, 0.03, 0.1, 0.2, 0.3),
    required=(0.1, 0.2, 0.3),
    unit="below 0.8",
)
def mask_token_too_rare(case: Case, below: float) -> None:
    """A release puts the mask token in less often and leaves the rest of the selected tokens as they are."""

    def rarer(collator: Any) -> None:
        collator.mask_replace_prob -= below

    change_collator(case, rarer)


@fault("masked_batches", Severity.SERIOUS)
def rate_applied_twice(case: Case) -> None:
    """A refactoring draws the selection twice and keeps what both draws have."""

    def squared(collator: Any) -> None:
        collator.mlm_probability **= 2

    change_collator(case, squared)


@fault("masked_batches", Severity.SUBTLE)
def exactly_that_many_selected(case: Case) -> None:
    """A release selects 15 % of each row exactly, as BERT's first code did, in place of each token by chance."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        special = torch.isin(ids, torch.tensor(collator.tokenizer.all_special_ids))
        order = torch.rand(ids.shape).masked_fill(special, 2.0).argsort(-1).argsort(-1)
        chosen = order < int(collator.mlm_probability * ids.shape[-1])
        fate = torch.rand(ids.shape)
        masked = ids.masked_fill(chosen & (fate < 0.8), collator.tokenizer.mask_token_id)
        inputs = masked.where(~chosen | (fate < 0.9), torch.randint(len(collator.tokenizer), ids.shape))
        return inputs, ids.masked_fill(~chosen, IGNORE_INDEX)

    draw_masks(case, draw)


@fault("masked_batches", Severity.SUBTLE)
def always_the_mask_token(case: Case) -> None:
    """A user switches the random and the unchanged tokens off, which the model has been trained with."""
    collate_with(case, mask_replace_prob=1.0, random_replace_prob=0.0)


@fault("masked_batches", Severity.SUBTLE)
def never_a_random_token(case: Case) -> None:
    """A release leaves out the random tokens, so that a fifth of the selected ones stay as they are."""
    collate_with(case, random_replace_prob=0.0)


@fault("masked_batches", Severity.SUBTLE)
def never_unchanged(case: Case) -> None:
    """A release puts a random token in wherever there is no mask token, so that no selected token stays as it is."""
    collate_with(case, random_replace_prob=1 - 0.8)


@fault("masked_batches", Severity.SUBTLE)
def random_tokens_of_half_the_vocabulary(case: Case) -> None:
    """A release draws random tokens below the size of another, smaller vocabulary."""
    _replaced(case, lambda collator, inputs: inputs % (len(collator.tokenizer) // 2))


@fault("masked_batches", Severity.SUBTLE)
def random_tokens_from_the_batch(case: Case) -> None:
    """A release takes the random tokens from the batch itself, where frequent words are frequent."""
    _replaced(case, lambda collator, inputs: inputs.flatten()[torch.randperm(inputs.numel())].view_as(inputs))


@fault("masked_batches", Severity.SERIOUS)
def random_tokens_are_special(case: Case) -> None:
    """A release draws random tokens from the list of special ids."""
    _replaced(case, lambda collator, inputs: inputs % 4)


@fault("masked_batches", Severity.FATAL)
def mask_id_off_by_one(case: Case) -> None:
    """A hard-coded id of the mask token is one too small."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        inputs, labels = original(ids)
        mask = collator.tokenizer.mask_token_id
        return inputs.where(inputs != mask, torch.tensor(mask - 1)), labels

    draw_masks(case, draw)


@fault("masked_batches", Severity.FATAL)
def mask_token_is_unknown(case: Case) -> None:
    """A hand-edited configuration names the unknown token as the mask token."""
    case.edit_json("tokenizer_config.json", lambda content: content.update(mask_token="<unk>"))


# Which positions


@fault("masked_batches", Severity.SERIOUS)
def special_tokens_selected(case: Case) -> None:
    """A release loses the special-tokens mask on the way, so that the borders between texts are predicted as well."""

    def make(original: Any) -> Any:
        def torch_mask_tokens(self: Any, inputs: Any, special_tokens_mask: Any = None, **kwargs: Any) -> Masked:
            return original(self, inputs, special_tokens_mask=torch.zeros_like(inputs), **kwargs)

        return torch_mask_tokens

    case.wrap(DataCollatorForLanguageModeling, "torch_mask_tokens", make)


@fault("masked_batches", Severity.SERIOUS)
def padding_token_no_longer_special(case: Case) -> None:
    """A release forgets about </s> once it is the padding token, so that padding and borders are predicted."""

    def make(original: Any) -> Any:
        def torch_mask_tokens(self: Any, inputs: Any, special_tokens_mask: Any = None, **kwargs: Any) -> Masked:
            tokenizer = self.tokenizer
            special = set(tokenizer.all_special_ids) - {tokenizer.pad_token_id}
            return original(self, inputs, torch.isin(inputs, torch.tensor(sorted(special))), **kwargs)

        return torch_mask_tokens

    case.wrap(DataCollatorForLanguageModeling, "torch_mask_tokens", make)


@fault("masked_batches", Severity.SERIOUS)
def padding_in_the_loss(case: Case) -> None:
    """A collator of one's own labels the padded positions of short rows with the padding token."""

    def change(collator: Any, batch: Any) -> None:
        batch["labels"][batch["attention_mask"] == 0] = collator.tokenizer.pad_token_id

    change_batches(case, change)


@fault("masked_batches", Severity.SUBTLE)
def other_padding_token(case: Case) -> None:
    """A user leaves out the line that makes the end-of-sequence token the padding token."""
    case.wrap(
        collate,
        "data_collator",
        lambda original: lambda tokenizer, **options: original(tokenizer, **options | {"pad_token": "pad_token"}),
    )


@fault("masked_batches", Severity.SUBTLE)
def first_position_never_selected(case: Case) -> None:
    """A release takes the first position for <s>, which a block of running text does not begin with."""
    _selected(case, lambda collator, ids: (torch.arange(ids.shape[-1]) > 0).expand_as(ids))


@fault("masked_batches", Severity.SERIOUS)
def second_half_never_selected(case: Case) -> None:
    """A mask that was made for rows of 64 tokens leaves the rest of each row alone."""
    _selected(case, lambda collator, ids: (torch.arange(ids.shape[-1]) < 64).expand_as(ids))


@fault("masked_batches", Severity.SERIOUS)
def last_row_never_masked(case: Case) -> None:
    """A loop over the rows of a batch stops one row early."""
    _selected(case, lambda collator, ids: (torch.arange(len(ids)) < len(ids) - 1)[:, None].expand_as(ids))


@fault("masked_batches", Severity.SERIOUS)
def whole_words_masked(case: Case) -> None:
    """A user takes the collator for whole words, which masks the rest of a word with its beginning."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        inputs, labels = original(ids)
        pieces = [collator.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
        inner = torch.tensor([[piece[0].isalpha() and piece[0] != "Ġ" for piece in row] for row in pieces])
        for place in range(1, ids.shape[-1]):
            with_it = inner[:, place] & (labels[:, place - 1] != IGNORE_INDEX)
            labels[with_it, place] = ids[with_it, place]
            inputs[with_it, place] = collator.tokenizer.mask_token_id
        return inputs, labels

    draw_masks(case, draw)


@fault("masked_batches", Severity.SERIOUS)
def one_pattern_for_all_rows(case: Case) -> None:
    """A release draws the positions once and broadcasts them over the rows of a batch."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        _, labels = original(ids)
        chosen = (labels[:1] != IGNORE_INDEX).expand_as(ids)
        return ids.masked_fill(chosen, collator.tokenizer.mask_token_id), ids.masked_fill(~chosen, IGNORE_INDEX)

    draw_masks(case, draw)


# Labels


@fault("masked_batches", Severity.SERIOUS)
def nothing_ignored(case: Case) -> None:
    """A collator of one's own keeps the labels of all positions, of which most need no prediction."""
    draw_masks(case, lambda collator, ids, original: (original(ids)[0], ids.clone()))


@fault("masked_batches", Severity.FATAL)
def labels_shifted(case: Case) -> None:
    """A collator for causal models moves the labels by one position."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        inputs, labels = original(ids)
        return inputs, labels.roll(-1, dims=-1)

    draw_masks(case, draw)


@fault("masked_batches", Severity.FATAL)
def labels_taken_after_masking(case: Case) -> None:
    """A collator that works in place copies the labels when the masks are in already."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        inputs, labels = original(ids)
        return inputs, torch.where(labels == IGNORE_INDEX, labels, inputs)

    draw_masks(case, draw)


@fault("masked_batches", Severity.SERIOUS)
def only_the_mask_token_predicted(case: Case) -> None:
    """A collator of one's own labels the positions that hold the mask token and forgets the other fifth."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        inputs, labels = original(ids)
        return inputs, labels.masked_fill(inputs != collator.tokenizer.mask_token_id, IGNORE_INDEX)

    draw_masks(case, draw)


@fault("masked_batches", Severity.SERIOUS)
def masked_positions_not_attended(case: Case) -> None:
    """A collator of one's own marks the masked positions in the attention mask, as the name suggests."""

    def change(collator: Any, batch: Any) -> None:
        batch["attention_mask"][batch["labels"] != IGNORE_INDEX] = 0

    change_batches(case, change)


# Seeds


def _seeded(case: Case, seed: Callable[[], int]) -> None:
    """Draw the masks of every batch from a generator of their own, the global one untouched."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed())
            return original(ids)

    draw_masks(case, draw)


@fault("masked_batches", Severity.SERIOUS)
def seeded_in_every_call(case: Case) -> None:
    """A user seeds the collator's generator in every call, so that all batches have one pattern in all epochs."""
    _seeded(case, lambda: 42)


@fault("masked_batches", Severity.SUBTLE)
def masks_unseeded(case: Case) -> None:
    """A release draws the masks from the operating system's entropy."""
    _seeded(case, lambda: int.from_bytes(os.urandom(4), "big"))


@fault("masked_batches", Severity.SERIOUS)
def masks_drawn_once(case: Case) -> None:
    """A script masks the data in preprocessing, so that every epoch sees a row with the same masks."""
    _seeded_by_row(case)


def _seeded_by_row(case: Case) -> None:
    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        masked = []
        with torch.random.fork_rng(devices=[]):
            for row in ids:
                torch.manual_seed(int(row.sum()))  # of the row alone
                masked.append(original(row[None]))
        return torch.cat([inputs for inputs, _ in masked]), torch.cat([labels for _, labels in masked])

    draw_masks(case, draw)


@fault("masked_batches", Severity.SUBTLE)
def generator_drawn_from_twice(case: Case) -> None:
    """A release draws the masks of a batch twice and uses the second draw."""

    def draw(collator: Any, ids: torch.Tensor, original: Draw) -> Masked:
        original(ids)
        return original(ids)

    draw_masks(case, draw)
