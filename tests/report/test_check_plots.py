"""The figures of a check: the interval with the margin, and the forest plot of slices."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from mlmrepro.report.check import check_document
from mlmrepro.report.check_plots import drawings, forest, interval
from mlmrepro.report.page import document_page
from mlmrepro.report.svg import Drawing

from . import checks
from .test_html import Page


def test_the_interval_plot_holds_the_numbers() -> None:
    """The table has the estimate, both ends, the margin and the smallest effect, in nats and in per cent."""
    figure = interval(checks.check())
    assert figure is not None
    assert [row[0] for row in figure.rows] == [
        "estimate",
        "low end of the interval",
        "high end of the interval",
        "margin",
        "smallest detectable change",
    ]
    assert figure.rows[0][1:] == ("0.0305", "+3.10 %")
    assert figure.rows[3][2] == "+1.00 %"
    bits = interval(checks.in_words())
    assert bits is not None
    assert bits.rows[0][1:] == ("0.003", f"{0.003 / math.log(2):+.2g}")
    assert "%" not in "".join(row[2] for row in bits.rows)


@pytest.mark.parametrize("end", [math.inf, math.nan, 1e4])
def test_an_interval_without_end_is_not_drawn(end: float) -> None:
    """Numbers that do not fit an axis drop the figure without an error."""
    result = checks.check(paired=dataclasses.replace(checks.paired(0.1), high=end))
    assert interval(result) is None
    assert [drawing.name for drawing in drawings(result)] == ["forest"]
    assert Page(document_page(check_document(result))).problems == []


def test_the_forest_marks_changes_by_more_than_colour() -> None:
    """A changed slice has a word in the drawing; the table lists every slice with its interval and p-value."""
    figure = forest(checks.check())
    assert figure is not None
    texts = re.findall(r"<text[^>]*>([^<]*)<", figure.svg)
    assert [text for text in texts if text.endswith(("worse", "better")) and "%" in text] == [
        "+2.12 % worse",
        "-3.05 % better",
        "+5.34 % worse",
    ]
    assert "+0.40 %" in texts
    assert {"topic", "token frequency", "physics", "once"} <= set(texts)
    assert len(figure.rows) == 5
    assert figure.rows[0][:4] == ("physics", "topic", "worse", "+2.12 %")
    assert "3 of 5 slices changed after Holm's correction" in figure.description


def test_of_many_slices_the_most_changed_are_drawn() -> None:
    """Two hundred slices give a figure of bounded height, which says so, and a table with all of them."""
    many = [checks.part(f"t{n}", 0.01) for n in range(200)]
    many[150] = checks.part("t150", 0.2, "worse")
    figure = forest(checks.check(slices=tuple(many)))
    assert figure is not None
    assert "+22.14 % worse" in figure.svg
    assert len(figure.rows) == 200
    assert "The figure shows the 30 with the smallest p-values" in figure.description


def test_a_slice_of_few_documents_does_not_flatten_the_others() -> None:
    """An interval that is a hundred times as wide is cut at the edge, so the estimates stay apart."""
    wide = checks.part("wide", 0.0, error=1.0)
    assert _spread(forest(checks.check(slices=(*checks.SLICES, wide)))) > 0.2
    assert _spread(forest(checks.check())) > 0.2


def _spread(figure: Drawing | None) -> float:
    """Return the largest distance between filled diamonds, as a share of the figure's width."""
    assert figure is not None
    diamonds = [use for use in re.findall("<use [^>]*>", figure.svg) if re.search(r"fill: var\(--c[12]\)", use)]
    places = [float(x) for use in diamonds for x in re.findall(r' x="([\d.]+)"', use)]
    (width,) = re.findall(r'viewBox="0 0 ([\d.]+)', figure.svg)
    assert len(places) == 3
    return (max(places) - min(places)) / float(width)
