"""Which environments: the catalogue, and what a user asks for in words."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mlmrepro.errors import UserError, first_line

__all__ = ["PAIR", "Catalogue", "Environment", "Python", "catalogue", "find_python", "parse_environments", "position"]

HERE = Path(__file__).parent
PAIR = ("transformers", "datasets")
LEAST_PYTHON = (3, 11)

_FORMS = "a name such as t4.41.2-d2.19.2, oldest, newest, pairs, all, or transformers==VERSION,datasets==VERSION"


@dataclass(frozen=True)
class Environment:
    """Exact versions of the pair, and what else is asked for."""

    name: str
    requirements: tuple[str, ...]
    pins: tuple[str, ...] = ()  # versions that this environment needs instead of those of pins.txt
    python: str = ""  # such as 3.12; "" is the Python that runs this

    @property
    def versions(self) -> dict[str, Version]:
        """The versions that are asked for, by package."""
        return dict(map(_exact, self.requirements))

    @property
    def packages(self) -> tuple[str, ...]:
        """What pip is to install: what is asked for, and what every environment needs besides."""
        return (*self.requirements, *(need for need in catalogue().needs if _name(need) not in self.versions))

    @property
    def constraints(self) -> tuple[str, ...]:
        """The versions of all the rest; what is asked for goes before the pins of all environments."""
        own = set(self.versions) | {_name(pin) for pin in self.pins}
        return (*self.pins, *(pin for pin in catalogue().held if _name(pin) not in own))


@dataclass(frozen=True)
class Catalogue:
    """What is known to work: the pairs from the oldest to the newest, and variations of one package alone."""

    pairs: tuple[Environment, ...]
    variations: tuple[Environment, ...]
    needs: tuple[str, ...]
    held: tuple[str, ...]

    @property
    def words(self) -> dict[str, tuple[Environment, ...]]:
        """What a user may say, and what it means."""
        every = (*self.pairs, *self.variations)
        groups = {"oldest": self.pairs[:1], "newest": self.pairs[-1:], "pairs": self.pairs, "all": every}
        return groups | {environment.name: (environment,) for environment in every}


@dataclass(frozen=True)
class Python:
    """An interpreter that environments are made with."""

    path: str
    version: str


@cache
def catalogue() -> Catalogue:
    """Read the catalogue and the pins."""
    content = tomllib.loads((HERE / "matrix.toml").read_text(encoding="utf-8"))

    def environments(kind: str) -> tuple[Environment, ...]:
        return tuple(
            Environment(
                entry["name"], tuple(entry["requirements"]), tuple(pin["requirement"] for pin in entry.get("pins", ()))
            )
            for entry in content[kind]
        )

    lines = (line.partition("#")[0].strip() for line in (HERE / "pins.txt").read_text(encoding="utf-8").splitlines())
    return Catalogue(
        environments("pair"), environments("variation"), tuple(content["needs"]), tuple(line for line in lines if line)
    )


def parse_environments(texts: Iterable[str]) -> list[Environment]:
    """Return the environments that a user asks for, each once: the upgrade path first, then the variations.

    Each text holds words of the catalogue or exact requirements, which change what the words stand for:
    ``pairs``, ``transformers==4.50.0,datasets==3.5.0``, ``newest torch==2.6.0 python=3.12``.
    """
    chosen = {environment.name: environment for text in texts for environment in _parse(text)}
    if not chosen:
        raise UserError("no environment is named", remedy=f"give {_FORMS}")
    return sorted(chosen.values(), key=position)


def position(environment: Environment) -> tuple[bool, list[Version]]:
    """Return the key that puts the upgrade path first, from old to new, then the variations."""
    pair, *varied = ([e.versions[package] for package in PAIR] for e in (environment, *catalogue().variations))
    return pair in varied, pair


def _parse(text: str) -> list[Environment]:
    words = catalogue().words
    bases: list[Environment] = []
    asked: dict[str, Version] = {}
    python = ""
    items = re.split(r"[\s,]+", text.strip(" \t\n,"))
    for item in filter(None, items):
        if item in words:
            bases += words[item]
        elif match := re.fullmatch(r"python==?(.*)", item):
            python = _python(match[1], item)
        elif re.search(r"[=<>~!]", item):
            package, version = _exact(item)
            if asked.setdefault(package, version) != version:
                raise UserError(f"{text!r} names {package} twice", remedy="give it one version")
        else:
            raise UserError(f"{item!r} is no environment", remedy=_near(item, words))
    if not bases and any(items):
        for package in PAIR:
            if package not in asked:
                near = difflib.get_close_matches(package, asked, n=1)
                remedy = f"write {package} for {near[0]}" if near else f"add {package}==VERSION, or begin with newest"
                raise UserError(f"{text!r} names no {package}", remedy=remedy)
        bases = [Environment("", ())]
    return [_changed(base, asked, python) for base in bases]


def _changed(base: Environment, asked: dict[str, Version], python: str) -> Environment:
    """Return the environment with other versions; one that the catalogue has is the catalogue's, pins and all."""
    versions = base.versions | asked
    name = "-".join(
        [f"t{versions['transformers']}-d{versions['datasets']}"]
        + [f"{package}{version}" for package, version in sorted(versions.items()) if package not in PAIR]
        + ([f"py{python}"] if python else [])
    )
    if name in catalogue().words:
        return catalogue().words[name][0]
    order = [*PAIR, *sorted(set(versions) - set(PAIR))]
    return Environment(name, tuple(f"{package}=={versions[package]}" for package in order), base.pins, python)


def _exact(item: str) -> tuple[str, Version]:
    """Return package and version of ``package==version``, the only form that says what is installed."""
    try:
        requirement = Requirement(item)
        (specifier,) = requirement.specifier
        if specifier.operator != "==" or requirement.extras or requirement.marker:
            raise ValueError(item)
        return canonicalize_name(requirement.name), Version(specifier.version)
    except (InvalidRequirement, ValueError) as error:
        package = re.split(r"[=<>~!]", item)[0] or "package"
        raise UserError(f"{item!r} is no exact version", remedy=f"write {package}==VERSION") from error


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def _near(item: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(item, known, n=3)
    return f"did you mean {' or '.join(near)}? Else give {_FORMS}" if near else f"give {_FORMS}"


def _python(version: str, text: str) -> str:
    """Return "" for the Python that runs this, else the version, of which an interpreter is there."""
    match = re.fullmatch(r"(\d+)\.(\d+)", version)
    if not match or (int(match[1]), int(match[2])) < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        raise UserError(f"{text!r} names no Python from {least} on", remedy="write python=3.12 for instance")
    if (int(match[1]), int(match[2])) == sys.version_info[:2]:
        return ""
    find_python(version)
    return version


@cache
def find_python(version: str) -> Python:
    """Return the interpreter of a version such as 3.12, from PATH; raises UserError where there is none that runs."""
    if not version:
        return Python(sys.executable, "{}.{}.{}".format(*sys.version_info[:3]))
    name = f"python{version}"
    path = shutil.which(name)
    if path is None:
        raise UserError(f"{name} is not on PATH", remedy="install it, or leave python= out")
    code = "import platform; print(platform.python_version())"
    # What sits on PATH may be a stand-in that finds no interpreter of this version.
    done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True)
    if done.returncode:
        said = first_line(Exception(done.stderr))
        raise UserError(f"{name} is on PATH but does not run: {said}", remedy="install it, or leave python= out")
    return Python(path, done.stdout.strip())
