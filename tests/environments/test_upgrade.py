"""An upgrade: the environments of both sides and of mixtures, what goes together, and the search in real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.version import Version

from mlmrepro.environments import upgrade
from mlmrepro.environments.attribute import attribute
from mlmrepro.environments.locks import read_lock
from mlmrepro.environments.pinned import Lock
from mlmrepro.environments.spec import catalogue
from mlmrepro.environments.upgrade import Installed, Upgrade, environment_of, lock_of, required_with
from mlmrepro.errors import UserError

from ..report.records import golden, record
from .conftest import make_wheel


def lock(**versions: str) -> Lock:
    return Lock("my.lock", {name.replace("_", "-"): Version(version) for name, version in versions.items()})


def test_the_environment_of_a_lock() -> None:
    """What a record needs is installed at the lock's versions, and the lock constrains the rest; others are ours."""
    environment, notes = environment_of(
        "from", lock(transformers="4.48.0", datasets="3.2.0", numpy="2.1.0", idna="3.7")
    )
    assert environment.requirements == ("transformers==4.48.0", "datasets==3.2.0", "numpy==2.1.0")
    assert environment.pins == ("idna==3.7",)
    assert "numpy" not in environment.packages
    assert {"torch==2.13.0", "pandas"} <= set(environment.packages)
    assert "idna==3.7" in environment.constraints
    assert not any(pin.startswith(("idna==3.2", "numpy==")) for pin in environment.constraints)
    (note,) = notes
    held = dict(pin.split("==") for pin in catalogue().held)
    assert note.startswith("my.lock lacks what a record needs; added: torch==2.13.0, ")
    assert f"pandas=={held['pandas']}" in note
    assert "numpy" not in note


def test_a_lock_without_datasets() -> None:
    """The catalogue names the datasets that belong to the nearest older transformers, and the note says so."""
    for transformers, datasets in (("4.48.0", "3.1.0"), ("4.48.3", "3.2.0"), ("4.30.0", "2.19.2")):
        environment, (note,) = environment_of("from", lock(transformers=transformers))
        assert f"datasets=={datasets}" in environment.requirements
        assert f"datasets=={datasets}" in note


def test_a_lock_without_transformers_is_bad_input(tmp_path: Path) -> None:
    """The message names the file, and the line if transformers is there without a version."""
    with pytest.raises(UserError, match=r"my\.lock: no transformers"):
        environment_of("from", lock(datasets="3.2.0"))
    (tmp_path / "r.txt").write_text("datasets==3.2.0\ntransformers @ git+https://github.com/huggingface/transformers\n")
    with pytest.raises(UserError, match=r"r\.txt:2: transformers is installed from an address"):
        environment_of("from", read_lock(tmp_path / "r.txt"))


