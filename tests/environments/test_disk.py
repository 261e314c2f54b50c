"""Environments on the disk: what they take, which are removed and which never, and a disk that is full."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock

from mlmrepro import cli
from mlmrepro.cli.environments import within_bound
from mlmrepro.environments import make
from mlmrepro.environments.disk import Disk
from mlmrepro.environments.make import make_environment
from mlmrepro.environments.matrix import run_matrix
from mlmrepro.environments.spec import Environment
from mlmrepro.record import RunRecord

from ..waiting import until

OLD = Environment("old", ("transformers==1.0", "datasets==1.0"))
NEW = Environment("new", ("transformers==2.0", "datasets==2.0"))
CACHE = Path(".mlmrepro") / "environments"
STORE = CACHE / "packages-3.11.7"
OWN, TORCH, TRANSFORMERS = 300_000, 2_000_000, 1_000_000  # bytes
# In days since the last use; all three have torch, the last two have the same transformers.
AGES = {"a-000000000001": 30, "b-000000000002": 20, "c-000000000003": 10}


def package(name: str, size: int) -> Path:
    """Make an unpacked package in the store."""
    home = STORE / name
    (home / f"{name}.dist-info").mkdir(parents=True)
    (home / f"{name}.dist-info" / "RECORD").write_bytes(b"x" * 5000)
    (home / f"{name.partition('-')[0]}.py").write_bytes(b"x" * size)
    Path(f"{STORE}.lock").touch()
    return home


def environment(name: str, days: float, *packages: Path) -> Path:
    """Make what looks like an environment that was used so many days ago."""
    home = CACHE / name
    site = home / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    (home / "own").write_bytes(b"x" * OWN)
    for each in packages:
        for path in each.rglob("*.*"):
            if path.is_file():
                (site / path.relative_to(each)).parent.mkdir(exist_ok=True)
                os.link(path, site / path.relative_to(each))
        for path in each.glob("*/RECORD"):
            (site / path.relative_to(each)).parent.mkdir(exist_ok=True)
            os.link(path, site / path.relative_to(each))
    Path(f"{home}.lock").touch()
    (home / "pyvenv.cfg").touch()
    marker = home / "complete.json"
    marker.touch()
    os.utime(marker, (time.time() - days * 86_400,) * 2)
    return home


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three environments that share packages."""
    monkeypatch.chdir(tmp_path)
    torch, old, new = package("torch-2.13.0", TORCH), *(package(f"transformers-{v}.0", TRANSFORMERS) for v in "12")
    for (name, days), transformers in zip(AGES.items(), (old, new, new), strict=True):
        environment(name, days, torch, transformers)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["environments", *arguments])
    return int(exit_.value.code or 0)


def there() -> list[str]:
    """Return the environments and the unpacked packages that are on the disk, by their first letter or name."""
    return sorted(path.name.partition("-0")[0] for path in [*CACHE.glob("?-0*/"), *STORE.glob("*/")])


