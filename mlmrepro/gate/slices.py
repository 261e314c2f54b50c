"""Where a checkpoint changed: the same paired test in parts of the text and of the vocabulary, Holm-corrected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mlmrepro.gate.paired import p_value, paired_units
from mlmrepro.gate.result import SliceChange
from mlmrepro.scores import Scores

__all__ = ["FREQUENCIES", "LEAST_DOCUMENTS", "holm", "slices"]

LEAST_DOCUMENTS = 5  # below, Student's t has so few degrees of freedom that only an enormous change is seen
FREQUENCIES = ((1, 1), (2, 5), (6, 30), (31, 300), (301, math.inf))  # first and last count of a slice: about a factor 5
OTHER, NONE = "other topics", "no topic"

Part = tuple[str, str, NDArray[np.bool_]]  # kind, name, which units


def slices(
    before: Scores, after: Scores, topics: Sequence[str], *, alpha: float, power: float
) -> tuple[SliceChange, ...]:
    """Return every slice with its paired difference, clustered by document, topics first.

    `topics` has one entry per document, "" for none. A topic of fewer than `LEAST_DOCUMENTS` documents joins "other
    topics". Tokens are sliced by how often they occur in this text, words are not. A slice of too few documents is left
    out, and so is one that holds all units, because that is the whole comparison. The two-sided p-values of all slices
    are Holm-corrected, so the chance that any unchanged slice is named is at most `alpha`.
    """
    differences = after.loss.astype(np.float64) - before.loss
    parts = [part for part in (*_topics(before, topics), *_frequencies(before)) if _is_slice(before, part[2])]
    found = [
        paired_units(differences[units], before.size[units], before.document[units], alpha=alpha, power=power)
        for _, _, units in parts
    ]
    p_values = [p_value(paired) for paired in found]
    changes = []
    for (kind, name, _), paired, p, adjusted in zip(parts, found, p_values, holm(p_values), strict=True):
        named = ("worse" if paired.difference > 0 else "better") if adjusted <= alpha else ""
        changes.append(SliceChange(kind, name, paired, p, float(adjusted), named))
    return tuple(changes)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Return p-values adjusted for being one family, in the given order (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none is smaller than one before it, none over 1.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _is_slice(scores: Scores, units: NDArray[np.bool_]) -> bool:
    return len(np.unique(scores.document[units])) >= LEAST_DOCUMENTS and not units.all()


def _topics(scores: Scores, topics: Sequence[str]) -> Iterator[Part]:
    """Iterate over the topics by name, then the rare ones together, then documents without a topic."""
    documents = np.unique(scores.document)
    counts: dict[str, int] = {}
    for document in documents:
        counts[topics[document]] = counts.get(topics[document], 0) + 1
    enough = sorted(topic for topic, count in counts.items() if topic and count >= LEAST_DOCUMENTS)
    labels = np.array([topic if topic in enough else OTHER if topic else NONE for topic in topics])
    of_units = labels[scores.document]
    for name in dict.fromkeys((*enough, OTHER, NONE)):
        yield "topic", name, of_units == name


def _frequencies(scores: Scores) -> Iterator[Part]:
    """Iterate over the tokens by their count in this text; a place that is masked in several passes counts once."""
    if np.any(scores.token < 0):
        return
    place = np.stack([scores.document, scores.position])
    first = np.append(True, np.any(np.diff(place, axis=1), axis=0))
    _, token = np.unique(scores.token, return_inverse=True)
    count = np.bincount(token[first])[token]
    for least, most in FREQUENCIES:
        name = "once" if most == 1 else f"{least} to {most} times" if most < math.inf else f"{least} times or more"
        yield "token frequency", name, (count >= least) & (count <= most)
