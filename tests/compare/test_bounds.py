"""Bounds inside one record: what breaks one is a regression, whatever was expected, and nothing else is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlmrepro.compare.bounds import breaches
from mlmrepro.compare.changes import Comparison
from mlmrepro.compare.golden import Entry, Golden, Variant, write_golden
from mlmrepro.compare.judge import Expectations, Verdict, judge_record
from mlmrepro.compare.tolerance import default_tolerance
from mlmrepro.record import Bound, Lane, RunRecord

BASES = {"e": math.exp, "2": lambda loss: 2.0**loss}
PERPLEXITY = ("evaluation", "perplexity")


def record(base: str = "e", loss: float = 4.0, after: float = 3.9, **errors: float) -> RunRecord:
    """Return the figures of an evaluation, with perplexities to this base, and errors of the model."""
    made, power = RunRecord({"packages": {}}, {}), BASES[base]
    for name, error in errors.items():
        made.observe("model", f"isolated.{name}", error, Lane.BOUND, bound=Bound(at_most=64 * 2.0**-24))
    made.observe("evaluation", "before_eval_loss", 4.1, Lane.APPROXIMATE)
    made.observe("evaluation", "eval_loss", loss, Lane.APPROXIMATE)
    made.observe("evaluation", "perplexity", power(loss), Lane.STATISTICAL)
    made.observe("evaluation", "same_masks_eval_loss", after, Lane.INFO)
    pair = {"before": power(4.1), "after": power(after)}
    made.observe("evaluation", "same_masks_perplexity", pair, Lane.STATISTICAL)
    return made


def compared(before: RunRecord, after: RunRecord) -> Comparison:
    return Comparison(judge_record(Expectations.from_record(before), after))


def goldens(folder: Path, of: RunRecord) -> Expectations:
    """Return a golden of the evaluation, in which a lower perplexity is declared to be better."""
    entries = {
        o.name: Entry(o.lane, (Variant(o.value),), default_tolerance(o.quantity), "lower")
        for o in of
        if o.stage == "evaluation" and o.lane is not Lane.INFO
    }
    write_golden(folder / "dataset.json", Golden({"packages": {}}))
    write_golden(folder / "evaluation.json", Golden({"packages": {}}, entries))
    return Expectations.from_goldens(folder)


@pytest.mark.parametrize("loss", [4.0, 3.0])
def test_a_perplexity_to_base_two_is_never_an_improvement(tmp_path: Path, loss: float) -> None:
    """Against a record and against goldens it is a regression of the evaluation by itself, with its reason."""
    for expectations in (Expectations.from_record(record()), goldens(tmp_path, record())):
        made = Comparison(judge_record(expectations, record("2", loss)))
        assert (made.verdict, made.exit_code) == (Verdict.REGRESSION, 1)
        words = {f.name: f.verdict for f in made.findings if f.name.endswith("perplexity")}
        assert set(words.values()) == {Verdict.REGRESSION}
        own = made.changes[0]
        assert (own.stage, own.by_itself) == ("evaluation", True)
        notes = [d.note for f in own.findings for d in f.differences if f.bound]
        assert len(notes) == 3
        assert notes[0] == f"perplexity must be exp(eval_loss), here exp({loss:g})"


def test_a_broken_perplexity_follows_from_no_stage_before() -> None:
    """The evaluation carries it, also where an earlier stage changed too; so does a model that lost precision."""
    before, after = record(float32_error=2e-7), record("2", 4.2, float32_error=8e-5)
    for made, step in ((before, 4.5), (after, 4.7)):
        made.observe("loss", "step_losses", [step], Lane.APPROXIMATE)
        made.observe("loss", "isolated.step_losses", [step], Lane.APPROXIMATE)
    assert [c.stage for c in compared(before, after).changes] == ["model", "loss", "evaluation"]


def test_a_reference_with_another_base_is_no_reference() -> None:
    """Whichever side has it: the candidate is neither better nor worse than a number that is no perplexity."""
    made = compared(record("2"), record())
    assert made.verdict is Verdict.REGRESSION
    (finding,) = (f for f in made.findings if f.name == "perplexity")
    assert finding.differences[0].note.startswith("in the reference: perplexity must be exp(eval_loss)")
    assert compared(record("2"), record("2")).verdict is Verdict.REGRESSION


def test_a_right_perplexity_is_judged_as_ever() -> None:
    """Lower is better, higher is worse, the same is identical."""
    for loss, after, verdict in (
        (4.0, 3.9, Verdict.IDENTICAL),
        (3.0, 3.0, Verdict.IMPROVEMENT),
        (5.0, 5.0, Verdict.REGRESSION),
    ):
        made = compared(record(), record(loss=loss, after=after))
        assert made.verdict is verdict
        assert not any(f.bound for f in made.findings)


@pytest.mark.parametrize("prefix", ["", "isolated.", "off_path.probe."])
@pytest.mark.parametrize(
    ("loss", "perplexity", "holds"),
    [
        (4.0, math.exp(4.0), True),
        (4.0, math.exp(4.0) * (1 + 1e-8), False),
        (4.0, None, False),
        (4.0, math.nan, False),
        (1000.0, math.inf, True),
        (1000.0, 1e300, False),
        (math.nan, math.nan, True),
        (math.nan, 50.0, False),
        (None, 50.0, True),  # which is for whoever misses the loss to say
    ],
)
def test_what_a_perplexity_has_to_be(prefix: str, loss: Any, perplexity: Any, holds: bool) -> None:
    """A perplexity is exp of its loss wherever a stage has both, and infinite where no float can hold it."""
    values = {("evaluation", f"{prefix}eval_loss"): loss, ("evaluation", f"{prefix}perplexity"): perplexity}
    assert (list(breaches(values)) == []) == holds


@pytest.mark.parametrize("name", ["float32_error", "padding_error"])
@pytest.mark.parametrize(("value", "holds"), [(2e-7, True), (8e-5, False), (math.nan, False), ("raises", False)])
def test_errors_of_the_model_have_a_bound(name: str, value: Any, holds: bool) -> None:
    """Between what was measured of float32 and of TF32; a record that lacks them has nothing to say of them."""
    made = compared(record(), record(**{name: value}))
    assert (made.verdict is Verdict.IDENTICAL) == holds
    if not holds:
        (change,) = made.changes
        assert (change.stage, change.by_itself, change.verdict) == ("model", True, Verdict.REGRESSION)
    assert compared(record(**{name: 2e-7}), record()).verdict is Verdict.IDENTICAL
