"""Which stage changed by itself, what follows from it, and where two runs part first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlmrepro.compare.judge import Finding, Verdict, worst
from mlmrepro.record import STAGES, Part, plain

__all__ = ["Change", "Comparison", "Pairs"]

Pairs = dict[str, tuple[Any, Any]]  # expected and obtained, by name


@dataclass(frozen=True)
class Change:
    """One cause: a stage that changed by itself, or one thing beside the guide's path; and what follows from it."""

    stage: str
    findings: tuple[Finding, ...]
    follows: tuple[str, ...] = ()  # stages that changed in the flow and not by themselves
    by_itself: bool = True  # False: the flow changed, the stage on its stored input did not

    @property
    def verdict(self) -> Verdict:
        """Return the gravest verdict of its findings."""
        return worst(finding.verdict for finding in self.findings)

    @property
    def part(self) -> Part:
        """Return BESIDE where the guide's own run does not see it."""
        return Part.BESIDE if self.findings[0].part is Part.BESIDE else Part.FLOW

    @property
    def reason(self) -> str:
        """Return the declared cause, "" where none is known."""
        return next((finding.reason for finding in self.findings if finding.reason), "")

    @property
    def when(self) -> tuple[str, ...]:
        """Return the versions that the declared variant holds for."""
        return next((finding.variant.when for finding in self.findings if finding.variant), ())

    @property
    def link(self) -> str:
        """Return where the cause is documented."""
        return next((finding.link for finding in self.findings if finding.link), "")