def test_list_says_what_each_holds_and_counts_shared_files_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last used comes first; the total is less than the sum, because three environments share one torch."""
    assert run("list", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    made = content["environments"]
    assert [Path(each["home"]).name for each in made] == list(reversed(AGES))
    assert made[0]["versions"] == {"torch": "2.13.0", "transformers": "2.0"}
    for each in made:
        assert OWN <= each["own"] < OWN + 100_000
        assert TORCH + TRANSFORMERS <= each["shared"] < TORCH + TRANSFORMERS + 100_000
        assert not each["busy"]
    least = 3 * OWN + TORCH + 2 * TRANSFORMERS
    assert least <= content["total"] < least + 300_000 < sum(each["own"] + each["shared"] for each in made)
    assert run("list") == 0
    said = capsys.readouterr().out
    assert re.search(r"3 environments on the disk: [45]\.\d MB", said)
    assert "20.0 GB, max-disk" in said
    assert "transformers 2.0" in " ".join(said.split())


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (["--keep", "3"], ["a", "b", "c", "torch-2.13.0", "transformers-1.0", "transformers-2.0"]),
        (["--keep", "1"], ["c", "torch-2.13.0", "transformers-2.0"]),
        (["--keep", "0"], []),
        # Without the first, its transformers goes too; without the second, only what it does not share.
        (["--max-size", "4.5MB"], ["b", "c", "torch-2.13.0", "transformers-2.0"]),
        (["--max-size", "3.5MB"], ["c", "torch-2.13.0", "transformers-2.0"]),
        (["--max-size", "1MB"], []),
        ([], ["a", "b", "c", "torch-2.13.0", "transformers-1.0", "transformers-2.0"]),
    ],
)
def test_prune_removes_the_longest_unused_and_then_what_nothing_links(
    rule: list[str], left: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each rule leaves what it says; a dry run removes nothing and says the same; what is freed is what is gone."""
    everything, before = there(), Disk().total
    assert run("prune", *rule, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert there() == everything
    assert run("prune", *rule, "--yes", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert there() == left
    assert done == planned | {"removed": True}
    assert (done["left"], done["freed"]) == (Disk().total, before - Disk().total)
    assert bool(done["freed"]) == (left != everything)


def test_the_setting_is_the_default_and_a_wrong_one_is_bad_input(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`max-disk` in pyproject.toml is what prune goes down to; a size or two rules that make no sense end with 2."""
    Path("pyproject.toml").write_text('[tool.mlmrepro]\nmax-disk = "4.5 MB"\n')
    assert run("prune", "--yes") == 0
    assert there() == ["b", "c", "torch-2.13.0", "transformers-2.0"]
    assert "1 environment removed: 1." in capsys.readouterr().out
    for value in ('"much"', "20", '"-1GB"', '"GB"'):
        Path("pyproject.toml").write_text(f"[tool.mlmrepro]\nmax-disk = {value}\n")
        assert run("prune", "--yes") == 2
        assert "tool.mlmrepro.max-disk is " in capsys.readouterr().err
    assert run("prune", "--max-size", "lots") == 2
    assert "--max-size is 'lots', not a size. Remedy: write a number with MB, GB or TB" in capsys.readouterr().err
    assert run("prune", "--max-size", "1GB", "--keep", "0") == 2
    assert "--keep and --max-size are given" in capsys.readouterr().err
    assert len(there()) == 4


def test_prune_asks_first(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --yes it says what it would free, and removes nothing unless the answer is yes."""
    everything = there()
    for answer in ("n\n", ""):  # the second: nobody there to answer
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert run("prune", "--keep", "0") == 1
        assert there() == everything
        assert "3 environments would be removed: " in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run("prune", "--keep", "0") == 0
    assert there() == []


def test_one_in_use_is_never_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as a process uses it, even one that says nothing more; nor while it is being made."""
    home = CACHE.absolute() / "a-000000000001"
    code = f"from pathlib import Path; from mlmrepro.environments import make; make._use(Path({str(home)!r})); "
    code += "print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        planned = [each.home for each in Disk().chosen(size=0)]
        assert home not in planned
        assert [each.busy for each in Disk().environments] == [True, False, False]
        assert run("prune", "--keep", "0", "--yes") == 0
        assert there() == ["a", "torch-2.13.0", "transformers-1.0"]
        assert run("list") == 0
        assert "in use" in capsys.readouterr().out
        other.send_signal(signal.SIGKILL)
    with FileLock(f"{home}.lock"):
        assert run("prune", "--keep", "0", "--yes") == 0
        assert "a" in there()
    assert run("prune", "--keep", "0", "--yes") == 0
    assert there() == []


def test_it_may_come_into_use_after_the_question(folder: Path) -> None:
    """What was idle when it was chosen, and is in use when it is to be removed, stays."""
    disk = Disk()
    chosen = disk.chosen()
    make._use(CACHE.absolute() / "b-000000000002")
    try:
        done = disk.prune(chosen)
    finally:
        make.release()
    assert [home.name[0] for home in done.environments] == ["a", "c"]
    assert there() == ["b", "torch-2.13.0", "transformers-2.0"]


def test_what_mlmrepro_did_not_make_stays(folder: Path) -> None:
    """Only a virtual environment with a digest in its name and its lock goes, and nothing behind a symbolic link."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "pyvenv.cfg").touch()
    (outside / "precious").write_bytes(b"x" * 9_000_000)
    (CACHE / "link-00000000000a").symlink_to(outside)
    (CACHE / "link-00000000000a.lock").touch()
    (CACHE / "a-000000000001" / "link").symlink_to(outside)
    (STORE / "linked-1.0").symlink_to(outside)
    for name, files in {
        "code-00000000000b": ["../code-00000000000b.lock", "mlmrepro"],
        "unlocked-00000000000c": ["pyvenv.cfg", "complete.json"],
        "my-project": ["pyvenv.cfg", "../my-project.lock", "complete.json"],
        "packages-mine": ["complete.json"],
        "packages-3.11.7/not-a-package": [],
    }.items():
        (CACHE / name).mkdir()
        for each in files:
            (CACHE / name / each).touch()
    before = there_folders()
    assert Disk().total < 9_000_000
    assert run("prune", "--keep", "0", "--yes") == 0
    assert sorted(path.name for path in outside.iterdir()) == ["precious", "pyvenv.cfg"]
    assert before - there_folders() == {*AGES, "torch-2.13.0", "transformers-1.0", "transformers-2.0"}


def there_folders() -> set[str]:
    return {path.name for path in [*CACHE.iterdir(), *STORE.iterdir()] if path.is_dir()}


def test_what_a_killed_run_left_goes_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An environment that was not finished, or only half removed, counts as the longest unused."""
    (CACHE / "c-000000000003" / "complete.json").unlink()
    assert run("list") == 0
    assert "not finished" in " ".join(capsys.readouterr().out.split())
    assert run("prune", "--keep", "2", "--yes") == 0
    assert there() == ["a", "b", "torch-2.13.0", "transformers-1.0", "transformers-2.0"]


def test_the_commands_that_make_environments_keep_the_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a run that made one, the longest unused go, with a line that says so; after any other run, none."""
    Path("pyproject.toml").write_text('[tool.mlmrepro]\nmax-disk = "4.5MB"\n')

    @within_bound()
    def command() -> None:
        make._use(CACHE.absolute() / "a-000000000001")  # its own use does not protect it for ever
        raise typer.Exit(1)

    everything = there()
    with pytest.raises(typer.Exit):
        command()
    assert there() == everything
    monkeypatch.setattr(make, "_made", [CACHE / "a-000000000001"])
    with pytest.raises(typer.Exit) as exit_:
        command()
    assert exit_.value.exit_code == 1
    assert there() == ["b", "c", "torch-2.13.0", "transformers-2.0"]
    assert "max-disk: 1 environment removed: 1." in capsys.readouterr().err
    wrapped = {each.name for each in cli.app.registered_commands if hasattr(each.callback, "__wrapped__")}
    assert wrapped == {"matrix", "gate", "attribute", "bisect"}


def test_the_help_of_a_bounded_command_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """The wrapper keeps the options and the text; the name of the settings' table is not read as a style."""
    with pytest.raises(SystemExit):
        cli.main(["matrix", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Make an environment for each pair of versions" in said
    assert "--jobs" in said
    assert "goldens in the table tool.mlmrepro of pyproject.toml" in said


def full(log_says: bool) -> Callable[..., int]:
    """Return what stands for a child that finds the disk full: pip, which says so, or writing its log."""

    def run_child(command: Sequence[str], log: Path, **_: Any) -> int:
        if "venv" in command:
            home = Path(command[-1])
            (home / "bin").mkdir(parents=True)
            (home / "bin" / "python").symlink_to(sys.executable)
            (home / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
            return 0
        if log_says:
            log.write_text(f"ERROR: Could not install packages due to an OSError: [Errno 28] {os.strerror(28)}\n")
            return 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return run_child


@pytest.mark.parametrize("log_says", [True, False])
def test_a_full_disk_ends_the_run_and_leaves_no_half_environment(
    log_says: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names the environment and the remedy; nothing else is deleted."""
    monkeypatch.setattr(make, "run_child", full(log_says))
    before = there()
    with pytest.raises(SystemExit) as exit_:
        cli.main(["matrix", "--envs", "transformers==1.0 datasets==1.0"])
    assert exit_.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert f"the disk is full: {CACHE.absolute() / 't1.0-d1.0'}-" in line
    assert "cannot be made. Remedy: free some space, for example with mlmrepro environments prune." in line
    assert there() == before
    assert list(CACHE.glob("t1.0-d1.0-*/")) == []
    assert list(STORE.parent.glob("packages-*/.new")) == []


RECORDER = "import shutil, sys; shutil.copy('template.json', sys.argv[sys.argv.index('--output') + 1])"


def test_what_is_there_answers_without_a_network(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made environment is used, a kept record needs none, and what must be made is a row that says why it is not."""
    monkeypatch.chdir(tmp_path)
    interpreter = make_environment(OLD)
    assert [each.busy for each in Disk().environments] == [True], "this process uses it"
    assert make.release()
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # where nothing listens
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert make_environment(OLD) == interpreter
    assert not make.release()

    RunRecord({"packages": {}}, {}, asked={}).write(tmp_path / "template.json")

    def matrix(*environments: Environment) -> list[str]:
        outcomes = run_matrix(environments, tmp_path / "runs", command=("-c", RECORDER), keep=True)
        make.release()
        return [outcome.problem for outcome in outcomes]

    assert matrix(OLD) == [""]
    until(lambda: not any(each.busy for each in Disk().environments))
    assert len(Disk().prune(Disk().chosen(keep=0)).environments) == 1
    kept, unmade = matrix(OLD, NEW)
    assert kept == ""
    assert "No matching distribution found for " in unmade
    assert unmade.endswith(" (the package index could not be reached)")
