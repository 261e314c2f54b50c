"""The search for causes: planted worlds, in which it is known which packages change what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmrepro.environments.attribute import Attribution, Cause, Explained, Measured, SearchEnded, Swapped, attribute

TWENTY = ("transformers", "datasets", "torch", "tokenizers", "numpy", *(f"other{n:02}" for n in range(15)))


class World:
    """Packages of which some sets make some changes, some hide them, and some cannot be installed."""

    def __init__(
        self,
        makes: Mapping[str, Iterable[Iterable[str]]],
        *,
        packages: tuple[str, ...] = TWENTY,
        needs: Mapping[str, Iterable[str]] | None = None,
        hides: Mapping[str, str] | None = None,
        tells: bool = True,
        fails: Callable[[Swapped], str] = lambda swapped: "",
    ) -> None:
        self.makes = {name: [frozenset(each) for each in sets] for name, sets in makes.items()}
        self.packages, self.hides, self.fails = packages, hides or {}, fails
        self.required = {package: frozenset(those) for package, those in (needs or {}).items()}
        self.tells = tells
        self.asked: list[Swapped] = []

    def needs(self, package: str) -> Swapped:
        return self.required.get(package, frozenset()) if self.tells else frozenset()

    def measure(self, swapped: Swapped) -> Measured:
        self.asked.append(swapped)
        for package in sorted(swapped):
            for missing in sorted(self.required.get(package, frozenset()) - swapped):
                return Measured(problem=f"{package} requires {missing}")
        if problem := self.fails(swapped):
            return Measured(problem=problem)
        made = {name for name, sets in self.makes.items() if any(each <= swapped for each in sets)}
        return Measured(frozenset(name for name in made if self.hides.get(name) not in swapped))

    def search(self, **settings: object) -> Attribution:
        found = attribute(self.packages, self.measure, needs=self.needs, **settings)  # type: ignore[arg-type]
        assert len(self.asked) == len(set(self.asked)), "no mixture is measured twice"
        return found


def causes(found: Attribution) -> dict[str, list[tuple[str, ...]]]:
    return {each.name: [cause.packages for cause in each.causes] for each in found.explained}


def explained(found: Attribution, name: str) -> Explained:
    return next(each for each in found.explained if each.name == name)


def test_nothing_changed() -> None:
    """One measurement, of the whole upgrade, answers."""
    world = World({})
    found = world.search()
    assert found.explained == []
    assert found.complete
    assert world.asked == [frozenset(TWENTY)]


def test_one_package() -> None:
    """The likely package is found first, and the whole upgrade without it clears all others at once."""
    world = World({"loss.step": [["transformers"]], "model.logits": [["transformers"]]})
    found = world.search()
    assert causes(found) == {"loss.step": [("transformers",)], "model.logits": [("transformers",)]}
    assert found.complete
    assert len(world.asked) == 3
    assert found.table() == {
        "loss": {("transformers",): ["loss.step"]},
        "model": {("transformers",): ["model.logits"]},
    }


@pytest.mark.parametrize("culprit", TWENTY)
def test_any_one_package_is_found_in_fewer_environments_than_packages(culprit: str) -> None:
    """An unlikely culprit costs about as much as halving, whatever its place."""
    world = World({"loss.step": [[culprit]]})
    assert causes(world.search()) == {"loss.step": [(culprit,)]}
    assert len(world.asked) <= 2 + 4 * math.ceil(math.log2(len(TWENTY)))


def test_two_packages_that_only_break_together() -> None:
    """Neither changes anything alone; the pair is named, and both pairs of two changes."""
    world = World({"loss.step": [["torch", "other07"]], "masked_batches.ids": [["numpy", "other14"]]})
    found = world.search()
    assert causes(found) == {"loss.step": [("torch", "other07")], "masked_batches.ids": [("numpy", "other14")]}
    assert not any(cause.inseparable for each in found.explained for cause in each.causes)
    assert found.complete
    assert len(world.asked) < 60  # all pairs are 190


def test_three_packages_together() -> None:
    """A set of three is as good as a pair."""
    world = World({"loss.step": [["torch", "other03", "other11"]]})
    assert causes(world.search()) == {"loss.step": [("torch", "other03", "other11")]}


def test_a_stage_changed_by_two_packages_independently() -> None:
    """Both are named, and a pair that does the same besides."""
    world = World({"loss.step": [["torch"], ["other09"], ["numpy", "other01"]]})
    found = world.search()
    assert causes(found) == {"loss.step": [("torch",), ("other09",), ("numpy", "other01")]}
    assert found.complete


def test_a_package_that_masks_a_change() -> None:
    """What one package changes and another hides is no change of the upgrade; it is listed as hidden."""
    world = World({"loss.step": [["transformers"]], "model.logits": [["datasets"]]}, hides={"loss.step": "tokenizers"})
    found = world.search()
    assert causes(found) == {"model.logits": [("datasets",)]}
    assert found.hidden == {"loss.step": (frozenset({"transformers"}),)}


def test_a_mask_within_a_mixture() -> None:
    """A change that a third package hides, unless a fourth is there too, is still traced to its makers."""
    world = World({"loss.step": [["torch"], ["other02", "other05"]]})

    def measure(swapped: Swapped) -> Measured:
        found = world.measure(swapped)
        hidden = "other04" in swapped and "other12" not in swapped
        return Measured(found.changed - {"loss.step"}) if hidden else found

    found = attribute(TWENTY, measure)
    assert causes(found)["loss.step"][0] == ("torch",)
    for cause in explained(found, "loss.step").causes:
        assert "loss.step" in measure(cause.swapped).changed


def test_a_package_is_swapped_with_what_it_needs() -> None:
    """Transformers comes with its tokenizers, which alone change nothing; the cause says so."""
    world = World({"loss.step": [["transformers"]]}, needs={"transformers": ["tokenizers"], "tokenizers": []})
    found = world.search()
    assert explained(found, "loss.step").causes == (Cause(("transformers",), ("tokenizers",)),)
    assert frozenset({"tokenizers"}) in world.asked
    assert found.failed == {}
    assert found.complete


def test_what_is_needed_can_be_the_cause() -> None:
    """If tokenizers alone make the change, transformers, which bring them along, are not blamed."""
    world = World({"input_ids.ids": [["tokenizers"]]}, needs={"transformers": ["tokenizers"]})
    assert explained(world.search(), "input_ids.ids").causes == (Cause(("tokenizers",)),)


def test_packages_that_need_each_other() -> None:
    """They go together and are blamed together."""
    world = World(
        {"loss.step": [["other03"]]}, needs={"other03": ["other10"], "other10": ["other03"], "torch": ["other03"]}
    )
    found = world.search()
    assert explained(found, "loss.step").causes == (Cause(("other03", "other10"), inseparable=True),)
    assert found.complete


def test_mixtures_that_cannot_be_installed() -> None:
    """Without word of what needs what, the set is found by trying, and the untested smaller ones are named."""
    world = World({"loss.step": [["transformers"]]}, needs={"transformers": ["tokenizers", "other08"]}, tells=False)
    found = world.search()
    (cause,) = explained(found, "loss.step").causes
    assert cause.swapped == {"transformers", "tokenizers", "other08"}
    assert frozenset({"transformers"}) in cause.unresolved
    assert found.failed[frozenset({"transformers"})] == "transformers requires other08"


def test_what_was_not_installed_is_told_from_what_changes_nothing() -> None:
    """A check that cannot be made leaves the change incomplete, with the reason; it is never taken for quiet."""
    whole = frozenset(TWENTY)
    world = World(
        {"loss.step": [["torch"]]}, fails=lambda swapped: "no such wheel" if whole - swapped == {"torch"} else ""
    )
    found = world.search()
    assert causes(found) == {"loss.step": [("torch",)]}
    assert not explained(found, "loss.step").complete
    assert explained(found, "loss.step").note == "the new side without torch cannot be measured: no such wheel"
    assert not found.complete


def test_a_new_side_that_cannot_be_measured() -> None:
    """There is nothing to search, and the reason is given for every change that was asked for."""
    found = World({}, fails=lambda swapped: "no such wheel").search(wanted=["loss.step"])
    assert found.stopped == "the new side cannot be measured: no such wheel"
    assert [each.note for each in found.explained] == [found.stopped]
    assert not found.complete


def test_needs_are_learned_from_a_failure() -> None:
    """What the callback knows only after a failed installation is used from then on."""
    world = World({"loss.step": [["torch"]]}, needs={"torch": ["other13"]}, tells=False)

    said: dict[str, set[str]] = {}

    def measure(swapped: Swapped) -> Measured:
        found = world.measure(swapped)
        if found.problem:
            package, _, missing = found.problem.split()
            said.setdefault(package, set()).add(missing)
        return found

    found = attribute(TWENTY, measure, needs=lambda package: said.get(package, ()))
    (cause,) = explained(found, "loss.step").causes
    assert (cause.packages, cause.along) == (("torch",), ("other13",))


def test_the_budget_of_environments() -> None:
    """The search ends with what is known: the smallest set that makes the change, and why it ended."""
    makes = {"loss.step": [["other06", "other13"]]}
    enough = World(makes)
    enough.search()
    for allowed in range(len(enough.asked)):
        world = World(makes)
        found = world.search(environments=allowed, wanted=["loss.step"])
        assert len(world.asked) == allowed
        assert found.stopped == f"the budget of {allowed} environments is used up"
        (only,) = found.explained
        assert not only.complete
        assert only.note == found.stopped
        if not only.causes and allowed:
            assert {"other06", "other13"} <= set(only.among)


def test_the_budget_of_time() -> None:
    """No mixture is begun after the time is up; the clock is the caller's."""
    now = [0.0]
    world = World({"loss.step": [["other06", "other13"]]})

    def measure(swapped: Swapped) -> Measured:
        now[0] += 100
        return world.measure(swapped)

    found = attribute(TWENTY, measure, seconds=600, clock=lambda: now[0])
    assert len(world.asked) == 6
    assert found.stopped == "the budget of 10 minutes is used up"


