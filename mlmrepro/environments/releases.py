"""The releases of a package: which there are, since when, and which were withdrawn (yanked)."""

from __future__ import annotations

import json
import re
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from mlmrepro.credentials import without_credentials
from mlmrepro.environments.make import CACHE, Unmade, addresses, installer, run_pip
from mlmrepro.environments.spec import find_python
from mlmrepro.errors import UserError, first_line
from mlmrepro.files import atomic_write

__all__ = ["Release", "between", "releases", "with_newest"]

_NEWEST = re.compile(r"(?<![\w.-])([A-Za-z0-9][\w.-]*)\s*==\s*(latest|pre)(?![\w.+!-])")
_JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691; older indexes answer with HTML, which has no dates
_WAIT = 60.0  # seconds for an answer of the index


@dataclass(frozen=True)
class Release:
    """A version of a package."""

    version: Version
    uploaded: str = ""  # the day, such as 2025-11-29; "" if the index does not say
    yanked: bool = False


def releases(package: str, folder: Path = CACHE) -> tuple[list[Release], str]:
    """Return all releases of a package, oldest first, and a note, "" if there is nothing to say.

    pip lists them, from the user's indexes; the first index says when each was uploaded and whether it was yanked. If
    no index answers, the list of the last time is used. Raises UserError if there is none.
    """
    kept = folder.absolute() / "releases" / f"{package}.json"
    log = kept.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    try:
        tool = installer(folder.absolute(), find_python(""))
        run_pip(tool, ["-vv", "index", "versions", "--pre", package], log)
    except Unmade as error:
        if kept.is_file():
            entries = json.loads(kept.read_text(encoding="utf-8"))
            known = [Release(Version(each["version"]), each["uploaded"], each["yanked"]) for each in entries]
            return known, f"the index did not answer, so later releases may be missing: {error}"
        raise UserError(
            f"the releases of {package} cannot be listed: {error}",
            remedy="check the package's name, the network and pip's settings (PIP_INDEX_URL)",
        ) from error
    said = re.search(r"(?m)^Available versions: (.*)$", log.read_text(encoding="utf-8", errors="replace"))
    versions = [text.strip() for text in said[1].split(",")] if said else []
    details, note = _details(package, tool, log)
    # pip leaves out what was yanked, and what needs another Python.
    listed = {Version(text): Release(Version(text), details.get(Version(text), ("", False))[0]) for text in versions}
    gone = {version: Release(version, day, True) for version, (day, yanked) in details.items() if yanked}
    found = sorted({**gone, **listed}.values(), key=lambda each: each.version)
    content = [{"version": str(r.version), "uploaded": r.uploaded, "yanked": r.yanked} for r in found]
    atomic_write(kept, json.dumps(content, indent=1) + "\n")
    return found, note


def between(found: list[Release], first: Version, last: Version, *, pre: bool, yanked: bool) -> list[Release]:
    """Return the releases from the first to the last, without pre-releases and yanked ones unless asked for.

    Both ends are in the list, whatever they are. Raises UserError if one of them does not exist.
    """
    known = {each.version for each in found}
    for end in (first, last):
        if end not in known:
            near = sorted(sorted(known, key=lambda version: abs(_number(version) - _number(end)))[:3])
            raise UserError(f"there is no release {end}", remedy=f"give one such as {' or '.join(map(str, near))}")
    return [
        each
        for each in found
        if each.version in (first, last)
        or (
            first < each.version < last
            and (pre or not each.version.is_prerelease)
            and (yanked or not each.yanked)
            and not each.version.is_devrelease
        )
    ]


def with_newest(text: str, folder: Path = CACHE) -> tuple[str, list[str]]:
    """Return a text with the newest release in place of ``PACKAGE==latest``, and notes on what is not known.

    ``PACKAGE==pre`` counts pre-releases too, so it is the newest release where there is no later pre-release. Neither
    is ever a yanked release. Raises UserError if there is none, or if the index does not answer.
    """
    notes: list[str] = []

    def newest(asked: re.Match[str]) -> str:
        package, pre = canonicalize_name(asked[1]), asked[2] == "pre"
        found, note = releases(package, folder)
        notes.extend([f"{package}: {note}"] if note else [])
        versions = [each.version for each in found if not each.yanked and not each.version.is_devrelease]
        versions = [version for version in versions if pre or not version.is_prerelease]
        if not versions:
            raise UserError(f"{asked[0]}: there is no such release", remedy=f"write {package}==VERSION")
        return f"{asked[1]}=={max(versions)}"

    return _NEWEST.sub(newest, text), notes


def _number(version: Version) -> float:
    return version.major * 1e6 + version.minor * 1e3 + version.micro


def _details(package: str, tool: Path, log: Path) -> tuple[dict[Version, tuple[str, bool]], str]:
    """Return the day of each version, and whether it is yanked, from the first index; a note if it does not say so."""
    found: dict[Version, tuple[str, bool]] = {}
    settings = addresses(tool, log)
    # What pip says when it is verbose: also its default index is named there.
    index = re.search(rf"(?m)^\s*\* (http\S+/{package}/)$", log.read_text(encoding="utf-8", errors="replace"))
    if index is None:  # only folders of wheels
        return found, ""
    proxy = settings.get("PIP_PROXY")
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=settings.get("PIP_CERT"))),
        urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else None),
    ]
    opener = urllib.request.build_opener(*handlers)
    try:
        request = urllib.request.Request(index[1], headers={"Accept": _JSON})
        with opener.open(request, timeout=_WAIT) as answer:
            files = json.load(answer)["files"]
    except Exception as error:  # whatever an index may answer: dates are a help, not a need
        reason = without_credentials(first_line(error))
        return found, f"no dates and yanked releases: the index does not list them ({reason})"
    for file in files:
        version = _version_of(file["filename"])
        if version is not None:
            day, gone = str(file.get("upload-time", ""))[:10], bool(file.get("yanked"))
            before = found.get(version, (day, True))
            found[version] = (min(before[0], day), before[1] and gone)
    return found, ""


def _version_of(filename: str) -> Version | None:
    try:
        return parse_wheel_filename(filename)[1] if filename.endswith(".whl") else parse_sdist_filename(filename)[1]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None
