"""A page that shows what an upgrade changed: one file, without scripts or external resources."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlmrepro.compare.drift import Drift, Outcome
from mlmrepro.compare.judge import Verdict
from mlmrepro.files import atomic_write
from mlmrepro.record import RunRecord
from mlmrepro.report import plots, tables
from mlmrepro.report.outline import Outline, short_names
from mlmrepro.report.page import TEMPLATES as _TEMPLATES
from mlmrepro.report.page import render
from mlmrepro.report.words import (
    CHANGED,
    LEGEND,
    change_words,
    clean,
    difference_line,
    finding_line,
    number,
    pairs_line,
    tally,
)

__all__ = ["render_html", "write_html"]

_WORDS = {
    Verdict.IDENTICAL: "same",
    Verdict.WITHIN_NOISE: "rounding",
    Verdict.EXPECTED: "expected",
    Verdict.IMPROVEMENT: "better",
    Verdict.INCONCLUSIVE: "unsure",
    Verdict.UNMEASURED: "none",
    Verdict.REGRESSION: "REGRESSION",
}
_DIFFERENCES = 40  # listed per value
_DEVIATIONS = 300
_WARNINGS = 100


def write_html(drift: Drift, path: Path) -> None:
    """Write the page atomically; equal drifts give equal bytes."""
    atomic_write(path, render_html(drift))


def render_html(drift: Drift) -> str:
    """Return the page."""
    from markupsafe import Markup

    filters: dict[str, Callable[..., Any]] = {
        "address": _address,
        "breakable": lambda name: Markup("<wbr>").join(re.split(r"(?<=_)|(?<=[a-z])(?=[A-Z])", clean(name))),
        "pairs": pairs_line,
        "tally": lambda section: tally(item.change.verdict for item in section.items),
        "word": _WORDS.__getitem__,
    }
    functions: dict[str, Callable[..., Any]] = {
        "change_words": change_words,
        "difference_line": difference_line,
        "finding_line": finding_line,
        "short_names": short_names,
        "versions": _versions,
    }
    return render("drift.html.j2", [_TEMPLATES / "drift.css"], _content(drift), filters, functions)


def _content(drift: Drift) -> dict[str, Any]:
    outline = Outline(drift)
    first = next((outcome.record for outcome in drift.outcomes if outcome.record is not None), None)
    cells = [cell for row in outline.rows for cell in row.cells]
    present = {cell.verdict for cell in cells} | {row.verdict for row in outline.rows if not row.cells}
    marks = [
        (CHANGED, "changed since the environment above", any(cell.changed for cell in cells)),
        ("from …", "inherited from another stage", any(cell.follows for cell in cells)),
        ("off-path", "only arguments, files and defaults the guide does not use", any(cell.off_path for cell in cells)),
    ]
    return {
        "base": drift.chain[0] if drift.goldens is None and drift.chain else None,
        "changed_mark": CHANGED,
        "deviations": outline.deviations[:_DEVIATIONS],
        "deviations_left": max(len(outline.deviations) - _DEVIATIONS, 0),
        "differences": _DIFFERENCES,
        "drawings": plots.drawings(drift),
        "drift": drift,
        "environments": tables.environment_table(drift),
        "legend": [(verdict, LEGEND[verdict]) for verdict in Verdict if verdict in present],
        "marks": [(mark, meaning) for mark, meaning, occurs in marks if occurs],
        "outline": outline,
        "provenance": _provenance(first),
        "ranks": tables.ranks(drift),
        "prompt": first.config.get("guide", {}).get("prompt", "") if first else "",
        "settings": tables.setting_table(first),
        "stages": outline.stages,
        "total": len(drift.comparisons),
        "warnings": tables.warnings_table(drift)[:_WARNINGS],
    }


def _address(link: str) -> str:
    """Return a link if it is a web address, "" otherwise."""
    return link if re.fullmatch(r"https?://[^\s\"'<>`\\]+", link) else ""


def _versions(outcome: Outcome) -> str:
    """Return the varied versions, unless the environment's name contains them."""
    known = {name: outcome.versions.get(name) for name in ("transformers", "datasets")}
    if all(version is None or version in outcome.name for version in known.values()):
        return ""
    return ", ".join(f"{name} {version or 'absent'}" for name, version in known.items())


def _provenance(record: RunRecord | None) -> list[tuple[str, str]]:
    """Return the origin of the first record."""
    if record is None:
        return []
    origin = record.provenance
    commit, guide = origin.get("commit"), origin.get("guide")
    packages = origin.get("packages") or {}
    facts = {
        "mlmrepro": packages.get("mlmrepro"),
        "commit": f"{commit.get('id')}{' with uncommitted changes' if commit.get('dirty') else ''}"
        if isinstance(commit, dict)
        else None,
        "python": origin.get("python"),
        "platform": " ".join(str(part) for part in (origin.get("platform") or {}).values()),
        "device": " ".join(f"{key} {part}" for key, part in (origin.get("device") or {}).items()),
        "processors": number(origin.get("cpus")),
        "guide": f"{guide.get('page')}, SHA-256 {str(guide.get('sha256'))[:16]}" if isinstance(guide, dict) else None,
    }
    return [(name, str(fact)) for name, fact in facts.items() if fact]
