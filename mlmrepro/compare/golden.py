"""One golden file: expected values with tolerances and reasons, and other values for some versions.

{"schema": 2, "provenance": {...}, "expected": {
    "steps": {"lane": "exact", "value": 18},
    "eval_loss": {"lane": "approximate", "tolerance": {"quantity": "nats", "atol": 1e-4, ...}, "value": 4.05},
    "attention": {"lane": "exact", "variants": [
        {"when": ["transformers<4.48"], "value": "eager", "reason": "...", "link": "https://..."},
        {"when": ["transformers>=4.48"], "value": "sdpa", "reason": "...", "link": "https://..."}]}}}
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write
from mlmrepro.record import Lane, plain

__all__ = [
    "Entry",
    "Golden",
    "Variant",
    "holds",
    "is_golden",
    "lint",
    "read_golden",
    "version_of",
    "versions_around",
    "versions_of",
    "write_golden",
]

SCHEMA = 2
_PROVENANCE = ("packages", "python", "platform")  # what every golden's header must have


@dataclass(frozen=True)
class Variant:
    """A value that is expected if every requirement of `when` holds; ``()`` holds everywhere."""

    value: Any
    when: tuple[str, ...] = ()
    reason: str = ""
    link: str = ""


@dataclass(frozen=True)
class Entry:
    """The expectation for one name: a lane, the tolerance of its quantity, and one variant or several."""

    lane: Lane
    variants: tuple[Variant, ...]
    tolerance: Tolerance | None = None
    better: str = ""  # "lower" or "higher", if one direction is an improvement

    def __post_init__(self) -> None:
        if not self.lane.compared:
            raise ValueError(f"a value of the {self.lane.value} lane cannot be expected")
        if self.lane is not Lane.EXACT and self.tolerance is None:
            raise ValueError(f"the {self.lane.value} lane needs a tolerance")
        if not self.variants:
            raise ValueError("nothing is expected")
        if self.better not in ("", "lower", "higher"):
            raise ValueError(f"better is {self.better!r}, not lower or higher")
        if len(self.variants) > 1 and not all(v.when and v.reason and v.link for v in self.variants):
            raise ValueError("each of several variants needs `when`, a reason and a link")
        for variant in self.variants:
            for requirement in variant.when:
                _parsed(requirement)

    def matching(self, versions: Mapping[str, str | None]) -> list[Variant]:
        """Return the variants that hold for these versions: one, unless the golden is wrong."""
        return [variant for variant in self.variants if all(holds(text, versions) for text in variant.when)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without empty fields."""
        content: dict[str, Any] = {"lane": self.lane.value}
        if self.tolerance is not None:
            content["tolerance"] = self.tolerance.to_dict()
        if self.better:
            content["better"] = self.better
        if len(self.variants) == 1 and not self.variants[0].when:
            return content | {"value": plain(self.variants[0].value)}
        variants = [
            {"when": list(v.when), "value": plain(v.value), "reason": v.reason, "link": v.link} for v in self.variants
        ]
        return content | {"variants": variants}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Entry:
        """Undo `to_dict`; raises ValueError, KeyError or TypeError for anything else."""
        unknown = set(content) - {"lane", "tolerance", "better", "value", "variants"}
        if unknown or ("value" in content) == ("variants" in content):
            raise ValueError(f"unknown fields {sorted(unknown)}" if unknown else "either value or variants is needed")
        rows = content.get("variants", [{"value": content.get("value")}])
        variants = tuple(
            Variant(row["value"], tuple(row.get("when", ())), row.get("reason", ""), row.get("link", ""))
            for row in rows
        )
        tolerance = Tolerance(**content["tolerance"]) if "tolerance" in content else None
        return cls(Lane(content["lane"]), variants, tolerance, content.get("better", ""))


