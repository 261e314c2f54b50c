"""What a user may ask for, and what the catalogue holds."""

from __future__ import annotations

import itertools
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mlmrepro.environments.spec import HERE, PAIR, Environment, catalogue, find_python, parse_environments
from mlmrepro.errors import UserError

pytestmark = pytest.mark.quick

RUNNING = "{}.{}".format(*sys.version_info[:2])
OTHER = "3.12" if RUNNING != "3.12" else "3.13"


def names(*texts: str) -> list[str]:
    return [environment.name for environment in parse_environments(texts)]


def stand_in(folder: Path, version: str, body: str) -> None:
    """Put a program on PATH that answers as an interpreter would."""
    path = folder / f"python{version}"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture(autouse=True)
def forget_interpreters() -> None:
    find_python.cache_clear()


def test_words_stand_for_the_catalogue() -> None:
    """`oldest` and `newest` are the ends of `pairs`; `all` adds the variations; a name is itself."""
    pairs = names("pairs")
    assert names("oldest") == ["t4.41.2-d2.19.2"] == pairs[:1]
    assert names("newest") == ["t5.23.0-d5.2.0"] == pairs[-1:]
    assert len(pairs) == 10
    assert names("all")[:10] == pairs
    assert set(names("all")[10:]) == {environment.name for environment in catalogue().variations}
    assert names("t5.0.0-d4.5.0") == ["t5.0.0-d4.5.0"]


def test_environments_come_once_and_along_the_upgrade_path() -> None:
    """The order does not depend on the order of the words, and a new pair stands between its neighbours."""
    own = "transformers==4.50.0,datasets==3.5.0"
    assert names("newest", own, "oldest", "newest oldest") == ["t4.41.2-d2.19.2", "t4.50.0-d3.5.0", "t5.23.0-d5.2.0"]


def test_exact_requirements_make_an_environment() -> None:
    """Commas and spaces part alike; other packages go into the name and before the pins."""
    assert parse_environments(["transformers==4.50.0 datasets==3.5.0"]) == [
        Environment("t4.50.0-d3.5.0", ("transformers==4.50.0", "datasets==3.5.0"))
    ]
    (environment,) = parse_environments(["datasets==3.5.0, Torch==2.6.0, transformers==4.50.0, PyYAML==6.0.2"])
    assert environment.name == "t4.50.0-d3.5.0-pyyaml6.0.2-torch2.6.0"
    assert environment.packages[:4] == ("transformers==4.50.0", "datasets==3.5.0", "pyyaml==6.0.2", "torch==2.6.0")
    assert not [text for text in (*environment.packages[4:], *environment.constraints) if "torch" in text.lower()]
    assert not [text for text in environment.constraints if text.startswith("PyYAML")]


def test_requirements_change_what_a_word_stands_for() -> None:
    """`pairs` with another torch is ten environments; a pair that the catalogue has is the catalogue's."""
    changed = parse_environments(["pairs torch==2.6.0"])
    assert [environment.name for environment in changed] == [f"{name}-torch2.6.0" for name in names("pairs")]
    assert all("torch==2.6.0" in environment.packages for environment in changed)
    assert parse_environments(["newest transformers==5.12.1 datasets==5.0.1"])[0] is catalogue().pairs[-2]


