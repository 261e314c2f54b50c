"""The collator's masks: exact tests of their distribution, and rules that hold for every draw.

A correct collator fails each test with probability `ALPHA`. The subject's seed is fixed, so this is the probability
that a version with another random stream raises a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm

from mlmrepro.config import IGNORE_INDEX, GuideConfig
from mlmrepro.guide import collate
from mlmrepro.observations.observation import observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

if TYPE_CHECKING:
    import torch

__all__ = [
    "ALPHA",
    "PADDING",
    "SPECIAL",
    "Drawn",
    "collated",
    "collator_of",
    "draw",
    "independence",
    "mask_breaches",
    "masks_are_drawn_independently",
    "masks_follow_the_seed",
    "nothing_selected",
    "pad_tokens",
    "plain_rows",
    "random_replacements_are_uniform",
    "replacement_shares",
    "replacements_80_10_10",
    "selection_rate",
    "share",
    "special_tokens_stay",
    "trend",
    "uniformity",
]

ALPHA = 1e-6
RATE = GuideConfig().mlm_probability
COLUMNS = 128
MISSHAPEN, PADDING, SPECIAL = "tensors absent or of another shape", "padding selected", "special tokens selected"
RULES = {  # what counts as a breach, and its slug
    MISSHAPEN: "misshapen_tensors",
    "attended otherwise than the real tokens": "wrong_attention",
    PADDING: "selected_padding",
    SPECIAL: "selected_special_tokens",
    "labels that are not the original": "wrong_labels",
    "inputs changed where none is selected": "changed_inputs",
}
_SOURCE = "Devlin et al. 2019, arXiv:1810.04805, section 3.1; transformers.DataCollatorForLanguageModeling"


def pad_tokens(tokenizer: Any) -> list[str]:
    """Return the guide's options for the pad token that the tokenizer has, the guide's own choice first."""
    return [name for name in ("eos_token", "pad_token") if getattr(tokenizer, name) is not None]


def plain_rows(rows: Sequence[Sequence[int]], tokenizer: Any) -> list[dict[str, Any]]:
    """Return rows of ids as the mapped dataset stores them; some models (FNet) have no attention mask."""
    attended = "attention_mask" in tokenizer.model_input_names
    return [{"input_ids": list(row)} | ({"attention_mask": [1] * len(row)} if attended else {}) for row in rows]


def collator_of(subject: Subject, *, mlm_probability: float = RATE) -> tuple[Any, Any]:
    """Return the guide's collator with a newly loaded tokenizer, and that tokenizer."""
    tokenizer = subject.fresh_tokenizer()
    pad_token = pad_tokens(tokenizer)[0]
    return collate.data_collator(tokenizer, mlm_probability=mlm_probability, pad_token=pad_token), tokenizer


@dataclass(frozen=True)
class Drawn:
    """What a collator made of ordinary tokens; each array has the shape (calls, rows, columns)."""

    originals: NDArray[np.int64]
    inputs: NDArray[np.int64]
    selected: NDArray[np.bool_]
    mask_id: int
    special_ids: Sequence[int]
    vocabulary: int


