"""One page on what the suite detects: a single file that fetches nothing and runs no script."""

from __future__ import annotations

from pathlib import Path

from mlmrepro.compare.judge import Verdict
from mlmrepro.faults.result import LAYERS, BenchResult
from mlmrepro.files import atomic_write
from mlmrepro.report.faults_plots import sensitivity
from mlmrepro.report.faults_view import failing, faults_headline, misplaced, scores, smallest_seen
from mlmrepro.report.page import TEMPLATES, render

__all__ = ["render_faults_html", "write_faults_html"]


def write_faults_html(result: BenchResult, path: Path) -> None:
    """Write the page, whole or not at all; equal results give equal bytes."""
    atomic_write(path, render_faults_html(result))


def render_faults_html(result: BenchResult) -> str:
    """Return the page."""
    faults = [case for case in result.cases if not case.is_control]
    content = {
        "verdict": Verdict.IDENTICAL if result.passes else Verdict.REGRESSION,
        "headline": faults_headline(result),
        "scores": scores(result),
        "layers": [(layer, *result.by_layer([*result.faults, *result.later])[layer]) for layer in LAYERS],
        "figures": sensitivity(result),
        "smallest": [(name, smallest_seen(sizes)) for name, sizes in result.families().items()],
        "failing": [*(case for _, case in failing(result)), *misplaced(result)],
        "faults": faults,
        "controls": result.controls,
        "packages": result.provenance.get("packages", {}),
    }
    styles = [TEMPLATES / name for name in ("drift.css", "check.css")]
    return render("faults.html.j2", styles, content, {}, {})
