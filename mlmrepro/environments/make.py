"""Make an environment: a virtual environment with its packages, kept in a cache folder and made only once.

A package whose exact version is known beforehand (torch, numpy, transformers, ...) is unpacked once, in a folder of its
own, and linked into each environment with this version. A further environment then costs seconds and a few megabytes.
"""

from __future__ import annotations

import ast
import csv
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from packaging.utils import canonicalize_name

import mlmrepro
from mlmrepro.credentials import address_problem
from mlmrepro.environments.children import Stopped, last_words, run_child
from mlmrepro.environments.spec import HEAVY, Environment, Python, find_python, name_of
from mlmrepro.errors import UserError, causes
from mlmrepro.files import atomic_write

__all__ = [
    "CACHE",
    "MARKER",
    "DiskFull",
    "Unmade",
    "addresses",
    "code_folder",
    "content_hash",
    "fingerprint",
    "installer",
    "isolated",
    "make_environment",
    "reason",
    "release",
    "run_pip",
]

CACHE = Path(".mlmrepro") / "environments"
TIMEOUT = 1800.0  # seconds for pip: torch alone takes minutes on a slow connection

MARKER = "complete.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_used: dict[Path, int] = {}  # what this process uses, and the open file whose lock says so
_made: list[Path] = []  # what it made
# These would change what is installed, or where to. Where from (index, find-links, proxy, ...) is up to the user.
_NOT_FOR_PIP = ("CONSTRAINT", "REQUIREMENT", "TARGET", "PREFIX", "ROOT", "USER", "PYTHON", "DRY_RUN", "NO_DEPS")
# These would lead an interpreter to other packages, or disable the bytecode that makes the second start quick.
_NOT_FOR_PYTHON = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class DiskFull(UserError):
    """An environment cannot be made because the disk is full."""


class Unmade(Exception):
    """An environment cannot be made; `log` has the whole output."""

    def __init__(self, problem: str, log: Path) -> None:
        super().__init__(problem)
        self.log = log


def make_environment(
    environment: Environment, folder: Path = CACHE, *, timeout: float = TIMEOUT, stop: threading.Event | None = None
) -> Path:
    """Return the interpreter of the environment, and make the environment if it does not exist yet.

    It is built in place, because virtual environments cannot be moved; a marker is written last, and an environment
    without it is made again. Raises Unmade, or Stopped once `stop` is set.
    """
    stop = stop or threading.Event()
    folder, python = folder.absolute(), find_python(environment.python)
    home = folder / f"{environment.name}-{fingerprint(environment)}"
    interpreter, constraints = home / "bin" / "python", home / "constraints.txt"
    ignore_in_git(folder)

    def make(log: Path) -> None:
        tool = installer(folder, python, timeout, stop)
        packages = _unpacked(environment.exact, folder / f"packages-{python.version}", tool, timeout, stop)
        _run([python.path, "-m", "venv", "--clear", "--without-pip", str(home)], log, isolated(), timeout, stop)
        for package in packages:
            _link_into(package, home)
        atomic_write(constraints, "\n".join(environment.constraints) + "\n")
        # A run compiles what it imports, once; pip would compile everything, which takes longer than unpacking it.
        options = ["--python", str(interpreter), "install", "--no-compile", "--constraint", str(constraints)]
        run_pip(tool, [*options, *environment.packages], log, timeout, stop)
        if unknown := _unknown_extras(environment, log.read_text(encoding="utf-8", errors="replace")):
            raise Unmade(unknown, log)

    _once(home, make, stop, {"packages": environment.packages, "python": python.version})
    return interpreter


def release() -> bool:
    """End this process's use of its environments, so that they may be removed; return whether it made one of them."""
    grown = bool(_made)
    while _used:
        os.close(_used.popitem()[1])
    _made.clear()
    return grown


