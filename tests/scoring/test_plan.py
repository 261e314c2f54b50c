"""Mask plans: frozen, complete, independent of everything but the text and the seed; and the rows made of them."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from mlmrepro.errors import UserError
from mlmrepro.scoring.encode import Encoded, Encoder, words_of
from mlmrepro.scoring.plan import Plan, keys, one_by_one, passes_of, rows, token_plan, word_plan

from . import tiny

FROZEN = ["water is wet", "ice"], [tiny.document(9, special=[4]), tiny.document(3)]


def _places(plan: Plan) -> list[tuple[int, int, int]]:
    return list(zip(plan.document.tolist(), plan.position.tolist(), plan.draw.tolist(), strict=True))


def test_the_keys_are_frozen() -> None:
    """Stored baselines hold plans: the numbers that make them may never change, on any machine or version."""
    assert keys("water is wet", 3, seed=0).tolist() == [
        848168378858445984,
        13319798792220176470,
        15476179070377173927,
    ]
    assert keys("water is wet", 2, seed=0, draw=1).tolist() == [742376994907435, 16600864075351637546]
    assert keys("Größe 水", 2, seed=7).tolist() == [16244733960458697322, 1784141931636876774]


def test_the_plans_are_frozen() -> None:
    """So is what is made of the keys: the pass of every token and word."""
    complementary = token_plan(*FROZEN)
    assert complementary.position.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 0, 1, 2]
    assert complementary.draw.tolist() == [1, 5, 6, 0, 3, 0, 2, 4, 2, 1, 0]
    assert token_plan(*FROZEN, rate=0.4, seed=3).draw.tolist() == [2, 0, 1, 1, 0, 0, 2, 1, 0, 1, 2]
    drawn = token_plan(*FROZEN, rate=0.3, random_passes=2)
    assert _places(drawn) == [(0, 0, 0), (0, 0, 1), (0, 6, 0), (0, 7, 0), (1, 1, 1), (1, 2, 0)]
    assert word_plan(FROZEN[0], [5, 2], rate=0.34).draw.tolist() == [0, 2, 0, 1, 1, 1, 0]


def test_one_more_key_leaves_the_others_as_they_were() -> None:
    """A document's keys do not depend on how many of them are taken."""
    assert keys("sea", 9, seed=1)[:4].tolist() == keys("sea", 4, seed=1).tolist()


lengths = st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any)
rates = st.floats(0.01, 0.5)


