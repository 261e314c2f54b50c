"""Goldens under processes that write at the same time, and under one that is killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mlmrepro.compare.golden import read_golden
from mlmrepro.compare.store import GoldenStore
from mlmrepro.record import Lane

LENGTH = 500  # of the list that a writer writes without end
WRITER = """
import sys
from pathlib import Path
from mlmrepro import provenance
from mlmrepro.compare.store import GoldenStore
from mlmrepro.record import Lane

provenance.collect = lambda: {"packages": {}, "python": "3.11.7", "platform": {}}
folder, start, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for number in range(start, stop):
    name = f"n{number}" if stop - start < 1000 else "x"
    GoldenStore(folder, "all").check("f", name, [number] * 500 if name == "x" else number, Lane.EXACT)
"""


def writer(folder: Path, start: int, stop: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(start), str(stop)], stdout=subprocess.PIPE)


def values(folder: Path) -> dict[str, Any]:
    entries = read_golden(folder / "f.json").entries
    return {name: entry.variants[0].value for name, entry in entries.items()}


def test_a_killed_writer_leaves_a_whole_golden(tmp_path: Path) -> None:
    """At any moment, and when killed at any, a writer leaves the old golden or the new one; the next writes at once."""
    folder = tmp_path / "golden"
    moments = random.Random(42)
    GoldenStore(folder, "new").check("f", "x", [0] * LENGTH, Lane.EXACT)
    seen = set()
    for _ in range(10):
        with writer(folder, 1, 10**6) as process:
            assert process.stdout is not None
            process.stdout.readline()
            moment, value = time.monotonic() + moments.uniform(0.02, 0.15), 0
            try:  # a slow writer is left until it has written once
                while time.monotonic() < moment or (not value and process.poll() is None):
                    assert len(values(folder)["x"]) == LENGTH
                    value = values(folder)["x"][0]
            finally:
                process.kill()
        (value,) = set(values(folder)["x"])
        seen.add(value)
        GoldenStore(folder, "all").check("f", "x", [0] * LENGTH, Lane.EXACT)
    assert seen - {0}, "no writer got as far as to write"


def test_processes_share_a_file(tmp_path: Path) -> None:
    """What several processes write into one golden at the same time is all there, and no lock lies beside it."""
    folder = tmp_path / "golden"
    processes = [writer(folder, start, start + 25) for start in (0, 100, 200)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    numbers = [start + number for start in (0, 100, 200) for number in range(25)]
    assert values(folder) == {f"n{number}": number for number in numbers}
    assert [path.name for path in folder.iterdir()] == ["f.json"]
