"""Find the first release of a package that changed an observation, or the outcome of a command.

Each release gets an environment of its own, in which a record is made, or the command is run. A release that cannot be
installed, or in which nothing could be measured, is skipped, never blamed. Several observations share the records.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from importlib import metadata
from typing import Any, Protocol

from packaging.version import Version

from mlmrepro.compare.drift import Outcome, compare_with
from mlmrepro.compare.judge import Expectations, agree
from mlmrepro.environments.releases import Release
from mlmrepro.environments.spec import PAIR, Environment, catalogue, parse_environments
from mlmrepro.errors import UserError
from mlmrepro.record import Observation, RunRecord

__all__ = [
    "Bisection",
    "Chosen",
    "Found",
    "Measure",
    "Progress",
    "Silent",
    "Status",
    "Step",
    "Trial",
    "bisect",
    "candidates",
    "search",
]

# The environment of a release: the package, its version, those of others, and the packages whose version pip chooses.
Chosen = Callable[[str, Version, Mapping[str, str], tuple[str, ...]], Environment]

# How pip says that these versions do not go together, or that one of them does not exist for this Python.
_CONFLICT = re.compile(r"Cannot install|conflict|No matching distribution", re.IGNORECASE)
_LOOSENED = ("numpy", "pandas", "pyarrow")  # older releases of transformers and datasets bound them


class Status(str, Enum):
    """What a release gives: what the first release gives, something else, or nothing that could be measured."""

    OLD = "old"
    NEW = "new"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Trial:
    """What was measured in one release: a record, or the exit code of a command; or else why not."""

    outcome: Outcome
    exit_code: int | None = None
    moved: Mapping[str, str] = field(default_factory=dict)  # the versions of packages that had to differ

    @property
    def problem(self) -> str:
        """Why nothing was measured, "" if something was."""
        return self.outcome.problem


@dataclass(frozen=True)
class Step:
    """One release that was looked at, and what the observations gave there."""

    release: Release
    trial: Trial
    statuses: Mapping[str, Status]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """The first release with another value, and the last one before it that was measured."""

    watch: str
    before: Release
    after: Release
    old: Any
    new: Any
    skipped: tuple[Release, ...] = ()  # releases between the two: the change may have come with one of them
    flickers: bool = False  # measured twice in one release, it gave two values; 2 of 3 decided


@dataclass(frozen=True)
class Bisection:
    """The result: for each observation that differs between the ends, the release that changed it."""

    package: str
    releases: tuple[Release, ...]
    found: tuple[Found, ...]
    steps: tuple[Step, ...]  # oldest release first
    same: tuple[str, ...] = ()  # observations that were asked for and do not differ between the ends
    notes: tuple[str, ...] = ()


class Measure(Protocol):
    """Makes an environment and measures in it; keeps what it has measured."""

    def __call__(self, environment: Environment, attempt: int, /) -> Trial:
        """Return the trial; `attempt` counts from 1, and a further one measures again."""


class Progress(Protocol):
    """Shows which release is measured and what it gave."""

    def begin(self, release: Release, note: str) -> None:
        """A release is measured."""

    def end(self, step: Step) -> None:
        """It has been measured."""


class Silent:
    """Shows nothing."""

    def begin(self, release: Release, note: str) -> None:
        """Ignore it."""

    def end(self, step: Step) -> None:
        """Ignore it."""


def bisect(
    package: str,
    releases: Sequence[Release],
    measure: Measure,
    *,
    watch: Sequence[str] = (),
    fixed: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    environment: Chosen | None = None,
) -> Bisection:
    """Find the release that changed each observation, between the first and the last of `releases`.

    `watch` holds names such as ``model.isolated.logits``, in which ``*`` matches any characters; without it, the first
    value in which the two ends diverge is taken. If `measure` gives exit codes, the command is what is watched. `fixed`
    are the versions of other packages; `environment` is asked for the environment of a release, and may hold more than
    these. Needs at most ceil(log2 n) + 2 environments for one change, if none is skipped.

    Raises UserError if one of the ends cannot be measured, or a name is unknown.
    """
    run = _Run(package, releases, measure, dict(fixed or {}), progress or Silent(), environment or _environment)
    run.measure_ends()
    names, same = run.watched(watch)
    for end in (0, run.last):
        run.progress.end(run.step(end))
    found = [run.first_with_another(name) for name in names]
    steps = [run.step(place) for place in sorted({place for place, attempt in run.trials if attempt == 1})]
    return Bisection(package, tuple(releases), tuple(found), tuple(steps), tuple(same), tuple(run.notes))


def search(count: int, status: Callable[[int], Status]) -> tuple[int, int]:
    """Return two neighbouring places, of the old and the new status; only skipped ones are between them.

    The first place is old and the last one new, which is not asked again.
    """
    low, high = 0, count - 1
    skipped: set[int] = set()
    while open_places := [place for place in range(low + 1, high) if place not in skipped]:
        middle = (low + high) / 2
        place = min(open_places, key=lambda each: abs(each - middle))
        found = status(place)
        if found is Status.SKIPPED:
            skipped.add(place)
        elif found is Status.OLD:
            low = place
        else:
            high = place
    return low, high


def candidates(package: str, fixed: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the versions of transformers and datasets to try next to `package`, best first: {} lets pip choose.

    The installed version comes first, then those of the catalogue, newest first.
    """
    missing = [each for each in PAIR if each != package and each not in fixed]
    if not missing:
        return [{}]
    pairs = [{each: str(pair.versions[each]) for each in missing} for pair in reversed(catalogue().pairs)]
    with contextlib.suppress(metadata.PackageNotFoundError):
        pairs.insert(0, {each: metadata.version(each) for each in missing})
    return [pair for place, pair in enumerate(pairs) if pair not in pairs[:place]] + [{}]


