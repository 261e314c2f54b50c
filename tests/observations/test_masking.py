"""The collator's laws: held by the libraries' collator, and each broken by draws that are a little off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.guide import collate
from mlmrepro.observations import masking
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject

from . import held

LAWS = held.names("masking")
Patch = pytest.MonkeyPatch
Batch = dict[str, torch.Tensor]


def test_holds_for_another_seed(tmp_path: Path) -> None:
    """Other draws keep the exact tests too: their bounds are wide enough for chance."""
    subject = held.subject(tmp_path, seed=1)
    for law in LAWS:
        result = held.measure(law, subject)
        assert result.verdict is BoundVerdict.HOLDS, f"{law}: {held.broken(result)}"


@pytest.mark.parametrize("kind", ["WordPiece", "esm"])
def test_holds_for_other_tokenizers(kind: str, tmp_path: Path) -> None:
    """A tokenizer without an end-of-sequence token, and one of thirty ids, keep the laws as well."""
    subject = held.subject(tmp_path, held.checkpoint(kind, tmp_path))
    for law in ("replacements_80_10_10", "random_replacements_are_uniform", "special_tokens_stay", "nothing_selected"):
        result = held.measure(law, subject)
        assert result.verdict is BoundVerdict.HOLDS, f"{law}: {held.broken(result)}"


@pytest.mark.parametrize("end", [0.92, 1.08])
def test_a_rate_that_slopes_over_the_row_is_seen(end: float) -> None:
    """By 8 % from end to end, either way, in more than 95 of 100 samples of the law's size; never where it is even."""
    rng, caught = np.random.default_rng(0), 0
    rates = masking.RATE * np.linspace(2 / (1 + end), 2 * end / (1 + end), masking.COLUMNS)
    for _ in range(100):
        caught += not masking.trend(rng.random((4, 1_250, masking.COLUMNS)) < rates).holds
    assert caught > 95
    for _ in range(20):
        assert masking.trend(rng.random((4, 1_250, masking.COLUMNS)) < masking.RATE).holds


class Changed:
    """A collator whose batches `change(batch, originals, selected)` alters."""

    def __init__(self, collator: Any, change: Callable[[Batch, torch.Tensor, torch.Tensor], Any]) -> None:
        self.collator, self.change = collator, change

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = dict(self.collator(rows))
        pad = self.collator.tokenizer.pad_token_id
        width = batch["labels"].shape[1]
        originals = torch.tensor([row["input_ids"] + [pad] * (width - len(row["input_ids"])) for row in rows])
        self.change(batch, originals, batch["labels"] != IGNORE_INDEX)
        return batch


