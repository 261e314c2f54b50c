"""Rankings of two checkpoints: what counts as a change, how much of one it is, and what is a tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmrepro.gate.probes import TIE_BAND, TOP, probe_change, rank_biased_overlap, ranked, top_k_overlap
from mlmrepro.gate.result import Prediction

Groups = list[list[int]]


def rows(*probabilities: tuple[str, float]) -> list[Prediction]:
    """Return predictions whose id is their text's first character."""
    return [Prediction(ord(text.strip()[0]), text, probability) for text, probability in probabilities]


def filled(tokens: str, step: float = 0.5) -> list[Prediction]:
    """Return one prediction a letter, each `step` times as probable as the one before."""
    return rows(*((token, step**i) for i, token in enumerate(tokens, 1)))


@st.composite
def rankings(draw: st.DrawFn, items: Sequence[int] = range(12)) -> Groups:
    """Return some of `items` in some order, with ties."""
    order = draw(st.lists(st.sampled_from(items), unique=True, min_size=1))
    ties = draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
    groups: Groups = []
    for item, tied in zip(order, ties, strict=True):
        if tied and groups:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def strict(items: Sequence[int]) -> Groups:
    return [[item] for item in items]


@pytest.mark.parametrize(
    ("before", "after", "p", "expected"),
    [
        # Agreement 0 then 1, which stays: (0 * 1/2 + 1 * 1/4) + 1 * 1/4.
        ([["a"], ["b"]], [["b"], ["a"]], 0.5, 0.5),
        # 1, 1/2, which stays: 1/2 + 1/8 + 1/8.
        ([["a"], ["b"]], [["a"], ["c"]], 0.5, 0.75),
        # Shorter side ends at depth 1 in full agreement and is taken to go on so: 1/2 + 1/4 + 1/4.
        ([["a"]], [["a"], ["b"]], 0.5, 1.0),
        # Ends at 0, is found at 2: 0, 1/2, which stays.
        ([["b"]], [["a"], ["b"]], 0.5, 0.25),
        # Tied at the first rank on one side: 2 * 1 / (2 + 1), then 1: 2/3 * 1/2 + 1/4 + 1/4.
        ([["a", "b"]], [["a"], ["b"]], 0.5, 5 / 6),
        # Only depth 1 disagrees, which weighs 1 - p.
        ([["a"], ["b"], ["c"]], [["b"], ["a"], ["c"]], 0.9, 0.9),
    ],
)
def test_rank_biased_overlap_by_hand(before: Groups, after: Groups, p: float, expected: float) -> None:
    """Swaps, replacements, ends and ties give what equation 32 gives on paper."""
    assert rank_biased_overlap(before, after, p=p) == pytest.approx(expected, abs=1e-12)


@given(rankings(), rankings(), st.floats(0.05, 0.95))
def test_rank_biased_overlap_is_a_similarity(before: Groups, after: Groups, p: float) -> None:
    """It is symmetric, within 0 and 1, 1 for a ranking and itself, and blind to the order inside of a tie."""
    value = rank_biased_overlap(before, after, p=p)
    assert value == rank_biased_overlap(after, before, p=p)
    assert 0 <= value <= 1 + 1e-12
    assert rank_biased_overlap(before, before, p=p) == pytest.approx(1)
    assert value == rank_biased_overlap([group[::-1] for group in before], after, p=p)


@given(rankings(range(6)), rankings(range(6, 12)))
def test_disjoint_rankings_have_no_overlap_and_others_have_some(before: Groups, after: Groups) -> None:
    """Nothing in common is 0; one item in common is more."""
    assert rank_biased_overlap(before, after) == 0
    assert rank_biased_overlap(before, [*after, before[-1][:1]]) > 0


@given(
    st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=9), st.permutations(range(9)), st.floats(0.3, 0.9)
)
def test_rank_biased_overlap_is_the_infinite_sum(before: list[int], after: list[int], p: float) -> None:
    """Without ties it is the weighted mean of the agreement over all depths, the last one going on forever."""
    short, long = sorted((before, after), key=len)
    agreements: list[float] = []
    for depth in range(1, 400):
        common = float(len(set(short[:depth]) & set(long[:depth])))
        if depth > len(short):
            common += (min(depth, len(long)) - len(short)) * agreements[len(short) - 1]
        agreements.append(common / depth if depth <= len(long) else agreements[-1])
    expected = sum((1 - p) * p**i * agreement for i, agreement in enumerate(agreements))
    assert rank_biased_overlap(strict(before), strict(after), p=p) == pytest.approx(expected, abs=1e-9)


