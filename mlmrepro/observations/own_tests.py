"""The user's own tests: run by pytest in this environment, and what they hold with the `golden` fixture is recorded."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlmrepro.compare.own_tests import OUTCOME, PASSED
from mlmrepro.errors import UserError
from mlmrepro.record import TESTS, Bound, Lane, RunRecord

__all__ = ["add_tests", "check_tests"]


def check_tests(tests: Sequence[str]) -> None:
    """Raise UserError if the file or folder of a test, such as ``tests/test_a.py::test_one``, does not exist."""
    for test in tests:
        if not Path(test.partition("::")[0]).exists():
            raise UserError(f"--tests {test}: there is no such file or folder", remedy="give what pytest takes")


def add_tests(record: RunRecord, tests: Sequence[str]) -> str:
    """Run tests in a process of their own, add their values to the record, and return what pytest printed.

    They import what lies in the working directory and in its src, as after `python -m pytest` there. If pytest cannot
    run at all, the record says why.
    """
    with tempfile.TemporaryDirectory(prefix="mlmrepro-") as folder:
        made = Path(folder) / "tests.json"
        command = [sys.executable, "-m", "pytest", "-p", "mlmrepro.pytest_plugin", "-p", "no:cacheprovider"]
        command += [f"--mlm-record={made}", "--continue-on-collection-errors", *tests]
        paths = [os.environ.get("PYTHONPATH", ""), os.getcwd(), os.path.abspath("src")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        output = done.stdout.decode(errors="replace")
        record.asked = record.asked or {}
        if made.is_file():
            taken = RunRecord.read(made)
            record.stages[TESTS] = taken.stages[TESTS]
            record.asked |= taken.asked or {}
            record.config = record.config | taken.config
        else:
            lines = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.strip()]
            said = next((line for line in lines if "error" in line.lower()), (lines or ["no output"])[-1])
            problem = f"pytest did not run (exit code {done.returncode}): {said.strip()}"
            record.observe(TESTS, f"pytest::{OUTCOME}", problem, Lane.BOUND, bound=Bound(equals=PASSED))
    return output
