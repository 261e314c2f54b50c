"""Read the lock files that are TOML: uv.lock, poetry.lock, pylock.toml (PEP 751).

Each lists one package several times if its version depends on the Python or the platform, and says so in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from packaging.utils import canonicalize_name

from mlmrepro.environments.pinned import ELSEWHERE, Pinned
from mlmrepro.errors import UserError

__all__ = ["read_poetry", "read_pylock", "read_uv"]

_AGAIN = "lock again, with a current version of the tool that wrote the file"
_FROM_ADDRESS = "from an address or a folder, which a version cannot reproduce"
_EXTRAS = "its version depends on an extra or a group; export a requirements.txt with the one that you use"

Table = Mapping[str, Any]


def read_pylock(content: Table, found: Pinned) -> None:
    """Read a pylock.toml, as an installer without extras and with the default groups does."""
    if str(content["lock-version"]).split(".")[0] != "1":
        problem = f"{found.source}: lock-version is {content['lock-version']!r}, not 1"
        raise UserError(problem, remedy="lock again in version 1.0")
    values = {"extras": frozenset[str](), "dependency_groups": frozenset(_texts(content, "default-groups", found))}
    where = f"{found.source}: requires-python"
    if not found.fits_python(_text(content, "requires-python", found.source), where):
        raise UserError(f"{where} is not this Python", remedy="run mlmrepro with a Python that the file allows")
    environments = _texts(content, "environments", found)
    if environments and not any(found.holds(each, f"{found.source}: environments", **values) for each in environments):
        raise UserError(f"{found.source}: environments leaves this platform out", remedy="lock for this one, too")
    for package, where in _packages(content, "packages", found):
        name = _name(package, where)
        if not found.holds(_text(package, "marker", where), f"{where}: marker", **values):
            found.skip(where, name, ELSEWHERE)
        elif not found.fits_python(_text(package, "requires-python", where), f"{where}: requires-python"):
            raise UserError(f"{where}: {name} does not run with this Python", remedy="lock for this Python")
        elif {"vcs", "directory", "archive"} & package.keys() or "version" not in package:
            found.skip(where, name, _FROM_ADDRESS)
        else:
            found.add(name, _text(package, "version", where), where)


def read_poetry(content: Table, found: Pinned) -> None:
    """Read a poetry.lock; of packages that only an extra needs, those with one version are used too."""
    by_extra: dict[str, set[str]] = {}
    places: dict[str, str] = {}
    for package, where in _packages(content, "package", found):
        name, version = _name(package, where), _text(package, "version", where, needed=True)
        markers = package.get("markers", "")
        each = list(markers.values()) if isinstance(markers, dict) else [markers]
        if not all(isinstance(marker, str) for marker in each):
            raise UserError(f"{where}: markers is neither a text nor a table of texts", remedy=_AGAIN)
        source = package.get("source", {})
        if isinstance(source, dict) and source.get("type") in ("git", "url", "file", "directory"):
            found.skip(where, name, _FROM_ADDRESS)
        elif not found.fits_python(_text(package, "python-versions", where), f"{where}: python-versions"):
            found.skip(where, name, ELSEWHERE)
        elif any(found.holds(marker, f"{where}: markers") for marker in each):
            if package.get("optional"):
                by_extra.setdefault(name, set()).add(version)
                places[name] = where
            else:
                found.add(name, version, where)
        elif any(_holds_with_an_extra(marker, where, found) for marker in each):
            by_extra.setdefault(name, set()).add(version)
            places[name] = where
        else:
            found.skip(where, name, ELSEWHERE)
    _add_rest(by_extra, places, found)


def read_uv(content: Table, found: Pinned) -> None:
    """Read a uv.lock: follow the dependencies from the project, on the edges that hold here.

    The project's own dependencies and its group ``dev`` count as uv sync installs them; what only other groups or
    extras need is used if it adds no second version.
    """
    if content["version"] != 1:
        raise UserError(f"{found.source}: version is {content['version']!r}, not 1", remedy=_AGAIN)
    graph = _Graph(content, found)
    first, rest = graph.reached(default=True), graph.reached(default=False)
    by_extra: dict[str, set[str]] = {}
    for index in sorted(rest):
        package, where = graph.packages[index]
        name = _name(package, where)
        if {"git", "url", "path", "directory"} & package["source"].keys() or "version" not in package:
            found.skip(where, name, _FROM_ADDRESS)
        elif {"editable", "virtual"} & package["source"].keys():
            found.skip(where, name, "the project itself")
        elif index in first:
            found.add(name, _text(package, "version", where), where)
        else:
            by_extra.setdefault(name, set()).add(_text(package, "version", where))
    _add_rest(by_extra, {name: found.source for name in by_extra}, found)
    for index, (package, where) in enumerate(graph.packages):
        if index not in rest:
            found.skip(where, package["name"], _EXTRAS if _name(package, where) in graph.chosen else ELSEWHERE)


class _Graph:
    """The packages of a uv.lock and which need which."""

    def __init__(self, content: Table, found: Pinned) -> None:
        self.found = found
        self.packages = list(_packages(content, "package", found))
        self.by_name: dict[str, list[int]] = {}
        self.chosen: set[str] = set()  # names whose version an extra or a group decides
        for index, (package, where) in enumerate(self.packages):
            if not isinstance(package.get("source"), dict):
                raise UserError(f"{where}: source is missing", remedy=_AGAIN)
            self.by_name.setdefault(_name(package, where), []).append(index)
        manifest = content.get("manifest", {})
        groups = manifest.get("dependency-groups", {}).values()
        self.own = [edge for edges in (manifest.get("requirements", []), *groups) for edge in edges]
        self.roots = [i for i, (p, _) in enumerate(self.packages) if {"editable", "virtual"} & p["source"].keys()]
        if not self.roots and not self.own:  # nothing says what was asked for: what nobody else needs
            named = {e["name"] for p, w in self.packages for e in self._edges(p, w, everything=True)}
            self.roots = [i for i, (p, _) in enumerate(self.packages) if p["name"] not in named]

    def reached(self, *, default: bool) -> set[int]:
        """Return the packages that are needed here, by all extras and groups of the project or by the default ones."""
        todo: list[tuple[int, str]] = [(index, "") for index in self.roots]
        for edge in self.own:
            todo += self._targets(edge, f"{self.found.source}: manifest")
        seen: set[tuple[int, str]] = set()
        while todo:
            index, extra = todo.pop()
            if (index, extra) in seen:
                continue
            seen.add((index, extra))
            package, where = self.packages[index]
            everything = index in self.roots and not default
            for edge in self._edges(package, where, everything=everything, extra=extra, dev=index in self.roots):
                todo += self._targets(edge, where)
        return {index for index, _ in seen}

    def _edges(
        self, package: Table, where: str, *, everything: bool, extra: str = "", dev: bool = False
    ) -> Iterator[dict[str, Any]]:
        groups = [package.get("dependencies", [])]
        optional, developing = package.get("optional-dependencies", {}), package.get("dev-dependencies", {})
        if everything:
            groups += [*optional.values(), *developing.values()]
        groups += [optional.get(extra, [])] if extra else []
        groups += [developing.get("dev", [])] if dev else []
        for edge in (edge for group in groups for edge in group):
            if not isinstance(edge, dict) or not isinstance(edge.get("name"), str):
                raise UserError(f"{where}: a dependency has no name", remedy=_AGAIN)
            yield edge

    def _targets(self, edge: Table, where: str) -> list[tuple[int, str]]:
        """Return the packages that an edge leads to here, each with the extras that it asks for."""
        name = canonicalize_name(edge["name"])
        if name not in self.by_name:
            raise UserError(f"{where}: {name} is needed but not listed", remedy=_AGAIN)
        if not self.found.holds(marker := edge.get("marker", ""), f"{where}: the marker of {name}"):
            self.chosen |= {name} if re.search(r"\bextra\b", marker) else set()
            return []
        there = self.by_name[name]
        if "version" in edge:
            there = [index for index in there if self.packages[index][0].get("version") == edge["version"]]
        if len(there) > 1 and "source" in edge:
            there = [index for index in there if self.packages[index][0]["source"] == edge["source"]]
        if len(there) > 1:
            there = [index for index in there if self._is_for_here(index)]
        return [(index, extra) for index in there for extra in ("", *edge.get("extra", []))]

    def _is_for_here(self, index: int) -> bool:
        package, where = self.packages[index]
        markers = package.get("resolution-markers", [])
        return not markers or any(self.found.holds(m, f"{where}: resolution-markers") for m in markers)


def _add_rest(by_extra: Mapping[str, Iterable[str]], places: Mapping[str, str], found: Pinned) -> None:
    """Pin what only extras or groups need, if they agree on one version."""
    for name, versions in by_extra.items():
        if name in found.versions:
            continue
        version, *others = sorted(versions)
        if others:
            found.skip(places[name], name, _EXTRAS)
        else:
            found.add(name, version, places[name])


def _holds_with_an_extra(marker: str, where: str, found: Pinned) -> bool:
    extras = re.findall(r"""extra\s*==\s*["']([^"']+)["']""", marker)
    return any(found.holds(marker, f"{where}: markers", extra=extra) for extra in extras)


def _packages(content: Table, field: str, found: Pinned) -> Iterator[tuple[Table, str]]:
    """Yield the packages, each with the place where it stands."""
    packages = content.get(field, [])
    if not isinstance(packages, list):
        raise UserError(f"{found.source}: {field} is not a list of tables", remedy=_AGAIN)
    for number, package in enumerate(packages, 1):
        where = f"{found.source}: {field} {number}"
        if not isinstance(package, dict):
            raise UserError(f"{where} is not a table", remedy=_AGAIN)
        name = package.get("name")
        yield package, f"{where} ({name})" if isinstance(name, str) else where


def _name(package: Table, where: str) -> str:
    return canonicalize_name(_text(package, "name", where, needed=True))


def _text(table: Table, field: str, where: str, *, needed: bool = False) -> str:
    value = table.get(field, None if needed else "")
    if isinstance(value, str):
        return value
    raise UserError(f"{where}: {field} is {'missing' if value is None else 'not a text'}", remedy=_AGAIN)


def _texts(table: Table, field: str, found: Pinned) -> list[str]:
    values = table.get(field, [])
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    raise UserError(f"{found.source}: {field} is not a list of texts", remedy=_AGAIN)
