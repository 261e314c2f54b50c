"""The user's own tests in a record: how their values are named, what they are compared with, what a test came to.

A value has the name ``GOLDEN::ENTRY``: the golden's file below the project's goldens, without .json, and the entry.
What a test came to is ``GOLDEN::(outcome)``, held to the bound "passed".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlmrepro.compare.golden import Entry, read_golden
from mlmrepro.record import TESTS, RunRecord, observer

__all__ = [
    "NOTHING",
    "OUTCOME",
    "PASSED",
    "SKIPPED",
    "XFAILED",
    "expected_tests",
    "golden_path",
    "is_declared",
    "is_unmeasured",
]

OUTCOME, PASSED, SKIPPED, XFAILED = "(outcome)", "passed", "skipped: ", "xfailed: "
NOTHING = "no test ran"
_NO_PACKAGE = f"{SKIPPED}could not import"  # of pytest.importorskip


def is_declared(outcome: str) -> bool:
    """Return whether a test says by itself why it did not run, or fails."""
    return outcome.startswith((SKIPPED, XFAILED)) and not is_unmeasured(outcome)


def is_unmeasured(outcome: str) -> bool:
    """Return whether nothing ran, or a test did not because the environment lacks a package."""
    return outcome.startswith((NOTHING, _NO_PACKAGE))


def golden_path(record: RunRecord, key: str) -> Path:
    """Return the file of a golden of the tests, in the folder that the record names from the working directory."""
    return Path(record.config.get("tests", {}).get("goldens", ""), f"{key}.json")


def expected_tests(records: Iterable[RunRecord]) -> dict[str, Entry]:
    """Return the goldens of the tests that records were asked for, by name; raises UserError for a damaged one."""
    entries: dict[str, Entry] = {}
    for record in records:
        asked = (each.removeprefix(f"{TESTS}.") for each in record.asked or () if each.startswith(f"{TESTS}."))
        for key in dict.fromkeys(map(observer, asked)):
            path = golden_path(record, key)
            if path.is_file():
                entries |= {f"{key}::{name}": entry for name, entry in read_golden(path).entries.items()}
    return entries
