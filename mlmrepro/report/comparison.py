"""The document of one comparison, or of several with the same reference; changes as items, test cases and alerts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlmrepro.compare.changes import Change, Comparison
from mlmrepro.compare.drift import Step
from mlmrepro.compare.judge import Finding, Verdict, worst
from mlmrepro.record import ALL_STAGES, Part
from mlmrepro.report import document as doc
from mlmrepro.report.words import (
    Pairs,
    Quantities,
    and_more,
    change_words,
    count,
    difference_line,
    finding_line,
    headline,
    next_step,
    pairs_line,
    side,
    tally,
)

__all__ = ["Source", "alerts", "change_item", "comparison_document", "declared_cause", "pairs_table", "suite"]

_NAMED = 4  # observations in a line
_DIFFERENCES = 40  # listed per value

Source = Step | Comparison | Sequence[Step | Comparison]


def comparison_document(source: Source) -> doc.Document:
    """Return the document of one comparison, or of several that share the first record, one column each."""
    sources = [source] if isinstance(source, (Step, Comparison)) else source
    compared = [each if isinstance(each, Comparison) else each.comparison for each in sources]
    if not compared:
        return doc.Document(Verdict.UNMEASURED, "Nothing was compared")
    verdict = worst(each.verdict for each in compared)
    return doc.Document(
        verdict,
        headline(verdict),
        facts=[fact for each in compared for fact in _facts(each)],
        blocks=[
            doc.Section("", [_stages(compared)]),
            *(section for each in compared for section in _sections(each, named=len(compared) > 1)),
        ],
        next_step=doc.sentence(_next(next(each for each in compared if each.verdict is verdict))),
        suites=[suite(each.names[1], each) for each in compared],
        alerts=[alert for each in compared for alert in alerts(each.names[1], each)],
    )


def _facts(each: Comparison) -> Iterator[tuple[str, doc.Line]]:
    before, after = map(doc.Code, each.names)
    yield "compared", (before, " → ", after)
    first = each.first_divergence
    if first is not None:
        yield "first divergence", f"{first.stage}.{finding_line(first, _quantities(each))}"
    if each.settings:
        yield "settings", pairs_line(each.settings)
    if each.packages:
        yield "packages", pairs_line(each.packages)
    if each.not_asked:
        names = [*each.not_asked[:_NAMED], *and_more(each.not_asked[_NAMED:], "observation")]
        yield "not asked for", ", ".join(names)


def _quantities(each: Comparison) -> Quantities:
    return {(f.stage, f.name): f.quantity for f in each.findings}


def _next(each: Comparison) -> str:
    first = each.first_divergence
    carrying = sorted(
        (f for f in each.findings if f.verdict is each.verdict),
        key=lambda f: (f is not first, f.part is Part.OFF_PATH),
    )
    return next_step(each.verdict, next(iter(carrying), None), each.settings)


def _stages(compared: Sequence[Comparison]) -> doc.Table:
    """Return the verdict on each stage: one column a record, or of a single one how many values changed."""
    rows: list[list[doc.Line]] = []
    for stage in ALL_STAGES:
        cells = [_cell(each, stage) for each in compared]
        if not any(cells):
            continue
        if len(compared) == 1 and cells[0] is not None:
            findings = [finding for finding in compared[0].findings if finding.stage == stage]
            changed = sum(finding.verdict.is_change for finding in findings)
            verdict, cause = cells[0]
            rows.append([stage, doc.Mark(verdict), f"{changed} of {len(findings)}", cause])
        else:
            rows.append([stage, *(_mark(*cell) if cell else "no record" for cell in cells)])
    several = [doc.Code(each.names[1]) for each in compared]
    return doc.Table(
        ["stage", *(several if len(compared) > 1 else ["verdict", "values changed", "inherited from"])], rows
    )


def _cell(each: Comparison, stage: str) -> tuple[Verdict, str] | None:
    """Return a stage's verdict and the stage it inherits it from; None if neither side has the stage."""
    verdict = each.stages().get(stage)
    own = {c.stage for c in each.changes if verdict is not None and c.verdict.fails == verdict.fails}
    cause = "" if stage in own else each.follows().get(stage, "")
    return None if verdict is None else (verdict, cause)


