"""Two values: compared both ways, tolerant only as far as the lane says, and never content with something absent."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro.compare.tolerance import QUANTITIES, Tolerance, default_tolerance
from mlmrepro.compare.values import ABSENT, Difference, differences
from mlmrepro.errors import UserError
from mlmrepro.record import Lane

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.text(max_size=3)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))
TOLERANT = (Lane.APPROXIMATE, Lane.STATISTICAL)
NONE = Tolerance("nats", reason="test")
WIDE = Tolerance("nats", atol=1e9, reason="test")
BAND = Tolerance("probability", atol=0.001, reason="test")

ROWS = [
    {"token": 7, "token_str": " spiral", "score": 0.50, "sequence": "a spiral"},
    {"token": 8, "token_str": " dwarf", "score": 0.20, "sequence": "a dwarf"},
    {"token": 9, "token_str": " small", "score": 0.1999, "sequence": "a small"},
]


def ranking(obtained: Any, expected: Any = ROWS) -> list[str]:
    return [str(difference) for difference in differences(Lane.RANKING, expected, obtained, BAND)]


@st.composite
def rankings(draw: st.DrawFn) -> list[dict[str, Any]]:
    scores = sorted(draw(st.lists(st.floats(0, 1), max_size=6)), reverse=True)
    return [{"token": token, "score": score} for token, score in enumerate(scores)]


@given(VALUES)
def test_a_value_agrees_with_itself(value: Any) -> None:
    """Every finite value agrees with an equal one, in every lane."""
    for lane in (Lane.EXACT, Lane.RANKING, *TOLERANT):
        assert differences(lane, value, copy.deepcopy(value), NONE) == []


@given(VALUES, VALUES)
def test_exact_values_agree_both_ways_or_neither(a: Any, b: Any) -> None:
    """In the exact lane, expected against obtained gives the same answer as obtained against expected."""
    assert bool(differences(Lane.EXACT, a, b)) == bool(differences(Lane.EXACT, b, a))


@pytest.mark.parametrize(("a", "b"), [(1, True), (0, None), ("1", 1), ([], {}), ([1], 1), ("", None), ([], None)])
def test_values_of_other_types_differ(a: Any, b: Any) -> None:
    """No type is taken for another, both ways and however wide the tolerance; 1 and 1.0 are one number."""
    for lane in (Lane.EXACT, *TOLERANT):
        assert differences(lane, a, b, WIDE)
        assert differences(lane, b, a, WIDE)
        assert differences(lane, 1, 1.0, NONE) == []


@given(st.dictionaries(st.text(max_size=2), LEAVES, min_size=1), st.data())
def test_a_missing_and_an_added_key_differ(value: dict[str, Any], data: st.DataObject) -> None:
    """A key that only one side has is the one difference, at its place, whichever side it is."""
    key = data.draw(st.sampled_from(sorted(value)))
    fewer = {name: item for name, item in value.items() if name != key}
    for lane in (Lane.EXACT, *TOLERANT):
        assert differences(lane, value, fewer, WIDE) == [Difference(f"[{key!r}]", value[key], ABSENT)]
        assert differences(lane, fewer, value, WIDE) == [Difference(f"[{key!r}]", ABSENT, value[key])]


@given(st.lists(LEAVES, max_size=4), st.lists(LEAVES, min_size=1, max_size=2))
def test_lengths_must_agree(value: list[Any], more: list[Any]) -> None:
    """A longer and a shorter list differ in every lane, also where what both have agrees."""
    for lane in (Lane.EXACT, *TOLERANT):
        for a, b in ((value, value + more), (value + more, value)):
            note = f"{len(a)} values expected, {len(b)} obtained"
            assert differences(lane, a, b, WIDE) == [Difference("", a, b, note)]
            assert differences(lane, {"a": a}, {"a": b}, WIDE) == [Difference("['a']", a, b, note)]


@pytest.mark.parametrize("lane", [Lane.EXACT, *TOLERANT])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_agrees_with_nothing(lane: Lane, bad: float) -> None:
    """NaN and the infinities differ from numbers, both ways, from themselves, and inside containers."""
    for a, b in ((1.0, bad), (bad, 1.0), (bad, bad), ([bad], [bad]), ({"a": bad}, {"a": bad})):
        (difference,) = differences(lane, a, b, WIDE)
        assert difference.note == "not a finite number"
        if isinstance(a, float):
            assert str(difference) == f"expected {a}, obtained {b} (not a finite number)"


@given(st.floats(-100, 100), st.floats(0, 1), st.floats(0, 0.1), st.floats(-2, 2))
def test_the_tolerance_is_the_limit(value: float, atol: float, rtol: float, share: float) -> None:
    """A number agrees when it is within ``atol + rtol * abs(expected)``, in both lanes; never in the exact one."""
    tolerance = Tolerance("nats", atol, rtol, "test")
    obtained = value + share * (atol + rtol * abs(value))
    agrees = abs(obtained - value) <= atol + rtol * abs(value)
    for lane in TOLERANT:
        assert (differences(lane, value, obtained, tolerance) == []) == agrees
        assert (differences(lane, [{"a": value}], [{"a": obtained}], tolerance) == []) == agrees
    assert (differences(Lane.EXACT, value, obtained, tolerance) == []) == (value == obtained)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=5), st.data())
def test_one_number_beyond_the_tolerance_is_the_one_difference(values: list[float], data: st.DataObject) -> None:
    """Among numbers that moved within the tolerance, the one that moved further is found at its index."""
    at = data.draw(st.integers(0, len(values) - 1))
    moved = [value + (0.5 if index == at else 0.05) for index, value in enumerate(values)]
    found = differences(Lane.APPROXIMATE, {"losses": values}, {"losses": moved}, Tolerance("nats", 0.1, reason="test"))
    assert [difference.place for difference in found] == [f"['losses'][{at}]"]


@given(rankings())
def test_a_ranking_agrees_with_itself_and_with_no_part_of_itself(rows: list[dict[str, Any]]) -> None:
    """Rows agree with equal ones; fewer and more rows differ."""
    assert ranking(copy.deepcopy(rows), rows) == []
    for index in range(len(rows)):
        fewer = rows[:index] + rows[index + 1 :]
        assert ranking(fewer, rows)
        assert ranking(rows, fewer)


@given(rankings().filter(lambda rows: len(rows) > 1), st.data())
def test_neighbours_change_places_only_in_a_tie(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """Two tokens may change places when their expected scores lie within the band, and not otherwise."""
    at = data.draw(st.integers(0, len(rows) - 2))
    swapped = [*rows[:at], rows[at + 1], rows[at], *rows[at + 2 :]]
    assert (ranking(swapped, rows) == []) == (abs(rows[at]["score"] - rows[at + 1]["score"]) <= BAND.atol)


@given(rankings().filter(bool), st.floats(-0.003, 0.003), st.data())
def test_a_score_may_move_by_the_band(rows: list[dict[str, Any]], move: float, data: st.DataObject) -> None:
    """A score that moved agrees within the band, and is named with its rank beyond it."""
    at = data.draw(st.integers(0, len(rows) - 1))
    moved = [row | {"score": row["score"] + move} if index == at else row for index, row in enumerate(rows)]
    agrees = abs(rows[at]["score"] - moved[at]["score"]) <= BAND.atol
    found = ranking(moved, rows)
    assert found == [] if agrees else f"rank {at + 1} score" in found[0]


def test_ties_hold_in_the_example() -> None:
    """The second and third of the rows tie, the first ties with none, and turned round nothing agrees."""
    assert ranking([ROWS[0], ROWS[2], ROWS[1]]) == []
    swapped = ranking([ROWS[1], ROWS[0], ROWS[2]])
    assert swapped[0] == "rank 1: expected ' spiral', obtained ' dwarf' (not a tie: 0.3 apart)"
    assert ranking(ROWS[::-1])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"token": 99, "score": 0.1}, "an unexpected token"),
        ({"token": 99, "score": math.nan}, "an unexpected token"),
        ({"score": 0.1979}, "rank 3 score"),
        ({"score": math.nan}, "not a finite number"),
        ({"sequence": "a  small"}, "rank 3['sequence']"),
        ({"extra": 1}, "rank 3['extra']"),
    ],
)
def test_a_changed_row_differs(changed: dict[str, Any], said: str) -> None:
    """A token that was not expected, a score beyond the band and another sentence are each named."""
    assert any(said in line for line in ranking([*ROWS[:2], ROWS[2] | changed]))


def test_a_new_token_may_tie_with_the_last_one_only() -> None:
    """A token that was cut off may take the last place where its score reaches the last one's, and no other."""
    new = {"token": 99, "token_str": " new", "score": 0.2003, "sequence": "a new"}
    assert ranking([*ROWS[:2], new]) == []
    assert any("unexpected" in line for line in ranking([new, *ROWS[1:]]))
    assert any("unexpected" in line for line in ranking([*ROWS[:2], new | {"score": 0.2020}]))


