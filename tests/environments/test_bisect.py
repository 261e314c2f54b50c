"""Bisection: which release changed what, on planted histories and with real commands."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from mlmrepro import cli
from mlmrepro.compare.drift import Outcome
from mlmrepro.environments import bisect as module
from mlmrepro.environments import releases as releases_module
from mlmrepro.environments import trials
from mlmrepro.environments.bisect import Bisection, Status, Trial, bisect, search
from mlmrepro.environments.children import run_child
from mlmrepro.environments.releases import Release, between
from mlmrepro.environments.spec import Environment
from mlmrepro.errors import UserError
from mlmrepro.report.bisection import bisection_content, bisection_document
from mlmrepro.report.markdown import document_markdown

from ..report.records import record

RELEASES = [Release(Version(f"4.{n}.0"), f"2025-01-{n:02}") for n in range(1, 17)]


class History:
    """A package's releases: from which one on a value is another, and which ones cannot be measured."""

    def __init__(self, **changes: int) -> None:
        self.changes = changes
        self.problems: dict[int, str] = {}
        self.value: Callable[[int, int], dict[str, Any]] = lambda minor, attempt: {}
        self.measured: list[tuple[str, int]] = []
        self.environments: list[Environment] = []

    def __call__(self, environment: Environment, attempt: int) -> Trial:
        version = environment.versions["transformers"]
        self.environments.append(environment)
        self.measured.append((str(version), attempt))
        if problem := self.problems.get(version.minor):
            return Trial(Outcome(environment.name, None, problem))
        new = {"model__attention": "sdpa", "fill_mask__off_path.default_top_k": 3, "loss__isolated.first_step": 9.0}
        changed = {name: new[name] for name, since in self.changes.items() if version.minor >= since}
        changed |= self.value(version.minor, attempt)
        return Trial(Outcome(environment.name, record(str(version), "4.4.2", **changed)))

    def bisect(self, *watch: str, fixed: str = "4.4.2") -> Bisection:
        return bisect("transformers", RELEASES, self, watch=watch, fixed={"datasets": fixed} if fixed else {})


@pytest.mark.parametrize("since", [2, 7, 11, 16])
def test_the_release_is_found_in_few_environments(since: int) -> None:
    """The first release with the new value is named, with at most ceil(log2 n) + 2 environments."""
    history = History(model__attention=since)
    (found,) = history.bisect().found
    assert (found.watch, str(found.before.version), str(found.after.version)) == (
        "model.attention",
        f"4.{since - 1}.0",
        f"4.{since}.0",
    )
    assert (found.old, found.new, found.skipped, found.flickers) == ("eager", "sdpa", (), False)
    assert len({version for version, _ in history.measured}) <= math.ceil(math.log2(len(RELEASES))) + 2


@given(st.integers(1, 40), st.data())
def test_only_skipped_places_are_between_the_two(count: int, data: st.DataObject) -> None:
    """Whatever is skipped: the first place is old, the second new, and all between them were skipped."""
    change = data.draw(st.integers(1, count))
    skipped = data.draw(st.sets(st.integers(1, max(1, count - 1))))

    def status(place: int) -> Status:
        assert 0 < place < count
        return Status.SKIPPED if place in skipped else Status.NEW if place >= change else Status.OLD

    low, high = search(count + 1, status)
    assert low < change <= high
    assert all(place in skipped for place in range(low + 1, high))


def test_a_release_that_cannot_be_measured_is_not_blamed() -> None:
    """The releases next to it are tried; if the change may be its own, both are named."""
    history = History(model__attention=9)
    history.problems = {8: "killed by SIGSEGV", 9: "ImportError: x", 3: "no wheel"}
    result = history.bisect()
    (found,) = result.found
    assert (str(found.before.version), str(found.after.version)) == ("4.7.0", "4.10.0")
    assert [str(release.version) for release in found.skipped] == ["4.8.0", "4.9.0"]
    text = document_markdown(bisection_document(result)).replace("\\", "")
    assert "or one of 4.8.0, 4.9.0, which could not be measured" in text
    assert "ImportError: x" in text


def test_several_values_share_the_environments() -> None:
    """Each value gets its release, no release is recorded twice but to confirm, and what is the same is said."""
    history = History(**{"model__attention": 4, "fill_mask__off_path.default_top_k": 12})
    result = history.bisect("model.attention", "fill_mask.*", "dataset.train_rows")
    assert {each.watch: str(each.after.version) for each in result.found} == {
        "model.attention": "4.4.0",
        "fill_mask.off_path.default_top_k": "4.12.0",
    }
    assert "dataset.train_rows" in result.same
    assert len(history.measured) == len(set(history.measured))
    content = bisection_content(result)
    assert [each["first_after"] for each in content["changes"]] == ["4.4.0", "4.12.0"]


def test_a_value_that_flickers_is_decided_by_two_of_three() -> None:
    """A first measurement that a second and a third contradict does not decide, and the result says so."""
    history = History(**{"loss__isolated.first_step": 11})
    # The first measurement of 4.10 shows a change that is not there.
    history.value = lambda minor, attempt: {"loss__isolated.first_step": 7.0} if (minor, attempt) == (10, 1) else {}
    (found,) = history.bisect("loss.isolated.first_step").found
    assert str(found.after.version) == "4.11.0"
    assert found.flickers
    assert ("4.10.0", 3) in history.measured


