"""What a release is known to do differently: variants of goldens, and values outside their bounds.

A golden belongs to one subject and holds its own variants. A bound holds for every subject, so its known breaches are
declared once, in known.toml. Both name versions, the value, a reason and a link.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from mlmrepro.compare.golden import Entry, Variant, holds, versions_around
from mlmrepro.compare.values import differences
from mlmrepro.errors import UserError

__all__ = ["Known", "declare", "known_breach", "known_breaches"]


@dataclass(frozen=True)
class Known:
    """A value outside its bound that some versions are known to give; `name` is ``stage.observation.value``."""

    name: str
    value: Any
    when: tuple[str, ...]
    reason: str
    link: str
    atol: float = 0.0
    models: tuple[str, ...] = ()  # model types; none means all

    def accounts_for(self, name: str, found: Any, model_type: str, versions: Mapping[str, str | None]) -> bool:
        """Return whether this value is the one declared for these versions and this type of model."""
        if name != self.name or not self.applies(model_type, versions):
            return False
        if isinstance(self.value, (int, float)) and isinstance(found, (int, float)):
            return abs(found - self.value) <= self.atol
        return bool(found == self.value)

    def applies(self, model_type: str, versions: Mapping[str, str | None]) -> bool:
        """Return whether it is declared for these versions and this type of model."""
        return (not self.models or model_type in self.models) and all(holds(text, versions) for text in self.when)

    @property
    def variant(self) -> Variant:
        """Return the declaration in the form of a golden's."""
        return Variant(self.value, self.when, self.reason, self.link)


def known_breach(name: str, found: Any, model_type: str, versions: Mapping[str, str | None]) -> Known | None:
    """Return the declaration that accounts for a value outside its bound, None if there is none."""
    return next((k for k in known_breaches() if k.accounts_for(name, found, model_type, versions)), None)


@cache
def known_breaches() -> tuple[Known, ...]:
    """Return the declared breaches, one for each value."""
    content = tomllib.loads((Path(__file__).parent / "known.toml").read_text(encoding="utf-8"))
    groups = content["groups"]
    found = []
    for row in content["known"]:
        models = tuple(model for name in row.get("models", ()) for model in groups.get(name, (name,)))
        common = {"when": tuple(row["when"]), "reason": row["reason"], "link": row["link"], "models": models}
        found += [Known(name, value, atol=row.get("atol", 0.0), **common) for name, value in row["values"].items()]
    return tuple(found)


_OPPOSITE = {">=": "<", "<": ">=", ">": "<=", "<=": ">"}


def declare(
    entry: Entry, requirement: str, value: Any, versions: Mapping[str, str | None], *, reason: str, link: str
) -> Entry:
    """Return `entry` with `value` for versions that fulfil `requirement`, and the previous value for all others.

    `versions` are those that `value` was obtained with. Raises UserError if the requirement is not a single bound or
    does not hold for those versions, or if there is nothing to declare.
    """
    opposite = _complement(requirement)
    if not holds(requirement, versions):
        raise UserError(
            f"{requirement!r} does not hold for the versions of the record",
            remedy="give the range in which the record's value is expected",
        )
    if not (reason.strip() and link.startswith(("https://", "http://"))):
        raise UserError("an expected change needs a reason and a link", remedy="say why, and where it is documented")
    matching = entry.matching(versions)
    if len(matching) != 1:
        raise UserError(
            f"{len(matching)} variants hold for the versions of the record",
            remedy="fix the golden: exactly one must hold",
        )
    before = matching[0]
    if not _leaves_some(before, opposite):
        raise UserError(
            f"{requirement!r} covers all of {' and '.join(before.when)}, so no version would keep the old value",
            remedy="give a bound inside that range; for a wider change, make one declaration for each variant",
        )
    if not differences(entry.lane, before.value, value, entry.tolerance):
        raise UserError("the value is already expected", remedy="there is nothing to declare")
    split = [
        replace(before, when=(*before.when, opposite), reason=before.reason or reason, link=before.link or link),
        Variant(value, (*before.when, requirement), reason, link),
    ]
    variants = [part for variant in entry.variants for part in (split if variant is before else [variant])]
    return replace(entry, variants=tuple(replace(v, when=_tightest(v.when)) for v in variants))


def _leaves_some(variant: Variant, requirement: str) -> bool:
    """Return whether some version satisfies both; otherwise no version would keep the variant."""
    texts = (*variant.when, requirement)
    name = Requirement(requirement).name
    own = [text for text in texts if Requirement(text).name == name]
    points = versions_around(map(Requirement, own))
    return any(all(holds(text, {name: point}) for text in own) for point in points)


def _complement(text: str) -> str:
    try:
        requirement = Requirement(text)
        (bound,) = requirement.specifier
        return f"{requirement.name}{_OPPOSITE[bound.operator]}{bound.version}"
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{text!r} is not a single bound of one package", remedy="write it as transformers>=5.0 or datasets<4"
        ) from error


def _tightest(when: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out bounds that another one of the same package and direction implies; keep everything else.

    Of two bounds at the same version the later one wins: it was added to narrow the range, as >5 after >=5.
    """
    kept: dict[tuple[str, str], tuple[Version, str]] = {}
    for text in when:
        requirement = Requirement(text)
        first, *more = requirement.specifier
        is_bound = not more and first.operator in _OPPOSITE
        direction, version = (first.operator[0], Version(first.version)) if is_bound else (text, Version("0"))
        key = (requirement.name, direction)
        if key not in kept or version == kept[key][0] or (version > kept[key][0]) == (direction == ">"):
            kept[key] = (version, text)
    return tuple(text for _, text in kept.values())
