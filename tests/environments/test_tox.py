"""tox.ini and the workflow name environments and commands that exist."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mlmrepro import cli

ROOT = Path(__file__).parents[2]


def tox() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return parser


def test_plain_tox_runs_the_checks_and_the_matrix() -> None:
    """`tox` without arguments tells what an upgrade changes; the versions stand in matrix.toml only."""
    names = [name.strip() for name in tox()["tox"]["env_list"].split(",")]
    assert names == ["lint", "types", "tests", "tests-oldest", "matrix"]
    assert tox()["testenv:matrix"]["commands"] == "python -m mlmrepro matrix {posargs}"
    assert "transformers==" not in (ROOT / "tox.ini").read_text(encoding="utf-8")


def test_the_workflow_runs_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command of the workflow is a file or an environment that is there, with options that are known."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "drift.yml").read_text(encoding="utf-8"))
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    checks, command = [run for run in runs if run.startswith("tox ")]
    assert set(checks.removeprefix("tox run -e ").split(",")) <= {
        name.strip() for name in re.split(r"[,\n]", tox()["tox"]["env_list"])
    }
    assert command.startswith("tox run -e matrix -- ")
    assert "testenv:matrix" in tox().sections()
    with pytest.raises(SystemExit) as exit_:
        cli.main(["matrix", *shlex.split(command.partition(" -- ")[2]), "--help"])
    assert exit_.value.code == 0
    uploads = [step for job in workflow["jobs"].values() for step in job["steps"] if "upload" in step.get("uses", "")]
    assert uploads
    assert all(step["if"] == "always()" for step in uploads)  # the page matters most if the job fails
