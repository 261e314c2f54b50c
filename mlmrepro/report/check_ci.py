"""A check for CI: a JUnit test case and a GitHub annotation."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from mlmrepro.gate.result import Answer, CheckResult
from mlmrepro.report.check_words import HEADLINE, ended, facts, said, unused_line
from mlmrepro.report.ci import annotation, printable, write_suites
from mlmrepro.report.words import clean

__all__ = ["check_annotation", "check_junit"]

_LEVELS = {Answer.REGRESSION: "error", Answer.INCONCLUSIVE: "warning"}  # passing answers need no annotation


def check_junit(result: CheckResult, path: Path, name: str) -> None:
    """Write one test suite with one case, which fails for a regression and for an inconclusive result.

    If the case passes, its output lists unused files and any difference that a number format explains.
    """
    fails = result.exit_code != 0
    suite = ElementTree.Element("testsuite", name=printable(name), tests="1", failures=str(int(fails)))
    suite.attrib.update(errors="0", skipped="0")
    case = ElementTree.SubElement(suite, "testcase", classname=printable(f"mlmrepro.{name}"), name="check")
    if fails:
        failure = ElementTree.SubElement(case, "failure", message=printable(_said(result)))
        failure.text = printable("\n".join(_lines(result)))
    elif result.unused or result.rounded:
        output = ElementTree.SubElement(case, "system-out")
        output.text = printable("\n".join([_said(result), *_lines(result)]))
    write_suites(path, [suite])


def check_annotation(result: CheckResult) -> str | None:
    """Return a GitHub workflow command: an error for a regression, a warning if inconclusive, None for a pass."""
    if result.answer not in _LEVELS:
        return None
    text = " ".join([said(result), *([ended(result.advice)] if result.advice else [])])
    return annotation(_LEVELS[result.answer], f"mlmrepro check: {HEADLINE[result.answer]}", text)


def _said(result: CheckResult) -> str:
    return f"{HEADLINE[result.answer]}. {said(result)}"


def _lines(result: CheckResult) -> list[str]:
    lines = [f"{name}: {line}" for name, line in facts(result)]
    lines += [f"not used: {unused_line(unused)}" for unused in result.unused]
    lines += [f"note: {clean(note)}" for note in result.notes]
    return [*lines, *([f"next: {clean(result.advice)}"] if result.advice else [])]
