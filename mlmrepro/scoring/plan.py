"""Mask plans: which units of a document are masked in which pass; the same in every version of every library.

The order of the units comes from SHAKE-256 (FIPS 202) over the text and a seed. So it does not depend on a random
generator, on a document's place in the file, or on the other documents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlmrepro.config import GuideConfig
from mlmrepro.errors import UserError
from mlmrepro.scoring.encode import Encoded

__all__ = ["MASK_RATE", "Plan", "Row", "keys", "one_by_one", "passes_of", "rows", "token_plan", "word_plan"]

MASK_RATE = GuideConfig.mlm_probability
_CONSTRUCTION = b"mlmrepro mask plan 1"  # part of the hash: another construction must use another name


@dataclass(frozen=True)
class Plan:
    """Units (tokens or words) and the pass that masks each; the arrays have shape (units,)."""

    unit: str  # "token" or "word"
    document: NDArray[np.int32]  # ascending
    position: NDArray[np.int32]  # of a token, or index of a word, in its document; ascending within it
    draw: NDArray[np.int32]  # the pass; a unit may occur in several

    def __len__(self) -> int:
        return len(self.document)


@dataclass(frozen=True)
class Row:
    """One sequence that the model reads."""

    document: int
    start: int  # of the window, in tokens of the document
    stop: int
    masked: NDArray[np.int64]  # positions in the document that hold the mask token
    scored: NDArray[np.int64]  # those of them whose loss counts
    units: NDArray[np.int64]  # unit of the plan that each scored position belongs to


def keys(text: str, count: int, *, seed: int, draw: int = 0) -> NDArray[np.uint64]:
    """Return `count` numbers, uniform over 64 bits, made from text, seed and pass; shape (count,)."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    source = hashlib.shake_256(b"|".join((_CONSTRUCTION, str(seed).encode(), str(draw).encode(), digest.encode())))
    return np.frombuffer(source.digest(8 * count), dtype="<u8").astype(np.uint64)


def passes_of(rate: float) -> int:
    """Return how many complementary passes mask every unit once, each at most about `rate` of them: ceil(1/rate)."""
    if not 0 < rate <= 0.5:
        raise UserError(f"the mask rate is {rate}", remedy="give a number above 0, at most 0.5")
    return math.ceil(1 / rate - 1e-9)  # 1/0.2 is a hair above 5 for some rates


def token_plan(
    texts: Sequence[str],
    encoded: Sequence[Encoded],
    *,
    rate: float = MASK_RATE,
    seed: int = 0,
    random_passes: int | None = None,
) -> Plan:
    """Return a plan over tokens; special tokens are never in it.

    By default every token is masked exactly once, in ``passes_of(rate)`` complementary passes. With `random_passes`
    each pass draws every token independently with probability `rate`, as the guide's collator does.

    Raises UserError for an invalid rate or number of passes, and if nothing is masked.
    """
    if random_passes is not None and random_passes < 1:
        raise UserError(f"the number of random passes is {random_passes}", remedy="give 1 or more")
    maskable = [np.flatnonzero(document.maskable) for document in encoded]
    return _plan("token", texts, maskable, rate, seed, random_passes)


def word_plan(texts: Sequence[str], counts: Sequence[int], *, rate: float = MASK_RATE, seed: int = 0) -> Plan:
    """Return the complementary plan over white-space words, of which document n has ``counts[n]``."""
    return _plan("word", texts, [np.arange(count) for count in counts], rate, seed, None)


