"""The document of a drift: what an upgrade changed, in which stage, since which version, and what declares it."""

from __future__ import annotations

from collections.abc import Iterator

from mlmrepro.compare.drift import Drift, Outcome
from mlmrepro.compare.judge import Verdict
from mlmrepro.record import Part, RunRecord
from mlmrepro.report import document as doc
from mlmrepro.report import plots, tables
from mlmrepro.report.comparison import alerts, change_item, suite
from mlmrepro.report.outline import Cell, Deviation, Outline, Row, StepOutline, short_names
from mlmrepro.report.words import LEGEND, SHORT, SHORT_STAGE, SYMBOL, clean, count, headline, number, pairs_line, tally

__all__ = ["drift_document", "unmeasured_document"]

_BRIEF = 12  # changes of a step shown on the terminal, regressions in Markdown
_DEVIATIONS = 300
_OFF_PATH, _CHANGED = "°", "•"  # mark a cell that changed only off the guide's path, or in its own step
_PAGE_WORDS = {
    Verdict.IDENTICAL: "same",
    Verdict.WITHIN_NOISE: "rounding",
    Verdict.EXPECTED: "expected",
    Verdict.IMPROVEMENT: "better",
    Verdict.INCONCLUSIVE: "unsure",
    Verdict.UNMEASURED: "none",
    Verdict.REGRESSION: "REGRESSION",
}


def drift_document(drift: Drift) -> doc.Document:
    """Return the verdict, the map of stages, each change once where it began, the figures and the origin."""
    outline = Outline(drift)
    problems = {outcome.name: outcome.problem for outcome in outline.missing}
    return doc.Document(
        drift.verdict,
        outline.headline,
        lead=outline.summary,
        facts=list(_facts(outline)),
        blocks=list(_blocks(outline)),
        next_step=doc.sentence(outline.next_step),
        subject="What an upgrade changed in the masked language modeling guide",
        suites=[
            *(suite(name, comparison) for name, comparison in drift.comparisons.items()),
            *(doc.Suite(name, [doc.Case("record", "error", problem)]) for name, problem in problems.items()),
        ],
        alerts=[
            *(alert for name, comparison in drift.comparisons.items() for alert in alerts(name, comparison)),
            *(doc.Alert("error", f"{name}: no record", clean(problem)) for name, problem in problems.items()),
        ],
    )


def _facts(outline: Outline) -> Iterator[tuple[str, doc.Line]]:
    if outline.first_divergence:
        yield "first divergence", outline.first_divergence
    if outline.settings:
        yield "settings differ", pairs_line(outline.settings)
    if outline.rows:
        yield "compared with", outline.gate


def _blocks(outline: Outline) -> Iterator[doc.Section]:
    drift = outline.drift
    if outline.rows:
        yield _map(outline)
    yield from _regressions(outline)
    if outline.steps:
        note = "Each change is listed once, at the stage where it began, together with the stages that inherit it."
        steps = [_step(step) for step in outline.steps]
        yield doc.Section("What each step changed", steps, "changes", note, fold=doc.In.MARKDOWN)
    if outline.variations:
        yield _variations(outline)
    yield from _differing(outline)
    drawings = plots.drawings(drift)
    if drawings:
        yield doc.Section("Figures", [doc.Figure(drawing) for drawing in drawings], "figures", shown=doc.In.PAGE)
    first = next((outcome.record for outcome in drift.outcomes if outcome.record is not None), None)
    for section in (tables.ranks(drift), tables.warned(drift), tables.environments(drift), _origin(first)):
        if section is not None:
            yield section


def _map(outline: Outline) -> doc.Section:
    rows: list[list[doc.Line]] = []
    for n, row in enumerate(outline.rows):
        if row.aside and not outline.rows[n - 1].aside:
            rows.append(["one package only:"])
        cells = row.cells or [Cell(stage, Verdict.UNMEASURED) for stage in outline.stages]
        rows.append([_name(row, outline), *map(_cell, cells)])
    head: list[doc.Line] = ["environment", *(doc.Short(stage, SHORT_STAGE[stage]) for stage in outline.stages)]
    blocks: list[doc.Block] = [doc.Table(head, rows, tight=True), doc.Text(_legend(outline))]
    if outline.missing:
        blocks.append(
            doc.Items([_problem(outcome) for outcome in outline.missing], "environment", len(outline.missing))
        )
    note = f"Each stage of the guide, compared with {outline.reference}. On the page, a cell links to what explains it."
    return doc.Section("Which stages changed in which environment", blocks, "map", note)


