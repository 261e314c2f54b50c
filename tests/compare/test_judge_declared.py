"""What a finding tells beside its word: the quantity, the settings behind it, and which declaration accounts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlmrepro.compare.golden import Entry, Golden, Variant, versions_of, write_golden
from mlmrepro.compare.judge import Expectations, Finding, Verdict, better_direction, judge, judge_record
from mlmrepro.compare.store import GoldenStore
from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.compare.values import ABSENT, Difference
from mlmrepro.record import Lane, Observation, RunRecord

OLD, NEW = {"transformers": "4.41.2"}, {"transformers": "5.1.0"}
NATS = Tolerance("nats", atol=0.1, reason="test")
LINK = "https://x/1"


def record(versions: dict[str, str], stage: str = "evaluation", **values: Any) -> RunRecord:
    """Return a record of one stage; floats are approximate."""
    made = RunRecord({"packages": versions, "python": "3.11.7"}, {"threads": 1})
    for name, value in values.items():
        made.observe(stage, name, value, Lane.APPROXIMATE if isinstance(value, float) else Lane.EXACT)
    return made


def golden(directory: Path, entry: Entry, stage: str = "evaluation", name: str = "loss") -> Expectations:
    """Return expectations from one golden that was made with OLD."""
    header = {"packages": OLD, "python": "3.11.7", "config": {"threads": 2}}
    write_golden(directory / f"{stage}.json", Golden(header, {name: entry}))
    return Expectations.from_goldens(directory)


def loss(*values: float, better: str = "lower") -> Entry:
    """Return an entry with a value below transformers 4.48 and one from there on, the newer one first."""
    rows = zip(("transformers<4.48", "transformers>=4.48"), values, strict=True)
    variants = [Variant(value, (when,), "another kernel", LINK) for when, value in rows]
    return Entry(Lane.APPROXIMATE, tuple(reversed(variants)), NATS, better)


def test_a_finding_names_what_its_floats_measure(tmp_path: Path) -> None:
    """The quantity is that of the tolerance, whatever the word; what has no tolerance has none."""
    held = golden(tmp_path, loss(4.0, 3.0))
    for value, word in ((3.0, Verdict.EXPECTED), (4.0, Verdict.REGRESSION), (3.001, Verdict.EXPECTED)):
        (finding,) = judge_record(held, record(NEW, loss=value))
        assert (finding.verdict, finding.quantity) == (word, "nats")
    (finding,) = judge_record(Expectations.from_record(record(OLD, steps=18)), record(NEW, steps=18))
    assert finding.quantity == ""


def test_a_declared_float_is_met_within_its_tolerance(tmp_path: Path) -> None:
    """Both sides may lie off their declared values by rounding; the finding keeps its direction and its variant."""
    held = golden(tmp_path, loss(4.0, 3.0))
    (finding,) = judge_record(held, record(NEW, loss=3.05))
    assert (finding.verdict, finding.reason, finding.better) == (Verdict.EXPECTED, "another kernel", "lower")
    assert [(d.expected, d.obtained) for d in finding.differences] == [(4.0, 3.05)]
    between = Expectations.from_record(record(OLD, loss=4.05))
    (finding,) = judge_record(between, record(NEW, loss=2.95), held)
    assert (finding.verdict, finding.better) == (Verdict.EXPECTED, "lower")
    assert [(d.expected, d.obtained) for d in finding.differences] == [(4.05, 2.95)]
    (finding,) = judge_record(between, record(NEW, loss=2.85), held)
    assert (finding.verdict, finding.reason) == (Verdict.IMPROVEMENT, "")


@pytest.mark.parametrize("when", ["transformers<4.48", "transformers>=4.48"])
def test_a_change_that_is_declared_for_one_side_only_is_no_expected_one(tmp_path: Path, when: str) -> None:
    """Where no variant holds for the versions of one of two records, the goldens cannot speak for the change."""
    declared = golden(tmp_path, Entry(Lane.EXACT, (Variant(1, (when,), "why", LINK),)), name="steps")
    before = Expectations.from_record(record(OLD, steps=1))
    (finding,) = judge_record(before, record(NEW, steps=2), declared)
    assert (finding.verdict, finding.reason) == (Verdict.REGRESSION, "")


def test_goldens_that_know_nothing_of_a_stage_declare_nothing(tmp_path: Path) -> None:
    """A stage or a name that the goldens do not have keeps its word."""
    declared = golden(tmp_path, Entry(Lane.EXACT, (Variant(1),)), stage="model", name="size")
    for stage in ("model", "loss"):
        before = Expectations.from_record(record(OLD, stage, steps=1))
        (finding,) = judge_record(before, record(NEW, stage, steps=2), declared)
        assert (finding.verdict, finding.reason) == (Verdict.REGRESSION, "")


def test_an_added_value_is_told_with_its_note() -> None:
    """What is in no golden is shown as it was obtained, and why it was not measured."""
    (finding,) = judge_record(Expectations({}, OLD), record(NEW, steps=18))
    assert finding.verdict is Verdict.UNMEASURED
    assert finding.differences == (Difference("", ABSENT, 18, "nothing to compare it with"),)


def test_expectations_know_the_settings_of_their_run(tmp_path: Path) -> None:
    """Those of a golden's header, or of a record; none where they are not known."""
    assert golden(tmp_path, Entry(Lane.EXACT, (Variant(1),))).config == {"threads": 2}
    assert Expectations.from_record(record(OLD)).config == {"threads": 1}
    assert Expectations({}, OLD).config == {}


