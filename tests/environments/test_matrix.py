"""The matrix: every environment becomes a row, whatever befalls it, and a killed run continues."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from rich.console import Console

from mlmrepro.compare.drift import Outcome
from mlmrepro.environments import matrix
from mlmrepro.environments.children import last_words
from mlmrepro.environments.make import Unmade
from mlmrepro.environments.matrix import kept_outcome, read_outcomes, run_matrix
from mlmrepro.environments.spec import Environment
from mlmrepro.errors import UserError
from mlmrepro.record import Lane, RunRecord
from mlmrepro.report.progress import MatrixDisplay

from ..waiting import LIMIT, until

# Stands for `mlmrepro record`: what it does is in the environment's name.
RECORDER = """
import os, pathlib, shutil, subprocess, sys, time
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
name, folder = output.stem, pathlib.Path(os.environ["FOLDER"])
with open(folder / "calls", "a") as calls:
    calls.write(name + "\\n")
print("output of", name, *sys.argv[3:], flush=True)
if name.startswith("crash"):
    raise ValueError("no such column")
if name.startswith("hang") and "HANG" in os.environ:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "pids.new").write_text(f"{os.getpid()} {child.pid}")
    os.rename(folder / "pids.new", folder / "pids")
    time.sleep(600)
if name.startswith("killed"):
    os.kill(os.getpid(), 9)
if name.startswith("meet"):
    (folder / f"{name}.here").touch()
    while len(list(folder.glob("meet-*.here"))) < 2:
        time.sleep(0.02)
if name.startswith("half"):
    output.write_text(open(os.environ["TEMPLATE"]).read()[:-20])
elif not name.startswith("nothing"):
    shutil.copy(os.environ["TEMPLATE"], output)
"""
COMMAND = ("-c", RECORDER)

DRIVER = """
import signal, sys
from pathlib import Path
from mlmrepro.environments import matrix
from mlmrepro.environments.spec import Environment
matrix.make_environment = lambda *_, **__: Path(sys.executable)
directory, command, *names = sys.argv[1:]
environments = [Environment(name, ("transformers==5.0.0", "datasets==4.5.0")) for name in names]
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
matrix.run_matrix(environments, Path(directory), cache=Path(directory) / "cache", command=("-c", command))
"""


def environments(*names: str) -> list[Environment]:
    return [Environment(name, ("transformers==5.0.0", "datasets==4.5.0")) for name in names]


def write_record(path: Path, transformers: str = "5.0.0", datasets: str = "4.5.0") -> None:
    record = RunRecord({"packages": {"transformers": transformers, "datasets": datasets}, "python": "3.11.4"}, {})
    record.observe("dataset", "train_rows", 3, Lane.EXACT)
    record.write(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where records are taken by the stand-in, in this very Python."""
    write_record(tmp_path / "template")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("TEMPLATE", str(tmp_path / "template"))
    monkeypatch.setattr(matrix, "make_environment", lambda *_, **__: Path(sys.executable))
    return tmp_path


def run(folder: Path, *names: str, **settings: Any) -> dict[str, Outcome]:
    found = run_matrix(
        environments(*names), folder / "runs", cache=folder / "cache", command=COMMAND, **{"jobs": 2, **settings}
    )
    assert [outcome.name for outcome in found] == list(names)
    assert found == read_outcomes(folder / "runs")
    return {outcome.name: outcome for outcome in found}


def calls(folder: Path) -> list[str]:
    return sorted((folder / "calls").read_text().split())


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(folder: Path) -> None:
    """Neither the process that recorded nor its child is left."""
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    until(lambda: not any(map(is_alive, pids)))


class Notes:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.phases: dict[str, list[str]] = {}

    def environment(self, name: str, phase: str, note: str = "") -> None:
        self.phases.setdefault(name, []).append(phase)


def test_every_environment_becomes_a_row(folder: Path) -> None:
    """A record where there is one; else the one line that says why there is none, with the log beside it."""
    notes = Notes()
    names = ("good", "crash", "killed", "nothing", "half")
    found = run(folder, *names, progress=notes)
    assert found["good"].record is not None
    assert found["good"].versions["transformers"] == "5.0.0"
    assert found["crash"].problem == "ValueError: no such column"
    assert found["killed"].problem == "killed by SIGKILL"
    assert found["nothing"].problem == "ended without a record"
    assert "is not a complete record" in found["half"].problem
    for outcome in found.values():
        assert f"output of {outcome.name}" in Path(outcome.log).read_text()
        assert (outcome.record is None) == bool(outcome.problem)
    assert notes.phases["good"] == ["waiting", "installing", "recording", "done"]
    assert notes.phases["crash"] == ["waiting", "installing", "recording", "failed"]


