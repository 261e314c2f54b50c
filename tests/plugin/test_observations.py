"""Observations as test items: chosen, marked and reported as pytest does with any test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlmrepro.config import EMBEDDED, golden_directory
from mlmrepro.observations.observe import observe_all, sample
from mlmrepro.observations.registry import all_observers, bounded_observers, choose

from .projects import run

GOLDENS = golden_directory()
FEW = "several_masks or edge_texts"  # one with bounds, and one of the embedded checkpoint's goldens


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Import what the items import: pytester takes out again what a project imports, and torch cannot be reloaded."""
    names = ["several_masks", "edge_texts", "batch_without_labels", "full_ranking"]
    observe_all(str(EMBEDDED / "checkpoint"), sample("embedded")[0], observers=choose(names))


@pytest.fixture
def copy(pytester: pytest.Pytester) -> Path:
    """Return a checkpoint of the user's own, next to one test of theirs."""
    pytester.makepyfile(test_a="def test_one(): pass")
    return Path(shutil.copytree(EMBEDDED / "checkpoint", pytester.path / "my-model"))


def test_each_observation_is_an_item(copy: Path, pytester: pytest.Pytester) -> None:
    """A user's checkpoint has those with bounds, the embedded one also those with goldens; `-m` selects by marker."""
    listed = run(pytester, "--collect-only", "-q", "--mlm-observe=my-model", "--mlm-observe=embedded").outlines
    names = [line for line in listed if line.startswith("mlm-observe::")]
    assert [n for n in names if "::my-model::" in n] == [f"mlm-observe::my-model::{o.key}" for o in bounded_observers()]
    assert [n for n in names if "::embedded::" in n] == [f"mlm-observe::embedded::{o.key}" for o in all_observers()]
    assert "test_a.py::test_one" in listed
    slow = run(pytester, "--collect-only", "-q", "--mlm-observe=my-model", "-m", "mlm_slow").outlines
    assert len([line for line in slow if "::" in line]) == sum(o.slow for o in bounded_observers()) > 0


def test_items_pass_xfail_and_skip_with_their_reasons(copy: Path, pytester: pytest.Pytester) -> None:
    """What is declared for these versions is an xfail, what does not apply a skip; the user's own test runs too."""
    chosen = f"{FEW} or batch_without_labels or test_one"
    result = run(pytester, "--mlm-observe=my-model", "-k", chosen, "-rx", "--junitxml=report.xml")
    result.assert_outcomes(passed=2, xfailed=1, deselected=len(bounded_observers()) - 2)
    assert "logging_nan_inf_filter" in result.stdout.str()
    cases = {case.attrib["name"] for case in ElementTree.parse(pytester.path / "report.xml").iter("testcase")}
    assert {"test_one", "fill_mask.several_masks", "loss.batch_without_labels"} == cases


def test_a_broken_bound_fails_with_numbers_and_cause(copy: Path, pytester: pytest.Pytester) -> None:
    """The message has the claim, the value next to its bound, and the likely cause."""
    tensors = load_file(copy / "model.safetensors")
    tensors["roberta.encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    result = run(pytester, "--mlm-observe=my-model", "-k", "full_ranking")
    result.assert_outcomes(failed=1, deselected=len(bounded_observers()))
    printed = result.stdout.str()
    assert "fill_mask.full_ranking of my-model" in printed
    assert "likely cause: " in printed
    assert "BROKEN" in printed


def test_a_value_other_than_its_golden_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The embedded checkpoint's values are compared with the shipped goldens; a missing golden fails too."""
    goldens = Path(shutil.copytree(GOLDENS, tmp_path / "goldens"))
    monkeypatch.setattr("mlmrepro.config.golden_directory", lambda: goldens)
    run(pytester, "--mlm-observe=embedded", "-k", FEW).assert_outcomes(passed=2, deselected=len(all_observers()) - 2)
    path = goldens / "input_ids.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["expected"]["off_path.edge_texts.ids"]["value"][0][1] += 1
    del content["expected"]["off_path.edge_texts.tokens"]
    path.write_text(json.dumps(content), encoding="utf-8")
    result = run(pytester, "--mlm-observe=embedded", "-k", FEW)
    result.assert_outcomes(passed=1, failed=1, deselected=len(all_observers()) - 2)
    printed = result.stdout.str()
    assert "off_path.edge_texts.tokens: there is no golden" in printed
    assert "'off_path.edge_texts.ids': REGRESSION" in printed
    before = path.read_bytes()
    run(pytester, "--mlm-observe=embedded", "-k", FEW, "--golden-update=new").assert_outcomes(
        passed=1, failed=1, deselected=len(all_observers()) - 2
    )
    assert before != path.read_bytes()
    run(pytester, "--mlm-observe=embedded", "-k", FEW, "--golden-update").assert_outcomes(
        passed=2, deselected=len(all_observers()) - 2
    )
    after = json.loads(path.read_text(encoding="utf-8"))["expected"]
    assert after == json.loads((GOLDENS / "input_ids.json").read_text(encoding="utf-8"))["expected"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mlm-observe=no/such/folder"], "does not exist"),
        (["--mlm-observe=my-model", "--mlm-text=absent.txt"], "the text absent.txt does not exist"),
    ],
)
def test_bad_input_is_an_error_that_names_it(
    copy: Path, pytester: pytest.Pytester, arguments: list[str], said: str
) -> None:
    """It is an error of the item, without a traceback."""
    result = run(pytester, *arguments, "-k", "full_ranking")
    result.assert_outcomes(errors=1, deselected=len(bounded_observers()))
    assert said in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_a_text_without_a_checkpoint_is_refused(pytester: pytest.Pytester) -> None:
    """The option would be ignored."""
    assert run(pytester, "--mlm-text=a.txt").ret == pytest.ExitCode.USAGE_ERROR
