"""Output for CI: JUnit XML, GitHub annotations and the GitHub step summary."""

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
    """Write one test suite per environment and one test case per stage, so that CI shows each failure once.

    A stage that only inherits a failure is skipped, and the message names the stage it comes from. `problems` are
    environments without a record; they are reported as errors.
    """
    suites = [_suite(name, comparison) for name, comparison in comparisons.items()]
    for name, problem in problems.items():
        suite = ElementTree.Element("testsuite", name=name, tests="1", failures="0", errors="1", skipped="0")
        case = ElementTree.SubElement(suite, "testcase", classname=f"mlmrepro.{name}", name="record")
        ElementTree.SubElement(case, "error", message=printable(problem))
        suites.append(suite)
    write_suites(path, suites)


def write_suites(path: Path, suites: Iterable[ElementTree.Element]) -> None:
    """Write test suites to one JUnit file atomically."""
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
            ElementTree.SubElement(case, "skipped", message=f"inherited from {follows[stage]}")
    suite.attrib.update(tests=str(len(stages)), errors="0", **{key: str(count) for key, count in counts.items()})
    return suite


def _lines(change: Change) -> Iterable[str]:
    for finding in change.findings:
        for difference in finding.differences[:5]:
            yield f"{finding.name}: {difference}"


def github_annotations(name: str, comparison: Comparison) -> list[str]:
    """Return GitHub workflow commands: an error for each failing change, a notice for each improvement."""
    lines = []
    for change in comparison.changes:
        if not (change.verdict.fails or change.verdict is Verdict.IMPROVEMENT):
            continue
        level = "error" if change.verdict.fails else "notice"
        first = next(iter(_lines(change)), "")
        follows = f" Inherited by: {', '.join(change.follows)}." if change.follows else ""
        title = f"{name}: {change.stage}: {change.verdict.value}"
        lines.append(annotation(level, title, first + follows))
    return lines


def annotation(level: str, title: str, text: str) -> str:
    """Return the GitHub workflow command for a notice, warning or error, on one line."""
    return f"::{level} title={_property(title)}::{_message(text)}"


def append_step_summary(markdown: Callable[[], str]) -> bool:
    """Append to the step summary of a GitHub job, if there is one; return whether there is."""
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
    """Replace the characters that XML does not allow, such as control characters in a log."""
    return "".join(
        c if c in "\t\n" or " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )
