"""The sensitivity curves: which sizes of a graded fault each layer detects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlmrepro.faults.result import LAYERS, BenchResult, CaseResult
from mlmrepro.report.svg import INK, MUTED, SERIES, Drawing, Swatch, draw

__all__ = ["sensitivity"]

_MARKERS = ("o", "s", "D", "^")


def sensitivity(result: BenchResult) -> list[Drawing]:
    """Return one figure for each graded fault, its sizes from left to right and a line for each layer."""
    return [_drawing(name, sizes) for name, sizes in result.families().items() if len(sizes) > 1]


def _drawing(name: str, sizes: Sequence[CaseResult]) -> Drawing:
    title = f"{name.replace('_', ' ')} ({sizes[0].unit})"
    seen = [f"{case.size:g}" for case in sizes if case.detected]
    missed = [f"{case.size:g}" for case in sizes if not case.detected]
    said = (f"Detected: {', '.join(seen) or 'none'}." + (f" Not detected: {', '.join(missed)}." if missed else "")) + (
        f" The suite promises {', '.join(f'{case.size:g}' for case in sizes if case.required)}."
    )

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        places = range(len(sizes))
        for row, layer in enumerate(reversed(LAYERS)):
            colour, marker = SERIES[row], _MARKERS[row]
            hits = [n for n in places if layer in sizes[n].layers]
            axes.plot(hits, [row] * len(hits), marker, color=colour, markersize=7, linestyle="none")
            rest = [n for n in places if layer not in sizes[n].layers]
            axes.plot(rest, [row] * len(rest), ".", color=MUTED, markersize=3, linestyle="none")
        required = [n for n in places if sizes[n].required]
        if required:
            axes.axvspan(min(required) - 0.4, max(required) + 0.4, color=MUTED, alpha=0.12, linewidth=0)
        axes.set_xticks(list(places), [f"{case.size:g}" for case in sizes], rotation=30, ha="right")
        axes.set_yticks(range(len(LAYERS)), reversed(LAYERS), color=INK)
        axes.set_xlim(-0.6, len(sizes) - 0.4)
        axes.set_ylim(-0.6, len(LAYERS) - 0.4)
        axes.set_xlabel(sizes[0].unit)

    legend = (Swatch("sizes that have to be detected", "grid", block=True),)  # the layers are named at their rows
    rows = tuple(
        (f"{case.size:g}", *("seen" if layer in case.layers else "–" for layer in LAYERS), case.named or "–")
        for case in sizes
    )
    head = (sizes[0].unit, *LAYERS, "stage named")
    svg = draw(f"size-{name}", title, said, 2.1, paint)
    return Drawing(f"size-{name}", title, said, svg, legend, head, rows)
