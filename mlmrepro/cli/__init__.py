"""The command line: parse, call, print, exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
import typer.core

from mlmrepro.cli import drift, gate, guide
from mlmrepro.cli.laws import laws
from mlmrepro.cli.retrain import retrain
from mlmrepro.credentials import without_credentials
from mlmrepro.errors import UserError, causes, first_line

__all__ = ["app", "main"]


class _Group(typer.core.TyperGroup):
    """The commands; what is wrong in their arguments is said without the credentials that these may hold."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = getattr(error, "message", None)  # of a usage error, whose class depends on the version of typer
            if isinstance(message, str):
                error.message = without_credentials(message)  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    name="mlmrepro",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run the Hugging Face guide “Masked language modeling” exactly, write down everything it did, and compare.",
)
for command, title in (
    (guide.reproduce, "reproduce"),
    (guide.fill_mask, "fill-mask"),
    (drift.record, "record"),
    (drift.compare, "compare"),
    (drift.matrix, "matrix"),
    (drift.report, "report"),
    (drift.expect, "expect"),
    (drift.lint, "lint"),
    (gate.baseline, "baseline"),
    (gate.check, "check"),
    (gate.score, "score"),
    (retrain, "retrain"),
    (laws, "laws"),
):
    app.command(title)(command)

_UNWRITABLE = tuple(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EACCES", "EROFS", "EPERM", "ENOTDIR", "EEXIST", "EISDIR"),
        *("ENOENT", "EBUSY", "ENAMETOOLONG", "ELOOP"),
    )
)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except Exception as error:
        for cause in causes(error):
            if isinstance(cause, BrokenPipeError):  # whoever read the output has gone
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(1) from None
            if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
                where = f" ({cause.filename})" if cause.filename else ""
                _fail(f"{cause.strerror}{where}. Remedy: give a place that can be written and has room.")
            if re.search(r"No space left|Not enough disk space", str(cause)):  # what the libraries make of ENOSPC
                _fail(f"{first_line(cause)}. Remedy: give an output that has room.")
        print(without_credentials("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        _fail("this is a bug in mlmrepro, not a verdict. Remedy: report it with the lines above.")


def _fail(message: str) -> NoReturn:
    print(f"mlmrepro: error: {' '.join(without_credentials(message).split())}", file=sys.stderr)
    raise SystemExit(2)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; exits with 2 after one line on standard error where the input is bad."""
    with _errors_in_one_line():
        app(arguments, prog_name="mlmrepro")
