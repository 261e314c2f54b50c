"""The plugin as a user meets it: what fails and says why, what an update writes, and when a golden counts as unused."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from mlmrepro.compare.golden import read_golden, versions_of
from mlmrepro.provenance import PACKAGES, collect

from .projects import LINK, MODULE, declare, goldens, run, write_goldens, write_tests

PLUGIN = "mlmrepro.pytest_plugin"


def test_an_absent_golden_is_written_and_fails_once(pytester: pytest.Pytester) -> None:
    """The first run writes and fails, the second passes; the header names the versions."""
    write_tests(pytester, test_a=MODULE)
    first = run(pytester)
    first.assert_outcomes(failed=2)
    first.stdout.fnmatch_lines(
        ["E*golden/tests/test_a/test_one.json: 'x': there was no golden; this one is written when the run ends*"]
    )
    run(pytester).assert_outcomes(passed=2)
    golden = read_golden(pytester.path / "golden" / "shared.json")
    assert set(golden.provenance["packages"]) == set(PACKAGES)
    assert golden.versions == versions_of(collect())


def test_a_mismatch_fails_with_all_there_is_to_know(project: pytest.Pytester) -> None:
    """The message has file, entry, both values, the command for this test, and the question."""
    write_goldens(project, **{"tests/test_a/test_one": {"x": 9}})
    result = run(project)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*golden/tests/test_a/test_one.json: 'x': REGRESSION",
            "E*obtained: 1",
            "E*expected: 9",
            "E*expected 9, obtained 1 (differs by -8)",
            "E*Is this a regression? If not, update the golden:",
            "E*pytest tests/test_a.py::test_one --golden-update",
            "E*or, if only some versions change it, declare it for these (see the variants of a golden).",
        ]
    )
    result.stdout.no_fnmatch_line("*store.py*")  # the traceback ends in the test


def test_update_new_adds_and_changes_nothing(project: pytest.Pytester) -> None:
    """Absent entries are written and pass, others are compared as ever, and nothing unused is deleted."""
    write_goldens(project, **{"tests/test_a/test_one": {"x": 9}})
    before = goldens(project)
    write_tests(project, test_c="def test_four(golden): golden.exact('x', 4)")
    run(project, "--golden-update=new").assert_outcomes(passed=3, failed=1)
    assert goldens(project) == before | {"tests/test_c/test_four.json": {"x": [4]}}
    write_goldens(project, **{"tests/test_a/test_one": {"x": 1}})
    result = run(project, "--golden-update=new")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["2 not used by any test; pytest --golden-update deletes them:"])
    assert "old.json" in goldens(project)


@pytest.mark.parametrize("option", ["--golden-update", "--golden-update=all"])
def test_update_all_replaces_and_deletes(project: pytest.Pytester, option: str) -> None:
    """A full run with it makes the goldens those of the tests; the next run agrees."""
    write_goldens(project, **{"tests/test_a/test_one": {"x": 9, "gone": 0}})
    result = run(project, option)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["2 not used by any test; deleted:", "*golden/old.json", "*golden/shared.json: 'gone'"])
    result.stdout.no_fnmatch_line("no golden was deleted*")
    assert goldens(project) == {
        "shared.json": {"x": [2]},
        "tests/test_a/test_one.json": {"x": [1]},
        "tests/test_b/test_three.json": {"x": [3]},
    }
    clean = run(project)
    assert clean.ret == 0
    clean.stdout.no_fnmatch_line("*unused*")


def test_another_word_for_an_update_is_a_usage_error(project: pytest.Pytester) -> None:
    """A path after the option is not taken for a kind of update in silence."""
    result = run(project, "--golden-update", "tests")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--golden-update: invalid choice: 'tests'*"])


def test_each_test_has_a_golden_of_its_own(pytester: pytest.Pytester) -> None:
    """Modules, classes and parameters make the path, also where they differ in case or hold a slash only."""
    write_tests(
        pytester,
        test_a="""
            import pytest

            class TestIt:
                def test_x(self, golden):
                    golden.exact("value", "it")

            class TestOther:
                def test_x(self, golden):
                    golden.exact("value", "other")

            @pytest.fixture
            def indirect(golden):
                return golden

            @pytest.mark.parametrize("p", ["a", "A", "a/b", "a::b", "../../a"])
            def test_x(indirect, p):
                indirect.exact("value", p)
        """,
    )
    run(pytester, "--golden-update=new").assert_outcomes(passed=7)
    found = goldens(pytester, "golden/tests/test_a")
    assert sorted(entries["value"][0] for entries in found.values()) == [
        "../../a",
        "A",
        "a",
        "a/b",
        "a::b",
        "it",
        "other",
    ]
    assert found["test_x[a].json"] == {"value": ["a"]}
    assert len({name.casefold() for name in found}) == 7
    assert run(pytester).ret == 0


@pytest.mark.parametrize("invoked_in", [".", "tests"])
def test_the_directory_is_below_rootdir_or_given(pytester: pytest.Pytester, invoked_in: str) -> None:
    """`golden_dir` is below rootdir wherever pytest is started; `--golden-dir` is where the user stands."""
    pytester.makeini("[pytest]\ngolden_dir = expected/here\n")
    write_tests(pytester, test_a=MODULE)
    os.chdir(pytester.path / invoked_in)
    run(pytester, "--golden-update=new").assert_outcomes(passed=2)
    assert set(goldens(pytester, "expected/here")) == {"shared.json", "tests/test_a/test_one.json"}
    run(pytester, "--golden-dir=mine", "--golden-update=new").assert_outcomes(passed=2)
    assert set(goldens(pytester, f"{invoked_in}/mine")) == {"shared.json", "tests/test_a/test_one.json"}


def test_what_a_test_no_longer_obtains_fails(project: pytest.Pytester) -> None:
    """An unchecked entry of a test's own golden fails it, of one that it shares does not."""
    write_goldens(project, **{"tests/test_a/test_one": {"x": 1, "loss": 2, "norm": 3}})
    result = run(project)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*/golden/tests/test_a/test_one.json: 'loss': expected, not obtained",
            "*/golden/tests/test_a/test_one.json: 'norm': expected, not obtained",
            "    pytest tests/test_a.py::test_one --golden-update",
        ]
    )
    run(project, "tests/test_a.py", "--golden-update=all").assert_outcomes(passed=2)
    assert goldens(project)["tests/test_a/test_one.json"] == {"x": [1]}
    assert goldens(project)["shared.json"] == {"x": [2], "gone": [0]}