def _use(home: Path) -> None:
    """Keep a folder from being removed, until `release` or the end of this process, even a kill."""
    handle = os.open(home, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    if home in _used:
        os.close(_used[home])
    _used[home] = handle


def installer(folder: Path, python: Python, timeout: float = TIMEOUT, stop: threading.Event | None = None) -> Path:
    """Return an interpreter of this Python that has pip, which installs into all environments of the folder."""
    home = folder / f"pip-{python.version}"
    command, stop = [python.path, "-m", "venv", "--clear", str(home)], stop or threading.Event()
    _once(home, lambda log: _run(command, log, isolated(), timeout, stop), stop)
    return home / "bin" / "python"


def _unpacked(
    requirements: Iterable[str], store: Path, tool: Path, timeout: float, stop: threading.Event
) -> list[Path]:
    """Return a folder for each package; [] if one cannot be installed, which the environment then explains."""
    homes = {each: store / each.replace("==", "-") for each in requirements}
    log, new = Path(f"{store}.log"), store / ".new"
    store.mkdir(exist_ok=True)
    with _locked(Path(f"{store}.lock"), stop):
        _use(store)
        missing = [each for each, home in homes.items() if not home.is_dir()]
        if missing:
            shutil.rmtree(new, ignore_errors=True)  # of a killed process
            log.write_bytes(b"")
            options = ["install", "--no-deps", "--ignore-installed", "--no-compile", "--target", str(new), *missing]
            try:
                run_pip(tool, options, log, timeout, stop)
                # Once, instead of in each environment that imports them; torch has files for a later Python only.
                if heavy := [str(new / each) for each in HEAVY if (new / each).is_dir()]:
                    command = [str(tool), "-m", "compileall", "-q", *heavy]
                    run_child(command, log, env=isolated(), timeout=timeout, stop=stop)
                for each in missing:
                    _take_out(each, new, homes[each])
            except (Unmade, TimeoutError):
                return []
            finally:
                shutil.rmtree(new, ignore_errors=True)
        for home in homes.values():
            os.utime(home)  # when it was last used
    return list(homes.values())


def _take_out(requirement: str, installed: Path, home: Path) -> None:
    """Move one package's files, which its RECORD lists, out of a folder with several packages."""
    name = name_of(requirement)
    (info,) = (each for each in installed.glob("*.dist-info") if canonicalize_name(each.name.split("-")[0]) == name)
    part = installed / ".part"
    with (info / "RECORD").open(encoding="utf-8", newline="") as lines:
        paths = [Path(row[0]) for row in csv.reader(lines) if row]
    for path in paths:
        # Scripts are recorded above the folder, where they would be in an environment.
        source = installed / ("bin" / Path(path.name) if path.parts[0] == ".." else path)
        target = part / source.relative_to(installed)
        bytecode = source.parent.glob(f"__pycache__/{source.stem}.*.pyc") if source.suffix == ".py" else ()
        for found in (source, *bytecode):
            if found.is_file():
                destination = target.parent / found.relative_to(source.parent)
                destination.parent.mkdir(parents=True, exist_ok=True)
                found.rename(destination)
    part.rename(home)


def _once(
    home: Path, make: Callable[[Path], None], stop: threading.Event, about: Mapping[str, Any] | None = None
) -> None:
    """Call `make` with a log, unless a finished `home` exists; a marker is written last.

    The age of the marker says when the folder was last used. Raises Unmade, or Stopped, and leaves nothing behind then.
    """
    log = Path(f"{home}.log")
    home.parent.mkdir(exist_ok=True)
    with _locked(Path(f"{home}.lock"), stop):
        if (home / MARKER).is_file() and (home / "bin" / "python").exists():
            os.utime(home / MARKER)
        else:
            started = time.monotonic()
            try:
                log.write_bytes(b"")
                make(log)
                made = {**(about or {}), "seconds": time.monotonic() - started}
                atomic_write(home / MARKER, json.dumps(made, indent=1) + "\n")
            except BaseException as error:
                shutil.rmtree(home, ignore_errors=True)
                if _is_full(error, log):
                    remedy = "free some space, for example with mlmrepro environments prune"
                    raise DiskFull(f"the disk is full: {home} cannot be made", remedy=remedy) from error
                if isinstance(error, TimeoutError):
                    raise Unmade(f"the installation {error}", log) from error
                raise
            _made.append(home)
        if about:
            _use(home)


def _is_full(error: BaseException, log: Path) -> bool:
    """Return whether the disk is full: as this process was told, or as pip says in the log."""
    if isinstance(error, Unmade):
        said = log.read_text(encoding="utf-8", errors="replace")
        return any(os.strerror(number) in said for number in _FULL)
    return any(isinstance(each, OSError) and each.errno in _FULL for each in causes(error))


def run_pip(
    tool: Path, options: list[str], log: Path, timeout: float = TIMEOUT, stop: threading.Event | None = None
) -> None:
    """Run pip with an interpreter that has it and the user's settings; raises Unmade if it fails."""
    variables = isolated() | addresses(tool, log) | {"PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}
    stop = stop or threading.Event()
    _run([str(tool), "-m", "pip", *options], log, variables, timeout, stop)


def _link_into(package: Path, home: Path) -> None:
    """Link a package's files into an environment, and give it the package's scripts.

    The links are safe because pip replaces files and never writes into them.
    """
    (target,) = home.glob("lib/python*/site-packages")
    for entry in package.iterdir():
        if entry.name == "bin":
            for script in entry.iterdir():
                _, _, body = script.read_bytes().partition(b"\n")
                (home / "bin" / script.name).write_bytes(f"#!{home}/bin/python\n".encode() + body)
                (home / "bin" / script.name).chmod(0o755)
        elif entry.is_dir():
            shutil.copytree(entry, target / entry.name, copy_function=_link, symlinks=True, dirs_exist_ok=True)
        else:
            _link(entry, target / entry.name)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def fingerprint(environment: Environment) -> str:
    """Return a digest that identifies an environment: of its packages, pins and Python version."""
    python = find_python(environment.python)
    return _digest(json.dumps([environment.packages, environment.constraints, python.version]).encode())


def isolated() -> dict[str, str]:
    """Return the variables of this process without those that would change what an environment holds or finds."""
    banned = {*_NOT_FOR_PYTHON, *(f"PIP_{name}" for name in _NOT_FOR_PIP)}
    own = {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {name: value for name, value in os.environ.items() if name not in banned} | own


def code_folder(folder: Path = CACHE) -> Path:
    """Return a folder with this very mlmrepro and nothing else, for an environment's PYTHONPATH.

    The folder that contains mlmrepro cannot be used: if mlmrepro is installed, it holds all other packages too.
    """
    package = Path(mlmrepro.__file__).resolve().parent
    try:
        version = metadata.version("mlmrepro")
    except metadata.PackageNotFoundError:
        version = ""
    ignore_in_git(folder)
    home = folder.absolute() / f"code-{_digest(f'{package} {version}'.encode())}"
    with FileLock(f"{home}.lock"):
        home.mkdir(exist_ok=True)
        target = home / package.name
        if not target.is_symlink():
            shutil.rmtree(target, ignore_errors=True)
            try:
                target.symlink_to(package, target_is_directory=True)
            except OSError:  # a file system without links: copied each time, to follow changes
                shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__"))
        if version:  # for importlib.metadata, and with it the record's provenance
            text = f"Metadata-Version: 2.1\nName: mlmrepro\nVersion: {version}\n"
            atomic_write(home / f"mlmrepro-{version}.dist-info" / "METADATA", text)
    return home


def content_hash(folder: Path) -> str:
    """Return a digest of all files below a folder, bytecode aside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    parts = [part for path in files for part in (str(path.relative_to(folder)).encode(), path.read_bytes())]
    return _digest(*parts)


def reason(output: str) -> str:
    """Return in one line why pip, or venv, failed: the most informative line of its output."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("$ ")]
    errors = [line[len("ERROR: ") :] for line in lines if line.upper().startswith("ERROR: ")]
    for error in errors:
        if error.startswith("Cannot install"):
            behind = dict.fromkeys(line for line in lines if " depends on " in line or "(constraint)" in line)
            return f"{error.rstrip('.')}: {'; '.join(list(behind)[:4])}"
    if errors and errors[-1] == "Exception:":  # pip itself crashed
        return f"pip crashed: {last_words(output)}"
    if errors and errors[0] == "subprocess-exited-with-error":
        return next((line.removeprefix("× ") for line in lines if line.startswith("× ")), errors[-1])
    if not errors:
        return next(iter(lines[:1] if "virtual environment was not created" in output else lines[::-1]), "no output")
    # pip says "no matching distribution" both if there is none and if the index does not answer.
    refused = re.search(r"\b40[13] Error", output)
    unreached = " (the package index could not be reached)" if "Retrying (" in output else ""
    return errors[-1] + (" (the package index refused the credentials)" if refused else unreached)


def _run(command: list[str], log: Path, env: Mapping[str, str], timeout: float, stop: threading.Event) -> None:
    if run_child(command, log, env=env, timeout=timeout, stop=stop):
        raise Unmade(reason(log.read_text(encoding="utf-8", errors="replace")), log)


def addresses(python: Path, log: Path) -> dict[str, str]:
    """Return the addresses that pip would use, from its files and variables, as variables, which are kept out of logs.

    Raises Unmade if one is malformed: pip's own message quotes a piece of it, which may be a piece of a password.
    """
    command = [str(python), "-m", "pip", "config", "list"]
    done = subprocess.run(command, env=isolated(), capture_output=True, encoding="utf-8", errors="surrogateescape")
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the later one wins
        for name in ("index-url", "extra-index-url", "find-links", "proxy", "cert", "no-index"):
            for shown in re.findall(rf"(?m)^{section}\.{name}=(.*)$", done.stdout):
                found[name] = str(ast.literal_eval(shown))
    variables = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in found.items()}
    for variable, value in variables.items():
        problem = "" if variable in ("PIP_PROXY", "PIP_CERT", "PIP_NO_INDEX") else address_problem(value)
        if problem:
            where = "" if variable in os.environ else " (from pip's configuration file)"
            advice = "in a password, write / as %2F, ? as %3F, # as %23, @ as %40"
            message = f"{variable}{where} is not a valid address: {problem}; {advice}"
            log.write_text(f"{message}\n", encoding="utf-8")
            raise Unmade(message, log)
    return variables


def _unknown_extras(environment: Environment, output: str) -> str:
    """Return what pip only warns about: a requested extra that the package does not have."""
    asked = {name_of(text) for text in environment.requirements}
    for package, rest in re.findall(r"(?m)^WARNING: (\S+) (\S+ does not provide the extra .*)$", output):
        if canonicalize_name(package) in asked:
            return f"{package} {rest}"
    return ""


def ignore_in_git(folder: Path) -> None:
    """Make the folder, and keep it out of git."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".gitignore").exists():
        atomic_write(folder / ".gitignore", "*\n")


@contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    """Hold a lock against other processes; it ends with the process, even a killed one."""
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            if stop.is_set():
                raise Stopped from None
    try:
        yield
    finally:
        lock.release()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:12]
