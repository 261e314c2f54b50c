"""The document of a bisection: which release changed what, and the path to it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mlmrepro.compare.changes import json_value
from mlmrepro.environments.bisect import Bisection, Found, Status, Step
from mlmrepro.environments.releases import Release
from mlmrepro.environments.upgrade import Behind
from mlmrepro.report import document as doc
from mlmrepro.report.words import and_more, count

__all__ = ["behind_content", "behind_section", "bisection_content", "bisection_document", "step_line"]

_LONGEST = 60  # characters of a value in a table
_NAMED = 4  # values in a line


def bisection_document(result: Bisection) -> doc.Document:
    """Return the document: the releases that changed something first, then each release that was looked at."""
    package, found = result.package, result.found
    ends = (result.releases[0], result.releases[-1])
    measured = sum(not step.trial.problem for step in result.steps)
    facts: list[tuple[str, doc.Line]] = [
        ("range", f"{package} {_named(ends[0])} to {_named(ends[1])}, {count(len(result.releases), 'release')}"),
        ("measured", f"{measured} of {count(len(result.steps), 'release')} that were tried"),
    ]
    shown = [*result.same[:_NAMED], *and_more(result.same[_NAMED:], "value")]
    facts += [("same at both ends", ", ".join(shown))] if shown else []
    facts += [("note", note) for note in result.notes]
    changes = [doc.Item((doc.Strong(each.watch), _change(package, each))) for each in found]
    if not found:
        headline = f"Nothing that is watched differs between {package} {ends[0].version} and {ends[1].version}"
    elif len(found) == 1:
        headline = f"{_first(package, found[0])} changed {found[0].watch}"
    else:
        headline = f"{count(len(found), 'change')}, by {count(len({each.after for each in found}), 'release')}"
    head: list[doc.Line] = ["release", "uploaded", "outcome", *(found[0].watch for _ in found[:1])]
    rows = [
        [str(step.release.version), step.release.uploaded, _outcome(step), *_values(step, found)]
        for step in result.steps
    ]
    path = doc.Section("Releases", [doc.Table(head, rows)], name="releases")
    blocks: list[doc.Block] = [doc.Items(changes, "change")] if changes else []
    return doc.Document(None, headline, facts=facts, blocks=[*blocks, path], next_step=_next(result))


def bisection_content(result: Bisection) -> dict[str, Any]:
    """Return plain JSON values."""
    return {
        "package": result.package,
        "from": str(result.releases[0].version),
        "to": str(result.releases[-1].version),
        "releases": len(result.releases),
        "changes": [_content(each) for each in result.found],
        "same": list(result.same),
        "tried": [
            {
                "release": str(step.release.version),
                "problem": step.trial.problem,
                "moved": dict(step.trial.moved),
                "statuses": {name: status.value for name, status in step.statuses.items()},
            }
            for step in result.steps
        ],
        "notes": list(result.notes),
    }


def behind_section(behind: Behind) -> doc.Section:
    """Return the releases behind an upgrade's changes, for the document of the gate."""
    rows = [[each.watch, package, _named(each.before), _first("", each).strip(" ,")] for package, each in behind.found]
    blocks: list[doc.Block] = [doc.Table(("value", "package", "last with the old value", "changed by"), rows)]
    notes = [doc.Item(note) for note in dict.fromkeys(behind.notes)]
    headline = f"Releases: {count(len(rows), 'change')} followed to the release"
    return doc.Section(headline, [*blocks[: len(rows)], *([doc.Items(notes, "note")] if notes else [])], name="behind")


def behind_content(behind: Behind) -> dict[str, Any]:
    """Return plain JSON values."""
    changes = [{"package": package, **_content(each)} for package, each in behind.found]
    return {"changes": changes, "notes": behind.notes}


def _content(each: Found) -> dict[str, Any]:
    return {
        "watch": each.watch,
        "last_before": str(each.before.version),
        "first_after": str(each.after.version),
        "uploaded": each.after.uploaded,
        "old": json_value(each.old),
        "new": json_value(each.new),
        "skipped_between": [str(release.version) for release in each.skipped],
        "flickers": each.flickers,
    }


def step_line(step: Step) -> str:
    """Return a release and what it gave in one line, for the progress."""
    values = "; ".join(f"{name} {_short(value)}" for name, value in list(step.values.items())[:1])
    return f"{_named(step.release)}: {_outcome(step)}{f'  {values}' if values and not step.trial.problem else ''}"


def _named(release: Release) -> str:
    return f"{release.version}{f' ({release.uploaded})' if release.uploaded else ''}"


def _outcome(step: Step) -> str:
    moved = ", ".join(f"{name} {version}" for name, version in step.trial.moved.items())
    if step.trial.problem:
        return f"skipped: {step.trial.problem}"
    statuses = Counter(status.value for status in step.statuses.values())
    words = list(statuses) if len(statuses) < 2 else [f"{number} {word}" for word, number in sorted(statuses.items())]
    return (", ".join(words) or "measured") + (f", with {moved}" if moved else "")


def _values(step: Step, found: tuple[Found, ...]) -> list[str]:
    return [_short(step.values.get(each.watch)) if not step.trial.problem else "" for each in found[:1]]


def _change(package: str, found: Found) -> str:
    line = f": {_short(found.old)} → {_short(found.new)}, {_first(package, found)}"
    if found.flickers:
        line += "; it gave different values in one release, so 2 of 3 measurements decided"
    return line


def _first(package: str, found: Found) -> str:
    first = f"{package} {_named(found.after)}"
    if not found.skipped:
        return first
    among = ", ".join(str(release.version) for release in found.skipped)
    return f"{first}, or one of {among}, which could not be measured,"


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _next(result: Bisection) -> doc.Line:
    if not result.found:
        return doc.sentence("name another value with `--watch`, or a wider range.")
    skipped = any(Status.SKIPPED in step.statuses.values() for step in result.steps)
    more = " Releases that could not be measured are listed with the reason." if skipped else ""
    return doc.sentence(f"read the release notes of {result.package} {result.found[0].after.version}.{more}")