@given(st.integers(2, 12), st.data())
def test_a_change_at_the_top_matters_more(length: int, data: st.DataObject) -> None:
    """The lower two neighbours that swap, or an item that is replaced, the more overlap is left."""
    items = list(range(length))
    first, second = sorted(data.draw(st.lists(st.integers(0, length - 1), unique=True, min_size=2, max_size=2)))

    def replaced(i: int) -> float:
        return rank_biased_overlap(strict(items), strict([*items[:i], 99, *items[i + 1 :]]))

    def swapped(i: int) -> float:
        return rank_biased_overlap(strict(items), strict([*items[:i], items[i + 1], items[i], *items[i + 2 :]]))

    assert replaced(first) < replaced(second)
    if second + 1 < length:
        assert swapped(first) < swapped(second) < 1


def test_rankings_that_are_none_are_refused() -> None:
    """An item that stands twice and a weight outside of 0 and 1 are errors; empty rankings are equal to each other."""
    with pytest.raises(ValueError, match="'a' occurs twice"):
        rank_biased_overlap([["a"], ["a"]], [["b"]])
    for p in (0, 1):
        with pytest.raises(ValueError, match=f"^p must lie between 0 and 1, not {p}$"):
            rank_biased_overlap([["a"]], [["a"]], p=p)
    assert rank_biased_overlap([], []) == 1
    assert rank_biased_overlap([], [["a"]]) == 0


def test_ties_are_relative_and_measured_from_the_best_of_the_group() -> None:
    """What lies within the band below the group's best is tied, however small; a slow slope is not one tie."""
    for scale in (0.3, 1e-9):
        near, far = scale * (1 - TIE_BAND / 2), scale * (1 - 2 * TIE_BAND)
        assert ranked(rows(("a", scale), ("b", near), ("c", far))) == [[97, 98], [99]]
    slope = [(letter, 0.1 * (1 - 0.6 * TIE_BAND) ** i) for i, letter in enumerate("abcdef")]
    assert [len(group) for group in ranked(rows(*slope))] == [2, 2, 2]
    assert [len(group) for group in ranked(rows(*slope), tie_band=0)] == [1] * 6
    assert ranked(rows(("a", 0.5), ("b", 0.375), ("c", 0.25)), tie_band=0.25) == [[97, 98], [99]]


def test_a_swap_inside_of_the_band_is_no_change_and_one_outside_is() -> None:
    """The same two tokens in another order: nothing changed where they are tied, something where they are not."""
    for apart, same in ((TIE_BAND / 2, True), (TIE_BAND * 2, False)):
        before = rows(("a", 0.4), ("b", 0.4 * (1 - apart)), ("c", 0.1))
        after = rows(("b", 0.4), ("a", 0.4 * (1 - apart)), ("c", 0.1))
        change = probe_change("x", before, after)
        assert (change.rank_biased_overlap == pytest.approx(1)) is same
        assert (change.overlap[1] == 1) is same
        assert change.overlap[5] == 1


@pytest.mark.parametrize(
    ("before", "after", "k", "expected"),
    [
        ("abcd", "abdc", 3, 2 / 3),
        ("abcd", "dcba", 4, 1),
        ("ab", "abcd", 4, 1),  # compared as deep as the shorter one goes
        ("ab", "cdab", 4, 0),
    ],
)
def test_top_k_overlap_by_hand(before: str, after: str, k: int, expected: float) -> None:
    """Without ties it is the share of the k best that both have."""
    assert top_k_overlap(filled(before), filled(after), k) == pytest.approx(expected)


def test_a_place_is_given_away_once() -> None:
    """The one free place of a side that is given to what is sure on the other is not given to another tie too."""
    before = rows(("x", 0.5), ("y", 0.2), ("z", 0.2))
    after = rows(("p", 0.5), ("x", 0.2), ("y", 0.2))
    assert top_k_overlap(before, after, 2) == top_k_overlap(after, before, 2) == 0.5
    strangers = rows(("x", 0.5), ("v", 0.2), ("w", 0.2))
    assert top_k_overlap(before, strangers, 2) == 0.5  # what ties on one side alone is not common
    renamed = [Prediction(row.token + 100, row.text, row.probability) for row in before]
    assert (top_k_overlap(before, renamed, 2), top_k_overlap(before, renamed, 2, by_text=True)) == (0, 1)