def test_a_doubled_token_differs() -> None:
    """A token named twice is found even where its rank ties."""
    assert any("a token occurs twice" in line for line in ranking([ROWS[0], ROWS[1], ROWS[1]]))


@pytest.mark.parametrize("other", [None, "text", [1], [{"token": 7}], [{"token": 7, "score": None}], {"0": 1}])
def test_what_is_no_ranking_differs_from_one(other: Any) -> None:
    """Something else in place of a ranking differs, both ways."""
    assert ranking(other)
    assert ranking(ROWS, other)


def test_a_lane_without_its_tolerance_is_an_error() -> None:
    """Floats are compared with a tolerance or not at all, and what is only shown never."""
    for lane in (Lane.RANKING, *TOLERANT):
        with pytest.raises(ValueError, match="needs a tolerance"):
            differences(lane, 1.0, 1.0)
    with pytest.raises(ValueError, match="never compared"):
        differences(Lane.INFO, 1.0, 1.0, WIDE)


def test_a_tolerance_is_finite_and_has_a_reason() -> None:
    """No tolerance without a quantity and a reason, and none that allows everything."""
    for arguments in (("nats", 0.1, 0.0, ""), ("", 0.1, 0.0, "test")):
        with pytest.raises(ValueError, match="a quantity and a reason"):
            Tolerance(*arguments)
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match="not a finite number"):
            Tolerance("nats", bad, reason="test")
        with pytest.raises(ValueError, match="not a finite number"):
            Tolerance("nats", rtol=bad, reason="test")


def test_measured_tolerances_go_by_quantity() -> None:
    """Each known quantity has a tolerance with its reason; an unknown one is bad input that names the known ones."""
    for quantity in QUANTITIES:
        assert default_tolerance(quantity).reason
    with pytest.raises(UserError, match=r"'degrees'.*use one of: nats"):
        default_tolerance("degrees")


def test_a_difference_says_both_sides_and_by_how_much() -> None:
    """A line names the place, both values, and the note or the size; a long value is cut."""
    assert str(Difference("['a'][0]", 1.0, 1.5)) == "['a'][0]: expected 1.0, obtained 1.5 (differs by +0.5)"
    assert str(Difference("", ABSENT, None, "why")) == "expected nothing, obtained None (why)"
    assert Difference("", True, 2).size is None
    assert len(str(Difference("", "x" * 999, ""))) < 200


def test_numbers_that_no_float_holds_are_compared_as_they_are() -> None:
    """10**400 agrees with itself and with nothing else, and its difference is shown."""
    huge = 10**400
    assert differences(Lane.EXACT, huge, huge) == []
    (found,) = differences(Lane.EXACT, huge, huge + 1)
    assert found.size is None
    assert "expected" in str(found)
    assert differences(Lane.EXACT, huge, 1.0)


def test_each_difference_of_a_ranking_is_told_whole() -> None:
    """Rows that lack, tokens by their text or else their id, ranks, scores and what follows: each at its place."""
    small, dwarf = ROWS[2], ROWS[1]
    new = {"token": 99, "score": 0.01, "sequence": "a new"}
    assert differences(Lane.RANKING, ROWS, ROWS[:2], BAND) == [
        Difference("", ROWS, ROWS[:2], "3 rows expected, 2 obtained")
    ]
    assert differences(Lane.RANKING, ROWS, [new, small | {"sequence": "small"}, dwarf | {"score": 0.3}], BAND) == [
        Difference("rank 1", " spiral", 99, "an unexpected token"),
        Difference("rank 2['sequence']", "a small", "small"),
        Difference("rank 3 score", 0.2, 0.3),
    ]
    assert differences(Lane.RANKING, [new], [dwarf], BAND) == [
        Difference("rank 1", 99, " dwarf", "an unexpected token")
    ]
    counted = [small | {"count": 1}], [small | {"count": 1.5}]  # only scores may move
    assert differences(Lane.RANKING, *counted, BAND) == [Difference("rank 1['count']", 1, 1.5)]
    twice = [dwarf, dwarf]
    assert differences(Lane.RANKING, [dwarf, small], twice, BAND) == [
        Difference("", [dwarf, small], twice, "a token occurs twice")
    ]


def test_the_tie_band_is_part_of_the_tie() -> None:
    """Scores exactly one band apart tie, a little more do not: for neighbours, and for what takes the last place."""
    band = Tolerance("probability", atol=0.25, reason="test")
    rows = [{"token": 7, "score": 0.75}, {"token": 8, "score": 0.5}]
    new = [{"token": 9, "score": 0.75}, rows[1]]
    assert differences(Lane.RANKING, rows, rows[::-1], band) == []
    assert differences(Lane.RANKING, rows, new, band) == []
    for wider in (0.7500001, 0.76):
        apart = [rows[0] | {"score": wider}, rows[1]]
        assert differences(Lane.RANKING, apart, apart[::-1], band)
        assert differences(Lane.RANKING, apart, new, band)
        assert differences(Lane.RANKING, rows, [new[0] | {"score": wider}, rows[1]], band)


def test_a_line_is_as_long_as_its_values_need() -> None:
    """Without a note there are no brackets; 80 characters are shown whole, of more the first 79."""
    assert str(Difference("", "a", "b")) == "expected 'a', obtained 'b'"
    whole, longer = "x" * 78, "x" * 79  # and two quotation marks
    assert str(Difference("", whole, longer)) == f"expected '{whole}', obtained '{'x' * 78}…"
