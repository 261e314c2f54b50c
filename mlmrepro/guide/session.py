"""The folder of a run: its settings, which a resumed run must share, and its cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlmrepro import provenance
from mlmrepro.config import RunConfig
from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write

__all__ = ["MODEL", "RECORD", "cache_folder", "claim", "session"]

MODEL, RECORD = "model", "record.json"
_RUN = "run.json"  # the settings that a run was started with; only the same ones can resume it


def cache_folder(config: RunConfig, folder: Path) -> Path | None:
    """Return the place in `folder` for a fresh cache of the data, None for the library's own.

    Leftovers of another run change the number of processes, and with it the blocks.
    """
    return folder / "cache" if config.profile == "embedded" else None


@contextmanager
def session(config: RunConfig) -> Iterator[Path | None]:
    """Note the run's settings and yield the folder for its cache, None for the library's own.

    The cache is removed afterwards, and so is the whole folder if the run left nothing to resume: bad input leaves no
    trace.
    """
    cache = cache_folder(config, config.output_dir)
    try:
        atomic_write(config.output_dir / _RUN, json.dumps(_settings(config), indent=1) + "\n")
        if cache is not None:
            shutil.rmtree(cache, ignore_errors=True)
        yield cache
    finally:
        if cache is not None:
            shutil.rmtree(cache, ignore_errors=True)
        if not config.resume and not any((config.output_dir / MODEL).rglob("model.safetensors")):
            shutil.rmtree(config.output_dir, ignore_errors=True)


def claim(config: RunConfig) -> None:
    """Raise UserError if the output folder cannot be used: nothing in it is ever overwritten."""
    directory = config.output_dir
    if directory.exists() and not directory.is_dir():
        raise UserError(f"the output directory {directory} is a file", remedy="give --output-dir another path")
    if not config.resume:
        if directory.exists() and any(directory.iterdir()):
            raise UserError(
                f"the output directory {directory} is not empty",
                remedy="give --output-dir a new path, or continue a killed run in it with --resume",
            )
        return
    started = directory / _RUN
    if not started.is_file():
        raise UserError(
            f"there is no run to resume in {directory}",
            remedy="give the --output-dir of the killed run, or drop --resume",
        )
    earlier = json.loads(started.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(_settings(config)))
    if earlier != now:
        raise UserError(
            f"the run in {directory} was started with other settings: {_difference(earlier, now)}",
            remedy=f"resume with the settings in its {_RUN}, or start in another --output-dir",
        )


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return what a resumed run must share with its start: a record must not mix epochs of two versions."""
    return config.to_dict() | {"packages": provenance.package_versions()}


def _difference(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    pairs = [(name, earlier["guide"].get(name), value) for name, value in now["guide"].items()]
    pairs += [(name, earlier["packages"].get(name), value) for name, value in now["packages"].items()]
    pairs += [(name, earlier.get(name), now[name]) for name in ("profile", "threads")]
    pairs.append(("fast", earlier.get("fast", ""), now.get("fast", "")))
    return ", ".join(f"{name} {old!r}, now {new!r}" for name, old, new in pairs if old != new) or "its overrides differ"
