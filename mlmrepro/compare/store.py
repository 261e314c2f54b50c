"""A directory of goldens that tests read and write: compared both ways, shared between processes, never half written.

This is not a syrupy extension: its `matches` gets two serialised texts, so an update would overwrite tolerances,
reasons and variants. The command line also compares the same files outside pytest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from mlmrepro import provenance
from mlmrepro.compare.golden import Entry, Golden, Variant, is_golden, read_golden, versions_of, write_golden
from mlmrepro.compare.judge import Finding, Verdict, better_direction, broken_bounds, judge
from mlmrepro.compare.tolerance import Tolerance, default_tolerance
from mlmrepro.compare.values import differences
from mlmrepro.errors import UserError
from mlmrepro.record import Lane, Observation, RunRecord

__all__ = ["Declared", "GoldenFile", "GoldenMismatch", "GoldenStore", "Obtained", "Update", "file_key"]

Update = Literal["", "all", "new"]

SET_ASIDE = ("inputs", "matrix")  # directories of stored inputs and of records, without goldens
_LINES = 10  # differences of one entry that a message shows
_CHARACTERS = 300  # of a value in a message
_LONGEST = 100  # characters of one part of a file's path, before its hash


@dataclass(frozen=True)
class Obtained:
    """One value that a test obtained, and how to compare it.

    Without a tolerance the golden's own one applies; a new entry gets the measured one of `quantity`.
    """

    name: str
    value: Any
    lane: Lane
    tolerance: Tolerance | None = None
    quantity: str = ""
    better: str = ""

    @classmethod
    def of(cls, observation: Observation) -> Obtained:
        """Return what a record observed."""
        better = better_direction(observation)
        return cls(observation.name, observation.value, observation.lane, quantity=observation.quantity, better=better)


@dataclass(frozen=True, order=True)
class Declared:
    """A declared variant that holds for these versions, but not for those that the golden was made with."""

    file: str
    name: str
    when: str
    reason: str
    link: str

    def __str__(self) -> str:
        return f"{self.file} {self.name!r} with {self.when}: {self.reason} ({self.link})"


class GoldenMismatch(AssertionError):
    """A value differs from the expected one; the message shows both and what to do next."""

    def __init__(self, problems: Iterable[str], test: str = "") -> None:
        self.problems = tuple(problems)
        command = f"pytest {shlex.quote(test) if test else '...'} --golden-update"
        self.advice = (
            f"Is this a regression? If not, update the golden:\n    {command}\n"
            "or, if only some versions change it, declare it for these (see the variants of a golden)."
        )
        super().__init__("\n\n".join([*self.problems, self.advice]))


def file_key(*parts: str) -> str:
    """Return the path of a golden below its directory: different parts never give the same file.

    A part that is not plain lower-case gets a hash, so that no file system confuses it with another or refuses it.
    """
    *folders, name = parts
    safe = [_safe_part(f, reserved=f in SET_ASIDE or f.endswith(".json")) for f in folders]
    return "/".join([*safe, f"{_safe_part(name)}.json"])


def _safe_part(part: str, *, reserved: bool = False) -> str:
    safe = re.sub(r"[^A-Za-z0-9_.,=+\[\]-]", "_", part).lstrip(".")[:_LONGEST]
    if safe and safe == part == part.lower() and not reserved:
        return part
    return f"{safe}~{hashlib.sha256(part.encode(errors='surrogatepass')).hexdigest()[:12]}"


class GoldenStore:
    """The goldens below one directory. `update`: "" changes no entry, "new" adds entries, "all" replaces them too."""

    def __init__(self, directory: Path, update: Update = "") -> None:
        self.directory = directory
        self.update = update
        self.used: set[tuple[str, str]] = set()  # (file key, entry name)
        self.declared: set[Declared] = set()
        self.settings: dict[str, Any] = {}  # of the recorded run; in the header next to versions and machine
        self._written: set[tuple[str, str]] = set()

    @cached_property
    def versions(self) -> dict[str, str | None]:
        """The versions that choose between variants."""
        return versions_of(provenance.collect())

    def check(
        self, file: str, name: str, value: Any, lane: Lane, tolerance: Tolerance | None = None, better: str = ""
    ) -> None:
        """Raise GoldenMismatch unless the entry of the golden `file`, such as ``"loss"``, agrees with the value."""
        __tracebackhide__ = True
        obtained = Obtained(name, value, lane, tolerance, better=better)
        if problems := self.problems(file_key(*file.split("/")), [obtained]):
            raise GoldenMismatch(problems)

    def problems(self, key: str, obtained: Iterable[Obtained]) -> list[str]:
        """Compare, and write what `update` allows; return one text for each value that does not match."""
        with self._opened(key) as golden:
            found = [self._settle(golden, key, one) for one in obtained]
        return [problem for problem in found if problem]

    def leftover(self, key: str, names: Collection[str]) -> list[str]:
        """Return one text for each entry of a golden that is not in `names`; under "all" delete those instead."""
        with self._opened(key) as golden:
            left = [name for name in golden.entries if name not in names]
            if self.update == "all":
                for name in left:
                    del golden.entries[name]
                return []
        return [f"{self.path(key)}: {name!r}: expected, not obtained" for name in left]

    def unused(self, used: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return (file key, entry name) of what no test used; the name is "" if no entry of a file was used."""
        names: dict[str, set[str]] = {}
        for key, name in used:
            names.setdefault(key, set()).add(name)
        found = []
        for path in sorted(self.directory.rglob("*.json")):
            relative = path.relative_to(self.directory)
            key = relative.as_posix()
            aside = set(SET_ASIDE) & set(relative.parts[:-1]) or (path.parent / "subject.json").is_file()  # adopted
            if aside or (key not in names and not is_golden(path)):
                continue
            if key in names:
                found += [(key, name) for name in read_golden(path).entries if name not in names[key]]
            else:
                found.append((key, ""))
        return found

    def remove(self, unused: Iterable[tuple[str, str]]) -> None:
        """Delete files and entries, as `unused` gives them, and the directories that become empty."""
        for key, name in unused:
            if name:
                with self._opened(key) as golden:
                    golden.entries.pop(name, None)
            else:
                self._delete(key)

    def path(self, key: str) -> Path:
        """Return the path of a golden."""
        return self.directory / key

    @contextmanager
    def _opened(self, key: str) -> Iterator[Golden]:
        """Yield a golden to read and change, locked against other processes; write it if it was changed."""
        path = self.path(key)
        # One lock per directory, kept elsewhere so that it holds only goldens; it ends with its process.
        identity = f"{self.directory.resolve()} {getattr(os, 'getuid', int)()}"
        lock = f"mlmrepro-golden-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.lock"
        with FileLock(Path(tempfile.gettempdir()) / lock):
            golden, damaged = Golden({}), False
            try:
                golden = read_golden(path) if path.exists() else golden
            except UserError:
                damaged = True
                if self.update != "all":
                    raise
            before = _content(golden)
            yield golden
            # The header says where all entries come from; an entry added to others takes their header.
            whole = all((key, name) in self._written for name in golden.entries)
            header = self._header() if whole or not golden.provenance else golden.provenance
            # A guide run that repeats the values becomes their origin; goldens of tests keep their header.
            same = not (self.settings and whole) or header == golden.provenance
            if not damaged and same and _content(golden) == before:
                return
            if golden.entries:
                write_golden(path, Golden(header, golden.entries))
            else:
                self._delete(key)

    def _header(self) -> dict[str, Any]:
        """Return versions and machine; for a run of the guide also its settings, the guide and the code."""
        collected = provenance.collect()
        if self.settings:
            return collected | self.settings
        return {name: content for name, content in collected.items() if name not in ("commit", "source", "guide")}

    def _delete(self, key: str) -> None:
        path = self.path(key)
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self.directory or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()

    def _settle(self, golden: Golden, key: str, obtained: Obtained) -> str:
        """Compare one value, or write it to the golden; return what is wrong, "" if nothing is."""
        self.used.add((key, obtained.name))
        where = f"{self.path(key)}: {obtained.name!r}"
        entry = golden.entries.get(obtained.name)
        try:
            # As JSON gives it back: a tuple becomes a list.
            text = json.dumps(obtained.value, ensure_ascii=False).encode()
            obtained = replace(obtained, value=json.loads(text))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{where}: a golden can hold only JSON values: {error}") from error
        tolerance = _tolerance(entry, obtained)
        # A value that does not match itself, such as NaN, could never match again.
        lasting = not differences(obtained.lane, obtained.value, obtained.value, tolerance)
        if entry is None:
            if not lasting:
                return f"{where}: not written: it can never match, such as NaN\n  obtained: {_short(obtained.value)}"
            return self._absent(golden, key, obtained, _entry(obtained, tolerance, (Variant(obtained.value),)))
        matching = entry.matching(self.versions)
        # A value that this run has written is compared: two tests that disagree about it must not update it.
        if self.update == "all" and lasting and len(matching) == 1 and (key, obtained.name) not in self._written:
            variants = tuple(replace(v, value=obtained.value) if v is matching[0] else v for v in entry.variants)
            golden.entries[obtained.name] = _entry(obtained, tolerance, variants, entry.better)
            self._written.add((key, obtained.name))
            return ""
        if changed := _changed_terms(entry, obtained):
            return f"{where}: {changed}"
        finding = judge("", obtained.name, entry, obtained.value, self.versions)
        if finding.verdict in (Verdict.IDENTICAL, Verdict.WITHIN_NOISE):
            self._note_declared(golden, key, obtained.name, entry)
            return ""
        return "\n".join([f"{where}: {finding.verdict.value}", *self._explained(entry, obtained, finding)])

    def _absent(self, golden: Golden, key: str, obtained: Obtained, entry: Entry) -> str:
        """Write a missing entry; return the message about it."""
        golden.entries[obtained.name] = entry
        self._written.add((key, obtained.name))
        if self.update:
            return ""
        advice = "the next run compares with it; --golden-update=new writes all missing ones at once"
        where = f"{self.path(key)}: {obtained.name!r}"
        return f"{where}: there was no golden; this one was written: {advice}\n  obtained: {_short(obtained.value)}"

    def _note_declared(self, golden: Golden, key: str, name: str, entry: Entry) -> None:
        (variant,), there = entry.matching(self.versions), entry.matching(golden.versions)
        if any(differences(entry.lane, other.value, variant.value, entry.tolerance) for other in there):
            self.declared.add(Declared(key, name, " and ".join(variant.when), variant.reason, variant.link))

    def _explained(self, entry: Entry, obtained: Obtained, finding: Finding) -> Iterator[str]:
        """Yield the lines of a message: both values, each difference, and the expected variant."""
        matching = entry.matching(self.versions)
        yield f"  obtained: {_short(obtained.value)}"
        if len(matching) == 1:
            yield f"  expected: {_short(matching[0].value)}"
        yield from (f"  {difference}" for difference in finding.differences[:_LINES])
        if len(finding.differences) > _LINES:
            yield f"  and {len(finding.differences) - _LINES} more differences"
        if entry.tolerance is not None:
            yield f"  tolerance: {_shown(entry.tolerance)}: {entry.tolerance.reason}"
        for variant in matching or entry.variants:
            if variant.when:
                holds = "holds" if variant in matching else "does not hold"
                text = f"{_short(variant.value)}: {variant.reason} ({variant.link})"
                yield f"  {holds} here: the variant for {' and '.join(variant.when)}, {text}"


