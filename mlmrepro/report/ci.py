"""Documents for CI: JUnit XML, GitHub annotations and the GitHub step summary."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

from mlmrepro.files import atomic_write
from mlmrepro.report.document import Case, Document, Suite
from mlmrepro.report.markdown import document_markdown

__all__ = ["append_step_summary", "github_commands", "write_junit"]


def write_junit(path: Path, document: Document) -> None:
    """Write a document's test suites to one JUnit file atomically."""
    root = ElementTree.Element("testsuites", name="mlmrepro")
    root.extend(map(_suite, document.suites))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    atomic_write(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def _suite(suite: Suite) -> ElementTree.Element:
    outcomes = [case.outcome for case in suite.cases]
    counts = {f"{kind}s": outcomes.count(kind) for kind in ("failure", "error")}
    counts |= {"tests": len(outcomes), "skipped": outcomes.count("skipped")}
    element = ElementTree.Element("testsuite", name=_printable(suite.name))
    element.attrib.update({name: str(number) for name, number in counts.items()})
    element.extend(_case(case, suite.name) for case in suite.cases)
    if suite.output:
        ElementTree.SubElement(element, "system-out").text = _printable(suite.output)
    return element


def _case(case: Case, suite: str) -> ElementTree.Element:
    group = ".".join(filter(None, ("mlmrepro", suite, case.group)))
    element = ElementTree.Element("testcase", classname=_printable(group), name=_printable(case.name))
    if case.seconds is not None:
        element.attrib["time"] = f"{case.seconds:.3f}"
    if case.outcome:
        outcome = ElementTree.SubElement(element, case.outcome, message=_printable(case.message))
        outcome.text = _printable(case.text) or None
    elif case.text:
        ElementTree.SubElement(element, "system-out").text = _printable(case.text)
    return element


def github_commands(document: Document) -> list[str]:
    """Return the GitHub workflow command for each alert, one line each."""
    return [f"::{each.level} title={_property(each.title)}::{_message(each.text)}" for each in document.alerts]


def append_step_summary(document: Document) -> bool:
    """Append to the step summary of a GitHub job, if there is one; return whether there is."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return False
    with open(path, "a", encoding="utf-8") as file:
        file.write(document_markdown(document).rstrip("\n") + "\n")
    return True


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _printable(text: str) -> str:
    """Replace the characters that XML does not allow, such as control characters in a log."""
    return "".join(
        c if c in "\t\n" or " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )
