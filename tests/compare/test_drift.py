"""The drift over a matrix of versions: its chain, its steps, and which package is behind a change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro.compare.drift import Drift, Outcome, compare_records, compare_with, differing, setting_changes
from mlmrepro.compare.golden import Entry, Golden, Variant, write_golden
from mlmrepro.compare.judge import Expectations, Verdict
from mlmrepro.record import Lane, RunRecord


def outcome(transformers: str, datasets: str, **values: object) -> Outcome:
    """Return a record of these versions, with its exact values named ``stage__name``."""
    packages = {"transformers": transformers, "datasets": datasets, "torch": "2.6.0"}
    record = RunRecord({"packages": packages, "python": "3.11.7"}, {})
    for key, value in ({"dataset__rows": 18} | values).items():
        record.observe(*key.split("__"), value, Lane.EXACT)
    return Outcome(f"t{transformers}-d{datasets}", record)


def golden(directory: Path, *variants: Variant) -> Path:
    """Write goldens that were made with transformers 4.41 and datasets 2.19."""
    provenance = {"packages": {"transformers": "4.41", "datasets": "2.19"}, "python": "3.11.7"}
    write_golden(directory / "dataset.json", Golden(provenance, {"rows": Entry(Lane.EXACT, (Variant(18),))}))
    if variants:
        write_golden(directory / "model.json", Golden(provenance, {"attention": Entry(Lane.EXACT, variants)}))
    return directory


def names(outcomes: list[Outcome]) -> list[str]:
    return [each.name for each in outcomes]


OLDEST, MIDDLE, NEWEST = outcome("4.9", "2.19"), outcome("4.10", "2.21"), outcome("5.1", "3.0")
FAILED = Outcome("t6-d4", None, "pip found no such version", "t6-d4.log")


def test_the_chain_is_the_upgrade_path() -> None:
    """The longest run in which no varied version goes down, by number and not by text; the rest are aside."""
    mixed, back = outcome("5.1", "2.19"), outcome("4.9", "3.0")
    given = [OLDEST, MIDDLE, FAILED, NEWEST, mixed, back]
    drift = Drift(given)
    assert drift.chain == [OLDEST, MIDDLE, NEWEST]
    assert drift.aside == [mixed, back]
    assert [(s.before.name, s.after.name) for s in drift.steps] == [
        (OLDEST.name, MIDDLE.name),
        (MIDDLE.name, NEWEST.name),
    ]
    assert drift.outcomes == given


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6, unique=True))
def test_every_record_is_on_the_chain_or_aside(versions: list[tuple[int, int]]) -> None:
    """No record is lost; the chain never goes down, and no longer one could be had."""
    outcomes = [outcome(f"{a}.0", f"{b}.0") for a, b in versions]
    drift = Drift(outcomes)
    assert sorted(names(drift.chain + drift.aside)) == sorted(names(outcomes))
    places = [outcomes.index(each) for each in drift.chain]
    assert places == sorted(places)
    assert _rises([versions[place] for place in places])
    paths = [path for size in range(len(versions) + 1) for path in combinations(versions, size) if _rises(path)]
    assert len(places) == max(map(len, paths))


def _rises(path: Sequence[tuple[int, int]]) -> bool:
    return all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(path))


def test_a_step_names_what_it_changed_and_with_which_packages() -> None:
    """Each step compares its two records, and says the versions in which they differ."""
    steps = Drift([OLDEST, outcome("4.10", "2.19"), outcome("5.1", "2.19", dataset__rows=17)]).steps
    assert [step.comparison.verdict for step in steps] == [Verdict.IDENTICAL, Verdict.REGRESSION]
    assert [step.packages for step in steps] == [{"transformers": ("4.9", "4.10")}, {"transformers": ("4.10", "5.1")}]
    assert steps[1].comparison.names == ("t4.10-d2.19", "t5.1-d2.19")


def corners(**changed: tuple[str, ...]) -> Drift:
    """Return both versions of both packages; each value is named with the packages whose newer version changes it."""
    outcomes = []
    for transformers, datasets in (("4.41", "2.19"), ("5.1", "3.0"), ("5.1", "2.19"), ("4.41", "3.0")):
        newer = {"transformers": transformers == "5.1", "datasets": datasets == "3.0"}
        values = {key: "new" if any(newer[name] for name in packages) else "old" for key, packages in changed.items()}
        outcomes.append(outcome(transformers, datasets, **values))
    return Drift(outcomes)


def test_the_package_behind_a_change_is_found() -> None:
    """The variations of one package alone tell which of the two changes a value, both or none."""
    drift = corners(
        model__attention=("transformers",),
        flatten__columns=("datasets",),
        loss__steps=("transformers", "datasets"),
        blocks__count=(),
    )
    assert len(drift.chain) == 2
    assert sorted((s.before.name, s.after.name) for s in drift.variations) == [
        ("t4.41-d2.19", "t4.41-d3.0"),
        ("t4.41-d2.19", "t5.1-d2.19"),
        ("t5.1-d3.0", "t4.41-d3.0"),
        ("t5.1-d3.0", "t5.1-d2.19"),
    ]
    assert drift.packages_behind("model", "attention") == ("transformers",)
    assert drift.packages_behind("flatten", "columns") == ("datasets",)
    assert drift.packages_behind("loss", "steps") == ("transformers", "datasets")
    assert drift.packages_behind("blocks", "count") == ()
    assert drift.packages_behind("blocks", "nothing") == ()


def test_the_chain_alone_tells_no_package() -> None:
    """Where both changed at once, neither is blamed."""
    drift = Drift([outcome("4.41", "2.19"), outcome("5.1", "3.0", dataset__rows=17)])
    assert drift.steps[0].comparison.verdict is Verdict.REGRESSION
    assert drift.packages_behind("dataset", "rows") == ()


def test_an_environment_without_a_record_was_not_measured() -> None:
    """One failed environment keeps the gate shut, whatever the others say; so does an empty matrix."""
    sound = Drift([OLDEST, NEWEST])
    assert (sound.verdict, sound.exit_code) == (Verdict.IDENTICAL, 0)
    for outcomes in ([OLDEST, NEWEST, FAILED], [FAILED], []):
        drift = Drift(outcomes)
        assert (drift.verdict, drift.exit_code) == (Verdict.UNMEASURED, 1)
    assert FAILED.name not in Drift([OLDEST, FAILED]).comparisons
    assert FAILED.versions == {}
    assert OLDEST.versions["python"] == "3.11.7"


def test_a_regression_anywhere_decides() -> None:
    """Also one that is aside, and one beside a failed environment."""
    aside = outcome("4.9", "3.0", dataset__rows=17)
    for outcomes in permutations([OLDEST, MIDDLE, NEWEST, aside]):
        assert Drift([*outcomes, FAILED]).verdict is Verdict.REGRESSION


def test_without_goldens_all_are_compared_with_the_first_of_the_chain() -> None:
    """The first record of the chain agrees with itself, and every other is held against it."""
    drift = Drift([OLDEST, MIDDLE, outcome("5.1", "3.0", dataset__rows=17)])
    assert [c.verdict for c in drift.comparisons.values()] == [
        Verdict.IDENTICAL,
        Verdict.IDENTICAL,
        Verdict.REGRESSION,
    ]
    assert {c.names[0] for c in drift.comparisons.values()} == {OLDEST.name}


def test_goldens_decide_where_there_are_any(tmp_path: Path) -> None:
    """Each record is held against them: the same in all records is still a regression."""
    wrong = [outcome(t, d, dataset__rows=17) for t, d in (("4.41", "2.19"), ("5.1", "3.0"))]
    assert Drift(wrong).verdict is Verdict.IDENTICAL
    drift = Drift(wrong, golden(tmp_path))
    assert drift.verdict is Verdict.REGRESSION
    assert {c.names[0] for c in drift.comparisons.values()} == {"golden"}
    assert [step.comparison.verdict for step in drift.steps] == [Verdict.IDENTICAL]


def test_a_declared_change_is_expected_in_goldens_steps_and_variations(tmp_path: Path) -> None:
    """What the goldens declare for the newer versions opens the gate everywhere, and names the package behind it."""
    link = "https://x"
    declared = (
        Variant("eager", ("transformers<5",), "the default changed", link),
        Variant("sdpa", ("transformers>=5",), "the default changed", link),
    )
    outcomes = [
        outcome("4.41", "2.19", model__attention="eager"),
        outcome("5.1", "3.0", model__attention="sdpa"),
        outcome("5.1", "2.19", model__attention="sdpa"),
    ]
    drift = Drift(outcomes, golden(tmp_path, *declared))
    assert (drift.verdict, drift.exit_code) == (Verdict.EXPECTED, 0)
    assert drift.steps[0].comparison.changes[0].reason == "the default changed"
    assert [step.comparison.verdict for step in drift.variations] == [Verdict.IDENTICAL, Verdict.EXPECTED]
    assert drift.packages_behind("model", "attention") == ("transformers",)


def test_a_failed_outcome_cannot_be_compared() -> None:
    """Comparing what has no record is an error of ours, both ways."""
    for pair in ((OLDEST, FAILED), (FAILED, OLDEST)):
        with pytest.raises(ValueError, match=r"^an outcome without a record cannot be compared$"):
            compare_records(*pair)
    with pytest.raises(ValueError, match=r"^an outcome without a record cannot be compared$"):
        compare_with(Expectations({}, {}), "golden", FAILED)


def test_package_and_setting_changes_are_two_sided() -> None:
    """Versions and settings that differ, that came, and that went; equal ones are left out."""
    assert differing({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}) == {
        "b": ("1", "2"),
        "c": ("1", None),
        "d": (None, "1"),
    }
    before = RunRecord({}, {"guide": {"seed": 42, "fp16": False}, "threads": 1})
    after = RunRecord({}, {"guide": {"seed": 7, "fp16": False, "epochs": 3}, "threads": 2})
    assert setting_changes(before.config, after.config) == {"seed": (42, 7), "threads": (1, 2), "epochs": (None, 3)}
    assert setting_changes({}, {}) == {}


def test_settings_that_differ_are_told_where_both_are_known(tmp_path: Path) -> None:
    """They are the first thing to look at: of two records, and of goldens whose header has a run's settings."""
    before, after = outcome("4.41", "2.19"), outcome("4.41", "2.19")
    assert before.record is not None
    assert after.record is not None
    before.record.config |= {"guide": {"seed": 42}, "threads": 1}
    after.record.config |= {"guide": {"seed": 7}, "threads": 1}
    assert compare_records(before, after).comparison.settings == {"seed": (42, 7)}
    assert Drift([after], golden(tmp_path)).comparisons[after.name].settings == {}
    made = Golden({"packages": {}, "config": before.record.config}, {"rows": Entry(Lane.EXACT, (Variant(18),))})
    write_golden(tmp_path / "dataset.json", made)
    assert Drift([after], tmp_path).comparisons[after.name].settings == {"seed": (42, 7)}


@pytest.mark.parametrize("before", ["5.0", None])
@pytest.mark.parametrize("after", ["5.1", None])
def test_a_package_without_a_version_neither_rises_nor_falls(before: str | None, after: str | None) -> None:
    """An outcome that lacks one of the two packages stays on the chain by the other."""
    outcomes = [outcome("4.9", "2.19"), outcome("4.10", "2.21")]
    for each, version in zip(outcomes, (before, after), strict=True):
        assert each.record is not None
        each.record.provenance["packages"]["datasets"] = version
    assert names(Drift(outcomes).chain) == names(outcomes)
