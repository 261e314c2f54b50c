"""One word for each observation: every word is reached, and none that passes by mistake."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlmrepro.compare.golden import Entry, Golden, Variant, write_golden
from mlmrepro.compare.judge import Expectations, Finding, Verdict, judge, judge_record, not_asked, worst
from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.compare.values import ABSENT, Difference
from mlmrepro.errors import UserError
from mlmrepro.record import STAGES, Bound, Lane, Part, RunRecord

pytestmark = pytest.mark.quick

OLD, NEW = {"transformers": "4.41.2"}, {"transformers": "5.1.0"}
NATS = Tolerance("nats", atol=0.1, reason="test")
EAGER = Variant("eager", ("transformers<4.48",), "sdpa became the default", "https://x/1")
SDPA = Variant("sdpa", ("transformers>=4.48",), "sdpa became the default", "https://x/1")


def one(value: Any, lane: Lane = Lane.EXACT, **fields: Any) -> Entry:
    return Entry(lane, (Variant(value),), None if lane is Lane.EXACT else NATS, **fields)


def record(versions: dict[str, str], **values: Any) -> RunRecord:
    """Return a record whose values are named ``stage__name``; floats are approximate."""
    made = RunRecord({"packages": versions, "python": "3.11.7"}, {})
    for key, value in values.items():
        lane = Lane.APPROXIMATE if isinstance(value, float) else Lane.EXACT
        made.observe(*key.split("__"), value, lane)
    return made


def goldens(directory: Path, versions: dict[str, str], **entries: Entry) -> Expectations:
    """Return expectations that were written to a directory, with entries named ``stage__name``."""
    files: dict[str, Golden] = {}
    for key, entry in entries.items():
        stage, name = key.split("__")
        files.setdefault(stage, Golden({"packages": versions, "python": "3.11.7"})).entries[name] = entry
    for stage, golden in files.items():
        write_golden(directory / f"{stage}.json", golden)
    return Expectations.from_goldens(directory)


def words(findings: list[Finding]) -> dict[str, Verdict]:
    return {f"{finding.stage}.{finding.name}": finding.verdict for finding in findings}


BETTER_BOTH = one([2.0, 3.0], Lane.STATISTICAL, better="lower")


@pytest.mark.parametrize(
    ("entry", "obtained", "word"),
    [
        (one([1, "a"]), [1, "a"], Verdict.IDENTICAL),
        (one(1.0, Lane.APPROXIMATE), 1.0, Verdict.IDENTICAL),
        (one(1.0, Lane.APPROXIMATE), 1.05, Verdict.WITHIN_NOISE),
        (one(1.0, Lane.APPROXIMATE), 1.2, Verdict.REGRESSION),
        (one(1.0, Lane.APPROXIMATE), 0.8, Verdict.REGRESSION),  # no direction is better
        (one(1.0), 1.0000001, Verdict.REGRESSION),
        (one(1.0, Lane.STATISTICAL, better="lower"), 0.8, Verdict.IMPROVEMENT),
        (one(1.0, Lane.STATISTICAL, better="lower"), 1.2, Verdict.REGRESSION),
        (one(1.0, Lane.STATISTICAL, better="higher"), 1.2, Verdict.IMPROVEMENT),
        (one(1.0, Lane.STATISTICAL, better="higher"), 0.8, Verdict.REGRESSION),
        (one(1.0, Lane.STATISTICAL, better="lower"), 0.95, Verdict.WITHIN_NOISE),
        (BETTER_BOTH, [1.0, 2.0], Verdict.IMPROVEMENT),
        (BETTER_BOTH, [1.0, 3.0], Verdict.IMPROVEMENT),
        (BETTER_BOTH, [1.0, 4.0], Verdict.REGRESSION),  # one better, one worse
        (BETTER_BOTH, [1.0], Verdict.REGRESSION),  # better, but something is gone
        (BETTER_BOTH, [1.0, 2.0, 3.0], Verdict.REGRESSION),
        (one(1.0, Lane.STATISTICAL, better="lower"), math.nan, Verdict.REGRESSION),
        (one(1.0, Lane.STATISTICAL, better="lower"), -math.inf, Verdict.REGRESSION),
        (one(1.0, Lane.STATISTICAL, better="higher"), math.inf, Verdict.REGRESSION),
        (one(1.0, Lane.STATISTICAL, better="lower"), None, Verdict.REGRESSION),
        (one(1), ABSENT, Verdict.UNMEASURED),
        (one(None), ABSENT, Verdict.UNMEASURED),
    ],
)
def test_a_value_gets_its_word(entry: Entry, obtained: Any, word: Verdict) -> None:
    """Equal, within the tolerance, better in every difference, absent, or a regression."""
    finding = judge("loss", "x", entry, obtained, NEW)
    assert finding.verdict is word
    assert bool(finding.differences) == word.is_change
    assert finding.better == (entry.better if word in (Verdict.REGRESSION, Verdict.IMPROVEMENT) else "")


def test_what_agrees_names_its_variant_and_no_difference() -> None:
    """What differs names its difference, and no variant that would account for it."""
    variant = Variant(1)
    entry = Entry(Lane.EXACT, (variant,), better="lower")
    assert judge("loss", "x", entry, 1, NEW) == Finding("loss", "x", Verdict.IDENTICAL, (), variant)
    found = (Difference("", 1, 2),)
    assert judge("loss", "x", entry, 2, NEW) == Finding("loss", "x", Verdict.REGRESSION, found, None, "lower")


def test_the_variant_of_these_versions_is_expected() -> None:
    """The value of other versions is a regression here; a reason is named only of what it accounts for."""
    entry = Entry(Lane.EXACT, (EAGER, SDPA))
    assert judge("model", "attention", entry, "sdpa", NEW).verdict is Verdict.IDENTICAL
    assert judge("model", "attention", entry, "sdpa", OLD).verdict is Verdict.REGRESSION
    finding = judge("model", "attention", entry, "eager", OLD)
    assert (finding.variant, finding.reason, finding.link) == (EAGER, "", "")
    lost = judge("model", "attention", entry, ABSENT, OLD)
    assert (lost.verdict, lost.reason) == (Verdict.UNMEASURED, "")
    assert (Finding("model", "x", Verdict.REGRESSION).reason, Finding("model", "x", Verdict.REGRESSION).link) == (
        "",
        "",
    )


def test_exactly_one_variant_must_hold() -> None:
    """Where no variant holds, or two do, nothing was measured, even if the value agrees with one."""
    none = Entry(Lane.EXACT, (EAGER,))
    two = Entry(Lane.EXACT, (SDPA, Variant("sdpa", ("transformers>=5",), "why", "https://x")))
    for entry, value, said in ((none, "eager", "no variant holds"), (two, "sdpa", "2 variants hold")):
        finding = judge("model", "attention", entry, value, NEW)
        (difference,) = finding.differences
        assert said in difference.note
        assert finding == Finding("model", "attention", Verdict.UNMEASURED, (difference,))
        assert difference == Difference("", ABSENT, value, difference.note)


def test_the_words_are_ordered_and_four_open_the_gate() -> None:
    """What was not measured is graver than any change that passes; nothing at all was not measured."""
    assert [verdict for verdict in Verdict if not verdict.fails] == list(Verdict)[:4]
    assert [verdict for verdict in Verdict if not verdict.is_change] == list(Verdict)[:2]
    assert worst([]) is Verdict.UNMEASURED
    for index, verdict in enumerate(Verdict):
        assert worst([*list(Verdict)[:index], verdict]) is verdict


def test_what_either_side_lacks_was_not_measured(tmp_path: Path) -> None:
    """Against goldens and between records, an absent value and an added one both fail."""
    before = record(OLD, dataset__rows=1, loss__steps=18)
    after = record(NEW, dataset__rows=1, model__size=2)
    expected = {"dataset.rows": Verdict.IDENTICAL, "loss.steps": Verdict.UNMEASURED, "model.size": Verdict.UNMEASURED}
    assert words(judge_record(Expectations.from_record(before), after)) == expected
    held = goldens(tmp_path, OLD, dataset__rows=one(1), loss__steps=one(18))
    assert words(judge_record(held, after)) == expected


def test_findings_come_in_the_order_of_the_stages() -> None:
    """Also those that only one side has; what is only shown is in none."""
    before, after = record(OLD, dataset__rows=1, loss__steps=18), record(NEW, dataset__rows=1, model__size=2)
    ordered = judge_record(Expectations.from_record(before), after)
    assert [finding.stage for finding in ordered] == ["dataset", "model", "loss"]
    made = RunRecord({"packages": NEW}, {})
    for stage in reversed(STAGES):
        made.observe(stage, "isolated.x", 1, Lane.EXACT)
        made.observe(stage, "seconds", 1.0, Lane.INFO)
    findings = judge_record(Expectations({}, NEW), made)
    assert [(finding.stage, finding.name) for finding in findings] == [(stage, "isolated.x") for stage in STAGES]
    assert {finding.part for finding in findings} == {Part.ISOLATED}


def test_a_declared_variant_is_an_expected_change(tmp_path: Path) -> None:
    """What the golden declares for these versions, and not for its own, is an expected change with its cause."""
    held = goldens(tmp_path, OLD, model__attention=Entry(Lane.EXACT, (EAGER, SDPA)), model__size=one(2))
    findings = judge_record(held, record(NEW, model__attention="sdpa", model__size=2))
    assert words(findings) == {"model.attention": Verdict.EXPECTED, "model.size": Verdict.IDENTICAL}
    (difference,) = findings[0].differences
    assert (difference.expected, difference.obtained) == ("eager", "sdpa")
    assert (findings[0].reason, findings[0].link) == (SDPA.reason, SDPA.link)


@pytest.mark.parametrize(
    ("versions", "value", "word"),
    [
        (OLD, "eager", Verdict.IDENTICAL),
        (OLD, "sdpa", Verdict.REGRESSION),
        (NEW, "eager", Verdict.REGRESSION),
        (NEW, "flash", Verdict.REGRESSION),
    ],
)
def test_what_is_not_declared_is_no_expected_change(
    tmp_path: Path, versions: dict[str, str], value: str, word: Verdict
) -> None:
    """Another value than the declared one, and a declared one of other versions, stay what they are."""
    held = goldens(tmp_path, OLD, model__attention=Entry(Lane.EXACT, (EAGER, SDPA)))
    assert words(judge_record(held, record(versions, model__attention=value))) == {"model.attention": word}


def test_a_variant_with_the_same_value_changes_nothing(tmp_path: Path) -> None:
    """A value that both variants give is no change."""
    same = Variant("eager", SDPA.when, SDPA.reason, SDPA.link)
    held = goldens(tmp_path, OLD, model__attention=Entry(Lane.EXACT, (EAGER, same)))
    assert words(judge_record(held, record(NEW, model__attention="eager"))) == {"model.attention": Verdict.IDENTICAL}


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ("eager", "sdpa", Verdict.EXPECTED),
        ("eager", "flash", Verdict.REGRESSION),
        ("flash", "sdpa", Verdict.REGRESSION),
        ("sdpa", "eager", Verdict.REGRESSION),
        ("sdpa", "sdpa", Verdict.IDENTICAL),
    ],
)
def test_between_records_both_sides_must_be_declared(tmp_path: Path, before: str, after: str, word: Verdict) -> None:
    """Two records differ as expected where the goldens declare both values for their versions, and only there."""
    declared = goldens(tmp_path, OLD, model__attention=Entry(Lane.EXACT, (EAGER, SDPA)))
    expected = Expectations.from_record(record(OLD, model__attention=before))
    obtained = record(NEW, model__attention=after)
    assert words(judge_record(expected, obtained, declared)) == {"model.attention": word}
    undeclared = Verdict.IDENTICAL if before == after else Verdict.REGRESSION
    assert words(judge_record(expected, obtained)) == {"model.attention": undeclared}


def test_one_variant_for_both_versions_declares_no_change(tmp_path: Path) -> None:
    """Two records on either side of what is expected of both have moved further than the tolerance allows."""
    declared = goldens(tmp_path, OLD, loss__eval=one(1.0, Lane.APPROXIMATE))
    expected = Expectations.from_record(record(OLD, loss__eval=0.92))
    assert words(judge_record(expected, record(NEW, loss__eval=1.08), declared)) == {"loss.eval": Verdict.REGRESSION}


def test_an_absent_value_is_never_an_expected_change(tmp_path: Path) -> None:
    """A declared variant does not excuse a value that was not obtained."""
    held = goldens(tmp_path, OLD, model__attention=Entry(Lane.EXACT, (EAGER, SDPA)))
    empty = record(NEW, dataset__rows=1)
    assert words(judge_record(held, empty))["model.attention"] is Verdict.UNMEASURED
    before = Expectations.from_record(record(OLD, model__attention="eager"))
    assert words(judge_record(before, empty, held))["model.attention"] is Verdict.UNMEASURED


def test_a_record_is_expected_within_the_measured_tolerances() -> None:
    """Between records a float may move by its tolerance, and a lower perplexity or evaluation loss is better."""
    before, after = RunRecord({}, {}), RunRecord({}, {})
    for made, loss, norm, perplexity in ((before, 4.0, 100.0, 50.0), (after, 4.00005, 100.0005, 40.0)):
        made.observe("loss", "eval", loss, Lane.APPROXIMATE)
        made.observe("loss", "norm", norm, Lane.APPROXIMATE, "norm")
        made.observe("evaluation", "perplexity", perplexity, Lane.STATISTICAL)
        made.observe("evaluation", "epoch_eval_losses", [perplexity / 10, perplexity / 20], Lane.APPROXIMATE)
    there = words(judge_record(Expectations.from_record(before), after))
    assert list(there.values()) == [Verdict.WITHIN_NOISE] * 2 + [Verdict.IMPROVEMENT] * 2
    back = words(judge_record(Expectations.from_record(after), before))
    assert list(back.values()) == [Verdict.WITHIN_NOISE] * 2 + [Verdict.REGRESSION] * 2


def test_a_directory_without_goldens_is_bad_input(tmp_path: Path) -> None:
    """Nothing to expect is an error, not a pass; a directory with one stage will do."""
    with pytest.raises(UserError) as error:
        Expectations.from_goldens(tmp_path)
    assert error.value.problem == f"{tmp_path} is not a folder of goldens: it has no dataset.json"
    assert error.value.remedy == "give a folder with goldens by stage, such as golden/embedded, or a record"
    assert list(goldens(tmp_path, OLD, loss__steps=one(18)).entries) == ["loss"]


def test_goldens_of_different_versions_are_no_reference(tmp_path: Path) -> None:
    """A folder of which one file was made with other versions is refused: nothing says what it is measured from."""
    for stage, versions in (("dataset", OLD), ("model", NEW)):
        golden = Golden({"packages": dict(versions)}, {"x": Entry(Lane.EXACT, (Variant(1),))})
        write_golden(tmp_path / f"{stage}.json", golden)
    with pytest.raises(UserError, match=r"dataset\.json and .*model\.json were made with different versions") as error:
        Expectations.from_goldens(tmp_path)
    assert error.value.remedy == "make all goldens of a folder together, with --golden-update"


KNOWN = "loss.accumulation.step_ratio"  # 4 for a RoBERTa since 5.5.4, as known.toml declares
ONE = Bound(at_least=0.9999, at_most=1.0001, reason="a ratio")


def bounded(version: str, value: Any, asked: tuple[str, ...] = ("loss.accumulation",)) -> RunRecord:
    made = RunRecord({"packages": {"transformers": version}}, {"model_type": "roberta"}, asked=dict.fromkeys(asked, ""))
    if asked:
        made.observe("loss", "off_path.accumulation.step_ratio", value, Lane.BOUND, bound=ONE)
    return made


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (("4.44.0", 1.0), ("5.6.0", 1.0), Verdict.IDENTICAL),
        (("4.44.0", 1.0), ("5.6.0", 4.0), Verdict.EXPECTED),  # declared for 5.6
        (("5.5.4", 4.0), ("5.6.0", 4.0), Verdict.IDENTICAL),  # known before, known after
        (("5.6.0", 4.0), ("4.44.0", 1.0), Verdict.IDENTICAL),  # the older release has no fault
        (("4.44.0", 1.0), ("4.45.0", 4.0), Verdict.REGRESSION),  # not declared for 4.45
        (("4.44.0", 1.0), ("5.6.0", 3.0), Verdict.REGRESSION),  # another value than the declared one
        (("4.44.0", math.nan), ("5.6.0", 1.0), Verdict.REGRESSION),  # the reference is broken
        (("4.44.0", "raises ValueError"), ("4.45.0", "raises ValueError"), Verdict.REGRESSION),
    ],
)
def test_a_bound_is_judged_by_itself_and_by_what_is_declared(
    before: tuple[str, Any], after: tuple[str, Any], word: Verdict
) -> None:
    """A broken bound is a regression, on either side, unless known.toml declares that value for these versions."""
    (finding,) = judge_record(Expectations.from_record(bounded(*before)), bounded(*after))
    assert finding.verdict is word
    assert bool(finding.reason) is (word is Verdict.EXPECTED)


@pytest.mark.parametrize(("golden", "word"), [(OLD, Verdict.EXPECTED), ({"transformers": "5.7.0"}, Verdict.IDENTICAL)])
def test_a_known_fault_of_the_goldens_own_versions_is_no_change(golden: dict[str, str], word: Verdict) -> None:
    """Against goldens, a declared breach is shown only if their own versions do not have it."""
    (finding,) = judge_record(Expectations({}, golden), bounded("5.6.0", 4.0))
    assert finding.verdict is word


def test_what_a_record_was_not_asked_for_is_left_out() -> None:
    """An observation added later does not make older records fail; one that was asked for and is absent does."""
    golden = Expectations({"loss": {"off_path.new.x": one(1), "off_path.old.x": one(1)}}, NEW)
    made = RunRecord({"packages": NEW}, {}, asked={"loss.old": ""})
    assert words(judge_record(golden, made)) == {"loss.off_path.old.x": Verdict.UNMEASURED}
    assert not_asked(golden, made) == ("loss.new",)
    more = RunRecord({"packages": NEW}, {}, asked={"loss.old": "", "loss.new": ""})
    for name in ("old", "new"):
        more.observe("loss", f"off_path.{name}.x", 1, Lane.EXACT)
    less = RunRecord({"packages": NEW}, {}, asked={"loss.old": ""})
    less.observe("loss", "off_path.old.x", 1, Lane.EXACT)
    assert words(judge_record(Expectations.from_record(less), more)) == {"loss.off_path.old.x": Verdict.IDENTICAL}
    assert len(words(judge_record(golden, more))) == 2
    assert not_asked(golden, more) == not_asked(Expectations.from_record(less), more) == ()
    assert not_asked(Expectations.from_record(more), less) == ("loss.new",)
    assert not_asked(golden, RunRecord({}, {})) == ()  # of a record that does not say


def test_a_bound_that_vanishes_was_not_measured() -> None:
    """An observation with bounds in the reference, and none in a record that was asked for it, never passes."""
    before, after = bounded("4.44.0", 1.0), bounded("5.6.0", 1.0)
    after.stages = {}
    (finding,) = judge_record(Expectations.from_record(before), after)
    assert (finding.name, finding.verdict) == ("off_path.accumulation.step_ratio", Verdict.UNMEASURED)
    after.observe("loss", "off_path.accumulation.other", 1.0, Lane.BOUND, bound=ONE)  # under another name
    assert {f.verdict for f in judge_record(Expectations.from_record(before), after)} == {Verdict.IDENTICAL}


def test_a_broken_bound_of_the_reference_that_was_not_asked_for_is_left_out() -> None:
    """A record that was made with --only is not blamed for the rest."""
    made = RunRecord({"packages": NEW}, {}, asked={"loss.other": ""})
    assert judge_record(Expectations.from_record(bounded("4.45.0", 4.0)), made) == []


@pytest.mark.parametrize(
    ("value", "accepted"),
    [(3.0, True), (3.2, True), (1.4, False), (6.5, False), (-3.0, False), (math.nan, False), ("raises X", False)],
)
def test_what_an_adopted_checkpoint_broke_is_accepted_if_it_is_alike(value: Any, accepted: bool) -> None:
    """The same value, or one within a factor of 2; anything else is judged as ever."""
    name = "loss.off_path.accumulation.step_ratio"
    golden = Expectations({}, NEW, broken={name: 3.0, "loss.off_path.x.outcome": "raises X"})
    (finding,) = judge_record(golden, bounded("4.45.0", value))
    assert (finding.verdict is Verdict.IDENTICAL) == accepted
    assert golden.accepts("loss.off_path.x.outcome", "raises X")
    assert not golden.accepts("loss.off_path.x.outcome", "raises Y")
    assert not golden.accepts("loss.off_path.y.outcome", None)
