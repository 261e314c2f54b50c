"""The layers of the suite, each held against one case: goldens, laws and properties, statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mlmrepro.compare.drift import Outcome, compare_records
from mlmrepro.config import golden_directory
from mlmrepro.errors import first_line
from mlmrepro.gate.result import Answer
from mlmrepro.observations.golden_run import take_record
from mlmrepro.observations.observation import Observer
from mlmrepro.observations.observe import observe_all, sample
from mlmrepro.observations.registry import all_observers
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.record import Part, RunRecord
from mlmrepro.retraining.check import check_checkpoint, make_baseline
from mlmrepro.scoring.documents import Document, Text, read_text
from mlmrepro.scoring.scorer import Scorer
from tests.faults.conditions import Conditions
from tests.faults.result import Alarm

__all__ = ["clean_baseline", "clean_record", "golden_alarms", "law_alarms", "statistics_alarms"]

_GATE_DOCUMENTS = 24  # of some 60 words each: as much as a second or two can score
_LAW_TEXTS = 8  # documents between the texts of two conditions


def clean_record(conditions: Conditions) -> RunRecord:
    """Return what `mlmrepro record` would show under these conditions, of few rows and one epoch."""
    changes = (
        ("split", "train_asks[:12]", "fault bench: few rows, so that a case takes seconds"),
        ("num_train_epochs", 1.0, "fault bench: the same"),
        ("num_proc", conditions.num_proc, "fault bench: processes are one of its conditions"),
        ("seed", conditions.run_seed, "fault bench: seeds are one of its conditions"),
    )
    for_goldens = [each for each in all_observers() if not each.has_bounds]  # the others are a layer of their own
    return take_record(golden_directory() / "inputs", *changes, threads=conditions.threads, observers=for_goldens)


def golden_alarms(reference: RunRecord, conditions: Conditions, stages: list[str]) -> Iterator[Alarm]:
    """Take the record of the case and yield each change that a gate would stop at.

    `stages` is filled with the stages that the run came to: a run that breaks off is an alarm at the last one.
    """
    try:
        obtained = clean_record(conditions)
    except Exception as error:  # whatever a fault makes the libraries raise
        stage = stages[-1] if stages else "dataset"
        yield Alarm("golden", stage, f"raises {type(error).__name__}: {first_line(error)}"[:200])
        return
    comparison = compare_records(Outcome("clean", reference), Outcome("case", obtained)).comparison
    failing = [change for change in comparison.changes if change.verdict.fails]
    # First what a stage did by itself, on the guide's path before off it; each kind in the order of the stages.
    for change in sorted(failing, key=lambda each: (not each.by_itself, each.part is Part.OFF_PATH)):
        names = ", ".join(finding.name for finding in change.findings[:4])
        yield Alarm("golden", change.stage, names, off_path=change.part is Part.OFF_PATH)


def law_alarms(checkpoint: Path, conditions: Conditions, laws: Sequence[Observer]) -> Iterator[Alarm]:
    """Hold the laws against the case and yield each that is broken or cannot be measured."""
    texts, _ = sample("embedded", skip=_LAW_TEXTS * conditions.text)
    for result in observe_all(str(checkpoint), texts, observers=laws, seed=conditions.law_seed):
        if result.verdict.fails:
            numbers = "; ".join(f"{each.name} {each.value} ({each.bound})" for each in result.broken[:2])
            layer = "property" if result.group == "steps" else "law"
            measured = result.verdict is not BoundVerdict.UNMEASURED
            yield Alarm(layer, result.stage, f"{result.name}: {result.problem or numbers}"[:300], measured)


def clean_baseline(checkpoint: Path, conditions: Conditions, folder: Path) -> None:
    """Write the gate's baseline of the clean checkpoint: the beginnings of some embedded documents."""
    documents = read_text("embedded").documents[-_GATE_DOCUMENTS:]
    text = Text("embedded", tuple(Document(d.name, " ".join(d.text.split()[:60])) for d in documents))
    scorer = Scorer.load(str(checkpoint), device="cpu", dtype="float32")
    make_baseline(scorer, text, checkpoint="clean", seed=conditions.mask_seed).write(folder)


def statistics_alarms(checkpoint: Path, baseline: Path) -> Iterator[Alarm]:
    """Check the case's checkpoint against the clean one's baseline; what keeps the gate shut is an alarm."""
    try:
        result = check_checkpoint(str(checkpoint), baseline, device="cpu", name="case")
    except Exception as error:
        yield Alarm("statistics", "model", f"raises {type(error).__name__}: {first_line(error)}"[:200])
        return
    if result.answer in (Answer.REGRESSION, Answer.INCONCLUSIVE):
        yield Alarm("statistics", "model", f"{result.answer.value}: {result.reason}"[:200])