def test_an_environment_that_cannot_be_made_is_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason and the log of the installation stand in the directory of the run; the others go on."""
    (folder / "pip.log").write_text("all that pip said")

    def make(environment: Environment, *_: object, **__: object) -> Path:
        if environment.name == "bad":
            raise Unmade("No matching distribution found for transformers==9.9", folder / "pip.log")
        return Path(sys.executable)

    monkeypatch.setattr(matrix, "make_environment", make)
    found = run(folder, "bad", "good")
    assert found["bad"].problem == "No matching distribution found for transformers==9.9"
    assert Path(found["bad"].log) == folder / "runs" / "bad.log"
    assert Path(found["bad"].log).read_text() == "all that pip said"
    assert found["good"].record is not None


def test_a_record_that_takes_too_long_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout is the problem, and no process is left."""
    monkeypatch.setenv("HANG", "1")
    for seconds in (1.5, 15, 150):  # on a slow machine both may need longer to begin
        found = run(folder, "hang", "good", timeout=seconds)
        assert found["hang"].problem == f"took longer than {seconds:g} s"
        if (folder / "pids").exists() and found["good"].record is not None:
            break
    assert found["good"].record is not None
    assert_gone(folder)


def test_jobs_run_at_the_same_time(folder: Path) -> None:
    """Two records that wait for each other are both taken with two jobs."""
    found = run(folder, "meet-1", "meet-2", jobs=2, timeout=LIMIT)
    assert all(outcome.record is not None for outcome in found.values())


def test_a_finished_run_is_taken_afresh(folder: Path) -> None:
    """No record is reused, and an earlier one never stands for an environment that fails now."""
    run(folder, "good", "nothing")
    write_record(folder / "runs" / "nothing.json")
    found = run(folder, "good", "nothing")
    assert calls(folder) == ["good", "good", "nothing", "nothing"]
    assert found["nothing"].record is None


def test_a_finished_run_is_kept_on_request(folder: Path) -> None:
    """With `keep`, a record is not taken again, and what failed is tried again."""
    run(folder, "good", "nothing")
    found = run(folder, "good", "nothing", keep=True)
    assert calls(folder) == ["good", "nothing", "nothing"]
    assert found["good"].record is not None
    assert found["nothing"].record is None
    good, nothing, other = environments("good", "nothing", "other")
    assert kept_outcome(good, folder / "runs", command=COMMAND) == found["good"]
    for environment, command in ((nothing, COMMAND), (other, COMMAND), (good, ("-c", "another"))):
        assert kept_outcome(environment, folder / "runs", command=command) is None


def test_one_environment_can_be_measured_again(folder: Path) -> None:
    """The others of the directory stay as they are, failures too, and the upgrade path stays in order."""
    run(folder, "crash", "good")
    newer = Environment("newer", ("transformers==5.5.4", "datasets==4.8.5"))
    older = Environment("older", ("transformers==4.53.3", "datasets==3.6.0"))
    found = run_matrix([newer, older], folder / "runs", cache=folder / "cache", command=COMMAND)
    assert [outcome.name for outcome in found] == ["newer", "older"]
    assert [outcome.name for outcome in read_outcomes(folder / "runs")] == ["older", "crash", "good", "newer"]
    assert calls(folder) == ["crash", "good", "newer", "older"]


def test_goldens_are_passed_on(folder: Path) -> None:
    """The record process is told where the goldens lie, absolutely."""
    (folder / "golden").mkdir()
    run(folder, "good", goldens=folder / "golden")
    assert f"--goldens {folder / 'golden'}" in (folder / "runs" / "good.log").read_text()


def start(folder: Path, *names: str) -> subprocess.Popen:
    """Run a matrix that hangs in another process, and return once it does."""
    (folder / "pids").unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder / "runs"), RECORDER, *names],
        # Not the checkout that may be the working directory: another mlmrepro would not continue this one's run.
        env=os.environ | {"HANG": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(matrix.__file__).parents[2])},
        stderr=subprocess.DEVNULL,
    )
    until(lambda: (folder / "pids").exists() or process.poll() is not None)
    assert process.poll() is None
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_no_process_and_is_continued(how: signal.Signals, folder: Path) -> None:
    """What was finished is kept, the rest is a row that says so until the next run measures it."""
    process = start(folder, "good", "crash", "hang", "last")
    process.send_signal(how)
    assert process.wait(LIMIT) != 0
    assert_gone(folder)

    found = {outcome.name: outcome for outcome in read_outcomes(folder / "runs")}
    assert found["good"].record is not None
    assert found["crash"].problem == "ValueError: no such column"
    assert found["hang"].problem == found["last"].problem == "not measured: the matrix was interrupted"

    notes = Notes()
    found = run(folder, "good", "crash", "hang", "last", progress=notes)
    assert notes.phases["good"] == ["done"]
    assert [name for name, outcome in found.items() if outcome.record is None] == ["crash"]
    # What failed may have failed because of the kill: it is tried again.
    assert calls(folder) == ["crash", "crash", "good", "hang", "hang", "last"]
    run(folder, "good", "crash", "hang", "last")
    assert calls(folder).count("good") == 2


