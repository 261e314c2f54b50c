"""How strict a check is: the nearest pyproject.toml, what is given on top of it, and what no check could use."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from mlmrepro.errors import UserError
from mlmrepro.retraining.settings import Settings

pytestmark = pytest.mark.quick


def project(folder: Path, table: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(table, encoding="utf-8")
    return folder


def test_the_margin_is_a_ratio_of_perplexities() -> None:
    """One per cent of perplexity is ln(1.01) nats a token: adding it to a loss multiplies the perplexity by 1.01."""
    assert math.isclose(math.exp(2.5 + Settings().margin_nats), 1.01 * math.exp(2.5))
    assert Settings(margin=0).margin_nats == 0.0


def test_what_is_given_goes_before_the_table(tmp_path: Path) -> None:
    """The table's values hold where nothing is given; 0 is given, None is not."""
    here = project(tmp_path, "[tool.mlmrepro]\nmargin = 0.02\nalpha = 0.05\n")
    assert Settings.find(here) == Settings(margin=0.02, alpha=0.05)
    assert Settings.find(here, margin=0.0, alpha=None, power=0.8) == Settings(margin=0.0, alpha=0.05, power=0.8)


def test_the_nearest_project_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder below, the file above it is found; one without a table, or with another tool's, says nothing."""
    project(tmp_path, "[tool.mlmrepro]\nmargin = 0.5\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert Settings.find(below).margin == 0.5
    monkeypatch.chdir(below)
    assert Settings.find().margin == 0.5
    project(tmp_path / "a", "[tool.other]\nmargin = 0.7\n")
    assert Settings.find(below) == Settings()


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[tool.mlmrepro]\nmargins = 0.1\n", "[tool.mlmrepro] has no setting 'margins'. Remedy: use: margin, alpha"),
        ("[tool.mlmrepro]\nmargin = -0.1\n", "[tool.mlmrepro] margin is -0.1. Remedy: give a number from 0 to 1."),
        ("[tool.mlmrepro]\nmargin = '1 %'\n", "margin is '1 %'. Remedy: give a number"),
        ("[tool.mlmrepro]\nmargin = nan\n", "margin is nan. Remedy: "),
        ("[tool.mlmrepro]\nalpha = true\n", "alpha is True. Remedy: "),
        ("[tool.mlmrepro]\nalpha = 0\n", "alpha is 0. Remedy: give a number from 1e-06 to 0.2."),
        ("[tool.mlmrepro]\npower = 1.0\n", "power is 1.0. Remedy: give a number from 0.5 to 0.9999."),
        ("[tool.mlmrepro\n", "cannot be read: "),
        ("tool = 3\n", "[tool.mlmrepro] is not a table"),
        ("[tool]\nmlmrepro = 0.01\n", "[tool.mlmrepro] is not a table"),
    ],
)
def test_a_mistaken_table_is_told_with_its_file(tmp_path: Path, table: str, problem: str) -> None:
    """An unknown name, a value out of its range, of another type, or no TOML: file, field and remedy."""
    here = project(tmp_path, table)
    with pytest.raises(UserError, match=re.escape(problem)) as raised:
        Settings.find(here)
    assert str(here / "pyproject.toml") in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [("margin", 1.5), ("alpha", 0.5), ("power", 0.4), ("margin", math.inf)])
def test_a_mistaken_value_is_told(tmp_path: Path, name: str, value: float) -> None:
    """Also one from the command line, which no file is blamed for."""
    with pytest.raises(UserError, match=f"^{name} is {value}") as raised:
        Settings.find(tmp_path, **{name: value})
    assert "pyproject" not in str(raised.value)