def test_whoever_measures_can_end_the_search() -> None:
    """What is known by then is kept, and the reason is given; nothing more is measured."""
    world = World({"loss.step": [["transformers"]], "model.logits": [["other13"]]})

    def measure(swapped: Swapped) -> Measured:
        if len(world.asked) == 3:
            raise SearchEnded("no network")
        return world.measure(swapped)

    found = attribute(TWENTY, measure)
    assert causes(found) == {"loss.step": [("transformers",)], "model.logits": []}
    assert explained(found, "loss.step").complete
    assert "other13" in explained(found, "model.logits").among
    assert explained(found, "model.logits").note == found.stopped == "no network"
    assert len(world.asked) == 3


def test_a_search_continues_from_what_is_known() -> None:
    """Results of an earlier search cost nothing, and both together ask no more than one search does."""
    makes = {"loss.step": [["other06", "other13"]], "model.logits": [["numpy"]]}
    whole = World(makes)
    expected = whole.search()
    first, second = World(makes), World(makes)
    known = first.search(environments=9).measured
    found = second.search(known=known)
    assert causes(found) == causes(expected)
    assert not set(first.asked) & set(second.asked)
    assert len(first.asked) + len(second.asked) == len(whole.asked)
    assert World(makes).search(known=found.measured, environments=0).complete
    assert World(makes).search(recall=found.measured.get, environments=0, seconds=0).complete


