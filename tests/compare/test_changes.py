"""Folding: one change for each cause, nothing lost and nothing told twice."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro.compare.changes import Comparison
from mlmrepro.compare.golden import Variant
from mlmrepro.compare.judge import Finding, Verdict
from mlmrepro.compare.values import ABSENT, Difference
from mlmrepro.record import STAGES, Part

PREFIX = {Part.FLOW: "", Part.ISOLATED: "isolated.", Part.OFF_PATH: "off_path."}
Where = tuple[str, Part]
EVERYWHERE = [(stage, part) for stage in STAGES for part in Part]
CHANGES = [verdict for verdict in Verdict if verdict.is_change]


def finding(stage: str, part: Part, verdict: Verdict = Verdict.REGRESSION, name: str = "x") -> Finding:
    differences = (Difference("", 1, 2),) if verdict.is_change else ()
    return Finding(stage, f"{PREFIX[part]}{name}", verdict, differences)


def comparison(changed: set[Where], twins: set[str]) -> Comparison:
    """Return findings of every stage's flow and what is beside it, and of the stored input where it has a twin."""
    return Comparison(
        [
            finding(stage, part, Verdict.REGRESSION if (stage, part) in changed else Verdict.IDENTICAL)
            for stage, part in EVERYWHERE
            if part is not Part.ISOLATED or stage in twins
        ]
    )


PLACES = st.sets(st.sampled_from(EVERYWHERE))
TWINS = st.sets(st.sampled_from(STAGES))


@given(PLACES, TWINS)
def test_every_change_is_told_once(places: set[Where], twins: set[str]) -> None:
    """A changed flow is an own change or follows from exactly one; all else that changed is in exactly one change."""
    changed = {(stage, part) for stage, part in places if part is not Part.ISOLATED or stage in twins}
    made = comparison(changed, twins)
    told = [(f.stage, f.part) for change in made.changes for f in change.findings]
    told += [(stage, Part.FLOW) for change in made.changes for stage in change.follows]
    assert sorted(told) == sorted(changed)
    assert all(f.stage == change.stage for change in made.changes for f in change.findings)
    assert [STAGES.index(change.stage) for change in made.changes] == sorted(
        STAGES.index(change.stage) for change in made.changes
    )


@given(PLACES, TWINS)
def test_what_follows_does_so_from_the_nearest_carrier(places: set[Where], twins: set[str]) -> None:
    """A flow without a change of its own follows the last stage before it whose flow is an own change, or the first.

    Evaluations between the epochs are the exception: a training may inherit from them.
    """
    made = comparison(places, twins)
    own = [c for c in made.changes if c.part is not Part.OFF_PATH]
    carriers = [c.stage for c in own if c is own[0] or any(f.part is Part.FLOW for f in c.findings)]
    for stage, cause in made.follows().items():
        before = [carrier for carrier in carriers if STAGES.index(carrier) < STAGES.index(stage)]
        assert cause == (before[-1] if before or stage != "loss" else "evaluation")
        assert (stage, Part.ISOLATED) not in places or stage not in twins


@given(PLACES, TWINS)
def test_what_lies_beside_never_folds(places: set[Where], twins: set[str]) -> None:
    """Each thing beside the guide's path is a change of its own, and changes nothing of how the rest folds."""
    made = comparison(places, twins)
    beside = [change for change in made.changes if change.part is Part.OFF_PATH]
    assert [(c.stage, len(c.findings), c.follows) for c in beside] == [
        (stage, 1, ()) for stage in STAGES if (stage, Part.OFF_PATH) in places
    ]
    without = comparison({place for place in places if place[1] is not Part.OFF_PATH}, twins)
    assert without.follows() == made.follows()
    assert [c for c in made.changes if c.part is not Part.OFF_PATH] == without.changes


