"""tox.ini and the workflow name environments and commands that exist."""

from __future__ import annotations

import ast
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


LIBRARIES = {"torch", "transformers", "datasets", "tokenizers", "accelerate", "evaluate"}
# Tools of this project, which are used with the newest versions only, and tests that have environments of their own.
NEWEST_ONLY = {"tests/faults", "tests/pretraining", "tests/benchmarks", "tests/third_party"}


def needs_libraries(place: Path) -> bool:
    """Whether a folder of tests, or one of its own beside them, imports a library that has an oldest version."""
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if {name.split(".")[0] for name in names} & LIBRARIES:
                return True
    return False


def test_what_needs_the_libraries_runs_with_the_oldest_too(tmp_path: Path) -> None:
    """A test that imports one of them, or lies beside one that does, is in the list of `tests-oldest`."""
    named = set(re.findall(r"tests/[\w./]+", tox()["testenv:tests-oldest"]["commands"]))
    assert {place for place in named if not (ROOT / place).exists()} == set()
    places = {place for place in (ROOT / "tests").iterdir() if place.is_dir() or place.name.startswith("test_")}
    needing = {place.relative_to(ROOT).as_posix() for place in places if needs_libraries(place)}
    assert needing - named == NEWEST_ONLY
    (tmp_path / "test_new.py").write_text("def test_x():\n    from transformers.models import bert\n", encoding="utf-8")
    assert needs_libraries(tmp_path)
    assert not needs_libraries(ROOT / "tests" / "compare")


def test_the_oldest_differ_in_nothing_else() -> None:
    """What the other rooms use, such as numpy and pyarrow, is the same in both: they need not run twice."""
    folder = ROOT / ".ci" / "constraints"
    oldest, newest = (
        dict(re.findall(r"^([\w.-]+)==(\S+)", (folder / f"{name}.txt").read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("oldest", "newest")
    )
    differing = {name for name in oldest.keys() & newest if oldest[name] != newest[name]}
    # fsspec, dill and multiprocess are what datasets needs.
    assert differing == {"datasets", "dill", "fsspec", "huggingface_hub", "multiprocess", "tokenizers", "transformers"}
