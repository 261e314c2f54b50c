"""Small projects whose tests use goldens, run by pytest inside this process."""

from __future__ import annotations

from typing import Any

import pytest

from mlmrepro.compare.golden import Entry, Golden, Variant, read_golden, write_golden
from mlmrepro.provenance import collect
from mlmrepro.record import Lane

LINK = "https://x/1"
MODULE = """
    def test_one(golden):
        golden.exact("x", 1)

    def test_two(golden):
        golden.file("shared").exact("x", 2)
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "mlmrepro.pytest_plugin", *arguments)


def parallel(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return run(pytester, "-p", "xdist", "-n", "2", *arguments)


def write_tests(pytester: pytest.Pytester, **modules: str) -> None:
    """Write modules below tests/, named by their keys, and a pytest configuration where there is none."""
    if not (pytester.path / "tox.ini").exists():
        pytester.makeini("[pytest]\n")
    for name, source in modules.items():
        pytester.path.joinpath("tests").mkdir(exist_ok=True)
        pytester.makepyfile(**{f"tests/{name}": source})


def write_goldens(pytester: pytest.Pytester, **files: dict[str, Any]) -> None:
    """Write goldens: a tuple of variants is one entry with them."""
    for name, values in files.items():
        entries = {
            key: Entry(Lane.EXACT, value if isinstance(value, tuple) else (Variant(value),))
            for key, value in values.items()
        }
        write_golden(pytester.path / "golden" / f"{name}.json", Golden(collect(), entries))


def goldens(pytester: pytest.Pytester, folder: str = "golden") -> dict[str, dict[str, Any]]:
    """Return the values of all goldens, by file and entry."""
    root = pytester.path / folder
    return {
        path.relative_to(root).as_posix(): {
            name: [v.value for v in entry.variants] for name, entry in read_golden(path).entries.items()
        }
        for path in sorted(root.rglob("*.json"))
    }


def declare(pytester: pytest.Pytester, here: str = "python>=3", **entries: Any) -> None:
    """Write a shared golden, made with an older python, in which each entry is declared to be its value here."""
    golden = Golden(collect() | {"python": "2.7"})
    for name, value in entries.items():
        before = Variant("before", ("python<3",), f"why {name} changed", LINK)
        golden.entries[name] = Entry(Lane.EXACT, (before, Variant(value, (here,), f"why {name} changed", LINK)))
    write_golden(pytester.path / "golden" / "shared.json", golden)
