"""Real bugs of the libraries that changed masked-language-modelling results, and how each is shown to be caught."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Bug", "upstream_bugs"]


@dataclass(frozen=True)
class Bug:
    """One bug.

    `evidence` is "record" where an affected version was installed and its record shows it, else "injection": the
    catalogue's fault ``upstream_<id>`` does what the buggy version did, or "outside": it lies in what neither the
    guide nor a law uses, and is listed so that nobody thinks it covered.
    """

    id: str
    package: str
    affected: str  # versions
    fixed: str  # "" while it is open
    link: str
    symptom: str
    stage: str
    evidence: str
    caught_by: str = ""  # of a record: the golden's value, STAGE.NAME
    injection: str = ""  # what the fault does
    why: str = ""  # nothing here catches it, where its evidence is "outside"
    measured: str = ""  # figures from an affected version, where one was installed


@cache
def upstream_bugs() -> tuple[Bug, ...]:
    """Return what upstream.toml lists."""
    content = tomllib.loads((Path(__file__).parent / "upstream.toml").read_text(encoding="utf-8"))
    return tuple(Bug(**row) for row in content["bug"])