@pytest.mark.parametrize(
    ("stage", "name", "lane", "quantity", "better"),
    [
        ("evaluation", "eval_loss", Lane.APPROXIMATE, "nats", "lower"),
        ("evaluation", "perplexity", Lane.STATISTICAL, "perplexity", "lower"),
        ("evaluation", "isolated.eval_loss", Lane.APPROXIMATE, "nats", ""),
        ("evaluation", "off_path.eval_loss", Lane.APPROXIMATE, "nats", ""),
        ("evaluation", "top", Lane.RANKING, "probability", ""),
        ("evaluation", "norm", Lane.APPROXIMATE, "norm", ""),
        ("evaluation", "losses", Lane.EXACT, "nats", ""),
        ("loss", "loss", Lane.APPROXIMATE, "nats", ""),
    ],
)
def test_only_the_figures_of_the_runs_own_evaluation_have_a_better_way(
    stage: str, name: str, lane: Lane, quantity: str, better: str
) -> None:
    """A lower loss or perplexity of the evaluation is better; in all else a difference is a difference."""
    assert better_direction(Observation(stage, name, lane, 1.0, quantity)) == better


def test_a_declared_change_is_noted_with_all_its_ranges(tmp_path: Path) -> None:
    """What the summary of a test run says of it: every range of the variant that holds here, its reason and link."""
    versions = {"packages": {"transformers": "5.1.0", "torch": "2.6"}, "python": "3.11.7"}
    rows = (
        Variant("old", ("transformers<5",), "renamed", LINK),
        Variant("new", ("transformers>=5", "torch>=2"), "renamed", LINK),
    )
    write_golden(tmp_path / "f.json", Golden({"packages": OLD, "python": "3.11.7"}, {"x": Entry(Lane.EXACT, rows)}))
    store = GoldenStore(tmp_path)
    store.versions = versions_of(versions)
    store.check("f", "x", "new", Lane.EXACT)
    (noted,) = store.declared
    assert str(noted) == f"f.json 'x' with transformers>=5 and torch>=2: renamed ({LINK})"


def test_what_was_not_obtained_is_told_with_what_was_expected() -> None:
    """The finding shows the expected value and nothing in its place, and keeps the variant that held here."""
    lost = judge("loss", "steps", Entry(Lane.EXACT, (Variant(18),)), ABSENT, NEW)
    assert lost.differences == (Difference("", 18, ABSENT),)
    assert lost.variant == Variant(18)


@pytest.mark.parametrize(
    ("name", "observer"),
    [("off_path.casing.text", "casing"), ("off_path", ""), ("isolated.casing.text", ""), ("casing.text", "")],
)
def test_an_off_path_value_names_its_observation(name: str, observer: str) -> None:
    """It is the word after the prefix; values on the path and on stored inputs have none."""
    assert Finding("loss", name, Verdict.REGRESSION).observer == observer