@given(PLACES, TWINS)
def test_a_stage_changed_by_itself_unless_its_stored_input_denies_it(places: set[Where], twins: set[str]) -> None:
    """`by_itself` is false exactly where a twin was compared and did not change."""
    for change in comparison(places, twins).changes:
        if change.part is not Part.OFF_PATH:
            assert change.by_itself == (change.stage not in twins or (change.stage, Part.ISOLATED) in places)


@pytest.mark.parametrize("stage", STAGES)
def test_one_planted_cause_is_one_change(stage: str) -> None:
    """A stage that changed by itself, with all later flows changed, is the one change, and they follow from it."""
    later = STAGES[STAGES.index(stage) + 1 :]
    made = comparison({(stage, Part.ISOLATED), *((s, Part.FLOW) for s in (stage, *later))}, set(STAGES))
    (change,) = made.changes
    assert (change.stage, change.follows, change.by_itself) == (stage, later, True)
    assert [f.part for f in change.findings] == [Part.FLOW, Part.ISOLATED]
    assert made.first_divergence is not None
    assert made.first_divergence.stage == stage


def test_two_causes_share_what_follows() -> None:
    """Each stage between the two follows from the first, each after the second from the second."""
    flows = {(stage, Part.FLOW) for stage in STAGES[1:]}
    made = comparison({*flows, ("flatten", Part.ISOLATED), ("loss", Part.ISOLATED)}, set(STAGES))
    assert [(change.stage, change.follows) for change in made.changes] == [
        ("flatten", ("input_ids", "blocks", "masked_batches", "model")),
        ("loss", ("evaluation", "fill_mask")),
    ]


def test_a_change_on_the_stored_input_alone_carries_where_nothing_else_does() -> None:
    """A later flow follows from it only where no flow before has changed; without any cause it is one itself."""
    flow, alone = ("loss", Part.FLOW), ("model", Part.ISOLATED)
    assert [(c.stage, c.follows) for c in comparison({alone, flow}, set(STAGES)).changes] == [("model", ("loss",))]
    before = {("dataset", Part.ISOLATED), ("dataset", Part.FLOW)}
    assert [(c.stage, c.follows) for c in comparison({*before, alone, flow}, set(STAGES)).changes] == [
        ("dataset", ("loss",)),
        ("model", ()),
    ]
    (change,) = comparison({flow}, set(STAGES)).changes
    assert (change.stage, change.follows, change.by_itself) == ("loss", (), False)


def test_a_training_inherits_from_the_evaluations_between_its_epochs() -> None:
    """Where its twin denies a change of its own; the runs then part in the evaluation. Else it is a second cause."""
    flows = {("loss", Part.FLOW), ("evaluation", Part.FLOW), ("evaluation", Part.ISOLATED)}
    made = comparison(flows, set(STAGES))
    assert [(c.stage, c.follows, c.by_itself) for c in made.changes] == [("evaluation", ("loss",), True)]
    assert made.first_divergence is not None
    assert made.first_divergence.stage == "evaluation"
    both = comparison({*flows, ("loss", Part.ISOLATED)}, set(STAGES))
    assert [c.stage for c in both.changes] == ["loss", "evaluation"]
    untold = comparison(flows, set(STAGES) - {"loss"})
    assert [c.stage for c in untold.changes] == ["loss", "evaluation"]
    behind = comparison({*flows, ("model", Part.FLOW)}, set(STAGES))
    assert [(c.stage, c.follows) for c in behind.changes] == [("model", ("loss",)), ("evaluation", ())]


def test_what_one_probe_finds_for_one_reason_is_one_change() -> None:
    """Beside the guide's path, another probe and another reason are another change."""
    why = Variant(2, ("transformers>=5",), "the default changed", "https://x")
    names = {"casing.text": None, "casing.ids": None, "casing.loss": why, "padding.ids": None}
    findings = [
        Finding("input_ids", f"off_path.{name}", Verdict.EXPECTED, (Difference("", 1, 2),), variant)
        for name, variant in names.items()
    ]
    assert [[f.name for f in change.findings] for change in Comparison(findings).changes] == [
        ["off_path.casing.text", "off_path.casing.ids"],
        ["off_path.casing.loss"],
        ["off_path.padding.ids"],
    ]


