"""The fixture in other people's suites: runs that are narrowed in silence, reruns, and where pytest is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .projects import goldens, parallel, run, write_goldens, write_tests

NARROWING = "def pytest_collection_modifyitems(items): items[:] = [i for i in items if i.name != 'test_three']"
FIRST = f"import pytest\n\n@pytest.hookimpl(tryfirst=True)\n{NARROWING}"
RUNNING = "import pytest\n\n@pytest.hookimpl(trylast=True)\ndef pytest_collection_finish(session): session.items.pop()"
IGNORING = "collect_ignore = ['tests/test_b.py']"
# What pytest-rerunfailures and its like do: the same item runs again in the same process.
RERUNNING = """
    from _pytest.runner import runtestprotocol

    def pytest_runtest_protocol(item, nextitem):
        reports = runtestprotocol(item, nextitem=item, log=False)
        if any(report.failed for report in reports):
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        return True
"""


@pytest.mark.parametrize("source", [NARROWING, FIRST, RUNNING, IGNORING], ids=["late", "first", "finish", "ignore"])
def test_a_run_narrowed_in_silence_deletes_nothing(project: pytest.Pytester, source: str) -> None:
    """Whoever leaves tests out, and at whatever moment: nothing is called unused, and an update deletes nothing."""
    project.makeconftest(source)
    before = goldens(project)
    result = run(project, "--golden-update")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*unused*")
    assert goldens(project) == before


def test_workers_that_are_narrowed_delete_nothing(project: pytest.Pytester) -> None:
    """Under pytest-xdist the controller knows what the workers collected."""
    project.makeconftest(NARROWING)
    before = goldens(project)
    assert parallel(project, "--golden-update").ret == pytest.ExitCode.OK
    assert goldens(project) == before


def test_goldens_of_an_ignored_file_are_listed_until_declared(project: pytest.Pytester) -> None:
    """A file that pytest did not collect is named with its golden; declared, the rest of the goldens is judged."""
    project.makeconftest(IGNORING)
    result = run(project)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["*= goldens not used here =*", "*/test_three.json: tests/test_b.py was not collected*"]
    )
    line = "golden_elsewhere = tests/test_b/*: only on Windows"
    project.makeini(f"[pytest]\ntestpaths = tests\n{line}\n")
    result = run(project)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["2 not used by any test; *"])
    result.stdout.no_fnmatch_line("*test_three*")
    before = goldens(project)
    run(project, "--golden-update").stdout.fnmatch_lines(
        ["*/old.json: no test used it here, but tests/test_b.py was not collected here"]
    )
    assert goldens(project) == before
    project.makeini("[pytest]\ngolden_elsewhere = tests/test_b/*\n")
    assert run(project).ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("runner", [run, parallel])
def test_a_missing_golden_fails_every_attempt(pytester: pytest.Pytester, runner: Any) -> None:
    """A golden that the first attempt or another test asked for satisfies nothing in the same run."""
    pytester.makeconftest(RERUNNING)
    many = "\n".join(f"def test_{i}(golden): golden.file('shared').exact('x', 7)" for i in range(4))
    write_tests(pytester, test_a=many)
    runner(pytester).assert_outcomes(failed=4)
    assert goldens(pytester) == {"shared.json": {"x": [7]}}
    runner(pytester).assert_outcomes(passed=4)


def test_with_pytest_rerunfailures_a_missing_golden_fails(pytester: pytest.Pytester) -> None:
    """The second attempt of the real plugin fails as the first did."""
    write_tests(pytester, test_a="def test_one(golden): golden.exact('x', 7)")
    assert run(pytester, "-p", "pytest_rerunfailures", "--reruns", "1").ret == pytest.ExitCode.TESTS_FAILED


def test_values_that_differ_in_one_run_are_not_written(pytester: pytest.Pytester) -> None:
    """Two tests that disagree about a missing golden both fail, and neither value is expected afterwards."""
    source = "\n".join(f"def test_{i}(golden): golden.file('shared').exact('x', {i})" for i in range(2))
    write_tests(pytester, test_a=source)
    result = run(pytester)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["E*this run obtained different values, so none is written"])
    assert goldens(pytester) == {}


def test_started_below_the_same_goldens_are_read(pytester: pytest.Pytester) -> None:
    """In a project without a pytest configuration each directory leads to the goldens of the project."""
    write_tests(pytester, test_a="def test_one(golden): golden.exact('x', 7)", test_b="def test_two(golden): pass")
    Path(pytester.path / "tox.ini").write_text("[tox]\n")
    run(pytester, "--golden-update=new").assert_outcomes(passed=2)
    write_goldens(pytester, **{"tests/test_b/test_two": {}}, old={"x": 0})
    os.chdir(pytester.path / "tests")
    run(pytester, "--golden-update").assert_outcomes(passed=2)
    assert {"old.json", "tests/test_a/test_one.json"} <= set(goldens(pytester))
    assert not Path("golden").exists()


def test_where_no_project_is_sure_pytest_stops(pytester: pytest.Pytester) -> None:
    """Without configuration, package and repository, and in a project inside a project, the remedy is named."""
    write_tests(pytester, test_a="def test_one(golden): golden.exact('x', 7)")
    (pytester.path / "tests" / "pytest.ini").write_text("[pytest]\n")
    stopped = [run(pytester, ".")]
    (pytester.path / "tests" / "pytest.ini").unlink()
    (pytester.path / "tox.ini").unlink()
    stopped.append(run(pytester))
    for result in stopped:
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*set golden_dir in the pytest configuration*"])
    assert not list(pytester.path.rglob("golden"))


def test_a_configuration_below_a_package_is_refused_at_once(pytester: pytest.Pytester) -> None:
    """The first run stops, before a second set of goldens is there."""
    write_tests(pytester, test_a="def test_one(golden): golden.exact('x', 7)")
    (pytester.path / "tox.ini").write_text("[tox]\n")
    (pytester.path / "tests" / "pytest.ini").write_text("[pytest]\n")
    assert run(pytester, "--golden-update").ret == pytest.ExitCode.USAGE_ERROR
    assert not list(pytester.path.rglob("golden"))


def test_another_rootdir_leads_to_the_goldens_of_the_configuration(pytester: pytest.Pytester) -> None:
    """`--rootdir` moves node ids, not the goldens."""
    write_tests(pytester, test_a="def test_one(golden): golden.exact('x', 7)")
    run(pytester, "--golden-update=new", "--rootdir=tests").assert_outcomes(passed=1)
    assert goldens(pytester) == {"tests/test_a/test_one.json": {"x": [7]}}


LEFT_OUT = {
    "a namesake in another file": ("", "def test_one(golden): golden.exact('x', 3)", "test_one"),
    "a method": (
        "class TestSaving:\n    ",
        "def test_three(self, golden): golden.exact('x', 3)",
        "TestSaving.test_three",
    ),
}


@pytest.mark.parametrize("where", LEFT_OUT)
def test_a_test_that_is_left_out_is_known_by_its_file_and_class(project: pytest.Pytester, where: str) -> None:
    """A test of the same name in another file, and the class around a method, hide nothing: its golden is kept."""
    before, source, name = LEFT_OUT[where]
    write_tests(project, test_c=f"{before}if True:\n        {source}" if before else source)
    run(project, "--golden-update=new")
    write_tests(project, test_c=f"{before}if False:\n        {source}" if before else f"if False:\n    {source}")
    kept = goldens(project)
    for arguments in ((), ("--golden-update",)):
        result = run(project, *arguments)
        assert result.ret == pytest.ExitCode.OK
        result.stdout.fnmatch_lines([f"*/test_c/{name}*.json: tests/test_c.py defines {name}, not collected here"])
        assert goldens(project) == kept


def test_a_test_of_another_platform_keeps_its_golden(project: pytest.Pytester) -> None:
    """A test that a condition leaves out is named with its golden, and an update deletes nothing."""
    source = "import sys\n\nif sys.platform == 'none':\n    def test_three(golden): golden.exact('x', 3)"
    write_tests(project, test_b=f"{source}\n\ndef test_four(): pass")
    before = goldens(project)
    for arguments in ((), ("--golden-update",)):
        result = run(project, *arguments)
        assert result.ret == pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["*/test_three.json: tests/test_b.py defines test_three, not collected here"])
        result.stdout.no_fnmatch_line("*unused*")
    assert goldens(project) == before
