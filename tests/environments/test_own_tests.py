"""The user's own tests in a matrix: what they hold is judged like our observations, and what fails by itself says so.

The environments are the running interpreter; the name of each is the version of a library that the tests use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlmrepro
from mlmrepro import cli
from mlmrepro.compare.golden import Entry, Golden, Variant, read_golden, write_golden
from mlmrepro.compare.judge import Verdict
from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.environments import matrix
from mlmrepro.environments.spec import Environment
from mlmrepro.provenance import collect
from mlmrepro.record import Lane, RunRecord

from ..report.records import golden, record

# Stands for `mlmrepro record`: our part of the record is ready, and the tests are really run.
RECORDER = """
import os, sys
from pathlib import Path
from mlmrepro.observations.own_tests import add_tests
from mlmrepro.record import RunRecord
output = Path(sys.argv[sys.argv.index("--output") + 1])
record = RunRecord.read(output.parents[1] / "base.json")
record.provenance["packages"]["transformers"] = os.environ["LIBRARY"] = output.stem
print(add_tests(record, [each.partition("=")[2] for each in sys.argv if each.startswith("--tests=")]))
record.write(output)
"""
ENCODER = """
import os
VERSION = tuple(map(int, os.environ["LIBRARY"].split(".")))

def encode(text):
    return [ord(letter) + (VERSION >= (5, 0)) for letter in text]
"""
TESTS = """
import os
import pytest
from encoder import VERSION, encode

def test_ids(golden):
    golden.exact("ids", encode("ab"))
    golden.exact("count", 2)

def test_loss(golden):
    golden.approximate("loss", 3.0 + (VERSION >= (5, 2)), quantity="my loss", atol=0.1, reason="it varies")

def test_plain():
    assert VERSION < (5, 2), "no such release"

