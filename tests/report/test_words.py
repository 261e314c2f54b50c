"""The wording of values, verdicts and changes."""

from __future__ import annotations

import math

import pytest

from mlmrepro.compare.changes import Change
from mlmrepro.compare.judge import Finding, Verdict
from mlmrepro.compare.values import ABSENT, Difference
from mlmrepro.report.comparison import change_item
from mlmrepro.report.document import first_points, plain
from mlmrepro.report.words import (
    LEGEND,
    SHORT,
    SYMBOL,
    clean,
    finding_line,
    headline,
    next_step,
    number,
    pairs_line,
    tally,
    value,
)

pytestmark = pytest.mark.quick


def finding(*found: Difference, name: str = "step_losses", verdict: Verdict = Verdict.REGRESSION) -> Finding:
    return Finding("loss", name, verdict, found)


def test_every_verdict_has_a_symbol_and_words_of_its_own() -> None:
    """Verdicts look different without colour, and each has a headline and a next step."""
    for words in (SYMBOL, SHORT, LEGEND):
        assert len(set(words.values())) == len(Verdict)
    assert len({headline(verdict) for verdict in Verdict}) == len(Verdict)
    assert all(next_step(verdict) for verdict in Verdict)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb\t c", "a b c"), ("\x1b[31mred", "\\x1b[31mred"), ("\ud800", "\\ud800"), ("\u202eevil", "\\u202eevil")],
)
def test_what_is_not_printable_is_written_as_an_escape(text: str, shown: str) -> None:
    """Escape sequences, direction marks and lone surrogates never reach a terminal, page or file."""
    assert clean(text) == shown
    assert shown.encode()


def test_floats_are_told_apart() -> None:
    """Two nearly equal floats are printed with enough digits to look different."""
    assert finding_line(finding(Difference("[0]", 4.568401, 4.568402))).startswith("step_losses[0] 4.568401 → 4.568402")


def test_a_line_tells_the_unit_the_rest_and_the_largest() -> None:
    """A value with many differences takes one line: the first, the number of others, and the largest."""
    found = [Difference(f"[{n}]", 4.0, 4.0 + (n + 1) / 100) for n in range(18)]
    line = finding_line(finding(*found), {("loss", "step_losses"): "nats"})
    assert line == "step_losses[0] 4 → 4.01 (+0.01 nats) and 17 more differences, the largest +0.18 nats at [17]"


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_no_finite_number_is_named(figure: float) -> None:
    """NaN and the infinities are given by name, without a numerical difference."""
    line = finding_line(finding(Difference("", 4.0, figure, "not a finite number")))
    assert line == f"step_losses 4 → {number(figure)} (not a finite number)"


def test_a_missing_value_is_said_to_be_missing() -> None:
    """A value that one side lacks is described in words, without an arrow."""
    assert finding_line(finding(Difference("", ABSENT, 5, "nothing to compare it with"))) == (
        "step_losses 5 obtained, nothing to compare it with"
    )
    assert finding_line(finding(Difference("", 5, ABSENT))) == "step_losses 5 expected, nothing obtained"


def test_a_long_value_is_shown_by_its_size() -> None:
    """A value of any length takes a limited part of a line."""
    assert value(list(range(10_000))) == "10,000 values"
    assert len(value("x" * 10_000)) == 60


def test_a_change_names_its_stage_values_and_consequences() -> None:
    """A change takes one line, whatever the number of its values."""
    findings = [finding(Difference("", n, n + 1), name=f"v{n}") for n in range(50)]
    item = change_item(Change("loss", tuple(findings), ("evaluation",)), {})
    assert plain(item.head) == "REGRESSION loss changed by itself (inherited by evaluation)"
    values = ["v0 0 → 1 (+1)", "v1 1 → 2 (+1)", "and 48 more values (v2, v3, v4, …)"]
    assert [plain(line) for line in first_points(item)] == values


def test_absent_packages_and_long_lists() -> None:
    """A package on one side only is called absent there, and a long list is cut with a count."""
    assert pairs_line({"a": (None, "1"), "b": ("1", "2")}, limit=1) == "a absent → 1, and 1 more"


def test_the_tally_counts_each_verdict() -> None:
    """Changes are counted by verdict, best first."""
    verdicts = [Verdict.REGRESSION, Verdict.EXPECTED, Verdict.EXPECTED]
    assert tally(verdicts) == "2 expected, 1 REGRESSION"


def test_different_settings_come_first() -> None:
    """If two runs had different settings, the advice is to fix that first."""
    assert "seed" in next_step(Verdict.REGRESSION, finding(), {"seed": (1, 2)})
