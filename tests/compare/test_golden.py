"""The comparer: two-sided, tolerant only where a reason says so, and never content with something absent."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro.compare.golden import Expected, differences, disagreements, read_golden, write_golden
from mlmrepro.errors import UserError
from mlmrepro.record import Lane

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.text(max_size=3)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))
TOLERANT = [Lane.APPROXIMATE, Lane.STATISTICAL]

ROWS = [
    {"token": 7, "token_str": " spiral", "score": 0.50, "sequence": "a spiral"},
    {"token": 8, "token_str": " dwarf", "score": 0.20, "sequence": "a dwarf"},
    {"token": 9, "token_str": " small", "score": 0.1999, "sequence": "a small"},
]
RANKING = Expected(Lane.RANKING, ROWS, 0.001, "test")


@given(VALUES)
def test_a_value_agrees_with_itself(value: Any) -> None:
    """Every value agrees with an equal one, in every lane."""
    for lane in (Lane.EXACT, *TOLERANT):
        assert differences(Expected(lane, value, 0.0, "test"), copy.deepcopy(value)) == []


@given(VALUES, VALUES)
def test_exact_values_agree_both_ways_or_neither(a: Any, b: Any) -> None:
    """In the exact lane, expected against obtained gives the same answer as obtained against expected."""
    there, back = (differences(Expected(Lane.EXACT, *pair[:1]), pair[1]) for pair in ((a, b), (b, a)))
    assert bool(there) == bool(back)


@given(st.dictionaries(st.text(max_size=2), LEAVES, min_size=1), st.data())
def test_a_missing_and_an_added_key_fail(value: dict[str, Any], data: st.DataObject) -> None:
    """A key that only one side has is reported, whichever side it is."""
    fewer = dict(value)
    del fewer[data.draw(st.sampled_from(sorted(value)))]
    assert differences(Expected(Lane.EXACT, value), fewer)
    assert differences(Expected(Lane.EXACT, fewer), value)


@pytest.mark.parametrize("lane", [Lane.EXACT, *TOLERANT])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "NaN", True])
def test_what_is_no_number_never_agrees_with_a_number(lane: Lane, bad: Any) -> None:
    """NaN, infinity and other types fail against a number and, for NaN and infinity, against themselves."""
    assert differences(Expected(lane, 1.0, 1e9, "test"), bad)
    if isinstance(bad, float):
        assert differences(Expected(lane, bad, 1e9, "test"), bad)


@given(st.floats(-100, 100), st.floats(1e-6, 1.0), st.floats(-2, 2))
def test_the_tolerance_is_the_limit(value: float, tolerance: float, share: float) -> None:
    """A difference agrees when it is within the tolerance, absolute or relative as the lane says."""
    for lane, limit in ((Lane.APPROXIMATE, tolerance), (Lane.STATISTICAL, tolerance * abs(value))):
        obtained = value + share * limit
        agrees = abs(obtained - value) <= limit
        assert (differences(Expected(lane, value, tolerance, "test"), obtained) == []) == agrees


def test_lengths_must_agree() -> None:
    """A longer and a shorter list fail, also in the tolerant lanes and in rankings."""
    for lane in (Lane.EXACT, *TOLERANT):
        assert differences(Expected(lane, [1.0, 2.0], 9.0, "test"), [1.0])
        assert differences(Expected(lane, [1.0], 9.0, "test"), [1.0, 2.0])
    assert differences(RANKING, ROWS[:2])


def test_a_ranking_allows_a_swap_inside_the_tie_band_only() -> None:
    """Two tokens may change places when their scores tie, and not otherwise."""
    assert differences(RANKING, [ROWS[0], ROWS[2], ROWS[1]]) == []
    assert differences(RANKING, [ROWS[1], ROWS[0], ROWS[2]])


def test_a_ranking_rejects_new_moved_and_doubled_tokens() -> None:
    """A token that was not expected, a score beyond the band, another sentence and a token named twice all fail."""
    for changed in ({"token": 99}, {"score": 0.1979}, {"sequence": "a  small"}, {"score": math.nan}):
        assert differences(RANKING, [*ROWS[:2], ROWS[2] | changed])
    assert differences(RANKING, [ROWS[0], ROWS[1], ROWS[1]])


def test_an_expected_value_that_was_not_obtained_fails() -> None:
    """Nothing measured is never a pass."""
    assert disagreements({"steps": Expected(Lane.EXACT, 3)}, {}) == ["steps: expected, not obtained"]


def test_a_tolerance_needs_a_reason() -> None:
    """No tolerance without the reason for it, and nothing that is only shown can be expected."""
    with pytest.raises(ValueError, match="reason"):
        Expected(Lane.APPROXIMATE, 1.0, 0.1)
    with pytest.raises(ValueError, match="never expected"):
        Expected(Lane.INFO, 1.0)


def test_a_golden_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Writing and reading a golden keeps lanes, values, tolerances and reasons."""
    expected = {"pipeline": RANKING, "steps": Expected(Lane.EXACT, [1, "é"])}
    write_golden(tmp_path / "x.json", {"python": "3"}, expected)
    assert read_golden(tmp_path / "x.json") == expected


@pytest.mark.parametrize("content", ["", "{}", '{"expected": {"a": {"lane": "exact"}}}', '{"expected": [1]}'])
def test_a_damaged_golden_is_bad_input(tmp_path: Path, content: str) -> None:
    """A truncated or foreign file is reported with its path, and so is an absent one."""
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="does not exist"):
        read_golden(path)
    path.write_text(content)
    with pytest.raises(UserError, match=r"x\.json is not a golden"):
        read_golden(path)
