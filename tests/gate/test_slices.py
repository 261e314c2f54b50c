"""Slices: a change is named where it was planted and nowhere else, and chance alone is rarely named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from mlmrepro.gate.paired import p_value
from mlmrepro.gate.result import SliceChange
from mlmrepro.gate.slices import LEAST_DOCUMENTS, holm, slices
from mlmrepro.scores import Scores

TOPICS = [topic for topic in ("art", "law", "sea") for _ in range(12)]
DOCUMENTS, UNITS = len(TOPICS), 30  # of each document


def text(rng: np.random.Generator) -> Scores:
    """Return losses of documents whose tokens follow Zipf's law, so that every frequency occurs."""
    units = DOCUMENTS * UNITS
    return Scores(
        document=np.repeat(np.arange(DOCUMENTS, dtype=np.int32), UNITS),
        position=np.tile(np.arange(UNITS, dtype=np.int32), DOCUMENTS),
        token=(rng.zipf(1.4, units) % 5000).astype(np.int32),
        loss=rng.gamma(2, 1.5, units).astype(np.float32),
        size=np.ones(units, np.int32),
        correct=rng.random(units) < 0.5,
        confidence=rng.random(units).astype(np.float32),
    )


def changed(before: Scores, difference: NDArray) -> Scores:
    return dataclasses.replace(before, loss=(before.loss + difference).astype(np.float32))


def judged(before: Scores, after: Scores, topics: list[str] = TOPICS, alpha: float = 0.01) -> dict[str, SliceChange]:
    return {s.name: s for s in slices(before, after, topics, alpha=alpha, power=0.95)}


