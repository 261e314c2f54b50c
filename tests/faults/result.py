"""What the bench finds: which layer saw each fault, which stage was named, and the alarms of clean controls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write
from mlmrepro.record import STAGES

__all__ = ["LAYERS", "Alarm", "BenchResult", "CaseResult", "Score"]

SCHEMA = 1
LAYERS = ("golden", "law", "property", "statistics")
STAGE_SHARE = 0.95  # of the detected faults, that have to be named at their stage


@dataclass(frozen=True)
class Alarm:
    """One thing that one layer objects to."""

    layer: str
    stage: str
    what: str
    measured: bool = True  # whether it is of something that was measured, not of what could not be
    off_path: bool = False  # whether an off-path value saw it, which runs through stages before its own


@dataclass(frozen=True)
class CaseResult:
    """One fault, or one clean control (`stage` is "" then), and every alarm that it raised."""

    name: str
    stage: str
    severity: str
    story: str
    part: str
    alarms: tuple[Alarm, ...] = ()
    family: str = ""
    size: float | None = None
    unit: str = ""
    required: bool = True
    seconds: float = 0.0
    problem: str = ""  # why a layer could not be run: nothing is known then
    code: dict[str, str] = field(default_factory=dict, hash=False)  # digests of what was measured, as digests.code_of
    commit: str = ""  # at which it was measured; ends in "-dirty" where there were uncommitted changes

    @property
    def is_control(self) -> bool:
        """Tell a clean control."""
        return not self.stage

    @property
    def detected(self) -> bool:
        """Tell whether any layer raised an alarm."""
        return bool(self.alarms)

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the layers that raised one."""
        found = {alarm.layer for alarm in self.alarms}
        return tuple(layer for layer in LAYERS if layer in found)

    @property
    def named(self) -> str:
        """Return the stage that the suite names, "" for none.

        The goldens run each stage on its stored input, so what they name goes first, unless a law that needs no model
        is broken at an earlier stage: no model is behind that. Where an off-path probe is all that they have, and
        without goldens, it is the earliest stage of a probe, law or property, else what the gate can tell, that the
        model changed. What could not be measured names its stage only where nothing was: a model that cannot be loaded
        says nothing of tokens.
        """
        measured = [alarm for alarm in self.alarms if alarm.measured] or self.alarms
        golden = [alarm for alarm in measured if alarm.layer == "golden"]
        laws, gate = (
            [alarm.stage for alarm in measured if alarm.layer in layers]
            for layers in (("law", "property"), ("statistics",))
        )
        early = [stage for stage in laws if STAGES.index(stage) < STAGES.index("model")]
        if golden and not golden[0].off_path:
            return min([golden[0].stage, *early], key=STAGES.index)
        probes = [alarm.stage for alarm in golden if alarm.off_path]
        return min(probes + laws or gate, key=STAGES.index, default="")

    @property
    def placed(self) -> bool:
        """Tell whether the fault was detected and named at its own stage."""
        return self.detected and self.named == self.stage


@dataclass(frozen=True)
class Score:
    """How many of some faults were detected, and how many of those were named at their stage."""

    faults: int
    detected: int
    placed: int

    @classmethod
    def of(cls, cases: Iterable[CaseResult]) -> Score:
        """Count faults."""
        cases = list(cases)
        return cls(len(cases), sum(case.detected for case in cases), sum(case.placed for case in cases))

    @property
    def passes(self) -> bool:
        """Tell whether all were detected, and enough of them placed."""
        return self.faults == self.detected and self.placed >= STAGE_SHARE * self.faults


@dataclass
class BenchResult:
    """All cases of one run of the bench."""

    provenance: dict[str, Any]
    cases: list[CaseResult] = field(default_factory=list)

    @property
    def faults(self) -> list[CaseResult]:
        """The faults that have to be detected and were there before the detectors were finished."""
        return [case for case in self.cases if not case.is_control and case.required and case.part != "later"]

    @property
    def later(self) -> list[CaseResult]:
        """The faults that were invented when the detectors were done: the honest score."""
        return [case for case in self.cases if not case.is_control and case.required and case.part == "later"]

    @property
    def controls(self) -> list[CaseResult]:
        """The clean controls."""
        return [case for case in self.cases if case.is_control]

    @property
    def false_alarms(self) -> list[CaseResult]:
        """Clean controls that raised an alarm."""
        return [case for case in self.controls if case.detected]

    @property
    def unmeasured(self) -> list[CaseResult]:
        """Cases of which a layer could not be run."""
        return [case for case in self.cases if case.problem]

    @property
    def passes(self) -> bool:
        """Tell whether nothing was missed, misplaced beyond the bound, alarmed falsely or left unmeasured.

        Of the faults that were invented later none may be missed; how many are placed is only told.
        """
        later = Score.of(self.later)
        seen = Score.of(self.faults).passes and later.detected == later.faults
        return bool(self.cases) and seen and not self.false_alarms and not self.unmeasured

    def families(self) -> dict[str, list[CaseResult]]:
        """Return the sizes of each graded fault, in their order in the catalogue."""
        found: dict[str, list[CaseResult]] = {}
        for case in self.cases:
            if case.family:
                found.setdefault(case.family, []).append(case)
        return found

    def by_layer(self, cases: Sequence[CaseResult]) -> dict[str, tuple[int, int]]:
        """Return, for each layer, how many of the faults it saw and how many it alone saw."""
        seen = Counter(layer for case in cases for layer in case.layers)
        alone = Counter(case.layers[0] for case in cases if len(case.layers) == 1)
        return {layer: (seen[layer], alone[layer]) for layer in LAYERS}

    def updated(self, newer: BenchResult, names: Sequence[str]) -> BenchResult:
        """Return these cases with those of a newer run in their place, those of `names` alone, in that order.

        Each keeps the digests of what it measured, so that `digests.stale` finds those that other laws measured.
        Raises UserError where that would be no one table: with other versions of the libraries.
        """
        for name in ("packages", "python"):
            if _libraries(self.provenance.get(name)) != _libraries(newer.provenance.get(name)):
                raise UserError(
                    f"the table was made with other {name} than this run", remedy="run the whole catalogue again"
                )
        fresh = {case.name: case for case in newer.cases}
        kept = {case.name: case for case in self.cases} | fresh
        cases = [kept[name] for name in names if name in kept]
        # Where rows got their digests afterwards, the header says so until the last of them is measured again.
        given = self.provenance.get("backfilled") or {}
        stays = {"backfilled": given} if any(case.commit == given.get("commit") for case in cases) else {}
        return BenchResult(newer.provenance | stays, cases)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"schema": SCHEMA, "provenance": self.provenance, "cases": [asdict(case) for case in self.cases]}

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> BenchResult:
        """Read what `write` wrote; raises UserError for anything else."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"it is of schema {content['schema']}, this version reads schema {SCHEMA}")
            cases = [
                CaseResult(**{**row, "alarms": tuple(Alarm(**alarm) for alarm in row["alarms"])})
                for row in content["cases"]
            ]
            return cls(dict(content["provenance"]), cases)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}", remedy="run python -m tests.faults first"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is no result of the fault bench: {type(error).__name__}: {error}",
                remedy="make it again with python -m tests.faults",
            ) from error


def _libraries(packages: Any) -> Any:
    """Return the versions without our own, which changes with every release and says nothing of the libraries."""
    return {name: v for name, v in packages.items() if name != "mlmrepro"} if isinstance(packages, dict) else packages