class GoldenFile:
    """What a test sees of one golden: a method for each lane, and other files by name."""

    def __init__(self, store: GoldenStore, key: str, test: str = "") -> None:
        self._store = store
        self._key = key
        self._test = test

    def exact(self, name: str, value: Any) -> None:
        """Check ids, orders, counts and text: nothing may differ."""
        __tracebackhide__ = True
        self._check(Obtained(name, value, Lane.EXACT))

    def approximate(
        self, name: str, value: Any, *, quantity: str, atol: float = 0.0, rtol: float = 0.0, reason: str = ""
    ) -> None:
        """Check floats within a tolerance with a reason; by default within the measured one of the quantity."""
        __tracebackhide__ = True
        given = atol or rtol or reason
        tolerance = Tolerance(quantity, atol, rtol, reason) if given else default_tolerance(quantity)
        self._check(Obtained(name, value, Lane.APPROXIMATE, tolerance))

    def ranking(self, name: str, rows: Any, *, tie_band: float, reason: str) -> None:
        """Check an order by score, best first: rows with `token` and `score`, which may tie within the band."""
        __tracebackhide__ = True
        self._check(Obtained(name, rows, Lane.RANKING, Tolerance("probability", atol=tie_band, reason=reason)))

    def statistical(
        self, name: str, value: Any, *, quantity: str = "perplexity", rtol: float, reason: str, better: str = "lower"
    ) -> None:
        """Check a value that depends on masks and seeds, relatively; an improvement fails too, and is named as one."""
        __tracebackhide__ = True
        tolerance = Tolerance(quantity, rtol=rtol, reason=reason)
        self._check(Obtained(name, value, Lane.STATISTICAL, tolerance, better=better))

    def stage(self, record: RunRecord, stage: str, folder: str = "") -> None:
        """Check what one stage of a run observed, against ``<folder>/<stage>.json`` both ways, and its bounds."""
        __tracebackhide__ = True
        key = _named(f"{folder}/{stage}" if folder else stage)
        observed = [Obtained.of(o) for o in record.stages.get(stage, {}).values() if o.compared]
        if not observed:
            problem = f"{self._store.path(key)}: the record has nothing for the stage {stage!r}"
            raise GoldenMismatch([problem], self._test)
        self._store.settings = {"config": record.config}
        try:
            problems = self._store.problems(key, observed) + self._store.leftover(key, {one.name for one in observed})
            problems += [f"{f.name}: {f.differences[0]}" for f in broken_bounds(record) if f.stage == stage]
        finally:
            self._store.settings = {}
        if problems:
            raise GoldenMismatch(problems, self._test)

    def file(self, name: str) -> GoldenFile:
        """Return a golden by its name, which several tests may share."""
        return GoldenFile(self._store, _named(name), self._test)

    def unchecked(self) -> str:
        """Return a message about entries that were not checked; "" if all were checked or are now deleted."""
        names = {name for key, name in self._store.used if key == self._key}
        problems = self._store.leftover(self._key, names)
        return str(GoldenMismatch(problems, self._test)) if problems else ""

    def _check(self, obtained: Obtained) -> None:
        __tracebackhide__ = True
        if problems := self._store.problems(self._key, [obtained]):
            raise GoldenMismatch(problems, self._test)


