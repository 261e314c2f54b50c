"""Many records of many versions: what each step of the upgrade changed, and which package did it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmrepro.compare.changes import Comparison, Pairs
from mlmrepro.compare.golden import version_of, versions_of
from mlmrepro.compare.judge import Expectations, Verdict, judge_record, not_asked, worst
from mlmrepro.record import RunRecord

__all__ = ["Drift", "Outcome", "Step", "compare_records", "compare_with", "differing", "setting_changes"]

VARIED = ("transformers", "datasets")  # what a matrix varies; everything else is pinned if possible


@dataclass(frozen=True)
class Outcome:
    """The result of one environment: its record, or one line that says why there is none."""

    name: str
    record: RunRecord | None
    problem: str = ""
    log: str = ""  # the file with the whole output, "" if there is none

    @property
    def versions(self) -> dict[str, str | None]:
        """The versions that the record was made with, {} without a record."""
        return versions_of(self.record.provenance) if self.record else {}


@dataclass(frozen=True)
class Step:
    """Two records and what differs between them."""

    before: Outcome
    after: Outcome
    comparison: Comparison

    @property
    def packages(self) -> Pairs:
        """Return the versions that differ, by package."""
        return self.comparison.packages


def compare_records(before: Outcome, after: Outcome, declared: Expectations | None = None) -> Step:
    """Compare two records; differences that `declared` accounts for are expected changes."""
    if before.record is None or after.record is None:
        raise ValueError("an outcome without a record cannot be compared")
    comparison = compare_with(Expectations.from_record(before.record), before.name, after, declared)
    return Step(before, after, comparison)


def compare_with(
    expectations: Expectations, name: str, outcome: Outcome, declared: Expectations | None = None
) -> Comparison:
    """Compare a record with expectations from goldens or from another record, called `name`."""
    if outcome.record is None:
        raise ValueError("an outcome without a record cannot be compared")
    return Comparison(
        judge_record(expectations, outcome.record, declared),
        (name, outcome.name),
        differing(expectations.versions, outcome.versions),
        setting_changes(expectations.config, outcome.record.config) if expectations.config else {},
        not_asked(expectations, outcome.record),
    )


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Pairs:
    """Return what differs between two mappings, by name; None stands for a value that one side lacks."""
    names = [*before, *(name for name in after if name not in before)]
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def setting_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Pairs:
    """Return the settings of the guide, and the threads, in which two runs' configurations differ."""
    sides = [{**config.get("guide", {}), "threads": config.get("threads")} for config in (before, after)]
    return differing(*sides)


class Drift:
    """The outcomes of a matrix, against the goldens and step by step.

    `outcomes` keep the order in which they were given. `chain` is the upgrade path among them: the outcomes whose
    transformers and datasets are both at least those of the one before. The rest vary a single package.
    """

    def __init__(self, outcomes: Sequence[Outcome], goldens: Path | None = None) -> None:
        self.outcomes = list(outcomes)
        self.goldens = Expectations.from_goldens(goldens) if goldens else None
        measured = [outcome for outcome in self.outcomes if outcome.record is not None]
        if self.goldens is not None:
            self.goldens = self.goldens.with_tests([o.record for o in measured if o.record is not None])
        self.chain = _chain(measured)
        self.aside = [outcome for outcome in measured if outcome not in self.chain]
        self.comparisons = {o.name: self._against_reference(o) for o in measured}
        pairs = zip(self.chain, self.chain[1:], strict=False)
        self.steps = [compare_records(a, b, self.goldens) for a, b in pairs]
        # Each of the rest against its neighbours on the chain that share one of the two varied versions.
        self.variations = [
            compare_records(neighbour, outcome, self.goldens)
            for outcome in self.aside
            for neighbour in self._neighbours(outcome)
        ]

    @property
    def verdict(self) -> Verdict:
        """Return the gravest verdict; an environment without a record counts as unmeasured."""
        verdicts = [comparison.verdict for comparison in self.comparisons.values()]
        verdicts += [Verdict.UNMEASURED for outcome in self.outcomes if outcome.record is None]
        return worst(verdicts)

    @property
    def exit_code(self) -> int:
        """Return 0 if the gate passes, 1 if it fails."""
        return int(self.verdict.fails)

    def packages_behind(self, stage: str, name: str) -> tuple[str, ...]:
        """Return which of the varied packages changes a value by itself, as far as the variations show."""
        behind = set()
        for step in self.variations:
            varied = [package for package in VARIED if package in step.packages]
            changed = any(f.stage == stage and f.name == name and f.verdict.is_change for f in step.comparison.findings)
            if changed and len(varied) == 1:
                behind.add(varied[0])
        return tuple(package for package in VARIED if package in behind)

    def _against_reference(self, outcome: Outcome) -> Comparison:
        """Against the goldens; without them, against the first record of the chain."""
        assert outcome.record is not None
        if self.goldens is not None:
            return compare_with(self.goldens, "golden", outcome)
        return compare_records(self.chain[0], outcome).comparison

    def _neighbours(self, outcome: Outcome) -> list[Outcome]:
        sharing = [
            [other for other in self.chain if other.versions.get(package) == outcome.versions.get(package)]
            for package in VARIED
        ]
        return [others[0] for others in sharing if others]


def _chain(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the longest run of outcomes, in their order, in which no varied version goes down."""
    best: list[list[Outcome]] = []
    for outcome in outcomes:
        before = [path for path in best if _no_lower(path[-1], outcome)]
        best.append([*max(before, key=len, default=[]), outcome])
    return max(best, key=len, default=[])


def _no_lower(before: Outcome, after: Outcome) -> bool:
    pairs = [(before.versions.get(package), after.versions.get(package)) for package in VARIED]
    return all(a is None or b is None or version_of(a) <= version_of(b) for a, b in pairs)
