"""The comparison of recipes: every raw value, the answer, the test, and the detectable difference."""

from __future__ import annotations

import math
import re

import pytest

from mlmrepro.gate.result import Answer
from mlmrepro.gate.seeds import SeedComparison, compare_seeds
from mlmrepro.report.check_words import VERDICT
from mlmrepro.report.markdown import document_markdown
from mlmrepro.report.seeds import seeds_document
from mlmrepro.report.words import SYMBOL

from . import shown as printed
from . import words

OLD = (3.7, 3.7101, 3.7052, 3.7023, 3.6994)
WORSE = (3.75, 3.7601, 3.7552, 3.7523, 3.7494)
MARGIN = math.log(1.01)


def compared(before: tuple[float, ...] = OLD, after: tuple[float, ...] = WORSE) -> SeedComparison:
    return compare_seeds(before, after, margin_nats=MARGIN)


def shown(comparison: SeedComparison, width: int = 80) -> str:
    return printed(seeds_document(comparison), width)


def seeds_markdown(comparison: SeedComparison, limit: int = 60_000) -> str:
    return document_markdown(seeds_document(comparison), limit=limit)


@pytest.mark.parametrize(
    ("after", "answer"),
    [
        (WORSE, Answer.REGRESSION),
        (OLD, Answer.SAME),
        (tuple(loss - 0.2 for loss in OLD), Answer.BETTER),
        ((3.7, 3.76, 3.72), Answer.INCONCLUSIVE),
    ],
)
def test_the_answer_stands_first(after: tuple[float, ...], answer: Answer) -> None:
    """Symbol, answer and reason are the first words on the terminal and in Markdown."""
    comparison = compared(after=after)
    assert comparison.answer is answer
    assert words(shown(comparison)).startswith(f"{SYMBOL[VERDICT[answer]]} {answer.value}: ")
    assert f" {comparison.reason}. " in words(shown(comparison))
    assert seeds_markdown(comparison).startswith(f"### {SYMBOL[VERDICT[answer]]} {answer.value}: ")


def test_every_raw_value_is_listed() -> None:
    """The loss of each seed is on the terminal and in the table, even if one side has more seeds."""
    comparison = compared(after=WORSE[:3])
    for text in (words(shown(comparison)), seeds_markdown(comparison)):
        assert all(re.search(rf"\b{loss:g}\b", text) for loss in (*OLD, *WORSE[:3]))
    assert "| 4 | 3.7023 |  |" in seeds_markdown(comparison)
    assert f"| mean | {sum(OLD) / 5:.7g} | {sum(WORSE[:3]) / 3:.7g} |" in seeds_markdown(comparison)


def test_the_test_and_its_power_are_stated() -> None:
    """The output has each p-value, the smallest possible one, alpha, and the detectable difference with its power."""
    comparison = compared()
    assert comparison.smallest_effect is not None
    for text in (words(shown(comparison)), seeds_markdown(comparison)):
        for part in (
            "p = 0.00397 for worse by more than the margin",
            "the smallest possible p with 5 against 5 seeds is 0.00397 (alpha 0.05)",
            f"a true difference of {comparison.smallest_effect:.3g} nats (power 95 %)",
            f"standard deviation between seeds {comparison.deviation:.3g} nats",
        ):
            assert part in text


def test_two_against_two_can_tell_nothing() -> None:
    """With so few seeds the answer is inconclusive; the output gives the smallest possible p-value."""
    text = words(shown(compared(OLD[:2], (9.0, 9.1))))
    assert text.startswith("? inconclusive")
    assert "the smallest possible p with 2 against 2 seeds is 0.167 (alpha 0.05)" in text
    assert "no difference, however large: too few seeds" in text
    assert "power" not in text


def test_a_loss_that_is_no_number_is_shown() -> None:
    """NaN is listed, nothing is computed from it, and None is not printed."""
    comparison = compared(after=(3.7, math.nan, 3.72))
    for text in (words(shown(comparison)), seeds_markdown(comparison)):
        assert "NaN" in text
        assert not re.search(r"\bNone\b|\bnan\b|p = ", text)


@pytest.mark.parametrize("width", [80, 40])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Lines fold below 80 columns."""
    assert max(map(len, shown(compared(), width).splitlines())) <= width


def test_markdown_keeps_within_its_limit() -> None:
    """A table that does not fit is left out with a note, never cut off."""
    page = seeds_markdown(compared(), limit=850)
    assert len(page) <= 850
    assert "left out here" in page
    assert "| run |" not in page
