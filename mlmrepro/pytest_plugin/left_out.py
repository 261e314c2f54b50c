"""Find tests on disk that pytest did not collect in this run."""

from __future__ import annotations

import ast
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

__all__ = ["left_out_tests", "test_files"]


def test_files(root: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """Iterate over the test files below `root`, except in hidden directories and virtual environments."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in ("__pycache__", "node_modules")
            and not (here / name / "pyvenv.cfg").exists()
        ]
        yield from (here / name for name in names if any(Path(name).match(pattern) for pattern in patterns))


def left_out_tests(path: Path, collected: Collection[str]) -> list[str]:
    """Return the tests that a module defines, even conditionally, and that are not in `collected`.

    Methods are named with their class: ``TestSaving.test_twice``.
    """
    try:
        module = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return sorted(set(_defined(module)) - set(collected))


def _defined(node: ast.AST, inside: str = "") -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if child.name.startswith("test") and not any("fixture" in ast.unparse(d) for d in child.decorator_list):
                yield f"{inside}{child.name}"
        elif isinstance(child, ast.ClassDef):
            yield from _defined(child, f"{inside}{child.name}.")
        elif not isinstance(child, ast.expr):
            yield from _defined(child, inside)