@settings(max_examples=60)
@given(rankings(range(7)), rankings(range(7)), st.integers(1, 7))
def test_top_k_overlap_is_the_best_over_all_ways_to_break_the_ties(before: Groups, after: Groups, k: int) -> None:
    """No other choice among the tokens tied with the k-th has more in common, and one has as much."""

    def choices(groups: Groups, depth: int) -> list[set[int]]:
        sure: set[int] = set()
        for group in groups:
            if len(sure) + len(group) >= depth:
                return [sure | set(rest) for rest in combinations(group, depth - len(sure))]
            sure |= set(group)
        raise AssertionError(depth)

    def predictions(groups: Groups) -> list[Prediction]:
        return [Prediction(item, str(item), 0.5**i) for i, group in enumerate(groups) for item in group]

    depth = min(k, *(sum(map(len, groups)) for groups in (before, after)))
    best = max(len(a & b) for a, b in product(choices(before, depth), choices(after, depth)))
    assert top_k_overlap(predictions(before), predictions(after), k) == pytest.approx(best / depth)


def test_a_depth_below_one_and_empty_fillings() -> None:
    """The best 0 tokens are no question; two empty fillings agree, one has nothing in common with another."""
    with pytest.raises(ValueError, match="1 or more"):
        top_k_overlap(filled("a"), filled("a"), 0)
    assert top_k_overlap([], [], 5) == 1
    assert top_k_overlap([], filled("a"), 5) == 0


def test_other_ids_for_the_same_words_are_compared_by_text() -> None:
    """With another tokenizer ids say nothing, but stripped texts do; of two that are equal the better one counts."""
    before = [Prediction(1, " sea", 0.5), Prediction(2, "sea", 0.3), Prediction(3, " lake", 0.1)]
    after = [Prediction(7, "sea", 0.6), Prediction(8, "lake", 0.2)]
    by_text = probe_change("x", before, after, by_text=True)
    assert by_text.rank_biased_overlap == pytest.approx(1)
    assert by_text.overlap == {k: 1 for k in TOP}
    assert probe_change("x", before, after, "lake", by_text=True).rank_before == 2  # behind what stood there twice
    by_id = probe_change("x", before, after)
    assert by_id.rank_biased_overlap == 0
    assert by_id.overlap == {k: 0 for k in TOP}


def test_the_right_answer_keeps_its_rank() -> None:
    """Ranks count from 1, tied tokens share the best one, and what is not among the rows, or not asked, has none."""
    before = rows((" sun", 0.5), (" moon", 0.2), (" star", 0.2))
    after = rows((" moon", 0.5), (" star", 0.2), (" earth", 0.1))
    change = probe_change("The <mask> shines.", before, after, expected="star")
    assert (change.rank_before, change.rank_after) == (2, 2)
    change = probe_change("The <mask> shines.", before, after, expected=" sun")
    assert (change.rank_before, change.rank_after) == (1, None)
    assert (change.before, change.after) == (tuple(before), tuple(after))
    change = probe_change("The <mask> shines.", before, after)
    assert (change.rank_before, change.rank_after, change.expected) == (None, None, "")
    blank = [*before, Prediction(0, " ", 0.05)]  # not the answer of who asked for none
    assert probe_change("The <mask> shines.", blank, blank).rank_before is None


def test_probabilities_that_are_no_numbers_tie_with_nothing() -> None:
    """A broken checkpoint's NaN are compared by their order; nothing is raised and nothing is called tied."""
    assert ranked(rows(("a", math.nan), ("b", math.nan))) == [[97], [98]]
    assert np.isfinite(probe_change("x", filled("ab"), rows(("b", math.nan), ("a", math.nan))).rank_biased_overlap)


def test_a_probe_keeps_what_was_asked() -> None:
    """The prompt and the right answer come back as they were given."""
    change = probe_change("The <mask> shines.", filled("a"), filled("b"), expected=" sun")
    assert (change.prompt, change.expected) == ("The <mask> shines.", " sun")


def test_the_tie_band_holds_for_ranks_and_overlaps_alike() -> None:
    """A wider band than the usual one makes a tie of what would be a swap, in every figure of a probe."""
    before, after = rows(("a", 0.40), ("b", 0.38)), rows(("b", 0.40), ("a", 0.38))
    narrow, wide = (probe_change("x", before, after, "b", tie_band=band) for band in (0.01, 0.1))
    assert (narrow.rank_biased_overlap < 1, narrow.overlap[1], narrow.rank_before) == (True, 0, 2)
    assert (wide.rank_biased_overlap, wide.overlap[1], wide.rank_before) == (pytest.approx(1), 1, 1)