@pytest.mark.parametrize(
    "end", ["assert False", "pytest.skip('why')", "pytest.xfail('why')", "raise RuntimeError", "pytest.fail('why')"]
)
def test_a_test_that_did_not_end_keeps_its_golden(pytester: pytest.Pytester, end: str) -> None:
    """What a failed or skipped test did not reach is neither missed nor deleted."""
    source = f"import pytest\n\ndef test_one(golden):\n    golden.exact('x', 1)\n    {end}\n    golden.exact('y', 2)"
    write_tests(pytester, test_a=source)
    write_goldens(pytester, **{"tests/test_a/test_one": {"x": 1, "y": 2}})
    result = run(pytester, "--golden-update")
    result.stdout.no_fnmatch_line("*not obtained*")
    assert goldens(pytester) == {"tests/test_a/test_one.json": {"x": [1], "y": [2]}}


def test_a_stage_is_one_check(pytester: pytest.Pytester) -> None:
    """`golden.stage` tells every mismatch of a stage in one message."""
    source = """
        from mlmrepro.record import Lane, RunRecord

        def test_stage(golden):
            record = RunRecord({}, {})
            record.observe("loss", "steps", 17, Lane.EXACT)
            record.observe("loss", "eval", 4.5, Lane.APPROXIMATE)
            record.observe("loss", "seconds", 1.0, Lane.INFO)
            golden.stage(record, "loss")
    """
    write_tests(pytester, test_a=source)
    write_goldens(pytester, loss={"steps": 18, "gone": 1})
    result = run(pytester)
    result.assert_outcomes(failed=1)
    wanted = ["'steps': REGRESSION", "'eval': there was no golden*", "'gone': expected, not obtained"]
    result.stdout.fnmatch_lines([f"E*loss.json: {line}" for line in wanted])
    run(pytester, "--golden-update").assert_outcomes(passed=1)
    assert goldens(pytester) == {"loss.json": {"steps": [17], "eval": [4.5]}}


def test_declared_changes_are_summed_up(project: pytest.Pytester) -> None:
    """Each variant that holds here, and not where the golden was made, is shown with its reason and link."""
    declare(project, x=2)
    result = run(project, "tests/test_a.py")
    assert result.ret == pytest.ExitCode.OK
    lines = ["*= declared changes =*", "1 declared change holds here:"]
    result.stdout.fnmatch_lines([*lines, f"  shared.json 'x' with python>=3: why x changed ({LINK})"])
    run(project, "-k", "one").stdout.no_fnmatch_line("*= declared*")


def test_a_long_list_is_cut(project: pytest.Pytester) -> None:
    """Of more than twenty lines the rest is counted."""
    write_tests(
        project, test_a="def test_many(golden):\n    for i in range(23): golden.file('shared').exact(f'n{i}', i)"
    )
    declare(project, **{f"n{i}": i for i in range(23)})
    result = run(project, "tests/test_a.py")
    result.stdout.fnmatch_lines(["23 declared changes hold here:", "*'n0' with*", "  and 3 more"])
    assert result.stdout.str().count("why n") == 20


def test_no_variant_for_these_versions_fails(project: pytest.Pytester) -> None:
    """A golden that declares nothing for what is installed fails, and an update does not guess."""
    declare(project, "python>=99", x=2)
    for arguments in ((), ("--golden-update",)):
        result = run(project, "tests/test_a.py", *arguments)
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(["E*no variant holds for these versions: python<3, python>=99*"])


@pytest.mark.parametrize(
    ("arguments", "conftest"),
    [
        *itertools.product(("", "-p mlmrepro", f"-p {PLUGIN}"), ("", f"pytest_plugins = ['{PLUGIN}']")),
        (f"-n1 -p {PLUGIN}", ""),
    ],
)
def test_the_plugin_may_be_loaded_twice(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: str, conftest: str
) -> None:
    """The entry point, `-p` by either name, and `pytest_plugins` of a conftest, in any combination."""
    info = project.path / "site" / "mlmrepro_double-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlmrepro-double\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pytest11]\nmlmrepro = mlmrepro.pytest_plugin\n")
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.setenv("PYTHONPATH", str(info.parent), prepend=os.pathsep)
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    if conftest:
        project.makeconftest(conftest)
    # What a worker finds installed is what its controller found when it started.
    runner = project.runpytest_subprocess if "-n1" in arguments else project.runpytest_inprocess
    result = runner(*arguments.split())
    result.assert_outcomes(passed=3)
    assert result.stdout.str().count("unused goldens") == 1


def test_loading_the_plugin_is_light() -> None:
    """Beyond pytest itself it imports two modules of this package and nothing else: no torch, no numpy, no goldens."""
    code = "import pytest, sys; seen = set(sys.modules); import mlmrepro.pytest_plugin; print(*set(sys.modules) - seen)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(output.split()) == {"mlmrepro", "mlmrepro.pytest_plugin"}


def test_a_run_with_goldens_needs_no_heavy_library(project: pytest.Pytester) -> None:
    """Comparing and writing goldens imports neither torch nor numpy nor what is built on them."""
    heavy = ("torch", "numpy", "transformers", "datasets")
    source = f"import sys\n\ndef test_last():\n    assert not set({heavy}) & set(sys.modules)"
    write_tests(project, test_c=source)
    result = project.runpytest_subprocess("-p", "mlmrepro.pytest_plugin", "--golden-update")
    result.assert_outcomes(passed=4)
    assert "old.json" not in goldens(project)
