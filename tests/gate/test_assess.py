"""The whole answer: what decides it, and what is shown with it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlmrepro.errors import UserError
from mlmrepro.gate.assess import SHOWN_UNITS, DocumentText, assess, worst_documents
from mlmrepro.gate.judge import explain
from mlmrepro.gate.paired import cautions, paired_units
from mlmrepro.gate.result import Answer, CheckResult
from mlmrepro.scores import Scores

pytestmark = pytest.mark.quick

DOCUMENTS, UNITS = 20, 40
TEXT = [DocumentText(f"doc {i}", "sea" if i % 2 else "law", [f"w{j}" for j in range(UNITS)]) for i in range(DOCUMENTS)]
MARGIN = math.log(1.01)


def scored(rng: np.random.Generator) -> Scores:
    units = DOCUMENTS * UNITS
    return Scores(
        document=np.repeat(np.arange(DOCUMENTS, dtype=np.int32), UNITS),
        position=np.tile(np.arange(UNITS, dtype=np.int32), DOCUMENTS),
        token=rng.integers(0, 50, units, dtype=np.int32),
        loss=rng.gamma(2, 1, units).astype(np.float32),
        size=np.ones(units, np.int32),
        correct=rng.random(units) < 0.5,
        confidence=rng.random(units).astype(np.float32),
    )


BEFORE = scored(np.random.default_rng(0))
NOISE = np.random.default_rng(1).normal(0, 0.01, len(BEFORE))


def changed(difference: NDArray | float, before: Scores = BEFORE) -> Scores:
    return dataclasses.replace(before, loss=(before.loss + difference).astype(np.float32))


def checked(after: Scores, before: Scores = BEFORE, **arguments: Any) -> CheckResult:
    settings = {"measure": "perplexity", "margin": 0.01, "margin_nats": MARGIN, "alpha": 0.01, "power": 0.95}
    return assess(before, after, **(settings | {"rounding": 1e-5, "documents": TEXT} | arguments))


@pytest.mark.parametrize(
    ("difference", "answer"),
    [
        (-0.05 + NOISE, Answer.BETTER),
        (NOISE, Answer.SAME),
        (0.005 + NOISE, Answer.SAME),
        (0.05 + NOISE, Answer.REGRESSION),
        (0.01 + 30 * NOISE, Answer.INCONCLUSIVE),
    ],
)
def test_the_answer_is_that_of_the_paired_interval(difference: NDArray, answer: Answer) -> None:
    """Below 0 it is better, below the margin the same, above it a regression, and around it nothing is known."""
    after = changed(difference)
    found = checked(after)
    assert found.answer is answer
    d = after.loss.astype(float) - BEFORE.loss
    assert found.paired == paired_units(d, BEFORE.size, BEFORE.document, alpha=0.01, power=0.95)
    assert found.largest_change == np.max(np.abs(d))
    assert (found.before, found.after) == (BEFORE.perplexity, after.perplexity)
    assert (found.reason, found.advice) == explain(
        found.paired, 0.01, MARGIN, "perplexity", BEFORE.perplexity, after.perplexity
    )
    assert found.accuracy is not None
    assert found.not_finite == 0
    assert {s.kind for s in found.slices} == {"topic", "token frequency"}


def test_rounding_alone_is_exactly_no_difference() -> None:
    """Changes up to the rounding are the same with difference 0, and nothing is named; a little more is judged."""
    shift = 2.0**-20  # exact in float32 for losses below 8
    before = dataclasses.replace(BEFORE, loss=(np.round(BEFORE.loss * 1024) / 1024).clip(0.5, 7).astype(np.float32))
    found = checked(changed(shift, before), before, rounding=shift)
    assert (found.answer, found.largest_change) == (Answer.SAME, shift)
    assert found.paired is not None
    assert (found.paired.difference, found.paired.low, found.paired.high) == (0, 0, 0)
    assert "9.5e-07" in found.reason
    assert found.worst == ()
    assert {s.answer for s in found.slices} == {""}
    beyond = checked(changed(-shift, before), before, rounding=shift / 2)
    assert beyond.answer is Answer.BETTER
    assert beyond.paired is not None
    assert beyond.paired.difference == -shift


def test_the_same_losses_are_the_same_without_any_rounding() -> None:
    """One checkpoint against itself has difference 0 even where no rounding is allowed."""
    found = checked(BEFORE, rounding=0.0)
    assert (found.answer, found.largest_change, found.advice) == (Answer.SAME, 0, "")
    assert found.reason.endswith("none of 800 losses differs")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_no_numbers_are_a_regression(value: float) -> None:
    """One such loss outweighs any improvement of the others; it is counted, and its document named."""
    after = changed(-1.0)
    after.loss[[7 * UNITS + 3, 9 * UNITS]] = value
    found = checked(after)
    assert (found.answer, found.not_finite, found.paired, found.accuracy) == (Answer.REGRESSION, 2, None, None)
    assert (found.slices, found.worst) == ((), ())
    assert math.isnan(found.after)
    assert math.isnan(found.largest_change)
    assert found.before == BEFORE.perplexity
    assert "2 of 800" in found.reason
    assert found.reason == "2 of 800 losses (the first in 'doc 7') of the candidate are NaN or infinite"
    assert found.advice == "Look for NaN or infinite weights, or for a number format too narrow for the model."
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_broken_baseline_is_bad_input() -> None:
    """Nothing can be said against a baseline whose losses are no numbers, whatever the candidate's are."""
    broken = changed(0.0)
    broken.loss[UNITS] = np.nan
    for after in (BEFORE, broken):
        with pytest.raises(UserError) as error:
            checked(after, broken)
        assert error.value.problem == "1 of 800 losses (the first in 'doc 1') in the baseline are NaN or infinite"
        assert error.value.remedy == "make the baseline again, from a checkpoint whose losses are finite"


