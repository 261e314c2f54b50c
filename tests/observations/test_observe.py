"""How observations are made and judged: nothing measured is no pass, and the process is left as it was."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from mlmrepro.compare import declare
from mlmrepro.compare.declare import Known, known_breaches
from mlmrepro.config import EMBEDDED
from mlmrepro.errors import UserError
from mlmrepro.observations.observation import NotApplicable, Observer, measure, observation, value, values
from mlmrepro.observations.observe import observe, observe_all, observe_into, sample
from mlmrepro.observations.registry import MODULES, all_observers, bounded_observers, choose
from mlmrepro.observations.result import BoundVerdict, ObservationResult, Value
from mlmrepro.observations.subject import Subject
from mlmrepro.record import Bound, Lane, RunRecord

pytestmark = pytest.mark.quick

EMBEDDED_CHECKPOINT = str(EMBEDDED / "checkpoint")
VERSIONS = {"transformers": "5.23.0"}


def judged(check: Any, tmp_path: Path, model_type: str = "roberta") -> ObservationResult:
    """Run a check as an observation of a subject whose model is never loaded."""
    subject = Subject("nowhere", (), tmp_path)
    subject.__dict__["model_type"] = model_type
    return observe(observer(check), subject, versions=VERSIONS)


def observer(check: Any, name: str = "tried", cause: str = "a cause") -> Observer:
    return Observer(name, "model", "model", "A claim.", check, "https://example.org" if cause else "", cause)


def yields(*measured: Value) -> Any:
    def check(subject: Subject) -> Iterator[Value]:
        yield from measured

    return check


def test_a_number_within_its_bounds_holds(tmp_path: Path) -> None:
    """Bounds are inclusive; a number that is only shown does no harm."""
    result = judged(yields(value("x", 1.0, at_most=1.0, at_least=1.0), value("y", math.nan, shown=True)), tmp_path)
    assert result.verdict is BoundVerdict.HOLDS
    assert result.broken == ()


@pytest.mark.parametrize(
    "measured",
    [
        value("above", 1.1, at_most=1.0),
        value("below", 0.9, at_least=1.0),
        value("other", 2, equals=1),
        value("no number", math.nan, at_most=1.0),
        value("no number from below", math.nan, at_least=1.0),
        value("words where a number is bounded", "many", at_most=1.0),
        value("infinite", math.inf, at_most=1e300),
    ],
    ids=lambda measured: measured.slug,
)
def test_a_number_outside_its_bound_breaks_it(measured: Value, tmp_path: Path) -> None:
    """One number is enough, whatever the others say."""
    result = judged(yields(value("fine", 0.0, at_most=1.0), measured), tmp_path)
    assert result.verdict is BoundVerdict.BROKEN
    assert result.broken == (measured,)
    assert result.verdict.fails


@pytest.mark.parametrize("measured", [(), (value("only_shown", 3.0, shown=True),)])
def test_nothing_measured_is_no_pass(measured: tuple[Value, ...], tmp_path: Path) -> None:
    """An observation that compares nothing with a bound is unmeasured, and that fails."""
    result = judged(yields(*measured), tmp_path)
    assert result.verdict is BoundVerdict.UNMEASURED
    assert result.verdict.fails


def test_what_an_observation_raises_is_reported(tmp_path: Path) -> None:
    """An error of the libraries breaks it, one of the user's leaves it unmeasured, and neither is raised."""

    def crashes(subject: Subject) -> Iterator[Value]:
        yield value("before", 0.0, at_most=1.0)
        raise RuntimeError("shapes differ\nmore")

    def lacks(subject: Subject) -> Iterator[Value]:
        raise UserError("no such file", remedy="give one")
        yield

    broken, unmeasured = judged(crashes, tmp_path), judged(lacks, tmp_path)
    assert (broken.verdict, broken.problem) == (BoundVerdict.BROKEN, "raises RuntimeError: shapes differ")
    assert (unmeasured.verdict, unmeasured.problem) == (BoundVerdict.UNMEASURED, "no such file. Remedy: give one.")


def test_what_does_not_apply_does_not_fail_but_hides_nothing(tmp_path: Path) -> None:
    """A checkpoint may have nothing to measure; a number out of bounds before that still counts."""

    def none(subject: Subject) -> Iterator[Value]:
        raise NotApplicable("no dropout")
        yield

    def late(subject: Subject) -> Iterator[Value]:
        yield value("x", 2.0, at_most=1.0)
        raise NotApplicable("no dropout")

    result = judged(none, tmp_path)
    assert (result.verdict, result.problem, result.verdict.fails) == (BoundVerdict.NOT_APPLICABLE, "no dropout", False)
    assert judged(late, tmp_path).verdict is BoundVerdict.BROKEN


