"""Masks: what the collator draws, by exact binomial tests, and what it must never touch, at every position."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlmrepro.config import EMBEDDED, IGNORE_INDEX
from mlmrepro.guide.collate import data_collator
from mlmrepro.observations.masking import Drawn, mask_breaches, replacement_shares, share, uniformity

Batch = dict[str, torch.Tensor]
Row = dict[str, list[int]]

CHECKPOINT = EMBEDDED / "checkpoint"
PROBABILITY = 0.15
PAD_TOKENS = ("eos_token", "pad_token")  # the guide's own choice first


@cache
def tokenizer(pad_token: str) -> PreTrainedTokenizerBase:
    """Load the embedded tokenizer, one for each padding token, since data_collator changes it."""
    return AutoTokenizer.from_pretrained(str(CHECKPOINT))


def collator(pad_token: str = "eos_token", mlm_probability: float = PROBABILITY) -> Callable[[list[Row]], Batch]:
    """Return the collator under test on the embedded tokenizer."""
    return data_collator(tokenizer(pad_token), mlm_probability=mlm_probability, pad_token=pad_token)


VOCAB = len(tokenizer("eos_token"))
BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, VOCAB - 1
SPECIAL = (BOS, EOS, UNK, MASK)  # and PAD, which is in no row
PAD_IDS = {"eos_token": EOS, "pad_token": PAD}
ORDINARY = st.integers(UNK + 1, MASK - 1)


def row(ids: list[int]) -> Row:
    """Return one row as the grouped data set holds it."""
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def draw(collate: Callable[[list[Row]], Batch], rows: list[Row], seed: int) -> Batch:
    """Collate under a seed, and assert that the rows themselves stay as they were."""
    before = deepcopy(rows)
    torch.manual_seed(seed)
    batch = collate(rows)
    assert rows == before
    return dict(batch)


def padded(rows: list[Row], pad_id: int) -> torch.Tensor:
    """Return the rows' tokens, padded on the right to the longest."""
    longest = max(len(r["input_ids"]) for r in rows)
    return torch.tensor([r["input_ids"] + [pad_id] * (longest - len(r["input_ids"])) for r in rows])


def ordinary(rows: list[Row]) -> torch.Tensor:
    """Return where a token may be selected: at real positions that hold no special token."""
    tokens = padded(rows, PAD)
    return ~torch.isin(tokens, torch.tensor((*SPECIAL, PAD)))


def check_masks(batch: Batch, rows: list[Row], pad_id: int) -> None:
    """Assert what holds at every position of every batch, whatever was drawn."""
    plain = [r["input_ids"] for r in rows]
    breaches = mask_breaches(batch, plain, pad_id=pad_id, special_ids=SPECIAL)
    broken = ", ".join(rule for rule, count in breaches.items() if count)
    assert not broken, broken
    assert ((batch["input_ids"] >= 0) & (batch["input_ids"] < VOCAB)).all()


