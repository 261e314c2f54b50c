"""The settings of the user's project: the table ``[tool.mlmrepro]`` of its pyproject.toml.

[tool.mlmrepro]
goldens = "golden/my-model"  # relative to the file
max-disk = "20GB"  # what the environments of matrix, gate and bisect may take
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from mlmrepro.errors import UserError

__all__ = ["Project", "project", "read_size"]

_FILE, _TABLE = "pyproject.toml", "tool.mlmrepro"
_KEYS = ("goldens", "max-disk")


@dataclass(frozen=True)
class Project:
    """What a project says in its pyproject.toml."""

    file: Path
    goldens: Path | None = None  # the folder of goldens
    max_disk: float | None = None  # bytes

    @property
    def origin(self) -> str:
        """Return the goldens, and where they are named, in words."""
        return f"{self.goldens} (goldens in [{_TABLE}] of {self.file})"


def project(start: Path | None = None) -> Project | None:
    """Return the settings of the nearest pyproject.toml with the table, from `start` (default: here) upwards.

    Returns None if no file has it. Raises UserError, naming the file, the field and the remedy, for a file that cannot
    be read, an unknown key, and a value of a wrong type or that is not a folder.
    """
    here = (start or Path()).absolute()
    for folder in (here, *here.parents):
        path = folder / _FILE
        if path.is_file() and (found := _read(path)) is not None:
            return found
    return None


def read_size(text: object, name: str) -> float:
    """Return the bytes of a size such as ``20GB``; raises UserError, with its name, for everything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT])B", text.strip(), re.IGNORECASE) if isinstance(text, str) else None
    if found is None:
        raise UserError(f"{name} is {text!r}, not a size", remedy="write a number with MB, GB or TB, such as 20GB")
    return float(found[1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[found[2].upper()]


def _read(path: Path) -> Project | None:
    """Return the settings of one file, None if it does not have the table."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", remedy="make it readable, as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        if "mlmrepro" not in text:  # another project's file, which is not ours to judge
            return None
        raise UserError(f"{path} is not TOML: {error}", remedy="correct it") from error
    tool = content.get("tool", {})
    if not isinstance(tool, dict) or "mlmrepro" not in tool:
        return None
    table = tool["mlmrepro"]
    if not isinstance(table, dict):
        raise UserError(f"{path}: {_TABLE} is not a table", remedy=f"write [{_TABLE}] on a line of its own")
    for key in table:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            remedy = f"write {near[0]}" if near else f"leave it out; the keys are: {', '.join(_KEYS)}"
            raise UserError(f"{path}: {_TABLE}.{key} is not a setting", remedy=remedy)
    size = read_size(table["max-disk"], f"{path}: {_TABLE}.max-disk") if "max-disk" in table else None
    if "goldens" not in table:
        return Project(path, max_disk=size)
    given = table["goldens"]
    if not isinstance(given, str) or not given.strip():
        raise UserError(
            f"{path}: {_TABLE}.goldens is {given!r}, not the path of a folder",
            remedy='write it as goldens = "golden/my-model", relative to the file',
        )
    goldens = path.parent / given
    if not goldens.is_dir():
        raise UserError(
            f"{path}: {_TABLE}.goldens names {given!r}, which is not a folder there",
            remedy="take the goldens with mlmrepro adopt, or correct the path, which is relative to the file",
        )
    return Project(path, goldens, size)
