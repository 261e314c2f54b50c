"""A page that shows whether and where a checkpoint got worse: one file, without scripts or external resources."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlmrepro.files import atomic_write
from mlmrepro.gate.probes import ranked
from mlmrepro.gate.result import Accuracy, CheckResult, DocumentChange, Prediction, ProbeChange, TokenChange
from mlmrepro.report import check_plots
from mlmrepro.report.check_words import (
    HEADLINE,
    VERDICT,
    Scale,
    changed_probes,
    ended,
    facts,
    level,
    origins,
    points,
    rank,
    said,
    share,
    unused_line,
)
from mlmrepro.report.old_page import TEMPLATES, render
from mlmrepro.report.words import number

__all__ = ["render_check_html", "write_check_html"]

STEPS = (0.1, 0.5, 1.0, 2.0)  # nats; fixed, so that shades mean the same on every page
_DOCUMENTS = 10
_TOKENS = 1000  # shown per document
_LISTED = 12  # tokens per document in the list of losses
_PROBES = 50
_OPEN = 6  # probes shown unfolded
_ROWS = 10  # per probe
_VISIBLE = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}


def write_check_html(result: CheckResult, path: Path) -> None:
    """Write the page atomically; equal results give equal bytes."""
    atomic_write(path, render_check_html(result))


def render_check_html(result: CheckResult) -> str:
    """Return the page."""
    from markupsafe import Markup, escape

    def visible(text: str) -> Markup:
        return escape(_visible(text))  # Markup keeps the spaces that `clean` would collapse

    filters: dict[str, Callable[..., Any]] = {"ended": ended, "number": number, "visible": visible}
    styles = [TEMPLATES / name for name in ("drift.css", "check.css")]
    return render("check.html.j2", styles, _content(result), filters, {"rank": rank, "change": _change})


def _content(result: CheckResult) -> dict[str, Any]:
    changed = changed_probes(result)
    probes = [*changed, *(probe for probe in result.probes if probe not in changed)]
    worst = [_document(document, result) for document in result.worst[:_DOCUMENTS]]
    rows = origins(result)
    figures = {figure.name: figure for figure in check_plots.drawings(result)}
    return {
        "result": result,
        "headline": HEADLINE[result.answer],
        "verdict": VERDICT[result.answer],
        "said": said(result),
        "unused": [unused_line(unused) for unused in result.unused],
        "facts": list(facts(result)),
        "interval": figures.get("interval"),
        "forest": figures.get("forest"),
        "accuracy": _accuracy(result.accuracy) if result.accuracy else [],
        "legend": _legend(worst),
        "worst": worst,
        "probes": [_probe(probe, result) for probe in probes[:_PROBES]],
        "probes_left": max(len(probes) - _PROBES, 0),
        "open_probes": _OPEN,
        "differing": [row for row in rows if row.differs],
        "equal": [row for row in rows if not row.differs],
    }


@dataclass(frozen=True)
class Shade:
    """How a token is shown: its CSS class and its tooltip."""

    text: str
    css: str
    title: str


@dataclass(frozen=True)
class Document:
    """A document that got worse, ready for display."""

    name: str
    topic: str
    change: str
    spaced: bool  # words lack the spaces between them, so add some
    tokens: list[Shade]
    left: int  # number of tokens not shown
    listed: list[TokenChange]


def _document(document: DocumentChange, result: CheckResult) -> Document:
    scale = Scale(result.measure)
    tokens = [token for token in document.tokens if token.text]  # the later bytes of a character have no text
    return Document(
        document.name,
        document.topic,
        scale.signed(document.difference),
        not scale.relative,
        [_shade(token) for token in tokens[:_TOKENS]],
        max(len(tokens) - _TOKENS, 0),
        sorted(filter(_was_masked, tokens), key=lambda token: -_size(token))[:_LISTED],
    )


def _was_masked(token: TokenChange) -> bool:
    return token.before is not None and token.after is not None


def _size(token: TokenChange) -> float:
    size = abs((token.after or 0.0) - (token.before or 0.0))
    return size if math.isfinite(size) else math.inf


def _shade(token: TokenChange) -> Shade:
    if token.before is None or token.after is None:
        return Shade(token.text, "plain", "")
    step = bisect_right(STEPS, _size(token))
    side = "better" if token.after < token.before else "worse"  # NaN is worse
    return Shade(token.text, f"{side}-{step}" if step else "calm", _change(token))


def _change(token: TokenChange) -> str:
    """Format both losses of a token and their difference."""
    if token.before is None or token.after is None:
        return "not masked"
    return f"{token.before:.2f} → {token.after:.2f} nats ({token.after - token.before:+.2f})"


def _legend(worst: Sequence[Document]) -> list[tuple[str, str]]:
    """Return (CSS class, meaning) of the shades in use, from much better to much worse."""
    present = {token.css for document in worst for token in document.tokens}
    ends = [f"{low:g} to {high:g}" for low, high in pairwise(STEPS)] + [f"{STEPS[-1]:g} or more"]
    steps = list(enumerate(ends, start=1))
    scale = [(f"better-{n}", f"better by {end} nats") for n, end in reversed(steps)]
    scale += [("calm", f"changed by less than {STEPS[0]:g} nats")]
    scale += [(f"worse-{n}", f"worse by {end} nats") for n, end in steps]
    return [(css, meaning) for css, meaning in [*scale, ("plain", "not masked")] if css in present]


def _visible(text: str) -> str:
    """Return a token with visible whitespace and with escapes for unprintable characters."""
    if not text.strip(" "):
        return "␣" * len(text)
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


@dataclass(frozen=True)
class Cell:
    """A prediction in its row; `moved` gives its place on the other side, "" if that is the same."""

    text: str
    probability: float
    moved: str
    right: bool


@dataclass(frozen=True)
class Probe:
    """A prompt with both rankings next to each other."""

    change: ProbeChange
    rows: list[tuple[Cell | None, Cell | None]]
    common: list[tuple[int, str]]  # share of the top k that both sides have


def _probe(probe: ProbeChange, result: CheckResult) -> Probe:
    by_text = not Scale(result.measure).relative
    places = [_places(side, by_text) for side in (probe.before, probe.after)]
    before = [_cell(p, probe, places[0], places[1], by_text, ("now", "gone")) for p in probe.before[:_ROWS]]
    after = [_cell(p, probe, places[1], places[0], by_text, ("was", "new")) for p in probe.after[:_ROWS]]
    depth = max(len(before), len(after))
    pad = [[*cells, *[None] * (depth - len(cells))] for cells in (before, after)]
    kept = max(len(probe.before), len(probe.after))
    common = [(k, f"{100 * part:.3g} %") for k, part in probe.overlap.items() if k <= kept]
    return Probe(probe, list(zip(*pad, strict=True)), common)


def _places(predictions: Sequence[Prediction], by_text: bool) -> dict[object, int]:
    """Map each token to its rank; tied tokens share the best of their ranks."""
    places: dict[object, int] = {}
    for group in ranked(predictions, by_text=by_text):
        first = len(places) + 1
        places |= dict.fromkeys(group, first)
    return places


def _cell(
    prediction: Prediction,
    probe: ProbeChange,
    here: dict[object, int],
    there: dict[object, int],
    by_text: bool,
    words: tuple[str, str],
) -> Cell:
    text = prediction.text.strip()
    item: object = text if by_text else prediction.token
    other = there.get(item)
    moved = words[1] if other is None else "" if other == here[item] else f"{words[0]} {other}"
    return Cell(prediction.text, prediction.probability, moved, bool(probe.expected) and text == probe.expected.strip())


def _accuracy(accuracy: Accuracy) -> list[tuple[str, str, str, str]]:
    """Return rows of (measure, before, after, change)."""
    paired = accuracy.paired
    interval = f"{level(paired)} interval {points(paired.low)} to {points(paired.high)}"
    errors = (
        ("calibration error", accuracy.calibration_before, accuracy.calibration_after),
        ("Brier score", accuracy.brier_before, accuracy.brier_after),
    )
    return [
        (
            "correct predictions (higher is better)",
            share(accuracy.before),
            share(accuracy.after),
            f"{points(paired.difference)} points, {interval}",
        ),
        *(
            (f"{name} (lower is better)", number(a, 3), number(b, 3), f"{b - a:+.2g}" if b != a else "0")
            for name, a, b in errors
        ),
    ]
