"""From an interval and a margin to one answer, and the sentences beside it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmrepro.errors import UserError
from mlmrepro.gate.judge import MOST_TIMES, answer, documents_needed, explain
from mlmrepro.gate.paired import paired
from mlmrepro.gate.result import Answer, Paired

MARGIN = math.log(1.01)
BETTER, SAME, REGRESSION, INCONCLUSIVE = Answer.BETTER, Answer.SAME, Answer.REGRESSION, Answer.INCONCLUSIVE


def text(mean: float, documents: int = 400, spread: float = 0.02) -> Paired:
    """Documents of 100 tokens whose mean change is exactly `mean`, with this deviation between documents."""
    change = np.linspace(-1, 1, documents)
    return paired((mean + spread * change / change.std()) * 100, np.full(documents, 100), units=100 * documents)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.02, -1e-9, BETTER),
        (-0.02, 0.0, SAME),
        (-0.02, MARGIN, SAME),
        (0.001, 0.002, SAME),
        (-0.02, MARGIN + 1e-9, INCONCLUSIVE),
        (0.001, 0.02, INCONCLUSIVE),
        (MARGIN, 0.02, INCONCLUSIVE),
        (MARGIN + 1e-9, 0.02, REGRESSION),
        (0.0, 0.0, SAME),
    ],
)
def test_the_interval_and_the_margin_decide(low: float, high: float, expected: Answer) -> None:
    """Below 0 is better, above the margin a regression, up to the margin the same; all else is inconclusive."""
    found = dataclasses.replace(text(0.0), difference=(low + high) / 2, low=low, high=high)
    assert answer(found, MARGIN) is expected


@settings(max_examples=40)
@given(st.floats(-0.1, 0.1), st.floats(0, 0.05), st.floats(0, 0.05), st.floats(0, 0.1))
def test_a_wider_margin_never_makes_an_answer_worse(mean: float, spread: float, margin: float, more: float) -> None:
    """From a margin to a wider one, a regression may become inconclusive, and that the same: never the other way."""
    order = [REGRESSION, INCONCLUSIVE, SAME, BETTER]
    found = text(mean, 20, spread)
    assert order.index(answer(found, margin)) <= order.index(answer(found, margin + more))


@pytest.mark.parametrize("margin", [-0.01, math.nan, math.inf])
def test_a_margin_is_a_bound(margin: float) -> None:
    """A negative margin, or one that is no number, is bad input; 0 asks for no loss at all."""
    with pytest.raises(UserError, match="is no bound"):
        answer(text(0.0), margin)
    assert answer(text(0.0, spread=0.0), 0.0) is SAME


@pytest.mark.parametrize(("mean", "decided"), [(0.0115, REGRESSION), (0.0085, SAME)])
def test_the_documents_needed_decide(mean: float, decided: Answer) -> None:
    """As many documents of this kind as are asked for do decide, with room for chance; a quarter of them do not."""
    found = text(mean)
    assert answer(found, MARGIN) is INCONCLUSIVE
    needed = documents_needed(found, MARGIN)
    assert needed is not None
    assert 400 < needed < 400 * MOST_TIMES
    more = text(mean, needed)
    assert answer(more, MARGIN) is decided
    # The power: the interval is farther from the margin than chance moves it in 95 of 100 texts.
    room = more.low - MARGIN if decided is REGRESSION else MARGIN - more.high
    assert room == pytest.approx(1.645 * more.standard_error, rel=0.05)
    assert answer(text(mean, needed // 4), MARGIN) is INCONCLUSIVE


def test_what_is_as_good_as_the_margin_is_never_decided() -> None:
    """At the margin, or so near that a hundred times the text would not decide, no number of documents is named."""
    for mean in (MARGIN, MARGIN * 1.0001, MARGIN * 0.9999):
        assert documents_needed(text(mean), MARGIN) is None
    assert documents_needed(text(MARGIN, spread=0.0), MARGIN) is None
    reason, advice = explain(text(MARGIN * 1.0001), 0.01, MARGIN, "perplexity", 50, 50.5)
    assert "the interval holds the margin" in reason
    assert f"{MOST_TIMES} times as much text would not decide" in advice


@pytest.mark.parametrize(
    ("mean", "finding", "advice"),
    [
        (-0.02, "measurably better", ""),
        (-0.0012, "not worse than the margin allows", ""),
        (0.005, "measurably worse, but within the margin", ""),
        (0.009, "the interval holds the margin", "documents of this kind"),
        (0.03, "worse by more than the margin", "Look at the slices and documents that got worse."),
    ],
)
def test_each_answer_is_told_with_its_numbers(mean: float, finding: str, advice: str) -> None:
    """The reason has both perplexities, the change and its interval; advice only where there is something to do."""
    found = text(mean)
    reason, told = explain(found, 0.01, MARGIN, "perplexity", 50.0, 50 * math.exp(mean))
    assert reason.startswith(f"perplexity 50 → {50 * math.exp(mean):.5g}, ")
    assert f"{100 * math.expm1(mean):+.2f} % (98 % interval" in reason
    assert f"{100 * math.expm1(found.low):+.2f} to {100 * math.expm1(found.high):+.2f} %), margin 1 %: " in reason
    assert reason.endswith(finding)
    assert advice in told
    assert bool(told) == bool(advice)
    assert not told or told.startswith(("Look at", "If the"))


def test_how_much_more_text_is_told() -> None:
    """An inconclusive answer names the documents that would decide, and how many times as many they are."""
    found = text(0.009)
    needed = documents_needed(found, MARGIN)
    assert needed is not None
    _, advice = explain(found, 0.01, MARGIN, "perplexity", 50, 50.4)
    assert advice == (
        f"If the difference is as it looks, {needed:,} documents of this kind, {needed / 400:.2g} times as many, "
        "would decide."
    )
    near = text(MARGIN - 0.0006)
    needed = documents_needed(near, MARGIN)
    assert needed is not None
    assert needed > 11 * 400
    _, advice = explain(near, 0.01, MARGIN, "perplexity", 50, 50.4)
    assert f"{needed:,} documents of this kind, {needed / 400:.0f} times as many" in advice


@pytest.mark.parametrize(("needed", "times"), [(1000, "2.5 times"), (39_900, "100 times")])
def test_how_many_times_as_much_is_told_in_plain_digits(
    monkeypatch: pytest.MonkeyPatch, needed: int, times: str
) -> None:
    """Small factors with one decimal, large ones as whole numbers, never as a power of ten."""
    monkeypatch.setattr("mlmrepro.gate.judge.documents_needed", lambda paired, margin: needed)
    _, advice = explain(text(0.009), 0.01, MARGIN, "perplexity", 50, 50.4)
    assert f"{needed:,} documents of this kind, {times} as many, would decide." in advice


def test_an_interval_that_begins_at_0_is_not_measurably_worse() -> None:
    """It holds 0, so that the difference may be none."""
    found = dataclasses.replace(text(0.005), low=0.0)
    reason, _ = explain(found, 0.01, MARGIN, "perplexity", 50, 50.2)
    assert reason.endswith(": not worse than the margin allows")


def test_bits_per_byte_are_told_in_bits() -> None:
    """With words, nats a byte are told as bits, the margin too, and what it is a share of."""
    reason, _ = explain(text(0.02), 0.01, 0.004, "bits per byte", 1.5, 1.53)
    bits = 0.02 / math.log(2)
    assert reason.startswith(f"bits per byte 1.5 → 1.53, +{bits:.2g} bits (98 % interval +")
    assert "margin 0.0058 bits (1 % of the old perplexity): worse by more than the margin" in reason


def test_no_difference_at_all_is_told_so() -> None:
    """Where nothing changed there is no interval to show, and nothing to do."""
    found = paired([0.0, 0.0], [10, 20], units=30)
    assert answer(found, MARGIN) is SAME
    assert explain(found, 0.01, MARGIN, "perplexity", 50, 50) == ("perplexity 50 → 50, no difference at all", "")


def test_enormous_changes_have_words_too() -> None:
    """A broken model's loss overflows the exponential: the sentence stays a sentence."""
    reason, _ = explain(text(2000.0), 0.01, MARGIN, "perplexity", 50, math.inf)
    assert reason.startswith("perplexity 50 → inf, +inf %")