def _plan(
    unit: str,
    texts: Sequence[str],
    units: Sequence[NDArray[np.int64]],
    rate: float,
    seed: int,
    random_passes: int | None,
) -> Plan:
    passes = passes_of(rate)
    columns: list[tuple[NDArray[np.int64], ...]] = []
    for n, (text, positions) in enumerate(zip(texts, units, strict=True)):
        if random_passes is None:
            order = np.argsort(keys(text, len(positions), seed=seed), kind="stable")
            draw = np.argsort(order) % passes  # the rank of each unit
            chosen = positions
        else:
            limit = np.uint64(int(rate * 2**64))
            drawn = [keys(text, len(positions), seed=seed, draw=p) < limit for p in range(random_passes)]
            where, draw = np.nonzero(np.array(drawn).reshape(random_passes, -1).T)
            chosen = positions[where]
        columns.append((np.full(len(chosen), n), chosen, draw))
    document, position, drawn_in = (np.concatenate(part).astype(np.int32) for part in zip(*columns, strict=True))
    if not len(document):
        raise UserError(
            f"no {unit} of the text is masked", remedy="give more text or another seed, or leave out --random-passes"
        )
    return Plan(unit, document, position, drawn_in)


def one_by_one(encoded: Sequence[Encoded]) -> Plan:
    """Return the plan of pseudo-log-likelihood: each token masked alone (Salazar et al. 2020)."""
    maskable = [np.flatnonzero(document.maskable) for document in encoded]
    document = np.repeat(np.arange(len(encoded)), [len(positions) for positions in maskable])
    position = np.concatenate([*maskable, np.array([], dtype=np.int64)])
    return Plan("token", document.astype(np.int32), position.astype(np.int32), position.astype(np.int32))


def rows(plan: Plan, encoded: Sequence[Encoded], *, within_word: bool = False) -> Iterator[Row]:
    """Iterate over the sequences of a plan, document by document.

    With `within_word` (for a plan of `one_by_one`) the later tokens of a token's own word are masked with it, so that
    they do not give it away (Kauf and Ivanova 2023). A word that is not whole within one window is left out.
    """
    bounds = np.searchsorted(plan.document, np.arange(len(encoded) + 1))
    for n, document in enumerate(encoded):
        units = np.arange(bounds[n], bounds[n + 1])
        if not len(units):
            continue
        if plan.unit == "word":
            scored, owner = _tokens_of_words(document, plan.position[units], units)
        else:
            scored, owner = plan.position[units].astype(np.int64), units
        if not len(scored):
            continue
        order = np.lexsort((scored, plan.draw[owner]))
        scored, owner = scored[order], owner[order]
        starts = np.array([start for start, _ in document.windows])
        window = np.searchsorted(starts, scored, side="right") - 1
        group = plan.draw[owner].astype(np.int64) * len(starts) + window
        for part in np.split(np.arange(len(scored)), np.flatnonzero(np.diff(group)) + 1):
            start, stop = document.windows[window[part[0]]]
            masked = _with_later_pieces(document, scored[part], stop) if within_word else scored[part]
            yield Row(n, start, stop, masked, scored[part], owner[part])


def _tokens_of_words(
    document: Encoded, words: NDArray[np.int32], units: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of each word of the plan, and the unit of each; only words that can be scored whole."""
    starts = np.array([start for start, _ in document.windows])
    window = np.searchsorted(starts, np.arange(len(document)), side="right") - 1
    count = int(max(words.max(initial=-1), document.words.max(initial=-1))) + 1
    whole = np.bincount(document.words, minlength=count) > 0
    np.logical_and.at(whole, document.words, document.maskable)
    split = document.words[1:][(document.words[1:] == document.words[:-1]) & (window[1:] != window[:-1])]
    whole[split] = False
    for start, stop in document.windows:  # a word that fills its window leaves the model no context
        if document.words[start] == document.words[stop - 1]:
            whole[document.words[start]] = False
    unit_of_word = np.full(count, -1, dtype=np.int64)
    unit_of_word[words] = units
    unit_of_word[~whole] = -1
    tokens = np.flatnonzero(unit_of_word[document.words] >= 0)
    return tokens, unit_of_word[document.words[tokens]]


def _with_later_pieces(document: Encoded, scored: NDArray[np.int64], stop: int) -> NDArray[np.int64]:
    (position,) = scored  # one_by_one
    later = np.arange(position, stop)
    return later[document.pieces[position:stop] == document.pieces[position]]