def test_records_of_other_inputs_are_not_continued(folder: Path) -> None:
    """A killed run with other goldens, or a record that is gone, is no reason to skip an environment."""
    start(folder, "good", "gone", "hang").kill()
    assert_gone(folder)
    (folder / "runs" / "gone.json").unlink()
    (folder / "golden").mkdir()
    run(folder, "good", "gone", "hang", goldens=folder / "golden")
    assert calls(folder).count("good") == calls(folder).count("gone") == 2


def test_two_runs_do_not_share_a_directory(folder: Path) -> None:
    """The second one is refused while the first one runs."""
    (folder / "runs").mkdir()
    with FileLock(folder / "runs" / ".matrix.lock"), pytest.raises(UserError, match="another matrix is running"):
        run(folder, "good")


def test_records_alone_are_read_in_the_order_of_their_versions(tmp_path: Path) -> None:
    """Records that tox made, or someone sent, need no state; other JSON beside them is left alone."""
    write_record(tmp_path / "a.json", "5.10.0", "5.0.1")
    write_record(tmp_path / "b.json", "5.9.0", "5.0.1")
    write_record(tmp_path / "c.json", "4.41.2", "2.19.2")
    (tmp_path / "report.json").write_text("{}")
    assert [outcome.name for outcome in read_outcomes(tmp_path)] == ["c", "b", "a"]


def test_damage_becomes_a_row(folder: Path) -> None:
    """A cut record and a cut state are rows that say so; everything whole is still read."""
    run(folder, "good", "crash")
    runs = folder / "runs"
    write_record(runs / "other.json")
    (runs / "cut.json").write_text((runs / "good.json").read_text()[:50])
    assert [outcome.name for outcome in read_outcomes(runs)] == ["good", "crash", "cut", "other"]
    (runs / "matrix.json").write_text((runs / "matrix.json").read_text()[:50])
    found = {outcome.name: outcome for outcome in read_outcomes(runs)}
    assert set(found) == {"matrix.json", "good", "cut", "other"}
    assert "damaged" in found["matrix.json"].problem
    assert "is not a complete record" in found["cut"].problem
    assert found["good"].record is not None


def test_a_folder_without_records_is_bad_input(tmp_path: Path) -> None:
    """So is one that does not exist."""
    with pytest.raises(UserError, match="holds no records"):
        read_outcomes(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read_outcomes(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n", "KeyError: 'a'"),
        (
            "Traceback (most recent call last):\n  x\nKeyError: 'a'\n\nThe above ...:\n\n"
            "Traceback (most recent call last):\n  y\nValueError: two\nlines\n 10%|\r 20%|",
            "ValueError: two",
        ),
        (
            "Traceback (most recent call last):\n  x\nKeyError: 1\nmlmrepro: error: Bad. Remedy: mend.\n",
            "Bad. Remedy: mend.",
        ),
        ("$ python -m mlmrepro\nSegmentation fault\n", "Segmentation fault"),
        ("$ python -m mlmrepro\n", ""),
    ],
)
def test_the_last_words_are_the_exception(output: str, said: str) -> None:
    """Of several tracebacks the last one counts, of a message its first line; progress bars do not."""
    assert last_words(output) == said


def test_the_display_has_a_line_for_each_environment() -> None:
    """On a terminal what is too long gives way at its end; elsewhere each phase is a plain line; quiet is silent."""
    name, problem = "t4.41.2-d5.2.0", "Cannot install [a] and [/b]: " + "x" * 80
    texts = {}
    for kind, console in {
        "terminal": Console(file=io.StringIO(), force_terminal=True, width=60, markup=False),
        "plain": Console(file=io.StringIO(), markup=False, width=60),
        "quiet": Console(file=io.StringIO(), quiet=True),
    }.items():
        with MatrixDisplay(console=console, quiet=kind == "quiet") as display:
            for phase, note in (("waiting", ""), ("installing", ""), ("failed", problem)):
                display.environment(name, phase, note)
        assert isinstance(console.file, io.StringIO)
        texts[kind] = console.file.getvalue()
    assert f"{name} failed" in texts["terminal"]
    assert "Cannot install [a]" in texts["terminal"]
    assert "…" in texts["terminal"]
    assert texts["plain"] == f"{name} installing\n{name} failed {problem}\n"
    assert texts["quiet"] == ""


def test_the_state_can_be_read_by_others(folder: Path) -> None:
    """`matrix.json` says what was asked for, what became of it and how long it took."""
    run(folder, "good", "crash")
    state = json.loads((folder / "runs" / "matrix.json").read_text())
    assert state["finished"]
    assert {name: entry["state"] for name, entry in state["environments"].items()} == {
        "good": "done",
        "crash": "failed",
    }
    assert state["environments"]["good"]["requirements"] == ["transformers==5.0.0", "datasets==4.5.0"]
    assert state["environments"]["crash"]["problem"] == "ValueError: no such column"
    assert state["environments"]["good"]["seconds"] >= 0