@pytest.mark.parametrize(("mean", "side", "other"), [(0.0115, "low", "high"), (0.0085, "high", "low")])
def test_skewness_towards_the_margin_asks_for_more_documents(mean: float, side: str, other: str) -> None:
    """What widens the side of the interval on which the margin lies has to shrink too; the other side has no say."""
    found = text(mean)
    needed = documents_needed(found, MARGIN)
    assert needed is not None
    away = 0.001 * (-1 if side == "low" else 1)
    wider = documents_needed(dataclasses.replace(found, **{side: getattr(found, side) + away}), MARGIN)
    assert wider is not None
    assert wider > needed
    assert documents_needed(dataclasses.replace(found, **{other: getattr(found, other) - away}), MARGIN) == needed


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        (0.0, "+0.00 bits"),
        (0.0123, "+0.012 bits"),
        (-0.0999, "-0.1 bits"),
        (0.101, "+0.10 bits"),
        (1.5, "+1.50 bits"),
        (999.9, "+999.90 bits"),
        (1000.4, "+1e+03 bits"),
        (-1234.0, "-1.23e+03 bits"),
    ],
)
def test_a_figure_has_as_many_digits_as_tell_something(bits: float, told: str) -> None:
    """Two decimals where they tell enough, two digits below, three for large numbers; always with its sign."""
    found = dataclasses.replace(text(0.0), difference=bits * math.log(2))
    reason, _ = explain(found, 0.01, 0.004, "bits per byte", 1.5, 1.53)
    assert reason.startswith(f"bits per byte 1.5 → 1.53, {told} (98 % interval ")