def _mark(verdict: Verdict, cause: str) -> doc.Mark:
    return doc.Mark(verdict, note=f"inherited from {cause}" if cause else "")


def _sections(each: Comparison, *, named: bool) -> Iterator[doc.Section]:
    changes = each.changes
    where: doc.Line = (" in ", doc.Code(each.names[1])) if named else ""
    if changes:
        # The list may be cut, so the worst verdicts come first, and the guide's own path before the rest.
        order = sorted(changes, key=lambda c: (-list(Verdict).index(c.verdict), c.part is Part.OFF_PATH))
        title = doc.joined(
            [count(len(changes), "change"), where, f": {tally(change.verdict for change in changes)}"], ""
        )
        items = doc.Items([change_item(change, _quantities(each)) for change in order])
        yield doc.Section(title, [items], fold=doc.In.MARKDOWN)
    if each.settings or each.packages:
        title = doc.joined(["Settings and packages that differ", where], "")
        table = pairs_table({**each.settings, **each.packages}, each.names)
        yield doc.Section(title, [table], shown=doc.In.MARKDOWN | doc.In.PAGE, fold=doc.In.MARKDOWN)


def pairs_table(pairs: Pairs, names: Sequence[str]) -> doc.Table:
    """Return a table of what differs between two records."""
    rows = [[doc.Code(name), *(doc.Code(side(each)) for each in sides)] for name, sides in pairs.items()]
    return doc.Table(["setting or package", *map(doc.Code, names)], rows)


def change_item(
    change: Change, measures: Quantities, notes: Sequence[tuple[str, doc.Line]] = (), anchor: str = ""
) -> doc.Item:
    """Return a change with its values, its declared cause, and further notes."""
    inherited = f" (inherited by {', '.join(change.follows)})" if change.follows else ""
    cause = declared_cause(change)
    return doc.Item(
        (doc.Mark(change.verdict), f" {change_words(change)}{inherited}"),
        [_point(finding, measures) for finding in change.findings],
        [*notes, *([("declared cause", cause)] if cause else [])],
        verdict=change.verdict,
        name=change.stage,
        anchor=anchor,
    )


def declared_cause(change: Change) -> doc.Line:
    """Return the declared cause with its versions and its link, or "" if no cause is declared."""
    when: doc.Line = ("[", doc.Code(" and ".join(change.when)), "]") if change.when else ""
    return doc.joined(
        [part for part in (doc.sentence(change.reason), when, change.link and doc.Link(change.link)) if part], " "
    )


def _point(finding: Finding, measures: Quantities) -> doc.Point:
    found = finding.differences if len(finding.differences) > 1 else ()
    lines = [doc.Code(difference_line(finding, difference, measures)) for difference in found[:_DIFFERENCES]]
    return doc.Point(doc.Code(finding_line(finding, measures)), finding.name, lines, len(found) - len(lines))


def suite(name: str, comparison: Comparison) -> doc.Suite:
    """Return one test case per stage, so that CI shows each failure once: a stage that inherits one is skipped."""
    follows = {stage: change.stage for change in comparison.changes if change.verdict.fails for stage in change.follows}
    cases = []
    for stage, verdict in comparison.stages().items():
        changes = [change for change in comparison.changes if change.stage == stage and change.verdict.fails]
        if changes:
            text = "\n".join(line for change in changes for line in _lines(change))
            cases.append(doc.Case(stage, "failure", f"{stage}: {verdict.value}", text))
        elif stage in follows and verdict.fails:
            cases.append(doc.Case(stage, "skipped", f"inherited from {follows[stage]}"))
        else:
            cases.append(doc.Case(stage))
    return doc.Suite(name, cases)


def alerts(name: str, comparison: Comparison) -> Iterator[doc.Alert]:
    """Yield an error for each failing change, a notice for each improvement."""
    for change in comparison.changes:
        if change.verdict.fails or change.verdict is Verdict.IMPROVEMENT:
            first = next(iter(_lines(change)), "")
            follows = f" Inherited by: {', '.join(change.follows)}." if change.follows else ""
            level = "error" if change.verdict.fails else "notice"
            yield doc.Alert(level, f"{name}: {change.stage}: {change.verdict.value}", first + follows)


def _lines(change: Change) -> Iterator[str]:
    for finding in change.findings:
        for difference in finding.differences[:5]:
            yield f"{finding.name}: {difference}"