@settings(max_examples=40)
@given(lengths, rates, st.integers(0, 3))
def test_complementary_passes_mask_every_token_once(lengths: list[int], rate: float, seed: int) -> None:
    """Over ceil(1/rate) passes each token is masked exactly once, in each pass an equal share of a document."""
    texts = [f"text {n}" for n in range(len(lengths))]
    plan = token_plan(texts, [tiny.document(length) for length in lengths], rate=rate, seed=seed)
    places = list(zip(plan.document.tolist(), plan.position.tolist(), strict=True))
    assert places == [(n, place) for n, length in enumerate(lengths) for place in range(length)]
    passes = passes_of(rate)
    assert 1 / passes <= rate * (1 + 1e-9)
    assert passes == 2 or 1 / (passes - 1) > rate
    for n, length in enumerate(lengths):
        shares = np.bincount(plan.draw[plan.document == n], minlength=passes)
        assert len(shares) == passes
        assert set(shares.tolist()) <= {length // passes, math.ceil(length / passes)}


@pytest.mark.parametrize(("rate", "passes"), [(0.5, 2), (0.15, 7), (0.2, 5), (0.1, 10), (1 / 3, 3), (0.05, 20)])
def test_the_number_of_passes_is_what_division_says(rate: float, passes: int) -> None:
    """One fifth takes five passes, though 1/0.2 may be a hair above five."""
    assert passes_of(rate) == passes


@settings(max_examples=20)
@given(st.sets(st.integers(0, 19), max_size=19), st.sampled_from([None, 9]))
def test_special_tokens_are_never_masked(special: set[int], random_passes: int | None) -> None:
    """Whatever is special in a text stays as it is, in both kinds of plans and in rows."""
    encoded = [tiny.document(20, special=special)]
    plan = token_plan(["text"], encoded, rate=0.4, random_passes=random_passes)
    assert not special & set(plan.position.tolist())
    masked = {place for row in rows(plan, encoded) for place in row.masked.tolist()}
    assert masked <= set(range(20)) - special
    assert set(one_by_one(encoded).position.tolist()) == set(range(20)) - special


def test_special_tokens_of_a_real_tokenizer_are_never_masked() -> None:
    """A [MASK] that the text spells out and words that are unknown are in no plan; each other token is."""
    encoded = Encoder(tiny.word_piece(), 40).encode(tiny.TEXTS)
    plan = token_plan(tiny.TEXTS, encoded)
    masked = {int(encoded[n].ids[place]) for n, place in zip(plan.document, plan.position, strict=True)}
    written = {int(token) for document in encoded for token in document.ids}
    assert {1, 4} < written
    assert masked == written - {1, 4}


@pytest.mark.parametrize("random_passes", [None, 3])
def test_a_plan_of_a_document_depends_on_no_other_and_not_on_its_place(random_passes: int | None) -> None:
    """In any order, with any other documents or none beside it, a document is masked in the same way."""
    texts = [f"text {n}" for n in range(4)]
    encoded = [tiny.document(length) for length in (30, 17, 8, 30)]

    def masks(order: tuple[int, ...]) -> dict[str, list[tuple[int, int]]]:
        plan = token_plan([texts[n] for n in order], [encoded[n] for n in order], random_passes=random_passes)
        found: dict[str, list[tuple[int, int]]] = {texts[n]: [] for n in order}
        for document, place, draw in _places(plan):
            found[texts[order[document]]].append((place, draw))
        return found

    together = masks((0, 1, 2, 3))
    for order in itertools.permutations(range(4)):
        assert masks(order) == together
    for n, text in enumerate(texts):
        assert masks((n,)) == {text: together[text]}
    assert together["text 0"] != together["text 3"]  # equal lengths: it is the text that differs


@pytest.mark.parametrize("random_passes", [None, 2])
def test_another_seed_gives_another_plan(random_passes: int | None) -> None:
    """Plans of five seeds are five plans; that of one seed is always the same."""
    encoded = [tiny.document(40)]
    plans = {
        tuple(_places(token_plan(["text"], encoded, seed=seed, random_passes=random_passes))) for seed in [*range(5), 0]
    }
    assert len(plans) == 5


def test_random_passes_mask_at_the_rate_each_by_itself() -> None:
    """As many tokens are masked as chance says, in each pass and in two passes at once; another rate is seen."""
    tokens, rate, passes = 4000, 0.15, 4
    plan = token_plan(["text"], [tiny.document(tokens)], rate=rate, random_passes=passes)
    drawn = [set(plan.position[plan.draw == n].tolist()) for n in range(passes)]
    for masked in drawn:
        assert binomtest(len(masked), tokens, rate).pvalue > 1e-3
        assert binomtest(len(masked), tokens, 0.2).pvalue < 1e-6
    for left, right in itertools.combinations(drawn, 2):
        assert left != right
        assert binomtest(len(left & right), tokens, rate**2).pvalue > 1e-3


def test_words_are_planned_alike_whatever_the_tokenizer() -> None:
    """Two tokenizers that take a text apart differently are given the same words in the same passes."""
    plans, tokens = [], []
    for tokenizer in (tiny.word_piece(), tiny.byte_level()):
        encoded = Encoder(tokenizer, 40).encode(tiny.TEXTS)
        plans.append(word_plan(tiny.TEXTS, [len(words_of(text)) for text in tiny.TEXTS]))
        tokens.append([len(document) for document in encoded])
        assert all(
            document.words.max() + 1 == len(words_of(t)) for document, t in zip(encoded, tiny.TEXTS, strict=True)
        )
    assert tokens[0] != tokens[1]
    assert _places(plans[0]) == _places(plans[1])


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: token_plan(["x"], [tiny.document(3, special=[0, 1, 2])]), "no token of the text is masked"),
        (lambda: token_plan(["x"], [tiny.document(0)]), "no token of the text is masked"),
        (lambda: token_plan(["x"], [tiny.document(2)], rate=0.01, random_passes=1), "no token of the text is masked"),
        (lambda: token_plan(["x"], [tiny.document(9)], random_passes=0), "the number of random passes is 0"),
        (lambda: word_plan(["x"], [0]), "no word of the text is masked"),
        (lambda: token_plan(["x"], [tiny.document(9)], rate=0.0), "the mask rate is 0.0"),
        (lambda: token_plan(["x"], [tiny.document(9)], rate=0.6), "the mask rate is 0.6"),
        (lambda: token_plan(["x"], [tiny.document(9)], rate=math.nan), "the mask rate is nan"),
    ],
)
def test_a_plan_that_masks_nothing_is_refused(call, problem: str) -> None:  # type: ignore[no-untyped-def]
    """There is no plan without masks, and none of a rate that is no rate."""
    with pytest.raises(UserError) as error:
        call()
    assert error.value.problem == problem
    assert error.value.remedy in {
        "give 1 or more",
        "give a number above 0, at most 0.5",
        "give more text or another seed, or leave out --random-passes",
    }


