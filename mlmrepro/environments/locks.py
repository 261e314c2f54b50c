"""Read which exact versions a lock file pins: requirements.txt, pip freeze, uv.lock, poetry.lock, pylock.toml.

Nothing is downloaded and no address is kept: an index, and the credentials for it, are up to pip's own configuration.
"""

from __future__ import annotations

import codecs
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mlmrepro.environments.lock_tables import read_poetry, read_pylock, read_uv
from mlmrepro.environments.pinned import ELSEWHERE, Lock, Pinned, Unused
from mlmrepro.errors import UserError, first_line

__all__ = ["INSTALLED", "Lock", "Unused", "read_lock"]

INSTALLED = "installed"  # the word for what the running Python has

_KINDS = "give requirements.txt, the output of pip freeze, uv.lock, poetry.lock, pylock.toml, or the word installed"
_ADDRESS = "installed from an address or a folder, which a version cannot reproduce"
_OPTION = "pip takes this from its own configuration, such as PIP_INDEX_URL"
_FILES = ("-r", "--requirement", "-c", "--constraint")
_OPTIONS = {
    *("-i", "--index-url", "--pypi-url", "--extra-index-url", "--no-index", "-f", "--find-links", "--no-binary"),
    *("--only-binary", "--prefer-binary", "--require-hashes", "--pre", "--trusted-host", "--use-feature"),
    *("--always-unzip", "-Z", "--process-dependency-links"),
}


def read_lock(path_or_word: str | Path, environment: Mapping[str, str] | None = None) -> Lock:
    """Return the exact versions that a lock file pins, or those that are installed.

    Markers are evaluated for the running Python, or with the values of `environment`, such as
    ``{"sys_platform": "win32"}``. Extras are accepted and dropped. Raises UserError for a file that cannot be read,
    is malformed, or pins a package to two versions.
    """
    if str(path_or_word) == INSTALLED:
        return _installed()
    path = Path(path_or_word)
    found = Pinned(str(path), environment)
    text = _text(path)
    if path.suffix not in (".toml", ".lock") or not re.search(r"(?m)^\[", text):
        _read_requirements(path, text, found, ())
        return found.finish()
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}", remedy="lock again") from None
    try:
        if "packages" in content and "lock-version" in content:
            read_pylock(content, found)
        elif "package" in content and "lock-version" in content.get("metadata", {}):
            read_poetry(content, found)
        elif "version" in content and ("package" in content or "requires-python" in content):
            read_uv(content, found)
        else:
            raise UserError(f"{path} is not a lock file of a known kind", remedy=_KINDS)
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"{path} has another structure than a lock file of its kind ({first_line(error)})"
        raise UserError(problem, remedy="lock again, with a current version of the tool that wrote it") from error
    return found.finish()


def _installed() -> Lock:
    """Return what the running Python has; the first of two copies counts, as for an import."""
    found = Pinned("the installed packages")
    seen: set[str] = set()
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"] or "")
        if not name or name in seen:
            continue
        seen.add(name)
        if distribution.read_text("direct_url.json"):  # not read: its address may hold a password
            found.skip(found.source, name, _ADDRESS)
        else:
            found.add(name, distribution.version, found.source)
    return found.finish()


def _text(path: Path) -> str:
    """Return the text of a file; PowerShell writes UTF-16."""
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise UserError(f"{path} is a folder", remedy=_KINDS) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", remedy=_KINDS) from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text", remedy=_KINDS) from None


def _read_requirements(path: Path, text: str, found: Pinned, above: tuple[Path, ...]) -> None:
    """Read a requirements file and the files that it includes; `above` are the files that include it."""
    for number, line in _lines(text):
        where = f"{path}:{number}"
        if not line.startswith("-"):
            _read_requirement(line, where, found)
            continue
        try:
            option, *values = shlex.split(line)
        except ValueError:
            option, values = line.split()[0], []
            raise UserError(f"{where}: the quotes of {option} do not match", remedy="correct the line") from None
        option, equals, joined = option.partition("=")
        if re.match(r"-[rc].", option):  # -rfile
            option, joined, equals = option[:2], option[2:] + equals + joined, "="
        values = [joined, *values] if equals else values
        if option in ("-e", "--editable"):
            egg = re.search(r"[#&]egg=([\w.-]+)", line)
            found.skip(where, egg[1] if egg else "an editable install", _ADDRESS)
        elif option in _FILES:
            _include(path, where, option, values, found, above)
        elif option in _OPTIONS:
            found.skip(where, option, _OPTION)
        else:
            raise UserError(f"{where}: {option} is not an option of a requirements file", remedy="leave the line out")


def _include(path: Path, where: str, option: str, values: list[str], found: Pinned, above: tuple[Path, ...]) -> None:
    if len(values) != 1:
        raise UserError(f"{where}: {option} names {len(values)} files instead of one", remedy="name one file")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", values[0]):
        found.skip(where, option, "it includes an address, and nothing is downloaded")
        return
    other = path.parent / values[0]
    chain = (*above, path.resolve())
    if other.resolve() in chain:
        raise UserError(f"{where}: {other} includes itself", remedy="leave the line out")
    if not other.is_file():
        raise UserError(f"{where}: {option} names {other}, which is not a file", remedy="correct the name")
    _read_requirements(other, _text(other), found, chain)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the logical lines with the number of their first line, without comments, joined at backslashes."""
    start, joined = 0, ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        start = start or number
        comment = line.lstrip().startswith("#")
        if line.endswith("\\") and not comment:
            joined += line[:-1] + " "
            continue
        whole = re.sub(r"(^|\s)#.*$", "", joined + ("" if comment else line)).strip()
        if whole:
            yield start, whole
        start, joined = 0, ""


def _read_requirement(line: str, where: str, found: Pinned) -> None:
    text = re.split(r"\s--?[A-Za-z]", line, maxsplit=1)[0].strip()  # --hash and the like come after the requirement
    name = (re.match(r"[A-Za-z0-9][\w.-]*", text) or [""])[0]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) or re.match(r"[.~/\\]|[A-Za-z]:[/\\]", text):
        found.skip(where, "a file or an address", _ADDRESS)
        return
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        # The line itself may hold an address with a password.
        raise UserError(
            f"{where}: {name or 'the line'} is not followed by a valid version, range or marker",
            remedy="write PACKAGE==VERSION, as pip freeze does",
        ) from None
    if requirement.marker and not found.holds(str(requirement.marker), where):
        found.skip(where, requirement.name, ELSEWHERE)
    elif requirement.url:
        found.skip(where, requirement.name, _ADDRESS)
    else:
        exact = [each.version for each in requirement.specifier if each.operator in ("==", "===")]
        if exact and not exact[0].endswith(".*"):
            found.add(requirement.name, exact[0], where)
        else:
            found.skip(where, requirement.name, "not pinned to one exact version")
