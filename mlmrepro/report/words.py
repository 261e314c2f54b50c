"""The wording that all reports share: verdicts, values, and lines for changes, causes and packages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlmrepro.compare.changes import Change
from mlmrepro.compare.judge import Finding, Verdict
from mlmrepro.compare.values import ABSENT, Difference
from mlmrepro.record import TESTS, Part, RunRecord

__all__ = [
    "LEGEND",
    "SHORT",
    "SHORT_STAGE",
    "SYMBOL",
    "Pairs",
    "Quantities",
    "and_more",
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
    "side",
    "tally",
    "value",
]

Pairs = Mapping[str, tuple[Any, Any]]  # what differs, by name: (before, after)
Quantities = Mapping[tuple[str, str], str]  # the quantity of each float, by (stage, name)

# Colour is never the only sign of a verdict: each has a symbol, and a word that fits a narrow column.
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
    Verdict.EXPECTED: "changed as declared in the goldens",
    Verdict.IMPROVEMENT: "improved",
    Verdict.INCONCLUSIVE: "too uncertain to judge",
    Verdict.UNMEASURED: "not measured on one side",
    Verdict.REGRESSION: "unexpected change",
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
    "tests": "tests",
}
_UNITS = {"nats": " nats"}  # the other quantities are bare numbers
_WIDTH = 60  # characters of a value in a line


def clean(text: object) -> str:
    r"""Return text on one line, with unprintable characters written as escapes such as ``\x1b``.

    Names, tokens and warnings come from users and libraries: a terminal must not execute them, nor a page hide them.
    """
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def count(number: int, noun: str) -> str:
    """Return ``1 change``, ``2 changes``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def number(figure: Any, digits: int = 6) -> str:
    """Format a number with few digits: NaN and the infinities by name, anything but a number as a dash."""
    if isinstance(figure, bool) or not isinstance(figure, (int, float)):
        return "–"
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{figure:.{digits}g}" if math.isfinite(figure) else str(figure).replace("nan", "NaN")


def value(content: Any, width: int = _WIDTH) -> str:
    """Format any value of a record in at most about `width` characters; show the size of long lists and dicts."""
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
    """Return the quantity of each observation in a record."""
    return {(o.stage, o.name): o.quantity for o in record or ()}


def change_words(change: Change) -> str:
    """Say how a stage changed: by itself, only in the full run, off the guide's path, or not measured.

    What the user's own tests found is not of the guide: their values say the rest.
    """
    if change.stage == TESTS:
        return "your tests"
    off_path = change.part is Part.OFF_PATH
    subject = f"{change.stage}, off the guide's path," if off_path else change.stage
    if change.verdict is Verdict.UNMEASURED:
        return f"{subject} was not measured on one side"
    if change.verdict is Verdict.INCONCLUSIVE:
        return f"{subject} may have changed"
    if off_path:
        return f"{change.stage} changed off the guide's path"
    return (
        f"{change.stage} changed by itself"
        if change.by_itself
        else f"{change.stage} changed, but not when run on its stored input"
    )


def finding_line(finding: Finding, measures: Quantities | None = None) -> str:
    """Return a value's name, its first difference, and the number of other differences."""
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
    """Return one difference of a value, without the name of the value."""
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
    """Format two values; give floats enough digits to look different."""
    if isinstance(before, float) and isinstance(after, float):
        for digits in range(5, 18):
            left, right = number(before, digits), number(after, digits)
            if left != right:
                return left, right
    return value(before), value(after)


def and_more(rest: Sequence[str], noun: str, named: int = 0) -> list[str]:
    """Return ``["and 5 more values (a, 3 of b, …)"]``, or an empty list if nothing is left; equal names are counted."""
    if not rest:
        return []
    counts = Counter(clean(name) for name in rest)
    names = [name if times == 1 else f"{times} of {name}" for name, times in counts.items()]
    names = names[:named] + (["…"] if len(names) > named else [])
    return [
        f"and {len(rest):,} more {noun}{'' if len(rest) == 1 else 's'}" + (f" ({', '.join(names)})" if named else "")
    ]


def pairs_line(pairs: Pairs, limit: int = 6) -> str:
    """List the differences, such as ``transformers 4.41.2 → 5.23.0, evaluate absent → 0.4.6``."""
    shown = [f"{clean(name)} {side(a)} → {side(b)}" for name, (a, b) in list(pairs.items())[:limit]]
    rest = [f"and {len(pairs) - limit} more"] if len(pairs) > limit else []
    return ", ".join([*shown, *rest])


def side(content: Any) -> str:
    """Return one side of a difference; None is absent."""
    if content is None:
        return "absent"
    return clean(content) if isinstance(content, str) else value(content)


def tally(verdicts: Iterable[Verdict]) -> str:
    """Count the verdicts, best first: ``12 expected, 2 REGRESSION``."""
    listed = list(verdicts)
    counts = [(listed.count(verdict), verdict.value.removesuffix(" change")) for verdict in Verdict]
    return ", ".join(f"{number} {word}" for number, word in counts if number)


def headline(verdict: Verdict) -> str:
    """Return a sentence for a verdict that says whether an upgrade is safe."""
    return {
        Verdict.IDENTICAL: "Nothing changed",
        Verdict.WITHIN_NOISE: "Nothing changed beyond rounding",
        Verdict.EXPECTED: "Every change is expected",
        Verdict.IMPROVEMENT: "Nothing got worse, and some values improved",
        Verdict.INCONCLUSIVE: "Inconclusive: some values are too uncertain to judge",
        Verdict.UNMEASURED: "Not everything was measured",
        Verdict.REGRESSION: "REGRESSION: some changes are unexpected",
    }[verdict]


def next_step(verdict: Verdict, finding: Finding | None = None, settings: Pairs | None = None) -> str:
    """Return a line on what to do about a verdict; `finding` is the first finding with that verdict."""
    if settings and verdict.is_change:
        names = ", ".join(clean(name) for name in settings)
        return f"make the records again with the same settings. They differ in {names}, which may explain every change."
    if verdict is Verdict.REGRESSION and finding is not None and finding.stage == TESTS and finding.bound:
        return (
            f"your test {clean(finding.name)} fails by itself there, not in a golden. The environment's log has its "
            "traceback. Mend the test or the code, or do not upgrade."
        )
    if verdict is Verdict.REGRESSION and finding is not None:
        return (
            f"look at {finding.stage}.{clean(finding.name)}. If the change is intended, declare it with "
            "`mlmrepro expect` for the versions that make it. Otherwise it is a regression: do not upgrade."
        )
    return {
        Verdict.EXPECTED: "nothing to do. The goldens declare every change.",
        Verdict.IMPROVEMENT: "nothing fails. Update the goldens to keep the improvement.",
        Verdict.INCONCLUSIVE: "measure again with more data. Inconclusive results do not pass.",
        Verdict.UNMEASURED: "make the missing records, all with this version of mlmrepro. Unmeasured values "
        "do not pass.",
        Verdict.REGRESSION: "look at the changes below.",
    }.get(verdict, "nothing to do.")