def _covered(plan: Plan, encoded: list[Encoded]) -> Counter[tuple[int, int, int]]:
    """Return how often each unit, with its document and position, is scored."""
    return Counter(
        (int(unit), row.document, int(place))
        for row in rows(plan, encoded)
        for unit, place in zip(row.units, row.scored, strict=True)
    )


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([None, 3]), st.floats(0.3, 0.5))
def test_rows_score_the_plan_and_nothing_else(parts: list[int], random_passes: int | None, rate: float) -> None:
    """Each unit is scored once, in the window it lies in, with all that its pass masks in that window and no more."""
    texts = ["text", "other", "bare"]
    encoded = [
        tiny.document(sum(parts), windows=np.cumsum(parts)[:-1].tolist()),
        tiny.document(12, windows=[5]),
        tiny.document(3, special=[0, 1, 2]),
    ]
    plan = token_plan(texts, encoded, rate=rate, seed=2, random_passes=random_passes)
    wanted = Counter((unit, document, place) for unit, (document, place, _) in enumerate(_places(plan)))
    assert _covered(plan, encoded) == wanted
    seen = set()
    for row in rows(plan, encoded):
        (draw,) = {int(plan.draw[unit]) for unit in row.units}
        assert (row.start, row.stop) in encoded[row.document].windows
        inside = {p for d, p, r in _places(plan) if (d, r) == (row.document, draw) and row.start <= p < row.stop}
        assert set(row.masked.tolist()) == set(row.scored.tolist()) == inside
        seen.add((row.document, draw, row.start))
    assert len(seen) == sum(1 for _ in rows(plan, encoded))


def test_a_row_short_of_a_token_would_be_seen() -> None:
    """The comparison above fails where a plan holds one unit more than its rows."""
    encoded = [tiny.document(12, windows=[5])]
    plan = token_plan(["text"], encoded)
    shorter = Plan("token", plan.document[1:], plan.position[1:], plan.draw[1:])
    assert _covered(plan, encoded) != _covered(shorter, encoded)


def test_each_token_alone_is_masked_alone() -> None:
    """Pseudo-log-likelihood has one row a token, which holds one mask."""
    encoded = [tiny.document(7, special=[2], windows=[4]), tiny.document(3)]
    found = [(row.document, row.start, row.stop, row.masked.tolist()) for row in rows(one_by_one(encoded), encoded)]
    first = [(0, 0, 4, [0]), (0, 0, 4, [1]), (0, 0, 4, [3]), (0, 4, 7, [4]), (0, 4, 7, [5]), (0, 4, 7, [6])]
    assert found == [*first, *((1, 0, 3, [n]) for n in range(3))]


