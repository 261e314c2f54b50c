"""The matrix: make the same record in each environment, and collect the results, even after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout
from packaging.version import Version

import mlmrepro
from mlmrepro.compare.drift import Outcome
from mlmrepro.compare.golden import version_of
from mlmrepro.credentials import without_credentials
from mlmrepro.environments.children import last_words, run_child
from mlmrepro.environments.make import (
    CACHE,
    DiskFull,
    Unmade,
    code_folder,
    content_hash,
    fingerprint,
    isolated,
    make_environment,
)
from mlmrepro.environments.spec import PAIR, Environment, position
from mlmrepro.errors import UserError, first_line
from mlmrepro.files import atomic_write
from mlmrepro.record import RunRecord

__all__ = ["RECORD", "Phase", "Progress", "Silent", "kept_outcome", "read_outcomes", "run_matrix"]

Phase = Literal["waiting", "installing", "recording", "done", "failed"]

RECORD = ("-m", "mlmrepro", "record")
TIMEOUT = 1800.0  # seconds for a record, which usually takes half a minute

_STATE = "matrix.json"
_SCHEMA = 1
_LONGEST = 300  # characters of a problem; the log has the rest


class Progress(Protocol):
    """Shows the progress of the matrix; called by one thread at a time."""

    def environment(self, name: str, phase: Phase, note: str = "") -> None:
        """An environment enters a phase; `note` says why it failed, or that a previous record was kept."""


class Silent:
    """Shows nothing."""

    def environment(self, name: str, phase: Phase, note: str = "") -> None:
        """Ignore it."""


def run_matrix(
    environments: Sequence[Environment],
    directory: Path,
    *,
    jobs: int = 1,
    goldens: Path | None = None,
    progress: Progress | None = None,
    cache: Path = CACHE,
    command: Sequence[str] = RECORD,
    tests: Sequence[str] = (),
    timeout: float = TIMEOUT,
    keep: bool = False,
) -> list[Outcome]:
    """Make each environment, make a record in it, and return the results in the order given.

    ``PYTHON *command --output DIRECTORY/NAME.json [--goldens GOLDENS] [--tests TEST]`` makes a record; it exits with 0
    exactly if it wrote one. All records are made again, except after a killed run: those that it finished with the same
    environment, code and goldens are kept, unless there are tests, whose code may have changed; with `keep` those of
    finished runs too. Raises UserError if another run uses the directory.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    extra = [] if goldens is None else ["--goldens", str(goldens.absolute())]
    extra += [f"--tests={test}" for test in tests]
    inputs = [*_inputs(goldens, command), *([str(time.time_ns())] if tests else [])]
    with _alone(directory):
        state = _State(directory, environments, inputs, progress or Silent(), keep)
        variables = {**_variables(), "PYTHONPATH": str(code_folder(cache))}
        stop = threading.Event()

        def measure(environment: Environment) -> None:
            if state.is_done(environment.name):
                return
            output, log = directory / f"{environment.name}.json", directory / f"{environment.name}.log"
            started = time.monotonic()
            try:
                state.enter(environment.name, "installing")
                output.unlink(missing_ok=True)
                python = make_environment(environment, cache, stop=stop)
                state.enter(environment.name, "recording")
                log.write_bytes(b"")
                line = [str(python), *command, "--output", str(output), *extra]
                code = run_child(line, log, env=variables, timeout=timeout, stop=stop)
                problem = _problem(code, log) if code else _unreadable(output)
            except Unmade as error:
                shutil.copyfile(error.log, log)  # so that the directory is complete by itself
                problem = str(error)
            except DiskFull:  # no other environment would fit either
                raise
            except (UserError, OSError) as error:
                problem = first_line(error)
            state.finish(environment.name, without_credentials(problem), time.monotonic() - started)

        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(measure, environment) for environment in environments]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        state.close()
        found = {outcome.name: outcome for outcome in _listed(directory)}
        return [found[environment.name] for environment in environments]


def kept_outcome(
    environment: Environment, directory: Path, *, goldens: Path | None = None, command: Sequence[str] = RECORD
) -> Outcome | None:
    """Return the record that `run_matrix` would keep, None if it would make one."""
    entry = (_read_state(directory / _STATE) or {"environments": {}})["environments"].get(environment.name, {})
    if entry.get("key") != [fingerprint(environment), *_inputs(goldens, command)] or entry["state"] != "done":
        return None
    outcome = _outcome(directory / f"{environment.name}.json")
    return outcome if outcome.record is not None else None


def _inputs(goldens: Path | None, command: Sequence[str]) -> list[str]:
    """Return what a record depends on, besides its environment."""
    return [content_hash(Path(mlmrepro.__file__).parent), content_hash(goldens) if goldens else "", *command]


