"""Run a command that ends at a timeout, and with the process that started it, even if that one is killed.

The command runs in a process group of its own, under a guard: this file, run as a script by a second interpreter. The
guard's standard input is a pipe held by the starting process; it closes when that process ends, in whatever way. Then
the guard kills the whole group.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

__all__ = ["Stopped", "last_words", "run_child"]

_LINGER = 10.0  # seconds for the rest of the output, if a process that left the group keeps the pipe open


class Stopped(Exception):
    """The command was killed because the whole run was stopped."""


def run_child(
    command: Sequence[str], log: Path, *, env: Mapping[str, str], timeout: float, stop: threading.Event
) -> int:
    """Run a command, append its output to `log` and return its exit code, 128 + N if signal N killed it.

    The output passes through `without_credentials` line by line: no secret of `env` is ever written to the disk.
    Raises TimeoutError or Stopped after killing the command and all its children, OSError if the log cannot be
    written.
    """
    file = log.open("ab")  # closed by the thread that writes
    guard = subprocess.Popen(
        # Isolated, without site: it starts in a few milliseconds and imports only this file.
        [sys.executable, "-I", "-S", __file__, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,  # Ctrl-C in the terminal is for the starting process, which then stops the guard
    )
    assert guard.stdout is not None
    failed: list[OSError] = []
    lines = itertools.chain([f"$ {shlex.join(command)}\n".encode()], guard.stdout)
    writer = threading.Thread(target=_write, args=(lines, file, env, failed), daemon=True)
    writer.start()
    deadline = time.monotonic() + timeout
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = guard.wait(0.1)
                break
            if stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise TimeoutError(f"took longer than {timeout:g} s")
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()
        writer.join(_LINGER)
    if failed:
        raise failed[0]
    return code


def last_words(output: str) -> str:
    """Return in one line why a process failed: the exception of its last traceback, or else its last line."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip() and not line.startswith("$ ")]
    if not lines or lines[-1].startswith("mlmrepro: error: "):
        return lines[-1].removeprefix("mlmrepro: error: ") if lines else ""
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[traces[-1] + 1 :] if traces else []
    return next((line for line in after if not line[0].isspace()), lines[-1].strip())


def _write(lines: Iterable[bytes], file: BinaryIO, env: Mapping[str, str], failed: list[OSError]) -> None:
    from mlmrepro.credentials import without_credentials  # the guard, which runs this file alone, cannot import it

    try:
        with file:
            for line in lines:
                text = without_credentials(line.decode("utf-8", "surrogateescape"), env)
                file.write(text.encode("utf-8", "surrogateescape"))
                file.flush()  # a log may be followed while it grows
    except OSError as error:  # such as a full disk
        failed.append(error)
        for _ in lines:  # a command whose output nobody reads would hang
            pass


def _guard(command: Sequence[str]) -> int:
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", flush=True)
        return 127

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter on macOS, if it has just ended
            os.killpg(child.pid, signal.SIGKILL)

    def watch() -> None:
        os.read(0, 1)  # returns at the end of the pipe only: nothing is ever written
        kill()

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    kill()  # what the command left behind
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(_guard(sys.argv[1:]))  # without waiting for the watching thread
