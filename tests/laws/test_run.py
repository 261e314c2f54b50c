"""How laws are run and judged: a word for each, nothing measured is no pass, and nothing of the process is changed."""

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

from mlmrepro.config import EMBEDDED
from mlmrepro.errors import UserError
from mlmrepro.laws import run as laws_run
from mlmrepro.laws.law import GROUPS, Law, NotApplicable, all_laws, law
from mlmrepro.laws.result import LawResult, LawVerdict, Measured
from mlmrepro.laws.run import Known, choose, known_breaches, run_law, run_laws, sample
from mlmrepro.laws.subject import Subject

pytestmark = pytest.mark.quick

EMBEDDED_CHECKPOINT = str(EMBEDDED / "checkpoint")
VERSIONS = {"transformers": "5.23.0"}


def judged(check: Any, tmp_path: Path, model_type: str = "roberta") -> LawResult:
    """Run a check as a law on a subject whose model is never loaded."""
    subject = Subject("nowhere", (), tmp_path)
    subject.__dict__["model_type"] = model_type
    tried = Law("tried", "model", "model", "A claim.", "https://example.org", "a cause", check)
    return run_law(tried, subject, versions=VERSIONS)


def yields(*measured: Measured) -> Any:
    def check(subject: Subject) -> Iterator[Measured]:
        yield from measured

    return check


def test_a_number_within_its_bounds_holds(tmp_path: Path) -> None:
    """Bounds are inclusive; a number that is only shown does no harm."""
    result = judged(yields(Measured("x", 1.0, at_most=1.0, at_least=1.0), Measured("y", math.nan)), tmp_path)
    assert result.verdict is LawVerdict.HOLDS
    assert result.broken == ()


@pytest.mark.parametrize(
    "measured",
    [
        Measured("above", 1.1, at_most=1.0),
        Measured("below", 0.9, at_least=1.0),
        Measured("other", 2, equals=1),
        Measured("no number", math.nan, at_most=1.0),
        Measured("no number from below", math.nan, at_least=1.0),
        Measured("words where a number is bounded", "many", at_most=1.0),
        Measured("infinite", math.inf, at_most=1e300),
    ],
    ids=lambda measured: measured.what,
)
def test_a_number_outside_its_bound_breaks_the_law(measured: Measured, tmp_path: Path) -> None:
    """One number is enough, whatever the others say."""
    result = judged(yields(Measured("fine", 0.0, at_most=1.0), measured), tmp_path)
    assert result.verdict is LawVerdict.BROKEN
    assert result.broken == (measured,)
    assert result.verdict.fails


@pytest.mark.parametrize("measured", [(), (Measured("only shown", 3.0),)])
def test_nothing_measured_is_no_pass(measured: tuple[Measured, ...], tmp_path: Path) -> None:
    """A law that compares nothing with a bound is unmeasured, and that fails."""
    result = judged(yields(*measured), tmp_path)
    assert result.verdict is LawVerdict.UNMEASURED
    assert result.verdict.fails


def test_what_a_law_raises_is_told(tmp_path: Path) -> None:
    """An error of the libraries breaks the law, one of the user's leaves it unmeasured, and neither is raised."""

    def crashes(subject: Subject) -> Iterator[Measured]:
        yield Measured("before", 0.0, at_most=1.0)
        raise RuntimeError("shapes differ\nmore")

    def lacks(subject: Subject) -> Iterator[Measured]:
        raise UserError("no such file", remedy="give one")
        yield

    broken, unmeasured = judged(crashes, tmp_path), judged(lacks, tmp_path)
    assert (broken.verdict, broken.problem) == (LawVerdict.BROKEN, "raises RuntimeError: shapes differ")
    assert (unmeasured.verdict, unmeasured.problem) == (LawVerdict.UNMEASURED, "no such file. Remedy: give one.")


def test_what_does_not_apply_does_not_fail_but_hides_nothing(tmp_path: Path) -> None:
    """A law may say that the checkpoint has nothing to measure; a number out of bounds before that still counts."""

    def none(subject: Subject) -> Iterator[Measured]:
        raise NotApplicable("no dropout")
        yield

    def late(subject: Subject) -> Iterator[Measured]:
        yield Measured("x", 2.0, at_most=1.0)
        raise NotApplicable("no dropout")

    result = judged(none, tmp_path)
    assert (result.verdict, result.problem, result.verdict.fails) == (LawVerdict.NOT_APPLICABLE, "no dropout", False)
    assert judged(late, tmp_path).verdict is LawVerdict.BROKEN


