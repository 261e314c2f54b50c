"""The figures of a drift: losses, perplexity, mask rates and stage times. Figures without numbers are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlmrepro.compare.drift import Drift
from mlmrepro.record import STAGES
from mlmrepro.report.outline import short_names
from mlmrepro.report.series import Expected, Group, expected, floats, grouped, measured, observed
from mlmrepro.report.svg import BAND, INK, MUTED, SERIES, SURFACE, Drawing, Swatch, draw, label
from mlmrepro.report.words import clean, count, number

__all__ = ["drawings"]

_POINTS = 600  # per curve; longer curves are thinned
_ROWS = 200  # per table
_DASHES = ("", "5 2", "2 2", "7 2 2 2", "1 2", "9 3")
_CALM, _LOUD = (0, 2, 5, 4, 3, 1), (1, 3, 4, 5, 2, 0)  # colours of curves within and outside the tolerance
_CONFIDENCE = 0.999  # of the mask rates: there are many, and none should fall outside by chance


def drawings(drift: Drift) -> list[Drawing]:
    """Return the figures that the records have numbers for."""
    found = (losses(drift), perplexities(drift), mask_rates(drift), seconds(drift))
    return [drawing for drawing in found if drawing is not None]


def losses(drift: Drift) -> Drawing | None:
    """Draw the loss of every step and its difference from the reference."""
    outcomes = measured(drift)
    curves = [(o.name, floats(observed(o.record, "loss", "step_losses"))) for o in outcomes]
    groups = grouped((name, curve) for name, curve in curves if curve)
    reference = expected(drift, "loss", "step_losses")
    base = floats(reference.content) if reference else []
    if not groups:
        return None
    total = len(outcomes)
    limits = [reference.limit(y) for y in base if math.isfinite(y)] if reference else []
    limit = max(limits, default=0.0)
    gaps = {group.names: [x - y for x, y in zip(group.content, base, strict=False)] for group in groups}

    def within(group: Group) -> bool:
        return len(group.content) == len(base) and all(abs(x) <= limit for x in gaps[group.names])

    groups.sort(key=lambda group: not within(group))  # stable; curves outside are drawn last, on top
    styles = _styles([within(group) for group in groups])
    largest = max((abs(x) for gap in gaps.values() for x in gap if math.isfinite(x)), default=0.0)
    inside = sum(len(group.names) for group in groups if within(group))
    title = "Training loss and its difference from the reference"
    said = (
        f"{count(max(len(g.content) for g in groups), 'training step')} in {count(total, 'environment')}. "
        f"{inside} {'stays' if inside == 1 else 'stay'} within the tolerance of {number(limit, 2)} nats at every step. "
        f"The largest difference is {number(largest, 2)} nats."
    )
    missing = sum(not math.isfinite(x) for group in groups for x in group.content)
    said += f" {missing:,} of the losses {'is' if missing == 1 else 'are'} not finite." if missing else ""

    def paint(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        if base:
            top.plot(*_thinned(base), color=BAND, linewidth=7, alpha=0.35, solid_capstyle="round")
        for group, style in zip(groups, styles, strict=True):
            top.plot(*_thinned(group.content), **style.line)
            bottom.plot(*_thinned(gaps[group.names]), **style.line)
        top.set_ylabel("loss (nats)")
        bottom.set_ylabel("difference (nats)")
        bottom.set_xlabel("training step")
        bottom.xaxis.get_major_locator().set_params(integer=True)
        bottom.axhspan(-limit, limit, color=BAND, alpha=0.35, linewidth=0)
        bottom.axhline(0, color=MUTED, linewidth=0.6)
        _distance_axis(bottom, limit, largest)

    legend = [
        Swatch(short_names(group.names, 2, total), style.variable, style.dashes, style.width)
        for group, style in zip(groups, styles, strict=True)
    ]
    legend.append(Swatch(f"reference, ± {number(limit, 2)} nats", "band", block=True))
    head = ("step", "reference", *(short_names(group.names, 2, total) for group in groups))
    longest = max([len(base), *(len(group.content) for group in groups)])
    rows = [
        (str(n + 1), _at(base, n), *(f"{_at(group.content, n)}" for group in groups))
        for n in range(min(longest, _ROWS))
    ]
    svg = draw("losses", title, said, 4.3, paint)
    return Drawing("losses", title, said, svg, tuple(legend), head, tuple(rows))


def perplexities(drift: Drift) -> Drawing | None:
    """Draw the perplexity of the fine-tuned model in each environment."""
    outcomes = measured(drift)
    figures = [_number(observed(o.record, "evaluation", "perplexity")) for o in outcomes]
    shown = [(o, figure) for o, figure in zip(outcomes, figures, strict=True) if figure is not None]
    if not shown:
        return None
    reference = expected(drift, "evaluation", "perplexity")
    base = _number(reference.content) if reference else None
    names = [label(outcome.name) for outcome, _ in shown]
    values = [figure for _, figure in shown]
    title = "Perplexity by environment"
    finite = [value for value in values if math.isfinite(value)]
    said = (
        f"From {number(min(finite), 6)} to {number(max(finite), 6)} in {count(len(shown), 'environment')}"
        if finite
        else f"Not finite in {count(len(shown), 'environment')}"
    ) + (f". The reference is {number(base, 6)}." if base is not None else ".")

    def paint(figure: Any) -> None:
        axes = _names_down(figure.subplots(), names)
        if reference is not None and base is not None and math.isfinite(base):
            _reference_band(axes, base, reference)
        axes.plot(values, range(len(values)), "o", color=SERIES[0], markersize=5)
        for place, value in enumerate(values):
            _at_the_right(axes, place, number(value, 6))
        _spread(axes, [*finite, *([base] if base is not None and math.isfinite(base) else [])])
        axes.set_xlabel("perplexity, exp(eval_loss)")

    legend = (
        Swatch("evaluated as in the guide, on fresh masks", "c1", block=True),
        Swatch("reference with its tolerance", "band", block=True),
    )
    head = ("environment", "fresh masks", "same masks, before", "same masks, after", "difference from the reference")
    rows = tuple(
        (
            clean(outcome.name),
            number(value, 7),
            *(_same_masks(outcome.record, side) for side in ("before", "after")),
            f"{value - base:+.2g}" if base is not None and math.isfinite(value - base) else "–",
        )
        for outcome, value in shown
    )
    svg = draw("perplexity", title, said, 1.0 + 0.21 * len(shown), paint)
    return Drawing("perplexity", title, said, svg, legend, head, rows)


def mask_rates(drift: Drift) -> Drawing | None:
    """Draw the shares of selected, masked, random and unchanged tokens with binomial confidence bounds."""
    counted = []
    for outcome in measured(drift):
        counts = observed(outcome.record, "masked_batches", "counts")
        if isinstance(counts, dict) and outcome.record is not None:
            guide = outcome.record.config.get("guide", {})
            counted.append((outcome.name, _shares(counts, guide.get("mlm_probability"))))
    groups = grouped((name, shares) for name, shares in counted if shares)
    if not groups:
        return None
    total = len(measured(drift))
    names = [label(short_names(group.names, 1, total)) for group in groups]
    panels = [row[0] for row in groups[0].content]
    outside = [
        f"{panel} in {short_names(group.names, 2, total)}"
        for group in groups
        for panel, nominal, _, _, low, high in group.content
        if not low <= nominal <= high
    ]
    title = "Mask rates with 99.9 % confidence bounds"
    draws = "The same masks" if len(groups) == 1 else f"{len(groups)} different draws of masks"
    said = f"{draws} in {count(len(counted), 'environment')}. " + (
        f"The nominal rate is outside the bounds for {'; '.join(outside)}."
        if outside
        else "Every nominal rate is within the bounds."
    )

    def paint(figure: Any) -> None:
        for axes, panel in zip(figure.subplots(len(panels), 1), range(len(panels)), strict=True):
            name, nominal = groups[0].content[panel][:2]
            _names_down(axes, names)
            axes.axvline(nominal, color=MUTED, linewidth=1, dashes=(3, 2))
            for place, group in enumerate(groups):
                _, _, hits, of, low, high = group.content[panel]
                axes.plot([low, high], [place, place], color=SERIES[0], linewidth=1.4)
                axes.plot([hits / of], [place], "o", color=SERIES[0], markersize=5)
                _at_the_right(axes, place, f"{hits / of:.2%}")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:.4g}".rstrip("0").rstrip(".") if x > 1 else f"{x:.1%}")
            axes.xaxis.get_major_locator().set_params(nbins=5)
            axes.set_title(f"{name}: nominal {nominal:.0%}", loc="left", fontsize=9.5, color=INK)

    head = ("environments", "share", "nominal", "count", "of", "observed", "lower bound", "upper bound")
    rows = tuple(
        (
            short_names(group.names, 3, total),
            panel,
            f"{nominal:.0%}",
            number(hits),
            number(of),
            f"{hits / of:.2%}",
            f"{low:.2%}",
            f"{high:.2%}",
        )
        for group in groups
        for panel, nominal, hits, of, low, high in group.content
    )
    legend = (Swatch("observed, with bounds", "c1"), Swatch("nominal", "muted", "3 2", 1.0))
    svg = draw("masks", title, said, len(panels) * (0.72 + 0.2 * len(groups)), paint)
    return Drawing("masks", title, said, svg, legend, head, rows)


def seconds(drift: Drift) -> Drawing | None:
    """Draw the time per stage."""
    outcomes = [
        (o, [_number(observed(o.record, stage, "seconds")) or 0.0 for stage in STAGES]) for o in measured(drift)
    ]
    shown = [(o, [t if math.isfinite(t) and t > 0 else 0.0 for t in times]) for o, times in outcomes]
    shown = [(o, times) for o, times in shown if sum(times) > 0]
    if not shown:
        return None
    together = [sum(times[n] for _, times in shown) for n in range(len(STAGES))]
    leading = sorted(range(len(STAGES)), key=lambda n: -together[n])[: len(SERIES) - 1]
    parts = [(STAGES[n], [times[n] for _, times in shown]) for n in sorted(leading)]
    rest = [sum(t for n, t in enumerate(times) if n not in leading) for _, times in shown]
    parts.append(("other stages", rest))
    sums = [sum(times) for _, times in shown]
    title = "Time by stage (not compared)"
    said = (
        f"From {min(sums):.1f} to {max(sums):.1f} seconds in {count(len(shown), 'environment')}. Times depend on the "
        "machine and its load, so they are never judged."
    )

    def paint(figure: Any) -> None:
        axes = _names_down(figure.subplots(), [label(outcome.name) for outcome, _ in shown])
        left = [0.0] * len(shown)
        for n, (stage, times) in enumerate(parts):
            places = range(len(shown))
            axes.barh(places, times, left=left, height=0.72, color=SERIES[n], edgecolor=SURFACE, linewidth=1)
            for place, time in enumerate(times):
                if time > 0.16 * max(sums):
                    middle = left[place] + time / 2
                    axes.text(middle, place, stage, color=SURFACE, ha="center", va="center", fontsize=7.5)
            left = [a + b for a, b in zip(left, times, strict=True)]
        for place, all_of_it in enumerate(sums):
            _at_the_right(axes, place, f"{all_of_it:.1f} s")
        axes.set_xlabel("seconds")
        axes.grid(visible=False, axis="y")

    legend = tuple(Swatch(stage, f"c{n}", block=True) for n, (stage, _) in enumerate(parts, start=1))
    rows = tuple((clean(outcome.name), *(f"{t:.2f}" for t in times), f"{sum(times):.2f}") for outcome, times in shown)
    svg = draw("seconds", title, said, 0.9 + 0.24 * len(shown), paint)
    return Drawing("seconds", title, said, svg, legend, ("environment", *STAGES, "total"), rows)


def _shares(counts: dict[str, Any], probability: Any) -> list[tuple[str, float, int, int, float, float]]:
    """Return (share, nominal, count, of, lower, upper bound) for the selected, masked, random and unchanged tokens."""
    from scipy.stats import binomtest

    kinds = ("tokens", "selected", "mask", "random", "unchanged")
    if not all(isinstance(counts.get(kind), int) and counts[kind] >= 0 for kind in kinds):
        return []
    if not isinstance(probability, (int, float)):
        return []
    candidates, selected = counts.get("candidates", counts["tokens"]), counts["selected"]
    wanted = [("selected", float(probability), selected, candidates)]
    wanted += [
        (kind, share, counts[kind], selected) for kind, share in (("mask", 0.8), ("random", 0.1), ("unchanged", 0.1))
    ]
    rows = []
    for kind, share, hits, of in wanted:
        if of < 1 or hits > of:
            return []
        bounds = binomtest(hits, of, share).proportion_ci(_CONFIDENCE)
        rows.append((_KINDS[kind], share, hits, of, float(bounds.low), float(bounds.high)))
    return rows


_KINDS = {
    "selected": "tokens selected",
    "mask": "of these, masked",
    "random": "of these, random token",
    "unchanged": "of these, unchanged",
}


def _same_masks(record: Any, side: str) -> str:
    pair = observed(record, "evaluation", "same_masks_perplexity")
    return number(pair.get(side), 7) if isinstance(pair, dict) else "–"


def _number(content: Any) -> float | None:
    return float(content) if isinstance(content, (int, float)) and not isinstance(content, bool) else None


def _at(values: Sequence[float], place: int) -> str:
    return number(values[place], 8) if place < len(values) else "–"


def _thinned(values: Sequence[float]) -> tuple[list[int], list[float]]:
    stride = max(1, math.ceil(len(values) / _POINTS))
    return list(range(1, len(values) + 1, stride)), list(values[::stride])


@dataclass(frozen=True)
class _Style:
    """How a curve is drawn: index of its colour in the palette, dashes and width."""

    colour: int | None
    dashes: str
    width: float

    @property
    def variable(self) -> str:
        return "muted" if self.colour is None else f"c{self.colour + 1}"

    @property
    def line(self) -> dict[str, Any]:
        code = MUTED if self.colour is None else SERIES[self.colour]
        dashes = [float(x) for x in self.dashes.split()]
        return {"color": code, "linewidth": self.width} | ({"dashes": dashes} if dashes else {})


def _styles(within: Sequence[bool]) -> list[_Style]:
    """Keep nearly equal curves visible, narrow ones over wide ones, and make curves outside the tolerance stand out."""
    styles: list[_Style] = []
    for n, calm in enumerate(within):
        palette = [colour for colour in (_CALM if calm else _LOUD) if colour not in [style.colour for style in styles]]
        place = n if calm else n - sum(within)
        width = max(2.6 - 0.4 * place, 1.0) if calm else 2.0
        styles.append(_Style(palette[0] if palette else None, _DASHES[place % len(_DASHES)], width))
    return styles


def _names_down(axes: Any, names: Sequence[str]) -> Any:
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return axes


def _at_the_right(axes: Any, place: int, text: str) -> None:
    axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", color=INK, fontsize=8.5)


def _reference_band(axes: Any, base: float, reference: Expected) -> None:
    limit = reference.limit(base)
    axes.axvspan(base - limit, base + limit, color=BAND, alpha=0.35, linewidth=0)
    axes.axvline(base, color=MUTED, linewidth=0.8)


def _spread(axes: Any, values: Sequence[float]) -> None:
    """Show at least one per cent of the value, because an axis that magnifies rounding would mislead."""
    if values:
        low, high = min(values), max(values)
        margin = max((high - low) * 0.1, 0.005 * abs(low) or 0.5)
        axes.set_xlim(low - margin, high + margin)


def _distance_axis(axes: Any, limit: float, largest: float) -> None:
    """Scale linearly within the tolerance and logarithmically outside, so that rounding and regressions both fit."""
    if largest <= limit or limit <= 0:
        bound = 1.6 * max(limit, largest) or 1.0
        axes.set_ylim(-bound, bound)
        ticks = [-limit, 0.0, limit] if limit else [0.0]
    else:
        axes.set_yscale("symlog", linthresh=limit)
        axes.set_ylim(-3 * largest, 3 * largest)
        decades = [10.0**n for n in range(math.ceil(math.log10(limit) + 0.5), math.floor(math.log10(largest)) + 2)]
        kept = decades[:: max(1, math.ceil(len(decades) / 3))]
        ticks = [*(-x for x in reversed(kept)), -limit, 0.0, limit, *kept]
    axes.set_yticks(
        ticks, [f"{tick:+.0e}".replace("e-0", "e-").replace("e+0", "e+") if tick else "0" for tick in ticks]
    )
    axes.minorticks_off()
