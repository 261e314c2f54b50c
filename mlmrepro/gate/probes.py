"""Compare how two checkpoints fill the same mask: rankings from the top, with ties."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np

from mlmrepro.gate.result import Prediction, ProbeChange

__all__ = ["TIE_BAND", "TOP", "probe_change", "rank_biased_overlap", "ranked", "top_k_overlap"]

TOP = (1, 5, 10)  # depths at which the common share is reported

# Relative, because rounding moves logits, and a logit that moves by x moves the probability by a factor exp(x). Between
# one thread and two, and with and without padding, the log-probabilities of the embedded model's ten best tokens moved
# by up to 6e-6; two tokens can move apart by twice that.
TIE_BAND = 2e-5

Ranking = Sequence[Collection[Hashable]]  # groups of tied items, best first


def ranked(predictions: Sequence[Prediction], tie_band: float = TIE_BAND, *, by_text: bool = False) -> Ranking:
    """Return the tokens of `predictions` (best first) in groups that share a rank.

    A group holds the tokens within `tie_band`, relative, of its best probability; comparing neighbours instead would
    turn a slow slope into one tie. With `by_text` the stripped text replaces the id, because ids of two tokenizers have
    nothing in common; of two tokens with the same text only the better one is kept.
    """
    groups: list[list[Hashable]] = []
    seen: set[Hashable] = set()
    best = 0.0
    for row in predictions:
        item: Hashable = row.text.strip() if by_text else row.token
        if item in seen:
            continue
        seen.add(item)
        if groups and best - row.probability <= tie_band * best:
            groups[-1].append(item)
        else:
            groups.append([item])
            best = row.probability
    return groups


def rank_biased_overlap(before: Ranking, after: Ranking, *, p: float = 0.9) -> float:
    """Return how much two rankings agree, from 0 (disjoint) to 1 (equal); 1 also if both are empty.

    This is the extrapolated rank-biased overlap, equation 32 of Webber, Moffat and Zobel, "A similarity measure for
    indefinite rankings" (2010), for rankings of any lengths. Depth d weighs ``p**d``: with 0.9 the first ten ranks
    carry 86 % of the weight. Tied items all get the first rank of their group: Webber's convention, completed for
    prefixes as RBO^w by Corsi and Urbano, "The treatment of ties in rank-biased overlap" (2024). Of their variants this
    is the one that treats a tie as equality, as intended here: within rounding, neither token is better. Raises
    ValueError if `p` is not between 0 and 1, or if an item occurs twice in one ranking.
    """
    if not 0 < p < 1:
        raise ValueError(f"p must lie between 0 and 1, not {p}")
    short, long = sorted((_ranks(before), _ranks(after)), key=len)
    if not short:
        return float(not long)
    depth = np.arange(1, len(long) + 1)
    common = _reached([max(short[item], long[item]) for item in short.keys() & long.keys()], depth)
    in_short, in_long = (_reached(list(ranks.values()), depth) for ranks in (short, long))
    # Beyond its end the shorter ranking is assumed to agree as it did there, without ties.
    beyond = np.maximum(depth - len(short), 0)
    at_end = 2 * common[len(short) - 1] / (in_short + in_long)[len(short) - 1]
    agreement = 2 * (common + beyond * at_end) / (np.where(beyond, depth, in_short) + in_long)
    weights = p ** depth.astype(float)
    return float((1 - p) / p * (agreement @ weights) + agreement[-1] * weights[-1])


def _ranks(ranking: Ranking) -> dict[Hashable, int]:
    """Map each item to the first rank of its group, from 1."""
    ranks: dict[Hashable, int] = {}
    for group in ranking:
        first = len(ranks) + 1
        for item in group:
            if item in ranks:
                raise ValueError(f"{item!r} occurs twice in one ranking")
            ranks[item] = first
    return ranks


def _reached(ranks: list[int], depth: np.ndarray) -> np.ndarray:
    """Count, for each depth, the ranks that are not below it."""
    return np.searchsorted(np.sort(np.asarray(ranks, dtype=int)), depth, side="right")


def top_k_overlap(
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    k: int,
    tie_band: float = TIE_BAND,
    *,
    by_text: bool = False,
) -> float:
    """Return the share of the `k` best tokens that both checkpoints have in common.

    Tokens tied with the k-th are interchangeable: of all ways to break the ties, the one that agrees most counts, so a
    swap within the band is not a change. If a side has fewer than `k` rows, both are compared only to that depth. Ties
    with the k-th are found only among the rows given, so give a few more than `k`. Raises ValueError if `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, not {k}")
    rankings = [ranked(side, tie_band, by_text=by_text) for side in (before, after)]
    lengths = [sum(map(len, ranking)) for ranking in rankings]
    k = min(k, *lengths)
    if k == 0:
        return float(lengths[0] == lengths[1])
    (sure_b, tied_b), (sure_a, tied_a) = (_cut(ranking, k) for ranking in rankings)
    free_b, free_a = k - len(sure_b), k - len(sure_a)
    # Matching a sure token of the other side takes one free place; matching a token tied on both sides takes two.
    from_a, from_b = min(free_a, len(sure_b & tied_a)), min(free_b, len(sure_a & tied_b))
    both = min(free_a - from_a, free_b - from_b, len(tied_a & tied_b))
    return (len(sure_b & sure_a) + from_a + from_b + both) / k


def _cut(ranking: Ranking, k: int) -> tuple[set[Hashable], set[Hashable]]:
    """Return the tokens among the `k` best however ties are broken, and the tied group that fills the rest."""
    sure: set[Hashable] = set()
    for group in ranking:
        if len(sure) + len(group) > k:
            return sure, set(group)
        sure |= set(group)
    return sure, set()


def probe_change(
    prompt: str,
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    expected: str = "",
    *,
    tie_band: float = TIE_BAND,
    by_text: bool = False,
) -> ProbeChange:
    """Return how two checkpoints' fillings of `prompt`, best first, differ.

    `expected` is matched by its stripped text. `by_text` is for checkpoints with different tokenizers.
    """
    rankings = [ranked(side, tie_band, by_text=by_text) for side in (before, after)]
    ranks = [_rank_of(expected.strip(), side, tie_band) for side in (before, after)]
    return ProbeChange(
        prompt=prompt,
        before=tuple(before),
        after=tuple(after),
        rank_biased_overlap=rank_biased_overlap(*rankings),
        overlap={k: top_k_overlap(before, after, k, tie_band, by_text=by_text) for k in TOP},
        expected=expected,
        rank_before=ranks[0],
        rank_after=ranks[1],
    )


def _rank_of(text: str, predictions: Sequence[Prediction], tie_band: float) -> int | None:
    return _ranks(ranked(predictions, tie_band, by_text=True)).get(text) if text else None