def test_only_wanted_changes_are_explained_in_their_order() -> None:
    """A change that nobody asks for costs no environment of its own."""
    world = World({"a.x": [["other06", "other13"]], "b.x": [["transformers"]], "c.x": [["transformers"]]})
    found = world.search(wanted=["c.x", "b.x", "gone.x"])
    assert list(causes(found)) == ["c.x", "b.x"]
    assert len(world.asked) == 3


def minimal(sets: Iterable[Swapped]) -> set[Swapped]:
    every = set(sets)
    return {each for each in every if not any(other < each for other in every)}


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Up to 12 packages, planted singles and pairs, and some that need others."""
    packages = tuple(f"p{n:02}" for n in range(draw(st.integers(1, 12))))
    some = st.sampled_from(packages)
    cause = st.frozensets(some, min_size=1, max_size=2)
    makes = draw(st.dictionaries(st.sampled_from(["a.x", "b.y", "c.z"]), st.lists(cause, min_size=1, max_size=3)))
    needs = draw(st.dictionaries(some, st.frozensets(some, max_size=2), max_size=3))
    return World(makes, packages=packages, needs=needs)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(worlds())
def test_the_attribution_is_exact(world: World) -> None:
    """In random worlds the causes are the planted ones with what they need, each once, and none is missed."""

    def closed(packages: Swapped) -> Swapped:
        more = packages.union(*(world.needs(package) for package in packages))
        return packages if more == packages else closed(more)

    found = world.search()
    expected = {name: minimal(map(closed, sets)) for name, sets in world.makes.items()}
    assert {each.name: {cause.swapped for cause in each.causes} for each in found.explained} == expected
    assert all(len(each.causes) == len(expected[each.name]) for each in found.explained)
    assert found.complete
    assert found.failed == {}
    assert found.hidden == {}
    for each in found.explained:
        for cause in each.causes:
            assert closed(frozenset(cause.packages)) == cause.swapped


@settings(max_examples=200, deadline=None, derandomize=True)
@given(worlds(), st.integers(0, 30))
def test_what_is_said_is_true_under_any_budget(world: World, environments: int) -> None:
    """Whatever the budget, a named cause makes the change, and without one a planted cause is among what is left."""
    found = world.search(environments=environments, wanted=sorted(world.makes))
    for each in found.explained:
        for cause in each.causes:
            assert each.name in found.measured[cause.swapped].changed
        if not each.causes and each.among:
            assert any(planted <= set(each.among) for planted in world.makes[each.name])
        assert each.complete or each.note == found.stopped != ""
