"""The catalogue of environments, and how a user's request is parsed."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from mlmrepro.errors import UserError, first_line

__all__ = [
    "HEAVY",
    "PAIR",
    "Catalogue",
    "Environment",
    "Python",
    "catalogue",
    "find_python",
    "name_of",
    "parse_environments",
    "parse_exact",
    "position",
]

HERE = Path(__file__).parent
PAIR = ("transformers", "datasets")
HEAVY = ("torch", "numpy", "pandas", "pyarrow", "scipy")  # worth compiling once for all environments
# What the needs of every environment depend on, whatever their versions.
_ALWAYS = (
    *("annotated-doc", "annotated-types", "hf-xet", "idna", "jinja2", "markdown-it-py", "markupsafe", "mdurl"),
    *("mpmath", "networkx", "psutil", "pydantic", "pydantic-core", "pygments", "python-dateutil", "pyyaml", "regex"),
    *("setuptools", "shellingham", "tqdm", "typing-extensions", "typing-inspection", "tzdata", "xxhash"),
)
LEAST_PYTHON = (3, 11)

_FORMS = "a name such as t4.41.2-d2.19.2, oldest, newest, pairs, all, or transformers==VERSION,datasets==VERSION"


@dataclass(frozen=True)
class Environment:
    """Exact versions of the pair, and other requested packages."""

    name: str
    requirements: tuple[str, ...]
    pins: tuple[str, ...] = ()  # versions that this environment needs instead of those of pins.txt
    python: str = ""  # such as 3.12; "" is the Python that runs this
    free: tuple[str, ...] = ()  # packages of which pip takes the newest version that fits

    @property
    def versions(self) -> dict[str, Version]:
        """The requested versions, by package."""
        pairs = map(Requirement, self.requirements)
        return {canonicalize_name(each.name): Version(str(each.specifier).removeprefix("==")) for each in pairs}

    @property
    def packages(self) -> tuple[str, ...]:
        """What pip installs: the requested packages, and what every environment needs besides."""
        needs = (need for need in catalogue().needs if name_of(need) not in self.versions)
        return (*self.requirements, *self.free, *needs)

    @property
    def constraints(self) -> tuple[str, ...]:
        """The versions of everything else; requested versions replace the common pins."""
        own = set(self.versions) | {name_of(pin) for pin in self.pins} | set(self.free)
        return (*self.pins, *(pin for pin in catalogue().held if name_of(pin) not in own))

    @property
    def exact(self) -> tuple[str, ...]:
        """The packages that the environment will hold in a version that is known beforehand."""
        known = {name_of(each): each for each in (*self.constraints, *self.packages) if "==" in each}
        sure = dict.fromkeys((*map(name_of, self.packages), *HEAVY, *_ALWAYS))
        return tuple(f"{name}=={known[name].partition('==')[2]}" for name in sure if name in known)


@dataclass(frozen=True)
class Catalogue:
    """What is known to work: the pairs from the oldest to the newest, and variations of a single package."""

    pairs: tuple[Environment, ...]
    variations: tuple[Environment, ...]
    needs: tuple[str, ...]
    held: tuple[str, ...]
    others: tuple[str, ...] = ()  # names of packages that a user may ask for besides

    @cached_property
    def known(self) -> frozenset[str]:
        """The names of packages that are not treated as misspelt."""
        return frozenset(map(name_of, (*PAIR, *self.needs, *self.held, *self.others)))

    @property
    def words(self) -> dict[str, tuple[Environment, ...]]:
        """The words that a user may give, and their environments."""
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
        environments("pair"),
        environments("variation"),
        tuple(content["needs"]),
        tuple(line for line in lines if line),
        tuple(content["others"]),
    )


def parse_environments(texts: Iterable[str]) -> list[Environment]:
    """Return the environments that a user asks for, each once: the upgrade path first, then the variations.

    Each text holds words of the catalogue or exact requirements, which change the words' environments:
    ``pairs``, ``transformers==4.50.0,datasets==3.5.0``, ``newest torch==2.6.0 python=3.12``. ``name===version`` accepts
    a package whose name resembles that of a known one. Raises UserError for everything else.
    """
    chosen = {environment.name: environment for text in texts for environment in _parse(text)}
    if not chosen:
        raise UserError("no environment is named", remedy=f"give {_FORMS}")
    return sorted(chosen.values(), key=position)


def parse_exact(texts: Iterable[str]) -> dict[str, str]:
    """Return the versions of ``package==version`` texts, by package; raises UserError for everything else."""
    asked: dict[str, Requirement] = {}
    for item in (item for text in texts for item in _items(text)):
        _add(asked, _exact(item), item)
    return {name: str(requirement.specifier).removeprefix("==") for name, requirement in asked.items()}


def position(environment: Environment) -> tuple[bool, list[Version]]:
    """Return the key that puts the upgrade path first, from old to new, then the variations."""
    none = Version("0")  # a package of which pip takes the version that fits
    pair, *varied = ([e.versions.get(p, none) for p in PAIR] for e in (environment, *catalogue().variations))
    return pair in varied, pair


def _parse(text: str) -> list[Environment]:
    words = catalogue().words
    bases: list[Environment] = []
    asked: dict[str, Requirement] = {}
    pythons: list[str] = []
    items = _items(text)
    for item in items:
        name = re.split(r"[\[=<>~!]", item)[0]
        if item in words:
            bases += words[item]
        elif name.lower() == "python" and item != name:
            pythons.append(_python(item[len(name) :].lstrip("=<>~!"), item))
        elif item != name:
            _add(asked, _exact(item), item)
        else:
            raise UserError(f"{item!r} is not an environment", remedy=_near(item, words))
    if len(set(pythons)) > 1:
        raise UserError("two versions of Python are named", remedy="name one; give --envs again for the other")
    if not bases and items:
        for package in PAIR:
            if package not in asked:
                raise UserError(
                    f"{' '.join(items)!r} names no {package}", remedy=f"add {package}==VERSION, or begin with newest"
                )
        bases = [Environment("", ())]
    return [_changed(base, asked, pythons[0] if pythons else "") for base in bases]


def _items(text: str) -> list[str]:
    """Return the words and requirements of a text, separated by commas or spaces; refuse everything else."""
    text = re.sub(r"\s*(===?|[<>~!]=|[<>=@])\s*", r"\1", text)  # spaces around an operator are common
    text = re.sub(r"\s*,\s*(?=[<>=!~])", ",", text)  # within one range
    # A comma before an operator continues a range, and one in brackets a list of extras.
    items = list(filter(None, re.split(r"(?:\s*,(?![<>=!~])[\s,]*|\s+)(?![^\[\]]*\])", text.strip(" \t\n,"))))
    for item in items:
        option = re.match(r"--[A-Za-z][\w-]*|-[A-Za-z]?", item)
        reference = re.match(r"([\w.-]+)(\[.*\])?@[A-Za-z+]+:", item)
        # Neither is quoted: an address, or the value of an option, may hold a password, even one cut in two by a comma.
        if option:
            raise UserError(f"{option[0]} is an option of pip, not a requirement", remedy=_instead_of(option[0]))
        if re.search(r"[@/\\]|\.(whl|gz|zip)$", item) or item in (".", ".."):
            problem = f"{reference[1]}@... names an address" if reference else "a file or an address is given"
            raise UserError(
                f"{problem}, not a version",
                remedy="write PACKAGE==VERSION; pip looks in PIP_INDEX_URL and PIP_FIND_LINKS (a folder of wheels)",
            )
    # After the checks above: an address may hold a semicolon too.
    if conditional := re.search(r"([^\s,;]*[=<>~!][^\s,;]*)\s*;", text):
        raise UserError(
            f"{conditional[1]!r} has a condition after it",
            remedy=f"write {conditional[1]} and leave out the condition, which begins with the semicolon",
        )
    return items


def _instead_of(option: str) -> str:
    """Return what to do instead of giving an option of pip."""
    name = {"-i": "--index-url", "-f": "--find-links"}.get(option, option)
    if name in ("-r", "--requirement", "-c", "--constraint"):
        return "leave it out, and name the packages here as PACKAGE==VERSION"
    if name[2:] in ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert"):
        variable = f"PIP_{name[2:].upper().replace('-', '_')}"
        return f"leave it out; set the variable {variable}, or {name[2:]} in pip.conf"
    return "leave it out; set what pip uses in its variables, such as PIP_INDEX_URL, or in pip.conf"


def _add(asked: dict[str, Requirement], requirement: Requirement, item: str) -> None:
    """Add a requirement; the same package again may only add extras."""
    name = canonicalize_name(requirement.name)
    before = asked.setdefault(name, requirement)
    if before.specifier != requirement.specifier:
        versions = " and ".join(str(each.specifier).removeprefix("==") for each in (before, requirement))
        raise UserError(f"{item!r} names {name} twice, as {versions}", remedy="leave it out, or give --envs twice")
    before.extras |= requirement.extras


def _changed(base: Environment, asked: dict[str, Requirement], python: str) -> Environment:
    """Return the environment with other versions; if the catalogue has it, with the catalogue's pins."""
    chosen = {canonicalize_name(r.name): r for r in map(Requirement, base.requirements)} | asked
    versions = {package: str(requirement.specifier).removeprefix("==") for package, requirement in chosen.items()}
    extras = {package: "".join(f"+{extra}" for extra in sorted(r.extras)) for package, r in chosen.items()}
    name = "-".join(
        [f"t{versions['transformers']}-d{versions['datasets']}"]
        + [f"{package}{extras[package]}" for package in PAIR if extras[package]]
        + [f"{package}{extras[package]}{versions[package]}" for package in sorted(versions) if package not in PAIR]
        + ([f"py{python}"] if python else [])
    )
    if name in catalogue().words:
        return catalogue().words[name][0]
    order = [*PAIR, *sorted(set(versions) - set(PAIR))]
    return Environment(name, tuple(str(chosen[package]) for package in order), base.pins, python)


