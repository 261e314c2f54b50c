"""Declaring an expected change splits one variant in two, and the golden then passes on both sides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro.compare.declare import declare
from mlmrepro.compare.golden import Entry, Variant
from mlmrepro.compare.judge import Verdict, judge
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


@pytest.mark.parametrize(
    ("requirement", "value", "reason", "link", "problem"),
    [
        ("transformers>=5.0", "old", REASON, LINK, "does not hold"),
        ("transformers>=4.0,<5", "old", REASON, LINK, "not one bound"),
        ("transformers==4.41.2", "old", REASON, LINK, "not one bound"),
        ("???", "old", REASON, LINK, "not one bound"),
        ("transformers<5.0", "old", " ", LINK, "reason"),
        ("transformers<5.0", "old", REASON, "see the docs", "link"),
        ("transformers<5.0", "new", REASON, LINK, "already"),
    ],
)
def test_what_cannot_be_declared_is_refused(requirement: str, value: str, reason: str, link: str, problem: str) -> None:
    """A range that is none or does not hold, a missing reason or link, and a value that is expected already."""
    with pytest.raises(UserError, match=problem):
        declare(BASE, requirement, value, {"transformers": "4.41.2"}, reason=reason, link=link)


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