def draw(subject: Subject, rows: int, *, mlm_probability: float = RATE, calls: int = 4) -> Drawn:
    """Collate `rows` rows of 128 ordinary tokens, uniform over the vocabulary, in `calls` calls after one seed."""
    import torch

    collator, tokenizer = collator_of(subject, mlm_probability=mlm_probability)
    rng = np.random.default_rng([subject.seed, 10])
    size = len(tokenizer)
    special = sorted(token for token in set(tokenizer.all_special_ids) if token < size)
    originals = rng.choice(np.setdiff1d(np.arange(size), special), size=(calls, rows // calls, COLUMNS))
    torch.manual_seed(subject.seed)
    batches = [collator([{"input_ids": row} for row in call.tolist()]) for call in originals]
    inputs = np.stack([batch["input_ids"].numpy() for batch in batches])
    selected = np.stack([batch["labels"].numpy() for batch in batches]) != IGNORE_INDEX
    return Drawn(originals, inputs, selected, int(tokenizer.mask_token_id), special, size)


def share(slug: str, title: str, hits: int, count: int, probability: float, *, tests: int = 1) -> Value:
    """Bound a share by a two-sided exact binomial test at the level ALPHA, divided among `tests` tests."""
    if not count:
        return value(slug, math.nan, title, equals=probability, reason="nothing was drawn")
    tail = ALPHA / tests / 2
    return value(
        slug,
        hits / count,
        title,
        at_least=float(binom.ppf(tail, count, probability)) / count,
        at_most=float(binom.isf(tail, count, probability)) / count,
        reason=f"{probability:.6g} within an exact binomial test of {count} draws at {ALPHA:g}"
        + (f", shared by {tests} positions" if tests > 1 else ""),
    )


def _chi_square(slug: str, title: str, statistic: float, freedom: int) -> Value:
    """Bound a chi-square statistic by its upper tail at the level ALPHA."""
    reason = f"the chi-square distribution of {freedom} degrees of freedom is above it once in {1 / ALPHA:,.0f}"
    return value(slug, statistic, title, at_most=float(chi2.isf(ALPHA, freedom)), reason=reason)


@observation(
    "masked_batches", source=_SOURCE, cause="mlm_probability does not reach the collator, or another rate is applied"
)
def selection_rate(subject: Subject) -> Iterator[Value]:
    """Each ordinary token is selected with the guide's probability, 15 %.

    With 320,000 draws, a rate that is off by 0.005 is detected with a power of 0.998.
    """
    drawn = draw(subject, 2_500)
    hits, count = int(drawn.selected.sum()), drawn.selected.size
    yield share("selected_share", "share of tokens selected", hits, count, RATE)


@observation(
    "masked_batches", source=_SOURCE, cause="positions, rows or calls share random draws, or spans or words are drawn"
)
def masks_are_drawn_independently(subject: Subject) -> Iterator[Value]:
    """All positions are selected at the same rate, independently of their neighbours, other rows and earlier calls.

    A rate that changes linearly by 8 % over the row (0.012 from end to end) is detected in 5,000 rows with a power of
    0.998; the chi-square test on 1,000 rows would miss it.
    """
    yield from independence(draw(subject, 1_000).selected)
    yield trend(draw(subject, 5_000).selected)


def independence(selected: NDArray[np.bool_]) -> Iterator[Value]:
    """Test the positions and pairs of a selection (calls, rows, columns) against the guide's rate."""
    by_position = selected.sum(axis=(0, 1))
    count = selected.shape[0] * selected.shape[1]
    spread = float(((by_position - count * RATE) ** 2).sum() / (count * RATE * (1 - RATE)))
    positions = selected.shape[2]
    yield _chi_square("position_chi_square", "chi-square over positions", spread, positions)
    for what, hits in (("least", by_position.min()), ("most", by_position.max())):
        title = f"share at the position {what} often selected"
        yield share(f"{what}_selected_position_share", title, int(hits), count, RATE, tests=positions)
    # The pairs do not overlap and so are independent: the number selected together is binomial.
    pairs = {
        ("neighbours", "neighbours in a row"): selected[:, :, 0:-1:2] & selected[:, :, 1::2],
        ("rows", "the same place of two rows"): selected[:, 0:-1:2] & selected[:, 1::2],
        ("calls", "the same place of two calls"): selected[0:-1:2] & selected[1::2],
    }
    for (slug, what), both in pairs.items():
        title = f"share selected together: {what}"
        yield share(f"joint_share_{slug}", title, int(both.sum()), both.size, RATE**2)


def trend(selected: NDArray[np.bool_]) -> Value:
    """Test the slope of the rate over the positions of (calls, rows, columns) with the Cochran-Armitage test.

    The rate is known, so the position-weighted sum of hits has a known deviation. From 1,000 rows on it is close enough
    to normal.
    """
    where = np.linspace(-0.5, 0.5, selected.shape[2])
    count = selected.shape[0] * selected.shape[1]
    deviation = math.sqrt(count * RATE * (1 - RATE) * float((where**2).sum()))
    return value(
        "rate_slope",
        abs(float(selected.sum(axis=(0, 1)) @ where)) / deviation,
        "slope of the rate over the row, in standard errors",
        at_most=float(norm.isf(ALPHA / 2)),
        reason=f"a normal distribution is further off once in {1 / ALPHA:,.0f} (Armitage 1955, trend in proportions)",
    )


@observation(
    "masked_batches", source=_SOURCE, cause="selected tokens do not become 80 % mask, 10 % random, 10 % unchanged"
)
def replacements_80_10_10(subject: Subject) -> Iterator[Value]:
    """Of the selected tokens, 80 % become the mask token, 10 % become a random token and 10 % stay unchanged.

    With every token selected, 128,000 draws distinguish 0.80 from 0.79, and 0.10 from 0.107, with a power of 0.999.
    """
    yield from replacement_shares(draw(subject, 1_000), "guide_rate", "at the guide's rate")
    drawn = draw(subject, 1_000, mlm_probability=1.0)
    yield from replacement_shares(drawn, "all_selected", "with all selected")


def replacement_shares(drawn: Drawn, suffix: str, when: str) -> Iterator[Value]:
    """Measure what the selected tokens became; the slugs end in `suffix`.

    A random replacement is uniform over the whole vocabulary: with probability 1 / vocabulary each, it is the original
    token or the mask token.
    """
    seen, originals = drawn.inputs[drawn.selected], drawn.originals[drawn.selected]
    masked, kept, once = seen == drawn.mask_id, seen == originals, 1 / drawn.vocabulary
    for slug, what, hits, probability in (
        ("mask", "mask tokens", masked, 0.8 + 0.1 * once),
        ("unchanged", "unchanged tokens", kept, 0.1 + 0.1 * once),
        ("random", "random tokens", ~masked & ~kept, 0.1 * (1 - 2 * once)),
    ):
        yield share(f"{slug}_share_{suffix}", f"share of {what}, {when}", int(hits.sum()), len(seen), probability)


@observation(
    "masked_batches", source=_SOURCE, cause="random replacements are drawn from part of the vocabulary, or unevenly"
)
def random_replacements_are_uniform(subject: Subject) -> Iterator[Value]:
    """Random replacements are uniform over the whole vocabulary, including special tokens."""
    yield from uniformity(draw(subject, 1_000, mlm_probability=1.0))


def uniformity(drawn: Drawn) -> Iterator[Value]:
    """Test whether random replacements are uniform over the ids, in at most 64 ranges of ids."""
    seen, originals = drawn.inputs[drawn.selected], drawn.originals[drawn.selected]
    random = seen[(seen != drawn.mask_id) & (seen != originals)]
    yield value("random_tokens", len(random), "random tokens", at_least=1, unit=f"of {len(seen)} selected")
    if not len(random):
        return
    # A random mask token looks like a mask; a random original token, an ordinary one, looks unchanged.
    weights = np.full(drawn.vocabulary, 1 - 1 / (drawn.vocabulary - len(drawn.special_ids)))
    weights[list(drawn.special_ids)] = 1.0
    weights[drawn.mask_id] = 0.0
    ranges = min(64, drawn.vocabulary // 2)
    which = np.arange(drawn.vocabulary) * ranges // drawn.vocabulary
    expected = np.bincount(which, weights=weights) / weights.sum() * len(random)
    observed = np.bincount(which[random], minlength=ranges)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    yield _chi_square("vocabulary_chi_square", "chi-square over the vocabulary", statistic, ranges - 1)
    special, unit = int(np.isin(random, drawn.special_ids).sum()), f"of {len(random)}"
    yield value("special_replacements", special, "special tokens among the replacements", unit=unit, shown=True)
    likely = float(weights[list(drawn.special_ids)].sum() / weights.sum() * len(random))
    yield value("expected_special_replacements", likely, "special tokens expected", shown=True)


def mask_breaches(
    batch: Mapping[str, torch.Tensor],
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    special_ids: Sequence[int],
    width: int | None = None,
    names: Sequence[str] = ("input_ids", "attention_mask", "labels"),
) -> dict[str, int]:
    """Count the breaches of each rule that holds for every draw; `width` is the padded length (default: longest row).

    The rules: the tensors are those in `names`, int64 and of shape (rows, width); padding is on the right and not
    attended; neither padding nor special tokens are selected; labels are the originals; nothing else is changed.
    """
    import torch

    shape = (len(rows), width or max(map(len, rows)))
    formed = {name for name, tensor in batch.items() if tensor.shape == shape and tensor.dtype == torch.int64}
    misshapen = len(set(names) ^ formed) + len(set(batch) - formed)
    if not set(names) <= formed:
        return {MISSHAPEN: misshapen}
    originals = torch.full(shape, pad_id)
    real = torch.zeros(shape, dtype=torch.bool)
    for n, row in enumerate(rows):
        originals[n, : len(row)] = torch.tensor(row)
        real[n, : len(row)] = True
    selected = batch["labels"] != IGNORE_INDEX
    special = real & torch.isin(originals, torch.tensor(list(special_ids)))
    breaches = (
        torch.tensor(misshapen),
        batch.get("attention_mask", real) != real,
        selected & ~real,
        selected & special,
        selected & (batch["labels"] != originals),
        ~selected & (batch["input_ids"] != originals),
    )
    return {rule: int(where.sum()) for rule, where in zip(RULES, breaches, strict=True)}


def collated(tokenizer: Any) -> tuple[str, ...]:
    """Return the names of the tensors that a batch must have."""
    return (*(name for name in ("input_ids", "attention_mask") if name in tokenizer.model_input_names), "labels")


def _ragged_rows(subject: Subject) -> list[list[int]]:
    """Return rows of unequal lengths, one of them with a mask and another special token in the middle."""
    tokenizer = subject.tokenizer
    middle = [tokenizer.mask_token_id, *subject.rows[0][-1:]]
    return [*subject.rows[:6], subject.rows[0][:5] + middle + subject.rows[0][5:]]


@observation(
    "masked_batches",
    source="transformers.DataCollatorForLanguageModeling; the guide pads with the end-of-sequence token",
    cause="special tokens or padding can be selected, or the labels are not the original tokens",
)
def special_tokens_stay(subject: Subject) -> Iterator[Value]:
    """No special token and no padding is ever selected, labels are the original tokens, and nothing else changes.

    At a rate of 1, every ordinary token is selected.
    """
    import torch

    rows = _ragged_rows(subject)
    chosen: set[str] = set()
    padding: list[str] = []
    for pad_token in pad_tokens(subject.tokenizer):
        tokenizer = subject.fresh_tokenizer()
        pad_id = tokenizer.convert_tokens_to_ids(getattr(tokenizer, pad_token))
        special = sorted(set(tokenizer.all_special_ids))
        for rate in (RATE, 1.0):
            collator = collate.data_collator(tokenizer, mlm_probability=rate, pad_token=pad_token)
            torch.manual_seed(subject.seed)
            batch = collator(plain_rows(rows, tokenizer))
            breaches = mask_breaches(batch, rows, pad_id=pad_id, special_ids=special, names=collated(tokenizer))
            for rule in breaches:
                if rule not in (PADDING, SPECIAL):
                    title = f"{rule}, padded with {pad_token}, at a rate of {rate:g}"
                    yield value(f"{RULES[rule]}_{pad_token}_rate_{rate:g}", breaches[rule], title, equals=0)
        padding += [pad_token] if breaches.get(PADDING) else []
        labels = [row[: len(ids)] for row, ids in zip(batch["labels"].tolist(), rows, strict=True)]
        pairs = [pair for ids, row in zip(rows, labels, strict=True) for pair in zip(ids, row, strict=True)]
        chosen |= {tokenizer.convert_ids_to_tokens(token) for token, label in pairs if token in special and label >= 0}
        missed = sum(token not in special and label < 0 for token, label in pairs)
        title = f"ordinary tokens left out at a rate of 1, padded with {pad_token}"
        yield value(f"missed_tokens_{pad_token}", missed, title, equals=0)
    yield value("selected_special_tokens", " ".join(sorted(chosen)), "special tokens that are selected", equals="")
    title = "pad tokens for which padding positions are masked"
    yield value("pad_tokens_with_masked_padding", " ".join(padding), title, equals="")


@observation(
    "masked_batches", source=_SOURCE, cause="the collator does not handle a batch in which no token is selected"
)
def nothing_selected(subject: Subject) -> Iterator[Value]:
    """If no token of a batch is selected, all labels are -100 and the input is unchanged."""
    special = [token for token in subject.rows[0] if token in subject.tokenizer.all_special_ids]
    cases = (
        ("rate_0", "at a rate of 0", 0.0, subject.rows[:3]),
        ("special_tokens", "of special tokens only", 1.0, [special or [subject.pad_id]]),
    )
    for slug, what, rate, rows in cases:
        collator, tokenizer = collator_of(subject, mlm_probability=rate)
        batch = collator(plain_rows(rows, tokenizer))
        breaches = mask_breaches(
            batch,
            rows,
            pad_id=tokenizer.pad_token_id,
            special_ids=sorted(set(tokenizer.all_special_ids)),
            names=collated(tokenizer),
        )
        selected = int((batch["labels"] != IGNORE_INDEX).sum())
        yield value(f"selected_positions_{slug}", selected, f"positions selected {what}", equals=0)
        yield value(f"wrong_positions_{slug}", sum(breaches.values()), f"wrong positions {what}", equals=0)


@observation(
    "masked_batches",
    source="torch.manual_seed: the collator draws from torch's global generator",
    cause="masks are drawn from another generator, are not random, or are reused in the next call",
)
def masks_follow_the_seed(subject: Subject) -> Iterator[Value]:
    """The same seed gives the same masks; another seed, or the next call, gives different ones."""
    import torch

    collator, tokenizer = collator_of(subject)
    rows = plain_rows(subject.rows[:4] * 4, tokenizer)

    def drawn(seed: int | None) -> bytes:
        if seed is not None:
            torch.manual_seed(seed)
        batch = collator(rows)
        return batch["input_ids"].numpy().tobytes() + batch["labels"].numpy().tobytes()

    first, following = drawn(subject.seed), drawn(None)
    chance = "several hundred positions are practically never drawn alike"
    same, other, again = drawn(subject.seed) == first, drawn(subject.seed + 1) == first, following == first
    yield value("same_seed_same_masks", same, "the same seed draws the same masks", equals=True)
    yield value("other_seed_same_masks", other, "another seed draws the same masks", equals=False, reason=chance)
    yield value("next_call_same_masks", again, "the next call draws the same masks", equals=False, reason=chance)
