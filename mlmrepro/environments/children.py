"""Run a command that outlives neither a timeout nor the process that started it, not even one that is killed.

The command runs in a process group of its own, under a guard: this file, run as a script by a second interpreter. The
guard's standard input is a pipe that the starting process holds; it closes when that process ends, however it ends.
Then the guard kills the whole group.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Stopped", "run_child"]


class Stopped(Exception):
    """The command was killed because the whole was stopped."""


def run_child(
    command: Sequence[str], log: Path, *, env: Mapping[str, str], timeout: float, stop: threading.Event
) -> int:
    """Run a command, append its output to `log` and return its exit code, 128 + N where signal N killed it.

    Raises TimeoutError or Stopped after killing it and all its children.
    """
    with log.open("ab") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        guard = subprocess.Popen(
            # Isolated, without site: it starts in some milliseconds and imports nothing but this file.
            [sys.executable, "-I", "-S", __file__, *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C in the terminal is for the starting process, which then stops the guard
        )
    deadline = time.monotonic() + timeout
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return guard.wait(0.1)
            if stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise TimeoutError(f"took longer than {timeout:g} s")
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def _guard(command: Sequence[str]) -> int:
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]} does not start: {error}", flush=True)
        return 127

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter on macOS, of what has just ended
            os.killpg(child.pid, signal.SIGKILL)

    def watch() -> None:
        os.read(0, 1)  # returns at the end of the pipe only: nothing is ever written
        kill()

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    kill()  # what the command left behind
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(_guard(sys.argv[1:]))  # the watching thread has nothing to wait for any more
