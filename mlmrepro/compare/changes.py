"""Which stages changed by themselves, which inherited a change, and where two runs first diverge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlmrepro.compare.judge import Finding, Verdict, worst
from mlmrepro.record import ALL_STAGES, STAGES, Part, plain

__all__ = ["Change", "Comparison", "Pairs", "json_value"]

Pairs = dict[str, tuple[Any, Any]]  # expected and obtained, by name


@dataclass(frozen=True)
class Change:
    """One cause: a stage that changed by itself or an off-path change, and the stages that inherited it."""

    stage: str
    findings: tuple[Finding, ...]
    follows: tuple[str, ...] = ()  # stages whose flow inherited the change
    by_itself: bool = True  # False: the flow changed, but the stage on its stored input did not

    @property
    def verdict(self) -> Verdict:
        """Return the gravest verdict of its findings."""
        return worst(finding.verdict for finding in self.findings)

    @property
    def part(self) -> Part:
        """Return OFF_PATH for an off-path change, which the guide's own run does not see."""
        return Part.OFF_PATH if self.findings[0].part is Part.OFF_PATH else Part.FLOW

    @property
    def reason(self) -> str:
        """Return the declared cause, "" if none is known."""
        return next((finding.reason for finding in self.findings if finding.reason), "")

    @property
    def when(self) -> tuple[str, ...]:
        """Return the version requirements of the declared variant."""
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
    not_asked: tuple[str, ...] = ()  # expected observations that the record was not asked for
    _changes: list[Change] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._changes = list(_fold(self.findings))

    @property
    def changes(self) -> list[Change]:
        """Return each cause once, in the order of the stages."""
        return self._changes

    @property
    def verdict(self) -> Verdict:
        """Return the gravest verdict, UNMEASURED if there are no findings."""
        return worst(finding.verdict for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """Return 0 if the gate passes, 1 if it fails."""
        return int(self.verdict.fails)

    @property
    def first_divergence(self) -> Finding | None:
        """Return the first value, in the order of the stages, that changed on the guide's path or on a stored input.

        If something fails, this is the first failure, even if an expected change comes earlier. A training that changed
        because of its evaluations does not count as the first divergence.
        """
        back = {stage for stage, cause in self.follows().items() if STAGES.index(cause) > STAGES.index(stage)}
        changed = [f for f in self.findings if f.verdict.is_change and f.part is not Part.OFF_PATH]
        changed = [f for f in changed if f.stage not in back] or changed
        return next((f for f in changed if f.verdict.fails), changed[0] if changed else None)

    def stages(self) -> dict[str, Verdict]:
        """Return the gravest verdict of each stage that either side has."""
        present = [stage for stage in ALL_STAGES if any(f.stage == stage for f in self.findings)]
        return {stage: worst(f.verdict for f in self.findings if f.stage == stage) for stage in present}

    def follows(self) -> dict[str, str]:
        """Return, for each stage that inherited a change, the stage it came from, preferably a failing one."""
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
            "not_asked": list(self.not_asked),
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
        {"place": d.place, "expected": json_value(d.expected), "obtained": json_value(d.obtained), "note": d.note}
        for d in finding.differences
    ]
    when = list(finding.variant.when) if finding.variant else []
    return {"name": finding.name, "verdict": finding.verdict.value, "when": when, "differences": differences}


def json_value(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    value = plain(value)
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else repr(value)


def _fold(findings: Iterable[Finding]) -> Iterable[Change]:
    """Return each cause once, stage by stage.

    Failures, improvements and declared changes are folded separately, so a regression is never shown as inherited from
    an expected change. An improvement may be shown as inherited from a failure, which stays visible.
    """
    findings = list(findings)
    has_twin = {finding.stage for finding in findings if finding.part is Part.ISOLATED}
    failing = [finding for finding in findings if finding.verdict.fails]
    start = min((STAGES.index(f.stage) for f in failing if f.part is not Part.OFF_PATH), default=len(STAGES))
    improved = [finding for finding in findings if finding.verdict is Verdict.IMPROVEMENT]
    inherited = [f for f in improved if f.part is Part.FLOW and STAGES.index(f.stage) >= start]
    kinds = (
        [f for f in findings if f in failing or f in inherited],
        [f for f in improved if f not in inherited],
        [f for f in findings if f.verdict is Verdict.EXPECTED],
    )
    layers = [_folded(kind, has_twin) for kind in kinds]
    for stage in ALL_STAGES:
        yield from (change for layer in layers for change in layer if change.stage == stage)


def _folded(layer: list[Finding], has_twin: set[str]) -> list[Change]:
    """Merge the findings of a stage's flow and its isolated twin; fold what the flow inherits into its cause.

    A stage changed by itself if its twin changed or if it breaks a bound. If only its flow changed, it inherits the
    change from the nearest earlier stage that carries one (or whose twin changed by more than its flow shows); without
    such a stage, the runs diverge here. A training whose twin did not change can also inherit from its evaluations,
    which run between its epochs, if their twin changed. Off-path changes feed no later stage, so nothing folds into
    them. Declared changes of one stage are separated by their reasons, undeclared off-path ones by their probes.
    """
    own: dict[str, tuple[Finding, ...]] = {}
    follows: dict[str, list[Finding]] = {}
    carrier: str | None = None
    evaluated = "loss" in has_twin and bool(_of(layer, "evaluation", Part.ISOLATED))
    for stage in STAGES:
        flow, alone = (_of(layer, stage, part) for part in (Part.FLOW, Part.ISOLATED))
        itself = bool(alone) or any(f.bound for f in flow)
        if stage == "loss" and flow and not itself and carrier is None and evaluated:
            follows.setdefault("evaluation", []).extend(flow)
        elif itself or (flow and carrier is None):
            own[stage] = (*flow, *alone)
            carrier = stage if flow or carrier is None else carrier
        elif flow and carrier is not None:
            follows.setdefault(carrier, []).extend(flow)
    changes = []
    for stage in ALL_STAGES:
        causes: dict[str, list[Finding]] = {}
        for finding in (*own.get(stage, ()), *_of(layer, stage, Part.OFF_PATH)):
            causes.setdefault(finding.reason or finding.observer, []).append(finding)
        for found in causes.values():
            followers = [f for f in follows.get(stage, ()) if _source(f, causes) is found]
            by_itself = stage not in has_twin or any(f.bound or f.part is not Part.FLOW for f in found)
            names = tuple(dict.fromkeys(f.stage for f in followers))
            changes.append(Change(stage, tuple(found), names, by_itself))
    return changes


def _source(follower: Finding, causes: Mapping[str, list[Finding]]) -> list[Finding]:
    """Return the cause with the same link as the inherited change, else the first one on the path."""
    on_path = [found for found in causes.values() if found[0].part is not Part.OFF_PATH]
    return next((found for found in on_path if follower.link and found[0].link == follower.link), on_path[0])


def _of(findings: list[Finding], stage: str, part: Part) -> tuple[Finding, ...]:
    return tuple(f for f in findings if f.stage == stage and f.part is part)
