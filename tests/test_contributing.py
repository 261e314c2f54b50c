"""CONTRIBUTING.md: its worked examples are run as they are written, in a copy of the package and its goldens."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlmrepro
from mlmrepro import record
from mlmrepro.compare import golden
from mlmrepro.compare.judge import Expectations, Verdict, judge_record
from mlmrepro.environments.matrix import read_outcomes
from mlmrepro.environments.spec import PAIR
from mlmrepro.record import RunRecord
from mlmrepro.retraining import baseline, runs

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
IGNORED = {"__pycache__", ".mlmrepro", "mlmrepro-runs"}  # by git

# Without its golden the item fails; then the documented command writes it. One process, to import the libraries once.
THRICE = """
import sys, pytest
given = sys.argv[1:]
again = [each for each in given if not each.startswith("--golden-update")]
assert again != given
print("exit codes", *[int(pytest.main(each)) for each in (again, given, again)])
"""
# `mlmrepro` whose environments are made without pip: what stands for their Python copies a record, with its versions.
COMMAND = """#!{python}
import sys
from pathlib import Path
from mlmrepro import cli
from mlmrepro.environments import matrix
matrix.make_environment = lambda environment, *_, **__: Path(__file__).with_name("python")
cli.main(sys.argv[1:])
"""
PYTHON = """#!{python}
import json, pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
content = json.loads(pathlib.Path({template!r}).read_text())
content["provenance"]["packages"] |= dict(zip(("transformers", "datasets"), output.stem[1:].split("-d")))
output.write_text(json.dumps(content))
"""
PAIRS = "from mlmrepro.environments import spec; print(*[each.name for each in spec.catalogue().pairs])"


def example(title: str) -> tuple[str, str, str, str]:
    """Return the file that a section's first block changes, the place, the block, and the commands below it."""
    section = TEXT.partition(f"### {title}\n")[2].partition("\n##")[0]
    (_, block), (_, commands) = re.findall(r"```(python|toml|bash)\n(.*?)```", section, flags=re.DOTALL)
    head, _, code = block.partition("\n")
    file, where = head.removeprefix("# ").split(", ")
    return file, where, code, commands


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a contributor changes: the package, the goldens and the records."""
    package = Path(mlmrepro.__file__).parent
    shutil.copytree(package, tmp_path / "checkout" / "mlmrepro", ignore=shutil.ignore_patterns("golden"))
    for name in ("embedded", "matrix"):
        shutil.copytree(ROOT / "golden" / name, tmp_path / "checkout" / "golden" / name)
    return tmp_path / "checkout"


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of each file that git does not ignore."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not IGNORED & {*path.parts}]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def run(command: list[str], checkout: Path) -> str:
    """Run a command in the copy, with the package of the copy, and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    path = os.pathsep.join((str(checkout.parent / "bin"), os.environ["PATH"]))
    own = {"PYTHONPATH": str(checkout), "PATH": path, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    done = subprocess.run(command, cwd=checkout, env=kept | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_observation_is_two_files(checkout: Path) -> None:
    """The function and its golden; it fails without the golden, and records that were not asked for it stay valid."""
    before = contents(checkout)
    file, where, code, commands = example("Add an observation")
    assert where == "at the end"
    with (checkout / file).open("a", encoding="utf-8") as module:
        module.write(f"\n\n{code}")
    program, *arguments = shlex.split(commands)
    assert program == "pytest"
    printed = run([sys.executable, "-c", THRICE, *arguments], checkout)
    assert printed.endswith("exit codes 1 0 0\n"), printed
    assert printed.count("1 passed") == 2
    assert {path for path, _ in contents(checkout).items() ^ before.items()} == {file, "golden/embedded/input_ids.json"}

    name = arguments[arguments.index("-k") + 1]
    extended = Expectations.from_goldens(checkout / "golden" / "embedded")
    assert [each for each in extended.entries["input_ids"] if f".{name}." in each] == [f"off_path.{name}.keys"]
    for path in (checkout / "golden" / "matrix").glob("t*.json"):
        committed = RunRecord.read(path)
        assert committed.asked is not None
        assert [finding for finding in judge_record(extended, committed) if finding.observer == name] == []
        committed.asked[f"input_ids.{name}"] = ""  # had it been asked for, its absence would fail
        (missing,) = [finding for finding in judge_record(extended, committed) if finding.observer == name]
        assert missing.verdict is Verdict.UNMEASURED


def test_a_pair_of_versions_is_two_files(checkout: Path) -> None:
    """The entry, in its place, and its record, which the documented commands make and a report reads."""
    before = contents(checkout)
    file, where, code, commands = example("Add a pair of versions")
    entries = (checkout / file).read_text(encoding="utf-8")
    next_one = where.removeprefix("above ")
    above = f'[[pair]]\nname = "{next_one}"\n'
    assert entries.count(above) == 1
    (checkout / file).write_text(entries.replace(above, f"{code}\n{above}"), encoding="utf-8")
    (name,) = re.findall(r'name = "(.*)"', code)
    template = str(ROOT / "golden" / "matrix" / f"{next_one}.json")
    (checkout.parent / "bin").mkdir()
    for program, script in (("mlmrepro", COMMAND), ("python", PYTHON)):
        path = checkout.parent / "bin" / program
        path.write_text(script.format(python=sys.executable, template=template), encoding="utf-8")
        path.chmod(0o755)
    run(["bash", "-c", commands], checkout)
    assert {path for path, _ in contents(checkout).items() ^ before.items()} == {file, f"golden/matrix/{name}.json"}
    assert f" {name} {next_one} " in run([sys.executable, "-c", PAIRS], checkout)
    found = {outcome.name: outcome for outcome in read_outcomes(checkout / "golden" / "matrix")}
    assert not found[name].problem
    assert [f"{package}=={found[name].versions[package]}" for package in PAIR] == re.findall(r'"(\w+==[\d.]+)"', code)


def test_the_schemas_are_those_of_the_code() -> None:
    """The table has the numbers that are written and read."""
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| (\d) \| ([\d, ]+) \|", TEXT, flags=re.MULTILINE)
    wanted = {"golden": golden.SCHEMA, "record": record.SCHEMA, "baseline": baseline.SCHEMA, "retraining": runs.SCHEMA}
    assert {name: int(schema) for name, schema, _ in rows} == wanted
    read = {name: tuple(map(int, numbers.split(", "))) for name, _, numbers in rows}
    assert read == {name: (schema,) for name, schema in wanted.items()} | {"record": record._READS}
