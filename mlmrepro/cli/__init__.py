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

from mlmrepro.cli import drift, gate, goldens, guide, upgrade
from mlmrepro.cli.bisect import bisect
from mlmrepro.cli.environments import environments, within_bound
from mlmrepro.cli.explain import explain
from mlmrepro.cli.laws import laws
from mlmrepro.cli.retrain import retrain
from mlmrepro.credentials import without_credentials
from mlmrepro.errors import UserError, causes, first_line

__all__ = ["app", "main"]


class _Group(typer.core.TyperGroup):
    """The commands; keeps credentials out of error messages about their arguments."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = getattr(error, "message", None)  # set on a usage error, whose class depends on typer's version
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
    help="Run the Hugging Face guide “Masked language modeling”, record what it does, and compare.",
)
for command, title in (
    (guide.reproduce, "reproduce"),
    (guide.fill_mask, "fill-mask"),
    (drift.record, "record"),
    (goldens.adopt, "adopt"),
    (drift.compare, "compare"),
    (drift.matrix, "matrix"),
    (upgrade.gate, "gate"),
    (upgrade.attribute, "attribute"),
    (drift.report, "report"),
    (bisect, "bisect"),
    (explain, "explain"),
    (goldens.expect, "expect"),
    (goldens.lint, "lint"),
    (gate.baseline, "baseline"),
    (gate.check, "check"),
    (gate.score, "score"),
    (retrain, "retrain"),
    (laws, "laws"),
):
    app.command(title)(within_bound()(command) if title in ("matrix", "gate", "attribute", "bisect") else command)
app.add_typer(environments, name="environments")

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
            if isinstance(cause, BrokenPipeError):  # the reader of the output has exited
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(1) from None
            if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
                where = f" ({cause.filename})" if cause.filename else ""
                _fail(f"{cause.strerror}{where}. Remedy: choose a writable place with enough free space.")
            if re.search(r"No space left|Not enough disk space", str(cause)):  # how the libraries report ENOSPC
                _fail(f"{first_line(cause)}. Remedy: choose an output place with enough free space.")
        print(without_credentials("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        _fail("this is a bug in mlmrepro, not a verdict. Remedy: report it with the lines above.")


def _fail(message: str) -> NoReturn:
    print(f"mlmrepro: error: {' '.join(without_credentials(message).split())}", file=sys.stderr)
    raise SystemExit(2)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; for bad input, print one line on standard error and exit with 2."""
    with _errors_in_one_line():
        app(arguments, prog_name="mlmrepro")
