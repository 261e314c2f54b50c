"""Laws of the collator's masks: exact tests of their distribution, and rules that hold for every draw.

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
from mlmrepro.laws.law import law
from mlmrepro.laws.result import Measured
from mlmrepro.laws.subject import Subject

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
PADDING, SPECIAL = "padding selected", "special tokens selected"  # names of rules
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


def share(what: str, hits: int, count: int, probability: float, *, tests: int = 1) -> Measured:
    """Bound a share by a two-sided exact binomial test at the level ALPHA, divided among `tests` tests."""
    if not count:
        return Measured(what, math.nan, equals=probability, reason="nothing was drawn")
    tail = ALPHA / tests / 2
    return Measured(
        what,
        hits / count,
        at_least=float(binom.ppf(tail, count, probability)) / count,
        at_most=float(binom.isf(tail, count, probability)) / count,
        reason=f"{probability:.6g} within an exact binomial test of {count} draws at {ALPHA:g}"
        + (f", shared by {tests} positions" if tests > 1 else ""),
    )


def _chi_square(what: str, statistic: float, freedom: int) -> Measured:
    """Bound a chi-square statistic by its upper tail at the level ALPHA."""
    reason = f"the chi-square distribution of {freedom} degrees of freedom is above it once in {1 / ALPHA:,.0f}"
    return Measured(what, statistic, at_most=float(chi2.isf(ALPHA, freedom)), reason=reason)


@law(
    "masked_batches",
    source=_SOURCE,
    cause="mlm_probability does not reach the collator, or tokens are selected at another rate",
)
def selection_rate(subject: Subject) -> Iterator[Measured]:
    """Each ordinary token is selected with the guide's probability, 15 %.

    With 320,000 draws, a rate that is off by 0.005 is detected with a power of 0.998.
    """
    drawn = draw(subject, 2_500)
    yield share("share of tokens selected", int(drawn.selected.sum()), drawn.selected.size, RATE)


@law(
    "masked_batches",
    source=_SOURCE,
    cause="positions, rows or calls share random draws: a mask is repeated, or drawn by span or word",
)
def masks_are_drawn_independently(subject: Subject) -> Iterator[Measured]:
    """All positions are selected at the same rate, independently of their neighbours, other rows and earlier calls.

    A rate that changes linearly by 8 % over the row (0.012 from end to end) is detected in 5,000 rows with a power of
    0.998; the chi-square test on 1,000 rows would miss it.
    """
    yield from independence(draw(subject, 1_000).selected)
    yield trend(draw(subject, 5_000).selected)


def independence(selected: NDArray[np.bool_]) -> Iterator[Measured]:
    """Test the positions and pairs of a selection (calls, rows, columns) against the guide's rate."""
    by_position = selected.sum(axis=(0, 1))
    count = selected.shape[0] * selected.shape[1]
    spread = float(((by_position - count * RATE) ** 2).sum() / (count * RATE * (1 - RATE)))
    yield _chi_square("chi-square over positions", spread, selected.shape[2])
    for what, hits in (("least", by_position.min()), ("most", by_position.max())):
        yield share(f"share at the position {what} often selected", int(hits), count, RATE, tests=selected.shape[2])
    # The pairs do not overlap and so are independent: the number selected together is binomial.
    pairs = {
        "neighbours in a row": selected[:, :, 0:-1:2] & selected[:, :, 1::2],
        "the same place of two rows": selected[:, 0:-1:2] & selected[:, 1::2],
        "the same place of two calls": selected[0:-1:2] & selected[1::2],
    }
    for what, both in pairs.items():
        yield share(f"share selected together: {what}", int(both.sum()), both.size, RATE**2)


def trend(selected: NDArray[np.bool_]) -> Measured:
    """Test the slope of the rate over the positions of (calls, rows, columns) with the Cochran-Armitage test.

    The rate is known, so the position-weighted sum of hits has a known deviation. From 1,000 rows on it is close enough
    to normal.
    """
    where = np.linspace(-0.5, 0.5, selected.shape[2])
    count = selected.shape[0] * selected.shape[1]
    deviation = math.sqrt(count * RATE * (1 - RATE) * float((where**2).sum()))
    return Measured(
        "slope of the rate over the row, in its standard errors",
        abs(float(selected.sum(axis=(0, 1)) @ where)) / deviation,
        at_most=float(norm.isf(ALPHA / 2)),
        reason=f"a normal distribution is further off once in {1 / ALPHA:,.0f} (Armitage 1955, trend in proportions)",
    )


@law(
    "masked_batches",
    source=_SOURCE,
    cause="selected tokens do not become 80 % mask, 10 % random, 10 % unchanged",
)
def replacements_80_10_10(subject: Subject) -> Iterator[Measured]:
    """Of the selected tokens, 80 % become the mask token, 10 % become a random token and 10 % stay unchanged.

    With every token selected, 128,000 draws distinguish 0.80 from 0.79, and 0.10 from 0.107, with a power of 0.999.
    """
    yield from replacement_shares(draw(subject, 1_000), "at the guide's rate")
    yield from replacement_shares(draw(subject, 1_000, mlm_probability=1.0), "with all selected")


def replacement_shares(drawn: Drawn, when: str) -> Iterator[Measured]:
    """Measure what the selected tokens became.

    A random replacement is uniform over the whole vocabulary: with probability 1 / vocabulary each, it is the original
    token or the mask token.
    """
    seen, originals = drawn.inputs[drawn.selected], drawn.originals[drawn.selected]
    masked, kept, once = seen == drawn.mask_id, seen == originals, 1 / drawn.vocabulary
    for what, hits, probability in (
        ("mask tokens", masked, 0.8 + 0.1 * once),
        ("unchanged", kept, 0.1 + 0.1 * once),
        ("random tokens", ~masked & ~kept, 0.1 * (1 - 2 * once)),
    ):
        yield share(f"share of {what}, {when}", int(hits.sum()), len(seen), probability)