def test_what_ends_early_after_a_declared_breach_has_gone_wrong_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record holds the declared value, and no outcome that would break a bound of its own."""

    def late(subject: Subject) -> Iterator[Value]:
        yield value("ratio", 4.0, at_most=1.0)
        raise NotApplicable("no dropout")

    monkeypatch.setattr(declare, "known_breaches", lambda: (Known("model.tried.ratio", 4.0, (), "why", "https://x"),))
    record = RunRecord({}, {})
    subject = Subject("nowhere", (), tmp_path)
    subject.__dict__["model_type"] = "roberta"
    observe_into(record, subject, [observer(late)])
    assert [o.name for o in record] == ["off_path.tried.ratio"]
    assert record.asked == {"model.tried": "no dropout"}


@pytest.mark.parametrize(("content", "model_type"), [('{"model_type": "roberta"}', "roberta"), ("{", ""), ("[]", "")])
def test_the_model_type_is_that_of_the_configuration(content: str, model_type: str, tmp_path: Path) -> None:
    """A known breach is known too where the model cannot be loaded."""
    (tmp_path / "config.json").write_text(content)
    assert Subject(str(tmp_path), (), tmp_path).model_type == model_type


def test_only_the_declared_breach_is_excused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known breach excuses its own number, in its versions and models, near its value; all else is broken."""
    known = Known("model.tried.ratio", 4.0, ("transformers>=5",), "it is lost", "https://x", 0.01, ("roberta",))
    monkeypatch.setattr(declare, "known_breaches", lambda: (known,))

    def at(found: float, *more: Value, model_type: str = "roberta") -> ObservationResult:
        return judged(yields(value("ratio", found, at_most=1.0), *more), tmp_path, model_type)

    excused = at(4.005)
    assert (excused.verdict, excused.known, excused.link) == (BoundVerdict.KNOWN, "it is lost", "https://x")
    assert not excused.verdict.fails
    assert at(4.02).verdict is BoundVerdict.BROKEN
    assert at(4.0, value("other", 2.0, at_most=1.0)).verdict is BoundVerdict.BROKEN
    assert at(4.0, model_type="bert").verdict is BoundVerdict.BROKEN
    monkeypatch.setattr(declare, "known_breaches", lambda: ())
    assert at(4.0).verdict is BoundVerdict.BROKEN


def test_every_declared_breach_names_an_observation_and_its_reason() -> None:
    """known.toml names observations that exist, with version ranges that can be read, a reason and a link."""
    keys = {each.key for each in bounded_observers()}
    for known in known_breaches():
        stage, name, slug = known.name.split(".", 2)
        assert f"{stage}.{name}" in keys
        assert slug
        assert all(Requirement(text).specifier for text in known.when)
        assert known.reason
        assert known.link.startswith("https://")


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    """Generators, threads and gradient mode are given back, whatever an observation does to them."""

    def disturbs(subject: Subject) -> Iterator[Value]:
        torch.set_num_threads(2)
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        torch.set_grad_enabled(False)
        yield value("x", 0.0, at_most=1.0)

    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    judged(disturbs, tmp_path)
    assert torch.get_num_threads() == 1
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_every_observation_is_complete() -> None:
    """Each has a claim of one sentence and a key of its own; bounds come with a source and a likely cause."""
    observers = all_observers()
    assert {each.group for each in observers} == {module.__name__.rpartition(".")[2] for module in MODULES}
    assert len({each.key for each in observers}) == len(observers)
    assert len(observers) > 100
    for each in observers:
        assert each.claim.endswith(".")
        assert bool(each.source) == bool(each.cause)
        if each.has_bounds:
            assert each.claim.count(". ") == 0


def test_two_values_of_one_name_are_a_bug(tmp_path: Path) -> None:
    """The second one would silently replace the first."""
    with pytest.raises(ValueError, match=r"two values of model\.tried have the same name"):
        judged(yields(value("x", 1, equals=1), value("x", 2, equals=2)), tmp_path)


def test_observations_are_chosen_by_name_key_or_group() -> None:
    """A name, a key with the stage, a group, or all; another one is refused with those that there are."""
    assert {each.group for each in choose(["fill_mask"])} == {"fill_mask"}
    first = all_observers()[0]
    assert choose([first.name]) == choose([first.key]) == [first]
    assert choose([]) == all_observers()
    with pytest.raises(UserError, match="there is no observation or group 'gravity'"):
        choose(["gravity"])
    with pytest.raises(UserError, match="there is no observation or group 'config_defaults'"):
        choose(["config_defaults"], bounded_observers())  # it has no bounds