@dataclass
class Comparison:
    """All findings of one record against what was expected."""

    findings: list[Finding]
    names: tuple[str, str] = ("expected", "obtained")
    packages: Pairs = field(default_factory=dict)  # versions that differ, by package
    settings: Pairs = field(default_factory=dict)  # settings of the run that differ: the first thing to look at
    _changes: list[Change] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._changes = list(_fold(self.findings))

    @property
    def changes(self) -> list[Change]:
        """Return each cause once, in the order of the stages."""
        return self._changes

    @property
    def verdict(self) -> Verdict:
        """Return the gravest verdict; of no finding at all, that nothing was measured."""
        return worst(finding.verdict for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """Return 0 where the gate opens, 1 where it does not."""
        return int(self.verdict.fails)

    @property
    def first_divergence(self) -> Finding | None:
        """Return the first value, in the order of the stages, that changed on the guide's path or on a stored input.

        Where something fails, it is the first that does; an expected change before it is no divergence to look at. A
        training that changed because of its evaluations is not where the runs part first.
        """
        back = {stage for stage, cause in self.follows().items() if STAGES.index(cause) > STAGES.index(stage)}
        changed = [f for f in self.findings if f.verdict.is_change and f.part is not Part.BESIDE]
        changed = [f for f in changed if f.stage not in back] or changed
        return next((f for f in changed if f.verdict.fails), changed[0] if changed else None)

    def stages(self) -> dict[str, Verdict]:
        """Return the gravest verdict of each stage that either side has."""
        present = [stage for stage in STAGES if any(f.stage == stage for f in self.findings)]
        return {stage: worst(f.verdict for f in self.findings if f.stage == stage) for stage in present}

    def follows(self) -> dict[str, str]:
        """Return, for each stage that changed as a consequence, the stage that it follows from, a failing one first."""
        gravest_last = sorted(self.changes, key=lambda change: change.verdict.fails)
        return {stage: change.stage for change in gravest_last for stage in change.follows}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        first = self.first_divergence
        return {
            "expected": self.names[0],
            "obtained": self.names[1],
            "verdict": self.verdict.value,
            "exit_code": self.exit_code,
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            "packages": {name: list(pair) for name, pair in self.packages.items()},
            "first_divergence": f"{first.stage}.{first.name}" if first else None,
            "stages": {stage: verdict.value for stage, verdict in self.stages().items()},
            "changes": [
                {
                    "stage": change.stage,
                    "part": change.part.value,
                    "verdict": change.verdict.value,
                    "by_itself": change.by_itself,
                    "follows": list(change.follows),
                    "reason": change.reason,
                    "link": change.link,
                    "findings": [_finding(finding) for finding in change.findings],
                }
                for change in self.changes
            ],
        }


def _finding(finding: Finding) -> Mapping[str, Any]:
    differences = [
        {"place": d.place, "expected": _value(d.expected), "obtained": _value(d.obtained), "note": d.note}
        for d in finding.differences
    ]
    when = list(finding.variant.when) if finding.variant else []
    return {"name": finding.name, "verdict": finding.verdict.value, "when": when, "differences": differences}


def _value(value: Any) -> Any:
    value = plain(value)
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else repr(value)


def _fold(findings: Iterable[Finding]) -> Iterable[Change]:
    """Return each cause once, stage by stage.

    What fails, what improved and what is declared are folded apart: a regression never follows from an expected
    change, and so never hides behind one. An improvement may follow from a failure, which it hides nothing of.
    """
    findings = list(findings)
    has_twin = {finding.stage for finding in findings if finding.part is Part.ALONE}
    failing = [finding for finding in findings if finding.verdict.fails]
    start = min((STAGES.index(f.stage) for f in failing if f.part is not Part.BESIDE), default=len(STAGES))
    improved = [finding for finding in findings if finding.verdict is Verdict.IMPROVEMENT]
    inherited = [f for f in improved if f.part is Part.FLOW and STAGES.index(f.stage) >= start]
    kinds = (
        [f for f in findings if f in failing or f in inherited],
        [f for f in improved if f not in inherited],
        [f for f in findings if f.verdict is Verdict.EXPECTED],
    )
    layers = [_folded(kind, has_twin) for kind in kinds]
    for stage in STAGES:
        yield from (change for layer in layers for change in layer if change.stage == stage)


def _folded(layer: list[Finding], has_twin: set[str]) -> list[Change]:
    """Make one change of a stage's flow and its stored-input twin; fold what the flow inherits into its cause.

    A stage whose twin changed, or that breaks a bound, did so by itself. One of which the flow alone changed inherits
    that from the nearest stage before it that carries a change (or from one whose twin changed by more than its flow
    shows); where there is none, it is where the runs part. A training whose twin did not change may also inherit from
    its own evaluations, which lie between its epochs, where their twin changed. What lies beside the guide's path feeds
    no later stage, so nothing folds into it. Declared changes of one stage are told apart by their reasons, undeclared
    ones beside the path by their probes.
    """
    own: dict[str, tuple[Finding, ...]] = {}
    follows: dict[str, list[Finding]] = {}
    carrier: str | None = None
    evaluated = "loss" in has_twin and bool(_of(layer, "evaluation", Part.ALONE))
    for stage in STAGES:
        flow, alone = (_of(layer, stage, part) for part in (Part.FLOW, Part.ALONE))
        itself = bool(alone) or any(f.bound for f in flow)
        if stage == "loss" and flow and not itself and carrier is None and evaluated:
            follows.setdefault("evaluation", []).extend(flow)
        elif itself or (flow and carrier is None):
            own[stage] = (*flow, *alone)
            carrier = stage if flow or carrier is None else carrier
        elif flow and carrier is not None:
            follows.setdefault(carrier, []).extend(flow)
    changes = []
    for stage in STAGES:
        causes: dict[str, list[Finding]] = {}
        for finding in (*own.get(stage, ()), *_of(layer, stage, Part.BESIDE)):
            causes.setdefault(finding.reason or finding.probe, []).append(finding)
        for found in causes.values():
            followers = [f for f in follows.get(stage, ()) if _source(f, causes) is found]
            by_itself = stage not in has_twin or any(f.bound or f.part is not Part.FLOW for f in found)
            names = tuple(dict.fromkeys(f.stage for f in followers))
            changes.append(Change(stage, tuple(found), names, by_itself))
    return changes


def _source(follower: Finding, causes: Mapping[str, list[Finding]]) -> list[Finding]:
    """Return the cause that is documented at the same place as what follows, else the first one on the path."""
    on_path = [found for found in causes.values() if found[0].part is not Part.BESIDE]
    return next((found for found in on_path if follower.link and found[0].link == follower.link), on_path[0])


def _of(findings: list[Finding], stage: str, part: Part) -> tuple[Finding, ...]:
    return tuple(f for f in findings if f.stage == stage and f.part is part)
