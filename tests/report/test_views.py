"""Comparisons and drifts on the terminal and in Markdown."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from mlmrepro.compare.changes import Comparison
from mlmrepro.compare.drift import Drift, Outcome, compare_records
from mlmrepro.compare.judge import Verdict
from mlmrepro.record import STAGES
from mlmrepro.report.comparison import Source, comparison_document
from mlmrepro.report.drift import drift_document
from mlmrepro.report.markdown import PR_LIMIT, document_markdown
from mlmrepro.report.outline import Outline

from . import shown, words
from .records import drift, golden, record

HOSTILE = "a|b `c` <script>alert(1)</script> [/i] @someone \x1b[31m\n# x"


def compared(source: Source, width: int = 80) -> str:
    return shown(comparison_document(source), width)


def drifted(found: Drift, width: int = 80) -> str:
    return shown(drift_document(found), width)


def comparison_markdown(source: Source, limit: int = PR_LIMIT) -> str:
    return document_markdown(comparison_document(source), limit=limit)


def drift_markdown(found: Drift, limit: int = PR_LIMIT) -> str:
    return document_markdown(drift_document(found), limit=limit)


@pytest.fixture
def whole(tmp_path: Path) -> Drift:
    return drift(tmp_path / "golden")


def test_a_comparison_tells_verdict_packages_settings_and_stages() -> None:
    """A comparison says what changed, where it began, what inherits it, what else differs, and what to do."""
    before, after = record(), record("5.23.0", "5.2.0", blocks__train_blocks=42, masked_batches__draw="0")
    after.config["guide"]["seed"] = 1
    text = words(compared(compare_records(Outcome("old", before), Outcome("new", after))))
    for part in (
        "✗ REGRESSION",
        "seed 42 → 1",
        "transformers 4.41.2 → 5.23.0",
        "first divergence blocks.train_blocks 43 → 42",
        "blocks changed by itself (inherited by masked_batches): train_blocks 43 → 42 (-1)",
        "Next: make the records again with the same settings. They differ in seed",
    ):
        assert part in text


def test_several_records_stand_in_columns() -> None:
    """Records compared with the same first record have one column each, on the terminal and in Markdown."""
    first = Outcome("first", record())
    others = [Outcome("same", record()), Outcome("other", record(model__attention="sdpa"))]
    steps = [compare_records(first, outcome) for outcome in others]
    assert re.search(r"model +≈? ?= identical +✗ REGRESSION", compared(steps))
    assert "| stage | `same` | `other` |" in comparison_markdown(steps)
    assert "| model | = identical | ✗ **REGRESSION** |" in comparison_markdown(steps)


def test_a_bare_comparison_says_nothing_of_packages() -> None:
    """A comparison without records names no packages."""
    assert "packages" not in compared(Comparison([], ("golden", "new")))


def test_a_bare_comparison_shows_the_packages_that_it_is_given() -> None:
    """A comparison with goldens takes its packages and settings from the caller."""
    text = comparison_markdown(Comparison([], ("golden", "new"), {"torch": ("1", "2")}))
    assert "| `torch` | `1` | `2` |" in text


def test_many_changes_are_cut_with_a_count() -> None:
    """A hundred changes fit a screen and a pull request, and those left out are counted."""
    extra = {f"model__off_path.v{n}": n for n in range(100)}
    other = {name: value + 1 for name, value in extra.items()}
    step = compare_records(Outcome("a", record(**extra)), Outcome("b", record(**other)))
    assert "and 80 more changes (80 of model)" in words(compared(step))
    assert len(comparison_markdown(step, limit=5000)) <= 5000
    assert "more lines in the HTML report" in comparison_markdown(step, limit=5000)


def test_the_drift_shows_every_stage_and_environment(whole: Drift) -> None:
    """The map has a row for each environment, even a failed one, and a column for each stage."""
    text = drifted(whole)
    for outcome in whole.outcomes:
        assert re.search(rf"^{re.escape(outcome.name)} .*", text, re.MULTILINE)
    table = drift_markdown(whole).split("\n| ")
    assert all(f" {stage} " in table[1] for stage in STAGES)
    assert sum(line.count("|") == table[1].count("|") for line in table) == len(whole.outcomes) + 3  # with the head


def test_the_drift_tells_each_change_once_where_it_began(whole: Drift) -> None:
    """A change is listed at its own step, with its cause, its packages and its verdict."""
    text = words(drifted(whole))
    assert text.count("model changed by itself: attention 'eager' → 'sdpa'") == 1
    assert "Δ expected change model changed" in text
    assert re.search(r"declared cause: SDPA is the default \[transformers>=[\d.]+\] <https://example.org/notes>", text)
    assert text.count("loss changed by itself") == 1
    assert "caused by: transformers" in text
    assert "t5.1: no record: pip found no wheel (log: logs/t5.1.log)" in text
    assert "3 changes between t4.41 and t5.23: 1 expected, 2 REGRESSION." in text
    assert "first divergence model.attention 'eager' → 'sdpa', at step t4.41 → t4.48" in text


def test_the_map_tells_without_colour(whole: Drift) -> None:
    """Words and marks are enough to tell expected, regressed, inherited and new changes apart."""
    lines = [line.split() for line in drifted(whole).splitlines() if line.startswith("t")]
    rows = {line[0]: line for line in lines if len(line) == 1 + len(STAGES)}
    assert rows["t4.48"][-4:] == ["exp•", "=", "=", "="]
    assert rows["t5.23"][-4:] == ["exp", "REGR•", "(REGR)•", "REGR°•"]


@pytest.mark.parametrize("width", [80, 60, 40])
def test_no_line_is_wider_than_the_terminal(whole: Drift, width: int) -> None:
    """Everything fits into 80 columns, and folds below that."""
    step = whole.steps[-1]
    for text in (drifted(whole, width=width), compared(step, width=width)):
        assert max(map(len, text.splitlines())) <= width


def test_a_value_that_is_wrong_everywhere_is_told(tmp_path: Path) -> None:
    """A value that is wrong everywhere changes in no step, but fails against the goldens; the report says why."""
    goldens = golden(tmp_path, record(model__attention="sdpa"))
    found = Drift([Outcome("a", record()), Outcome("b", record())], goldens)
    assert found.verdict is Verdict.REGRESSION
    assert [(d.finding.name, d.names) for d in Outline(found).unexplained] == [("attention", ("a", "b"))]
    assert "model.attention 'sdpa' → 'eager', in all 2 environments" in words(drifted(found))
    assert "attention 'sdpa' → 'eager'" in drift_markdown(found)


def test_a_cell_leads_to_the_change_behind_it() -> None:
    """A change and its reversal link to their own steps; an unchanged cell between them links to the first."""
    records = [record(), record(model__attention="sdpa"), record(model__attention="sdpa"), record()]
    rows = Outline(Drift([Outcome(str(n), each) for n, each in enumerate(records)])).rows
    cells = [row.cells[STAGES.index("model")] for row in rows]
    assert [cell.anchor for cell in cells] == ["", "step-1-1-model", "step-1-1-model", "step-3-1-model"]
    assert [cell.changed for cell in cells] == [False, True, False, True]


def test_hostile_text_is_shown_as_it_is_written() -> None:
    """Names, problems, tokens and settings are never read as markup, HTML, mentions or escape sequences."""
    rows = [{"score": 0.5, "token": 1, "token_str": HOSTILE, "sequence": HOSTILE}]
    other = record("5.23.0", "5.2.0", fill_mask__pipeline=rows, **{f"model__off_path.{HOSTILE}": HOSTILE})
    other.config["guide"][HOSTILE] = HOSTILE
    outcomes = [Outcome("a", record()), Outcome(HOSTILE, other), Outcome("c", None, HOSTILE, HOSTILE)]
    found = Drift(outcomes)
    for text in (drifted(found, width=200), compared(found.steps, width=200)):
        assert "\x1b" not in text
        assert "[/i]" in text
    for page in (drift_markdown(found), comparison_markdown(found.steps)):
        outside_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", page)
        assert "<script" not in outside_code
        assert not re.search(r"@\w", outside_code)
        tables = [line for line in page.splitlines() if line.startswith("| ")]
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
        assert len(cells) <= 2  # one cell count per kind of table
        assert "\n# x" not in page


def test_nothing_measured_is_said_and_fails() -> None:
    """A report without records does not pass."""
    for found in (Drift([]), Drift([Outcome("a", None, "boom")])):
        assert found.exit_code == 1
        assert "Nothing was measured" in drifted(found)
        assert "Nothing was measured" in drift_markdown(found)
    assert "boom" in drift_markdown(Drift([Outcome("a", None, "boom")]))


def test_one_record_alone(tmp_path: Path) -> None:
    """A single record is compared with the goldens; without goldens the report says there is nothing to compare."""
    alone = Outcome("a", record(model__attention="sdpa"))
    assert "there is nothing to compare it with" in words(drifted(Drift([alone])))
    against = Drift([alone], golden(tmp_path, record()))
    assert "1 change between the goldens and a: 1 REGRESSION." in words(drifted(against))


def test_a_record_that_lacks_stages_is_unmeasured() -> None:
    """A record without its last stages is shown, but does not pass."""
    half = record("5.23.0", "5.2.0")
    for stage in STAGES[4:]:
        del half.stages[stage]
    found = Drift([Outcome("a", record()), Outcome("b", half)])
    assert found.verdict is Verdict.UNMEASURED
    assert re.search(r"^b +(= +){4}none•", drifted(found), re.MULTILINE)
    assert "not measured on one side" in drift_markdown(found)


def test_losses_that_are_no_numbers_are_shown() -> None:
    """NaN in a record is a regression with its position, not an error in the report."""
    found = Drift([Outcome("a", record()), Outcome("b", record(loss__step_losses=[math.nan] * 6))])
    assert "step_losses[0] 4.5 → NaN (not a finite number)" in words(drifted(found))


@pytest.mark.parametrize("limit", [3000, 60_000])
def test_markdown_keeps_within_its_limit(limit: int) -> None:
    """With any number of changes a comment stays below GitHub's limit, is well-formed, and says what is left out."""
    outcomes = []
    for n in range(12):
        values = {f"{stage}__off_path.value_{i}_{'x' * 60}": [n, i] for stage in STAGES for i in range(20)}
        outcomes.append(Outcome(f"environment {n}", record(f"5.{n}.0", "5.2.0", **values)))
    page = drift_markdown(Drift(outcomes), limit=limit)
    assert len(page) <= limit
    assert page.count("<details>") == page.count("</details>")
    assert "HTML report" in page
    assert PR_LIMIT < 65_536


def test_equal_drifts_give_equal_text(tmp_path: Path) -> None:
    """Equal drifts give the same Markdown."""
    assert drift_markdown(drift(tmp_path / "a")) == drift_markdown(drift(tmp_path / "b"))


def test_observations_that_were_not_asked_for_are_named() -> None:
    """The terminal and Markdown say which expected observations a record does not have on purpose."""
    before, after = record(), record()
    before.asked = {f"loss.o{n}": "" for n in range(6)}
    after.asked = {"fill_mask.default_top_k": ""}
    step = compare_records(Outcome("a", before), Outcome("b", after))
    said = "loss.o0, loss.o1, loss.o2, loss.o3, and 2 more observations"
    assert f"not asked for {said}" in words(compared(step))
    assert f"**not asked for**: {said}" in comparison_markdown(step).replace("\\", "").replace("`", "")


def test_goldens_of_an_adopted_checkpoint_are_named(tmp_path: Path) -> None:
    """The reader sees which model the page is about."""
    of = record()
    of.config["subject"] = "my-bert"
    folder = golden(tmp_path, of)
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["provenance"]["config"] = of.config
        path.write_text(json.dumps(content), encoding="utf-8")
    text = words(drifted(Drift([Outcome("now", record())], folder)))
    assert "compared with the goldens of my-bert (transformers 4.41.2, datasets 2.19.2)" in text