def test_words_of_the_catalogue_are_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`oldest` has the versions of its pair and all pins; a file of this name comes first; a group is not a lock."""
    monkeypatch.chdir(tmp_path)
    oldest = lock_of("oldest")
    assert str(oldest.versions["transformers"]) == "4.41.2"
    assert str(oldest.versions["rich"]) == dict(pin.split("==") for pin in catalogue().held)["rich"]
    environment, notes = environment_of("from", oldest)
    assert notes == []
    assert sorted(environment.packages) == sorted(
        f"{name}=={oldest.versions[name]}" for name in (r.split("==")[0] for r in environment.packages)
    )
    Path("oldest").write_text("transformers==4.50.0\n")
    assert str(lock_of("oldest").versions["transformers"]) == "4.50.0"
    with pytest.raises(UserError, match="pairs cannot be read"):
        lock_of("pairs")


OLD = {
    "transformers": Installed("4.0", ("tokenizers<0.20", "hub<1.0", "numpy")),
    "tokenizers": Installed("0.19", ()),
    "hub": Installed("0.30", ()),
    "numpy": Installed("1.26", ()),
    "datasets": Installed("3.0", ("numpy<3", "dill<0.4; python_version >= '3'", "gone")),
    "dill": Installed("0.3", ()),
    "gone": Installed("1.0", ("rich<14",)),
    "rich": Installed("13", ()),
}
NEW = {
    "transformers": Installed("5.0", ("tokenizers>=0.22", "hub>=1.0", "numpy>=1.20; extra == 'never'", "slim")),
    "tokenizers": Installed("0.22", ()),
    "hub": Installed("1.2", ()),
    "numpy": Installed("2.4", ()),
    "datasets": Installed("4.0", ("numpy<3", "dill>=0.3")),
    "dill": Installed("0.4", ()),
    "slim": Installed("1.0", ("rich>=14",)),
    "rich": Installed("14", ()),
}


def test_what_must_be_swapped_together() -> None:
    """A new version that rejects an old one, an old one that rejects a new one, also through one-sided packages."""
    needed = {name: required_with(name, OLD, NEW) for name in OLD if name != "gone"}
    assert needed == {
        "transformers": {"tokenizers", "hub", "rich"},  # rich by way of slim, which only the new side has
        "tokenizers": {"transformers"},  # the old one wants less than 0.20
        "hub": {"transformers"},
        "numpy": set(),
        "datasets": set(),
        "dill": {"datasets"},
        "rich": {"datasets"},  # gone, which the old datasets bring, wants less than 14
    }


def test_mixtures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mixture pins every package: swapped ones to the new side, one-sided ones to the side that has them."""
    direct = {need.split("==")[0]: Installed("1.0") for need in catalogue().needs}
    sides = ({**direct, **OLD}, {**direct, **NEW})
    monkeypatch.setattr(Upgrade, "installed", sides)
    locks = lock(transformers="4.0", datasets="3.0", unused="7.0"), lock(transformers="5.0", datasets="4.0")
    made = Upgrade(locks, tmp_path, goldens=tmp_path)
    assert list(made.packages)[:4] == ["transformers", "datasets", "tokenizers", "numpy"]
    assert made.packages["hub"] == ("0.30", "1.2")
    mixture = made.mixture(frozenset({"transformers", "tokenizers", "hub", "rich"}))
    assert mixture.requirements[:2] == ("transformers==5.0", "datasets==3.0")
    assert "numpy==1.26" in mixture.requirements
    assert {"tokenizers==0.22", "hub==1.2", "slim==1.0", "gone==1.0", "dill==0.3", "unused==7.0"} <= set(mixture.pins)
    assert mixture.name == "without-datasets-numpy-dill"
    assert made.mixture(frozenset({"numpy"})).name == "only-numpy"


def test_names_of_mixtures_are_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two large mixtures of one size have two names, and each the same one in every run."""
    monkeypatch.setattr(Upgrade, "packages", {f"p{number}": ("1", "2") for number in range(12)})
    made = Upgrade((lock(transformers="4.0"), lock(transformers="5.0")), tmp_path, goldens=tmp_path)
    first, second = (made._name(frozenset(f"p{number}" for number in range(start, start + 5))) for start in (0, 1))
    assert first != second
    assert first == "mixture-of-5-" + first[-6:]


# Stands for `mlmrepro record`: a value depends on the versions that are installed.
RECORDER = """
import json, sys
import pandas, rich
content = json.loads({template!r})
if pandas.__version__ == "9.2" and rich.__version__ == "9.2":
    content["stages"]["dataset"]["train_rows"]["value"] = 31
open(sys.argv[sys.argv.index("--output") + 1], "w").write(json.dumps(content))
"""


def test_a_search_in_real_environments(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments are made from locks and mixtures, the planted pair is found, and a second run takes no record."""
    goldens = golden(tmp_path / "goldens", record())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(upgrade, "RECORD", ("-c", RECORDER.format(template=json.dumps(record().to_dict()))))
    for side in "12":
        for name in ("pandas", "rich"):
            make_wheel(index, name, f"9.{side}", ["scipy>1; python_version > '3'"])
        Path(f"{side}.txt").write_text(f"transformers==1.0\ndatasets==1.0\npandas==9.{side}\nrich==9.{side}\n")
    locks = read_lock("1.txt"), read_lock("2.txt")
    made = Upgrade(locks, tmp_path / "runs", goldens=goldens)
    wanted = made.wanted(made.compare(made.take()), only_failing=True)
    assert wanted == ["dataset.train_rows"]
    assert made.packages == {"pandas": ("9.1", "9.2"), "rich": ("9.1", "9.2")}
    assert made.installed[0]["pandas"] == Installed("9.1", ("scipy>1; python_version > '3'",))
    assert made.installed[1]["huggingface-hub"] == Installed("0.5")
    assert "pip" not in made.installed[0]
    found = attribute(tuple(made.packages), made.measure, needs=made.needs, wanted=wanted)
    (only,) = found.explained
    assert [cause.packages for cause in only.causes] == [("pandas", "rich")]
    assert only.complete
    assert found.failed == {}
    records = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.log")}
    assert records.keys() == {"from.log", "to.log", "only-pandas.log", "only-rich.log"}
    again = Upgrade(locks, tmp_path / "runs", goldens=goldens)
    again.take()
    assert {swapped: again.measure(swapped) for swapped in found.measured} == found.measured
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.log")} == records