@dataclass
class Golden:
    """A golden file's content: where it comes from, and what it expects."""

    provenance: dict[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def versions(self) -> dict[str, str | None]:
        """The versions that it was made with."""
        return versions_of(self.provenance)


def versions_of(provenance: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the versions that a requirement can name: each package's, and ``python``."""
    return {**provenance.get("packages", {}), "python": provenance.get("python")}


def _parsed(text: str) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r} is not a version range such as transformers>=5.0") from error
    if not requirement.specifier:
        raise ValueError(f"{text!r} names no version; write it as transformers>=5.0")
    return requirement


def holds(text: str, versions: Mapping[str, str | None]) -> bool:
    """Return whether a requirement such as ``transformers>=5.0`` holds; never for an absent package.

    A release candidate counts as its release: 5.0.0rc1 has the changes of 5.0, and a gate should test it.
    """
    requirement = _parsed(text)
    wanted = requirement.name.lower().replace("_", "-")
    version = next((v for name, v in versions.items() if name.lower().replace("_", "-") == wanted), None)
    return version is not None and requirement.specifier.contains(version_of(version).base_version)


def version_of(text: str) -> Version:
    """Parse a version; anything unparsable, such as a branch name, sorts lowest."""
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def write_golden(path: Path, golden: Golden) -> None:
    """Write one golden, whole or not at all; raises UserError for a value that holds NaN or infinity."""
    for name, entry in golden.entries.items():
        _check_finite(path, name, entry)
    entries = {name: entry.to_dict() for name, entry in golden.entries.items()}
    content = {"schema": SCHEMA, "provenance": plain(golden.provenance), "expected": entries}
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def is_golden(path: Path) -> bool:
    """Return whether a file is a golden, even a damaged one, and not other JSON such as a checkpoint's baseline."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True
    return isinstance(content, dict) and "expected" in content


def read_golden(path: Path) -> Golden:
    """Read one golden; raises UserError, naming the file and the entry, if it is absent or damaged."""
    name = ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise UserError(
                f"the golden {path} has schema {content['schema']}, but this version reads schema {SCHEMA}",
                remedy="make it again with --golden-update",
            )
        golden = Golden(dict(content["provenance"]))
        for name, entry in content["expected"].items():
            golden.entries[name] = Entry.from_dict(entry)
            _check_finite(path, name, golden.entries[name])
    except OSError as error:
        raise UserError(
            f"the golden {path} cannot be read: {error.strerror}", remedy="check the path, or run the tests once"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        where = f" at {name!r}" if name else ""
        raise UserError(
            f"{path} is not a golden{where}: {type(error).__name__}: {error}",
            remedy="restore it, fix the entry, or make it again with --golden-update",
        ) from error
    return golden


def lint(path: Path) -> list[str]:
    """Return problems of a readable golden, one line each, which names the file and the entry."""
    golden = read_golden(path)
    problems = [f"{path}: its provenance lacks {key!r}" for key in _PROVENANCE if not golden.provenance.get(key)]
    if not golden.entries:
        problems.append(f"{path}: it expects nothing")
    for name, entry in golden.entries.items():
        count = len(entry.matching(golden.versions))
        if count != 1:
            problems.append(f"{path}: {name!r}: {count} variants hold for the versions that it was made with, not one")
        problems += [f"{path}: {name!r}: {problem}" for problem in _uneven(entry)]
        problems += [
            f"{path}: {name!r}: the link {v.link!r} is not an address"
            for v in entry.variants
            if v.link and not v.link.startswith(("https://", "http://"))
        ]
    return problems


def versions_around(requirements: Iterable[Requirement]) -> list[str]:
    """Return a version below all bounds, each bound, and one just above each: nothing changes in between."""
    bounds = sorted({s.version.removesuffix(".*") for each in requirements for s in each.specifier})
    return ["0", *bounds, *(f"{bound}.0.1" for bound in bounds)]


def _uneven(entry: Entry) -> Iterator[str]:
    """Check below, at and just above every bound that exactly one variant holds, and that each holds somewhere."""
    bounds: dict[str, list[Requirement]] = {}
    for requirement in (_parsed(text) for variant in entry.variants for text in variant.when):
        bounds.setdefault(requirement.name, []).append(requirement)
    points = [[(name, version) for version in versions_around(own)] for name, own in bounds.items()]
    held: set[tuple[str, ...]] = set()
    for point in itertools.product(*points):
        matching = entry.matching(dict(point))
        held |= {variant.when for variant in matching}
        if len(matching) != 1:
            where = " and ".join(f"{name} {version}" for name, version in point)
            yield f"{len(matching)} variants hold for {where}, not one"
    for variant in entry.variants:
        if variant.when and variant.when not in held:
            yield f"no version satisfies {' and '.join(variant.when)}"


def _check_finite(path: Path, name: str, entry: Entry) -> None:
    """NaN and infinity match nothing, so a golden that holds one could never pass."""
    if not all(_is_finite(variant.value) for variant in entry.variants):
        raise UserError(
            f"the value of {name!r} is not finite, in the golden {path}",
            remedy="fix what produces NaN or infinity: a golden cannot hold it",
        )


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