def test_without_a_change_nothing_is_blamed() -> None:
    """Two equal ends cost two environments, and no release is named."""
    history = History()
    result = history.bisect()
    assert (result.found, len(history.measured)) == ((), 2)
    assert "Nothing that is watched differs" in bisection_document(result).headline


def test_an_end_that_cannot_be_measured_is_bad_input() -> None:
    """The message names the release and the reason."""
    history = History(model__attention=9)
    history.problems = {16: "no wheel for this Python"}
    with pytest.raises(UserError, match=r"transformers 4\.16\.0.*cannot be measured: no wheel"):
        history.bisect()


def test_an_unknown_value_is_bad_input() -> None:
    """The message names the option and where names can be copied from."""
    with pytest.raises(UserError, match=r"--watch model\.nothing"):
        History(model__attention=9).bisect("model.nothing")


def test_companions_that_do_not_go_along_are_moved_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that conflicts with the companions of the ends gets others; the result names their versions."""
    monkeypatch.setattr(module, "candidates", lambda *_: [{"datasets": "9.9"}, {"datasets": "4.4.2"}])
    history = History(model__attention=9)

    def measure(environment: Environment, attempt: int) -> Trial:
        version = environment.versions["transformers"]
        fixed = str(environment.versions.get("datasets"))
        if fixed == "9.9" or (version.minor == 8 and not environment.free):
            return Trial(Outcome(environment.name, None, "Cannot install transformers and datasets"))
        return history(environment, attempt)

    result = bisect("transformers", RELEASES, measure)
    (found,) = result.found
    assert str(found.after.version) == "4.9.0"
    (step,) = (step for step in result.steps if step.trial.moved)
    assert (str(step.release.version), dict(step.trial.moved)) == ("4.8.0", {"datasets": "4.4.2"})
    assert any("with datasets 4.4.2" in str(row) for row in bisection_document(result).blocks[-1].blocks[0].rows)


def test_which_releases_are_tried() -> None:
    """Pre-releases and yanked releases only on request; both ends must exist."""
    listed = [
        Release(Version("1.0")),
        Release(Version("1.1rc1")),
        Release(Version("1.1"), yanked=True),
        Release(Version("1.2")),
    ]

    def names(**options: bool) -> list[str]:
        chosen = between(listed, Version("1.0"), Version("1.2"), **{"pre": False, "yanked": False, **options})
        return [str(release.version) for release in chosen]

    assert names() == ["1.0", "1.2"]
    assert names(pre=True) == ["1.0", "1.1rc1", "1.2"]
    assert names(yanked=True) == ["1.0", "1.1", "1.2"]
    with pytest.raises(UserError, match=r"no release 1\.3"):
        between(listed, Version("1.0"), Version("1.3"), pre=False, yanked=False)


@pytest.mark.parametrize(
    ("code", "exit_code", "problem"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit(125)", None, "exit code 125"),
        ("import os; os.kill(os.getpid(), 9)", None, "exit code 137"),
    ],
)
def test_a_command_is_judged_by_its_exit_code(
    code: str, exit_code: int | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs with the environment's programs first; 125 and a signal mean that the release cannot be judged."""
    monkeypatch.setattr(trials, "make_environment", lambda *_: Path(sys.executable))
    measure = trials.Commands(["python", "-c", code], "packaging", tmp_path, tmp_path / "cache")
    trial = measure(Environment("e", ("packaging==1.0",)), 1)
    assert trial.exit_code == exit_code
    assert trial.problem.startswith(problem) if problem else not trial.problem


def test_a_package_that_cannot_be_imported_skips_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is not run, so that its failure blames nobody."""
    monkeypatch.setattr(trials, "make_environment", lambda *_: Path(sys.executable))
    commands = []
    monkeypatch.setattr(
        trials, "run_child", lambda command, *a, **k: (commands.append(command), run_child(command, *a, **k))[1]
    )
    trial = trials.Commands(["false"], "no-such-package", tmp_path, tmp_path / "cache")(Environment("e", ()), 1)
    assert "no-such-package cannot be imported: ModuleNotFoundError" in trial.problem
    assert ["false"] not in commands


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["transformers", "5.0", "4.0"], "5.0 is not older than 4.0"),
        (["transformers", "4.x", "5.0"], "'4.x' is not a version"),
        (["transformers", "4.0", "5.0", "--with", "transfomers==1.0"], "did you mean transformers?"),
        (["transformers", "4.0", "5.0", "--with", "transformers==4.1"], "it is the package that is searched"),
        (["transformers", "4.0", "5.0", "--with", "torch>=2"], "write torch=="),
        (["transformers", "4.0", "5.0", "--watch", "x", "--", "true"], "--watch and a command are given"),
    ],
)
def test_bad_input_ends_before_anything_is_installed(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 with the argument and the remedy, and no index is asked."""
    monkeypatch.setattr(releases_module, "releases", lambda *_: pytest.fail("an index was asked"))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bisect", *arguments])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