@pytest.mark.skipif(VERSION < (5, 0), reason="needs 5.0")
def test_new():
    pass
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a module, its tests and their goldens, and nothing else of ours."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    # Found where this process found it, and no other plugin.
    monkeypatch.setenv("PYTHONPATH", str(Path(mlmrepro.__file__).parents[1]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.chdir(tmp_path)
    for path, text in {
        "pyproject.toml": "[tool.pytest.ini_options]\n",
        "src/encoder.py": ENCODER,
        "tests/test_encoder.py": TESTS,
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    tolerance = Tolerance("my loss", atol=0.1, reason="it varies")
    entries = {
        "test_ids": {
            "ids": Entry(Lane.EXACT, (Variant([97, 98]),)),
            "count": Entry(Lane.EXACT, (Variant(2),)),
        },
        "test_loss": {"loss": Entry(Lane.APPROXIMATE, (Variant(3.0),), tolerance)},
    }
    for name, content in entries.items():
        write_golden(tmp_path / "golden" / "tests" / "test_encoder" / f"{name}.json", Golden(collect(), content))
    golden(tmp_path / "goldens", record("4.0"))
    base = record("4.0")
    base.asked = {"fill_mask.default_top_k": ""}
    base.write(tmp_path / "base.json")
    monkeypatch.setattr(matrix, "make_environment", lambda *_, **__: Path(sys.executable))
    monkeypatch.setattr(matrix, "RECORD", ("-c", RECORDER))
    real = matrix.run_matrix
    monkeypatch.setattr(matrix, "run_matrix", lambda *a, **k: real(*a, **k, command=matrix.RECORD))
    made = {name: Environment(name, (f"transformers=={name}", "datasets==4.5.0")) for name in ("4.0", "5.0", "5.2")}
    monkeypatch.setattr("mlmrepro.environments.spec.parse_environments", lambda texts: [made[text] for text in texts])
    return tmp_path


def run(*names: str, command: str = "matrix", tests: tuple[str, ...] = ("tests/test_encoder.py",)) -> int:
    options = [*(f"--envs={name}" for name in names), *(f"--tests={test}" for test in tests)]
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, *options, "--directory=runs", "--goldens=goldens"])
    return int(exit_.value.code or 0)


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.main(["report", "runs", "--goldens=goldens"])
    return int(exit_.value.code or 0), " ".join(capsys.readouterr().out.split())


def findings(name: str) -> dict[str, tuple[Verdict, str]]:
    """Return what is said of the tests in an environment: the verdict of each change, and its first difference."""
    from mlmrepro.compare.drift import Drift
    from mlmrepro.environments.matrix import read_outcomes

    drift = Drift([outcome for outcome in read_outcomes(Path("runs")) if outcome.name == name], Path("goldens"))
    found = [f for f in drift.comparisons[name].findings if f.stage == "tests" and f.verdict.is_change]
    return {f.name: (f.verdict, str(f.differences[0].obtained)) for f in found}


def test_own_tests_are_observations(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which version, which test and which value; a declared change then passes, and a skip says its reason."""
    assert run("4.0", "5.0", "5.2") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 environments passes, 2 fail (REGRESSION)" in printed
    assert "REGRESSION your tests: tests/test_encoder/test_ids::ids [0] 97 → 98" in printed.replace("ids[0]", "ids [0]")
    assert findings("4.0") == {
        "tests/test_encoder/test_new::(outcome)": (Verdict.EXPECTED, "skipped: needs 5.0"),
    }
    assert "your tests: tests/test_encoder/test_new::(outcome) 'skipped: needs 5.0' → 'passed'" in printed
    assert findings("5.0") == {"tests/test_encoder/test_ids::ids": (Verdict.REGRESSION, "98")}
    assert findings("5.2") == {
        "tests/test_encoder/test_ids::ids": (Verdict.REGRESSION, "98"),
        "tests/test_encoder/test_loss::loss": (Verdict.REGRESSION, "4.0"),
        "tests/test_encoder/test_plain::(outcome)": (Verdict.REGRESSION, "AssertionError: no such release"),
    }
    assert "<html" in (project / "runs" / "report.html").read_text(encoding="utf-8")
    declaration = ["expect", "tests.tests/test_encoder/test_ids::*", "--when", "transformers>=5.0"]
    declaration += ["--from", "runs/5.0.json", "--reason", "ids moved", "--link", "https://example.org"]
    cli_ok(declaration)
    declared = read_golden(project / "golden" / "tests" / "test_encoder" / "test_ids.json").entries
    assert [len(declared[name].variants) for name in ("ids", "count")] == [2, 1]
    assert run("4.0", "5.0") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "declared cause: ids moved" in printed
    assert findings("5.0") == {"tests/test_encoder/test_ids::ids": (Verdict.EXPECTED, "98")}


def cli_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert not exit_.value.code


@pytest.mark.parametrize(
    ("source", "verdict", "said"),
    [
        ("import no_such_module", Verdict.REGRESSION, "cannot be collected: ModuleNotFoundError: No module named 'no_"),
        ("import pytest\npytest.importorskip('no_such_module')", Verdict.UNMEASURED, "skipped: could not import"),
        ("import pytest\n@pytest.mark.skip(reason='later')\ndef test_a(): pass", Verdict.UNMEASURED, "no test ran"),
        ("", Verdict.UNMEASURED, "no test ran"),
        ("def test_a(absent): pass", Verdict.REGRESSION, "error at setup: "),
        ("def test_a(golden): golden.exact('x', 1)", Verdict.UNMEASURED, "1"),
        ("def test_a(golden): golden.exact('x', {1})", Verdict.REGRESSION, "TypeError: "),
        ("def test_a(): raise ValueError('first\\nsecond')", Verdict.REGRESSION, "ValueError: first"),
    ],
    ids=["import", "package", "all skipped", "empty", "fixture", "no golden", "no JSON", "raises"],
)
def test_what_fails_by_itself_is_a_row_with_its_first_line(
    project: Path, source: str, verdict: Verdict, said: str
) -> None:
    """It is never a pass: errors of any kind, a package that the environment lacks, no golden, and nothing that ran."""
    (project / "tests" / "test_more.py").write_text(source + "\n")
    assert run("4.0", tests=("tests/test_more.py",)) == 1
    found = findings("4.0")
    assert [each for each in found.values() if each[0] is verdict and each[1].startswith(said)], found
    # The others are run nevertheless.
    assert run("4.0", tests=("tests",)) == (0 if said in ("no test ran",) else 1)


def test_pytest_that_does_not_start_is_a_row(project: Path) -> None:
    """An option of a plugin that the environment lacks is named."""
    (project / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--no-such-option"\n')
    assert run("4.0") == 1
    assert findings("4.0")["pytest::(outcome)"][0] is Verdict.REGRESSION
    assert "--no-such-option" in findings("4.0")["pytest::(outcome)"][1]


def test_a_skip_is_said_even_if_all_is_well(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The only environment passes, and its reason is printed."""
    assert run("4.0") == 0
    assert "tests/test_encoder/test_new::(outcome) 'passed' → 'skipped: needs 5.0'" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_record_without_tests_is_not_asked_for_them(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Next to records with tests it passes, and between two records only what both hold is compared."""
    assert run("4.0") == 0
    record("4.0").write(project / "runs" / "other.json")
    assert report(capsys)[0] == 0
    runs = [str(project / "runs" / name) for name in ("4.0.json", "other.json")]
    cli_ok(["compare", *runs, "--goldens=goldens"])
    cli_ok(["compare", *reversed(runs), "--goldens=goldens"])
    cli_ok(["compare", "goldens", runs[0]])


def test_between_two_records_the_tolerance_is_the_tests_own(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quantity of the user's own has no other; a test that no longer fails is an improvement."""
    run("4.0", "5.2")
    with pytest.raises(SystemExit) as exit_:
        cli.main(["compare", "runs/4.0.json", "runs/5.2.json", "--goldens=goldens", "--json"])
    assert exit_.value.code == 1
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["compare", "runs/5.2.json", "runs/4.0.json", "--goldens=goldens", "--json"])
    (content,) = json.loads(capsys.readouterr().out)
    found = {f["name"]: f["verdict"] for change in content["changes"] for f in change["findings"]}
    assert found["tests/test_encoder/test_plain::(outcome)"] == "improvement"
    taken = RunRecord.read(project / "runs" / "4.0.json")
    assert taken.stages["tests"]["tests/test_encoder/test_loss::loss"].tolerance["atol"] == 0.1


def test_a_test_that_does_not_exist_is_bad_input(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before an environment is made."""
    assert run("4.0", tests=("tests/test_absent.py::test_one",)) == 2
    assert "--tests tests/test_absent.py::test_one: there is no such file" in capsys.readouterr().err
    assert not (project / "runs").exists()


def test_the_record_is_the_same_under_xdist_and_the_last_attempt_counts(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes send their values to one, and a test that passes when it is run again has passed."""
    (project / "tests" / "test_flaky.py").write_text(
        "from pathlib import Path\n\ndef test_second_time():\n    there = Path('mark').exists()\n"
        "    Path('mark').touch()\n    assert there\n"
    )
    monkeypatch.setenv("LIBRARY", "5.2")
    monkeypatch.setenv("PYTHONPATH", "src", prepend=os.pathsep)
    command = [sys.executable, "-m", "pytest", "-p", "mlmrepro.pytest_plugin", "-p", "no:cacheprovider", "tests"]
    command += ["-p", "pytest_rerunfailures", "--reruns=1"]
    taken = []
    for name, options in {"one.json": [], "two.json": ["-p", "xdist", "-n", "2"]}.items():
        (project / "mark").unlink(missing_ok=True)
        done = subprocess.run([*command, *options, f"--mlm-record={name}"], capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        taken.append(RunRecord.read(project / name))
    assert taken[0]["tests.tests/test_flaky/test_second_time::(outcome)"] == "passed"
    assert taken[0]["tests.tests/test_encoder/test_plain::(outcome)"] == "AssertionError: no such release"
    assert taken[0].stages["tests"] == taken[1].stages["tests"]
    assert taken[0].asked == taken[1].asked
