"""When a golden counts as unused: after a run of all there is, in one process or several, and never otherwise."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from mlmrepro.pytest_plugin import GoldenSession

from .projects import MODULE, declare, goldens, parallel, run, write_goldens, write_tests


def test_a_full_run_fails_for_what_no_test_used(project: pytest.Pytester) -> None:
    """All tests pass, and yet the exit status is 1: an unused file and an unused entry are listed, and stay."""
    before = goldens(project)
    result = run(project)
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    lines = ["*= unused goldens =*", "2 not used by any test; pytest --golden-update deletes them:"]
    result.stdout.fnmatch_lines([*lines, f"  {project.path}/golden/old.json", "*/golden/shared.json: 'gone'"])
    assert goldens(project) == before


@pytest.mark.parametrize(
    "arguments",
    [("tests",), (".",), ("--ff",), ("-x",), ("--maxfail=1",), ("-v", "-o", "console_output_style=classic")],
    ids=" ".join,
)
def test_a_run_of_all_there_is_is_full(project: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    """Arguments that leave nothing out make no run partial."""
    assert run(project, *arguments).ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    "arguments",
    [
        ("-k", "one"),
        ("-k", "test"),  # selects all, and yet
        ("-m", "not slow"),
        ("--lf",),
        ("--sw",),
        ("--deselect", "tests/test_a.py::test_one"),
        ("--deselect", "tests/test_z.py"),
        ("--ignore=tests/test_b.py",),
        ("--ignore-glob=*_b.py",),
        ("--collect-only",),
        ("--setup-only",),
        ("--setup-plan",),
        ("tests/test_a.py",),
        ("tests/test_a.py", "tests/test_b.py"),
        ("tests/test_a.py::test_one",),
        ("-o", "python_files=test_a.py"),
        ("-o", "testpaths=tests/test_a.py"),
    ],
    ids=" ".join,
)
def test_a_narrowed_run_is_partial(project: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    """Each option and argument that may leave tests out: nothing is unused, and an update deletes nothing."""
    result = run(project, "--golden-update=all", *arguments)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*unused*")
    assert {"gone"} < set(goldens(project)["shared.json"])
    assert "old.json" in goldens(project)


def test_a_narrowed_run_passes(project: pytest.Pytester) -> None:
    """Without an update, too, a partial run lists nothing and leaves the exit status alone."""
    result = run(project, "-k", "one")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*unused*")


def test_a_run_from_a_directory_below_is_partial(project: pytest.Pytester) -> None:
    """Without arguments pytest runs what lies where it is started: all of it in rootdir only."""
    os.chdir(project.path / "tests")
    write_tests(project, test_a=MODULE)
    (project.path / "tests" / "below").mkdir()
    os.chdir(project.path / "tests" / "below")
    assert run(project).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    (project.path / "tests" / "test_b.py").rename(project.path / "tests" / "below" / "test_b.py")
    result = run(project, "--golden-update=new")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*unused*")


def test_without_testpaths_rootdir_is_all(pytester: pytest.Pytester) -> None:
    """Where the ini names no testpaths, a run of rootdir is full and one of a directory in it is not."""
    write_tests(pytester, test_a=MODULE)
    write_goldens(pytester, **{"tests/test_a/test_one": {"x": 1}}, shared={"x": 2}, old={"x": 0})
    assert run(pytester).ret == pytest.ExitCode.TESTS_FAILED
    assert run(pytester, "tests").ret == pytest.ExitCode.OK


SKIPPED = "import pytest\npytest.skip('why', allow_module_level=True)"
MARKED = "import pytest\n\n@pytest.mark.{}\ndef test_four(): assert {}"
IN_SETUP = "import pytest\n\n@pytest.fixture\ndef broken():\n    {}\n\ndef test_four(broken): pass"


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def test_four(): assert False", pytest.ExitCode.TESTS_FAILED),
        (MARKED.format("skip", True), pytest.ExitCode.OK),
        (MARKED.format("xfail", False), pytest.ExitCode.OK),
        (MARKED.format("xfail(run=False)", True), pytest.ExitCode.OK),
        ("import pytest\n\ndef test_four(): pytest.skip('why')", pytest.ExitCode.OK),
        (SKIPPED, pytest.ExitCode.OK),
        (IN_SETUP.format("pytest.skip('why')"), pytest.ExitCode.OK),
        (IN_SETUP.format("assert False"), pytest.ExitCode.TESTS_FAILED),
        (IN_SETUP.format("yield; assert False"), pytest.ExitCode.TESTS_FAILED),
        ("import nothing_of_this_name", pytest.ExitCode.INTERRUPTED),
        ("import pytest\n\ndef test_four(): pytest.exit('why', returncode=0)", pytest.ExitCode.OK),
        ("def test_four(request): request.session.shouldstop = 'why'", pytest.ExitCode.INTERRUPTED),
    ],
)
def test_a_run_with_a_test_that_did_not_pass_is_partial(project: pytest.Pytester, source: str, status: int) -> None:
    """A failed, skipped, expected to fail or interrupted test or module may be what uses a golden: it is kept."""
    write_tests(project, test_c=source)
    result = run(project, "--golden-update")
    assert result.ret == status
    said = "no golden was deleted: not every test was run and passed" in result.stdout.lines
    assert said or status == pytest.ExitCode.INTERRUPTED
    result.stdout.no_fnmatch_line("*unused*")
    assert "old.json" in goldens(project)


def test_an_interrupted_run_is_partial(project: pytest.Pytester) -> None:
    """What was not reached when the user stopped it may be what uses a golden."""
    write_tests(project, test_c="def test_four(): raise KeyboardInterrupt")
    result = project.runpytest_subprocess("-p", "mlmrepro.pytest_plugin", "--golden-update")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.no_fnmatch_line("*unused*")
    assert "old.json" in goldens(project)


def test_collection_errors_make_a_run_partial(project: pytest.Pytester) -> None:
    """Also where the run goes on in spite of them."""
    write_tests(project, test_c="import nothing_of_this_name")
    result = run(project, "--continue-on-collection-errors")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.no_fnmatch_line("*unused*")


def test_a_test_that_passed_unexpectedly_did_run(project: pytest.Pytester) -> None:
    """A run with it is full."""
    write_tests(project, test_c=MARKED.format("xfail", True))
    assert run(project).ret == pytest.ExitCode.TESTS_FAILED


DESELECTING = """
    def pytest_collection_modifyitems(config, items):
        config.hook.pytest_deselected(items=[item for item in items if item.name == "test_three"])
        items[:] = [item for item in items if item.name != "test_three"]
