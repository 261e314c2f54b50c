"""Run faults and clean controls, several at a time, each in a process of its own, and collect what was seen."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest import mock

from mlmrepro.compare.drift import Outcome as Taken
from mlmrepro.compare.drift import compare_with
from mlmrepro.compare.judge import Expectations
from mlmrepro.config import golden_directory
from mlmrepro.errors import UserError
from mlmrepro.observations.observation import Observer
from mlmrepro.observations.registry import bounded_observers
from mlmrepro.provenance import collect
from mlmrepro.record import RunRecord
from tests.faults.conditions import Conditions, Control, all_controls
from tests.faults.digests import Sources, code_of
from tests.faults.fault import Fault, all_faults
from tests.faults.result import Alarm, BenchResult, CaseResult
from tests.faults.worker import Job, Outcome, perform

__all__ = ["Progress", "case_names", "choose", "merged", "run_bench"]

Progress = Callable[[CaseResult, int, int], None]  # a case is done; how many are, of how many

_TIMEOUT = 300.0  # seconds of one case, which takes some twenty; one that hangs was not measured
_LEAVING = 10.0  # seconds that a process may take to end when it has answered
_START = threading.Lock()  # the environment of a new interpreter is the process's own


def choose(patterns: Sequence[str]) -> tuple[list[Fault], list[Control], bool]:
    """Return the faults and controls that patterns name, and whether the versions' records are meant too.

    A pattern fits a fault's name, stage, part or family, or a control's name or kind; `*` stands for any letters.
    Without any pattern everything is meant. Raises UserError where one fits nothing.
    """
    faults, controls = all_faults(), all_controls()
    if not patterns:
        return faults, controls, True

    def named(pattern: str, *names: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in names if name)

    for pattern in patterns:
        fits = any(named(pattern, f.name, f.stage, f.part, f.family, "faults") for f in faults)
        if not fits and not any(named(pattern, c.name, c.kind, "controls", "versions") for c in controls):
            raise UserError(
                f"no fault or control is named by {pattern!r}",
                remedy="give a fault's name, its stage, controls, versions, or a pattern such as 'mask_*'",
            )
    return (
        [f for f in faults if any(named(p, f.name, f.stage, f.part, f.family, "faults") for p in patterns)],
        [c for c in controls if any(named(p, c.name, c.kind, "controls") for p in patterns)],
        any(named(p, "versions", "controls") for p in patterns),
    )


def run_bench(
    faults: Sequence[Fault],
    controls: Sequence[Control],
    *,
    versions: bool = False,
    laws: Sequence[Observer] | None = None,
    jobs: int = 2,
    progress: Progress = lambda case, done, total: None,
) -> BenchResult:
    """Plant each fault and run each control; `versions` adds the committed records of other versions.

    `laws` are those that are held against each case (default: all of them). The slow ones, which start processes, are
    held against faults of their own stage, and against the controls that vary the number of processes.
    """
    laws = bounded_observers() if laws is None else laws
    result = BenchResult(_provenance(laws, jobs))
    sources, commit = Sources(), _named(result.provenance["commit"])
    if versions:
        result.cases += list(_version_controls(commit))
    total = len(faults) + len(controls) + len(result.cases)
    for done, case in enumerate(result.cases, start=1):
        progress(case, done, total)
    with tempfile.TemporaryDirectory(prefix="mlmrepro-") as folder, _workers(jobs) as submit:
        root = Path(folder)
        keys = {c.conditions.reference: c.conditions for c in controls} | {Conditions().reference: Conditions()}
        places = {key: root / f"reference-{n}" for n, key in enumerate(keys)}
        made = {
            submit(Job("reference", places[key] / "run", places[key], _plain(keys[key]), makes_reference=True)): key
            for key in keys
        }
        for future in as_completed(made):
            if problem := future.result().problem:
                raise UserError(
                    f"the clean run failed: {problem}",
                    remedy="run mlmrepro record: without it there is nothing to miss",
                )
        waiting = {}
        for control in controls:
            held = _held(laws, {law.stage for law in laws} if control.kind == "processes" else set())
            job = _job(control.name, root, places[control.conditions.reference], control.conditions, held)
            waiting[submit(job)] = _blank_control(control)
        for fault in faults:
            held = _held(laws, {fault.stage})
            job = _job(fault.name, root, places[Conditions().reference], Conditions(), held, fault.name)
            waiting[submit(job)] = _blank_fault(fault)
        for future in as_completed(waiting):
            case = _filled(waiting[future], future.result(), sources, commit)
            result.cases.append(case)
            progress(case, len(result.cases), total)
    order = {name: n for n, name in enumerate([*(f.name for f in faults), *(c.name for c in controls)])}
    result.cases.sort(key=lambda case: order.get(case.name, len(order)))
    return result


def merged(earlier: BenchResult, newer: BenchResult) -> BenchResult:
    """Return one table of today's catalogue and controls: a newer run's rows, and earlier ones of what it left out.

    Raises UserError where `BenchResult.updated` does.
    """
    return earlier.updated(newer, [*case_names(), *(path.stem for path in _version_records())])


def case_names() -> list[str]:
    """Return the names of today's faults and controls, in the order of the table."""
    return [fault.name for fault in all_faults()] + [control.name for control in all_controls()]


