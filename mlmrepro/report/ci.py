"""What a CI system reads: JUnit XML, GitHub's annotations, and its step summary."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from mlmrepro.compare.changes import Change, Comparison
from mlmrepro.compare.judge import Verdict
from mlmrepro.files import atomic_write

__all__ = ["annotation", "append_step_summary", "github_annotations", "printable", "write_junit", "write_suites"]


def write_junit(path: Path, comparisons: Mapping[str, Comparison], problems: Mapping[str, str]) -> None:
    """Write one test suite an environment and one test case a stage, so that CI shows each failure once.

    A stage that only follows from another is skipped with that stage's name; `problems` are environments without a
    record, which are errors.
    """
    suites = [_suite(name, comparison) for name, comparison in comparisons.items()]
    for name, problem in problems.items():
        suite = ElementTree.Element("testsuite", name=name, tests="1", failures="0", errors="1", skipped="0")
        case = ElementTree.SubElement(suite, "testcase", classname=f"mlmrepro.{name}", name="record")
        ElementTree.SubElement(case, "error", message=printable(problem))
        suites.append(suite)
    write_suites(path, suites)


def write_suites(path: Path, suites: Iterable[ElementTree.Element]) -> None:
    """Write test suites as one JUnit file, whole or not at all."""
    root = ElementTree.Element("testsuites", name="mlmrepro")
    root.extend(suites)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    atomic_write(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def _suite(name: str, comparison: Comparison) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=name)
    follows = {stage: change.stage for change in comparison.changes if change.verdict.fails for stage in change.follows}
    counts = {"failures": 0, "skipped": 0}
    stages = comparison.stages()
    for stage, verdict in stages.items():
        case = ElementTree.SubElement(suite, "testcase", classname=f"mlmrepro.{name}", name=stage)
        changes = [change for change in comparison.changes if change.stage == stage and change.verdict.fails]
        if changes:
            counts["failures"] += 1
            failure = ElementTree.SubElement(case, "failure", message=printable(f"{stage}: {verdict.value}"))
            failure.text = printable("\n".join(line for change in changes for line in _lines(change)))
        elif stage in follows and verdict.fails:
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message=f"follows from {follows[stage]}")
    suite.attrib.update(tests=str(len(stages)), errors="0", **{key: str(count) for key, count in counts.items()})
    return suite


def _lines(change: Change) -> Iterable[str]:
    for finding in change.findings:
        for difference in finding.differences[:5]:
            yield f"{finding.name}: {difference}"


def github_annotations(name: str, comparison: Comparison) -> list[str]:
    """Return GitHub's workflow commands: an error for each failing cause, a notice for each improvement."""
    lines = []
    for change in comparison.changes:
        if not (change.verdict.fails or change.verdict is Verdict.IMPROVEMENT):
            continue
        level = "error" if change.verdict.fails else "notice"
        first = next(iter(_lines(change)), "")
        follows = f" Follows from it: {', '.join(change.follows)}." if change.follows else ""
        title = f"{name}: {change.stage}: {change.verdict.value}"
        lines.append(annotation(level, title, first + follows))
    return lines


def annotation(level: str, title: str, text: str) -> str:
    """Return GitHub's workflow command that marks a job with a notice, warning or error, in one line."""
    return f"::{level} title={_property(title)}::{_message(text)}"


def append_step_summary(markdown: Callable[[], str]) -> bool:
    """Append to the page of a GitHub job, where there is one; tell whether it was."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return False
    with open(path, "a", encoding="utf-8") as file:
        file.write(markdown().rstrip("\n") + "\n")
    return True


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def printable(text: str) -> str:
    """XML holds no control characters, and a log may."""
    return "".join(
        c if c in "\t\n" or " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )
