"""The newest release of a package, with pip and an index of hand-made wheels, and without any index."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from packaging.version import Version

from mlmrepro import cli
from mlmrepro.environments import releases as module
from mlmrepro.environments.releases import Release, with_newest
from mlmrepro.environments.spec import parse_environments
from mlmrepro.errors import UserError

from .conftest import make_wheel

LISTED = [
    Release(Version("1.9")),
    Release(Version("1.10")),
    Release(Version("1.11"), yanked=True),
    Release(Version("2.0rc1")),
    Release(Version("2.0rc2"), yanked=True),
    Release(Version("2.1.dev0")),
]


def test_the_newest_release_is_neither_yanked_nor_a_pre_release_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`latest` and `pre` are replaced wherever they stand, as numbers and not as letters; nothing else is."""
    monkeypatch.setattr(module, "releases", lambda package, *_: (LISTED, "as of yesterday"))
    text = "newest transformers==latest,huggingface_hub == pre torch==2.13.0"
    found = "newest transformers==1.10,huggingface_hub==2.0rc1 torch==2.13.0"
    notes = ["transformers: as of yesterday", "huggingface-hub: as of yesterday"]
    assert with_newest(text) == (found, notes)
    for other in ("newest pairs", "datasets==2.0", "datasets==pre1", "datasets>=latest"):
        assert with_newest(other) == (other, [])
    (environment,) = parse_environments([with_newest("transformers==pre datasets==latest")[0]])
    assert environment.name == "t2.0rc1-d1.10"
    monkeypatch.setattr(module, "releases", lambda *_: (LISTED[3:], ""))
    with pytest.raises(UserError, match=r"datasets==latest: there is no such release"):
        with_newest("datasets==latest")


def test_pip_lists_the_releases_and_without_an_index_the_list_is_kept(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pre-releases are among them; where no index answers, the last list is used with a note, or it is bad input."""
    wheels = shutil.copytree(index, tmp_path / "wheels")
    make_wheel(wheels, "transformers", "2.1rc1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.chdir(tmp_path)
    assert with_newest("transformers==latest")[0] == "transformers==2.0"
    assert with_newest("transformers==pre")[0] == "transformers==2.1rc1"

    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # where nothing listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    found, (note,) = with_newest("transformers==latest")
    assert found == "transformers==2.0"
    assert "the index did not answer, so later releases may be missing" in note
    with pytest.raises(SystemExit) as exit_:
        cli.main(["matrix", "--envs", "transformers==latest datasets==latest"])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "the releases of datasets cannot be listed" in said
    assert "check the package's name, the network and pip's settings" in said
    assert not Path("mlmrepro-runs").exists()