def _name(row: Row, outline: Outline) -> doc.Line:
    """Return an environment's name; the page adds whether it passes."""
    base = outline.drift.chain[0] if outline.drift.goldens is None and outline.drift.chain else None
    word = "reference" if row.outcome is base else "fails" if row.verdict.fails else "passes"
    return (
        doc.Strong(row.outcome.name),
        doc.Short(f" {word if row.cells else 'no record'}{_versions(row.outcome)}", ""),
    )


def _versions(outcome: Outcome) -> str:
    """Return the varied versions, unless the environment's name contains them."""
    known = {name: outcome.versions.get(name) for name in ("transformers", "datasets")}
    if all(version is None or version in outcome.name for version in known.values()):
        return ""
    return "".join(f", {name} {version or 'absent'}" for name, version in known.items())


def _cell(cell: Cell) -> doc.Line:
    if cell.verdict is None:
        return "no record"
    short = SHORT[cell.verdict] if cell.verdict.is_change else SYMBOL[cell.verdict]  # no word if nothing changed
    marks = f"{_OFF_PATH if cell.off_path else ''}{_CHANGED if cell.changed else ''}"
    note = f"from {cell.follows}" if cell.follows else "off-path" if cell.off_path else ""
    words = f"{_PAGE_WORDS[cell.verdict]}{f' {_CHANGED}' if cell.changed else ''}"
    return doc.Mark(cell.verdict, words, f"({short}){marks}" if cell.follows else f"{short}{marks}", note, cell.anchor)


def _legend(outline: Outline) -> doc.Line:
    cells = [cell for row in outline.rows for cell in row.cells]
    present = {cell.verdict for cell in cells} | {row.verdict for row in outline.rows if not row.cells}
    found: list[doc.Line] = [
        (doc.Mark(v, _PAGE_WORDS[v], SHORT[v] if v.is_change else SYMBOL[v]), f" {LEGEND[v]}")
        for v in Verdict
        if v in present
    ]
    if any(cell.follows for cell in cells):
        found.append("(…) or “from”: inherited from another stage")
    if any(cell.off_path for cell in cells):
        found.append(f"{_OFF_PATH} or “off-path”: only arguments, files and defaults that the guide does not use")
    if any(cell.changed for cell in cells):
        found.append(f"{_CHANGED} changed since the environment above")
    return doc.joined(found, "; ")


def unmeasured_document(outcome: Outcome) -> doc.Document:
    """Return the document of an environment without a record."""
    return doc.Document(
        Verdict.UNMEASURED,
        headline(Verdict.UNMEASURED),
        blocks=[doc.Items([_problem(outcome)], "environment")],
        suites=[doc.Suite(outcome.name, [doc.Case("record", "error", outcome.problem)])],
        alerts=[doc.Alert("error", f"{outcome.name}: no record", clean(outcome.problem))],
    )


def _problem(outcome: Outcome) -> doc.Item:
    log = f" (log: {outcome.log})" if outcome.log else ""
    head: doc.Line = (doc.Strong(outcome.name), f": no record: {outcome.problem or 'reason unknown'}{log}")
    return doc.Item(head, verdict=Verdict.UNMEASURED, name=outcome.name)


def _regressions(outline: Outline) -> Iterator[doc.Section]:
    """Yield the regressions of all steps for Markdown, which folds the steps."""
    failing = [(s, i) for s in outline.steps for i in s.items if i.change.verdict is Verdict.REGRESSION]
    failing.sort(key=lambda pair: pair[1].change.part is Part.OFF_PATH)  # the guide's own path first
    items = [
        change_item(item.change, step.measures, [("step", _between(step)), *_behind(item.behind)])
        for step, item in failing
    ]
    if len(items) > _BRIEF:
        items[_BRIEF:] = [doc.Item(f"and {count(len(items) - _BRIEF, 'more regression')}")]
    if items:
        yield doc.Section("Regressions", [doc.Items(items)], shown=doc.In.MARKDOWN)


def _between(step: StepOutline) -> doc.Line:
    return (doc.Code(step.step.before.name), " → ", doc.Code(step.step.after.name))


def _behind(packages: tuple[str, ...]) -> list[tuple[str, doc.Line]]:
    return [("caused by", ", ".join(packages))] if packages else []


def _step(outlined: StepOutline) -> doc.Section:
    title = doc.joined([_between(outlined), tally(item.change.verdict for item in outlined.items)], ": ")
    if not outlined.items:
        return doc.Section(doc.joined([_between(outlined), "nothing changed"], ": "), [], outlined.anchor)
    items = [change_item(i.change, outlined.measures, _behind(i.behind), i.anchor) for i in outlined.items]
    return doc.Section(title, [doc.Items(items, brief=_BRIEF)], outlined.anchor, pairs_line(outlined.step.packages))


def _variations(outline: Outline) -> doc.Section:
    """Return what one package changed by itself: a line each, the page has the changes."""
    lines, parts = [], []
    for outlined in outline.variations:
        stages = ", ".join(dict.fromkeys(item.change.stage for item in outlined.items)) or "nothing"
        packages = pairs_line(outlined.step.packages, 2)
        lines.append(doc.Item(doc.joined([_between(outlined), f" ({packages}): changed {stages}"], "")))
        items = [change_item(item.change, outlined.measures, anchor=item.anchor) for item in outlined.items]
        title = doc.joined(
            [_between(outlined), tally(i.change.verdict for i in outlined.items) or "nothing changed"], ": "
        )
        note = pairs_line(outlined.step.packages)
        parts.append(doc.Section(title, [doc.Items(items)], outlined.anchor, note, shown=doc.In.PAGE, fold=doc.In.PAGE))
    note = "Environments in which only one package changed, with its dependencies, and their neighbours on the path."
    brief = doc.Section("", [doc.Items(lines, "environment")], shown=doc.In.TERMINAL | doc.In.MARKDOWN)
    return doc.Section("One package at a time", [brief, *parts], "packages", note, fold=doc.In.MARKDOWN)


def _differing(outline: Outline) -> Iterator[doc.Section]:
    """Yield the values that differ from the reference: on the terminal those that no step explains, elsewhere all."""
    total = len(outline.drift.comparisons)

    def item(deviation: Deviation, anchor: str = "") -> doc.Item:
        finding, where = deviation.finding, short_names(deviation.names, total=total)
        head: doc.Line = (
            doc.Mark(finding.verdict),
            " ",
            doc.Code(f"{finding.stage}.{deviation.line}"),
            f", in {where}",
        )
        return doc.Item(head, verdict=finding.verdict, name=finding.stage, anchor=anchor)

    if outline.unexplained:
        title = f"Different from {outline.reference}, but not changed by any step"
        items = doc.Items([item(deviation) for deviation in outline.unexplained], "value", _BRIEF)
        yield doc.Section(title, [items], shown=doc.In.TERMINAL)
    if outline.deviations:
        left = len(outline.deviations) - _DEVIATIONS
        items = doc.Items(
            [item(deviation, deviation.anchor) for deviation in outline.deviations[:_DEVIATIONS]], "value"
        )
        yield doc.Section(
            f"{count(len(outline.deviations), 'value')} that differ from {outline.reference}",
            [items, *([doc.Text(f"and {left} more")] if left > 0 else [])],
            "reference",
            shown=doc.In.MARKDOWN | doc.In.PAGE,
            fold=doc.In.MARKDOWN if outline.unexplained else doc.In.MARKDOWN | doc.In.PAGE,
        )


def _origin(record: RunRecord | None) -> doc.Section | None:
    """Return the origin and the settings of the first record."""
    if record is None:
        return None
    origin = record.provenance
    commit, guide = origin.get("commit"), origin.get("guide")
    packages = origin.get("packages") or {}
    facts = {
        "mlmrepro": packages.get("mlmrepro"),
        "commit": f"{commit.get('id')}{' with uncommitted changes' if commit.get('dirty') else ''}"
        if isinstance(commit, dict)
        else None,
        "python": origin.get("python"),
        "platform": " ".join(str(part) for part in (origin.get("platform") or {}).values()),
        "device": " ".join(f"{key} {part}" for key, part in (origin.get("device") or {}).items()),
        "processors": number(origin.get("cpus")),
        "guide": f"{guide.get('page')}, SHA-256 {str(guide.get('sha256'))[:16]}" if isinstance(guide, dict) else None,
    }
    rows: list[list[doc.Line]] = [[name, str(fact)] for name, fact in facts.items() if fact]
    settings: list[list[doc.Line]] = [[name, doc.Code(setting)] for name, setting in tables.settings(record)]
    title = count(len(settings), "setting")
    blocks: list[doc.Block] = [
        doc.Table(["", ""], rows),
        doc.Section(title, [doc.Table(["", ""], settings)], fold=doc.In.PAGE),
    ]
    note = "From the first record. Differences in the other records are shown above."
    return doc.Section("Settings and origin", blocks, "origin", note, shown=doc.In.PAGE)
