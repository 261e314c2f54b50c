"""What every test of the plugin runs in: a project of its own, and no other plugin."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

import mlmrepro
from mlmrepro import provenance

from .projects import MODULE, write_goldens, write_tests


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No plugin but the tested one, found where this process found it, and none of the options of this run."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(mlmrepro.__file__).parents[1]), prepend=os.pathsep)
    # What git would say is not looked at here, and asking takes longer than the test.
    monkeypatch.setattr(provenance, "_commit", lambda: None)
    # Locks lie in the directory for temporary files: let them go with the test.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Two modules with their goldens, and beside them an entry and a file that no test uses."""
    pytester.makeini("[pytest]\ntestpaths = tests\n")
    write_tests(pytester, test_a=MODULE, test_b="def test_three(golden): golden.exact('x', 3)")
    write_goldens(
        pytester,
        **{"tests/test_a/test_one": {"x": 1}, "tests/test_b/test_three": {"x": 3}},
        shared={"x": 2, "gone": 0},
        old={"x": 0},
    )
    return pytester
