"""The retraining gate as a test: collected beside the others, judged like the command, told in one message."""

from __future__ import annotations

import math
import os
import pickle
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from mlmrepro.gate.result import CheckResult
from mlmrepro.pytest_plugin.gate import checks_of
from mlmrepro.retraining.check import check_checkpoint, make_baseline
from mlmrepro.scoring.scorer import Scorer

from ..report.checks import bare, check, paired
from ..retraining import tiny
from .projects import parallel, run

# How far each checkpoint's head is biased towards frequent tokens: the more, the better it predicts.
STRENGTHS = {"old": 0.5, "better": 0.6, "worse": 0.4}
PASSING = "def test_one(): pass"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one tiny model, and the baseline of `old`; after a check, so that all it imports is loaded."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model, tokenizer, text = tiny.model(), tiny.tokenizer(), tiny.TEXT
    ids = tokenizer([document.text for document in text.documents])["input_ids"]
    times = np.bincount(np.concatenate(ids), minlength=len(tokenizer)) + 0.1
    for name, strength in STRENGTHS.items():
        with torch.no_grad():
            model.lm_head.bias.copy_(torch.from_numpy(strength * np.log(times)))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    made = make_baseline(Scorer.load(str(folder / "old"), device="cpu"), text, checkpoint="old")
    made.write(folder / "baseline")
    measured(folder, "worse")
    return folder


def measured(folder: Path, name: str) -> CheckResult:
    return check_checkpoint(str(folder / name), folder / "baseline", device="cpu")


