"""The figures of a check: the interval with the margin, and a forest plot of the slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mlmrepro.gate.result import Answer, CheckResult, Paired, SliceChange
from mlmrepro.report.check_words import Scale, level, unchanged
from mlmrepro.report.svg import BAND, INK, MUTED, SERIES, SURFACE, Drawing, Swatch, draw, label
from mlmrepro.report.words import clean, count, number

__all__ = ["drawings", "forest", "interval"]

_SLICES = 30  # drawn; the table lists all
_BETTER, _WORSE, _ALL = SERIES[0], SERIES[1], INK
_COLOURS = {"worse": _WORSE, "better": _BETTER, "": MUTED}
_RULES = {
    Answer.BETTER: "the whole interval is below zero",
    Answer.SAME: "the interval does not exceed the margin",
    Answer.REGRESSION: "the whole interval is above the margin",
    Answer.INCONCLUSIVE: "the interval contains the margin",
}
_MARKERS = {"worse": "D", "better": "D", "": "o"}


def drawings(result: CheckResult) -> list[Drawing]:
    """Return the figures that the result has numbers for; none if nothing changed."""
    if unchanged(result):
        return []
    return [drawing for drawing in (interval(result), forest(result)) if drawing is not None]


def interval(result: CheckResult) -> Drawing | None:
    """Draw the estimate with its confidence interval, zero and the margin."""
    paired, scale = result.paired, Scale(result.measure)
    if paired is None:
        return None
    estimate, low, high, margin = map(scale.of, (paired.difference, paired.low, paired.high, result.margin_nats))
    if not all(map(math.isfinite, (estimate, low, high, margin))):
        return None
    title = f"Change in {_quantity(scale)} with its {level(paired)} interval"
    said = (
        f"Estimate {scale.signed(paired.difference)}, interval {scale.interval(paired)}, "
        f"margin {scale.size(result.margin_nats)}. {result.answer.value}: {_RULES[result.answer]}."
    )

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvspan(0, margin, color=BAND, alpha=0.35, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
        axes.axvline(margin, color=_WORSE, linewidth=1.4, dashes=(5, 2))
        axes.plot([low, high], [0, 0], color=_ALL, linewidth=3)
        axes.plot([low, high], [0, 0], "|", color=_ALL, markersize=13, markeredgewidth=1.6)
        axes.plot([estimate], [0], "D", color=_ALL, markersize=8)
        axes.text(estimate, 0.42, scale.signed(paired.difference), ha="center", va="bottom", fontsize=9.5)
        axes.set_ylim(-0.8, 1.1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        span = max(high, margin) - min(low, 0)
        axes.set_xlim(min(low, 0) - 0.16 * span, max(high, margin) + 0.16 * span)
        _sides(axes)
        _ticks(axes, scale)

    legend = (
        Swatch(f"estimate with its {level(paired)} interval", "ink", width=3.0),
        Swatch(f"margin, {scale.size(result.margin_nats)}", "c2", "5 2", 1.4),
        Swatch("worse, but within the margin", "band", block=True),
    )
    head = ("", "nats per token" if scale.relative else "nats per byte", _head(scale))
    rows = tuple(
        (name, number(nats, 4), scale.signed(nats))
        for name, nats in (
            ("estimate", paired.difference),
            ("low end of the interval", paired.low),
            ("high end of the interval", paired.high),
            ("margin", result.margin_nats),
            ("smallest detectable change", paired.smallest_effect),
        )
    )
    return Drawing("interval", title, said, draw("interval", title, said, 1.75, paint), legend, head, rows)


def forest(result: CheckResult) -> Drawing | None:
    """Draw each slice with its interval; filled diamonds with a word mark changes that pass Holm's correction."""
    scale = Scale(result.measure)
    usable = [part for part in result.slices if _finite(part.paired, scale)]
    if not usable:
        return None
    shown = _most_changed(usable)
    changed = [part for part in result.slices if part.answer]
    title = f"Change in {_quantity(scale)} by slice, with {level(usable[0].paired)} intervals"
    said = f"{len(changed)} of {count(len(result.slices), 'slice')} changed after Holm's correction for multiple tests."
    if len(shown) < len(result.slices):
        said += f" The figure shows the {len(shown)} with the smallest p-values; the table lists all."
    rows: list[tuple[str, SliceChange | None]] = []
    for kind in dict.fromkeys(part.kind for part in shown):
        rows += [(label(kind), None), *((label(part.name), part) for part in shown if part.kind == kind)]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], color=INK)
        axes.set_ylim(len(rows) + 0.4, -0.6)  # inverted: the first row is on top
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        for (_, part), text in zip(rows, axes.get_yticklabels(), strict=True):
            if part is None:
                text.set(color=MUTED, style="italic")
        axes.axvline(0, color=INK, linewidth=1)
        bounds = _bounds([part.paired for part in shown], result.paired, scale)
        if result.paired is not None and _finite(result.paired, scale):
            axes.axvspan(scale.of(result.paired.low), scale.of(result.paired.high), color=BAND, alpha=0.35, linewidth=0)
        for place, (_, part) in enumerate(rows):
            if part is not None:
                _slice_row(axes, place, part, scale, bounds)
        axes.set_xlim(*bounds)
        _sides(axes)
        _ticks(axes, scale)

    legend = (
        Swatch("worse (diamond)", "c2", block=True),
        Swatch("better (diamond)", "c1", block=True),
        Swatch("no significant change (circle)", "muted", block=True),
        Swatch("interval of the whole text", "band", block=True),
    )
    head = ("slice", "kind", "answer", _head(scale), "low", "high", "p (Holm)", f"{scale.units}s", "documents")
    table = tuple(
        (
            clean(part.name),
            clean(part.kind),
            part.answer or "–",
            scale.signed(part.paired.difference),
            scale.signed(part.paired.low),
            scale.signed(part.paired.high),
            number(part.adjusted, 2),
            number(part.paired.units),
            number(part.paired.documents),
        )
        for part in result.slices
    )
    svg = draw("forest", title, said, 0.75 + 0.21 * len(rows), paint)
    return Drawing("forest", title, said, svg, legend, head, table)