def _exact(item: str) -> Requirement:
    """Return ``package==version`` or ``package[extra]==version``, the only accepted forms."""
    given = re.split(r"[=<>~!]", item)[0]
    version = item[len(given) :].lstrip("=<>~!")
    operator = item[len(given) : len(item) - len(version)]
    given, bracket, extras = given.partition("[")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", given):
        close = difflib.get_close_matches(given, catalogue().known, n=1)
        raise UserError(f"{item!r} names no package", remedy=f"write {close[0] if close else 'PACKAGE'}==VERSION")
    name = canonicalize_name(given)
    if name in catalogue().words:
        raise UserError(f"{name} is an environment and takes no version", remedy=f"write {name}")
    if name == "mlmrepro":
        raise UserError(f"{item!r} names this package, which always runs from its current place", remedy="leave it out")
    if operator != "===" and (near := _misspelt(name)):
        shown = version if operator == "==" else "VERSION"
        good, insisted = f"{near}{bracket}{extras}=={shown}", f"{name}{bracket}{extras}==={shown}"
        raise UserError(
            f"{item!r} names an unknown package",
            remedy=f"did you mean {near}? Then write {good}; to insist, write {insisted}",
        )
    whole = f"{name}{bracket}{extras}" if extras.endswith("]") else name
    try:
        exact = str(Version(version))
    except InvalidVersion:
        exact = ""
    if operator == "=" and not version[:1].isdigit():
        # This may be a variable whose value is a password.
        raise UserError(
            f"{given}=... gives no version", remedy=f"write {whole}==VERSION; variables go before the command"
        )
    if operator not in ("==", "===") or not exact:
        suggested = _suggested(name, operator, version)
        raise UserError(f"{item!r} is not an exact version", remedy=f"write {whole}=={suggested}")
    try:
        requirement = Requirement(f"{name}{bracket}{extras}=={exact}")
    except InvalidRequirement as error:
        raise UserError(f"{item!r} has malformed extras", remedy=f"write {name}=={exact}") from error
    requirement.extras = {canonicalize_name(extra) for extra in requirement.extras}
    return requirement


