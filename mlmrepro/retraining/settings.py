"""How strict a check is: the defaults, what ``[tool.mlmrepro]`` says, and what the command line says."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError, first_line

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What a check promises."""

    margin: float = 0.01  # relative rise of perplexity that still counts as the same
    alpha: float = 0.01  # chance that an answer "better", "same" or "REGRESSION" is wrong
    power: float = 0.95  # used to state the smallest detectable effect

    def __post_init__(self) -> None:
        for name, low, high in (("margin", 0.0, 1.0), ("alpha", 1e-6, 0.2), ("power", 0.5, 0.9999)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
                raise UserError(f"{name} is {value!r}", remedy=f"give a number from {low:g} to {high:g}")

    @property
    def margin_nats(self) -> float:
        """The margin in nats per token: ``ln(1 + margin)``."""
        return math.log1p(self.margin)

    @classmethod
    def find(cls, start: Path | None = None, **given: float | None) -> Settings:
        """Return the settings of the nearest pyproject.toml at or above `start`, overridden by `given` unless None.

        Raises UserError for a table with an unknown name or a value outside its range.
        """
        here = (start or Path.cwd()).resolve()
        table: dict[str, Any] = {}
        for folder in (here, *here.parents):
            file = folder / "pyproject.toml"
            if file.is_file():
                table = _table(file)
                break
        return cls(**(table | {name: value for name, value in given.items() if value is not None}))


def _table(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}", remedy="fix its TOML") from error
    tools = content.get("tool", {})
    table = tools.get("mlmrepro", {}) if isinstance(tools, dict) else tools
    if not isinstance(table, dict):
        raise UserError(
            f"{file}: [tool.mlmrepro] is not a table", remedy="write [tool.mlmrepro] and margin = 0.01 below"
        )
    known = [f.name for f in dataclasses.fields(Settings)]
    for name in table:
        if name not in known:
            raise UserError(f"{file}: [tool.mlmrepro] has no setting {name!r}", remedy=f"use: {', '.join(known)}")
    try:
        Settings(**table)
    except UserError as error:
        raise UserError(f"{file}: [tool.mlmrepro] {error.problem}", remedy=error.remedy) from error
    return table
