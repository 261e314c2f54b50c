"""An upgrade from one lock file to another: a record of each side, and of mixtures of both."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from mlmrepro.compare.changes import Comparison
from mlmrepro.compare.drift import Outcome, compare_with
from mlmrepro.compare.judge import Expectations
from mlmrepro.environments.attribute import Attribution, Cause, Measured, SearchEnded, Swapped
from mlmrepro.environments.bisect import Found, Trial, bisect
from mlmrepro.environments.locks import Lock, read_lock
from mlmrepro.environments.make import CACHE, isolated, make_environment
from mlmrepro.environments.matrix import RECORD, Progress, kept_outcome, run_matrix
from mlmrepro.environments.releases import between, releases
from mlmrepro.environments.spec import PAIR, Environment, catalogue, name_of
from mlmrepro.errors import UserError

__all__ = [
    "Behind",
    "Installed",
    "Upgrade",
    "changed_values",
    "environment_of",
    "installed_in",
    "lock_of",
    "releases_behind",
    "required_with",
]

# Packages that are likely to change a record, in this order; all others come after them.
_LIKELY = (*PAIR, "tokenizers", "torch", "accelerate", "numpy", "safetensors", "huggingface-hub", "pyarrow", "pandas")
_BOUNDED = ("numpy", "pandas", "pyarrow")  # older releases bound them
_UNREACHED = "could not be reached"  # what `reason` says if the index does not answer
_LISTING = """
import importlib.metadata, json
found = {}
for each in importlib.metadata.distributions():
    found.setdefault(each.metadata["Name"], [each.version, each.requires or []])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Installed:
    """A package of an environment."""

    version: str
    requires: tuple[str, ...] = ()


def lock_of(text: str) -> Lock:
    """Return what a lock file pins, or an environment of the catalogue, such as ``oldest``."""
    named = catalogue().words.get(text, ())
    if len(named) != 1 or Path(text).exists():
        return read_lock(text)
    exact = (Requirement(each) for each in (*named[0].packages, *named[0].constraints) if "==" in each)
    return Lock(text, {canonicalize_name(r.name): Version(str(r.specifier).removeprefix("==")) for r in exact})


def environment_of(name: str, lock: Lock) -> tuple[Environment, list[str]]:
    """Return the environment of a lock, and what it takes from elsewhere because the lock does not name it.

    It holds what a record needs, at the lock's versions; the lock constrains everything that this pulls in. Raises
    UserError if the lock does not name transformers.
    """
    if "transformers" not in lock.versions:
        unused = next((each for each in lock.unused if canonicalize_name(each.name) == "transformers"), None)
        problem = f"{unused.where}: transformers is {unused.reason}" if unused else f"{lock.source}: no transformers"
        raise UserError(problem, remedy="give a lock file that pins transformers to a version")
    direct = {name_of(need): need for need in catalogue().needs}
    requirements = [f"{each}=={lock.versions[each]}" for each in (*PAIR, *direct) if each in lock.versions]
    lacking = [need for each, need in direct.items() if each not in lock.versions]
    held: dict[str, str] = {name_of(pin): pin for pin in catalogue().held}
    added = [held.get(need, need) for need in lacking]
    if "datasets" not in lock.versions:
        requirements.append(datasets := f"datasets=={_datasets_for(lock.versions['transformers'])}")
        added.insert(0, datasets)
    pins = tuple(f"{each}=={version}" for each, version in lock.versions.items() if each not in (*PAIR, *direct))
    notes = [f"{lock.source} lacks what a record needs; added: {', '.join(added)}"] if added else []
    return Environment(name, tuple(requirements), pins), notes


def _datasets_for(transformers: Version) -> Version:
    """Return the datasets that the catalogue pairs with the nearest older transformers."""
    pairs = [pair.versions for pair in catalogue().pairs]
    older = [pair for pair in pairs if pair["transformers"] <= transformers]
    return (older[-1] if older else pairs[0])["datasets"]


def installed_in(python: Path) -> dict[str, Installed]:
    """Return the packages that an interpreter finds, without pip, which no constraint reaches."""
    done = subprocess.run([str(python), "-c", _LISTING], env=isolated(), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    listed = {canonicalize_name(name): Installed(version, tuple(needs)) for name, (version, needs) in found.items()}
    return {name: each for name, each in sorted(listed.items()) if name not in ("pip", "mlmrepro")}


def required_with(package: str, before: Mapping[str, Installed], after: Mapping[str, Installed]) -> set[str]:
    """Return the differing packages that must be swapped with this one, because one side's requirements say so.

    Its new version may reject another's old version, and another's old version may reject its new one.
    """
    both = [name for name in before if name in after and before[name].version != after[name].version]
    wanted = {
        name
        for name, versions in _demands(package, after, before)
        if name in both and name != package and not versions.contains(before[name].version, prereleases=True)
    }
    rejecting = {
        other
        for other in both
        for name, versions in _demands(other, before, after)
        if name == package != other and not versions.contains(after[package].version, prereleases=True)
    }
    return wanted | rejecting


def _demands(
    package: str, side: Mapping[str, Installed], other: Mapping[str, Installed]
) -> Iterator[tuple[str, SpecifierSet]]:
    """Yield what a package requires on a side, also by way of packages that only this side has."""
    todo, seen = [package], {package}
    while todo:
        for requirement in map(Requirement, side[todo.pop()].requires):
            name = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            yield name, requirement.specifier
            if name in side and name not in other and name not in seen:
                seen.add(name)
                todo.append(name)


def changed_values(comparison: Comparison) -> frozenset[str]:
    """Return the names of the values that changed, such as ``loss.step_losses``."""
    return frozenset(f"{f.stage}.{f.name}" for f in comparison.findings if f.verdict.is_change)


class Upgrade:
    """Takes the records of both sides and of mixtures, and keeps them in a folder."""

    def __init__(
        self,
        locks: tuple[Lock, Lock],
        directory: Path,
        *,
        goldens: Path,
        progress: Progress | None = None,
        cache: Path = CACHE,
    ) -> None:
        """Raises UserError if a lock does not name transformers."""
        (before, first), (after, second) = environment_of("from", locks[0]), environment_of("to", locks[1])
        self.locks, self.sides = locks, (before, after)
        self.needed: dict[str, set[str]] = {}
        self.notes = [*locks[0].notes, *first, *locks[1].notes, *second]
        self.directory, self.goldens, self.progress, self.cache = directory, goldens, progress, cache

    def take(self) -> Outcome:
        """Take the records of both sides and return that of the new one.

        Raises UserError if there is none of the old side, or no network to make the new one.
        """
        before, after = self._run(self.sides)
        for outcome in (before, after):
            if outcome.record is None and (outcome is before or _UNREACHED in outcome.problem):
                source = self.locks[outcome is after].source
                where = f"; {outcome.log} has the whole output" if outcome.log else ""
                raise UserError(
                    f"{source} cannot be measured: {outcome.problem}",
                    remedy=f"make what it names installable here{where}; what was measured is kept",
                )
        self.before = Outcome(self.locks[0].source, before.record, log=before.log)
        return Outcome(self.locks[1].source, after.record, after.problem, after.log)

    def compare(self, outcome: Outcome) -> Comparison:
        """Compare a record with that of the old side."""
        return compare_with(self.expected, self.before.name, outcome, self.declared)

    @cached_property
    def expected(self) -> Expectations:
        """The old side's record, as an expectation."""
        assert self.before.record is not None
        return Expectations.from_record(self.before.record)

    @cached_property
    def declared(self) -> Expectations:
        """The changes that the goldens declare."""
        return Expectations.from_goldens(self.goldens)

    @cached_property
    def standing(self) -> frozenset[str]:
        """What the old side gives as a finding against itself, such as a bound that it breaks: not of the upgrade."""
        return changed_values(self.compare(self.before))

    @cached_property
    def installed(self) -> tuple[dict[str, Installed], dict[str, Installed]]:
        """The packages of both environments."""
        before, after = (installed_in(make_environment(side, self.cache)) for side in self.sides)
        return before, after

    @cached_property
    def packages(self) -> dict[str, tuple[str, str]]:
        """Both versions of the packages that differ and that both environments have, likely causes first."""
        before, after = self.installed
        both = {name: (before[name].version, after[name].version) for name in before if name in after}
        order = sorted(both, key=lambda name: _LIKELY.index(name) if name in _LIKELY else len(_LIKELY))
        return {name: both[name] for name in order if both[name][0] != both[name][1]}

    def wanted(self, comparison: Comparison, *, only_failing: bool) -> list[str]:
        """Return the changed values to explain, failures first, without those that inherited a change."""
        changes = sorted(comparison.changes, key=lambda change: not change.verdict.fails)
        kept = [change for change in changes if change.verdict.fails or not only_failing]
        names = [f"{f.stage}.{f.name}" for change in kept for f in change.findings]
        return [name for name in dict.fromkeys(names) if name not in self.standing]

    def needs(self, package: str) -> set[str]:
        """Return what a package must be swapped with."""
        if package not in self.needed:  # the search asks thousands of times
            self.needed[package] = required_with(package, *self.installed)
        return self.needed[package]

    def mixture(self, swapped: Swapped) -> Environment:
        """Return the environment of the old side with some packages of the new one.

        A package that only one side installs has that side's version, whichever package pulls it in.
        """
        return self._with(self._name(swapped), {name: self.installed[1][name].version for name in swapped})

    def _with(self, name: str, changed: Mapping[str, str], free: tuple[str, ...] = ()) -> Environment:
        before, after = self.installed
        versions = {name: str(version) for lock in self.locks[::-1] for name, version in lock.versions.items()}
        versions |= {name: each.version for name, each in {**after, **before}.items()}
        versions |= changed
        versions = {package: version for package, version in versions.items() if package not in free}
        direct = [each for each in (*PAIR, *map(name_of, catalogue().needs)) if each in versions]
        requirements = tuple(f"{each}=={versions.pop(each)}" for each in direct)
        pins = tuple(f"{each}=={version}" for each, version in sorted(versions.items()))
        return Environment(name, requirements, pins, free=free)

    def _name(self, swapped: Swapped) -> str:
        rest = set(self.packages) - swapped
        for word, names in (("only", swapped), ("without", rest)):
            if len(names) <= 3:
                return "-".join([word, *(name for name in self.packages if name in names)])
        digest = hashlib.sha256(" ".join(sorted(swapped)).encode()).hexdigest()
        return f"mixture-of-{len(swapped)}-{digest[:6]}"

    def measure(self, swapped: Swapped) -> Measured:
        """Return which values a mixture changes; raises SearchEnded if there is no network to make it."""
        (outcome,) = self._run([self._environment(swapped)])
        if outcome.record is None and _UNREACHED in outcome.problem:
            raise SearchEnded(f"{outcome.problem}; what was measured is kept")
        return self._measured(outcome)

    def recall(self, swapped: Swapped) -> Measured | None:
        """Return what a mixture changes if its record is kept, else None."""
        outcome = self.kept(self._environment(swapped))
        return self._measured(outcome) if outcome else None

    def with_release(
        self, cause: Cause, package: str, version: Version, _: Mapping[str, str], free: tuple[str, ...]
    ) -> Environment:
        """Return the environment of the old side with a release of a package that makes a change.

        What must be swapped with it has its old version; if these do not go together (`free` is not empty), the new
        one; and if this does not either (`free` names what older releases bound), the one that pip chooses.
        """
        old, new = map(Version, self.packages[package])
        if version in (old, new):
            return self.sides[0] if version == old else self._environment(cause.swapped)
        name, changed = f"{package}-{version}", {package: str(version)}
        along = [each for each in (*cause.packages, *cause.along) if each != package]
        if set(_BOUNDED) & set(free):
            loose = dict.fromkeys(each for each in (*along, *_BOUNDED) if each != package)
            return self._with(f"{name}-free", changed, tuple(loose))
        if free and along:
            changed |= {each: self.installed[1][each].version for each in along}
            name += f"-with-{'-'.join(along)}"
        return self._with(name, changed)

    def trial(self, environment: Environment, attempt: int) -> Trial:
        """Measure the environment of a release; a further attempt measures again."""
        (outcome,) = self._run([environment], self._attempt(attempt))
        return Trial(outcome)

    def kept(self, environment: Environment, attempt: int = 1) -> Outcome | None:
        """Return the record of an environment, None if none is kept."""
        return kept_outcome(environment, self._attempt(attempt), goldens=self.goldens, command=RECORD)

    def _attempt(self, attempt: int) -> Path:
        return self.directory / (f"again-{attempt}" if attempt > 1 else "")

    def _environment(self, swapped: Swapped) -> Environment:
        return self.sides[1] if len(swapped) == len(self.packages) else self.mixture(swapped)

    def _measured(self, outcome: Outcome) -> Measured:
        if outcome.record is None:
            return Measured(problem=outcome.problem)
        return Measured(changed_values(self.compare(outcome)) - self.standing)

    def _run(self, environments: Sequence[Environment], directory: Path | None = None) -> list[Outcome]:
        return run_matrix(
            environments,
            directory or self.directory,
            goldens=self.goldens,
            progress=self.progress,
            cache=self.cache,
            command=RECORD,
            keep=True,
        )


@dataclass
class Behind:
    """The releases behind an upgrade's changes: of each changed value, the package and the release that changed it."""

    found: list[tuple[str, Found]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was not searched, and why


def releases_behind(
    upgrade: Upgrade, attribution: Attribution, seconds: float, clock: Callable[[], float] = time.monotonic
) -> Behind:
    """Bisect the changes that a single package causes between its two versions, the other packages as in the old side.

    Of packages that require each other, such as transformers and tokenizers, it is the first; the others move along.
    No environment is begun after `seconds`; what is kept costs nothing.
    """
    started, result = clock(), Behind()
    causes: dict[Cause, list[str]] = {}
    for each in attribution.explained:
        for cause in [cause for cause in each.causes if len(cause.packages) == 1 or cause.inseparable][:1]:
            causes.setdefault(cause, []).append(each.name)

    def measure(environment: Environment, attempt: int) -> Trial:
        if clock() - started >= seconds and not upgrade.kept(environment, attempt):
            raise SearchEnded("the budget is used up; to continue, run the same command with a larger one")
        return upgrade.trial(environment, attempt)

    for cause, names in causes.items():
        package = cause.packages[0]
        old, new = map(Version, upgrade.packages[package])
        if new < old:
            result.notes.append(f"{package} is downgraded, so its releases were not searched")
            continue
        try:
            listed, note = releases(package, upgrade.cache)
            chosen = between(listed, old, new, pre=False, yanked=False)
        except UserError as error:
            result.notes.append(error.problem)
            continue
        if len(chosen) == 2:
            continue  # the package's two versions are neighbours
        result.notes += [note] if note else []
        environment = partial(upgrade.with_release, cause)
        fixed = dict.fromkeys(PAIR, "")  # whose versions the lock files say, so that there is no pair to choose
        for name in names:
            try:
                searched = bisect(package, chosen, measure, watch=[name], fixed=fixed, environment=environment)
                result.found += [(package, each) for each in searched.found]
            except SearchEnded as ended:
                result.notes.append(str(ended))
                return result
            except UserError as error:
                result.notes.append(error.problem)
    return result