def test_within_a_word_the_later_pieces_are_masked_too() -> None:
    """Kauf and Ivanova 2023: with a token go the tokens behind it in its word, none before it and none beside."""
    encoded = Encoder(tiny.word_piece(), 40).encode(["unseen turning moons, ice"])
    assert encoded[0].words.tolist() == [0, 0, 1, 1, 2, 2, 2, 3]  # the comma is no part of the word before it
    found = [(row.scored.tolist(), row.masked.tolist()) for row in rows(one_by_one(encoded), encoded, within_word=True)]
    assert found == [
        ([0], [0, 1]),
        ([1], [1]),
        ([2], [2, 3]),
        ([3], [3]),
        ([4], [4, 5]),
        ([5], [5]),
        ([6], [6]),
        ([7], [7]),
    ]


def test_within_a_word_that_comes_again_only_its_own_pieces_are_masked() -> None:
    """The next word is another one though it is spelt alike, and a window's end is the end of what is masked."""
    encoded = [tiny.document(6, words=[0, 0, 1, 1, 1, 2], windows=[4])]
    found = [row.masked.tolist() for row in rows(one_by_one(encoded), encoded, within_word=True)]
    assert found == [[0, 1], [1], [2, 3], [3], [4], [5]]


def test_a_word_is_masked_whole_or_left_out() -> None:
    """Left out are words that hold an unknown token, are cut by a window or fill one: what is left is whole."""
    words = [0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 6]
    encoded = [tiny.document(13, special=[4], words=words, windows=[8, 10])]
    plan = word_plan(["text"], [7])
    scored = [(row.masked.tolist(), row.units.tolist()) for row in rows(plan, encoded)]
    assert sorted(place for masked, _ in scored for place in masked) == [0, 1, 2, 6, 9]
    for masked, units in scored:
        assert [words[place] for place in masked] == plan.position[units].tolist()
    together = [set(masked) for masked, _ in scored]
    assert {0, 1} in [masked & {0, 1} for masked in together]


@pytest.mark.parametrize("special", [{0, 1, 2}, {0}])
def test_a_document_without_a_unit_hides_none_behind_it(special: set[int]) -> None:
    """A text of special tokens alone, and one whose only word cannot be scored whole, are passed over: not the next."""
    encoded = [tiny.document(4), tiny.document(3, special=special, words=[0, 0, 0]), tiny.document(4)]
    tokens, words = token_plan(["a", "b", "c"], encoded), word_plan(["a", "b", "c"], [4, 1, 4])
    assert {row.document for row in rows(tokens, encoded)} >= {0, 2}
    assert {row.document for row in rows(words, encoded)} == {0, 2}


def test_a_word_that_lies_whole_in_its_window_is_scored() -> None:
    """Also one at the beginning of a window, beside a single other token, and one of a later window."""
    for words, windows in (([0, 0, 1], []), ([0, 1, 1, 2], [1]), ([0, 1, 2, 2, 3, 3], [2])):
        encoded = [tiny.document(len(words), words=words, windows=windows)]
        scored = {place for row in rows(word_plan(["a"], [max(words) + 1]), encoded) for place in row.scored.tolist()}
        alone = {0} if windows == [1] else set()  # the only word of its window: nothing to go by
        assert scored == set(range(len(words))) - alone


def test_a_word_that_is_not_in_the_plan_is_not_scored() -> None:
    """A plan may hold some of a document's words: the others are read and never masked."""
    encoded = [tiny.document(4, words=[0, 1, 2, 2])]
    none = np.zeros(2, np.int32)
    (row,) = rows(Plan("word", none, np.array([1, 2], np.int32), none), encoded)
    assert (row.scored.tolist(), row.units.tolist()) == ([1, 2, 3], [0, 1, 1])
