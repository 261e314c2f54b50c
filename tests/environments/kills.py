"""gate, matrix and bisect under SIGKILL at random moments: each continues, and nothing is ever half-written.

It takes minutes, so the suite does not collect it: ``tox run -e kills``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..report.records import golden, record
from .conftest import make_wheel

KILLS = 20
SEED = 20261130

# Stands for `mlmrepro record`: a value depends on the version of pandas that is installed.
RECORDER = """
import json, pathlib, sys, time
import pandas
content = json.loads(pathlib.Path("template.json").read_text())
content["stages"]["dataset"]["train_rows"]["value"] = 30 + (pandas.__version__ >= "9.3")
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
with open("calls", "a") as calls:
    calls.write(output.stem + "\\n")
time.sleep(0.2)
part = output.with_suffix(".part")
part.write_text(json.dumps(content))
part.rename(output)
"""
DRIVER = """
import pathlib, sys
from mlmrepro import cli
from mlmrepro.environments import matrix, upgrade
command = ("-c", pathlib.Path("recorder.py").read_text())
for each in (matrix.run_matrix, matrix.kept_outcome):
    each.__kwdefaults__["command"] = command
upgrade.RECORD = command
cli.main(sys.argv[1:])
"""
PAIR = ["--with", "transformers==1.0", "--with", "datasets==1.0"]
COMMANDS = {
    "gate": (["gate", "--from", "1.txt", "--to", "2.txt", "--budget", "60", "--json"], 1),
    "matrix": (["matrix", *(f"--envs=transformers==1.0 datasets==1.0 pandas==9.{n}" for n in (1, 4)), "--json"], 1),
    "bisect": (["bisect", "pandas", "9.1", "9.4", *PAIR, "--watch", "dataset.train_rows", "--json"], 0),
}


def project(folder: Path, index: Path) -> None:
    """Lay out a project with two lock files, goldens, and what stands for a record."""
    folder.mkdir()
    for number in range(1, 5):
        make_wheel(index, "pandas", f"9.{number}")
    for side, number in (("1", 1), ("2", 4)):
        (folder / f"{side}.txt").write_text(f"transformers==1.0\ndatasets==1.0\npandas==9.{number}\n")
    record().write(folder / "template.json")
    golden(folder / "goldens", record())
    (folder / "recorder.py").write_text(RECORDER)
    (folder / "calls").touch()


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, *arguments, "--goldens", "goldens", "--directory", "runs"]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, text=True)


def finish(folder: Path, arguments: list[str], code: int) -> dict[str, object]:
    assert start(folder, arguments).wait() == code, (folder / "err").read_text()
    return dict(json.loads((folder / "out").read_text().replace(str(folder), "FOLDER")))


def whole(folder: Path) -> None:
    """Read every result that is there, under its own name: half of one would not be read."""
    for path in (folder / "runs").rglob("*.json"):
        json.loads(path.read_text())
    for marker in (folder / ".mlmrepro").rglob("complete.json"):
        json.loads(marker.read_text())
        assert (marker.parent / "bin" / "python").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_continues(name: str, index: Path, tmp_path: Path) -> None:
    """After each kill all files are whole, and the run that is left alone gives what an unbroken one gives."""
    arguments, code = COMMANDS[name]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    project(unbroken, index)
    project(broken, index)
    started = time.monotonic()
    expected = finish(unbroken, arguments, code)
    took = time.monotonic() - started
    draw = random.Random(SEED)
    for _ in range(KILLS):
        process = start(broken, arguments)
        time.sleep(draw.uniform(0, took))
        process.kill()
        process.wait()
        whole(broken)
    assert finish(broken, arguments, code) == expected
    whole(broken)
    calls = [(folder / "calls").read_text().split() for folder in (unbroken, broken)]
    assert set(calls[0]) == set(calls[1])
    if name != "matrix":  # which measures all again after a run that came to its end before the kill
        assert len(calls[1]) <= len(calls[0]) + KILLS, "a kill costs one record at most"
    assert not list((broken / "runs").rglob("*.part"))
