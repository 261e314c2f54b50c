"""Where a record comes from: versions, platform, device, threads and commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["PACKAGES", "collect", "package_versions"]

# What can change a result of the guide, directly or underneath.
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

# The page that this package follows, as it was when its literals were read off.
GUIDE = {
    "page": "transformers: docs/source/ja/tasks/masked_language_modeling.md",
    "sha256": "833d30240676388ac5e7eed4356763ad897e1ad686cd8ceb424fa82aad7f713b",
}


@cache
def package_versions() -> dict[str, str | None]:
    """Return the installed version of each package that matters, None where it is absent."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


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
        "guide": GUIDE,
    }


def _commit() -> dict[str, Any] | None:
    """Return the checkout's commit and whether it has uncommitted changes; None outside a checkout of this package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        return {"id": head, "dirty": bool(_git(root, "status", "--porcelain", "--", "mlmrepro").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout
