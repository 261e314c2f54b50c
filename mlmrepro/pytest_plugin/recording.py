"""``pytest --mlm-record FILE``: write down what the tests hold with the `golden` fixture, and what each test came to.

Imported only with this option. A value other than its golden does not end its test, which goes on to the next value;
whoever reads the record judges it. Each test's values go to the controller of pytest-xdist with its report.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlmrepro import provenance
from mlmrepro.compare.own_tests import NOTHING, OUTCOME, PASSED, SKIPPED, XFAILED
from mlmrepro.compare.store import GoldenMismatch, Obtained
from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.compare.values import differences
from mlmrepro.errors import UserError, first_line
from mlmrepro.pytest_plugin.store import SessionStore
from mlmrepro.record import TESTS, Bound, Lane, RunRecord

if TYPE_CHECKING:
    from mlmrepro.pytest_plugin import GoldenSession

__all__ = ["RecordingStore", "TestRecording"]

_PROPERTY = "mlmrepro-recorded"  # of a test's report
_OBSERVE = "mlm-observe::"
Row = dict[str, Any]  # a value: key, name, value, lane, quantity, and the fields of its tolerance


class ValuesDiffer(GoldenMismatch):
    """A test ended well but for values other than their goldens."""


class RecordingStore(SessionStore):
    """A store that notes what a test obtains and lets it go on; it writes nothing."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "")
        self.rows: list[Row] = []
        self.mismatches: list[str] = []

    def problems(self, key: str, obtained: Iterable[Obtained]) -> list[str]:
        """Note the values and what is wrong with them; return nothing."""
        for one in obtained:
            self.mismatches += super().problems(key, [one])
            tolerance = None if one.tolerance is None else one.tolerance.to_dict()
            quantity = one.quantity or (one.tolerance.quantity if one.tolerance else "")
            row = {"key": key.removesuffix(".json"), "name": one.name, "value": one.value, "lane": one.lane.value}
            self.rows.append(row | {"quantity": quantity, "tolerance": tolerance})
        return []

    def leftover(self, *_: Any) -> list[str]:
        """Return nothing: whoever judges the record sees which entries were not obtained."""
        return []

    def write_new(self) -> None:
        """Write nothing."""


class TestRecording:
    """Gathers the values and outcomes of a session's tests, and writes them as a record."""

    __test__ = False  # the name is not that of a test

    def __init__(self, path: Path, session: GoldenSession) -> None:
        if session.config.getoption("--golden-update"):
            raise pytest.UsageError("--mlm-record writes no golden: leave out --golden-update")
        try:
            _ = session.root
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        self.path = path
        self.session = session
        self.outcomes: dict[str, tuple[str, str]] = {}  # by the golden of the test: its node, and what it came to
        self.rows: dict[str, list[Row]] = {}
        self.ran = 0

    @property
    def store(self) -> RecordingStore:
        """The goldens of this process."""
        assert isinstance(self.session.store, RecordingStore)
        return self.session.store

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Forget the values of the test before."""
        self.store.rows, self.store.mismatches = [], []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Fail a test at its end if a value is not its golden's, so that an xfail is one here too."""
        result = yield
        if self.store.mismatches:
            raise ValuesDiffer(self.store.mismatches, item.nodeid)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send the values with the report of each phase."""
        report = yield
        if not item.nodeid.startswith(_OBSERVE):
            only = call.excinfo is not None and call.excinfo.errisinstance(ValuesDiffer)
            sent = {"key": self.session.key_of(item), "rows": self.store.rows, "only_values": only}
            report.user_properties.append((_PROPERTY, json.dumps(sent)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what a test came to; a rerun takes the place of the run before."""
        sent = json.loads(str(dict(report.user_properties).get(_PROPERTY, "null")))
        if sent is None:
            return
        key, outcome = sent["key"], _outcome(report, sent["only_values"])
        self.ran += report.when == "call" and not outcome.startswith(SKIPPED)
        if report.when == "call" or outcome != PASSED:
            self.outcomes[key] = report.nodeid, outcome
            self.rows[key] = sent["rows"]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that cannot be imported, or is skipped."""
        if not report.passed and report.nodeid:
            self.outcomes[report.nodeid.removesuffix(".py")] = report.nodeid, _outcome(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the record."""
        if not hasattr(session.config, "workeroutput"):
            self.record().write(self.path)

    def record(self) -> RunRecord:
        """Return the record: a test that passed is asked for all of its golden, another one for what it obtained."""
        folder = os.path.relpath(self.store.directory)
        made = RunRecord(provenance.collect(), {"tests": {"goldens": folder}}, asked={})
        assert made.asked is not None
        if not self.ran:
            self.outcomes["pytest"] = "pytest", NOTHING
        seen: dict[str, Row] = {}
        for key, (node, outcome) in self.outcomes.items():
            if outcome == PASSED:
                made.asked[f"{TESTS}.{key}::"] = ""
            for row in self.rows.get(key, ()) if not outcome.startswith((SKIPPED, XFAILED)) else ():
                name = f"{row['key']}::{row['name']}"
                if (before := seen.setdefault(name, row)) is row:
                    words = row["quantity"], None, node, row["tolerance"]
                    made.asked[f"{TESTS}.{name}"] = ""
                    made.observe(TESTS, name, row["value"], Lane(row["lane"]), *words)
                elif _differ(before, row):
                    outcome = f"obtains {row['value']!r:.80} for {name}, another test {before['value']!r:.80}"
            made.observe(TESTS, f"{key}::{OUTCOME}", outcome, Lane.BOUND, "", Bound(equals=PASSED), node)
        return made


def _differ(one: Row, other: Row) -> bool:
    tolerance = Tolerance(**one["tolerance"]) if one["tolerance"] else None
    exact = tolerance is None or one["lane"] != other["lane"]
    return bool(differences(Lane.EXACT if exact else Lane(one["lane"]), one["value"], other["value"], tolerance))


def _outcome(report: pytest.TestReport | pytest.CollectReport, only_values: bool = False) -> str:
    """Return "passed", why a test is skipped or fails as expected, or the first line of its failure."""
    when = getattr(report, "when", "collect")
    expected = getattr(report, "wasxfail", None)
    if report.passed or str(report.outcome) == "rerun" or (only_values and report.failed):
        return PASSED
    if report.skipped and expected is not None:
        return f"{XFAILED}{expected.removeprefix('reason: ') or 'no reason'}"
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        return f"{SKIPPED}{first_line(Exception(str(reason).removeprefix('Skipped: '))) or 'no reason'}"
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = report.longreprtext.strip().splitlines()
    raised = [line[1:].strip() for line in lines if line.startswith("E  ")]  # of a module that cannot be imported
    text = crash.message if crash else (raised[-1:] or lines[:1] or ["no message"])[0]
    where = {"setup": "error at setup: ", "teardown": "error at teardown: ", "collect": "cannot be collected: "}
    return where.get(when, "") + first_line(Exception(text))