def test_holm_by_hand() -> None:
    """Four p-values times 4, 3, 2 and 1, never below one that came before, never over 1, each at its place."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values: list[float]) -> None:
    """Adjusted p-values are in the order of the raw ones, at least these, at most their number times these."""
    adjusted = holm(p_values)
    assert np.all(np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0)
    assert np.all(adjusted >= p_values)
    assert np.all(adjusted <= np.minimum(1, np.array(p_values) * len(p_values)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_does(p_values: list[float], alpha: float) -> None:
    """Going up from the smallest p-value, Holm rejects until the first that is over alpha / (those left)."""
    rejected = set()
    for done, i in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[i] * (len(p_values) - done) > alpha:
            break
        rejected.add(int(i))
    assert set(np.flatnonzero(holm(p_values) <= alpha)) == rejected


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("topic", ["art", "sea"])
def test_a_change_in_one_topic_is_named_and_no_other_topic_is(topic: str, sign: int) -> None:
    """A loss that grows or falls in one topic alone is called worse or better there, and nothing in the others."""
    rng = np.random.default_rng(3)
    before = text(rng)
    planted = np.array([t == topic for t in TOPICS])[before.document]
    found = judged(before, changed(before, sign * 0.3 * planted + rng.normal(0, 0.2, len(before))))
    topics = {name: s.answer for name, s in found.items() if s.kind == "topic"}
    assert topics == {"art": "", "law": "", "sea": ""} | {topic: "worse" if sign > 0 else "better"}
    assert found[topic].paired.difference == pytest.approx(0.3 * sign, abs=0.05)


def test_a_change_of_rare_tokens_is_named_by_their_frequency() -> None:
    """Tokens that stand once got worse: the slice of these says so, those of the others do not."""
    rng = np.random.default_rng(4)
    before = text(rng)
    counts = np.bincount(before.token)[before.token]
    found = judged(before, changed(before, 0.5 * (counts == 1) + rng.normal(0, 0.2, len(before))))
    frequencies = {name: s for name, s in found.items() if s.kind == "token frequency"}
    assert {name for name, s in frequencies.items() if s.answer} == {"once"}
    assert list(frequencies) == ["once", "2 to 5 times", "6 to 30 times", "31 to 300 times", "301 times or more"]
    assert sum(s.paired.units for s in frequencies.values()) == len(before)
    assert frequencies["once"].paired.units == np.sum(counts == 1)


def test_chance_alone_is_named_at_most_as_often_as_promised() -> None:
    """Documents' changes with random signs: in 400 trials, any slice is named no more often than alpha allows.

    Without Holm it would be: so many slices would be named by chance that the trials see it.
    """
    rng = np.random.default_rng(5)
    before, alpha, trials = text(rng), 0.05, 400
    change = rng.gamma(0.5, 1, DOCUMENTS)
    named = raw = 0
    for _ in range(trials):
        signs = rng.choice([-1, 1], DOCUMENTS)
        found = judged(before, changed(before, (signs * change)[before.document]), alpha=alpha)
        named += any(s.answer for s in found.values())
        raw += any(s.p_value <= alpha for s in found.values())
    limit = binom.ppf(0.999, trials, alpha)
    assert named <= limit
    assert raw > limit


def test_nothing_changed_is_no_evidence() -> None:
    """Where every difference is 0, p is 1 and nothing is named."""
    before = text(np.random.default_rng(6))
    found = judged(before, before).values()
    assert {(s.p_value, s.adjusted, s.answer) for s in found} == {(1, 1, "")}


def test_slices_are_corrected_together() -> None:
    """The adjusted p-values are Holm's over topics and frequencies at once, of each slice's own p-value."""
    rng = np.random.default_rng(7)
    before = text(rng)
    found = slices(before, changed(before, rng.normal(0.02, 0.2, len(before))), TOPICS, alpha=0.01, power=0.95)
    assert {s.kind for s in found} == {"topic", "token frequency"}
    assert [s.p_value for s in found] == [p_value(s.paired) for s in found]
    assert [s.adjusted for s in found] == list(holm([s.p_value for s in found]))


def test_small_topics_stand_together() -> None:
    """Topics of few documents are one slice if they are enough together; documents without topic are another."""
    rng = np.random.default_rng(8)
    before = text(rng)
    after = changed(before, rng.normal(0, 0.2, len(before)))
    few = LEAST_DOCUMENTS - 1
    topics = ["b"] * few + ["a"] * few + ["c"] * 10 + [""] * 8 + ["d"] * (DOCUMENTS - 2 * few - 18)
    documents = {s.name: s.paired.documents for s in judged(before, after, topics).values() if s.kind == "topic"}
    assert documents == {"c": 10, "d": DOCUMENTS - 2 * few - 18, "other topics": 2 * few, "no topic": 8}
    topics = ["b"] * LEAST_DOCUMENTS + ["c"] * (DOCUMENTS - LEAST_DOCUMENTS)
    assert {s.name for s in judged(before, after, topics).values() if s.kind == "topic"} == {"b", "c"}
    topics = ["b"] * few + ["c"] * (DOCUMENTS - few)
    assert {s.name for s in judged(before, after, topics).values() if s.kind == "topic"} == {"c"}


@pytest.mark.parametrize("topics", [[""] * DOCUMENTS, ["all"] * DOCUMENTS])
def test_a_slice_of_everything_is_none(topics: list[str]) -> None:
    """Where all documents have one topic, or none has, that slice would repeat the whole comparison."""
    before = text(np.random.default_rng(9))
    assert {s.kind for s in judged(before, before, topics).values()} == {"token frequency"}


def test_words_have_no_frequency() -> None:
    """A word of several tokens has no token, so words are sliced by topic alone."""
    before = text(np.random.default_rng(10))
    before = dataclasses.replace(before, token=np.full_like(before.token, -1))
    assert {s.kind for s in judged(before, before).values()} == {"topic"}


def test_a_place_masked_in_several_passes_counts_once() -> None:
    """Random plans may mask a place twice: the token's frequency in the text stays what it is."""
    once = text(np.random.default_rng(11))
    twice = Scores(*(np.repeat(getattr(once, f.name), 2) for f in dataclasses.fields(once)))
    units = {name: s.paired.units for name, s in judged(once, once).items()}
    assert {name: s.paired.units for name, s in judged(twice, twice).items()} == {n: 2 * u for n, u in units.items()}
