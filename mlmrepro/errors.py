"""Errors that a user can fix: each says what is wrong, where, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator

from mlmrepro.credentials import without_credentials

__all__ = ["UserError", "causes", "first_line"]


class UserError(Exception):
    """Bad input or a missing resource; the command line prints it in one line and exits with 2.

    The message often quotes the input, so credentials are removed here, for every caller.
    """

    exit_code = 2

    def __init__(self, problem: str, *, remedy: str) -> None:
        self.problem = without_credentials(problem)
        self.remedy = without_credentials(remedy)
        super().__init__(f"{self.problem}. Remedy: {self.remedy}.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name: enough to recognise it.

    Credentials are removed.
    """
    lines = without_credentials(str(error)).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and its causes: the libraries wrap a full disk in errors of their own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
