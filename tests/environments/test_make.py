"""An environment is made once and whole, or not at all, and holds what was asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

import mlmrepro
from mlmrepro.compare.drift import Drift
from mlmrepro.config import golden_directory
from mlmrepro.environments import make
from mlmrepro.environments.children import Stopped, run_child
from mlmrepro.environments.make import (
    Unmade,
    code_folder,
    content_hash,
    fingerprint,
    installer,
    isolated,
    make_environment,
    reason,
    run_pip,
)
from mlmrepro.environments.matrix import run_matrix
from mlmrepro.environments.spec import Environment, catalogue, find_python
from mlmrepro.report.drift import drift_document
from mlmrepro.report.page import write_page

from .conftest import make_wheel

OLD = Environment("old", ("transformers==1.0", "datasets==1.0"))
NEW = Environment("new", ("transformers==2.0", "datasets==2.0"))
MIXED = Environment("mixed", ("transformers==1.0", "datasets==2.0"))


def folder_of(interpreter: Path) -> Path:
    return interpreter.parent.parent


def said_by(interpreter: Path, code: str, **variables: str) -> str:
    done = subprocess.run(
        [interpreter, "-c", code], env=isolated() | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_an_environment_is_made_once_and_again_without_its_marker(index: Path, tmp_path: Path) -> None:
    """It has the versions asked for and the pinned rest; a second call only finds it; an unfinished one is remade."""
    interpreter = make_environment(OLD, tmp_path)
    code = "import transformers, datasets, torch, huggingface_hub as hub, rich; print(*[m.__version__ for m in {}])"
    versions = said_by(interpreter, code.format("(transformers, datasets, torch, hub, rich)")).split()
    held = dict(pin.split("==") for pin in catalogue().held)
    assert versions == ["1.0", "1.0", "2.13.0", "0.5", held["rich"]]
    assert (tmp_path / ".gitignore").read_text() == "*\n"
    marker = folder_of(interpreter) / "complete.json"
    assert json.loads(marker.read_text())["packages"] == list(OLD.packages)

    left = folder_of(interpreter) / "left"
    left.touch()
    assert make_environment(OLD, tmp_path) == interpreter
    assert left.exists()
    marker.unlink()
    assert make_environment(OLD, tmp_path) == interpreter
    assert marker.exists()
    assert not left.exists()


def test_a_failed_installation_says_why_in_one_line(index: Path, tmp_path: Path) -> None:
    """What cannot go together is named, with the reason, in the error; the log stays, the half environment goes."""
    with pytest.raises(Unmade) as caught:
        make_environment(MIXED, tmp_path)
    problem = str(caught.value)
    assert "Cannot install datasets==2.0 and transformers==1.0" in problem
    assert "transformers 1.0 depends on huggingface_hub<1; datasets 2.0 depends on huggingface_hub>=1" in problem
    assert "\n" not in problem
    assert "Cannot install" in caught.value.log.read_text()
    assert not list(tmp_path.glob(f"{MIXED.name}-*/"))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("http://user:se/cret77@127.0.0.1:1/simple", "what follows the colon is not a port"),
        ("http://user:secret77@[::1/simple", "its brackets do not match"),
        ("htp:/user:secret77@127.0.0.1/simple", "it does not begin with https://"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_malformed_index_is_a_row_without_its_password(
    value: str, problem: str, in_file: bool, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row names the variable and what is wrong; no file of the run, nor of the cache, holds the password."""
    monkeypatch.setattr(make, "run_child", venv_without_pip)
    monkeypatch.delenv("PIP_NO_INDEX")
    if in_file:
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {value}\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    else:
        monkeypatch.setenv("PIP_INDEX_URL", value)
    (outcome,) = run_matrix([OLD], tmp_path / "runs", cache=tmp_path / "cache")
    where = " (from pip's configuration file)" if in_file else ""
    assert outcome.problem.startswith(f"PIP_INDEX_URL{where} is not a valid address: {problem}")
    assert "PIP_INDEX_URL" in Path(outcome.log).read_text()
    write_page(drift_document(Drift([outcome], golden_directory())), tmp_path / "runs" / "report.html")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "pip.conf"]
    assert {"report.html", "matrix.json", "old.log"} <= {path.name for path in files}
    assert [path for path in files if b"cret77" in path.read_bytes()] == []


