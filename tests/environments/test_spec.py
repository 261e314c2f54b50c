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
    assert pairs == [entry.name for entry in catalogue().pairs]
    assert names("all")[: len(pairs)] == pairs
    assert set(names("all")[len(pairs) :]) == {environment.name for environment in catalogue().variations}
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
    with pytest.raises(UserError, match="two versions of Python"):
        parse_environments([f"newest python={OTHER} python={RUNNING}"])
    assert names(f"newest python={RUNNING}") == names("newest")


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("", "no environment is named", "transformers==VERSION,datasets==VERSION"),
        (" , ", "no environment is named", "oldest, newest"),
        ("oldst", "'oldst' is not an environment", "did you mean oldest"),
        ("newest t4.41.2-d2.19", "'t4.41.2-d2.19' is not an environment", "t4.41.2-d2.19.2"),
        ("xyz", "'xyz' is not an environment", "give a name such as t4.41.2-d2.19.2"),
        ("transformers==4.50.0", "names no datasets", "add datasets==VERSION"),
        ("transfomers==4.50.0 datasets==3.5.0", "unknown package", "did you mean transformers?"),
        ("transformers>=4.50.0 datasets==3.5.0", "'transformers>=4.50.0' is not an", "write transformers==5.23.0"),
        ("newest torch=2.6.0", "'torch=2.6.0' is not an exact version", "write torch==2.6.0"),
        ("newest torch>=2.6,<3", "'torch>=2.6,<3' is not an exact version", "write torch==2.13.0"),
        ("newest torch >= 2.6 , < 2.7", "'torch>=2.6,<2.7' is not an exact version", "write torch==VERSION"),
        ("newest torch==2.*", r"'torch==2\.\*' is not an exact version", "write torch==2.13.0"),
        ("newest torch==two", "'torch==two' is not an exact version", "write torch==VERSION"),
        ("==2", "'==2' names no package", "write PACKAGE==VERSION"),
        ("newest==2", "newest is an environment and takes no version", "write newest"),
        ("newest torch==2.6.0 torch==2.7.0", "names torch twice, as 2.6.0 and 2.7.0", "leave it out"),
        ("newest python=3.9", "'python=3.9' is not Python 3.11 or later", f"python={RUNNING}"),
        ("newest python=three", "'python=three' is not Python", f"python={RUNNING}"),
        (
            f"newest python={RUNNING}.1",
            f"not a minor version such as {RUNNING}: a patch release",
            f"write python={RUNNING}",
        ),
        ("newest --index-url=http://user:secret@127.0.0.1:1/", "--index-url is an option of pip", "PIP_INDEX_URL"),
        ("newest -ihttp://user:secret@127.0.0.1:1/simple", "-i is an option of pip", "PIP_INDEX_URL"),
        ("newest -r more.txt", "-r is an option of pip", "leave it out"),
        ("newest -e .", "-e is an option of pip", "leave it out"),
        ("newest numpy @ https://user:secret@example.org/numpy.whl", "numpy@... names an address", "PIP_FIND_LINKS"),
        ("newest git+https://secret@example.org/numpy", "a file or an address is given", "PACKAGE==VERSION"),
        ("newest http://user:12,secret@example.org", "a file or an address is given", "PACKAGE==VERSION"),
        ("newest ./numpy.whl", "a file or an address is given", "PACKAGE==VERSION"),
        ("newest --index-url=https://user:pa!secret;x@example.org/simple", "--index-url is an option", "PIP_INDEX_URL"),
        ("newest --index-url=https://x:y=secret; python_version>'3'", "--index-url is an option", "PIP_INDEX_URL"),
        ("HF_TOKEN=hf_secret newest", r"HF_TOKEN=\.\.\. gives no version", "variables go before the command"),
        ("newest sklearn==1.5", "'sklearn==1.5' names an unknown package", "did you mean scikit-learn?"),
        ("newest mlmrepro==0.1", "runs from its current place", "leave it out"),
        (f"python={RUNNING}", "names no transformers", "begin with newest"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(text: str, problem: str, remedy: str) -> None:
    """The error names the bad part, and what to write instead."""
    with pytest.raises(UserError, match=problem) as caught:
        parse_environments([text])
    assert remedy in caught.value.remedy
    assert "secret" not in str(caught.value)


# One fault each, and what is wrong in it.
FAULTS = {
    "newest torch=2.6.0": "torch=2.6.0",
    "transformers>=5 datasets==5.2.0": "transformers>=5",
    "newest transformers>=4.40,<5": "transformers>=4.40,<5",
    "newest numpy~=2.0": "numpy~=2.0",
    "newest regex>2999": "regex>2999",
    "newest torch==2.*": "torch==2.*",
    "newest torch==": "torch==",
    "newest torch==two": "torch==two",
    "newest torch[x==2": "torch[x==2",
    "newest transformers[torch]>=5": "transformers[torch]>=5",
    "newest TRANSFORMERS<=5.0": "TRANSFORMERS<=5.0",
    "newest transfomers==5.0.0": "transfomers==5.0.0",
    "newest transfomers>=5": "transfomers>=5",
    "newest transfomers[torch]==5.0.0": "transfomers[torch]==5.0.0",
    "newest tr\N{CYRILLIC SMALL LETTER A}nsformers==5": "tr\N{CYRILLIC SMALL LETTER A}nsformers==5",
    "newest ??==5": "??==5",
    "newest oldest==5": "oldest==5",
    "newest mlmrepro==0.1": "mlmrepro==0.1",
    "newest torch==2.6; python_version > '3.8'": "torch==2.6; python_version > '3.8'",
    "newest torch==2.6.0 torch==2.7.0": "torch==2.7.0",
    f"newest python={RUNNING}.1": f"python={RUNNING}.1",
    f"newest python>={RUNNING}": f"python>={RUNNING}",
    "newest python=3.9": "python=3.9",
    "newest python=three": "python=three",
    "newest --index-url=http://u:p@h/": "--index-url=http://u:p@h/",
    "newest --pre": "--pre",
    "newest -r": "-r",
    "newest numpy@https://example.org/numpy.whl": "numpy@https://example.org/numpy.whl",
    "newest ./numpy.whl": "./numpy.whl",
    "oldst": "oldst",
    "transformers==5.0.0": "",
    "datasets==5.0.0": "",
}


def followed(text: str, bad: str, remedy: str) -> list[str]:
    """Return the text after each thing that a remedy tells a user to do, to the letter."""
    done = [text.replace(bad, written) for written in re.findall(r"write ([^ ;,]+)", remedy)]
    done += [f"{text} {added}" for added in re.findall(r"add ([^ ;,]+)", remedy)]
    if remedy.startswith("leave it out"):
        done.append(text.replace(bad, ""))
    if not done:
        done = [text.replace(bad, meant) for meant in re.findall(r"did you mean (\S+)\?", remedy)]
    named = {"PACKAGE": "numpy", "VERSION": "2.0.0"}
    return [re.sub("PACKAGE|VERSION", lambda match: named[match[0]], each) for each in done]


@pytest.mark.parametrize("text", FAULTS)
def test_a_remedy_that_is_followed_is_accepted(text: str) -> None:
    """What an error says to write is never refused in turn."""
    with pytest.raises(UserError) as caught:
        parse_environments([text])
    mended = followed(text, FAULTS[text], caught.value.remedy)
    assert mended, caught.value.remedy
    for each in mended:
        assert parse_environments([each]), each


def test_extras_are_taken() -> None:
    """They reach pip and the name; the pair of the catalogue stays another environment; spaces and commas may stand."""
    (environment,) = parse_environments(["Transformers[torch, Sentencepiece] == 5.23.0, datasets==5.2.0"])
    assert environment.packages[0] == "transformers[sentencepiece,torch]==5.23.0"
    assert environment.name == "t5.23.0-d5.2.0-transformers+sentencepiece+torch"
    assert environment.versions["transformers"] == Version("5.23.0")
    assert names("newest transformers[torch]==5.23.0 transformers==5.23.0") == ["t5.23.0-d5.2.0-transformers+torch"]
    assert names("newest torch==2.13.0+cpu") == ["t5.23.0-d5.2.0-torch2.13.0+cpu"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *[("transfomers", "transformers"), ("dataset", "datasets"), ("pytorch", "torch"), ("tqmd", "tqdm")],
        *[("hugging_face_hub", "huggingface-hub"), ("safetensor", "safetensors"), ("Numpi", "numpy")],
    ],
)
def test_a_name_that_is_almost_known_is_asked_about(given: str, meant: str) -> None:
    """A misspelt name can be somebody else's package; three equal signs insist on it."""
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        parse_environments([f"newest {given}==1.0"])
    (environment,) = parse_environments([f"newest {given}===1.0"])
    assert environment.requirements[-1].endswith("==1.0")


def test_known_and_quite_different_names_go_through() -> None:
    """Every package of the catalogue is known, and a name that resembles none is nobody's misspelling."""
    for name in (*catalogue().known, "quite-another-thing"):
        if name not in PAIR:
            assert name in "".join(parse_environments([f"newest {name}==1.0"])[0].requirements)


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


# What only the report imports: no environment needs them to take a record.
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