@given(st.lists(st.tuples(st.sampled_from(EVERYWHERE), st.sampled_from(Verdict)), max_size=8))
def test_the_gravest_word_decides(places: list[tuple[Where, Verdict]]) -> None:
    """Verdict, stages and exit code are those of the gravest finding; of none, nothing was measured."""
    findings = [finding(*where, verdict, f"x{number}") for number, (where, verdict) in enumerate(places)]
    made = Comparison(findings)
    order = list(Verdict)
    gravest = max((f.verdict for f in findings), key=order.index, default=Verdict.UNMEASURED)
    assert made.verdict is gravest
    assert made.exit_code == gravest.fails
    assert list(made.stages()) == [stage for stage in STAGES if any(f.stage == stage for f in findings)]
    for stage, verdict in made.stages().items():
        assert verdict is max((f.verdict for f in findings if f.stage == stage), key=order.index)


@pytest.mark.parametrize("verdict", Verdict)
def test_only_a_change_is_one(verdict: Verdict) -> None:
    """Each word that is no agreement makes a change and the first divergence; the others make none."""
    made = Comparison([finding("loss", Part.FLOW, verdict)])
    assert [change.verdict for change in made.changes] == ([verdict] if verdict in CHANGES else [])
    assert (made.first_divergence is not None) == (verdict in CHANGES)


def test_the_first_divergence_is_on_the_guides_path() -> None:
    """What lies beside it is no parting of the runs."""
    findings = [finding("dataset", Part.OFF_PATH), finding("model", Part.FLOW), finding("loss", Part.FLOW)]
    first = Comparison(findings).first_divergence
    assert first is not None
    assert first.stage == "model"
    assert Comparison(findings[:1]).first_divergence is None


def declared(stage: str, part: Part, reason: str, link: str = "https://x", name: str = "y") -> Finding:
    variant = Variant(2, ("transformers>=5",), reason, link)
    return Finding(stage, f"{PREFIX[part]}{name}", Verdict.EXPECTED, (Difference("", 1, 2),), variant)


def test_a_regression_takes_no_reason_from_a_declared_change_beside_it() -> None:
    """What is declared and what is not are two changes of a stage, and only the declared one has a reason and link."""
    (first, second) = Comparison([finding("model", Part.FLOW), declared("model", Part.FLOW, "sdpa")]).changes
    assert (first.verdict, first.reason, first.link, first.when) == (Verdict.REGRESSION, "", "", ())
    assert (second.verdict, second.reason, second.link) == (Verdict.EXPECTED, "sdpa", "https://x")


def test_declared_changes_of_one_stage_are_told_apart_by_their_reasons() -> None:
    """Each reason is one change, also beside the path; what follows belongs to the one with the same link."""
    findings = [
        declared("model", Part.FLOW, "sdpa", "https://sdpa"),
        declared("model", Part.ISOLATED, "lost bias", "https://bias"),
        declared("model", Part.OFF_PATH, "lost bias", "https://bias", "tied.bias"),
        declared("fill_mask", Part.FLOW, "the saved model lost its bias", "https://bias"),
        declared("evaluation", Part.FLOW, "of itself", "https://else"),
    ]
    changes = Comparison(findings).changes
    assert [(c.stage, c.reason, c.follows) for c in changes] == [
        ("model", "sdpa", ("evaluation",)),
        ("model", "lost bias", ("fill_mask",)),
    ]
    assert [f.name for f in changes[1].findings] == ["isolated.y", "off_path.tied.bias"]


