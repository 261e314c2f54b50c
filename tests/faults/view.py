"""The fault bench on the terminal and as Markdown: what was missed first, then the scores, then every case."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmrepro.compare.judge import Verdict
from mlmrepro.record import STAGES
from mlmrepro.report import document as doc
from mlmrepro.report.markdown import PR_LIMIT, document_markdown
from mlmrepro.report.terminal import say, standard_output
from mlmrepro.report.words import clean, count
from tests.faults.result import LAYERS, BenchResult, CaseResult, Score

__all__ = [
    "failing",
    "faults_headline",
    "faults_markdown",
    "misplaced",
    "outcome",
    "print_faults",
    "scores",
    "smallest_seen",
]

_PASSED, _FAILED = Text("= ", style="dim"), Text("✗ ", style="bold red")


def faults_headline(result: BenchResult) -> str:
    """Return the whole in one line."""
    score, later = Score.of(result.faults), Score.of(result.later)
    sizes = [case for case in result.cases if not case.is_control and not case.required]
    parts = []
    if score.faults:
        parts.append(f"{score.detected} of {count(score.faults, 'fault')} detected, {score.placed} at their stage")
    if later.faults:
        parts.append(f"of those invented later {later.detected} of {later.faults}, {later.placed} at their stage")
    if result.controls:
        alarms = count(len(result.false_alarms), "false alarm")
        parts.append(f"{alarms} in {count(len(result.controls), 'clean control')}")
    if sizes and not (score.faults or later.faults):
        seen = sum(case.detected for case in sizes)
        parts.append(f"{seen} of {count(len(sizes), 'smaller size')} seen, none of which has to be")
    if result.unmeasured:
        parts.append(f"{count(len(result.unmeasured), 'case')} not measured")
    return "; ".join(parts)


def scores(result: BenchResult) -> list[tuple[str, str, str, str]]:
    """Return (stage, faults, detected, placed) of each stage, of all, and of those invented later."""
    rows = []
    for stage in STAGES:
        chosen = [case for case in result.faults if case.stage == stage]
        if chosen:
            rows.append(_row(stage, Score.of(chosen)))
    rows.append(_row("all", Score.of(result.faults)))
    if result.later:
        rows.append(_row("invented later", Score.of(result.later)))
    return rows


def _row(name: str, score: Score) -> tuple[str, str, str, str]:
    def share(part: int) -> str:
        return f"{part} ({part / score.faults:.0%})" if score.faults else "–"

    return name, str(score.faults), share(score.detected), share(score.placed)


def smallest_seen(sizes: Sequence[CaseResult]) -> str:
    """Return the size of a graded fault from which on every larger one is detected, "none" where none is.

    Sizes stand in the catalogue from the smallest fault to the largest, whatever their sign.
    """
    seen = None
    for case in reversed(sizes):
        if not case.detected:
            break
        seen = case
    return f"{seen.size:g} {seen.unit}" if seen and seen.size is not None else "none"


def failing(result: BenchResult) -> list[tuple[str, CaseResult]]:
    """Return what fails the bench, each with the word for it: false alarms, missed faults, what was not measured."""
    missed = [("missed", c) for c in (*result.faults, *result.later) if not c.detected and not c.problem]
    alarms = [("false alarm", c) for c in result.false_alarms]
    return [*alarms, *missed, *(("not measured", c) for c in result.unmeasured)]


def misplaced(result: BenchResult) -> list[CaseResult]:
    """Return the faults that were detected and named at another stage than their own."""
    return [c for c in (*result.faults, *result.later) if c.detected and not c.placed]


def _line(case: CaseResult) -> str:
    return case.problem or "; ".join(f"{a.layer} {a.stage}: {a.what}" for a in case.alarms[:2]) or case.story


def print_faults(result: BenchResult, console: Console | None = None) -> None:
    """Print the headline, what failed, the scores by stage and by layer, and the smallest sizes that were seen."""
    console = console or standard_output()
    console.print()
    say(console, _PASSED if result.passes else _FAILED, faults_headline(result))
    for word, case in failing(result):
        say(console, f" {clean(_line(case))}", bold=f"{word} {case.name}:", indent=2)
    for case in misplaced(result):
        say(console, f" named {case.named}, lies in {case.stage}", bold=f"misplaced {case.name}:", indent=2)
    if result.faults or result.later:
        console.print()
        console.print(_table(("stage", "faults", "detected", "at its stage"), scores(result)), highlight=False)
        console.print()
        seen = result.by_layer([*result.faults, *result.later])
        rows = [(layer, str(seen[layer][0]), str(seen[layer][1])) for layer in LAYERS]
        console.print(_table(("layer", "saw", "alone"), rows), highlight=False)
    if result.families():
        console.print()
        smallest = [(name, smallest_seen(sizes)) for name, sizes in result.families().items()]
        console.print(_table(("graded fault", "detected from"), smallest), highlight=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    return table


def faults_markdown(result: BenchResult, *, limit: int | None = PR_LIMIT) -> str:
    """Return the scores, and every case in a table; never longer than `limit` characters, None for no limit."""
    told = [doc.Item((doc.Strong(word), " ", doc.Code(c.name), f": {_line(c)}")) for word, c in failing(result)]
    told += [
        doc.Item((doc.Strong("misplaced"), " ", doc.Code(c.name), f": named {c.named}, lies in {c.stage}"))
        for c in misplaced(result)
    ]
    blocks: list[doc.Block] = [doc.Items(told)] if told else []
    if result.faults or result.later:
        blocks.append(doc.Table(("stage", "faults", "detected", "at its stage"), scores(result)))
        seen = result.by_layer([*result.faults, *result.later])
        rows = [(layer, str(seen[layer][0]), str(seen[layer][1])) for layer in LAYERS]
        blocks.append(doc.Table(("layer", "faults it saw", "that it alone saw"), rows))
    if result.families():
        smallest = [(doc.Code(name), smallest_seen(sizes)) for name, sizes in result.families().items()]
        blocks.append(doc.Table(("graded fault", "detected from this size on"), smallest))
    head = ("fault", "stage", "severity", "seen by", "named", "story")
    table = doc.Table(head, [_cells(case) for case in result.cases if not case.is_control])
    blocks.append(doc.Section("All faults", [table], fold=doc.In.MARKDOWN) if limit else table)
    verdict = Verdict.IDENTICAL if result.passes else Verdict.REGRESSION
    document = doc.Document(verdict, faults_headline(result), lead=_versions(result), blocks=blocks)
    return document_markdown(document, limit=limit or 10**9)


def _cells(case: CaseResult) -> tuple[doc.Line, ...]:
    missed: doc.Line = doc.Strong("missed") if case.required else "not seen"
    seen = ", ".join(case.layers) or missed
    name: doc.Line = doc.Code(case.name) if case.required else (doc.Code(case.name), " (for the curve)")
    return name, case.stage, case.severity, seen, case.named or "–", case.story


def _versions(result: BenchResult) -> str:
    packages = result.provenance.get("packages", {})
    named = ", ".join(f"{name} {packages[name]}" for name in ("transformers", "datasets", "torch") if name in packages)
    return f"Run with {named}."


def outcome(case: CaseResult) -> str:
    """Return what became of a case, in a few words."""
    if case.problem:
        return f"not measured: {clean(case.problem)}"
    if case.is_control:
        return f"FALSE ALARM: {clean(_line(case))}" if case.detected else "quiet"
    if not case.detected:
        return "MISSED" if case.required else "not seen"
    where = case.named if case.placed else f"{case.named}, not {case.stage}"
    return f"{', '.join(case.layers)}: {where}"