def check_rates(batches: list[Batch], rows: list[list[Row]], mlm_probability: float = PROBABILITY) -> None:
    """Assert the selection rate, 80/10/10 and the spread of random tokens by the laws' tests.

    Originals are of the lower half, which makes the half of the visible replacements a binomial too.
    """
    where = [ordinary(r) for r in rows]
    originals = torch.cat([padded(r, PAD)[w] for r, w in zip(rows, where, strict=True)]).numpy()
    assert (originals < VOCAB // 2).all()
    inputs = torch.cat([b["input_ids"][w] for b, w in zip(batches, where, strict=True)]).numpy()
    selected = torch.cat([b["labels"][w] != IGNORE_INDEX for b, w in zip(batches, where, strict=True)]).numpy()
    drawn = Drawn(originals, inputs, selected, MASK, (*SPECIAL, PAD), VOCAB)
    other = inputs[selected & (inputs != MASK) & (inputs != originals)]
    lower = int((other < VOCAB // 2).sum())
    measured = [
        share("selected", "selected", int(selected.sum()), selected.size, mlm_probability),
        *replacement_shares(drawn, "selected", "of the selected"),
        share("lower_half", "lower half of random tokens", lower, len(other), (VOCAB // 2 - 1) / (VOCAB - 2)),
        *uniformity(drawn),
    ]
    broken = [f"{each.name}: {each.value}, {each.bound}" for each in measured if not each.holds]
    assert not broken, "; ".join(broken)


@cache
def sample_rows() -> list[list[Row]]:
    """Draw 200 batches of 16 rows of up to 128 tokens: lower-half tokens between special ones, and padding."""
    generator = torch.Generator().manual_seed(20)
    batches = []
    for _ in range(200):
        lengths = torch.randint(96, 129, (16,), generator=generator).tolist()
        tokens = torch.randint(UNK + 1, VOCAB // 2, (16, 128), generator=generator).tolist()
        pairs = zip(tokens, lengths, strict=True)
        batches.append([row([BOS, *ids[2:60], EOS, BOS, *ids[62:length], EOS]) for ids, length in pairs])
    return batches


def sample(mlm_probability: float = PROBABILITY) -> list[Batch]:
    """Collate all of sample_rows in one stream of draws."""
    collate = collator(mlm_probability=mlm_probability)
    torch.manual_seed(15)
    return [dict(collate(rows)) for rows in sample_rows()]


@cache
def fair_sample() -> list[Batch]:
    """Keep the sample at the guide's rate, which several tests read and none changes."""
    return sample()


def test_the_embedded_tokenizer_has_the_ids_these_tests_rest_on() -> None:
    """The special tokens are the first four ids and the last."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer("pad_token").convert_tokens_to_ids(tokens) == [BOS, PAD, EOS, UNK, MASK]


def test_rates() -> None:
    """15 % of the ordinary tokens are selected; of these 80 % are masked, 10 % random, 10 % kept."""
    check_rates(fair_sample(), sample_rows())
    for batch, rows in zip(fair_sample(), sample_rows(), strict=True):
        check_masks(batch, rows, EOS)


SEEDS = st.integers(0, 2**32 - 1)  # torch's generator on the CPU reads 32 bits of a seed
ROWS = st.lists(st.lists(ORDINARY | st.sampled_from(SPECIAL), min_size=1, max_size=24).map(row), min_size=1, max_size=5)


@settings(max_examples=100)
@given(rows=ROWS, seed=SEEDS, mlm_probability=st.sampled_from([PROBABILITY, 0.5, 1.0]), pad=st.sampled_from(PAD_TOKENS))
@example(rows=[row([BOS, EOS]), row([BOS, *range(10, 40), EOS])], seed=0, mlm_probability=1.0, pad="eos_token")
def test_any_batch_keeps_to_the_rules(rows: list[Row], seed: int, mlm_probability: float, pad: str) -> None:
    """No special token and no padding is ever selected; labels and inputs equal the originals where they must."""
    batch = draw(collator(pad, mlm_probability), rows, seed)
    check_masks(batch, rows, PAD_IDS[pad])
    if mlm_probability == 1.0:
        assert torch.equal(batch["labels"] != IGNORE_INDEX, ordinary(rows)), "an ordinary token is left out"


@settings(max_examples=25)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=4), seed=SEEDS)
def test_any_tokenised_text_keeps_to_the_rules(texts: list[str], seed: int) -> None:
    """Rows that the tokenizer made of any unicode text obey the same rules."""
    encoded = tokenizer("eos_token")(texts)
    rows = [row(ids) for ids in encoded["input_ids"]]
    check_masks(draw(collator(mlm_probability=0.5), rows, seed), rows, EOS)


def check_seeds(one: Batch, again: Batch, other: Batch) -> None:
    """Assert that `again` equals `one` everywhere and that `other` differs from it in selection and input."""
    for name in one:
        assert torch.equal(one[name], again[name]), name
    assert torch.equal(one["attention_mask"], other["attention_mask"])
    for name in ("input_ids", "labels"):
        assert not torch.equal(one[name], other[name]), name


@settings(max_examples=25)
@given(seeds=st.lists(SEEDS, min_size=2, max_size=2, unique=True))
@example(seeds=[0, 1])
def test_draws_follow_the_torch_seed(seeds: list[int]) -> None:
    """Equal torch seeds give equal draws, other seeds and later calls other ones."""
    rows, collate = sample_rows()[0], collator()
    one = draw(collate, rows, seeds[0])
    later = dict(collate(rows))
    again = draw(collate, rows, seeds[0])
    check_seeds(one, again, draw(collate, rows, seeds[1]))
    check_seeds(one, again, later)


@pytest.mark.parametrize("rate", [0.12, 0.14, 0.16])
def test_another_selection_rate_is_rejected(rate: float) -> None:
    """The binomial tests reject a collator that selects a little less or more than 15 %."""
    with pytest.raises(AssertionError, match=r"^selected"):
        check_rates(sample(rate), sample_rows())


def _always_masked(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    batch["input_ids"][selected] = MASK


def _never_random(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    inputs = batch["input_ids"]
    random = selected & (inputs != MASK)
    inputs[random] = originals[random]


def _never_kept(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    batch["input_ids"][selected & (batch["input_ids"] == originals)] = MASK


def _random_of_half(batch: Batch, originals: torch.Tensor, selected: torch.Tensor) -> None:
    inputs = batch["input_ids"]
    other = selected & (inputs != MASK) & (inputs != originals)
    inputs[other] = inputs[other] % (VOCAB // 2)


@pytest.mark.parametrize("plant", [_always_masked, _never_random, _never_kept, _random_of_half])
def test_another_split_than_80_10_10_is_rejected(plant: Callable[..., None]) -> None:
    """The binomial tests reject a sample in which the selected tokens are treated otherwise."""
    batches = deepcopy(fair_sample())
    for batch, rows in zip(batches, sample_rows(), strict=True):
        plant(batch, padded(rows, EOS), batch["labels"] != IGNORE_INDEX)
    with pytest.raises(
        AssertionError,
        match=r"^(share of mask tokens|share of unchanged|share of random|lower half|random tokens|chi-square)",
    ):
        check_rates(batches, sample_rows())


FAULTS: dict[str, Callable[[Batch, torch.Tensor, torch.Tensor], Any]] = {
    "labels all kept": lambda b, originals, selected: b["labels"].copy_(originals),
    "labels of the masked input": lambda b, originals, selected: b["labels"].copy_(
        torch.where(selected, b["input_ids"], IGNORE_INDEX)
    ),
    "labels moved by one": lambda b, originals, selected: b["labels"].copy_(b["labels"].roll(1, dims=1)),
    "an input changed beside": lambda b, originals, selected: b["input_ids"].__setitem__(
        tuple((~selected & (originals > UNK)).nonzero()[0]), MASK
    ),
    "padding attended": lambda b, originals, selected: b["attention_mask"].fill_(1),
    "padding selected": lambda b, originals, selected: b["labels"].__setitem__((0, -1), EOS),
    "padded with another token": lambda b, originals, selected: b["input_ids"].__setitem__((0, -1), PAD),
    "the first token selected": lambda b, originals, selected: b["labels"].__setitem__((0, 0), BOS),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_rejected(fault: str) -> None:
    """The check of every position accepts the batch as drawn and rejects it with a planted fault."""
    rows = [row([BOS, *range(10, 30), EOS]), row([BOS, *range(30, 80), EOS])]
    batch = draw(collator(), rows, seed=1)
    check_masks(batch, rows, EOS)
    FAULTS[fault](batch, padded(rows, EOS), batch["labels"] != IGNORE_INDEX)
    with pytest.raises(AssertionError):
        check_masks(batch, rows, EOS)


def test_selected_special_tokens_are_rejected() -> None:
    """The check rejects the real collator once it is told that no token is special."""
    rows = [row([BOS, *range(10, 30), EOS, UNK, MASK])]
    blind = [rows[0] | {"special_tokens_mask": [0] * len(rows[0]["input_ids"])}]
    with pytest.raises(AssertionError, match="special tokens selected"):
        check_masks(draw(collator(mlm_probability=1.0), blind, seed=0), rows, EOS)


def test_wrong_seeding_is_rejected() -> None:
    """The check of seeds rejects draws that repeat under another seed and draws that differ under the same."""
    rows, collate = sample_rows()[0], collator()
    one, other = draw(collate, rows, 0), draw(collate, rows, 1)
    with pytest.raises(AssertionError):
        check_seeds(one, one, one)
    with pytest.raises(AssertionError):
        check_seeds(one, other, other)
