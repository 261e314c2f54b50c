"""Errors that a user can mend: each says what is wrong, where, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["UserError", "causes", "first_line"]


class UserError(Exception):
    """Bad input or a missing outside thing; the command line prints it in one line and exits with 2."""

    exit_code = 2

    def __init__(self, problem: str, *, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}. Remedy: {remedy}.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name: enough to recognise it in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and what it was raised from: the libraries wrap a full disk in errors of their own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