def _suggested(name: str, operator: str, version: str) -> str:
    """Return the newest version in the catalogue that a range allows, "VERSION" if there is none."""
    if operator == "=" and re.fullmatch(r"\d[\w.+!]*", version):
        return version
    try:
        allowed = SpecifierSet("" if operator == "=" else operator + version)
    except InvalidSpecifier:
        return "VERSION"
    of_environments = [text for entry in catalogue().pairs for text in entry.requirements]
    exact = [Requirement(text) for text in (*of_environments, *catalogue().needs, *catalogue().held) if "==" in text]
    versions = [Version(str(each.specifier)[2:]) for each in exact if canonicalize_name(each.name) == name]
    return str(max(fitting)) if (fitting := list(allowed.filter(versions))) else "VERSION"


_IMPORTED = {"sklearn": "scikit-learn", "pytorch": "torch"}  # names under which people know a package


def _misspelt(name: str) -> str:
    """Return the known package that an unknown name resembles, "" if it resembles none.

    A name that is almost the same as a known one can be somebody else's package.
    """
    known = sorted(catalogue().known)
    if name in known:
        return ""
    if name in _IMPORTED:
        return _IMPORTED[name]
    swapped = [each for each in known if sorted(each) == sorted(name)]  # two letters in the wrong order
    joined = [each for each in known if each.replace("-", "") == name.replace("-", "")]
    return next(iter([*joined, *swapped, *difflib.get_close_matches(name, known, n=1, cutoff=0.8)]), "")


def name_of(requirement: str) -> str:
    """Return the normalised name of a requirement's package."""
    return canonicalize_name(Requirement(requirement).name)


def _near(item: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(item, known, n=3)
    return f"did you mean {' or '.join(near)}? Otherwise give {_FORMS}" if near else f"give {_FORMS}"


def _python(version: str, text: str) -> str:
    """Return "" for the Python that runs this, else the version, after finding its interpreter."""
    running = "{}.{}".format(*sys.version_info[:2])
    match = re.match(r"(\d+)\.(\d+)", version)
    if not match or (int(match[1]), int(match[2])) < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        raise UserError(f"{text!r} is not Python {least} or later", remedy=f"write python={running}, for example")
    minor = match[0]
    if version != minor or not re.match(r"(?i)python==?\d", text):
        raise UserError(
            f"{text!r} is not a minor version such as {minor}: a patch release or a range cannot be chosen",
            remedy=f"write python={minor}",
        )
    if minor == running:
        return ""
    find_python(minor)
    return minor


@cache
def find_python(version: str) -> Python:
    """Return the interpreter of a version such as 3.12, from PATH; raises UserError if none can be run."""
    if not version:
        return Python(sys.executable, "{}.{}.{}".format(*sys.version_info[:3]))
    name = f"python{version}"
    path = shutil.which(name)
    if path is None:
        raise UserError(f"{name} is not on PATH", remedy="install it, or leave python= out")
    code = "import platform; print(platform.python_version())"
    # PATH may hold only a shim, which finds no interpreter of this version.
    done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True)
    if done.returncode:
        said = first_line(Exception(done.stderr))
        raise UserError(f"{name} is on PATH but does not run: {said}", remedy="install it, or leave python= out")
    return Python(path, done.stdout.strip())