@given(
    st.lists(st.tuples(st.sampled_from(EVERYWHERE), st.sampled_from(CHANGES)), max_size=10, unique_by=lambda p: p[0])
)
def test_what_fails_never_hides_behind_what_is_declared(places: list[tuple[Where, Verdict]]) -> None:
    """Every failing finding lies in a failing change or follows from one: an alarm exactly where one fails."""
    findings = [
        declared(*where, "why") if verdict is Verdict.EXPECTED else finding(*where, verdict)
        for where, verdict in places
    ]
    made = Comparison(findings)
    failing = [change for change in made.changes if change.verdict.fails]
    alarmed = {(f.stage, f.part) for change in failing for f in change.findings}
    alarmed |= {(stage, Part.FLOW) for change in failing for stage in change.follows}
    assert all((f.stage, f.part) in alarmed for f in findings if f.verdict.fails)
    assert bool(failing) == bool(made.exit_code) or not findings


def test_a_comparison_is_plain_json() -> None:
    """All of it survives JSON, also what is absent or not finite."""
    lost = Finding("loss", "steps", Verdict.UNMEASURED, (Difference("", float("nan"), ABSENT, "why"),))
    content = Comparison([lost], ("golden", "now")).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    (difference,) = content["changes"][0]["findings"][0]["differences"]
    assert difference == {"place": "", "expected": "NaN", "obtained": "nothing", "note": "why"}
    content = Comparison([finding("model", Part.FLOW), lost], ("golden", "now")).to_dict()
    assert (content["expected"], content["obtained"], content["exit_code"]) == ("golden", "now", 1)
    assert (content["verdict"], content["first_divergence"]) == ("REGRESSION", "model.x")
    assert content["stages"] == {"model": "REGRESSION", "loss": "unmeasured"}
    (change,) = content["changes"]
    assert (change["stage"], change["part"], change["follows"]) == ("model", "flow", ["loss"])
    assert change["findings"][0]["differences"] == [{"place": "", "expected": 1, "obtained": 2, "note": ""}]


def test_a_comparison_is_told_whole_in_json() -> None:
    """Settings, packages, causes and findings are all there, under the names that readers of the JSON use."""
    content = Comparison(
        [declared("model", Part.ISOLATED, "sdpa")],
        ("golden", "now"),
        packages={"torch": ("2.6", "2.7")},
        settings={"seed": (42, None)},
    ).to_dict()
    difference = {"place": "", "expected": 1, "obtained": 2, "note": ""}
    found = {
        "name": "isolated.y",
        "verdict": "expected change",
        "when": ["transformers>=5"],
        "differences": [difference],
    }
    change = {
        "stage": "model",
        "part": "flow",
        "verdict": "expected change",
        "by_itself": True,
        "follows": [],
        "reason": "sdpa",
        "link": "https://x",
        "findings": [found],
    }
    assert content == {
        "expected": "golden",
        "obtained": "now",
        "verdict": "expected change",
        "exit_code": 0,
        "settings": {"seed": [42, None]},
        "packages": {"torch": ["2.6", "2.7"]},
        "not_asked": [],
        "first_divergence": "model.isolated.y",
        "stages": {"model": "expected change"},
        "changes": [change],
    }
    unchanged = Comparison([finding("loss", Part.FLOW, Verdict.IDENTICAL)]).to_dict()
    assert (unchanged["first_divergence"], unchanged["changes"]) == (None, [])
    (change,) = Comparison([finding("loss", Part.FLOW)]).to_dict()["changes"]
    assert change["findings"][0]["when"] == []


def test_an_improvement_behind_a_failure_folds_into_it() -> None:
    """On the path it is part of the failing stage's change, or follows from it; beside the path it is its own."""
    better = Verdict.IMPROVEMENT
    made = Comparison(
        [
            finding("model", Part.FLOW),
            finding("model", Part.FLOW, better, "y"),
            finding("loss", Part.FLOW, better),
            finding("loss", Part.OFF_PATH, better),
        ]
    )
    assert [(c.stage, c.verdict, [f.name for f in c.findings], c.follows) for c in made.changes] == [
        ("model", Verdict.REGRESSION, ["x", "y"], ("loss",)),
        ("loss", better, ["off_path.x"], ()),
    ]