def _held(laws: Sequence[Observer], stages: set[str]) -> tuple[str, ...]:
    """Return the names of the laws for one case: of those that start processes only the ones of these stages."""
    return tuple(law.name for law in laws if not law.slow or law.stage in stages)


def _plain(conditions: Conditions) -> Conditions:
    """Return the conditions of the reference: only what both sides have to share."""
    run_seed, num_proc, mask_seed = conditions.reference
    return Conditions(run_seed=run_seed, num_proc=num_proc, mask_seed=mask_seed)


def _job(name: str, root: Path, reference: Path, conditions: Conditions, laws: tuple[str, ...], fault: str = "") -> Job:
    return Job(name, root / "cases" / name, reference, conditions, fault, laws)


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[Callable[[Job], Any]]:
    """Start a process for each job, `jobs` at a time, forked from one that has imported the libraries."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the goldens are of the processor
    multiprocessing.set_forkserver_preload(["tests.faults.warm"])
    pool = ThreadPoolExecutor(jobs)
    try:
        yield lambda job: pool.submit(_in_a_process, job)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_a_process(job: Job, entry: Callable[[Job, Any], None] = perform, timeout: float = _TIMEOUT) -> Outcome:
    # Most of the environment is read when an interpreter starts or a library is imported: a fork would not see it.
    environment = dict(job.conditions.environment)
    context: Any = multiprocessing.get_context("spawn" if environment else "forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=entry, args=(job, theirs))
    with _START, mock.patch.dict(os.environ, environment):
        process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            return Outcome(problem=f"no answer in {timeout:g} s")
        outcome: Outcome = ours.recv()
        process.join(_LEAVING)  # it gives back what it shares with others
        return outcome
    except EOFError:
        process.join()
        return Outcome(problem=f"its process ended with {process.exitcode}")
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # and what it started
        process.join()


def _blank_fault(fault: Fault) -> CaseResult:
    return CaseResult(
        fault.name,
        fault.stage,
        fault.severity.value,
        fault.story,
        fault.part,
        family=fault.family,
        size=fault.size,
        unit=fault.unit,
        required=fault.required,
    )


def _blank_control(control: Control) -> CaseResult:
    return CaseResult(control.name, "", "", f"nothing is broken ({control.kind})", control.kind)


def _filled(blank: CaseResult, outcome: Outcome, sources: Sources, commit: str) -> CaseResult:
    seconds = round(sum(outcome.seconds.values()), 2)
    case = dataclasses.replace(blank, alarms=tuple(outcome.alarms), seconds=seconds, problem=outcome.problem)
    return dataclasses.replace(case, code=code_of(case, sources), commit=commit)


def _named(commit: dict[str, Any] | None) -> str:
    """Return a commit's name as ``git describe`` gives it, "" where it is unknown."""
    return f"{commit['id']}{'-dirty' if commit['dirty'] else ''}" if commit else ""


RECORDS = Path(__file__).parents[2] / "golden" / "matrix"  # of the checkout: the wheel does not hold them


def _version_controls(commit: str = "") -> Iterator[CaseResult]:
    """The committed records of other versions: each change in them is declared, so none is an alarm."""
    goldens = golden_directory()
    expectations = Expectations.from_goldens(goldens)
    for path in _version_records():
        record = RunRecord.read(path)
        comparison = compare_with(expectations, str(goldens), Taken(path.stem, record))
        alarms = tuple(
            Alarm("golden", change.stage, ", ".join(f.name for f in change.findings[:4]))
            for change in comparison.changes
            if change.verdict.fails
        )
        yield CaseResult(
            path.stem, "", "", "a clean run with other versions (versions)", "versions", alarms, commit=commit
        )


def _version_records() -> list[Path]:
    return sorted(RECORDS.glob("*.json"))


def _provenance(laws: Sequence[Observer], jobs: int) -> dict[str, Any]:
    origin = collect()
    told = {name: origin[name] for name in ("packages", "python", "platform", "commit", "source")}
    return told | {
        "laws": [law.name for law in laws],
        "slow_laws": [law.name for law in laws if law.slow],
        "jobs": jobs,
    }