@pytest.mark.parametrize("column", ["document", "position", "token", "size"])
def test_other_units_are_not_compared(column: str) -> None:
    """Two checkpoints are compared on the same masks or not at all."""
    values = getattr(BEFORE, column).copy()
    values[-1] += 1
    with pytest.raises(ValueError, match=f"{column} differs"):
        checked(dataclasses.replace(BEFORE, **{column: values}))
    shorter = Scores(*(getattr(BEFORE, f.name)[:-1] for f in dataclasses.fields(BEFORE)))
    with pytest.raises(ValueError, match="document differs"):
        checked(shorter)
    nothing = Scores(*(getattr(BEFORE, f.name)[:0] for f in dataclasses.fields(BEFORE)))
    with pytest.raises(ValueError, match="no units"):
        checked(nothing, nothing)


def test_words_are_measured_in_bits_per_byte() -> None:
    """Where words are compared, both values are bits a byte, of the same losses over the words' bytes."""
    size = np.random.default_rng(2).integers(1, 9, len(BEFORE)).astype(np.int32)
    before = dataclasses.replace(BEFORE, size=size, token=np.full_like(BEFORE.token, -1))
    found = checked(changed(0.5, before), before, measure="bits per byte")
    assert (found.measure, found.before) == ("bits per byte", before.bits_per_byte)
    assert found.after == pytest.approx(before.bits_per_byte + 0.5 * len(size) / size.sum() / math.log(2))
    assert found.paired is not None
    assert found.paired.difference == pytest.approx(0.5 * len(size) / size.sum())


def test_the_documents_that_got_worse_are_named_the_gravest_first() -> None:
    """Two planted documents come first, in their order; one that got better never comes, and not more than asked."""
    difference = np.zeros(len(BEFORE))
    for document, by in ((4, 0.3), (11, 0.9), (2, -2.0)):
        difference[BEFORE.document == document] = by
    found = checked(changed(difference))
    assert [(d.name, d.topic) for d in found.worst] == [("doc 11", "sea"), ("doc 4", "law")]
    assert [d.difference for d in found.worst] == pytest.approx([0.9, 0.3], abs=1e-6)
    assert [t.text for t in found.worst[0].tokens] == TEXT[11].units
    rows = BEFORE.document == 11
    assert [t.before for t in found.worst[0].tokens] == BEFORE.loss[rows].tolist()
    assert [t.after for t in found.worst[0].tokens] == changed(difference).loss[rows].tolist()
    assert [d.name for d in checked(changed(difference), worst=1).worst] == ["doc 11"]
    assert checked(changed(difference), worst=0).worst == ()
    assert len(checked(changed(0.1 + NOISE)).worst) == 5


def units(document: list[int], position: list[int], loss: list[float]) -> Scores:
    ones = np.ones(len(loss), np.int32)
    return Scores(
        np.array(document, np.int32),
        np.array(position, np.int32),
        ones,
        np.array(loss, np.float32),
        ones,
        ones.astype(bool),
        ones.astype(np.float32),
    )


def test_neither_long_nor_short_documents_are_named_for_their_length() -> None:
    """A hundred units a little worse and one much worse than chance: noise of equal strength ranks equally."""
    long, short = DocumentText("long", "", ["x"] * 100), DocumentText("short", "", ["x"])
    documents, positions = [0] * 100 + [1], [*range(100), 0]
    before = units(documents, positions, [1.0] * 101)
    for of_short, first in ((4.9, "long"), (5.1, "short")):
        after = units(documents, positions, [1.5] * 100 + [1 + of_short])
        assert next(d.name for d in worst_documents(before, after, [long, short], 2)) == first


