"""Waiting for another process: as long as a slow machine may need, and no longer than a person would."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT = 300.0  # seconds: only something that hangs takes as long


def until(condition: Callable[[], object]) -> None:
    """Return once `condition()` is true; raises TimeoutError where it never is."""
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came in {LIMIT:g} s")
        time.sleep(0.02)
