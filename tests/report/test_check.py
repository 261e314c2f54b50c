"""A check on the terminal, in Markdown and for CI: one answer in words, and only what was measured."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mlmrepro.checkpoint_folder import Unused
from mlmrepro.gate.judge import explain
from mlmrepro.gate.probes import probe_change
from mlmrepro.gate.result import Answer, CheckResult, Rounded
from mlmrepro.report.check import check_document
from mlmrepro.report.check_words import HEADLINE, VERDICT, Scale, changed_probes, facts, origins
from mlmrepro.report.ci import github_commands, write_junit
from mlmrepro.report.markdown import PR_LIMIT, document_markdown
from mlmrepro.report.page import document_page
from mlmrepro.report.words import SYMBOL

from . import checks, words
from . import shown as printed

ALL = [checks.check(), checks.bare(), checks.equal(), checks.broken(), checks.in_words(), checks.hostile()]


def shown(result: CheckResult, width: int = 80, *, colour: bool = False) -> str:
    return printed(check_document(result), width, colour=colour)


def check_markdown(result: CheckResult, *, limit: int = PR_LIMIT) -> str:
    return document_markdown(check_document(result), limit=limit)


@pytest.mark.parametrize("answer", Answer)
def test_the_answer_stands_first_and_the_advice_last(answer: Answer) -> None:
    """The output starts with the answer's own symbol, the answer and its reason, and ends with the next step."""
    for text in (words(shown(checks.check(answer))), words(check_markdown(checks.check(answer)))):
        assert text.removeprefix("### ").startswith(f"{SYMBOL[VERDICT[answer]]} {answer.value}")
        assert "The perplexity rose by 3.10 %, and its whole interval lies above the margin of 1 %." in text
    assert words(shown(checks.check(answer))).endswith("Next: Look at the slices and documents that got worse.")
    assert len({SYMBOL[VERDICT[a]] for a in Answer}) == len(set(HEADLINE.values())) == len(Answer)


def test_colour_only_underlines_the_answer() -> None:
    """A regression is bold red, better is green, inconclusive is yellow; without colour the text is the same."""
    for answer, code in ((Answer.REGRESSION, "1;31"), (Answer.BETTER, "32"), (Answer.INCONCLUSIVE, "33")):
        text = shown(checks.check(answer), colour=True)
        assert f"\x1b[{code}m{SYMBOL[VERDICT[answer]]} {HEADLINE[answer]}" in words(text)
        assert re.sub(r"\x1b\[[\d;]*m", "", text) == shown(checks.check(answer))


def test_the_numbers_are_those_of_the_result() -> None:
    """Both perplexities, relative change, interval, margin, smallest effect, evidence, accuracy and calibration."""
    text = words(shown(checks.check()))
    result = checks.check()
    assert result.paired is not None
    change, low, high, least = (
        math.expm1(nats) for nats in (0.0305, result.paired.low, result.paired.high, result.paired.smallest_effect)
    )
    for part in (
        f"perplexity 40.412 → {40.412 * (1 + change):.5g}, {change:+.2%}".replace("%", " %"),
        f"(98 % interval {100 * low:+.2f} to {100 * high:+.2f} %), margin 1 %",
        f"12,345 masked tokens in 321 documents; the smallest detectable change is {100 * least:.3g} % (power 95 %)",
        "38.1 % → 37.2 % correct, -0.90 points",
        "calibration error 0.021 → 0.034; Brier 0.19 → 0.201",
    ):
        assert part in text
        assert part in words(check_markdown(result)).replace("**:", "").replace("**", "")


def test_slices_that_changed_are_named_and_no_others() -> None:
    """Slices that changed after Holm's correction are listed, the largest change first; the others are only counted."""
    text = words(shown(checks.check()))
    worse = "2 of 5 worse: token frequency once +5.34 %, topic physics +2.12 %"
    assert f"{worse}; 1 of 5 better: topic biology -3.05 %" in text
    assert "chemistry" not in text
    assert "0 of 5 slices changed" in words(shown(checks.equal()))
    many = tuple(checks.part(f"topic {n}", 0.1 + n / 100, "worse") for n in range(60))
    line = dict(facts(checks.check(slices=many)))["slices"]
    assert line.startswith("60 of 60 worse: topic topic 59 +99.37 %, ")
    assert line.endswith("and 56 more slices")


def test_probes_that_changed_are_told_the_most_changed_first() -> None:
    """The line counts changed top words and gives the lowest overlap; three probes follow, with right answers."""
    extra = [checks.probe(f"Prompt {n} <mask>.", "a b c d", "b a d c") for n in range(4)]
    text = words(shown(checks.check(probes=(*checks.PROBES, *extra))))
    assert "the top word changed in 6 of 7 prompts; the lowest rank-biased overlap is 0 " in text
    assert (
        "“Plants need <mask> to grow.” water 0.6 → time 0.6, overlap 0; right answer water: rank 1 → not in the top 5"
        in text
    )
    assert text.count("overlap 0") == 3
    assert "The sun" not in text
    assert [p.prompt for p in changed_probes(checks.check())] == [checks.PROBES[2].prompt, checks.PROBES[1].prompt]
    assert "the top word changed in 0 of 1 prompt" in words(shown(checks.equal()))


