"""The retraining gate in pytest: each check of a checkpoint is one test, next to the project's own.

Imported only if its options are given; the scoring code is imported when the first of its tests runs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from mlmrepro.pytest_plugin.items import AddedItems, fail, in_words

if TYPE_CHECKING:
    from mlmrepro.gate.result import CheckResult

__all__ = ["Check", "Gate", "GateSession", "checks_of"]

_COLOUR = {"better": "green", "same": "green", "REGRESSION": "red", "inconclusive": "yellow"}


@dataclass(frozen=True)
class Check:
    """What one test checks; paths as they were given."""

    name: str
    checkpoint: str
    baseline: str
    page: str | None = None


def checks_of(checkpoints: Sequence[str], baselines: Sequence[str], pages: Sequence[str] = ()) -> list[Check]:
    """Return the checks: the n-th checkpoint against the n-th baseline; a single one on either side serves all.

    A check has the checkpoint's name, with the baseline in brackets if there are several. Raises pytest.UsageError if
    one side is absent or the numbers do not match.
    """
    if not checkpoints:
        raise pytest.UsageError("--mlm-baseline and --mlm-html need --mlm-checkpoint DIR, the checkpoint to check")
    if not baselines:
        raise pytest.UsageError("--mlm-checkpoint needs --mlm-baseline DIR, the folder that mlmrepro baseline wrote")
    count = max(len(checkpoints), len(baselines))
    for option, given in (("--mlm-checkpoint", checkpoints), ("--mlm-baseline", baselines)):
        if len(given) not in (1, count):
            raise pytest.UsageError(
                f"{option} is given {len(given)} times, for {count} checks: give it once, or once for each check"
            )
    if pages and len(pages) != count:
        raise pytest.UsageError(
            f"--mlm-html is given {len(pages)} times, for {count} checks: give it once for each check"
        )
    own: Sequence[str | None] = pages or [None] * count
    pairs = zip(_each(checkpoints, count), _each(baselines, count), own, strict=True)
    distinct = {(checkpoint, baseline): page for checkpoint, baseline, page in pairs}
    times = Counter(checkpoint for checkpoint, _ in distinct)
    return [
        Check(checkpoint if times[checkpoint] == 1 else f"{checkpoint}[{baseline}]", checkpoint, baseline, page)
        for (checkpoint, baseline), page in distinct.items()
    ]


def _each(given: Sequence[str], count: int) -> Sequence[str]:
    return given if len(given) == count else [*given] * count


class GateSession(AddedItems):
    """Adds the checks to the collected tests, and lists their answers at the end."""

    def __init__(self, config: pytest.Config) -> None:
        names = ("--mlm-checkpoint", "--mlm-baseline", "--mlm-html")
        self.checks = checks_of(*(config.getoption(name) for name in names))
        self.answers: dict[str, dict[str, Any]] = {}

    def collector(self, session: pytest.Session) -> Gate:
        """Return the collector of the checks."""
        return Gate.from_parent(session, name="mlm-gate", nodeid="mlm-gate", checks=self.checks)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note each answer; under pytest-xdist it comes with a worker's report."""
        properties = dict(report.user_properties)
        if "mlm_answer" in properties:
            self.answers[report.nodeid] = properties

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line for each answer, and one for files of the checkpoint that were not used."""
        if self.answers:
            terminalreporter.section("retraining gate")
        for node, properties in self.answers.items():
            answer = properties["mlm_answer"]
            terminalreporter.write(answer, bold=True, **{_COLOUR[answer]: True})
            terminalreporter.line(f"  {node}: {properties['mlm_reason']}")
            if unused := properties.get("mlm_unused"):
                terminalreporter.line(f"  not used: {unused}")


class Gate(pytest.Collector):
    """Collects the checks; it has a name but no file."""

    def __init__(self, *, checks: Sequence[Check], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.checks = checks

    def collect(self) -> Iterator[pytest.Item]:
        """Iterate over the checks, one test each."""
        for check in self.checks:
            yield CheckItem.from_parent(self, name=check.name, check=check)


class CheckItem(pytest.Item):
    """Scores in its setup, so that bad input is an error of the test, and judges in its call."""

    def __init__(self, *, check: Check, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check
        self.result: CheckResult | None = None

    def setup(self) -> None:
        """Check the checkpoint, and write the page if requested."""
        from mlmrepro.errors import UserError
        from mlmrepro.report.check_words import said, unused_line

        try:
            self.result = self._checked()
        except UserError as error:
            fail(str(error))
        properties = {
            "answer": self.result.answer.value,
            "reason": said(self.result) if self.result.rounded else self.result.reason,
            "measure": self.result.measure,
            "before": self.result.before,
            "after": self.result.after,
            "baseline": self.check.baseline,
        }
        if self.result.unused:
            properties["unused"] = "; ".join(map(unused_line, self.result.unused))
        self.user_properties = [(f"mlm_{name}", value) for name, value in properties.items()]

    def runtest(self) -> None:
        """Fail with the whole answer unless it is better or the same."""
        assert self.result is not None
        if self.result.exit_code:
            from mlmrepro.report.check import check_document
            from mlmrepro.report.terminal import print_document

            fail(in_words(print_document, check_document(self.result)))

    def reportinfo(self) -> tuple[os.PathLike[str], None, str]:
        """Return the headline of a failure: what was checked, without a line number."""
        return self.path, None, f"check of {self.name}"

    def _checked(self) -> CheckResult:
        from mlmrepro.errors import UserError
        from mlmrepro.report.check import check_document
        from mlmrepro.report.page import write_page
        from mlmrepro.retraining.check import check_checkpoint
        from mlmrepro.retraining.settings import Settings

        here = self.config.invocation_params.dir
        folder = here / self.check.checkpoint
        # A name that is not a folder is a hub name.
        place = str(folder) if folder.is_dir() else self.check.checkpoint
        settings = Settings.find(self.config.rootpath)
        result = check_checkpoint(place, here / self.check.baseline, settings, name=self.check.checkpoint)
        if self.check.page is not None:
            try:
                write_page(check_document(result), here / self.check.page)
            except OSError as error:
                problem = f"the page {self.check.page} cannot be written: {error.strerror}"
                raise UserError(problem, remedy="give --mlm-html another file") from error
        return result
