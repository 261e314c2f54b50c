"""What the made environments take on the disk, and removing those that were not used for longest.

Only what mlmrepro made is removed: a virtual environment whose name ends with a digest, with its lock file next to it,
and the packages in a store with one. No symbolic link is followed. Hard-linked files count once.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from mlmrepro.environments.make import CACHE, MARKER

__all__ = ["Disk", "Made", "Pruned"]

_SHOWN = ("transformers", "datasets", "torch")


@dataclass(frozen=True)
class Made:
    """An environment on the disk."""

    home: Path
    versions: dict[str, str]  # of the packages that matter most
    used: float  # when it was last used, in seconds since the epoch; 0 if a killed run did not finish making it
    own: int  # bytes that only it holds
    shared: int  # bytes that others hold too
    busy: bool  # a process uses it, or makes it


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be."""

    environments: list[Path]
    packages: list[Path]  # unpacked ones that no environment linked any more
    freed: int  # bytes
    left: int


class Disk:
    """The environments of a folder, and the files that each holds."""

    def __init__(self, folder: Path = CACHE) -> None:
        self.folder = folder.absolute()
        self._files: dict[Path, dict[int, int]] = {}  # what holds files: the bytes of each inode
        self._packages: list[Path] = []
        for home in _folders(self.folder):
            is_store = home.name.startswith("packages-") and Path(f"{home}.lock").is_file()
            for each in _folders(home) if is_store else [home]:
                self._files[each] = _inodes(each)
                if is_store and any(each.glob("*.dist-info")) and not each.name.startswith("."):
                    self._packages.append(each)
        self.total = _bytes(self._files.values())  # each file counted once
        holders = Counter(inode for files in self._files.values() for inode in files)
        made = [_made(home, files, holders) for home, files in self._files.items() if _is_environment(home)]
        self.environments = sorted(made, key=lambda each: each.used)

    def chosen(self, *, keep: int | None = None, size: float = 0) -> list[Made]:
        """Return the environments to remove, the longest unused first, and never one that is in use.

        All but the `keep` last used ones; or as many as it takes for the rest to fit into `size` bytes.
        """
        idle = [each for each in self.environments if not each.busy]
        if keep is not None:
            last = self.environments[max(len(self.environments) - keep, 0) :]
            return [each for each in idle if each not in last]
        fits = range(len(idle) + 1)
        return idle[: bisect_left(fits, True, key=lambda n: self._without([e.home for e in idle[:n]])[0] <= size)]

    def prune(self, chosen: Sequence[Made], *, dry: bool = False) -> Pruned:
        """Remove environments, but for those in use by now, then the packages that none links any more."""
        gone = [each.home for each in chosen if dry or _remove_environment(each.home)]
        left, unlinked = self._without(gone)
        packages = [each for each in unlinked if dry or _remove_package(each)]
        left = left if dry else Disk(self.folder).total
        return Pruned(gone, packages, self.total - left, left)

    def _without(self, removed: Sequence[Path]) -> tuple[int, list[Path]]:
        """Return the bytes that are left without some environments, and the packages that go with them."""
        rest = {home: files for home, files in self._files.items() if home not in removed}
        holders = Counter(inode for files in rest.values() for inode in files)
        unlinked = [home for home in self._packages if all(holders[inode] == 1 for inode in rest[home])]
        return _bytes(files for home, files in rest.items() if home not in unlinked), unlinked


def _bytes(holders: Iterable[dict[int, int]]) -> int:
    return sum({inode: size for files in holders for inode, size in files.items()}.values())


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, without symbolic links."""
    if not folder.is_dir():
        return []
    return sorted(Path(each.path) for each in os.scandir(folder) if each.is_dir(follow_symlinks=False))


def _inodes(folder: Path) -> dict[int, int]:
    """Return the bytes on the disk of each file and folder, by inode."""
    found: dict[int, int] = {}
    todo = [os.fspath(folder)]
    with suppress(FileNotFoundError):  # another process makes or removes it
        while todo:
            for each in os.scandir(todo.pop()):
                about = each.stat(follow_symlinks=False)
                found[about.st_ino] = about.st_blocks * 512
                if each.is_dir(follow_symlinks=False):
                    todo.append(each.path)
    return found


def _is_environment(home: Path) -> bool:
    own_name = re.fullmatch(r".+-[0-9a-f]{12}", home.name)
    return bool(own_name) and Path(f"{home}.lock").is_file() and (home / "pyvenv.cfg").is_file()


def _made(home: Path, files: dict[int, int], holders: Counter[int]) -> Made:
    names = (path.name.split("-") for path in home.glob("lib/python*/site-packages/*.dist-info"))
    versions = {name: rest[0].removesuffix(".dist") for name, *rest in names if name in _SHOWN}
    marker = home / MARKER
    used = marker.stat().st_mtime if marker.is_file() else 0.0
    own = sum(size for inode, size in files.items() if holders[inode] == 1)
    with _alone(home) as alone:
        return Made(home, versions, used, own, sum(files.values()) - own, not alone)


@contextmanager
def _alone(home: Path) -> Iterator[bool]:
    """Yield whether no process uses a folder, nor makes it; as long as this lasts, none can begin to."""
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(f"{home}.lock").acquire(timeout=0))
            handle = os.open(home, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError:  # a lock that another process holds, or no folder any more
            alone = False
        yield alone


def _remove_environment(home: Path) -> bool:
    """Remove an environment unless it is in use; the marker first, so that half of one is never taken for a whole."""
    with _alone(home) as alone:
        if alone:
            (home / MARKER).unlink(missing_ok=True)
            for each in _folders(home):  # before pyvenv.cfg: after a kill the next prune finds the rest
                shutil.rmtree(each)
            shutil.rmtree(home)
            Path(f"{home}.log").unlink(missing_ok=True)
    return alone


def _remove_package(home: Path) -> bool:
    """Remove an unpacked package unless its store is in use; as what a killed installation leaves, for that reason."""
    with _alone(home.parent) as alone:
        if alone:
            new = home.parent / ".new"
            shutil.rmtree(new, ignore_errors=True)
            home.rename(new)
            shutil.rmtree(new)
    return alone
