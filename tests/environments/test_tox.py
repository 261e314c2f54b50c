"""tox.ini and the workflow name the same environments as the catalogue, and commands that exist."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mlmrepro import cli
from mlmrepro.environments.spec import catalogue

ROOT = Path(__file__).parents[2]
ALL = (*catalogue().pairs, *catalogue().variations)


def tox() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return parser


def record_section() -> configparser.SectionProxy:
    (name,) = [name for name in tox().sections() if "record-{" in name]
    return tox()[name]


def test_tox_has_the_environments_of_the_catalogue_and_no_others() -> None:
    """Every pair and variation is an environment of tox, which runs them all where none is named."""
    names = [environment.name for environment in ALL]
    assert re.findall(r"t[\d.]+-d[\d.]+", record_section().name) == names
    assert re.findall(r"t[\d.]+-d[\d.]+", tox()["tox"]["env_list"]) == names


@pytest.mark.parametrize("environment", ALL, ids=[environment.name for environment in ALL])
def test_a_factor_brings_the_version_of_its_name(environment) -> None:  # type: ignore[no-untyped-def]
    """The factors of an environment's name install precisely its two requirements."""
    lines = dict(re.findall(r"^([td][\d.]+): (\S+)$", record_section()["deps"], flags=re.MULTILINE))
    assert {lines[factor] for factor in environment.name.split("-")} == set(environment.requirements)


def test_the_torch_of_tox_is_the_catalogues() -> None:
    """Tox and the matrix take the same torch, unless a user names another."""
    (torch,) = [need for need in catalogue().needs if need.startswith("torch")]
    assert f"{{env:TORCH:{torch}}}" in record_section()["deps"]


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
    assert all(step["if"] == "always()" for step in uploads)  # the page is wanted most where the gate is shut
