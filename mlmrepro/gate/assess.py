"""Turn the losses of two checkpoints into the whole answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmrepro.checkpoint_folder import Unused
from mlmrepro.errors import UserError
from mlmrepro.gate.accuracy import accuracy
from mlmrepro.gate.judge import answer, explain
from mlmrepro.gate.paired import cautions, paired
from mlmrepro.gate.result import Answer, CheckResult, DocumentChange, ProbeChange, Rounded, TokenChange
from mlmrepro.gate.slices import slices
from mlmrepro.scores import Scores

__all__ = ["DocumentText", "assess", "worst_documents"]

SHOWN_UNITS = 400  # of a document: about one screen


@dataclass(frozen=True)
class DocumentText:
    """A document of the evaluated text, as it is shown."""

    name: str
    topic: str  # "" for none
    units: Sequence[str]  # text of each unit, masked or not, by its position


def assess(
    before: Scores,
    after: Scores,
    *,
    measure: str,
    margin: float,
    margin_nats: float,
    alpha: float,
    power: float,
    rounding: float,
    documents: Sequence[DocumentText],
    probes: Sequence[ProbeChange] = (),
    notes: Sequence[str] = (),
    provenance: dict[str, Any] | None = None,
    rounded: Rounded | None = None,
    unused: Sequence[Unused] = (),
    worst: int = 5,
) -> CheckResult:
    """Compare two checkpoints: `before` holds the baseline's scores, `after` the candidate's.

    `measure` is "perplexity" or "bits per byte"; `margin` is relative, `margin_nats` the same in nats per token or
    byte. If no unit's loss differs by more than `rounding`, in nats, the difference counts as exactly 0. A NaN or
    infinite loss of the candidate is a regression, whatever the other losses are. `rounded` says that the two are one
    model in two number formats: then the candidate is never better, because better digits are luck. Limits of the
    statistics for this text are added to the notes. Raises ValueError if the two were not scored on the same units, and
    UserError if losses of the baseline are NaN or infinite.
    """
    _same_units(before, after)
    _finite_baseline(before, documents)
    shared: dict[str, Any] = {
        "measure": measure,
        "before": _value(before, measure),
        "margin": margin,
        "margin_nats": margin_nats,
        "rounding": rounding,
        "probes": tuple(probes),
        "notes": tuple(notes),
        "provenance": provenance or {},
        "rounded": rounded,
        "unused": tuple(unused),
    }
    broken = ~np.isfinite(after.loss)
    if broken.any():
        return CheckResult(
            answer=Answer.REGRESSION,
            reason=f"{_count(broken, after, documents)} of the candidate are NaN or infinite",
            advice="Look for NaN or infinite weights, or for a number format too narrow for the model.",
            after=math.nan,
            paired=None,
            not_finite=int(broken.sum()),
            largest_change=math.nan,
            accuracy=None,
            slices=(),
            worst=(),
            **shared,
        )
    largest = float(np.max(np.abs(_differences(before, after))))
    equal = largest <= rounding
    judged = dataclasses.replace(after, loss=before.loss) if equal else after
    _, sums, sizes = _by_document(before, judged)
    found = paired(sums, sizes, alpha=alpha, power=power, units=len(before))
    value = _value(after, measure)
    if equal:
        given, advice = Answer.SAME, ""
        reason = f"{measure} {shared['before']:.5g} → {value:.5g}, {_equal(largest, rounding, len(before))}"
    else:
        given = answer(found, margin_nats)
        if rounded and given is Answer.BETTER:
            given = Answer.SAME
        reason, advice = explain(found, margin, margin_nats, measure, shared["before"], value, given=given)
        shared["notes"] += cautions(sums, sizes, alpha=alpha, skewed=rounded is None)
    parts = slices(before, judged, [document.topic for document in documents], alpha=alpha, power=power)
    if rounded:
        parts = tuple(dataclasses.replace(part, answer=part.answer.replace("better", "")) for part in parts)
    return CheckResult(
        answer=given,
        reason=reason,
        advice=advice,
        after=value,
        paired=found,
        not_finite=0,
        largest_change=largest,
        accuracy=accuracy(before, after, alpha=alpha, power=power),
        slices=parts,
        worst=worst_documents(before, judged, documents, worst),
        **shared,
    )


def worst_documents(
    before: Scores, after: Scores, documents: Sequence[DocumentText], count: int
) -> tuple[DocumentChange, ...]:
    """Return at most `count` documents that got worse, the gravest first.

    They are ordered by their summed difference over the square root of their size. A sum alone would name the longest
    documents, a mean the shortest ones, where a single unlucky word decides; noise favours neither here.
    """
    indices, sums, sizes = _by_document(before, after)
    gravest = np.argsort(-sums / np.sqrt(sizes), kind="stable")[:count]
    return tuple(
        _document(before, after, documents[indices[i]], int(indices[i]), float(sums[i] / sizes[i]))
        for i in gravest
        if sums[i] > 0
    )


def _by_document(before: Scores, after: Scores) -> tuple[NDArray, NDArray, NDArray]:
    """Return, of each document that has units, its index, the sum of its differences and that of its sizes."""
    indices, place = np.unique(before.document, return_inverse=True)
    weights = _differences(before, after), before.size
    return indices, np.bincount(place, weights=weights[0]), np.bincount(place, weights=weights[1])


def _document(before: Scores, after: Scores, text: DocumentText, index: int, difference: float) -> DocumentChange:
    """Line up a document's units with their losses; those of several passes are averaged."""
    rows = slice(*np.searchsorted(before.document, [index, index + 1]))
    position = before.position[rows]
    passes = np.bincount(position, minlength=len(text.units))
    means = [
        np.bincount(position, weights=scores.loss[rows], minlength=len(text.units)) / np.maximum(passes, 1)
        for scores in (before, after)
    ]
    masked = passes > 0
    middle = int(np.argmax(np.where(masked, means[1] - means[0], -np.inf)))
    start = max(0, min(middle - SHOWN_UNITS // 2, len(text.units) - SHOWN_UNITS))
    shown = tuple(
        TokenChange(text.units[i], float(means[0][i]), float(means[1][i])) if masked[i] else TokenChange(text.units[i])
        for i in range(start, min(start + SHOWN_UNITS, len(text.units)))
    )
    return DocumentChange(text.name, text.topic, difference, shown)


def _differences(before: Scores, after: Scores) -> NDArray[np.float64]:
    return after.loss.astype(np.float64) - before.loss


def _value(scores: Scores, measure: str) -> float:
    return {"perplexity": scores.perplexity, "bits per byte": scores.bits_per_byte}[measure]


def _same_units(before: Scores, after: Scores) -> None:
    if not len(before):
        raise ValueError("no units to compare")
    for column in ("document", "position", "token", "size"):
        if not np.array_equal(getattr(before, column), getattr(after, column)):
            raise ValueError(f"the two checkpoints were not scored on the same units: {column} differs")


def _finite_baseline(before: Scores, documents: Sequence[DocumentText]) -> None:
    broken = ~np.isfinite(before.loss)
    if broken.any():
        raise UserError(
            f"{_count(broken, before, documents)} in the baseline are NaN or infinite",
            remedy="make the baseline again, from a checkpoint whose losses are finite",
        )


def _count(broken: NDArray[np.bool_], scores: Scores, documents: Sequence[DocumentText]) -> str:
    first = documents[scores.document[np.argmax(broken)]].name
    return f"{broken.sum():,} of {len(scores):,} losses (the first in {first!r})"


def _equal(largest: float, rounding: float, units: int) -> str:
    if largest == 0:
        return f"none of {units:,} losses differs"
    return f"none of {units:,} losses differs by more than rounding: {largest:.2g} nats at most, {rounding:.2g} allowed"
