"""The document of laws, the observations with bounds: broken ones come first, with numbers and likely cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlmrepro.compare.judge import Verdict
from mlmrepro.observations.result import BoundVerdict, ObservationResult, Value
from mlmrepro.report import document as doc
from mlmrepro.report.words import clean, count, number

__all__ = ["laws_document", "result_item"]

_VERDICT = {
    BoundVerdict.HOLDS: Verdict.IDENTICAL,
    BoundVerdict.NOT_APPLICABLE: Verdict.IDENTICAL,
    BoundVerdict.KNOWN: Verdict.EXPECTED,
    BoundVerdict.UNMEASURED: Verdict.UNMEASURED,
    BoundVerdict.BROKEN: Verdict.REGRESSION,
}
_COUNTED = {
    BoundVerdict.BROKEN: "broken",
    BoundVerdict.UNMEASURED: "unmeasured",
    BoundVerdict.KNOWN: "known to be broken in these versions",
    BoundVerdict.NOT_APPLICABLE: "not applicable",
}


def laws_document(
    results: Sequence[ObservationResult], *, checkpoint: str = "", numbers: bool = False, notes: Sequence[str] = ()
) -> doc.Document:
    """Return the counts, each broken or unmeasured law with its numbers and likely cause, then the known faults.

    `numbers` shows the values of all other laws on the terminal too; `notes` say how the text was read.
    """
    worst = max((r.verdict for r in results), key=list(BoundVerdict).index, default=BoundVerdict.UNMEASURED)
    return doc.Document(
        _VERDICT[worst],
        _headline(results),
        facts=[("note", doc.sentence(note)) for note in notes],
        blocks=list(_blocks(results, numbers)),
        subject=f"Do the bounds hold for {checkpoint}?" if checkpoint else "",
        suites=[doc.Suite(checkpoint, [_case(r) for r in results], "\n".join(f"note: {note}" for note in notes))],
    )


def _headline(results: Sequence[ObservationResult]) -> str:
    """Return the counts of all verdicts in one line."""
    verdicts = [result.verdict for result in results]
    parts = [f"{verdicts.count(BoundVerdict.HOLDS)} of {count(len(results), 'law')} hold"]
    return ", ".join(parts + [f"{verdicts.count(v)} {word}" for v, word in _COUNTED.items() if v in verdicts])


def _blocks(results: Sequence[ObservationResult], numbers: bool) -> Iterator[doc.Block]:
    failing = sorted((r for r in results if r.verdict.fails), key=lambda r: r.verdict is not BoundVerdict.BROKEN)
    for result in failing:
        yield doc.Section("", [doc.Items([result_item(result)])])
    known = [r for r in results if r.verdict is BoundVerdict.KNOWN]
    if known:
        items = [
            doc.Item((_mark(r), " ", doc.Code(r.name), ": ", *_known(r)), verdict=_VERDICT[r.verdict]) for r in known
        ]
        yield doc.Section("Known faults of these versions", [doc.Items(items, brief=len(items))], fold=doc.In.MARKDOWN)
    absent = [r for r in results if r.verdict is BoundVerdict.NOT_APPLICABLE]
    if absent:
        items = [doc.Item((doc.Code(r.name), f": {r.problem}"), verdict=_VERDICT[r.verdict]) for r in absent]
        yield doc.Section("Not applicable", [doc.Items(items, brief=len(items))], shown=doc.In.TERMINAL)
    if numbers:
        items = [result_item(r) for r in results if not r.verdict.fails]
        yield doc.Section("All other laws", [doc.Items(items, brief=len(items))], shown=doc.In.TERMINAL)
    rows: list[list[doc.Line]] = [
        [doc.Code(r.name), r.group, _mark(r), r.claim, "; ".join(_number(each) for each in r.values)] for r in results
    ]
    table = doc.Table(["law", "group", "verdict", "claim", "numbers"], rows)
    yield doc.Section("All laws", [table], "laws", shown=doc.In.MARKDOWN | doc.In.PAGE, fold=doc.In.MARKDOWN)


def _mark(result: ObservationResult) -> doc.Mark:
    symbol = "·" if result.verdict is BoundVerdict.NOT_APPLICABLE else ""
    return doc.Mark(_VERDICT[result.verdict], result.verdict.value, symbol=symbol)


def _known(result: ObservationResult) -> tuple[doc.Span, ...]:
    return doc.joined([doc.sentence(result.known), *map(doc.Link, result.link.split())], " ")


def result_item(result: ObservationResult) -> doc.Item:
    """Return one result: its verdict, claim and problem, a table of its values, and the likely cause of a failure."""
    notes: list[tuple[str, doc.Line]] = [("", result.claim), ("", result.problem)]
    notes += [("", _known(result))] if result.known else []
    if result.verdict.fails:
        notes += [("likely cause", result.cause), ("source", result.source)]
    rows: list[list[doc.Line]] = [
        [
            each.name,
            _shown(each) if each.holds else doc.Mark(Verdict.REGRESSION, _shown(each)),
            str(each.bound),
            each.bound.reason,
        ]
        for each in result.values
    ]
    return doc.Item(
        (_mark(result), " ", doc.Code(result.name), f" ({result.group}, {result.seconds:.1f} s)"),
        notes=[(name, note) for name, note in notes if note],
        blocks=[doc.Table(["", "", "", ""], rows)] if rows else [],
        verdict=_VERDICT[result.verdict],
        name=result.group,
    )


def _shown(each: Value) -> str:
    text = number(each.value, 4) if isinstance(each.value, float) else clean(each.value)
    return f"{text} {each.unit}".strip()


def _number(each: Value) -> str:
    return f"{each.name} {_shown(each)}" + (f" ({each.bound})" if each.bound else "")


def _case(result: ObservationResult) -> doc.Case:
    """Return a test case: broken and unmeasured laws fail, known and inapplicable ones are skipped."""
    case = {"name": result.name, "group": result.group}
    if result.verdict.fails:
        lines = [f"{each.name}: {_shown(each)}, expected {each.bound}" for each in result.broken]
        text = "\n".join([*lines, result.problem, f"likely cause: {result.cause}"])
        message = f"{result.verdict.value}: {result.claim}"
        return doc.Case(**case, outcome="failure", message=message, text=text, seconds=result.seconds)
    if result.verdict is BoundVerdict.HOLDS:
        return doc.Case(**case, seconds=result.seconds)
    return doc.Case(**case, outcome="skipped", message=result.known or result.problem, seconds=result.seconds)
