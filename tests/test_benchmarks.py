"""The benchmarks work: each runs once in a tiny size, in a process of its own, as `tox run -e benchmarks` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .benchmarks.ratios import broken, ratio

ROOT = Path(__file__).parents[1]
GROUPS = {
    *("prepare", "mask", "train step", "evaluate", "pseudo-log-likelihood", "fill-mask", "adopt", "compare"),
    "start-up",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What pytest-benchmark wrote, and what was printed."""
    found = tmp_path_factory.mktemp("tiny") / "found.json"
    options = ["-q", "-p", "no:cacheprovider", "--tiny", f"--benchmark-json={found}"]
    command = [sys.executable, "-m", "pytest", "tests/benchmarks/test_speed.py", *options]
    # By what xdist says to its workers, pytest-benchmark would switch itself off here, too.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return json.loads(found.read_text(encoding="utf-8"))["benchmarks"], done.stdout


def test_every_group_is_measured(tiny: tuple[list[dict[str, Any]], str]) -> None:
    """Each group has a benchmark with a time, and what is not run in the tiny size says what would run it."""
    benchmarks, printed = tiny
    assert {each["group"] for each in benchmarks} == GROUPS
    assert all(each["stats"]["median"] > 0 for each in benchmarks)
    skipped = [line for line in printed.splitlines() if line.startswith("SKIPPED")]
    assert len(skipped) >= 2
    assert all("tox run -e" in line and "runs this" in line for line in skipped)


def test_a_benchmark_says_what_its_time_means(tiny: tuple[list[dict[str, Any]], str]) -> None:
    """Tokens each second, memory, the share of a limit measured in the same run, and the ratio to each peer."""
    info = {each["name"]: each["extra_info"] for each in tiny[0]}
    step = info["test_training_of_two_steps[loop]"]
    assert min(step[name] for name in ("tokens", "tokens_per_second", "peak_memory_mib")) > 0
    assert 0 < step["share_of_gemm_peak"] < 1
    assert step["gemm_peak_gigaflops_per_second"] > 0
    assert 0 < info["test_masking"]["share_of_copy_peak"] < 1
    peers = {name.removeprefix("times_as_fast_as_") for each in info.values() for name in each if "times_as" in name}
    assert {"guide", "trainer", "by_hand", "pipeline", "bare_python"} <= peers


def test_a_ratio_below_its_claim_fails() -> None:
    """A claim is held against the ratio that was measured, and a ratio that is missing or NaN is no pass."""
    assert ratio([3.0, 8.0, 6.0], [1.0, 2.0, 3.0]) == 3.0
    info = {"times_as_fast_as_x": 1.5, "times_as_fast_as_y": float("nan")}
    assert broken(info, {"times_as_fast_as_x": 1.4}) == {}
    assert broken(info, {"times_as_fast_as_x": 1.6}) == {"times_as_fast_as_x": 1.5}
    assert broken(info, {"times_as_fast_as_y": 0.1, "times_as_fast_as_z": 0.1}).keys() == {
        "times_as_fast_as_y",
        "times_as_fast_as_z",
    }
