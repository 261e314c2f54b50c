"""Declaring an expected change splits one variant in two, and the golden then passes on both sides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro.compare.declare import declare
from mlmrepro.compare.golden import Entry, Variant
from mlmrepro.compare.judge import Verdict, judge
from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.errors import UserError
from mlmrepro.record import Lane

REASON, LINK = "renamed", "https://example.org/1"
BASE = Entry(Lane.EXACT, (Variant("new"),))


def declared(entry: Entry, requirement: str, value: str, version: str) -> Entry:
    return declare(entry, requirement, value, {"transformers": version}, reason=REASON, link=LINK)


def test_both_sides_pass_and_each_fails_on_the_other() -> None:
    """After one declaration, each side's value is right in its own versions and wrong in the others."""
    entry = declared(BASE, "transformers<5.0", "old", "4.41.2")
    for value, version, wanted in (
        ("old", "4.99", Verdict.IDENTICAL),
        ("new", "5.0", Verdict.IDENTICAL),
        ("new", "4.99", Verdict.REGRESSION),
        ("old", "5.0", Verdict.REGRESSION),
    ):
        assert judge("model", "x", entry, value, {"transformers": version}).verdict is wanted


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True))
def test_any_number_of_changes_leaves_exactly_one_variant_for_every_version(majors: list[int]) -> None:
    """However the range is cut, exactly one variant holds for each version, and the one that was declared."""
    entry = BASE
    for major in sorted(majors, reverse=True):
        entry = declared(entry, f"transformers<{major}", f"below {major}", f"{major - 1}.5")
    for version in range(42):
        (variant,) = entry.matching({"transformers": str(version)})
        below = min((major for major in majors if version < major), default=None)
        assert variant.value == ("new" if below is None else f"below {below}")


def test_bounds_that_others_imply_are_left_out() -> None:
    """A variant between two bounds names these two, and no others."""
    entry = declared(BASE, "transformers<5.0", "old", "4.41.2")
    entry = declared(entry, "transformers<4.50", "older", "4.41.2")
    assert {frozenset(variant.when) for variant in entry.variants} == {
        frozenset({"transformers>=4.50", "transformers<5.0"}),
        frozenset({"transformers<4.50"}),
        frozenset({"transformers>=5.0"}),
    }


BELOW = "transformers<5.0"
NO_BOUND = ("is not a single bound of one package", "write it as transformers>=5.0 or datasets<4")
NOT_HERE = ("does not hold for the versions of the record", "give the range in which the record's value is expected")
NO_REASON = ("an expected change needs a reason and a link", "say why, and where it is documented")


@pytest.mark.parametrize(
    ("requirement", "value", "reason", "link", "said"),
    [
        ("transformers>=5.0", "old", REASON, LINK, NOT_HERE),
        ("transformers>=4.0,<5", "old", REASON, LINK, NO_BOUND),
        ("transformers==4.41.2", "old", REASON, LINK, NO_BOUND),
        ("???", "old", REASON, LINK, NO_BOUND),
        (BELOW, "old", " ", LINK, NO_REASON),
        (BELOW, "old", REASON, "see the docs", NO_REASON),
        (BELOW, "new", REASON, LINK, ("the value is already expected", "there is nothing to declare")),
    ],
)
def test_what_cannot_be_declared_is_refused(
    requirement: str, value: str, reason: str, link: str, said: tuple[str, str]
) -> None:
    """A range that is none or does not hold, a missing reason or link, and a value that is expected already."""
    with pytest.raises(UserError) as error:
        declare(BASE, requirement, value, {"transformers": "4.41.2"}, reason=reason, link=link)
    assert error.value.problem.removeprefix(f"{requirement!r} ") == said[0]
    assert error.value.remedy == said[1]


def test_a_range_that_is_no_bound_stays_as_it_is() -> None:
    """A variant for one release or a family of them keeps that beside the new bound."""
    entry = Entry(
        Lane.EXACT,
        (Variant("four", ("transformers==4.*",), REASON, LINK), Variant("new", ("transformers>=5",), REASON, LINK)),
    )
    changed = declared(entry, "transformers<4.50", "early", "4.41.2")
    assert {variant.value: set(variant.when) for variant in changed.variants} == {
        "four": {"transformers==4.*", "transformers>=4.50"},
        "early": {"transformers==4.*", "transformers<4.50"},
        "new": {"transformers>=5"},
    }


def test_bounds_are_narrowed_upwards_too() -> None:
    """Each later release that changes a value takes the range from there on, and leaves the one before it its end."""
    entry = declared(BASE, "transformers>=4.50", "newer", "5.1")
    entry = declared(entry, "transformers>=5.0", "newest", "5.1")
    assert {variant.value: set(variant.when) for variant in entry.variants} == {
        "new": {"transformers<4.50"},
        "newer": {"transformers>=4.50", "transformers<5.0"},
        "newest": {"transformers>=5.0"},
    }


@pytest.mark.parametrize(("requirement", "version"), [("transformers>5", "5.1"), ("transformers<=5", "5.0")])
def test_a_release_of_its_own_at_the_start_of_a_range_has_one_variant(requirement: str, version: str) -> None:
    """Where a range begins at a release, that release and those after it can be told apart."""
    entry = declared(declared(BASE, "transformers>=5", "five", "5.1"), requirement, "other", version)
    assert [len(entry.matching({"transformers": each})) for each in ("4.9", "5", "5.0.1", "6")] == [1, 1, 1, 1]


@pytest.mark.parametrize("requirement", ["transformers>=4.40", "transformers>=4.48"])
def test_a_range_beyond_that_of_the_value_before_is_refused(requirement: str) -> None:
    """A bound that leaves the old value no version would expect the new one where another variant holds."""
    entry = declared(BASE, "transformers>=4.48", "newer", "5.1")
    with pytest.raises(UserError) as error:
        declared(entry, requirement, "newest", "5.1")
    assert error.value.problem == (
        f"'{requirement}' covers all of transformers>=4.48, so no version would keep the old value"
    )
    assert (
        error.value.remedy
        == "give a bound inside that range; for a wider change, make one declaration for each variant"
    )


def test_a_bound_of_another_package_leaves_versions_over() -> None:
    """A variant for one package is split by another package's release; all its ranges hold on both sides."""
    entry = declared(BASE, "transformers>=4.48", "newer", "5.1")
    versions = {"transformers": "5.1", "datasets": "4.0"}
    entry = declare(entry, "datasets>=3", "both", versions, reason=REASON, link="http://example.org/2")
    assert {variant.value: (set(variant.when), variant.link) for variant in entry.variants} == {
        "new": ({"transformers<4.48"}, LINK),
        "newer": ({"transformers>=4.48", "datasets<3"}, LINK),
        "both": ({"transformers>=4.48", "datasets>=3"}, "http://example.org/2"),
    }


def test_the_end_of_a_family_of_releases_can_be_declared() -> None:
    """A bound inside of 4.* leaves the releases below it."""
    four = Variant("four", ("transformers==4.*",), REASON, LINK)
    entry = Entry(Lane.EXACT, (four, Variant("new", ("transformers>=5",), REASON, LINK)))
    changed = declared(entry, "transformers>=4.50", "late", "4.57")
    assert [v.value for v in changed.matching({"transformers": "4.49"})] == ["four"]
    assert [v.value for v in changed.matching({"transformers": "4.57"})] == ["late"]


def test_a_golden_with_two_variants_that_hold_is_mended_first() -> None:
    """Which of the two would be split nobody can tell; the error counts them."""
    rows = tuple(Variant(value, ("transformers>=4",), REASON, LINK) for value in "ab")
    with pytest.raises(UserError) as error:
        declared(Entry(Lane.EXACT, rows), "transformers>=5", "c", "5.1")
    assert error.value.problem == "2 variants hold for the versions of the record"
    assert error.value.remedy == "fix the golden: exactly one must hold"


def test_a_float_is_declared_where_it_moved_beyond_its_tolerance() -> None:
    """Within the tolerance there is nothing to declare; what is declared keeps the tolerance."""
    entry = Entry(Lane.APPROXIMATE, (Variant(1.0),), Tolerance("nats", atol=0.1, reason="test"))
    versions = {"transformers": "5.1"}
    with pytest.raises(UserError, match="is already expected"):
        declare(entry, "transformers>=5", 1.05, versions, reason=REASON, link=LINK)
    changed = declare(entry, "transformers>=5", 1.5, versions, reason=REASON, link=LINK)
    assert [variant.value for variant in changed.variants] == [1.0, 1.5]
    assert changed.tolerance == entry.tolerance
