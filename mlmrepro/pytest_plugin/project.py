"""Find the project directory of some tests, whatever directory pytest is started in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mlmrepro.compare.golden import is_golden
from mlmrepro.errors import UserError

__all__ = ["configures_pytest", "inner_project", "project_of"]

_CONFIGURING = {
    **dict.fromkeys(("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini"), ""),
    "pyproject.toml": r"(?m)^\s*\[tool\.pytest\b",
    "tox.ini": r"(?m)^\[pytest\]",
    "setup.cfg": r"(?m)^\[tool:pytest\]",
}
_MARKS = ("pyproject.toml", "setup.cfg", "setup.py", "tox.ini", ".git", ".hg")
_REMEDY = "set golden_dir in the pytest configuration of the project, such as `golden_dir = golden` in its pytest.ini"


def configures_pytest(folder: Path) -> bool:
    """Return whether a directory has a pytest configuration."""
    for name, section in _CONFIGURING.items():
        path = folder / name
        if path.is_file() and re.search(section, path.read_text(encoding="utf-8", errors="replace")):
            return True
    return False


def _is_marked(folder: Path) -> bool:
    return configures_pytest(folder) or any((folder / name).exists() for name in _MARKS)


def _has_goldens(folder: Path) -> bool:
    return any(is_golden(path) for path in (folder / "golden").rglob("*.json"))


def project_of(start: Path) -> Path:
    """Return the nearest directory, from `start` upwards, that is a project; raises UserError if it is not clear."""
    above = [start, *start.parents]
    for is_project in (configures_pytest, _is_marked):
        for folder in above:
            if is_project(folder):
                return folder
    roots = [folder for folder in above if _has_goldens(folder)]
    if len(roots) == 1:
        return roots[0]
    found = (
        f"the goldens of {roots[0]} and of {roots[1]}" if roots else "no pytest configuration, package or repository"
    )
    raise UserError(
        f"it is not clear which project {start} belongs to, and where its goldens lie: {found}", remedy=_REMEDY
    )


def inner_project(folder: Path, root: Path) -> Path | None:
    """Return a directory below `root` that would be the project if pytest were started in `folder`."""
    if not folder.is_relative_to(root):
        return None
    is_project: Callable[[Path], bool] = configures_pytest if configures_pytest(root) else _is_marked
    below = [each for each in (folder, *folder.parents) if each != root and each.is_relative_to(root)]
    return next((each for each in below if is_project(each) or _has_goldens(each)), None)
