"""The pytest plugin: the `golden` fixture, unused goldens, the retraining gate, and observations as test items.

Goldens are in `golden_dir`, below the project's directory: that of the pytest configuration, else the nearest one with
a pyproject.toml, setup.cfg, setup.py, tox.ini or repository. A full run fails if it leaves a golden
unused; `--golden-update` deletes that golden, unless a test file was not collected or a collected test did not run.
Goldens of tests that run only elsewhere are declared, each with a reason:

    golden_elsewhere =
        tests/test_windows/*: only on Windows

Loading it imports neither torch nor numpy; the goldens' own code is imported when a test first asks for the fixture,
the gate's and the observations' when their options are given.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mlmrepro.compare.store import GoldenFile
    from mlmrepro.pytest_plugin.store import SessionStore

# The names under which pytest may find this module: the entry point's, and that of `-p` and `pytest_plugins`.
_NAMES = ("mlmrepro", __name__)
# Options that can leave tests out, and ini options that `-o` must not override in a full run.
_NARROWING = ("keyword", "markexpr", "lf", "stepwise", "deselect", "ignore", "ignore_glob", "collectonly", "mlm_record")
_COLLECTING = ("testpaths", "norecursedirs", "python_files", "python_classes", "python_functions")
_GATE = ("--mlm-checkpoint", "--mlm-baseline", "--mlm-html")
_OBSERVE = "mlm-observe::"  # how the nodes of --mlm-observe begin
_SHOWN = 20  # lines of one section of the summary

_SESSION = pytest.StashKey["GoldenSession"]()
_GOLDEN = pytest.StashKey["GoldenFile"]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the options and the ini entry."""
    # pluggy refuses one module under two names; the name that came first is enough.
    for name in _NAMES:
        if name != pluginmanager.get_name(sys.modules[__name__]):
            pluginmanager.set_blocked(name)
    group = parser.getgroup("mlmrepro", "goldens, observations and the retraining gate")
    group.addoption(
        "--golden-update",
        nargs="?",
        const="all",
        default="",
        choices=("all", "new"),
        help="write obtained values to the goldens: 'all' (the default) replaces expected values, 'new' only adds "
        "missing ones; write --golden-update=all if a path follows",
    )
    group.addoption(
        "--golden-dir", metavar="DIR", help="the directory of the goldens (default: the ini option golden_dir)"
    )
    for name, metavar, text in (
        ("checkpoint", "DIR", "check this masked language model, as one more test; may be repeated"),
        (
            "baseline",
            "DIR",
            "what to check it against: a folder that `mlmrepro baseline` wrote, one for all or one for each",
        ),
        ("html", "FILE", "write an HTML page of the check; for several checks give one for each"),
    ):
        group.addoption(f"--mlm-{name}", action="append", default=[], metavar=metavar, help=text)
    group.addoption(
        "--mlm-observe",
        action="append",
        nargs="?",
        const="",
        default=[],
        metavar="DIR",
        help="add a test item for each observation of this checkpoint, or of the goldens of one that `mlmrepro adopt` "
        "wrote ('embedded' is the shipped one); may be repeated; without DIR, of the goldens in [tool.mlmrepro] of "
        "pyproject.toml",
    )
    group.addoption("--mlm-text", metavar="FILE", help="text of the observed checkpoints' language (default: embedded)")
    group.addoption(
        "--mlm-record",
        metavar="FILE",
        help="write a record of what the tests hold with the golden fixture, for `mlmrepro compare` and `report`",
    )
    parser.addini("golden_dir", "the directory of the goldens, below the project (default: golden)", default="")
    parser.addini(
        "golden_elsewhere", "goldens of tests that run only elsewhere, as `path: reason`", "linelist", default=[]
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start the bookkeeping of one session."""
    config.stash[_SESSION] = GoldenSession(config)
    config.pluginmanager.register(config.stash[_SESSION], "mlmrepro-goldens")
    if path := config.getoption("--mlm-record"):
        from mlmrepro.pytest_plugin.recording import TestRecording

        recording = TestRecording(config.invocation_params.dir / path, config.stash[_SESSION])
        config.pluginmanager.register(recording, "mlmrepro-recording")
    if any(config.getoption(name) for name in _GATE):
        from mlmrepro.pytest_plugin.gate import GateSession

        config.pluginmanager.register(GateSession(config), "mlmrepro-gate")
    if config.getoption("--mlm-observe") or config.getoption("--mlm-text"):
        from mlmrepro.pytest_plugin.observations import ObservationSession

        config.pluginmanager.register(ObservationSession(config), "mlmrepro-observations")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> GoldenFile:
    """Compare values with the golden of this test, or with `golden.file(name)`, which tests may share."""
    from mlmrepro.compare.store import GoldenFile

    node, session = request.node, request.config.stash[_SESSION]
    session.active = True
    if problem := session.misplaced(node.path.parent):
        pytest.fail(problem, pytrace=False)
    node.stash[_GOLDEN] = GoldenFile(session.store, f"{session.key_of(node)}.json", node.nodeid)
    return node.stash[_GOLDEN]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that passed without checking every entry of its own golden."""
    result = yield
    if _GOLDEN in item.stash and (message := item.stash[_GOLDEN].unchecked()):
        pytest.fail(message, pytrace=False)
    return result


class GoldenSession:
    """Which goldens the tests of a session used; under pytest-xdist the controller collects this."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.active = False  # a test asked for the fixture
        self.partial = False  # a test was left out, or did not pass
        self.collected: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.files: set[str] = set()  # the nodes whose tests were collected
        self.used: set[tuple[str, str]] = set()
        self.declared: set[str] = set()
        self.unused: list[str] = []
        self.kept: list[str] = []
        self.looked = False  # whether unused goldens were looked for
        self.failure = ""
        self.elsewhere: dict[str, str] = {}
        for line in config.getini("golden_elsewhere"):
            pattern, _, reason = line.partition(": ")
            if not reason.strip():
                raise pytest.UsageError(f"golden_elsewhere: {line!r} has no reason: write `{pattern}: why`")
            self.elsewhere[pattern.strip()] = reason.strip()

    @cached_property
    def root(self) -> Path:
        """The directory of the project; raises UserError if it cannot be decided."""
        from mlmrepro.pytest_plugin.project import configures_pytest, project_of

        config, here = self.config, self.config.invocation_params.dir
        if config.inipath and (self._named or configures_pytest(config.inipath.parent)):
            return config.inipath.parent
        if given := config.getoption("--golden-dir"):
            return Path(os.path.abspath(here / given)).parent
        paths = [Path(os.path.abspath(here / argument.partition("::")[0])) for argument in config.args]
        return project_of(Path(os.path.commonpath(paths or [here])))

    @property
    def _named(self) -> bool:
        return bool(self.config.getini("golden_dir"))

    @cached_property
    def store(self) -> SessionStore:
        """The goldens of this process."""
        from mlmrepro.pytest_plugin.store import SessionStore

        given = self.config.getoption("--golden-dir")
        base = self.config.invocation_params.dir if given else self.root
        directory = os.path.abspath(base / (given or self.config.getini("golden_dir") or "golden"))
        if self.config.getoption("--mlm-record"):
            from mlmrepro.pytest_plugin.recording import RecordingStore

            return RecordingStore(Path(directory))
        return SessionStore(Path(directory), self.config.getoption("--golden-update"))

    def key_of(self, node: pytest.Item) -> str:
        """Return the file of a test's golden, without .json; raises UserError if it is not clear where goldens are."""
        from mlmrepro.compare.store import file_key

        module = node.nodeid.partition("::")[0]
        if node.path.is_relative_to(self.root):
            module = node.path.relative_to(self.root).as_posix()
        names = [part.name for part in node.listchain() if isinstance(part, (pytest.Class, pytest.Item))]
        return file_key(*module.removesuffix(".py").split("/"), ".".join(names)).removesuffix(".json")

    def misplaced(self, folder: Path) -> str:
        """Return a problem if pytest, started in `folder`, would look for goldens elsewhere; "" if not."""
        from mlmrepro.errors import UserError
        from mlmrepro.pytest_plugin.project import inner_project

        try:
            root = self.root
        except UserError as error:
            return str(error)
        inner = None if self._named or self.config.getoption("--golden-dir") else inner_project(folder, root)
        return f"{inner} is a project inside {root}: set golden_dir in the pytest configuration" if inner else ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Stop if it is not clear where the goldens are; a worker of pytest-xdist fails its tests instead."""
        if hasattr(self.config, "workeroutput") or self.config.option.collectonly:
            return
        for folder in {item.path.parent for item in session.items if "golden" in getattr(item, "fixturenames", ())}:
            if problem := self.misplaced(folder):
                raise pytest.UsageError(problem)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Count each test before anything can leave it out."""
        if not item.nodeid.startswith(_OBSERVE):
            self.collected[item.nodeid] += 1

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Note that tests were left out."""
        self.partial = self.partial or not all(item.nodeid.startswith(_OBSERVE) for item in items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that was skipped or could not be read."""
        self.partial = self.partial or not report.passed
        if report.passed:
            self.files.add(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note each test that passed, and any that did not."""
        if report.nodeid.startswith(_OBSERVE):  # an observation reads no golden of a test
            return
        if not report.passed:
            self.partial = True
        elif report.when == "call":
            self.passed[report.nodeid] += 1

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
        """Send the used goldens to the controller; there, write new goldens and look for unused ones."""
        own = "store" in self.__dict__
        if own:
            self._merge(sorted(self.store.used), sorted(map(str, self.store.declared)))
        if hasattr(self.config, "workeroutput"):
            state = {"used": sorted(self.used), "declared": sorted(self.declared), "files": sorted(self.files)}
            state |= {"collected": dict(self.collected), "new": self.store.state() if own else ""}
            self.config.workeroutput[_NAMES[0]] = state | {"active": own, "partial": self.partial}
            return
        if "store" in self.__dict__:
            try:
                self.store.write_new()
            except OSError as error:
                self.failure = f"new goldens could not be written: {error}"
        if self._is_full(session):
            self._look_for_unused(session)

    def _look_for_unused(self, session: pytest.Session) -> None:
        self.looked = True
        unused = [each for each in self.store.unused(self.used) if not self._is_elsewhere(each[0])]
        if not unused:
            return
        left_out, proven = self._left_out()
        reasons = {
            each: next((why for start, why in left_out.items() if each[0].startswith(start)), "") for each in unused
        }
        texts = {each: f"{self.store.path(each[0])}" + (f": {each[1]!r}" if each[1] else "") for each in unused}
        if any(reasons.values()) or (self.store.update == "all" and not proven):
            # A test that was not collected may use the others too.
            other = f"no test used it here, but {next(iter(left_out.values()))}"
            self.kept = [f"{texts[each]}: {reasons[each] or other}" for each in unused]
            return
        self.unused = list(texts.values())
        if self.store.update == "all":
            self.store.remove(unused)
        else:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _is_elsewhere(self, key: str) -> bool:
        return any(key == pattern or fnmatchcase(key, pattern) for pattern in self.elsewhere)

    def _left_out(self) -> tuple[dict[str, str], bool]:
        """Return why goldens were not used, by key prefix, and whether only excluded folders were left out."""
        from mlmrepro.compare.store import file_key
        from mlmrepro.pytest_plugin.left_out import left_out_tests, test_files

        reasons, proven = {}, True
        aside = self.config.getini("norecursedirs")
        collected: dict[Path, set[str]] = {}
        for node in self.collected:
            file, _, name = node.partition("[")[0].partition("::")
            collected.setdefault(self.config.rootpath / file, set()).add(name.replace("::", "."))
        seen = {self.config.rootpath / file for file in self.files}
        for path in test_files(self.root, self.config.getini("python_files")):
            relative = path.relative_to(self.root)
            folder = file_key(*relative.with_suffix("").parts, "x").rpartition("/")[0]
            if path not in seen:
                reasons[f"{folder}/"] = f"{relative.as_posix()} was not collected here"
                proven = proven and any(fnmatchcase(part, each) for part in relative.parts for each in aside)
                continue
            for name in left_out_tests(path, collected.get(path, ())):
                for end in (".", "[", "~"):
                    reasons[f"{folder}/{name}{end}"] = f"{relative.as_posix()} defines {name}, not collected here"
                proven = False
        return reasons, proven

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
            remedy = "deleted" if deleted else "pytest --golden-update deletes them"
            terminalreporter.line(f"{len(self.unused)} not used by any test; {remedy}:")
            _list(terminalreporter, self.unused)
        if self.active and not self.looked and self.config.getoption("--golden-update") == "all":
            terminalreporter.line("no golden was deleted: not every test was run and passed")
        if self.kept:
            terminalreporter.section("goldens not used here")
            terminalreporter.line("kept; declare them with golden_elsewhere in the pytest configuration:")
            _list(terminalreporter, self.kept)
        if self.failure:
            terminalreporter.line(self.failure, red=True)

    def _merge(
        self,
        used: Sequence[Sequence[str]],
        declared: Sequence[str],
        active: bool = True,
        partial: bool = False,
        collected: Mapping[str, int] | None = None,
        files: Sequence[str] = (),
        new: str = "",
    ) -> None:
        self.used |= {(key, name) for key, name in used}
        self.declared |= set(declared)
        self.active = self.active or active
        self.partial = self.partial or partial
        self.collected |= Counter(collected or {})
        self.files |= set(files)
        if new:
            self.store.merge(new)

    def _is_full(self, session: pytest.Session) -> bool:
        """Return whether every existing test was run and passed: only then can a golden be called unused."""
        option = self.config.option
        narrowed = any(getattr(option, name, None) for name in _NARROWING)
        overridden = {text.partition("=")[0].strip() for text in option.override_ini or ()} & set(_COLLECTING)
        return (
            self.active
            and session.exitstatus == pytest.ExitCode.OK
            and not (self.partial or narrowed or overridden)
            and self.collected <= self.passed
            and self.store.directory.is_relative_to(self.root)
            and self._covers_testpaths()
        )

    def _covers_testpaths(self) -> bool:
        """Return whether the arguments cover all of testpaths, or of the project if there are none."""
        root, here = self.root, self.config.invocation_params.dir
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
