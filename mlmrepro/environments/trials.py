"""What a bisection measures in an environment: a record, or the exit code of a command."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from mlmrepro.compare.drift import Outcome
from mlmrepro.credentials import without_credentials
from mlmrepro.environments.bisect import Trial
from mlmrepro.environments.children import last_words, run_child
from mlmrepro.environments.make import CACHE, Unmade, code_folder, isolated, make_environment
from mlmrepro.environments.matrix import TIMEOUT, run_matrix
from mlmrepro.environments.spec import Environment

__all__ = ["Commands", "Records"]


class Records:
    """Makes a record in each environment, with the matrix, and keeps it in a folder: a second search reads it there."""

    def __init__(self, directory: Path, goldens: Path, cache: Path = CACHE) -> None:
        self.directory, self.goldens, self.cache = directory, goldens, cache

    def __call__(self, environment: Environment, attempt: int) -> Trial:
        """Return the trial of this environment."""
        directory = self.directory / (f"again-{attempt}" if attempt > 1 else "")
        (outcome,) = run_matrix([environment], directory, goldens=self.goldens, keep=True, cache=self.cache)
        return Trial(outcome)


class Commands:
    """Runs a command in each environment, in the working directory; its exit code is what is measured.

    The environment's programs come first on PATH. 125 means that the release cannot be judged, as for `git bisect run`.
    """

    def __init__(self, command: Sequence[str], package: str, directory: Path, cache: Path = CACHE) -> None:
        self.command, self.package, self.directory, self.cache = list(command), package, directory, cache
        directory.mkdir(parents=True, exist_ok=True)

    def __call__(self, environment: Environment, attempt: int) -> Trial:
        """Return the trial of this environment."""
        log = self.directory / f"{environment.name}.{attempt}.log"
        log.write_bytes(b"")
        stop = threading.Event()
        try:
            python = make_environment(environment, self.cache)
        except Unmade as error:
            return Trial(Outcome(environment.name, None, without_credentials(str(error)), str(error.log)))
        variables = {name: value for name, value in isolated().items() if name != "PYTHONSAFEPATH"}
        variables["PATH"] = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
        code = [str(code_folder(self.cache)), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables |= {"VIRTUAL_ENV": str(python.parent.parent), "PYTHONPATH": os.pathsep.join(code)}
        importable = [str(python), "-c", f"import {self.package.replace('-', '_')}"]
        try:
            if run_child(importable, log, env=variables, timeout=TIMEOUT, stop=stop):
                return self._skipped(environment, log, f"{self.package} cannot be imported: ")
            exit_code = run_child(self.command, log, env=variables, timeout=TIMEOUT, stop=stop)
        except TimeoutError as error:
            return self._skipped(environment, log, f"{error}: ")
        if exit_code in (125, 127) or exit_code > 128:  # not to be judged, cannot be started, killed
            return self._skipped(environment, log, f"exit code {exit_code}: ")
        return Trial(Outcome(environment.name, None, "", str(log)), exit_code)

    def _skipped(self, environment: Environment, log: Path, problem: str) -> Trial:
        said = last_words(log.read_text(encoding="utf-8", errors="replace"))
        return Trial(Outcome(environment.name, None, without_credentials(problem + said), str(log)))