def test_a_decorated_function_is_an_observer() -> None:
    """Stage, claim, module and cause are taken from the function and its decorator."""

    @observation("loss", source="a paper", cause="a bug")
    def rate(subject: Subject) -> Iterator[Value]:
        """It is one.

        More.
        """
        yield from values({"a": 1, "b": value("", 0.5, quantity="nats")})

    assert (rate.key, rate.claim, rate.has_bounds) == ("loss.rate", "It is one.", True)
    assert [(each.slug, each.lane) for each in rate.look(None)] == [("a", Lane.EXACT), ("b", Lane.APPROXIMATE)]


def test_a_record_holds_values_bounds_and_what_it_was_asked_for(tmp_path: Path) -> None:
    """Also of observations that raise or do not apply, and the generators are as they were."""

    def raises(subject: Subject) -> Iterator[Value]:
        torch.rand(3)
        random.random()
        yield value("before", 1)
        raise KeyError("x")

    def inapplicable(subject: Subject) -> Iterator[Value]:
        raise NotApplicable("no dropout")
        yield

    def looks(subject: Subject) -> Iterator[Value]:
        yield from values({"loss": measure(lambda: 1.5, "nats"), "gone": measure(lambda: {}["x"], "nats")})
        yield value("ratio", 2.0, "a ratio", at_most=1.0, reason="why")

    observers = [
        observer(raises, "a", cause=""), observer(raises, "b"), observer(inapplicable, "c"), observer(looks, "d")
    ]  # fmt: skip
    record = RunRecord({}, {})
    before = torch.get_rng_state(), random.getstate()
    observe_into(record, Subject(EMBEDDED_CHECKPOINT, (), tmp_path), observers)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert record["model.off_path.a.outcome"] == record["model.off_path.b.outcome"] == "raises KeyError"
    assert record["model.off_path.a.before"] == 1
    assert record["model.off_path.d.gone"] == "raises KeyError"
    raised = "raises KeyError: 'x'"
    assert record.asked == {"model.a": raised, "model.b": raised, "model.c": "no dropout", "model.d": ""}
    lanes = {o.name: (o.lane, o.quantity) for o in record}
    assert lanes["off_path.a.outcome"] == (Lane.EXACT, "")
    assert lanes["off_path.b.outcome"] == (Lane.BOUND, "")
    assert lanes["off_path.d.gone"] == lanes["off_path.d.loss"] == (Lane.APPROXIMATE, "nats")
    record.write(tmp_path / "record.json")
    (again,) = [o for o in RunRecord.read(tmp_path / "record.json") if o.name == "off_path.d.ratio"]
    assert (again.bound, again.title) == (Bound(at_most=1.0, reason="why"), "a ratio")
    assert not again.bound.holds(again.value)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    """Three texts make no batch worth the name."""
    text = tmp_path / "few.jsonl"
    text.write_text("".join(f'{{"text": "{n} two three four five six"}}\n' for n in range(3)), encoding="utf-8")
    with pytest.raises(UserError, match="has 3 texts of at least 6 words, but 4 are needed"):
        sample(str(text))


def test_the_subject_has_ragged_batches(tmp_path: Path) -> None:
    """Rows differ in length, are padded on the right, and every row has masked positions with their labels."""
    subject = Subject(EMBEDDED_CHECKPOINT, sample("embedded")[0], tmp_path)
    batch = subject.batch(4)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 1
    assert max(lengths) <= subject.row_limit
    wanted = batch["labels"] != -100
    assert bool(wanted.any(1).all())
    assert bool((batch["input_ids"][wanted] == subject.tokenizer.mask_token_id).all())
    assert not bool((wanted & (batch["attention_mask"] == 0)).any())
    assert subject.batch(2, width=60)["input_ids"].shape == (2, 60)
    assert subject.new_folder("x") != subject.new_folder("x")


def test_a_checkpoint_that_cannot_be_read_at_all_is_bad_input(tmp_path: Path) -> None:
    """Where nothing can be observed there is nothing to judge, and the first reason is told."""
    with pytest.raises(UserError, match="does not exist"):
        observe_all(str(tmp_path / "absent"), sample("embedded")[0])
    shutil.copytree(
        EMBEDDED_CHECKPOINT,
        tmp_path / "bare",
        ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*"),
    )
    with pytest.raises(UserError, match="nothing could be observed: no tokenizer file in the folder"):
        observe_all(str(tmp_path / "bare"), sample("embedded")[0], observers=choose(["masking"], bounded_observers()))