def _named(name: str) -> str:
    return file_key(*name.removesuffix(".json").split("/"))


def _content(golden: Golden) -> str:
    return json.dumps({name: entry.to_dict() for name, entry in golden.entries.items()})


def _entry(obtained: Obtained, tolerance: Tolerance | None, variants: tuple[Variant, ...], better: str = "") -> Entry:
    return Entry(obtained.lane, variants, tolerance, obtained.better or better)


def _tolerance(entry: Entry | None, obtained: Obtained) -> Tolerance | None:
    """Return the call's tolerance, else the golden's, else the measured one of the quantity."""
    if obtained.lane is Lane.EXACT or obtained.tolerance is not None:
        return obtained.tolerance
    if entry is not None and entry.tolerance is not None and obtained.quantity in ("", entry.tolerance.quantity):
        return entry.tolerance
    return default_tolerance(obtained.quantity)


def _changed_terms(entry: Entry, obtained: Obtained) -> str:
    """Return how the golden and the call disagree about lane or tolerance, "" if they agree."""
    if entry.lane is not obtained.lane:
        return f"the golden uses the {entry.lane.value} lane, the test uses the {obtained.lane.value} lane"
    ours, theirs = _tolerance(entry, obtained), entry.tolerance
    if ours is not None and theirs is not None and _terms(ours) != _terms(theirs):
        return f"the golden has the tolerance {_shown(theirs)}, the test has {_shown(ours)}"
    return ""


def _terms(tolerance: Tolerance) -> tuple[str, float, float]:
    return tolerance.quantity, tolerance.atol, tolerance.rtol


def _shown(tolerance: Tolerance) -> str:
    parts = [f"{tolerance.atol:g}"] if tolerance.atol or not tolerance.rtol else []
    parts += [f"{tolerance.rtol:g} of the expected value"] if tolerance.rtol else []
    return f"{' + '.join(parts)} ({tolerance.quantity})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}… ({len(text)} characters)"
