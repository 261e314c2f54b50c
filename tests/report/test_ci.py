"""Output for CI: each cause is one failure, stages that inherit it are skipped, a lost environment is an error."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from mlmrepro.compare.changes import Comparison
from mlmrepro.compare.drift import Outcome, compare_records
from mlmrepro.compare.golden import Variant
from mlmrepro.compare.judge import Finding, Verdict
from mlmrepro.compare.values import Difference
from mlmrepro.report.ci import append_step_summary, github_commands, write_junit
from mlmrepro.report.comparison import comparison_document
from mlmrepro.report.document import Case, Document, Suite

from .records import record

CHANGED = record(masked_batches__draw="other", masked_batches__alone__draw="other", loss__step_losses=[9.0] * 6)


def comparison(name: str = "b") -> Comparison:
    return compare_records(Outcome("a", record()), Outcome(name, CHANGED)).comparison


def test_junit_has_a_failure_for_the_cause_and_an_error_for_what_was_lost(tmp_path: Path) -> None:
    """The stage that changed by itself fails, the stages that inherit it are skipped, and the counts agree."""
    path = tmp_path / "out" / "junit.xml"
    suites = [*comparison_document(comparison()).suites, Suite("c", [Case("record", "error", "pip failed\x00 <&>")])]
    write_junit(path, Document(None, "x", suites=suites))
    root = ElementTree.parse(path).getroot()
    suite, lost = root.findall("testsuite")
    failing = [case.attrib["name"] for case in suite if case.find("failure") is not None]
    skipped = [case.attrib["name"] for case in suite if case.find("skipped") is not None]
    assert "masked_batches" in failing
    assert not set(failing) & set(skipped)
    assert int(suite.attrib["failures"]) == len(failing)
    assert int(suite.attrib["skipped"]) == len(skipped)
    assert int(suite.attrib["tests"]) == len(suite)
    assert lost.find("testcase/error").attrib["message"] == "pip failed? <&>"  # type: ignore[union-attr]


def test_there_is_a_failure_and_an_annotation_exactly_where_the_gate_is_shut(tmp_path: Path) -> None:
    """A regression after a declared change is a failure and an error; a declared change on its own is neither."""
    why = Variant("sdpa", ("transformers>=5",), "the default", "https://example.org")
    expected = Finding("model", "isolated.attention", Verdict.EXPECTED, (Difference("", "eager", "sdpa"),), why)
    worse = Finding("evaluation", "perplexity", Verdict.REGRESSION, (Difference("", 40.0, 60.0),))
    for findings, shut in (([expected], False), ([expected, worse], True)):
        made = Comparison(findings, ("a", "b"))
        assert made.exit_code == shut
        document = comparison_document(made)
        write_junit(tmp_path / "junit.xml", document)
        (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
        assert (int(suite.attrib["failures"]) > 0) == shut
        assert bool(github_commands(document)) == shut


def test_junit_of_equal_records_has_no_failure(tmp_path: Path) -> None:
    """A comparison without changes has no failures."""
    same = compare_records(Outcome("a", record()), Outcome("b", record())).comparison
    write_junit(tmp_path / "junit.xml", comparison_document(same))
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.attrib["failures"], suite.attrib["skipped"], suite.attrib["errors"]) == ("0", "0", "0")
    assert len(suite) == 9


def test_annotations_name_each_cause_once_and_are_escaped() -> None:
    """Each cause is one workflow command on one line, with special characters escaped."""
    lines = github_commands(comparison_document(comparison("t5, x: y")))
    assert len(lines) == len({line.split("::")[1] for line in lines}) >= 1
    assert all(line.startswith("::error title=t5%2C x%3A y%3A ") and "\n" not in line for line in lines)
    assert any("masked_batches" in line for line in lines)


def test_the_step_summary_is_appended_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts are appended in order; without the variable nothing is written."""
    page = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    assert append_step_summary(Document(None, "one"))
    assert append_step_summary(Document(None, "two"))
    assert page.read_text() == "### one\n### two\n"
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert not append_step_summary(Document(None, "three"))