def venv_without_pip(command: Sequence[str], *_: object, **__: object) -> int:
    """Stand for `python -m venv`: pip's configuration is read with the Python of the tests, which has pip."""
    assert "install" not in command, "an address that is malformed never reaches the installation"
    python = Path(command[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return 0


def test_the_output_of_a_child_is_cleaned_before_it_is_written(tmp_path: Path) -> None:
    """Each line reaches the disk without the secrets of the variables, in the command, in the output and in errors."""
    code = (
        "import os, sys, pathlib; print('index', os.environ['PIP_INDEX_URL'], flush=True)\n"
        "os.write(2, b'\\xff hunter22 https://a:other@b/\\n'); os.write(1, b'no end of line hunter22')"
    )
    log = tmp_path / "log"
    env = {**os.environ, "PIP_INDEX_URL": "https://user:hunter22@example.org/simple"}
    command = [sys.executable, "-c", code, "http://user:hunter22@x/"]
    assert run_child(command, log, env=env, timeout=60, stop=threading.Event()) == 0
    written = log.read_bytes()
    assert b"hunter22" not in written
    assert b"index https://***@example.org/simple\n" in written
    assert b"\xff *** https://***@b/\nno end of line ***" in written


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """Neither a missing folder nor a full disk passes for an output that was empty."""
    stop = threading.Event()
    with pytest.raises(FileNotFoundError):
        run_child([sys.executable, "-c", ""], tmp_path / "no" / "log", env=os.environ, timeout=60, stop=stop)
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="No space left"):
            run_child([sys.executable, "-c", "print(1)"], Path("/dev/full"), env=os.environ, timeout=60, stop=stop)


def test_an_extra_that_does_not_exist_is_no_environment(index: Path, tmp_path: Path) -> None:
    """Pip only warns about it; what was asked for and is not there must not be measured."""
    asked = Environment("extra", ("transformers[nothing]==1.0", "datasets==1.0"))
    with pytest.raises(Unmade, match=r"transformers 1\.0 does not provide the extra 'nothing'"):
        make_environment(asked, tmp_path)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "WARNING: x\nERROR: Could not find a version that satisfies the requirement transformers==9.9 (from ...)\n"
            "ERROR: No matching distribution found for transformers==9.9\n",
            "No matching distribution found for transformers==9.9",
        ),
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: No matching distribution found for x\n",
            "No matching distribution found for x (the package index could not be reached)",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n\nWARNING: pip\n",
            "Could not install packages due to an OSError: [Errno 28] No space left on device",
        ),
        (
            "ERROR: Cannot install a==1 because these package versions have conflicting dependencies.\n\n"
            "The conflict is caused by:\n    The user requested a==1\n    b 2 depends on a<1\n"
            "    The user requested (constraint) a==1\n\nERROR: ResolutionImpossible: for help visit https://x\n",
            "Cannot install a==1 because these package versions have conflicting dependencies: "
            "b 2 depends on a<1; The user requested (constraint) a==1",
        ),
        (
            "$ python -m venv\nThe virtual environment was not created successfully because ensurepip is not\n"
            "available.  On Debian/Ubuntu systems, you need to install\n",
            "The virtual environment was not created successfully because ensurepip is not",
        ),
        (
            "ERROR: Exception:\nTraceback (most recent call last):\n  File x\nValueError: Port could not be cast\n",
            "pip crashed: ValueError: Port could not be cast",
        ),
        (
            "  error: subprocess-exited-with-error\n\n  × Building wheel for x did not run successfully.\n"
            "  │ exit code: 1\n  ╰─> [2 lines of output]\n      boom\n\n  note: This error originates from it\n",
            "Building wheel for x did not run successfully.",
        ),
        (
            "WARNING: 401 Error, Credentials not correct for https://x\nERROR: No matching distribution found for x\n",
            "No matching distribution found for x (the package index refused the credentials)",
        ),
        ("$ python\n/x/python: No module named venv\n", "/x/python: No module named venv"),
        ("$ python\n", "no output"),
    ],
)
def test_the_reason_is_the_line_that_says_most(output: str, said: str) -> None:
    """A summary of pip comes before its hints and its last line."""
    assert reason(output) == said


def test_the_fingerprint_tells_environments_apart() -> None:
    """The name does not count, but the versions and the pins do."""
    assert fingerprint(OLD) == fingerprint(Environment("other", OLD.requirements))
    assert len({fingerprint(e) for e in (OLD, MIXED, Environment("old", OLD.requirements, ("numpy==1.26.4",)))}) == 3


def test_a_lock_that_another_holds_is_waited_for_until_stopped(tmp_path: Path) -> None:
    """Two processes do not make one environment at the same time; who waits can be stopped."""
    stop = threading.Event()
    with FileLock(tmp_path / f"old-{fingerprint(OLD)}.lock"):
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(Stopped):  # and not after the lock: until here the other one holds it
            make_environment(OLD, tmp_path, stop=stop)