def read_outcomes(directory: Path) -> list[Outcome]:
    """Return the outcomes in a directory: those of its matrix, then other records, from old to new versions.

    A damaged file becomes an outcome that says so. Raises UserError if there is nothing to read.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder", remedy="give the folder of a matrix")
    outcomes = _listed(directory)
    known = {outcome.name for outcome in outcomes}
    paths = sorted(path for path in directory.glob("*.json") if path.name != _STATE and path.stem not in known)
    outcomes += sorted((_outcome(path) for path in paths if _may_be_a_record(path)), key=_age)
    if not outcomes:
        raise UserError(f"{directory} holds no records", remedy="run mlmrepro matrix, or copy records there")
    return outcomes


class _State:
    """The state of the environments of a directory, kept on disk in ``matrix.json`` at all times."""

    def __init__(
        self,
        directory: Path,
        environments: Sequence[Environment],
        inputs: Sequence[str],
        progress: Progress,
        keep: bool,
    ) -> None:
        self.path = directory / _STATE
        self.progress = progress
        self.lock = threading.RLock()
        before = _read_state(self.path) or {"finished": True, "environments": {}}
        entries = dict(before["environments"])  # also those not in this run: one can be measured again
        for environment in environments:
            key = [fingerprint(environment), *inputs]
            entry = {} if before["finished"] and not keep else entries.get(environment.name, {})
            kept = entry.get("key") == key and entry["state"] == "done"
            if not kept or _unreadable(directory / f"{environment.name}.json"):
                entry = {"requirements": list(environment.requirements), "key": key, "state": "waiting"}
            entries[environment.name] = entry
            note = "kept from the previous run" if entry["state"] == "done" else ""
            progress.environment(environment.name, entry["state"], note)
        in_order = sorted(entries.items(), key=lambda item: _place(*item))
        self.content: dict[str, Any] = {"schema": _SCHEMA, "finished": False, "environments": dict(in_order)}
        self._write()

    def is_done(self, name: str) -> bool:
        return bool(self.content["environments"][name]["state"] == "done")

    def enter(self, name: str, phase: Phase, note: str = "") -> None:
        with self.lock:
            self.progress.environment(name, phase, note)

    def finish(self, name: str, problem: str, seconds: float) -> None:
        phase: Phase = "failed" if problem else "done"
        with self.lock:
            entry = self.content["environments"][name]
            entry |= {"state": phase, "seconds": round(seconds, 1)} | ({"problem": problem} if problem else {})
            self._write()
            self.enter(name, phase, problem)

    def close(self) -> None:
        self.content["finished"] = True
        self._write()

    def _write(self) -> None:
        atomic_write(self.path, json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")


def _read_state(path: Path) -> dict[str, Any] | None:
    """Return the state, None if it is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["environments"]
        if content["schema"] == _SCHEMA and all(e["state"] and _place(n, e) for n, e in entries.items()):
            return {"finished": content["finished"], "environments": entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        pass
    return None


def _place(name: str, entry: dict[str, Any]) -> tuple[bool, list[Version]]:
    return position(Environment(name, tuple(entry["requirements"])))


def _listed(directory: Path) -> list[Outcome]:
    """Return the outcomes that ``matrix.json`` lists."""
    state = _read_state(directory / _STATE)
    if state is None:
        damaged = (directory / _STATE).exists()
        return [Outcome(_STATE, None, "is damaged, so failures of the matrix are not known")] if damaged else []
    outcomes = []
    for name, entry in state["environments"].items():
        if entry["state"] == "done":
            outcomes.append(_outcome(directory / f"{name}.json"))
        else:
            problem = entry.get("problem", "not measured: the matrix was interrupted")
            # Cleaned again: an older version, or another program, may have written the file.
            outcomes.append(Outcome(name, None, without_credentials(problem), _log(directory / f"{name}.json")))
    return outcomes


def _outcome(path: Path) -> Outcome:
    try:
        return Outcome(path.stem, RunRecord.read(path), log=_log(path))
    except UserError as error:
        return Outcome(path.stem, None, error.problem, _log(path))


def _log(path: Path) -> str:
    log = path.parent / f"{path.stem}.log"
    return str(log) if log.exists() else ""


def _unreadable(path: Path) -> str:
    """Return why a record cannot be read, "" if it can."""
    return _outcome(path).problem if path.exists() else "ended without a record"


def _may_be_a_record(path: Path) -> bool:
    """Return whether a file is a record or may have been one; complete JSON of another kind is not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return isinstance(content, dict) and "stages" in content


def _age(outcome: Outcome) -> list[Version]:
    return [version_of(outcome.versions.get(package) or "0") for package in PAIR]


def _problem(code: int, log: Path) -> str:
    """Return why a record process failed."""
    said = last_words(log.read_text(encoding="utf-8", errors="replace"))[:_LONGEST]
    if code - 128 in signal.valid_signals():
        return f"killed by {signal.Signals(code - 128).name}"
    return said or f"exit code {code} without any output"


def _variables() -> dict[str, str]:
    """Return the variables of a record process: offline, and with nothing that makes two runs differ."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    return quiet | isolated() | offline


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    lock = FileLock(directory / ".matrix.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another matrix is running in {directory}", remedy="wait for it, or give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
