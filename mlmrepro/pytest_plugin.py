"""The pytest plugin: the `golden` fixture, what a full run says of goldens that no test used, and the retraining gate.

Loading it imports neither torch nor numpy; the goldens' own code is imported when a test first asks for the fixture,
the gate's when its options are given.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mlmrepro.compare.store import GoldenFile, GoldenStore

# The names under which pytest may find this module: the entry point's, and that of `-p` and `pytest_plugins`.
_NAMES = ("mlmrepro", __name__)
# Options that leave tests out, whether or not they do so in this run; and what `-o` may not say in a full one.
_NARROWING = ("keyword", "markexpr", "lf", "stepwise", "deselect", "ignore", "ignore_glob", "collectonly")
_COLLECTING = ("testpaths", "norecursedirs", "python_files", "python_classes", "python_functions")
_GATE = ("--mlm-checkpoint", "--mlm-baseline", "--mlm-html")
_SHOWN = 20  # lines of one section of the summary

_SESSION = pytest.StashKey["GoldenSession"]()
_GOLDEN = pytest.StashKey["GoldenFile"]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the options and the ini entry."""
    # pluggy refuses one module under two names; the name that came first is enough.
    for name in _NAMES:
        if name != pluginmanager.get_name(sys.modules[__name__]):
            pluginmanager.set_blocked(name)
    group = parser.getgroup("mlmrepro", "goldens and the retraining gate")
    group.addoption(
        "--golden-update",
        nargs="?",
        const="all",
        default="",
        choices=("all", "new"),
        help="write what is obtained: 'all' (the default) replaces what is expected, 'new' only adds what is missing; "
        "before a path write --golden-update=all",
    )
    group.addoption("--golden-dir", metavar="DIR", help="the directory of the goldens (default: golden_dir of the ini)")
    for name, metavar, text in (
        ("checkpoint", "DIR", "check this masked language model, a test beside the others; may be repeated"),
        ("baseline", "DIR", "what to check it against: a folder that `mlmrepro baseline` wrote, one for all or each"),
        ("html", "FILE", "write the page of the check; for several checks give one for each"),
    ):
        group.addoption(f"--mlm-{name}", action="append", default=[], metavar=metavar, help=text)
    parser.addini("golden_dir", "the directory of the goldens, below rootdir", default="golden")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the book-keeping of one session."""
    config.stash[_SESSION] = GoldenSession(config)
    config.pluginmanager.register(config.stash[_SESSION], "mlmrepro-goldens")
    if any(config.getoption(name) for name in _GATE):
        from mlmrepro.gate_plugin import GateSession

        config.pluginmanager.register(GateSession(config), "mlmrepro-gate")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> GoldenFile:
    """Compare values with the golden of this test, or with `golden.file(name)`, which tests may share."""
    from mlmrepro.compare.store import GoldenFile, file_key

    node, session = request.node, request.config.stash[_SESSION]
    session.active = True
    module = node.nodeid.partition("::")[0].removesuffix(".py")
    names = [part.name for part in node.listchain() if isinstance(part, (pytest.Class, pytest.Item))]
    key = file_key(*module.split("/"), ".".join(names))
    node.stash[_GOLDEN] = GoldenFile(session.store, key, node.nodeid)
    return node.stash[_GOLDEN]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that passed without checking all that its own golden expects."""
    result = yield
    if _GOLDEN in item.stash and (message := item.stash[_GOLDEN].unchecked()):
        pytest.fail(message, pytrace=False)
    return result


class GoldenSession:
    """What the tests of a session used of the goldens; under pytest-xdist the controller gathers it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.active = False  # a test asked for the fixture
        self.partial = False  # a test was left out, or did not pass
        self.passed: set[str] = set()
        self.used: set[tuple[str, str]] = set()
        self.declared: set[str] = set()
        self.unused: list[str] = []

    @cached_property
    def store(self) -> GoldenStore:
        """The goldens of this process."""
        from mlmrepro.compare.store import GoldenStore

        given = self.config.getoption("--golden-dir")
        base = self.config.invocation_params.dir if given else self.config.rootpath
        directory = os.path.abspath(base / (given or self.config.getini("golden_dir")))
        return GoldenStore(Path(directory), self.config.getoption("--golden-update"))

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Note that tests were left out."""
        self.partial = self.partial or bool(items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that was skipped or could not be read."""
        self.partial = self.partial or not report.passed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note each test that passed, and any that did not."""
        if not report.passed:
            self.partial = True
        elif report.when == "call":
            self.passed.add(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Gather what a worker of pytest-xdist used; one that crashed cannot say."""
        state = getattr(node, "workeroutput", {}).get(_NAMES[0])
        if error or state is None:
            self.partial = True
        else:
            self._merge(**state)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send what was used to the controller; there, look for what no test of a full run used."""
        if self.active:
            self._merge(sorted(self.store.used), sorted(map(str, self.store.declared)))
        if hasattr(self.config, "workeroutput"):
            state = {"used": sorted(self.used), "declared": sorted(self.declared)}
            self.config.workeroutput[_NAMES[0]] = state | {"active": self.active, "partial": self.partial}
        elif self._is_full(session):
            unused = self.store.unused(self.used)
            self.unused = [f"{self.store.path(key)}" + (f": {name!r}" if name else "") for key, name in unused]
            if self.store.update == "all":
                self.store.remove(unused)
            elif unused:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List the declared changes that hold here, and the goldens that no test used."""
        count = len(self.declared)
        if count:
            terminalreporter.section("declared changes")
            terminalreporter.line(f"{count} declared change{'s hold' if count > 1 else ' holds'} here:")
            _list(terminalreporter, sorted(self.declared))
        if self.unused:
            deleted = self.store.update == "all"
            terminalreporter.section("unused goldens", red=not deleted)
            remedy = "deleted" if deleted else "pytest --golden-update deletes"
            terminalreporter.line(f"{len(self.unused)} that no test used; {remedy}:")
            _list(terminalreporter, self.unused)

    def _merge(
        self, used: Sequence[Sequence[str]], declared: Sequence[str], active: bool = True, partial: bool = False
    ) -> None:
        self.used |= {(key, name) for key, name in used}
        self.declared |= set(declared)
        self.active = self.active or active
        self.partial = self.partial or partial

    def _is_full(self, session: pytest.Session) -> bool:
        """Tell whether every test there is was run and passed: only then is unused what no test used."""
        option = self.config.option
        narrowed = any(getattr(option, name, None) for name in _NARROWING)
        overridden = {text.partition("=")[0].strip() for text in option.override_ini or ()} & set(_COLLECTING)
        return (
            self.active
            and session.exitstatus == pytest.ExitCode.OK
            and not (self.partial or narrowed or overridden)
            and len(self.passed) == session.testscollected
            and self._covers_testpaths()
        )

    def _covers_testpaths(self) -> bool:
        """Tell whether the arguments name all of testpaths, or of rootdir where there are none."""
        root, here = self.config.rootpath, self.config.invocation_params.dir
        found = [
            path for text in self.config.getini("testpaths") for path in glob.glob(str(root / text), recursive=True)
        ]
        given = [Path(here, argument).resolve() for argument in self.config.args]
        wanted = [Path(path).resolve() for path in found] or [root.resolve()]
        return all(any(path.is_relative_to(argument) for argument in given) for path in wanted)


def _list(terminalreporter: pytest.TerminalReporter, lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN]:
        terminalreporter.line(f"  {line}")
    if len(lines) > _SHOWN:
        terminalreporter.line(f"  and {len(lines) - _SHOWN} more")