@law(
    "masked_batches",
    source=_SOURCE,
    cause="random replacements are drawn from only a part of the vocabulary, or not uniformly",
)
def random_replacements_are_uniform(subject: Subject) -> Iterator[Measured]:
    """Random replacements are uniform over the whole vocabulary, including special tokens."""
    yield from uniformity(draw(subject, 1_000, mlm_probability=1.0))


def uniformity(drawn: Drawn) -> Iterator[Measured]:
    """Test whether random replacements are uniform over the ids, in at most 64 ranges of ids."""
    seen, originals = drawn.inputs[drawn.selected], drawn.originals[drawn.selected]
    random = seen[(seen != drawn.mask_id) & (seen != originals)]
    yield Measured("random tokens", len(random), at_least=1, unit=f"of {len(seen)} selected")
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
    yield _chi_square("chi-square over the vocabulary", statistic, ranges - 1)
    special = np.isin(random, drawn.special_ids)
    yield Measured("special tokens among the replacements", int(special.sum()), unit=f"of {len(random)}")
    yield Measured(
        "special tokens expected", float(weights[list(drawn.special_ids)].sum() / weights.sum() * len(random))
    )


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
        return {"tensors absent or of another shape": misshapen}
    originals = torch.full(shape, pad_id)
    real = torch.zeros(shape, dtype=torch.bool)
    for n, row in enumerate(rows):
        originals[n, : len(row)] = torch.tensor(row)
        real[n, : len(row)] = True
    selected = batch["labels"] != IGNORE_INDEX
    special = real & torch.isin(originals, torch.tensor(list(special_ids)))
    counts = {
        "tensors absent or of another shape": torch.tensor(misshapen),
        "attended otherwise than the real tokens": batch.get("attention_mask", real) != real,
        PADDING: selected & ~real,
        SPECIAL: selected & special,
        "labels that are not the original": selected & (batch["labels"] != originals),
        "inputs changed where none is selected": ~selected & (batch["input_ids"] != originals),
    }
    return {name: int(where.sum()) for name, where in counts.items()}


def collated(tokenizer: Any) -> tuple[str, ...]:
    """Return the names of the tensors that a batch must have."""
    return (*(name for name in ("input_ids", "attention_mask") if name in tokenizer.model_input_names), "labels")


def _ragged_rows(subject: Subject) -> list[list[int]]:
    """Return rows of unequal lengths, one of them with a mask and another special token in the middle."""
    tokenizer = subject.tokenizer
    middle = [tokenizer.mask_token_id, *subject.rows[0][-1:]]
    return [*subject.rows[:6], subject.rows[0][:5] + middle + subject.rows[0][5:]]


@law(
    "masked_batches",
    source="transformers.DataCollatorForLanguageModeling; the guide pads with the end-of-sequence token",
    cause="special tokens or padding can be selected, or the labels are not the original tokens",
)
def special_tokens_stay(subject: Subject) -> Iterator[Measured]:
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
                    yield Measured(f"{rule}, padded with {pad_token}, at a rate of {rate:g}", breaches[rule], equals=0)
        padding += [pad_token] if breaches.get(PADDING) else []
        labels = [row[: len(ids)] for row, ids in zip(batch["labels"].tolist(), rows, strict=True)]
        pairs = [pair for ids, row in zip(rows, labels, strict=True) for pair in zip(ids, row, strict=True)]
        chosen |= {tokenizer.convert_ids_to_tokens(token) for token, label in pairs if token in special and label >= 0}
        missed = sum(token not in special and label < 0 for token, label in pairs)
        yield Measured(f"ordinary tokens left out at a rate of 1, padded with {pad_token}", missed, equals=0)
    yield Measured("special tokens that are selected", " ".join(sorted(chosen)), equals="")
    yield Measured("pad tokens for which padding positions are masked", " ".join(padding), equals="")


@law(
    "masked_batches",
    source=_SOURCE,
    cause="the collator does not handle a batch in which no token happens to be selected",
)
def nothing_selected(subject: Subject) -> Iterator[Measured]:
    """If no token of a batch is selected, all labels are -100 and the input is unchanged."""
    special = [token for token in subject.rows[0] if token in subject.tokenizer.all_special_ids]
    cases = {"at a rate of 0": (0.0, subject.rows[:3]), "of special tokens only": (1.0, [special or [subject.pad_id]])}
    for what, (rate, rows) in cases.items():
        collator, tokenizer = collator_of(subject, mlm_probability=rate)
        batch = collator(plain_rows(rows, tokenizer))
        breaches = mask_breaches(
            batch,
            rows,
            pad_id=tokenizer.pad_token_id,
            special_ids=sorted(set(tokenizer.all_special_ids)),
            names=collated(tokenizer),
        )
        yield Measured(f"positions selected {what}", int((batch["labels"] != IGNORE_INDEX).sum()), equals=0)
        yield Measured(f"positions out of order {what}", sum(breaches.values()), equals=0)


@law(
    "masked_batches",
    source="torch.manual_seed: the collator draws from torch's global generator",
    cause="masks are drawn from another generator, are not random, or are reused in the next call",
)
def masks_follow_the_seed(subject: Subject) -> Iterator[Measured]:
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
    yield Measured("the same seed draws the same", drawn(subject.seed) == first, equals=True)
    yield Measured("another seed draws the same", drawn(subject.seed + 1) == first, equals=False, reason=chance)
    yield Measured("the next call draws the same", following == first, equals=False, reason=chance)
