"""Check committed goldens, records and tables: valid entries, and a known origin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlmrepro.compare.golden import lint as lint_golden
from mlmrepro.compare.golden import read_golden
from mlmrepro.errors import UserError
from mlmrepro.provenance import origin_problems
from mlmrepro.record import RunRecord

__all__ = ["KINDS", "kind_of", "lint", "lint_all"]

# A file is of the first kind that has one of its keys; tables: detection, mutation, simulation, adopted checkpoints.
KINDS = {"golden": ("expected",), "record": ("stages",), "table": ("cases", "rooms", "scenarios", "adopted")}


def kind_of(path: Path) -> str:
    """Return "golden", "record", "table", or "" for any other JSON; an unreadable file counts as a golden.

    Files of these kinds are JSON objects. A damaged file must not count as other JSON, which is not checked.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "golden"
    keys = content if isinstance(content, dict) else {}
    return next((kind for kind, names in KINDS.items() if any(name in keys for name in names)), "")


def lint_all(places: list[Path]) -> tuple[list[str], dict[str, int], list[Path]]:
    """Return the problems in these files and folders, one line each; the count of each kind; and the unchecked files.

    Raises UserError if a place does not exist or holds nothing that can be checked.
    """
    problems: list[str] = []
    counts = dict.fromkeys(KINDS, 0)
    others: list[Path] = []
    for place in places:
        if not place.exists():
            raise UserError(f"{place} does not exist", remedy="give a file or folder of goldens, records or tables")
        paths = sorted(place.rglob("*.json")) if place.is_dir() else [place]
        kinds = {path: kind_of(path) for path in paths}
        if not any(kinds.values()):
            raise UserError(
                f"{place} holds no golden, record or table",
                remedy="give a place that does, such as golden",
            )
        for path, kind in kinds.items():
            if kind:
                counts[kind] += 1
                problems += lint(path)
            else:
                others.append(path)
    return problems, counts, others


def lint(path: Path) -> list[str]:
    """Return the problems of one golden, record or table, one line each, which begins with its path.

    A golden of a user's own tests, recognised by having no settings of a guide run, need not name a commit: it comes
    from their code.
    """
    kind = kind_of(path)
    try:
        if kind == "golden":
            origin = read_golden(path).provenance
            found = lint_golden(path)
            if not {"config", "guide", "commit", "source"} & set(origin):
                return found
            return found + [f"{path}: {problem}" for problem in origin_problems(origin)]
        if kind == "record":
            return [f"{path}: {problem}" for problem in origin_problems(RunRecord.read(path).provenance)]
    except UserError as error:
        return [f"{path}: {error.problem.removeprefix(f'{path} ')}"]
    return [f"{path}: {problem}" for problem in _table_problems(json.loads(path.read_text(encoding="utf-8")))]


def _table_problems(content: dict[str, Any]) -> Iterator[str]:
    provenance = content.get("provenance")
    yield from origin_problems(provenance if isinstance(provenance, dict) else {})
    # Rows of the detection table are measured separately, so each names its own commit.
    for n, case in enumerate(content.get("cases", []), start=1):
        if not isinstance(case, dict):
            yield f"its row {n} is not an object"
            continue
        commit = case.get("commit", "")
        if not commit or commit.endswith("-dirty"):
            how = f"was measured with uncommitted changes ({commit})" if commit else "names no commit"
            yield f"the row {case.get('name')!r} {how}"