@pytest.mark.parametrize(("content", "model_type"), [('{"model_type": "roberta"}', "roberta"), ("{", ""), ("[]", "")])
def test_the_model_type_is_that_of_the_configuration(content: str, model_type: str, tmp_path: Path) -> None:
    """A known breach is known too where the model cannot be loaded."""
    (tmp_path / "config.json").write_text(content)
    assert Subject(str(tmp_path), (), tmp_path).model_type == model_type


def test_only_the_declared_breach_is_excused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known breach excuses its own number, in its versions and models, near its value; all else is broken."""
    known = Known("tried", "ratio", 4.0, ("transformers>=5",), "it is lost", "https://x", 0.01, ("roberta",))
    monkeypatch.setattr(laws_run, "known_breaches", lambda: (known,))

    def at(value: float, *more: Measured, model_type: str = "roberta") -> LawResult:
        return judged(yields(Measured("ratio", value, at_most=1.0), *more), tmp_path, model_type)

    excused = at(4.005)
    assert (excused.verdict, excused.known, excused.link) == (LawVerdict.KNOWN, "it is lost", "https://x")
    assert not excused.verdict.fails
    assert at(4.02).verdict is LawVerdict.BROKEN
    assert at(4.0, Measured("other", 2.0, at_most=1.0)).verdict is LawVerdict.BROKEN
    assert at(4.0, model_type="bert").verdict is LawVerdict.BROKEN
    monkeypatch.setattr(laws_run, "known_breaches", lambda: ())
    assert at(4.0).verdict is LawVerdict.BROKEN


def test_every_declared_breach_names_a_law_and_its_reason() -> None:
    """known.toml speaks of laws that exist, with version ranges that can be read, a reason and a link."""
    names = {each.name for each in all_laws()}
    for known in known_breaches():
        assert known.law in names
        assert all(Requirement(text).specifier for text in known.when)
        assert known.reason
        assert known.link.startswith("https://")


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    """Generators, threads and gradient mode are given back, whatever a law does to them."""

    def disturbs(subject: Subject) -> Iterator[Measured]:
        torch.set_num_threads(2)
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        torch.set_grad_enabled(False)
        yield Measured("x", 0.0, at_most=1.0)

    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    judged(disturbs, tmp_path)
    assert torch.get_num_threads() == 1
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_every_law_is_written_whole() -> None:
    """Each has a group of its own module, one sentence of claim, a source and a likely cause; each group has laws."""
    laws = all_laws()
    assert {each.group for each in laws} == set(GROUPS)
    assert len(laws) > 40
    for each in laws:
        assert each.claim.endswith(".")
        assert each.claim.count(". ") == 0
        assert each.source
        assert each.cause


def test_two_laws_of_one_name_are_refused() -> None:
    """A second law under a name would silently replace the first."""
    taken = all_laws()[0]
    with pytest.raises(ValueError, match=f"two laws are called {taken.name}"):
        law("model", source="s", cause="c")(taken.check)


def test_laws_are_chosen_by_name_or_group() -> None:
    """A name, a group, or all; another one is refused with those that there are."""
    assert {each.group for each in choose(["fill_mask"])} == {"fill_mask"}
    first = all_laws()[0]
    assert choose([first.name]) == [first]
    assert choose([]) == all_laws()
    with pytest.raises(UserError, match="there is no law or group 'gravity'"):
        choose(["gravity"])


def test_too_little_text_is_refused() -> None:
    """Three texts make no batch worth the name."""
    with pytest.raises(UserError, match="the laws need at least 4 texts of at least 6 words, but got 3"):
        run_laws(EMBEDDED_CHECKPOINT, ["one two three four five six"] * 3, laws=[])


def test_the_subject_has_ragged_batches(tmp_path: Path) -> None:
    """Rows differ in length, are padded on the right, and every row has masked positions with their labels."""
    subject = Subject(EMBEDDED_CHECKPOINT, sample("embedded"), tmp_path)
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
    """Where no law can be measured there is nothing to judge, and the first reason is told."""
    with pytest.raises(UserError, match="does not exist"):
        run_laws(str(tmp_path / "absent"), sample("embedded"))
    shutil.copytree(
        EMBEDDED_CHECKPOINT,
        tmp_path / "bare",
        ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*"),
    )
    with pytest.raises(UserError, match="no law could be measured: no tokenizer file in the folder"):
        run_laws(str(tmp_path / "bare"), sample("embedded"), laws=choose(["masking"]))
