"""One case in a process of its own: plant the fault, run every layer, hand the alarms back."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlmrepro.config import EMBEDDED
from tests.faults.conditions import Conditions
from tests.faults.result import Alarm

__all__ = ["Job", "Outcome", "perform", "warm_up"]


@dataclass(frozen=True)
class Job:
    """What one process does: `reference` makes the clean record and baseline in `folder`, else it is a case."""

    name: str
    folder: Path
    reference: Path  # where the clean record and baseline lie, or are to be written
    conditions: Conditions
    fault: str = ""
    laws: tuple[str, ...] = ()
    makes_reference: bool = False


@dataclass
class Outcome:
    """What became of a job."""

    alarms: list[Alarm] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by layer
    problem: str = ""


def warm_up() -> None:
    """Import what every case needs, in the process that all cases are forked from; nothing is computed there."""
    import scipy.stats
    import torch
    import transformers
    from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, pipeline
    from transformers.models.roberta import modeling_roberta

    from mlmrepro.observations.registry import bounded_observers
    from tests.faults import layers

    bounded_observers()
    del scipy, torch, transformers, AutoModelForMaskedLM, AutoTokenizer, Trainer, pipeline, modeling_roberta, layers


def perform(job: Job, pipe: Any) -> None:
    """Do the job and send its Outcome; the entry point of a case's process."""
    os.setpgid(0, 0)  # so that whoever stops this case stops the processes that it started
    job.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(job.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.simplefilter("ignore")
    outcome = Outcome()
    try:
        _prepare(job)
        if job.makes_reference:
            _make_reference(job)
        else:
            _run_case(job, outcome)
    except Exception as error:
        import traceback

        traceback.print_exc()
        outcome.problem = f"{type(error).__name__}: {error}"[:300]
    pipe.send(outcome)
    pipe.close()


def _prepare(job: Job) -> None:
    import torch

    conditions = job.conditions
    torch.set_num_threads(conditions.threads)
    if conditions.generators is not None:
        from transformers import set_seed

        set_seed(conditions.generators)
    else:
        random.seed(0)
    if conditions.directory:
        # Beside the cases, not in this one: sockets in it may have paths of a hundred letters only.
        place = job.folder.parents[1] / conditions.directory
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        os.environ["TMPDIR"] = tempfile.tempdir = str(place)


def _make_reference(job: Job) -> None:
    from mlmrepro.config import EMBEDDED
    from tests.faults import layers

    layers.clean_record(job.conditions).write(job.reference / "record.json")
    layers.clean_baseline(EMBEDDED / "checkpoint", job.conditions, job.reference / "baseline")


def _run_case(job: Job, outcome: Outcome) -> None:
    from mlmrepro.observations.registry import bounded_observers
    from mlmrepro.record import RunRecord
    from tests.faults import layers
    from tests.faults.case import Case
    from tests.faults.fault import all_faults

    case = Case(job.folder)
    laws = [law for law in bounded_observers() if law.name in job.laws]
    reference = RunRecord.read(job.reference / "record.json")
    stages: list[str] = []
    _watch_stages(stages)
    if job.fault:
        (planted,) = (each for each in all_faults() if each.name == job.fault)
        planted.plant(case)
    parts: dict[str, Callable[[], Iterable[Alarm]]] = {
        "golden": lambda: layers.golden_alarms(reference, job.conditions, stages),
        "law": lambda: layers.law_alarms(case.checkpoint, job.conditions, laws),
        "statistics": lambda: layers.statistics_alarms(case.checkpoint, job.reference / "baseline"),
    }
    for name, look in parts.items():
        started = time.perf_counter()
        with _threads_kept():
            outcome.alarms.extend(_placeless(alarm, job.folder) for alarm in look())
        outcome.seconds[name] = round(time.perf_counter() - started, 2)


def _placeless(alarm: Alarm, folder: Path) -> Alarm:
    """Return the alarm with paths from the case's folder, the package or these tests on: others differ by machine."""
    what = alarm.what
    for root in (folder, EMBEDDED.parents[1], Path(__file__).parents[2]):
        what = what.replace(f"{root}{os.sep}", "")
    return replace(alarm, what=what)


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _watch_stages(stages: list[str]) -> None:
    """Note the stages that the golden run comes to: its progress is silent, and says them all the same."""
    from mlmrepro.guide import run

    run.Silent.stage = lambda self, name: stages.append(name)  # type: ignore[method-assign]