def test_a_swap_of_tied_words_is_no_other_first_word() -> None:
    """Two words within the tie band are both first, in whatever order they are listed."""
    rows = [dataclasses.replace(row, probability=0.3) for row in checks.predictions("one", "two")]
    tied = checks.check(probes=(probe_change("A <mask>.", rows, rows[::-1]),))
    assert "the top word changed in 0 of 1 prompt" in dict(facts(tied))["probes"]
    assert changed_probes(tied) == []


def test_what_was_not_measured_is_not_told() -> None:
    """Missing slices, probes, accuracy, notes and advice have no line; there is no None, nan or empty heading."""
    for result in (checks.bare(), checks.broken()):
        for text in (shown(result), check_markdown(result)):
            for word in ("None", "nan", "slices", "probes", "accuracy", "note", "Next", "<details>", "interval of"):
                assert word not in text
    assert "perplexity 40.412 → NaN" in words(shown(checks.broken()))
    assert "98 %" not in shown(checks.broken())


def test_what_the_reason_tells_is_not_told_again() -> None:
    """The gate's reason has both perplexities, interval and margin, so the line that repeats them is left out."""
    result = checks.check()
    assert result.paired is not None
    reason, _ = explain(result.paired, result.margin, result.margin_nats, "perplexity", result.before, result.after)
    text = words(shown(dataclasses.replace(result, reason=reason)))
    assert text.startswith(f"✗ {HEADLINE[result.answer]}. {reason}. evidence 12,345 masked tokens")
    assert text.count("40.412 → 41.664") == text.count("% interval +2.40 to +3.80 %") == 1


def test_the_same_checkpoint_has_no_interval() -> None:
    """If no loss differs beyond rounding, the line says so and gives no smallest detectable change."""
    text = words(shown(checks.equal()))
    assert "40.412 → 40.412, no difference" in text
    assert "detectable" not in text
    assert "interval 0" not in text


def test_too_few_documents_to_see_anything() -> None:
    """An infinite smallest effect is put in words."""
    blind = dataclasses.replace(checks.paired(0.1, 0.5, documents=2), smallest_effect=math.inf)
    text = words(shown(checks.check(Answer.INCONCLUSIVE, paired=blind)))
    assert "in 2 documents; too little text to detect a change of any size" in text
    assert "inf" not in text.replace("inconclusive", "")


def test_words_are_compared_in_bits_per_byte() -> None:
    """Across tokenizers, differences are in bits per byte, words are counted, and a note says why."""
    text = words(shown(checks.in_words()))
    bits = 0.003 / math.log(2)
    assert f"bits per byte 1.032 → 1.0363, {bits:+.2g} (98 % interval" in text
    assert "masked words in" in text
    assert "The tokenizer changed, so words were compared, in bits per byte." in text
    assert "0.2 %" not in text


@pytest.mark.parametrize(
    ("nats", "shown_as"),
    [(0.0, "0 %"), (math.log(1.005), "+0.50 %"), (1e-6, "+0.0001 %"), (-0.5, "-39.35 %"), (1e3, "inf %")],
)
def test_a_relative_change_has_digits_that_tell(nats: float, shown_as: str) -> None:
    """Small changes keep two digits, large ones two decimals; an overflow is infinite, not an error."""
    assert Scale("perplexity").signed(nats) == shown_as


def test_a_full_result_fits_a_screen() -> None:
    """A complete result needs no more than 80 columns and 24 lines."""
    lines = shown(checks.check()).splitlines()
    assert len(lines) <= 24


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("number", range(len(ALL)))
def test_no_line_is_wider_than_the_terminal(number: int, width: int) -> None:
    """Lines fold, whatever text they contain."""
    assert max(map(len, shown(ALL[number], width).splitlines())) <= width


def test_hostile_text_is_harmless() -> None:
    """Control characters do not reach a terminal; Markdown has no foreign tag, table cell, heading or mention."""
    result = checks.hostile()
    assert not re.search(r"[\x00\x1b\u202e]", shown(result))
    page = check_markdown(result)
    assert not re.search(r"[\x00\x1b\u202e]", page)
    outside_code = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", page)
    assert "<script" not in outside_code
    assert not re.search(r"@\w", outside_code)
    assert "\n# y" not in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("limit", [2500, 60_000])
def test_markdown_keeps_within_its_limit(limit: int) -> None:
    """With any number of slices and prompts the comment is well-formed, short enough, and has answer and advice."""
    many = checks.check(
        slices=tuple(checks.part(f"topic {n} {'x' * 60}", 0.01) for n in range(800)),
        probes=tuple(checks.probe(f"Prompt {n} <mask>.", "a b", "b a") for n in range(800)),
    )
    page = check_markdown(many, limit=limit)
    assert len(page) <= limit
    assert page.count("<details>") == page.count("</details>")
    assert page.startswith("### ✗ REGRESSION")
    assert "**Next:**" in page
    assert "more lines in the HTML report" in page
    assert len(check_markdown(many, limit=10**6)) > 60_000 > PR_LIMIT - 1


def test_origins_are_flat_and_what_differs_comes_first() -> None:
    """Nested facts are named by their path; a fact that one side lacks is absent there."""
    candidate = {"checkpoint": "b", "settings": {"p": 0.15, "bf16": True}}
    rows = origins(
        checks.check(provenance={"candidate": candidate, "baseline": {"settings": {"p": 0.15}}, "text": "t"})
    )
    assert [(row.name, row.before, row.after) for row in rows] == [
        ("checkpoint", "absent", "b"),
        ("settings bf16", "absent", "True"),
        ("settings p", "0.15", "0.15"),
        ("text", "t", "t"),
    ]
    assert [row.differs for row in rows] == [True, True, False, False]


@pytest.mark.parametrize("answer", Answer)
def test_junit_fails_where_the_gate_is_shut(answer: Answer, tmp_path: Path) -> None:
    """The one case fails for a regression and for an inconclusive result, with a message that says which."""
    path = tmp_path / "out" / "junit.xml"
    write_junit(path, check_document(checks.check(answer), "my\x00model"))
    (suite,) = ElementTree.parse(path).getroot()
    (case,) = suite.findall("testcase")
    failures = case.findall("failure")
    assert suite.attrib["name"] == "my?model"
    assert (suite.attrib["tests"], suite.attrib["errors"], suite.attrib["skipped"]) == ("1", "0", "0")
    assert len(failures) == int(suite.attrib["failures"]) == (answer.exit_code != 0)
    if failures:
        assert answer.value in failures[0].attrib["message"]
        assert "1 of 5 better: topic biology" in (failures[0].text or "")
    if answer is Answer.INCONCLUSIVE:
        assert "does not show whether the new checkpoint is worse" in failures[0].attrib["message"]


@pytest.mark.parametrize(
    ("answer", "level"),
    [(Answer.REGRESSION, "error"), (Answer.INCONCLUSIVE, "warning"), (Answer.SAME, None), (Answer.BETTER, None)],
)
def test_github_is_told_what_does_not_pass(answer: Answer, level: str | None) -> None:
    """A regression gives one error line, an inconclusive result one warning line, a pass nothing."""
    lines = github_commands(check_document(checks.check(answer, reason="Up 3 %,\nsee: below.")))
    assert len(lines) == (level is not None)
    for line in lines:
        assert line.startswith(f"::{level} title=mlmrepro check%3A {answer.value}%3A ")
        assert line.endswith("::Up 3 %25, see: below. Look at the slices and documents that got worse.")
        assert "\n" not in line


@pytest.mark.parametrize("answer", Answer)
def test_what_is_not_used_stands_in_every_output(answer: Answer, tmp_path: Path) -> None:
    """Terminal, Markdown, page, JSON and JUnit list unused files for every answer, and nothing if there are none."""
    adapter = Unused("adapter", ("adapter_config.json",), "model.safetensors")
    pickle = Unused("pickle", (checks.HOSTILE,), "model.safetensors")
    for result, said in ((checks.check(answer, unused=(adapter, pickle)), True), (checks.check(answer), False)):
        write_junit(tmp_path / "junit.xml", check_document(result, "new"))
        outputs = [shown(result, 200), check_markdown(result), document_page(check_document(result))]
        outputs += [(tmp_path / "junit.xml").read_text(), str(result.to_dict())]
        for text in outputs:
            assert ("adapter_config.json" in text.replace("\\_", "_").replace("&#95;", "_")) is said
        for text in map(words, outputs[:4]):
            assert ("is not applied" in text) is said
            assert ("Pickles are never read" in text) is said
            assert "<script>" not in text or "<script>" not in outputs[2]


@pytest.mark.parametrize(
    ("side", "sentence"),
    [
        ("candidate", "weights are the baseline's rounded to bfloat16, so the difference of +3.10 % is only rounding."),
        ("baseline", "weights are the candidate's rounded to bfloat16, so the difference of +3.10 % is only rounding."),
        ("evaluation", "one of them was scored in bfloat16, so the difference of +3.10 % is only rounding."),
    ],
)
def test_a_number_format_is_named_in_every_output(side: str, sentence: str, tmp_path: Path) -> None:
    """If two checkpoints differ only by a number format, the output says so."""
    result = checks.check(Answer.SAME, rounded=Rounded(side, "bfloat16"))
    write_junit(tmp_path / "junit.xml", check_document(result, "new"))
    for text in (shown(result, 300), check_markdown(result), (tmp_path / "junit.xml").read_text()):
        assert sentence in words(text.replace("\\", ""))
    assert sentence in words(document_page(check_document(result)).replace("&#39;", "'"))
    equal = dataclasses.replace(checks.equal(), rounded=Rounded(side, "bfloat16"))
    assert "bfloat16." in shown(equal, 300)
    assert "is only rounding" not in shown(equal, 300)