def _most_changed(slices: Sequence[SliceChange]) -> list[SliceChange]:
    """Return the slices to draw, in their original order."""
    order = sorted(range(len(slices)), key=lambda n: (slices[n].p_value, n))
    return [slices[n] for n in sorted(order[:_SLICES])]


def _slice_row(axes: Any, place: int, part: SliceChange, scale: Scale, bounds: tuple[float, float]) -> None:
    low, middle, high = (scale.of(x) for x in (part.paired.low, part.paired.difference, part.paired.high))
    colour = _COLOURS[part.answer]
    axes.plot([low, high], [place, place], color=colour, linewidth=2 if part.answer else 1.4)
    for end, edge, marker in ((low, bounds[0], "<"), (high, bounds[1], ">")):
        if not bounds[0] <= end <= bounds[1]:
            axes.plot([edge], [place], marker, color=colour, markersize=5)  # the interval continues outside
    filled = colour if part.answer else SURFACE
    axes.plot([middle], [place], _MARKERS[part.answer], color=colour, markerfacecolor=filled, markersize=5.5)
    text = f"{scale.signed(part.paired.difference)} {part.answer}".strip()
    axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", color=INK, fontsize=8.5)


def _bounds(slices: Sequence[Paired], whole: Paired | None, scale: Scale) -> tuple[float, float]:
    """Return the limits of the axis; very wide intervals are cut, because they would flatten all others."""
    estimates = [scale.of(paired.difference) for paired in slices]
    ends = [scale.of(end) for paired in slices for end in (paired.low, paired.high)]
    if whole is not None and _finite(whole, scale):
        estimates += [scale.of(whole.low), scale.of(whole.high)]
    widths = sorted(scale.of(paired.high) - scale.of(paired.low) for paired in slices)
    room = 2 * max(*(abs(x) for x in estimates), widths[len(widths) // 2]) or 1.0
    low = max(min(0.0, *estimates, *ends), min(-room, *estimates))
    high = min(max(0.0, *estimates, *ends), max(room, *estimates))
    pad = 0.06 * (high - low) or 1.0
    return low - pad, high + pad


def _finite(paired: Paired, scale: Scale) -> bool:
    return all(math.isfinite(scale.of(x)) for x in (paired.difference, paired.low, paired.high))


def _quantity(scale: Scale) -> str:
    return "perplexity" if scale.relative else "bits per byte"


def _head(scale: Scale) -> str:
    return "change in perplexity" if scale.relative else "bits per byte"


def _sides(axes: Any) -> None:
    for x, side, text in ((0.0, "left", "← better"), (1.0, "right", "worse →")):
        axes.text(x, 1.01, text, transform=axes.transAxes, ha=side, va="bottom", color=MUTED, fontsize=9)


def _ticks(axes: Any, scale: Scale) -> None:
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:+.4g}{scale.unit}" if x else "0")
    axes.set_xlabel(f"change in {_quantity(scale)}")
