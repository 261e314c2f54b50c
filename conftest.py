"""The environment of every test: offline, deterministic, and named in the header."""

import os
import sys
from pathlib import Path

# Last, so that the installed package is tested: children of a test find the tools that live in tests/.
sys.path.append(str(Path(__file__).parent))

# Before any library is imported: nothing here may reach a hub, and forked map processes must not warn.
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The goldens are of the processor: a GPU draws dropout from a generator of its own.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait do not take the other process's core

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples in every run: a failure is a change of the code under test, never of the draw.
settings.register_profile("suite", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("suite")

# The modules that take longest, the longest first: one that begins last leaves a processor idle.
SLOW = (
    *("test_bench.py", "test_goldens.py", "test_readme.py", "test_localisation.py", "test_settings.py"),
    *("test_guide_profile.py", "test_adopt.py", "test_make.py", "test_contributing.py", "test_cli.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow modules first; within a module the order stays."""
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


def pytest_report_header() -> str:
    """Name the versions that decide the results."""
    from mlmrepro.provenance import package_versions

    named = ("transformers", "datasets", "torch", "tokenizers", "accelerate", "numpy")
    return "libraries: " + ", ".join(f"{name} {package_versions()[name]}" for name in named)
