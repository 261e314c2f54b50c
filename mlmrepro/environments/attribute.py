"""Find which packages of an upgrade cause which change, by measuring mixtures of its two sides.

A mixture is the old side with some packages swapped to the new side's versions. Nothing is installed here: `measure`
says what a mixture changes, or why it cannot be measured.

The search for one change: packages one at a time, likely ones first; then delta debugging (Zeller and Hildebrandt,
"Simplifying and isolating failure-inducing input", 2002) with its three outcomes, which narrows the whole upgrade down
to a smallest set. To find what else causes the change, the whole upgrade is measured without that set. If this is
quiet, the other packages are cleared together and need not be measured one by one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["Attribution", "Cause", "Explained", "Measured", "SearchEnded", "Swapped", "attribute"]

Swapped = frozenset[str]


@dataclass(frozen=True)
class Measured:
    """What a mixture changes relative to the old side, or why it could not be installed or run."""

    changed: frozenset[str] = frozenset()
    problem: str = ""


@dataclass(frozen=True)
class Cause:
    """A smallest set of packages that makes a change: fewer of them do not make it, or could not be measured."""

    packages: tuple[str, ...]
    along: tuple[str, ...] = ()  # swapped too, because `packages` require it
    inseparable: bool = False  # several packages that require each other, so which of them it is cannot be told
    unresolved: tuple[Swapped, ...] = ()  # smaller sets that could not be measured and might suffice

    @property
    def swapped(self) -> Swapped:
        """Return the whole set."""
        return frozenset((*self.packages, *self.along))


@dataclass(frozen=True)
class Explained:
    """What is known of one change."""

    name: str
    causes: tuple[Cause, ...] = ()
    complete: bool = False  # without the causes, the new side was measured and does not make the change
    among: tuple[str, ...] = ()  # without a cause: the smallest known set of packages that makes the change
    note: str = ""  # why it is not complete


@dataclass
class Attribution:
    """The result of a search."""

    packages: tuple[str, ...]
    explained: list[Explained] = field(default_factory=list)
    hidden: dict[str, tuple[Swapped, ...]] = field(default_factory=dict)  # made by a mixture, not by the whole upgrade
    measured: dict[Swapped, Measured] = field(default_factory=dict)
    stopped: str = ""  # why the search ended early

    @property
    def failed(self) -> dict[Swapped, str]:
        """Return the mixtures that could not be measured, with the reason."""
        return {swapped: found.problem for swapped, found in self.measured.items() if found.problem}

    @property
    def complete(self) -> bool:
        """Return whether every change is explained."""
        return not self.stopped and all(each.complete for each in self.explained)

    def table(self) -> dict[str, dict[tuple[str, ...], list[str]]]:
        """Return the changes of each stage by the packages that cause them; () holds those without a known cause."""
        table: dict[str, dict[tuple[str, ...], list[str]]] = {}
        for each in self.explained:
            row = table.setdefault(each.name.partition(".")[0], {})
            for packages in [cause.packages for cause in each.causes] or [()]:
                row.setdefault(packages, []).append(each.name)
        return table


def attribute(
    packages: Sequence[str],
    measure: Callable[[Swapped], Measured],
    *,
    needs: Callable[[str], Iterable[str]] = lambda package: (),
    wanted: Sequence[str] | None = None,
    known: Mapping[Swapped, Measured] | None = None,
    recall: Callable[[Swapped], Measured | None] = lambda swapped: None,
    environments: float = math.inf,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Attribution:
    """Find which of the packages, likely ones first, cause the changes that all of them together make.

    `needs` names the other packages that one must be swapped with; it is asked again and again, so it may learn
    from failures. `wanted` are the changes to explain, the most important first (default: all). `known` are earlier
    results, and `recall` returns others, if there are any: they cost nothing. At most `environments` mixtures are
    measured, and none is begun after `seconds`.
    """
    search = _Search(tuple(packages), measure, needs, dict(known or {}), recall, environments, seconds, clock)
    result = Attribution(search.packages, measured=search.known)
    everything = frozenset(packages)
    try:
        whole = search.outcome(everything)
    except SearchEnded as ended:
        result.stopped = str(ended)
        result.explained = [Explained(name, note=str(ended)) for name in wanted or ()]
        return result
    if whole.problem:
        result.stopped = f"the new side cannot be measured: {whole.problem}"
        result.explained = [Explained(name, note=result.stopped) for name in wanted or ()]
        return result
    names = sorted(whole.changed) if wanted is None else [name for name in wanted if name in whole.changed]
    result.explained = [search.explain(name, everything) for name in names]
    result.stopped = search.stopped
    for swapped, found in sorted(search.known.items(), key=lambda item: search.place(item[0])):
        for name in found.changed - whole.changed:
            before = result.hidden.get(name, ())
            if not any(smaller <= swapped for smaller in before):
                result.hidden[name] = (*before, swapped)
    return result


class SearchEnded(Exception):
    """The search has to end, though not everything is explained; `measure` may raise it too, with the reason."""


@dataclass
class _Search:
    packages: tuple[str, ...]
    measure: Callable[[Swapped], Measured]
    needs: Callable[[str], Iterable[str]]
    known: dict[Swapped, Measured]
    recall: Callable[[Swapped], Measured | None]
    environments: float
    seconds: float
    clock: Callable[[], float]
    made: int = 0
    stopped: str = ""

    def __post_init__(self) -> None:
        self.started = self.clock()

    def outcome(self, swapped: Swapped) -> Measured:
        """Return what a mixture changes, from an earlier result if there is one; raises SearchEnded."""
        if not swapped:
            return Measured()
        if swapped not in self.known and (recalled := self.recall(swapped)):
            self.known[swapped] = recalled
        if swapped not in self.known:
            if self.made >= self.environments:
                self.stopped = f"the budget of {self.environments:g} environments is used up"
            elif self.clock() - self.started >= self.seconds:
                self.stopped = f"the budget of {self.seconds / 60:g} minutes is used up"
            if self.stopped:
                raise SearchEnded(self.stopped)
            self.made += 1
            try:
                self.known[swapped] = self.measure(swapped)
            except SearchEnded as ended:
                self.stopped = str(ended)
                raise
        return self.known[swapped]

    def makes(self, name: str, swapped: Swapped) -> bool:
        """Return whether a mixture makes the change; one that cannot be measured does not count as making it."""
        return name in self.outcome(swapped).changed

    def closed(self, swapped: Iterable[str]) -> Swapped:
        """Return the packages with all that they need, directly or not."""
        found: set[str] = set()
        todo = list(swapped)
        while todo:
            package = todo.pop()
            if package not in found:
                found.add(package)
                todo += set(self.needs(package)).intersection(self.packages)
        return frozenset(found)

    def without(self, swapped: Swapped, reverted: Iterable[str]) -> Swapped:
        """Return the set without some packages and without those that need them."""
        gone = set(reverted)
        return frozenset(package for package in swapped if not gone & self.closed([package]))

    def place(self, swapped: Swapped) -> tuple[int, list[int]]:
        """Return the key that puts small sets of likely packages first."""
        return len(swapped), sorted(map(self.packages.index, swapped))

    def ordered(self, swapped: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(swapped, key=self.packages.index))

    def explain(self, name: str, everything: Swapped) -> Explained:
        """Find every smallest set that makes a change.

        Each set that is found splits what is left to look at: another one lacks at least one of its packages (Reiter's
        tree of hitting sets, "A theory of diagnosis from first principles", 1987).
        """
        causes: list[Swapped] = []
        notes: list[str] = []
        todo, seen = [everything], {everything}
        among: Swapped = everything
        while todo:
            rest = todo.pop(0)
            cause = next((each for each in causes if each <= rest), None)
            try:
                if cause is None:
                    found = self.outcome(rest)
                    if found.problem:
                        reverted = ", ".join(self.ordered(everything - rest))
                        notes.append(f"the new side without {reverted} cannot be measured: {found.problem}")
                    if name not in found.changed:
                        continue
                    among = rest
                    cause = self.smallest(name, rest)
                    causes.append(cause)
            except SearchEnded as ended:
                notes.append(str(ended))
                if not causes:
                    among = min((s for s in self.known if self.known_to_make(name, s)), key=self.place)
                break
            for package in self.ordered(self.heads(cause)):
                less = self.without(rest, [package])
                if less not in seen:
                    seen.add(less)
                    todo.append(less)
        shown = tuple(self.cause(each) for each in sorted(causes, key=self.place))
        return Explained(name, shown, not notes, () if causes else self.ordered(among), "; ".join(dict.fromkeys(notes)))

    def known_to_make(self, name: str, swapped: Swapped) -> bool:
        return name in self.known[swapped].changed

    def smallest(self, name: str, start: Swapped) -> Swapped:
        """Return a set within `start` from which no package can be taken without losing the change."""
        makes = [each for each in self.known if each <= start and self.known_to_make(name, each)]
        best = min(makes, key=self.place)
        singles = sorted({self.closed([package]) for package in best}, key=self.first_of)
        # Halving takes about this many measurements for a single package; a likely one is found sooner by itself.
        for single in singles[: 2 * math.ceil(math.log2(len(best) + 1))]:
            if single < best and self.makes(name, single):
                best = single
                break
        parts = 2
        while len(best) > 1:
            less = self.less(name, best, parts)
            if less is not None:
                best, parts = less, max(2, parts - 1)
            elif parts >= len(best):
                break
            else:
                parts = min(2 * parts, len(best))
        return best

    def less(self, name: str, best: Swapped, parts: int) -> Swapped | None:
        """Return a smaller set that makes the change: one of so many parts, or all but one of them."""
        order = self.ordered(best)
        parts = min(parts, len(order))
        cuts = [len(order) * number // parts for number in range(parts + 1)]
        pieces = [order[a:b] for a, b in pairwise(cuts)]
        candidates = [self.closed(piece) for piece in pieces]
        candidates += [self.without(best, piece) for piece in pieces]
        return next((each for each in candidates if each and each < best and self.makes(name, each)), None)

    def first_of(self, swapped: Swapped) -> list[int]:
        """Return the key that orders closed sets by how likely the packages are that they were closed for."""
        return sorted(map(self.packages.index, self.heads(swapped)))

    def heads(self, swapped: Swapped) -> Swapped:
        """Return the packages of a closed set that no other one in it brings along."""
        closures = {package: self.closed([package]) for package in swapped}
        return frozenset(
            package
            for package in swapped
            if not any(package in brought and other not in closures[package] for other, brought in closures.items())
        )

    def cause(self, swapped: Swapped) -> Cause:
        heads = self.heads(swapped)
        unresolved = [each for each, found in self.known.items() if each < swapped and found.problem]
        return Cause(
            self.ordered(heads),
            self.ordered(swapped - heads),
            len(heads) > 1 and all(self.closed([head]) == swapped for head in heads),
            tuple(sorted(unresolved, key=self.place)),
        )
