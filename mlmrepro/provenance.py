"""Where a record comes from: versions, platform, device, threads, commit and a digest of the package's source.

``python -m mlmrepro.provenance`` prints the commit and exits with 2 if it is unknown or has uncommitted changes:
the tools that make goldens and tables run it first.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import mlmrepro
from mlmrepro.errors import UserError

__all__ = ["PACKAGES", "clean_commit", "collect", "origin_problems", "package_versions", "source_digest"]

# What can change a result of the guide, directly or indirectly.
PACKAGES = (
    "mlmrepro",
    "transformers",
    "datasets",
    "torch",
    "tokenizers",
    "accelerate",
    "evaluate",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "pyarrow",
    "pandas",
    "dill",
    "multiprocess",
    "fsspec",
)

# A wheel does not know its commit: this variable names the checkout that it was built from.
CHECKOUT = "MLMREPRO_CHECKOUT"
# What decides a golden or a table; not the goldens themselves, which are written during a run.
_DECISIVE = ("mlmrepro", "tests", "conftest.py", "pyproject.toml", "tox.ini", ".ci")

# The page that this package follows, as it was when its literals were copied.
GUIDE = {
    "page": "transformers: docs/source/ja/tasks/masked_language_modeling.md",
    "sha256": "833d30240676388ac5e7eed4356763ad897e1ad686cd8ceb424fa82aad7f713b",
}


@cache
def package_versions() -> dict[str, str | None]:
    """Return the installed version of each package that matters, None if it is absent; our own is always known."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions | {"mlmrepro": mlmrepro.__version__}


def source_digest(package: Path | None = None) -> str:
    """Return a digest (SHA-256, hexadecimal) of all Python and TOML files of a package's folder, by default this one's.

    It is the same for a checkout, a wheel and an editable installation of one commit, and needs no git.
    """
    folder = package or Path(__file__).resolve().parent
    files = sorted(
        (path.relative_to(folder).as_posix(), path) for kind in ("*.py", "*.toml") for path in folder.rglob(kind)
    )
    digest = hashlib.sha256()
    for name, path in files:
        for part in (name.encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def collect() -> dict[str, Any]:
    """Return the provenance of a run in this process; looks at torch only when it is already imported."""
    torch = sys.modules.get("torch")
    device: dict[str, Any] = {"type": "cpu"}
    if torch is not None:
        device["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            device |= {"type": "cuda", "name": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": {"system": platform.system(), "machine": platform.machine(), "libc": "-".join(platform.libc_ver())},
        "device": device,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": _commit(),
        "source": _own_source(),
        "guide": GUIDE,
    }


def origin_problems(provenance: Mapping[str, Any]) -> list[str]:
    """Return why something cannot be made again: no version, source or commit, or uncommitted changes."""
    problems = []
    packages, commit = provenance.get("packages"), provenance.get("commit")
    if not isinstance(packages, dict) or not packages.get("mlmrepro"):
        problems.append("it does not name the version of mlmrepro that made it")
    if not provenance.get("source"):
        problems.append("it has no digest of the source that made it")
    if not isinstance(commit, dict) or not commit.get("id"):
        problems.append("it does not name the commit that made it")
    elif commit.get("dirty") is not False:
        problems.append(f"it was made with uncommitted changes on top of {str(commit['id'])[:7]}")
    return problems


def clean_commit() -> str:
    """Return the commit of the running code; raises UserError if it is unknown or has uncommitted changes."""
    commit = _commit()
    if commit is None:
        raise UserError(
            "the commit of this mlmrepro is unknown: it runs outside a checkout that git can read, "
            "or was built from another state",
            remedy=f"run it in a checkout, or build it from the checkout that {CHECKOUT} names",
        )
    if commit["dirty"]:
        raise UserError(
            f"the checkout has uncommitted changes on top of {commit['id'][:7]}: {_shown(commit['changes'])}",
            remedy="commit or stash them first: committed results must be made from a commit",
        )
    return str(commit["id"])


def _shown(changes: list[str]) -> str:
    return ", ".join(changes[:5]) + (f" and {len(changes) - 5} more" if len(changes) > 5 else "")


@cache
def _own_source() -> str:
    return source_digest()


@cache  # a process keeps the code that it has imported, whatever happens to the checkout meanwhile
def _commit() -> dict[str, Any] | None:
    """Return the checkout's commit, and the uncommitted changes of files that decide a result.

    None outside a checkout, and if the checkout that CHECKOUT names holds another source than the one that runs.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        if not (named := os.environ.get(CHECKOUT)):
            return None
        root = Path(named)
        if source_digest(root / "mlmrepro") != _own_source():
            return None
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        status = _git(root, "status", "--porcelain", "--", *_DECISIVE)
    except (OSError, subprocess.SubprocessError):
        return None
    changes = [line[3:] for line in status.splitlines()]
    return {"id": head, "dirty": bool(changes)} | ({"changes": changes} if changes else {})


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


if __name__ == "__main__":
    try:
        print(f"mlmrepro {mlmrepro.__version__}, commit {clean_commit()}, source {_own_source()[:12]}")
    except UserError as error:
        print(f"mlmrepro: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
