"""What a lock file pins: exact versions by package, and what of the file was not used and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName, default_environment
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from mlmrepro.errors import UserError

__all__ = ["ELSEWHERE", "Lock", "Pinned", "Unused"]

ELSEWHERE = "not for this Python and platform"
_OF_LOCKS = re.compile(r"\b(extras|dependency_groups)\b")
_SHOWN = 6  # names in one line of notes


@dataclass(frozen=True)
class Unused:
    """Something that a lock file holds and that was not used."""

    where: str  # the file and the line or field
    name: str  # the package or the option, never an address
    reason: str


@dataclass(frozen=True)
class Lock:
    """The exact versions of a lock file, by canonical name, and what was not used of it."""

    source: str
    versions: Mapping[str, Version]
    unused: tuple[Unused, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Return what was not used, one line for each reason."""
        grouped: dict[str, list[str]] = {}
        for each in self.unused:
            grouped.setdefault(each.reason, []).append(each.name)
        return [f"{self.source}: {_listed(names)} not used: {reason}" for reason, names in grouped.items()]


@dataclass
class Pinned:
    """Collects the pins of a file and of the files that it includes, for one Python and platform."""

    source: str
    environment: Mapping[str, str] | None = None  # values of markers; None: the running Python's
    versions: dict[str, Version] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    unused: list[Unused] = field(default_factory=list)

    def add(self, name: str, version: str, where: str) -> None:
        """Pin a package. Raises UserError if it is pinned to another version, or if this is not a version."""
        name = canonicalize_name(name)
        try:
            parsed = Version(version)
        except InvalidVersion:
            raise UserError(f"{where}: {version!r} is not a version of {name}", remedy="correct the version") from None
        if name == "mlmrepro":
            self.skip(where, name, "mlmrepro always runs from its current place")
        elif self.versions.setdefault(name, parsed) != parsed:
            raise UserError(
                f"{where}: {name} is pinned to {parsed}, but {self.places[name]} pins it to {self.versions[name]}",
                remedy="keep one of the two pins",
            )
        self.places.setdefault(name, where)

    def skip(self, where: str, name: str, reason: str) -> None:
        """Note what was not used."""
        self.unused.append(Unused(where, name, reason))

    def holds(self, marker: str, where: str, **values: Any) -> bool:
        """Return whether an environment marker is true; "" always is. Raises UserError for a malformed one."""
        if not marker:
            return True
        # Variables that only lock files have, known to packaging 25 and later.
        context: dict[str, Any] = {"context": "lock_file"} if _OF_LOCKS.search(marker) else {}
        try:
            return Marker(marker).evaluate({**(self.environment or {}), **values}, **context)
        except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName, TypeError):
            raise UserError(
                f"{where}: the marker {marker!r} cannot be evaluated", remedy="correct it, or lock again"
            ) from None

    def fits_python(self, specifier: str, where: str) -> bool:
        """Return whether this Python is in a range such as ``>=3.11``; ``||`` separates alternatives."""
        python = str({**default_environment(), **(self.environment or {})}["python_full_version"])
        try:
            ranges = [SpecifierSet("" if part.strip() == "*" else part) for part in specifier.split("||")]
        except InvalidSpecifier:
            raise UserError(
                f"{where}: {specifier!r} is not a range of Python versions", remedy="correct it, or lock again"
            ) from None
        return any(each.contains(python, prereleases=True) for each in ranges)

    def finish(self) -> Lock:
        """Return the lock. A range does not count as unused if another line pins the package."""
        kept = [each for each in self.unused if canonicalize_name(each.name) not in self.versions]
        return Lock(self.source, dict(sorted(self.versions.items())), tuple(kept))


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
