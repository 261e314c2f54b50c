"""Reports on laws: broken laws come first with number, bound and likely cause, safe for a terminal and for XML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

from mlmrepro.observations.observation import value
from mlmrepro.observations.result import BoundVerdict, ObservationResult, Value
from mlmrepro.report.ci import write_junit
from mlmrepro.report.laws import laws_document
from mlmrepro.report.markdown import document_markdown
from mlmrepro.report.page import document_page

from . import shown, words


def result(name: str, verdict: BoundVerdict, *measured: Value, **fields: str) -> ObservationResult:
    return ObservationResult(
        name, "model", "model", f"The claim of {name}.", "Devlin et al. 2019", f"The cause of {name}", verdict,
        measured, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


HOLDS = result("padding", BoundVerdict.HOLDS, value("logit", 1e-7, "largest logit", at_most=1e-5, reason="rounding"))
BROKEN = result(
    "both_directions",
    BoundVerdict.BROKEN,
    value(
        "earlier_logit", 0.0, "change of an earlier logit", at_least=0.01, unit="logits", reason="far above rounding"
    ),
)
UNMEASURED = result("second_save", BoundVerdict.UNMEASURED, problem="no file\x1b[31m")
KNOWN = result("accumulation", BoundVerdict.KNOWN, known="the loss ignores its divisor", link="https://example.org/1")
ABSENT = result("dropout", BoundVerdict.NOT_APPLICABLE, problem="the model has no dropout")
ALL = [HOLDS, KNOWN, UNMEASURED, ABSENT, BROKEN]


def printed(results: list[ObservationResult], *, numbers: bool = False) -> str:
    return shown(laws_document(results, numbers=numbers), 100)


def laws_markdown(results: list[ObservationResult]) -> str:
    return document_markdown(laws_document(results))


def test_the_headline_counts_every_verdict() -> None:
    """The headline counts each verdict that occurs, and no others."""
    assert laws_document(ALL).headline == (
        "1 of 5 laws hold, 1 broken, 1 unmeasured, 1 known to be broken in these versions, 1 not applicable"
    )
    assert laws_document([HOLDS]).headline == "1 of 1 law hold"


def test_a_broken_law_comes_first_with_number_bound_and_cause() -> None:
    """All facts on a broken law stand together, before unmeasured laws and known faults."""
    text = printed(ALL)
    order = [text.index(name) for name in ("both_directions", "second_save", "accumulation", "dropout")]
    assert order == sorted(order)
    for part in (
        "The claim of both_directions.", "change of an earlier logit", "0 logits", "at least 0.01",
        "far above rounding", "likely cause: The cause of both_directions", "Devlin et al. 2019",
        "the loss ignores its divisor <https://example.org/1>", "the model has no dropout",
    ):  # fmt: skip
        assert part in text
    assert "padding" not in text
    assert "\x1b" not in text


def test_notes_on_the_text_stand_in_every_form(tmp_path: Path) -> None:
    """Notes, such as the text column, are on the terminal, in Markdown and in JUnit; without notes there is no line."""
    note = "the text of a.jsonl is its column 'body'"
    document = laws_document(ALL, checkpoint="m", notes=[note])
    assert note in words(shown(document))
    assert "- **note**: the text of a" in document_markdown(document)
    assert "column &#39;body&#39;" in document_page(document)
    write_junit(tmp_path / "laws.xml", document)
    assert ElementTree.parse(tmp_path / "laws.xml").findtext(".//system-out") == f"note: {note}"
    write_junit(tmp_path / "laws.xml", laws_document(ALL))
    assert "note" not in printed(ALL) + laws_markdown(ALL) + (tmp_path / "laws.xml").read_text()


def test_numbers_shows_what_every_law_measured() -> None:
    """With `numbers`, laws that hold are shown with their measurements."""
    text = printed(ALL, numbers=True)
    assert "padding" in text
    assert "1e-07" in text


def test_markdown_tells_the_same() -> None:
    """Markdown has the headline, the broken law with its numbers, and a folded table of all laws."""
    text = laws_markdown(ALL)
    assert text.startswith("### ✗ 1 of 5 laws hold")
    assert "**BROKEN** `both_directions`" in text
    assert "| change of an earlier logit | ✗ **0 logits** | at least 0.01 | far above rounding |" in text
    assert text.count("| `") == len(ALL)
    assert laws_markdown([HOLDS]).startswith("### = 1 of 1 law")


def test_junit_has_a_case_for_each_law(tmp_path: Path) -> None:
    """Broken and unmeasured laws fail, known and inapplicable ones are skipped, and the file is valid XML."""
    write_junit(tmp_path / "laws.xml", laws_document(ALL, checkpoint="my-model"))
    suite = ElementTree.parse(tmp_path / "laws.xml").getroot()[0]
    assert {key: suite.attrib[key] for key in ("tests", "failures", "skipped")} == {
        "tests": "5", "failures": "2", "skipped": "2",
    }  # fmt: skip
    failed = {case.attrib["name"]: case[0].text for case in suite if len(case) and case[0].tag == "failure"}
    assert set(failed) == {"both_directions", "second_save"}
    assert "expected at least 0.01" in (failed["both_directions"] or "")


def test_each_link_of_a_declared_law_is_one() -> None:
    """A known fault may have several reasons, each with its own link."""
    two = dataclasses.replace(KNOWN, link="https://example.org/1 https://example.org/2")
    assert "<https://example.org/1> <https://example.org/2>" in laws_markdown([two])
