"""The fault bench as it is shown: scores, what failed, the sizes that are seen, in two forms."""

from __future__ import annotations

import io
import re

from rich.console import Console

from mlmrepro.report.progress import CountDisplay
from tests.faults.result import Alarm, BenchResult, CaseResult
from tests.faults.view import faults_headline, faults_markdown, outcome, print_faults, smallest_seen


def case(name: str, stage: str, *alarms: tuple[str, str], part: str = "masks", **fields: object) -> CaseResult:
    found = tuple(Alarm(layer, at, "counts <b>") for layer, at in alarms)
    return CaseResult(name, stage, "serious" if stage else "", f"Story of {name}.", part, found, **fields)  # type: ignore[arg-type]


def rates() -> list[CaseResult]:
    seen = (("golden", "masked_batches"), ("law", "masked_batches"))
    return [
        case(f"rate_{size:g}", "masked_batches", *alarms, family="rate", size=size, unit="share", required=required)
        for size, alarms, required in (
            (0.149, (), False), (0.145, seen[:1], False), (0.14, seen, True), (0.12, seen, True),
        )
    ]  # fmt: skip


GOOD = BenchResult({"packages": {"transformers": "5.23.0"}}, [*rates(), case("seeds-1", "", part="seeds")])
BAD = BenchResult(
    {"packages": {}},
    [
        *rates(),
        case("tie", "model"),
        case("late_one", "loss", ("law", "evaluation"), part="later"),
        case("threads-1", "", ("law", "loss"), part="threads"),
        case("dies", "loss", problem="its process ended with -9"),
    ],
)


def printed(result: BenchResult) -> str:
    out = io.StringIO()
    print_faults(result, Console(file=out, width=120, markup=False))
    return out.getvalue()


def test_the_headline_has_the_three_numbers() -> None:
    """Detected, placed, false alarms; and what was not measured, where there is any."""
    assert faults_headline(GOOD) == "2 of 2 faults detected, 2 at their stage; 0 false alarms in 1 clean control"
    assert faults_headline(BAD) == (
        "2 of 4 faults detected, 2 at their stage; of those invented later 1 of 1, 0 at their stage; "
        "1 false alarm in 1 clean control; 1 case not measured"
    )
    curve = BenchResult({}, [each for each in rates() if not each.required])
    assert faults_headline(curve) == "1 of 2 smaller sizes seen, none of which has to be"


def test_what_failed_is_named() -> None:
    """False alarms, missed, misplaced and unmeasured cases stand under the headline, with why."""
    text = printed(BAD)
    for part in (
        "✗ 2 of 4", "false alarm threads-1: law loss: counts <b>", "missed tie: Story of tie.",
        "misplaced late_one: named evaluation, lies in loss", "not measured dies: its process ended with -9",
        "invented later",
    ):  # fmt: skip
        assert part in text
    assert printed(GOOD).strip().startswith("=")


def test_the_smallest_size_counts_from_the_largest_down() -> None:
    """A lucky hit below a missed size is no sensitivity."""
    sizes = rates()
    assert smallest_seen(sizes) == "0.145 share"
    lucky = [sizes[1], sizes[0], *sizes[2:]]
    assert smallest_seen(lucky) == "0.14 share"
    assert smallest_seen(sizes[:1]) == "none"


def test_markdown_lists_every_fault() -> None:
    """The committed table has a row for each fault, controls are counted, and a limit folds it."""
    text = faults_markdown(BAD, limit=None)
    assert len(re.findall(r"^\| `", text, flags=re.MULTILINE)) == 7 + 1  # the graded fault has a row of its own
    assert "**missed** `tie`" in text
    assert "<details>" not in text
    assert "<details>" in faults_markdown(BAD)


def test_progress_is_a_line_for_each_case() -> None:
    """Where the output is no terminal, each case is told as it ends, with what became of it."""
    display = CountDisplay(None, console=Console(file=(out := io.StringIO()), width=200, markup=False))
    for number, each in enumerate([*BAD.cases, *GOOD.cases[-1:]], start=1):
        display.done(each.name, number, 9, outcome(each))
    lines = out.getvalue().splitlines()
    assert lines[0] == "1/9 rate_0.149: not seen"
    assert lines[3] == "4/9 rate_0.12: golden, law: masked_batches"
    assert lines[4] == "5/9 tie: MISSED"
    assert lines[5] == "6/9 late_one: law: evaluation, not loss"
    assert lines[6] == "7/9 threads-1: FALSE ALARM: law loss: counts <b>"
    assert lines[7] == "8/9 dies: not measured: its process ended with -9"
    assert lines[8] == "9/9 seeds-1: quiet"