def test_a_random_plan_leaves_gaps_and_masks_places_twice() -> None:
    """A unit that was never masked has no losses, one masked in two passes their mean."""
    text = [DocumentText("other", "", ["x"]), DocumentText("doc", "", list("abcde"))]
    before = units([0, 1, 1, 1], [0, 1, 1, 3], [1, 2, 4, 5])
    after = units([0, 1, 1, 1], [0, 1, 1, 3], [0.5, 3, 7, 5])
    (found,) = worst_documents(before, after, text, 5)
    assert [(t.text, t.before, t.after) for t in found.tokens] == [
        ("a", None, None),
        ("b", 3, 5),
        ("c", None, None),
        ("d", 5, 5),
        ("e", None, None),
    ]
    assert found.difference == pytest.approx(4 / 3)


@pytest.mark.parametrize("worst_unit", [0, 17, 600, 999])
def test_long_documents_are_cut_around_the_largest_worsening(worst_unit: int) -> None:
    """Of a long document as many units as fit are shown, and the one that got worst is among them."""
    text = [DocumentText("long", "", [str(i) for i in range(1000)])]
    before = units([0] * 1000, list(range(1000)), [1.0] * 1000)
    after = dataclasses.replace(before, loss=before.loss + (np.arange(1000) == worst_unit).astype(np.float32))
    (found,) = worst_documents(before, after, text, 1)
    shown = [int(t.text) for t in found.tokens]
    assert shown == list(range(shown[0], shown[0] + SHOWN_UNITS))
    assert shown[0] == {0: 0, 17: 0, 600: 400, 999: 600}[worst_unit]  # in the middle, where there is text around it
    gaps = np.arange(1000) % 7 == worst_unit % 7  # units that were never masked got no worse, and no better
    unlike = units([0] * gaps.sum(), list(np.flatnonzero(gaps)), list(np.where(np.flatnonzero(gaps) % 2, 9.0, 1.0)))
    after = dataclasses.replace(unlike, loss=unlike.loss + (unlike.position == worst_unit).astype(np.float32))
    (found,) = worst_documents(unlike, after, text, 1)
    assert [int(t.text) for t in found.tokens] == shown


def test_cautions_join_the_notes() -> None:
    """Few documents that move a lot are a reason for caution; where nothing changed there is none."""
    found = checked(changed(20 * (BEFORE.document == 3) + NOISE), notes=["a note"])
    d = np.bincount(BEFORE.document, weights=changed(20 * (BEFORE.document == 3) + NOISE).loss - BEFORE.loss)
    expected = cautions(d, np.full(DOCUMENTS, UNITS), alpha=0.01)
    assert expected
    assert found.notes == ("a note", *expected)
    assert checked(BEFORE, notes=["a note"]).notes == ("a note",)
    wider = cautions(d, np.full(DOCUMENTS, UNITS), alpha=0.1)
    assert wider != expected
    assert checked(changed(20 * (BEFORE.document == 3) + NOISE), alpha=0.1).notes == wider


def test_what_was_given_along_is_kept() -> None:
    """Notes, provenance and the thresholds come back as they were, and the whole is plain JSON."""
    found = checked(changed(NOISE), notes=["a note"], provenance={"candidate": {"checkpoint": "new"}})
    assert found.notes[0] == "a note"
    assert found.provenance == {"candidate": {"checkpoint": "new"}}
    assert (found.margin, found.margin_nats, found.rounding) == (0.01, MARGIN, 1e-5)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["answer"] == "same"
    assert type(found.to_dict()["answer"]) is str


@pytest.mark.parametrize(
    ("difference", "code"), [(-0.05, 0), (0.005, 0), (0.05, 1), (math.nan, 1), (0.01 + 3000 * NOISE, 3)]
)
def test_each_answer_has_its_exit_code(difference: NDArray | float, code: int) -> None:
    """0 for better and the same, 1 for a regression, 3 where nothing can be concluded: what scripts rely on."""
    assert checked(changed(difference + NOISE)).exit_code == code


def test_documents_that_are_equally_grave_keep_their_order() -> None:
    """Of 200 that got worse by the same, the first in the text are named first."""
    text = [DocumentText(f"doc {i}", "", ["x"]) for i in range(200)]
    before = units(list(range(200)), [0] * 200, [1.0] * 200)
    after = dataclasses.replace(before, loss=before.loss + np.float32(0.5))
    assert [d.name for d in worst_documents(before, after, text, 200)] == [d.name for d in text]


def test_the_power_that_is_asked_for_is_the_power_of_every_figure() -> None:
    """Of the whole comparison, of the accuracy and of each slice."""
    found = checked(changed(NOISE), power=0.8, alpha=0.02)
    assert found.paired is not None
    assert found.accuracy is not None
    for paired in (found.paired, found.accuracy.paired, *(s.paired for s in found.slices)):
        assert (paired.alpha, paired.power) == (0.02, 0.8)