@pytest.fixture
def gated(pytester: pytest.Pytester, checkpoints: Path) -> pytest.Pytester:
    """A project with one test that passes, beside the checkpoints."""
    pytester.makepyfile(test_a=PASSING)
    for place in checkpoints.iterdir():
        (pytester.path / place.name).symlink_to(place)
    return pytester


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is scored: `worse` is a regression, all else the same; the list is of what would have been scored."""
    names: list[str] = []

    def answered(checkpoint: str, *arguments: Any, name: str) -> CheckResult:
        names.append(name)
        return check() if name == "worse" else bare(paired=paired(0.0, 0.0), largest_change=0.0)

    monkeypatch.setattr("mlmrepro.retraining.check.check_checkpoint", answered)
    return names


def against(*checkpoints: str) -> list[str]:
    return [*(f"--mlm-checkpoint={name}" for name in checkpoints), "--mlm-baseline=baseline"]


@pytest.mark.parametrize("name", ["better", "old"])
def test_better_and_same_pass(gated: pytest.Pytester, checkpoints: Path, name: str) -> None:
    """The check is one more test, and the summary has the answer with its numbers."""
    result = run(gated, "-v", *against(name))
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.OK
    expected = measured(checkpoints, name)
    assert expected.answer.value == {"old": "same"}.get(name, name)
    result.stdout.fnmatch_lines([f"mlm-gate::{name} PASSED*", "*= retraining gate =*"])
    assert f"{expected.answer.value}  mlm-gate::{name}: {expected.reason}" in result.outlines


def test_what_is_not_used_stands_in_the_summary_and_junit(gated: pytest.Pytester, checkpoints: Path) -> None:
    """Where the check passes too: an adapter next to the weights is not applied."""
    shutil.copytree(checkpoints / "old", gated.path / "adapted")
    (gated.path / "adapted" / "adapter_config.json").write_text("{}")
    result = run(gated, "--junitxml=junit.xml", *against("adapted"))
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["same  mlm-gate::adapted: *", "  not used: the adapter is not applied: *"])
    properties = {p.get("name"): p.get("value") for p in ElementTree.parse(gated.path / "junit.xml").iter("property")}
    assert "adapter_config.json" in str(properties["mlm_unused"])


def test_a_regression_fails_with_the_whole_answer(gated: pytest.Pytester, checkpoints: Path) -> None:
    """The message is what the command prints, without a traceback, and its first line is the short summary's."""
    result = run(gated, *against("worse"))
    result.assert_outcomes(passed=1, failed=1)
    expected = measured(checkpoints, "worse")
    change = 100 * math.expm1(expected.paired.difference)  # type: ignore[union-attr]
    result.stdout.fnmatch_lines(
        [
            "*_ check of worse _*",
            "✗ REGRESSION: *",
            f"perplexity*{expected.before:.5g} → {expected.after:.5g}*+{change:.2f}*",
            "evidence*masked tokens in 12 documents*",
            "Next: *",
            "*= retraining gate =*",
            "REGRESSION  mlm-gate::worse: *",
            "FAILED mlm-gate::worse - *✗ REGRESSION*",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    result.stdout.no_fnmatch_line("*gate_plugin.py*")


def test_the_margin_is_the_projects_and_inconclusive_fails(gated: pytest.Pytester, checkpoints: Path) -> None:
    """With the measured difference as the margin nothing can be concluded; with a wider one it is the same."""
    worse = measured(checkpoints, "worse").paired
    assert worse is not None
    for margin, answer in ((math.expm1(worse.difference), "inconclusive"), (1.0, "same")):
        gated.makepyprojecttoml(f"[tool.mlmrepro]\nmargin = {margin}\n")
        result = run(gated, *against("worse"))
        result.assert_outcomes(passed=1 + (answer == "same"), failed=int(answer != "same"))
        result.stdout.fnmatch_lines([f"{answer}  mlm-gate::worse: *"])


def test_bad_input_is_an_error_in_one_message(gated: pytest.Pytester) -> None:
    """An absent baseline, an absent checkpoint and a mistaken setting: problem and remedy, no traceback, no answer."""
    for checkpoint, baseline, settings, line in (
        ("old", "nowhere", "", "*nowhere does not exist. Remedy: give the folder that mlmrepro baseline wrote (-o)."),
        ("./nowhere", "baseline", "", "*checkpoint folder ./nowhere does not exist. Remedy: *"),
        ("old", "baseline", "margin = 7", "*[[]tool.mlmrepro] margin is 7. Remedy: give a number from 0 to 1."),
    ):
        gated.makepyprojecttoml(f"[tool.mlmrepro]\n{settings}\n")
        result = run(gated, f"--mlm-checkpoint={checkpoint}", f"--mlm-baseline={baseline}")
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines(["*_ ERROR at setup of check of *", line, f"ERROR mlm-gate::{checkpoint} - *"])
        for absent in ("*Traceback*", "*.py:[0-9]*", "*retraining gate*"):
            result.stdout.no_fnmatch_line(absent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mlm-checkpoint=a"], "*--mlm-checkpoint needs --mlm-baseline DIR*"),
        (["--mlm-baseline=b"], "*need --mlm-checkpoint DIR*"),
        (["--mlm-html=b"], "*need --mlm-checkpoint DIR*"),
        ([*against("a", "b", "c"), "--mlm-baseline=b"], "*--mlm-baseline is given 2 times, for 3 checks*"),
        ([*against("a", "b"), "--mlm-html=p"], "*--mlm-html is given 1 times, for 2 checks*"),
    ],
)
def test_half_a_check_is_a_usage_error(pytester: pytest.Pytester, arguments: list[str], message: str) -> None:
    """One option without the other, or of another number, ends before anything is collected."""
    result = run(pytester, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


@pytest.mark.quick
def test_checks_pair_up() -> None:
    """The n-th checkpoint has the n-th baseline, one serves all, and no two tests have one name."""
    assert [(c.checkpoint, c.baseline) for c in checks_of(["a", "b"], ["x", "y"])] == [("a", "x"), ("b", "y")]
    assert [(c.checkpoint, c.baseline) for c in checks_of(["a", "b"], ["x"])] == [("a", "x"), ("b", "x")]
    assert [c.name for c in checks_of(["a"], ["x", "y"])] == ["a[x]", "a[y]"]
    assert [c.name for c in checks_of(["a", "b", "a"], ["x", "x", "x"])] == ["a", "b"]
    assert [c.page for c in checks_of(["a", "b"], ["x"], ["p", "q"])] == ["p", "q"]


@pytest.mark.parametrize(
    ("arguments", "outcomes", "expected"),
    [
        ((), {"passed": 2, "failed": 1}, ["old", "worse"]),
        (("test_a.py::test_one",), {"passed": 2, "failed": 1}, ["old", "worse"]),
        (("-k", "mlm-gate and old"), {"passed": 1, "deselected": 2}, ["old"]),
        (("-k", "test_one"), {"passed": 1, "deselected": 2}, []),
        (("-m", "slow"), {"deselected": 3}, []),
        (("--deselect=mlm-gate::worse",), {"passed": 2, "deselected": 1}, ["old"]),
        (("--ignore=test_a.py",), {"passed": 1, "failed": 1}, ["old", "worse"]),
        (("--collect-only",), {}, []),
    ],
)
def test_it_is_collected_like_any_test(
    pytester: pytest.Pytester,
    scored: list[str],
    arguments: tuple[str, ...],
    outcomes: dict[str, int],
    expected: list[str],
) -> None:
    """It can be chosen and left out, and runs beside one file as where there is no other test; the last of all."""
    pytester.makepyfile(test_a=PASSING)
    run(pytester, *arguments, *against("old", "worse")).assert_outcomes(**outcomes)
    assert scored == expected


def test_it_stands_in_the_list(pytester: pytest.Pytester) -> None:
    """Its name is that of the checkpoint as it was given."""
    pytester.makepyfile(test_a=PASSING)
    listed = run(pytester, "--collect-only", "-q", *against("models/old", "worse")).outlines
    assert listed[:3] == ["test_a.py::test_one", "mlm-gate::models/old", "mlm-gate::worse"]


def test_the_last_failed_check_can_be_repeated(pytester: pytest.Pytester, scored: list[str]) -> None:
    """`--lf` with the same options runs only the check that failed."""
    pytester.makepyfile(test_a=PASSING)
    run(pytester, *against("old", "worse"))
    scored.clear()
    run(pytester, "--lf", *against("old", "worse")).assert_outcomes(failed=1, deselected=2)
    assert scored == ["worse"]


def test_paths_are_where_the_user_stands(gated: pytest.Pytester) -> None:
    """Relative folders are those below the directory that pytest is started in, whatever a test makes of it."""
    (gated.path / "below").mkdir()
    gated.makepyfile(test_a="import os\n\ndef test_one(): os.chdir(os.path.sep)")
    os.chdir(gated.path / "below")
    arguments = ["--mlm-checkpoint=../old", "--mlm-baseline=../baseline", "--mlm-html=pages/check.html"]
    run(gated, "..", *arguments).assert_outcomes(passed=2)
    page = (gated.path / "below" / "pages" / "check.html").read_text(encoding="utf-8")
    assert "<!doctype html>" in page.lower()
    assert "../old" in page


def test_a_page_that_cannot_be_written_is_an_error(pytester: pytest.Pytester, scored: list[str]) -> None:
    """It is told in one message, like any bad input."""
    result = run(pytester, *against("old"), "--mlm-html=.")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the page . cannot be written: * Remedy: give --mlm-html another file."])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_machine_reads_the_answer(pytester: pytest.Pytester, scored: list[str]) -> None:
    """JUnit XML has one case, its failure, and the numbers as properties."""
    run(pytester, "--junitxml=junit.xml", *against("worse"))
    (case,) = ElementTree.parse(pytester.path / "junit.xml").getroot().iter("testcase")
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert (case.get("classname"), case.get("name")) == ("mlm-gate", "worse")
    assert case.find("failure") is not None
    assert properties == {
        "mlm_answer": "REGRESSION",
        "mlm_reason": check().reason,
        "mlm_measure": "perplexity",
        "mlm_before": str(check().before),
        "mlm_after": str(check().after),
        "mlm_baseline": "baseline",
    }


FAKED = """
    import pickle
    import mlmrepro.retraining.check as room

    def counted(checkpoint, *arguments, name):
        with open("calls", "a") as file:
            file.write(name + "\\n")
        with open("result", "rb") as file:
            return pickle.load(file)

    def pytest_configure(config):
        if hasattr(config, "workerinput"):
            room.check_checkpoint = counted
"""


def test_in_parallel_a_check_runs_once(pytester: pytest.Pytester) -> None:
    """One worker scores each checkpoint, and the controller tells all answers."""
    pytester.makepyfile(test_a=PASSING)
    pytester.makeconftest(FAKED)
    (pytester.path / "result").write_bytes(pickle.dumps(bare(reason="as faked")))
    result = parallel(pytester, *against("old", "worse"))
    result.assert_outcomes(passed=3)
    assert sorted((pytester.path / "calls").read_text().split()) == ["old", "worse"]
    told = [line for line in result.outlines if line.startswith("same  mlm-gate::")]
    assert sorted(told) == [f"same  mlm-gate::{name}: as faked" for name in ("old", "worse")]


@pytest.mark.parametrize(("name", "unused"), [("old", True), ("worse", False)])
def test_a_full_run_stays_full(project: pytest.Pytester, scored: list[str], name: str, unused: bool) -> None:
    """A check that passes hides no unused golden; one that fails is a failed test, after which none is looked for."""
    result = run(project, *against(name))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3 + unused, failed=int(not unused))
    assert ("2 not used by any test; pytest --golden-update deletes them:" in result.outlines) is unused


def test_without_its_options_there_is_no_gate(pytester: pytest.Pytester) -> None:
    """Only a run that is given a checkpoint has the gate's part of the plugin."""
    pytester.makepyfile(
        test_a="def test_one(pytestconfig): assert pytestconfig.pluginmanager.has_plugin('mlmrepro-gate')"
    )
    run(pytester).assert_outcomes(failed=1)
    run(pytester, *against("old"), "--deselect=mlm-gate").assert_outcomes(passed=1, deselected=1)