def _after(change: Callable[[Batch, torch.Tensor, torch.Tensor], Any]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        original = collate.data_collator
        patch.setattr(collate, "data_collator", lambda *args, **options: Changed(original(*args, **options), change))

    return plant


def _rate(times: float) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        original = collate.data_collator
        patch.setattr(
            collate,
            "data_collator",
            lambda tokenizer, *, mlm_probability, pad_token: original(
                tokenizer, mlm_probability=min(1.0, mlm_probability * times), pad_token=pad_token
            ),
        )

    return plant


def _select(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    """Select these positions in place of the drawn ones; all of them become masks."""
    batch["labels"].copy_(torch.where(selected, originals, IGNORE_INDEX))
    batch["input_ids"].copy_(torch.where(selected, held_mask(), originals))


def held_mask() -> int:
    return 15_999  # the embedded tokenizer's


def _one_mask_for_all_rows(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    _select(batch, originals, selected[:1].expand_as(selected))


def _pairs_of_neighbours(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    _select(batch, originals, selected[:, ::2].repeat_interleave(2, dim=1))


def _never_first(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    selected[:, 0] = False
    _select(batch, originals, selected)


def _fewer_to_the_right(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    kept = torch.rand(selected.shape) < torch.linspace(1, 0.8, selected.shape[1])
    _select(batch, originals, selected & kept)


def _same_in_each_call(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    drawn = torch.rand(selected.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    _select(batch, originals, drawn)


def _seventy_per_cent(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    masks = batch["input_ids"] == held_mask()
    turned = masks & selected & (torch.rand(selected.shape) < 1 / 8)
    batch["input_ids"][turned] = torch.randint(4, 15_999, (int(turned.sum()),))


def _one_per_cent_less(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    turned = (batch["input_ids"] == held_mask()) & selected & (torch.rand(selected.shape) < 1 / 80)
    batch["input_ids"][turned] = originals[turned]


def _random(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Patch], None]:
    def changed(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
        other = selected & (batch["input_ids"] != held_mask()) & (batch["input_ids"] != originals)
        batch["input_ids"][other] = change(batch["input_ids"][other])

    return _after(changed)


def _nothing_raises(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    if not selected.any():
        raise ValueError("nothing is selected")


def _everything_if_nothing(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    if not selected.any():
        _select(batch, originals, ~selected)


def _own_generator(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    _select(batch, originals, torch.from_numpy(np.random.default_rng().random(selected.shape) < 0.15))


def _no_special_tokens(patch: Patch) -> None:
    original = collate.data_collator

    def blind(tokenizer: Any, **options: Any) -> Any:
        patch.setattr(type(tokenizer), "get_special_tokens_mask", lambda self, ids, *args, **kwargs: [0] * len(ids))
        return original(tokenizer, **options)

    patch.setattr(collate, "data_collator", blind)


def _labels_of_the_input(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    batch["labels"][selected] = batch["input_ids"][selected]


def _all_attended(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    batch["attention_mask"].fill_(1)


PLANTS: dict[str, tuple[str, str, Callable[[Patch], None]]] = {
    "0.145 selected": ("selection_rate", "share of tokens selected", _rate(0.145 / 0.15)),
    "0.155 selected": ("selection_rate", "share of tokens selected", _rate(0.155 / 0.15)),
    "one mask for all rows": ("masks_are_drawn_independently", "two rows", _after(_one_mask_for_all_rows)),
    "the same in each call": ("masks_are_drawn_independently", "two calls", _after(_same_in_each_call)),
    "pairs of neighbours": ("masks_are_drawn_independently", "neighbours", _after(_pairs_of_neighbours)),
    "never the first": ("masks_are_drawn_independently", "least often", _after(_never_first)),
    "fewer to the right": ("masks_are_drawn_independently", "chi-square", _after(_fewer_to_the_right)),
    "70/20/10": ("replacements_80_10_10", "share of mask tokens, at the guide's rate", _after(_seventy_per_cent)),
    "79/10/11": ("replacements_80_10_10", "share of unchanged tokens, with all", _after(_one_per_cent_less)),
    "half the vocabulary": ("random_replacements_are_uniform", "chi-square", _random(lambda ids: ids // 2)),
    "one random token": ("random_replacements_are_uniform", "chi-square", _random(torch.zeros_like)),
    "no random token": (
        "random_replacements_are_uniform",
        "random tokens = 0",
        _random(lambda ids: torch.full_like(ids, held_mask())),
    ),
    "raises on nothing": ("nothing_selected", "raises ValueError", _after(_nothing_raises)),
    "takes all for nothing": ("nothing_selected", "positions selected", _after(_everything_if_nothing)),
    "a generator of its own": ("masks_follow_the_seed", "the same seed", _after(_own_generator)),
    "a fixed generator": ("masks_follow_the_seed", "the next call", _after(_same_in_each_call)),
    "special tokens selected": (
        "special_tokens_stay",
        "special tokens that are selected = </s> <mask> <s>",
        _no_special_tokens,
    ),
    "padding selected": (
        "special_tokens_stay",
        "pad tokens for which padding positions are masked = eos_token",
        _no_special_tokens,
    ),
    "labels of the input": ("special_tokens_stay", "labels that are not", _after(_labels_of_the_input)),
    "all attended": ("special_tokens_stay", "attended otherwise", _after(_all_attended)),
    "some left out": ("special_tokens_stay", "ordinary tokens left out", _rate(0.9)),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_other_draws_break_a_law(plant: str, embedded: Subject, monkeypatch: Patch) -> None:
    """A collator that draws otherwise is told by the law that speaks of it, with the number."""
    law, what, change = PLANTS[plant]
    change(monkeypatch)
    held.assert_broken(law, embedded, what)


def test_every_law_is_broken_by_something() -> None:
    """No law of the group is without a fault that it tells."""
    assert {law for law, _, _ in PLANTS.values()} == set(LAWS)


def power(bound: Any, count: int, probability: float) -> float:
    """Return how likely a share of `count` draws at another probability is out of its bounds."""
    inside = binom.cdf(round(bound.at_most * count), count, probability)
    return float(1 - inside + binom.cdf(round(bound.at_least * count) - 1, count, probability))


@settings(max_examples=60)
@given(st.integers(1_000, 400_000), st.floats(0.01, 0.99), st.sampled_from([1, 128]))
@example(320_000, 0.15, 1)
def test_a_right_share_is_out_of_its_bounds_once_in_a_million(count: int, probability: float, tests: int) -> None:
    """The bounds of a share are those of the exact test: as tight as ALPHA allows, and no tighter."""
    bound = masking.share("some", "some share", 0, count, probability, tests=tests).bound
    assert bound.at_least is not None
    assert bound.at_most is not None
    assert power(bound, count, probability) <= masking.ALPHA / tests
    tighter = replace(bound, at_least=bound.at_least + 1 / count, at_most=bound.at_most - 1 / count)
    assert power(tighter, count, probability) > masking.ALPHA / tests / 2


@pytest.mark.parametrize(
    ("count", "right", "wrong", "least"),
    [
        (320_000, 0.15, 0.145, 0.998),
        (320_000, 0.15, 0.155, 0.998),
        (128_000, 0.8, 0.79, 0.999),
        (128_000, 0.1, 0.107, 0.999),
    ],
)
def test_the_power_is_what_the_laws_say(count: int, right: float, wrong: float, least: float) -> None:
    """The draws are enough for the deviations that the laws say they catch."""
    assert power(masking.share("some", "some share", 0, count, right).bound, count, wrong) >= least


def test_where_nothing_is_drawn_no_share_holds() -> None:
    """A share of nothing is no number, and keeps no bound."""
    assert not masking.share("some", "some share", 0, 0, 0.5).holds


def test_special_tokens_are_counted_among_the_replacements(embedded: Subject) -> None:
    """Random replacements that are special tokens are shown, with the number that chance gives."""
    result = held.measure("random_replacements_are_uniform", embedded)
    numbers = {each.slug: each for each in result.values}
    assert not numbers["special_replacements"].bound
    expected = float(numbers["expected_special_replacements"].value)
    # Three of five: a mask looks like a mask, and <pad> is none while the end-of-sequence token pads.
    assert expected == pytest.approx(12_800 * 3 / 16_000, rel=0.1)