def test_a_python_is_looked_up_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another interpreter goes into the name; the running one is the default; one that does not run is refused."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"python{OTHER} is not on PATH"):
        parse_environments([f"newest python={OTHER}"])
    stand_in(tmp_path, OTHER, "echo not installed >&2; exit 127")
    with pytest.raises(UserError, match=f"python{OTHER} is on PATH but does not run: not installed"):
        parse_environments([f"newest python={OTHER}"])
    stand_in(tmp_path, OTHER, f"echo {OTHER}.7")
    (environment,) = parse_environments([f"newest,python={OTHER}"])
    assert (environment.name, environment.python) == (f"t5.23.0-d5.2.0-py{OTHER}", OTHER)
    assert find_python(OTHER).version == f"{OTHER}.7"
    assert names(f"newest python={RUNNING}") == names("newest")


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("", "no environment is named", "transformers==VERSION,datasets==VERSION"),
        (" , ", "no environment is named", "oldest, newest"),
        ("oldst", "'oldst' is no environment", "did you mean oldest"),
        ("newest t4.41.2-d2.19", "'t4.41.2-d2.19' is no environment", "t4.41.2-d2.19.2"),
        ("xyz", "'xyz' is no environment", "give a name such as t4.41.2-d2.19.2"),
        ("transformers==4.50.0", "names no datasets", "add datasets==VERSION"),
        ("transfomers==4.50.0 datasets==3.5.0", "names no transformers", "write transformers for transfomers"),
        ("transformers>=4.50.0 datasets==3.5.0", "'transformers>=4.50.0' is no exact", "write transformers==VERSION"),
        ("newest torch=2.6.0", "'torch=2.6.0' is no exact version", "write torch==VERSION"),
        ("newest torch==2.*", r"'torch==2\.\*' is no exact version", "write torch==VERSION"),
        ("newest torch==two", "'torch==two' is no exact version", "write torch==VERSION"),
        ("newest ==2", "'==2' is no exact version", "write package==VERSION"),
        ("newest torch==2.6.0 torch==2.7.0", "names torch twice", "one version"),
        ("newest python=3.9", "'python=3.9' names no Python from 3.11 on", "python=3.12"),
        ("newest python=three", "'python=three' names no Python", "python=3.12"),
        (f"python={RUNNING}", "names no transformers", "begin with newest"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(text: str, problem: str, remedy: str) -> None:
    """The error names the bad part, and what to write instead."""
    with pytest.raises(UserError, match=problem) as caught:
        parse_environments([text])
    assert remedy in caught.value.remedy


def test_the_catalogue_says_what_it_holds() -> None:
    """Names are unique, legal as file and factor names, and state the two exact versions."""
    entries = (*catalogue().pairs, *catalogue().variations)
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        versions = {r.name: str(r.specifier) for r in map(Requirement, entry.requirements)}
        assert list(versions) == list(PAIR)
        assert entry.name == "t{}-d{}".format(*(text.removeprefix("==") for text in versions.values()))
        assert re.fullmatch(r"t[0-9.]+-d[0-9.]+", entry.name)


def test_the_pairs_go_up_and_the_variations_keep_one_version() -> None:
    """Every step raises both packages; a variation shares one of its two versions with a pair."""
    path = [[entry.versions[package] for package in PAIR] for entry in catalogue().pairs]
    assert all(a < b for before, after in itertools.pairwise(path) for a, b in zip(before, after, strict=True))
    for entry in catalogue().variations:
        own = [entry.versions[package] for package in PAIR]
        assert own not in path
        assert any(a == b for pair in path for a, b in zip(own, pair, strict=True))


def test_the_pins_hold_what_is_not_the_subject() -> None:
    """Each pin is exact and stands once; the pair and what it drags along are free; no need is without a version."""
    pins = [Requirement(pin) for pin in catalogue().held]
    held = {canonicalize_name(pin.name) for pin in pins}
    assert len(held) == len(pins)
    assert all(re.fullmatch(r"==[0-9.]+", str(pin.specifier)) for pin in pins)
    free = {*PAIR, "torch", "tokenizers", "huggingface-hub", "fsspec", "dill", "multiprocess", "sympy"}
    assert not held & free
    assert all("==" in need or need in held for need in catalogue().needs)
    content = tomllib.loads((HERE / "matrix.toml").read_text(encoding="utf-8"))
    own = [pin for kind in ("pair", "variation") for entry in content[kind] for pin in entry.get("pins", ())]
    assert all(Version(pin["requirement"].partition("==")[2]) and pin["why"] for pin in own)


# What only the report and the pretraining import: no environment needs them to take a record.
NOT_FOR_RECORDS = {"jinja2", "matplotlib", "scipy"}


def test_an_environment_has_all_that_a_record_needs() -> None:
    """`needs` covers the dependencies in pyproject.toml: mlmrepro itself is not installed there."""
    path = Path(__file__).parents[2] / "pyproject.toml"
    dependencies = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"]
    needs = {Requirement(need).name for need in catalogue().needs}
    assert {Requirement(text).name for text in dependencies} - set(PAIR) - NOT_FOR_RECORDS <= needs
    used = [p for room in ("compare", "guide", "golden_run") for p in (HERE.parent / room).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (*HERE.parent.glob("*.py"), *used))
    imported = set(re.findall(r"(?m)^\s*(?:import|from) (\w+)", code))
    assert "torch" in imported
    assert not imported & NOT_FOR_RECORDS
