"""The words that all reports share: verdicts, values, and one line for a change, its cause, its packages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlmrepro.compare.changes import Change
from mlmrepro.compare.judge import Finding, Verdict
from mlmrepro.compare.values import ABSENT, Difference
from mlmrepro.record import Part, RunRecord

__all__ = [
    "BESIDE",
    "CHANGED",
    "LEGEND",
    "SHORT",
    "SHORT_STAGE",
    "SYMBOL",
    "Pairs",
    "Quantities",
    "and_more",
    "cause_line",
    "change_line",
    "change_words",
    "clean",
    "count",
    "difference_line",
    "finding_line",
    "headline",
    "next_step",
    "number",
    "pairs_line",
    "quantities",
    "tally",
    "value",
]

Pairs = Mapping[str, tuple[Any, Any]]  # what differs, by name: (before, after)
Quantities = Mapping[tuple[str, str], str]  # what a float measures, by (stage, name)

# A verdict never rests on colour alone: a symbol, and a word short enough for a narrow column.
SYMBOL = {
    Verdict.IDENTICAL: "=",
    Verdict.WITHIN_NOISE: "≈",
    Verdict.EXPECTED: "Δ",
    Verdict.IMPROVEMENT: "↑",
    Verdict.INCONCLUSIVE: "?",
    Verdict.UNMEASURED: "–",
    Verdict.REGRESSION: "✗",
}
SHORT = {
    Verdict.IDENTICAL: "same",
    Verdict.WITHIN_NOISE: "noise",
    Verdict.EXPECTED: "exp",
    Verdict.IMPROVEMENT: "better",
    Verdict.INCONCLUSIVE: "unsure",
    Verdict.UNMEASURED: "none",
    Verdict.REGRESSION: "REGR",
}
LEGEND = {
    Verdict.IDENTICAL: "identical",
    Verdict.WITHIN_NOISE: "differs by rounding only",
    Verdict.EXPECTED: "changed as the goldens declare",
    Verdict.IMPROVEMENT: "changed for the better",
    Verdict.INCONCLUSIVE: "too uncertain to tell",
    Verdict.UNMEASURED: "not measured on one side",
    Verdict.REGRESSION: "changed, and nothing declares it",
}
SHORT_STAGE = {
    "dataset": "data",
    "flatten": "flat",
    "input_ids": "ids",
    "blocks": "blocks",
    "masked_batches": "masks",
    "model": "model",
    "loss": "loss",
    "evaluation": "eval",
    "fill_mask": "fill",
}
BESIDE = "°"  # marks a stage that changed beside the guide's path only
CHANGED = "•"  # marks a stage that changed since the environment before it
_UNITS = {"nats": " nats"}  # the other quantities are bare numbers
_WIDTH = 60  # characters of a value in a line


def clean(text: object) -> str:
    r"""Return text in one line, with what is not printable written as an escape such as ``\x1b``.

    Names, tokens and warnings come from users and libraries: a terminal must not obey them, a page not hide them.
    """
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def count(number: int, noun: str) -> str:
    """Return ``1 change``, ``2 changes``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def number(figure: Any, digits: int = 6) -> str:
    """Return a number in a few digits; NaN and the infinities by name, what is no number as a dash."""
    if isinstance(figure, bool) or not isinstance(figure, (int, float)):
        return "–"
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{figure:.{digits}g}" if math.isfinite(figure) else str(figure).replace("nan", "NaN")


def value(content: Any, width: int = _WIDTH) -> str:
    """Return any value of a record in at most about `width` characters; long ones by their size."""
    if content is ABSENT:
        return "nothing"
    if isinstance(content, float):
        return number(content)
    text = clean(repr(content))
    if len(text) <= width:
        return text
    if isinstance(content, (list, dict)):
        return count(len(content), "value" if isinstance(content, list) else "key")
    return f"{text[: width - 1]}…"


def quantities(record: RunRecord | None) -> Quantities:
    """Return what the floats of a record measure."""
    return {(o.stage, o.name): o.quantity for o in record or ()}


def change_line(change: Change, measures: Quantities | None = None, findings: int = 2) -> str:
    """Return a change in one line: which stage, what in it, by how much, and what follows."""
    shown = [finding_line(finding, measures) for finding in change.findings[:findings]]
    rest = [finding.name for finding in change.findings[findings:]]
    line = f"{change_words(change)}: {'; '.join([*shown, *and_more(rest, 'value', named=3)])}"
    return line + (f"; follows: {', '.join(change.follows)}" if change.follows else "")


def change_words(change: Change) -> str:
    """Return what became of a stage: changed by itself, only in the flow, beside the guide's path, or not measured."""
    beside = change.part is Part.BESIDE
    subject = f"{change.stage}, beside the guide's path," if beside else change.stage
    if change.verdict is Verdict.UNMEASURED:
        return f"{subject} was not measured on one side"
    if change.verdict is Verdict.INCONCLUSIVE:
        return f"{subject} may have changed"
    if beside:
        return f"{change.stage} changed beside the guide's path"
    return (
        f"{change.stage} changed by itself"
        if change.by_itself
        else f"{change.stage} changed, but not on its stored input"
    )


def cause_line(change: Change) -> str:
    """Return the declared cause, the versions that it was declared for, and its link; "" where none is declared."""
    when = f"[{' and '.join(change.when)}]" if change.when else ""
    return " ".join(clean(text) for text in (change.reason, when, f"<{change.link}>" if change.link else "") if text)