def test_pip_keeps_its_index_and_loses_what_changes_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where from is the user's; a constraint of the surrounding tox, or its ban on bytecode, is not passed on."""
    for name in ("PIP_CONSTRAINT", "PIP_TARGET", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org")
    variables = isolated()
    assert variables["PIP_INDEX_URL"] == "https://example.org"
    assert variables["PYTHONNOUSERSITE"] == "1"
    assert not {"PIP_CONSTRAINT", "PIP_TARGET", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"} & set(variables)


@pytest.mark.parametrize("links", [True, False])
def test_mlmrepro_comes_along_alone(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code folder gives this mlmrepro and none of the packages beside it, with links and without."""
    if not links:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(1, "no links here")

        monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = code_folder(tmp_path)
    assert code_folder(tmp_path) == folder
    assert [path.name for path in folder.iterdir() if path.suffix != ".dist-info"] == ["mlmrepro"]
    code = "import importlib.util, mlmrepro; print(mlmrepro.__file__, importlib.util.find_spec('typer'))"
    done = subprocess.run(
        [sys.executable, "-S", "-B", "-c", code],
        env=isolated() | {"PYTHONPATH": str(folder)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(folder / "mlmrepro" / "__init__.py"), "None"]
    assert os.path.realpath(folder / "mlmrepro") == os.path.realpath(Path(mlmrepro.__file__).parent) or not links


def test_the_content_hash_sees_every_file(tmp_path: Path) -> None:
    """Another content, or another name, is another hash; bytecode is none."""
    (tmp_path / "a").write_text("1")
    hashes = [content_hash(tmp_path)]
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert content_hash(tmp_path) == hashes[0]
    (tmp_path / "a").write_text("2")
    hashes.append(content_hash(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    hashes.append(content_hash(tmp_path))
    assert len(set(hashes)) == 3


def test_environments_share_the_files_of_equal_packages(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of one version are one file on the disk; pip replaces it in one environment and not in the other."""
    wheels = shutil.copytree(index, tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    for pin in {*OLD.exact, *NEW.exact}:
        name, _, version = pin.partition("==")
        if not list(wheels.glob(f"{name.replace('-', '_')}-{version}-*")):
            make_wheel(wheels, name, version)
    first, second = (make_environment(each, tmp_path / "cache") for each in (OLD, NEW))
    old, new = (next(folder_of(each).glob("lib/python*/site-packages")) for each in (first, second))
    assert (old / "torch.py").stat().st_ino == (new / "torch.py").stat().st_ino
    assert (old / "transformers.py").read_text() != (new / "transformers.py").read_text()

    make_wheel(wheels, "rich", "99.0")
    tool = installer(tmp_path / "cache", find_python(""))
    run_pip(tool, ["--python", str(first), "install", "--no-deps", "rich==99.0"], tmp_path / "pip.log")
    said = (tmp_path / "cache" / f"packages-{find_python('').version}.log").read_text()
    assert "compileall" not in said, "the second environment added no heavy package: nothing had to be compiled"
    assert "99.0" in (old / "rich.py").read_text()
    assert "99.0" not in (new / "rich.py").read_text()


def test_a_package_is_taken_out_with_its_scripts_and_bytecode(tmp_path: Path) -> None:
    """Of a folder with two packages only the files of the named one move, the script gets the new interpreter."""
    installed, home, environment = tmp_path / "installed", tmp_path / "one-1.0", tmp_path / "environment"
    for path, text in {
        "one/__init__.py": "",
        "one/__pycache__/__init__.cpython-311.pyc": "bytecode",
        "two.py": "",
        "bin/one": "#!/old/python\nprint('one')\n",
        "one-1.0.dist-info/RECORD": "one/__init__.py,,\n../../bin/one,,\none-1.0.dist-info/RECORD,,\n",
        "two-2.0.dist-info/RECORD": "two.py,,\n",
    }.items():
        (installed / path).parent.mkdir(parents=True, exist_ok=True)
        (installed / path).write_text(text)
    make._take_out("one==1.0", installed, home)
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()) == [
        "bin/one",
        "one-1.0.dist-info/RECORD",
        "one/__init__.py",
        "one/__pycache__/__init__.cpython-311.pyc",
    ]
    assert (installed / "two.py").exists()

    for folder in ("bin", "lib/python3.11/site-packages"):
        (environment / folder).mkdir(parents=True)
    make._link_into(home, environment)
    assert (environment / "bin" / "one").read_text() == f"#!{environment}/bin/python\nprint('one')\n"
    assert os.access(environment / "bin" / "one", os.X_OK)
    assert (environment / "lib/python3.11/site-packages/one/__init__.py").stat().st_nlink == 2
