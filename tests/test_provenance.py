"""What is made says its version, source and commit, wherever the package runs, and uncommitted changes are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mlmrepro
from mlmrepro import provenance
from mlmrepro.provenance import CHECKOUT, collect, origin_problems, source_digest

PACKAGE = Path(mlmrepro.__file__).parent
NEEDED = ("__init__.py", "credentials.py", "errors.py", "provenance.py")


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *settings, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that holds what provenance needs of this package, and a golden."""
    root = tmp_path / "checkout"
    (root / "mlmrepro").mkdir(parents=True)
    (root / "golden").mkdir()
    for name in NEEDED:
        shutil.copy(PACKAGE / name, root / "mlmrepro")
    (root / "golden" / "loss.json").write_text("{}")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    return root


def asked(folder: Path, named: Path | None = None) -> tuple[int, str]:
    """Run the package that lies in a folder; return the exit code and all that it printed."""
    environment = {name: value for name, value in os.environ.items() if name != CHECKOUT}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {CHECKOUT: str(named)} if named else {}
    command = [sys.executable, "-m", "mlmrepro.provenance"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_clean_checkout_is_named(checkout: Path) -> None:
    """Version, commit and digest of the source; goldens that are just being written are no change."""
    (checkout / "golden" / "loss.json").write_text("new")
    (checkout / "golden" / "model.json").write_text("new")
    code, said = asked(checkout)
    commit, source = git(checkout, "rev-parse", "HEAD"), source_digest(checkout / "mlmrepro")
    assert (code, said) == (0, f"mlmrepro {mlmrepro.__version__}, commit {commit}, source {source[:12]}\n")


@pytest.mark.parametrize("file", ["mlmrepro/errors.py", "mlmrepro/new.py", "tests/test_new.py", "tox.ini"])
def test_uncommitted_changes_are_refused(checkout: Path, file: str) -> None:
    """A change, or a new file, in the package, its tests or its settings: exit code 2, and the file is named."""
    (checkout / file).parent.mkdir(exist_ok=True)
    with (checkout / file).open("a") as stream:
        stream.write("\n# a change\n")
    code, said = asked(checkout)
    assert code == 2
    assert "uncommitted changes" in said
    assert file.split("/")[0] in said
    assert said.count("\n") == 1


def test_an_installed_package_has_the_commit_of_the_checkout_that_it_was_built_from(
    checkout: Path, tmp_path: Path
) -> None:
    """Only where its source is that of the named checkout: a wheel that was built before a commit has none."""
    shutil.copytree(checkout / "mlmrepro", tmp_path / "site" / "mlmrepro")
    code, said = asked(tmp_path / "site")
    assert code == 2
    assert "commit of this mlmrepro is unknown" in said
    code, said = asked(tmp_path / "site", checkout)
    assert code == 0
    assert git(checkout, "rev-parse", "HEAD") in said
    with (checkout / "mlmrepro" / "errors.py").open("a") as stream:
        stream.write("LATER = 1\n")
    git(checkout, "commit", "-qam", "later")
    code, said = asked(tmp_path / "site", checkout)
    assert code == 2
    assert "was built from another state" in said


def test_without_git_there_are_still_version_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel in a machine without git has no commit; version and digest of the source stay known."""
    monkeypatch.setattr(provenance, "_commit", lambda: None)
    found = collect()
    assert found["commit"] is None
    assert found["packages"]["mlmrepro"] == mlmrepro.__version__ == metadata.version("mlmrepro")
    assert found["source"] == source_digest()
    assert origin_problems(found) == ["it does not name the commit that made it"]


def test_a_digest_is_of_names_and_content(tmp_path: Path) -> None:
    """A renamed, changed, moved or added file changes it; bytecode and data do not."""
    (tmp_path / "rooms").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.toml").write_text("x = 1\n")
    seen = [source_digest(tmp_path)]
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.pyc").write_text("")
    assert source_digest(tmp_path) == seen[0]
    for change in (
        lambda: (tmp_path / "a.py").write_text("x = 2\n"),
        lambda: (tmp_path / "a.py").rename(tmp_path / "c.py"),
        lambda: (tmp_path / "c.py").rename(tmp_path / "rooms" / "c.py"),
        lambda: (tmp_path / "d.py").write_text(""),
        lambda: (tmp_path / "b.toml").write_text("x = 2\n"),
    ):
        change()
        seen.append(source_digest(tmp_path))
    assert len(set(seen)) == 6