class _Run:
    """One bisection: what was measured so far, and with which companions."""

    def __init__(
        self,
        package: str,
        releases: Sequence[Release],
        measure: Measure,
        fixed: dict[str, str],
        progress: Progress,
        environment: Chosen,
    ) -> None:
        self.package, self.releases, self._measure, self.fixed = package, releases, measure, fixed
        self.progress, self.environment = progress, environment
        self.trials: dict[tuple[int, int], Trial] = {}
        self.flickering: set[str] = set()
        self.names: list[str] = []
        self.notes: list[str] = []

    @property
    def last(self) -> int:
        return len(self.releases) - 1

    def measure_ends(self) -> None:
        """Choose companions that go with both ends, and measure the ends."""
        for companions in candidates(self.package, self.fixed):
            self.trials.clear()
            tried = {**self.fixed, **companions}
            problems = [self._take(place, tried).problem for place in (0, self.last)]
            if not any(_CONFLICT.search(problem) for problem in problems):
                break
        self.fixed = tried
        for place in (0, self.last):
            if problem := self.trial(place).problem:
                release = self.releases[place].version
                raise UserError(
                    f"{self.package} {release}, an end of the range, cannot be measured: {problem}",
                    remedy="give another end, or other versions of other packages (--with)",
                )
        free = [each for each in PAIR if each != self.package and each not in self.fixed]
        if free:
            self.notes.append(
                f"no version of {' and '.join(free)} goes with both ends, so pip chose one for each release"
            )

    def watched(self, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the names to search for, and those that were asked for and do not differ between the ends."""
        first, last = self.trial(0), self.trial(self.last)
        if first.exit_code is not None:
            self.names = ["exit code"]
            differ = bool(first.exit_code) != bool(last.exit_code)
            return (self.names, []) if differ else ([], self.names)
        before, after = _values(first), _values(last)
        if not patterns:
            assert first.outcome.record is not None
            reference = Expectations.from_record(first.outcome.record)
            divergence = compare_with(reference, first.outcome.name, last.outcome).first_divergence
            self.names = [f"{divergence.stage}.{divergence.name}"] if divergence else []
            return self.names, []
        names = []
        for pattern in patterns:
            matching = [name for name in before if fnmatchcase(name, pattern) and name in after]
            if not matching:
                raise UserError(
                    f"--watch {pattern}: no observation of both ends has this name",
                    remedy="copy a name from a report, such as model.isolated.logits; * matches any characters",
                )
            names += matching
        names = list(dict.fromkeys(names))
        self.names = [name for name in names if not agree(before[name], after[name])]
        return self.names, [name for name in names if name not in self.names]

    def first_with_another(self, name: str) -> Found:
        """Return the release that changed a value; what decides is measured twice, and 2 of 3 if that differs."""
        while True:
            before, after = search(len(self.releases), lambda place: self.status(place, name))
            if name in self.flickering or not self._flickers(name, before, after):
                break
            self.flickering.add(name)
        old, new = (self.value(place, name) for place in (before, after))
        skipped = tuple(self.releases[before + 1 : after])
        return Found(name, self.releases[before], self.releases[after], old, new, skipped, name in self.flickering)

    def status(self, place: int, name: str) -> Status:
        """Return a release's status; that of a flickering value is what 2 of 3 measurements give."""
        votes = [self._once(place, name, 1)]
        if name in self.flickering and votes[0] is not Status.SKIPPED:
            votes.append(self._once(place, name, 2))
            if votes[0] is not votes[1]:
                votes.append(self._once(place, name, 3))
        return max(votes, key=votes.count)

    def value(self, place: int, name: str) -> Any:
        """Return what a release gave, None if nothing."""
        trial = self.trial(place)
        if trial.exit_code is not None:
            return trial.exit_code
        found = _values(trial).get(name)
        return None if found is None else found.value

    def step(self, place: int) -> Step:
        """Return what is known of a release."""
        statuses = {name: self._once(place, name, 1) for name in self.names}
        return Step(
            self.releases[place], self.trial(place), statuses, {name: self.value(place, name) for name in self.names}
        )

    def trial(self, place: int, attempt: int = 1) -> Trial:
        """Measure a release, unless that is done: with the companions of the ends, or else with those that it needs."""
        key = (place, attempt)
        if key not in self.trials:
            self._take(place, self.fixed, attempt)
            if _CONFLICT.search(self.trials[key].problem):
                own = {name: version for name, version in self.fixed.items() if name not in PAIR}
                free = tuple(name for name in PAIR if name != self.package)
                for loosened in (free, (*free, *_LOOSENED)):
                    again = self._take(place, own, attempt, loosened)
                    if not _CONFLICT.search(again.problem):
                        break
            if attempt == 1 and self.names:
                self.progress.end(self.step(place))
        return self.trials[key]

    def _take(self, place: int, fixed: Mapping[str, str], attempt: int = 1, free: tuple[str, ...] = ()) -> Trial:
        release = self.releases[place]
        self.progress.begin(release, "again" if attempt > 1 else "")
        environment = self.environment(self.package, release.version, fixed, free)
        trial = self._measure(environment, attempt)
        moved = {name: version for name in free if (version := (trial.outcome.versions.get(name) or ""))}
        trial = Trial(trial.outcome, trial.exit_code, moved)
        self.trials[place, attempt] = trial
        return trial

    def _once(self, place: int, name: str, attempt: int) -> Status:
        first, trial = self.trial(0), self.trial(place, attempt)
        if trial.problem:
            return Status.SKIPPED
        if trial.exit_code is not None:
            return Status.OLD if bool(trial.exit_code) == bool(first.exit_code) else Status.NEW
        reference, found = _values(first).get(name), _values(trial).get(name)
        if reference is None or found is None:
            return Status.SKIPPED
        return Status.OLD if agree(reference, found) else Status.NEW

    def _flickers(self, name: str, *places: int) -> bool:
        return any(self._once(place, name, 1) is not self._once(place, name, 2) for place in places)


def _values(trial: Trial) -> dict[str, Observation]:
    record: RunRecord | None = trial.outcome.record
    return {f"{o.stage}.{o.name}": o for o in record or () if o.compared or o.bound}


def _environment(package: str, version: Version, fixed: Mapping[str, str], free: tuple[str, ...]) -> Environment:
    """Return the environment of a release; pip chooses the versions of the packages in `free`."""
    exact = {package: str(version), **fixed}
    free = tuple(dict.fromkeys((*free, *(name for name in PAIR if name not in exact))))
    if not free:
        return parse_environments([" ".join(f"{name}==={each}" for name, each in exact.items())])[0]
    name = "-".join([*(f"{each}{number}" for each, number in exact.items()), "any", *free])
    return Environment(name, tuple(f"{each}=={number}" for each, number in exact.items()), free=free)
