"""Writing files so that a killed process leaves the old file or the new one, never half of it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

__all__ = ["atomic_write", "check_writable"]


def check_writable(path: Path) -> None:
    """Raise the OSError that writing `path` would raise, before the work whose result goes there."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    above = next(folder for folder in path.absolute().parents if folder.exists())
    with tempfile.NamedTemporaryFile(dir=above, prefix=f".{path.name}."):
        pass


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary neighbour of `path`, flush it to disk and rename it into place."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