"""


@pytest.mark.parametrize("runner", [run, parallel])
def test_a_deselected_test_makes_a_run_partial(project: pytest.Pytester, runner: Any) -> None:
    """Whoever left it out, and in whichever process."""
    project.makeconftest(DESELECTING)
    result = runner(project)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*unused*")


def test_a_run_without_the_fixture_says_nothing(project: pytest.Pytester) -> None:
    """Where no test used a golden, none is unused."""
    write_tests(project, test_a="def test_one(): pass", test_b="def test_three(): pass")
    result = run(project, "--golden-update")
    assert result.ret == pytest.ExitCode.OK
    assert "old.json" in goldens(project)


def test_in_parallel_all_is_told_once(project: pytest.Pytester) -> None:
    """Workers write into shared goldens, what they used and declared is gathered, and the controller reports once."""
    many = "\n".join(f"def test_{i}(golden): golden.file('shared').exact('n{i}', {i})" for i in range(8))
    write_tests(project, test_c=many)
    parallel(project, "--golden-update=new").assert_outcomes(passed=11)
    assert goldens(project)["shared.json"] == {"x": [2], "gone": [0]} | {f"n{i}": [i] for i in range(8)}
    declare(project, x=2, gone=0, **{f"n{i}": i for i in range(8)})
    result = parallel(project)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str()
    assert (text.count("unused goldens"), text.count("9 declared changes hold here:")) == (1, 1)
    result.stdout.fnmatch_lines(["2 not used by any test; *", "*/golden/old.json", "*/golden/shared.json: 'gone'"])


def test_in_parallel_an_update_deletes_once(project: pytest.Pytester) -> None:
    """The controller deletes what no worker used, and what a test did not obtain is gone too."""
    write_goldens(project, **{"tests/test_a/test_one": {"x": 9, "gone": 0}})
    result = parallel(project, "--golden-update")
    assert result.ret == pytest.ExitCode.OK
    assert result.stdout.str().count("2 not used by any test; deleted:") == 1
    assert goldens(project) == {
        "shared.json": {"x": [2]},
        "tests/test_a/test_one.json": {"x": [1]},
        "tests/test_b/test_three.json": {"x": [3]},
    }


def test_a_crashed_worker_makes_a_run_partial(project: pytest.Pytester) -> None:
    """What a worker used that crashed is not known."""
    write_tests(project, test_c="import os\n\ndef test_four(): os._exit(3)")
    result = parallel(project, "--golden-update")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*unused*")
    assert "old.json" in goldens(project)


@pytest.mark.quick
def test_a_worker_that_says_nothing_makes_a_run_partial(pytestconfig: pytest.Config) -> None:
    """Each worker has to say what it used; one that went down with an error is not believed."""
    told = {"mlmrepro": {"used": [("f.json", "x")], "declared": [], "active": True, "partial": False}}
    for node, error, partial in (
        (SimpleNamespace(workeroutput=told), None, False),
        (SimpleNamespace(workeroutput={}), None, True),
        (SimpleNamespace(), None, True),
        (SimpleNamespace(workeroutput=told), "Not properly terminated", True),
    ):
        session = GoldenSession(pytestconfig)
        session.pytest_testnodedown(node, error)
        assert session.partial is partial
        assert session.used == (set() if partial else {("f.json", "x")})