def finding_line(finding: Finding, measures: Quantities | None = None) -> str:
    """Return one value's name with its first difference, and how many more there are."""
    name = clean(finding.name)
    if not finding.differences:
        return name
    first, *rest = finding.differences
    unit = _UNITS.get((measures or {}).get((finding.stage, finding.name), ""), "")
    line = f"{_place(name, first)} {_difference(first, unit)}"
    if not rest:
        return line
    sized = [(abs(d.size), d) for d in finding.differences if d.size is not None and math.isfinite(d.size)]
    _, largest = max(sized, key=lambda pair: pair[0], default=(0.0, first))
    line += f" and {count(len(rest), 'more difference')}"
    if largest is not first:
        line += f", the largest {largest.size:+.2g}{unit} at {clean(largest.place)}"
    return line


def difference_line(finding: Finding, difference: Difference, measures: Quantities | None = None) -> str:
    """Return one difference of a value, without the value's name."""
    unit = _UNITS.get((measures or {}).get((finding.stage, finding.name), ""), "")
    return f"{clean(difference.place)} {_difference(difference, unit)}".strip()


def _place(name: str, difference: Difference) -> str:
    place = clean(difference.place)
    return f"{name}{place}" if place.startswith("[") or not place else f"{name} {place}"


def _difference(difference: Difference, unit: str) -> str:
    before, after, note = difference.expected, difference.obtained, clean(difference.note)
    if isinstance(before, (list, dict)) and isinstance(after, (list, dict)) and note:
        return note
    if before is ABSENT or after is ABSENT:
        text = f"{value(after)} obtained" if before is ABSENT else f"{value(before)} expected, nothing obtained"
        return f"{text}, {note}" if note else text
    left, right = _apart(before, after)
    if not note and difference.size is not None and math.isfinite(difference.size):
        note = f"{difference.size:+.2g}{unit}"
    return f"{left} → {right}" + (f" ({note})" if note else "")


def _apart(before: Any, after: Any) -> tuple[str, str]:
    """Return two values as text, floats with as many digits as it takes to tell them apart."""
    if isinstance(before, float) and isinstance(after, float):
        for digits in range(5, 18):
            left, right = number(before, digits), number(after, digits)
            if left != right:
                return left, right
    return value(before), value(after)


def and_more(rest: Sequence[str], noun: str, named: int = 0) -> list[str]:
    """Return ``["and 5 more values (a, 3 of b, …)"]``, or nothing where nothing is left; equal names are counted."""
    if not rest:
        return []
    counts = Counter(clean(name) for name in rest)
    names = [name if times == 1 else f"{times} of {name}" for name, times in counts.items()]
    names = names[:named] + (["…"] if len(names) > named else [])
    return [
        f"and {len(rest):,} more {noun}{'' if len(rest) == 1 else 's'}" + (f" ({', '.join(names)})" if named else "")
    ]


def pairs_line(pairs: Pairs, limit: int = 6) -> str:
    """Return what differs, such as ``transformers 4.41.2 → 5.23.0, evaluate absent → 0.4.6``."""
    shown = [f"{clean(name)} {_side(a)} → {_side(b)}" for name, (a, b) in list(pairs.items())[:limit]]
    rest = [f"and {len(pairs) - limit} more"] if len(pairs) > limit else []
    return ", ".join([*shown, *rest])


def _side(content: Any) -> str:
    if content is None:
        return "absent"
    return clean(content) if isinstance(content, str) else value(content)


def tally(verdicts: Iterable[Verdict]) -> str:
    """Return how many there are of each verdict, best first: ``12 expected, 2 REGRESSION``."""
    listed = list(verdicts)
    counts = [(listed.count(verdict), verdict.value.removesuffix(" change")) for verdict in Verdict]
    return ", ".join(f"{number} {word}" for number, word in counts if number)


def headline(verdict: Verdict) -> str:
    """Return a verdict as a sentence that answers whether an upgrade is safe."""
    return {
        Verdict.IDENTICAL: "Nothing changed",
        Verdict.WITHIN_NOISE: "Nothing changed beyond rounding",
        Verdict.EXPECTED: "Every change is expected",
        Verdict.IMPROVEMENT: "Nothing got worse, something improved",
        Verdict.INCONCLUSIVE: "Inconclusive: some values are too uncertain to tell",
        Verdict.UNMEASURED: "Not everything was measured",
        Verdict.REGRESSION: "REGRESSION: something changed that nothing declares",
    }[verdict]


def next_step(verdict: Verdict, finding: Finding | None = None, settings: Pairs | None = None) -> str:
    """Return what to do about a verdict, in a line; `finding` is the first that carries it."""
    if settings and verdict.is_change:
        names = ", ".join(clean(name) for name in settings)
        return f"make both records with the same settings first: {names} differ, and every change may come from that."
    if verdict is Verdict.REGRESSION and finding is not None:
        return (
            f"look at {finding.stage}.{clean(finding.name)}. If it was meant to change, declare it with "
            "`mlmrepro expect` for the versions that change it; if not, it is a regression: hold the upgrade back."
        )
    return {
        Verdict.EXPECTED: "nothing to do, the goldens declare every change.",
        Verdict.IMPROVEMENT: "nothing fails; renew the goldens to keep what improved.",
        Verdict.INCONCLUSIVE: "measure again with more data: what is not sure does not pass.",
        Verdict.UNMEASURED: "make the missing records, all with this version of mlmrepro: what was not measured "
        "does not pass.",
        Verdict.REGRESSION: "look at the changes below.",
    }.get(verdict, "nothing to do.")
