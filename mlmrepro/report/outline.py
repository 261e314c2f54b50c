"""The content of a drift report in every format: the verdict, the map of stages, and each change once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlmrepro.compare.changes import Change, Comparison
from mlmrepro.compare.drift import VARIED, Drift, Outcome, Step, setting_changes
from mlmrepro.compare.judge import Finding, Verdict
from mlmrepro.record import ALL_STAGES, STAGES, TESTS, Part
from mlmrepro.report.words import Pairs, Quantities, clean, count, finding_line, headline, next_step, quantities, tally

__all__ = ["Cell", "Deviation", "Item", "Outline", "Row", "StepOutline", "short_names"]


@dataclass(frozen=True)
class Item:
    """One change of one step, with the anchor that the map links to."""

    anchor: str
    change: Change
    behind: tuple[str, ...] = ()  # the packages that cause it by themselves


@dataclass(frozen=True)
class StepOutline:
    """All changes of one step: the user's tests first, then in the order of the stages, with off-path changes last."""

    anchor: str
    step: Step
    items: tuple[Item, ...]
    measures: Quantities


@dataclass(frozen=True)
class Cell:
    """One stage in one environment, compared with the reference."""

    stage: str
    verdict: Verdict | None  # None: neither side has the stage
    follows: str = ""  # the stage it inherits its change from
    changed: bool = False  # since the previous environment on the upgrade path
    anchor: str = ""
    off_path: bool = False  # only off-path values changed


@dataclass(frozen=True)
class Row:
    """One environment; it has no cells if it has no record."""

    outcome: Outcome
    cells: tuple[Cell, ...]
    verdict: Verdict
    aside: bool = False  # not on the upgrade path: it changes only one package


@dataclass(frozen=True)
class Deviation:
    """A value that differs from the reference, and all environments with the same difference."""

    anchor: str
    finding: Finding
    line: str
    names: tuple[str, ...]


class Outline:
    """The content of every drift report."""

    def __init__(self, drift: Drift) -> None:
        self.drift = drift
        tested = any(TESTS in comparison.stages() for comparison in drift.comparisons.values())
        self.stages = ALL_STAGES if tested else STAGES  # of the map
        self.steps = [self._section(f"step-{n}", step) for n, step in enumerate(drift.steps, start=1)]
        self.variations = [self._section(f"alone-{n}", step) for n, step in enumerate(drift.variations, start=1)]
        self.deviations = self._deviations()
        self.rows = [self._row(outcome) for outcome in drift.outcomes if outcome not in drift.aside]
        self.rows += [self._row(outcome) for outcome in drift.aside]
        self.missing = [outcome for outcome in drift.outcomes if outcome.record is None]

    @property
    def reference(self) -> str:
        """Return a phrase for what the map compares with."""
        if self.drift.goldens is not None:
            versions = ", ".join(f"{name} {self.drift.goldens.versions.get(name) or 'absent'}" for name in VARIED)
            subject = self.drift.goldens.config.get("subject")  # of an adopted checkpoint
            return f"the goldens{f' of {clean(subject)}' if subject else ''} ({versions})"
        return f"the first environment ({clean(self.drift.chain[0].name)})" if self.drift.chain else "nothing"

    @property
    def headline(self) -> str:
        """Return the verdict in one sentence."""
        if not self.drift.comparisons:
            return "Nothing was measured: there is no record"
        return headline(self.drift.verdict)

    @property
    def summary(self) -> str:
        """Count the changes between the first and the last environment by verdict."""
        chain = self.drift.chain
        if not chain:
            return f"{count(len(self.missing), 'environment')}, none with a record."
        if self.drift.steps:
            what, where = [i.change for s in self.steps for i in s.items], f"{chain[0].name} and {chain[-1].name}"
        elif self.drift.goldens is not None:
            what, where = self.drift.comparisons[chain[0].name].changes, f"the goldens and {chain[0].name}"
        else:
            return f"Only {clean(chain[0].name)} has a record: there is nothing to compare it with."
        verdicts = tally(change.verdict for change in what)
        return f"{count(len(what), 'change')} between {clean(where)}" + (f": {verdicts}." if verdicts else ".")

    @property
    def gate(self) -> str:
        """Count the environments that pass, and those that fail by verdict."""
        failing = Counter(row.verdict for row in self.rows if row.verdict.fails)
        passing = len(self.rows) - sum(failing.values())
        parts = [f"{passing} of {count(len(self.rows), 'environment')} {'passes' if passing == 1 else 'pass'}"]
        parts += [f"{n} {'fails' if n == 1 else 'fail'} ({verdict.value})" for verdict, n in failing.items()]
        return f"{self.reference}: {', '.join(parts)}"

    @property
    def first_divergence(self) -> str:
        """Return the first value in which the guide's own runs diverge, "" if they never do."""
        for section in self.steps:
            first = section.step.comparison.first_divergence
            if first is not None:
                where = f"{clean(section.step.before.name)} → {clean(section.step.after.name)}"
                return f"{first.stage}.{finding_line(first, section.measures)}, at step {where}"
        for name, comparison in self.drift.comparisons.items():
            first = comparison.first_divergence
            if first is not None:
                return f"{first.stage}.{finding_line(first)}, in {clean(name)} compared with {self.reference}"
        return ""

    @property
    def next_step(self) -> str:
        """Return what to do next."""
        verdict = self.drift.verdict
        comparisons: Iterable[Comparison] = [s.comparison for s in self.drift.steps] + [
            *self.drift.comparisons.values()
        ]
        carrying = [f for comparison in comparisons for f in comparison.findings if f.verdict is verdict]
        carrying.sort(key=lambda finding: finding.part is Part.OFF_PATH)  # the guide's own path first
        return next_step(verdict, next(iter(carrying), None), self.settings)

    @property
    def unexplained(self) -> list[Deviation]:
        """Return failing deviations from the goldens that no step caused, such as values that are wrong everywhere.

        Of the user's own tests also what they declare themselves: a skipped one says so.
        """
        steps = [*self.drift.steps, *self.drift.variations]
        changed = {(f.stage, f.name) for step in steps for f in step.comparison.findings if f.verdict.is_change}
        failing = [d for d in self.deviations if d.finding.verdict.fails or d.finding.stage == TESTS]
        return [d for d in failing if (d.finding.stage, d.finding.name) not in changed]

    @property
    def settings(self) -> Pairs:
        """Return the settings that differ between records, each with the first record's value and another."""
        found: dict[str, tuple[object, object]] = {}
        measured = [outcome.record for outcome in self.drift.outcomes if outcome.record is not None]
        for record in measured[1:]:
            for name, pair in setting_changes(measured[0].config, record.config).items():
                found.setdefault(name, pair)
        return found

    def _section(self, anchor: str, step: Step) -> StepOutline:
        changes = sorted(step.comparison.changes, key=lambda c: (c.stage != TESTS, c.part is Part.OFF_PATH))  # stable
        items = [
            Item(f"{anchor}-{n}-{change.stage}", change, self._behind(change)) for n, change in enumerate(changes, 1)
        ]
        return StepOutline(anchor, step, tuple(items), quantities(step.after.record))

    def _behind(self, change: Change) -> tuple[str, ...]:
        found = {p for f in change.findings for p in self.drift.packages_behind(f.stage, f.name)}
        return tuple(package for package in VARIED if package in found)

    def _deviations(self) -> list[Deviation]:
        """Group deviations from the reference by their text, because many environments share them."""
        groups: dict[tuple[str, str, Verdict, str], tuple[Finding, list[str]]] = {}
        for outcome in self.drift.outcomes:
            if outcome.name not in self.drift.comparisons:
                continue
            measures = quantities(outcome.record)
            for finding in self.drift.comparisons[outcome.name].findings:
                if finding.verdict.is_change:
                    line = finding_line(finding, measures)
                    key = (finding.stage, finding.name, finding.verdict, line)
                    groups.setdefault(key, (finding, []))[1].append(outcome.name)
        ordered = sorted(groups.items(), key=lambda item: ALL_STAGES.index(item[0][0]))
        return [
            Deviation(f"reference-{n}-{key[0]}", finding, key[3], tuple(names))
            for n, (key, (finding, names)) in enumerate(ordered, start=1)
        ]

    def _row(self, outcome: Outcome) -> Row:
        comparison = self.drift.comparisons.get(outcome.name)
        if comparison is None or outcome.record is None:
            return Row(outcome, (), Verdict.UNMEASURED)
        verdicts, follows = comparison.stages(), comparison.follows()
        own = {change.stage for change in comparison.changes}
        flow = {change.stage for change in comparison.changes if change.part is not Part.OFF_PATH}
        here = {stage for section in self.steps if section.step.after is outcome for stage in _stages(section)}
        cells = [
            Cell(
                stage,
                verdicts.get(stage),
                follows.get(stage, "") if stage not in own else "",
                stage in here,
                self._anchor(outcome, stage, verdicts.get(stage)) if stage in verdicts else "",
                stage in own - flow - {TESTS} and stage not in follows,
            )
            for stage in self.stages
        ]
        return Row(outcome, tuple(cells), comparison.verdict, outcome in self.drift.aside)

    def _anchor(self, outcome: Outcome, stage: str, verdict: Verdict | None) -> str:
        """Return a cell's link: to the change of its own step, else of the nearest step, else to its deviation."""
        deviates = verdict is not None and verdict.is_change
        for section in self._nearest(outcome):
            for item in section.items:
                if stage in (item.change.stage, *item.change.follows) and (deviates or section.step.after is outcome):
                    return item.anchor
        deviations = (d.anchor for d in self.deviations if d.finding.stage == stage and outcome.name in d.names)
        return next(deviations, "")

    def _nearest(self, outcome: Outcome) -> list[StepOutline]:
        """Return the steps that may explain an environment's changes, nearest first."""
        if outcome in self.drift.aside:
            return [section for section in self.variations if section.step.after is outcome]
        place = self.drift.chain.index(outcome)
        return [s for _, s in sorted(enumerate(self.steps, start=1), key=lambda pair: abs(pair[0] - place))]


def _stages(section: StepOutline) -> set[str]:
    return {stage for item in section.items for stage in (item.change.stage, *item.change.follows)}


def short_names(names: Sequence[str], limit: int = 3, total: int = 0) -> str:
    """Return names in one line: all of them, a few and a count, or "all N environments"."""
    if total > 1 and len(names) == total:
        return f"all {total} environments"
    shown = [clean(name) for name in names]
    if len(shown) <= limit:
        return ", ".join(shown)
    return f"{', '.join(shown[: limit - 1])}, … {shown[-1]} ({len(shown)} environments)"
