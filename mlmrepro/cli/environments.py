"""The commands environments list and environments prune, and the bound that other commands keep."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from mlmrepro.cli.output import Json, Markdown, Output
from mlmrepro.errors import UserError

__all__ = ["environments", "within_bound"]

_DEFAULT = 20e9  # bytes

environments = typer.Typer(
    no_args_is_help=True,
    help="List and remove the environments in .mlmrepro/environments, which matrix, gate, attribute and bisect make. "
    "A command that made some then removes those that were not used for longest, until the rest fits into max-disk in "
    "the table tool.mlmrepro of pyproject.toml (default: 20GB).",
)


@environments.command("list")
def list_environments(as_json: Json = False, markdown: Markdown = False) -> None:
    """List the environments: what each holds, its size on the disk, and when it was last used.

    Files that several environments share count once in the total. Example: mlmrepro environments list
    """
    from mlmrepro.environments.disk import Disk
    from mlmrepro.report.disk import disk_document

    disk, bound = Disk(), _bound()
    made = [{**vars(each), "home": str(each.home)} for each in reversed(disk.environments)]
    content = {"folder": str(disk.folder), "total": disk.total, "bound": bound, "environments": made}
    Output(as_json, markdown).write(disk_document(disk, bound), content)


@environments.command()
def prune(
    keep: Annotated[int | None, typer.Option(min=0, help="Keep so many, the last used ones; 0 removes all.")] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Remove until the rest fits, such as 20GB (default: max-disk).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove environments, those that were not used for longest first, and the packages that only they had.

    One that is in use is never removed, nor anything that mlmrepro did not make. A removed one is made again when it is
    needed. Example: mlmrepro environments prune --keep 3
    """
    from mlmrepro.environments.disk import Disk
    from mlmrepro.pyproject import read_size
    from mlmrepro.report.disk import pruned_document

    if keep is not None and max_size is not None:
        raise UserError("--keep and --max-size are given", remedy="give one of them")
    disk, size = Disk(), _bound() if max_size is None else read_size(max_size, "--max-size")
    chosen = disk.chosen(keep=keep, size=size)
    done = disk.prune(chosen, dry=True)
    if not dry_run and (done.environments or done.packages):
        if not yes:
            print(pruned_document(done, dry=True).headline, file=sys.stderr)
            typer.confirm("Remove them?", abort=True, err=True)
        done = disk.prune(chosen)
    content = {
        "environments": [home.name for home in done.environments],
        "packages": [home.name for home in done.packages],
        **{"freed": done.freed, "left": done.left, "removed": not dry_run},
    }
    Output(as_json).write(pruned_document(done, dry=dry_run), content)


@contextmanager
def within_bound() -> Iterator[None]:
    """After a command that made environments, remove those that `max-disk` has no room for."""
    bound = _bound()  # before the work: the setting may be wrong
    try:
        yield
    except typer.Exit:
        from mlmrepro.environments.make import release

        if release():
            from mlmrepro.environments.disk import Disk
            from mlmrepro.report.disk import pruned_document

            disk = Disk()
            if disk.total > bound and (done := disk.prune(disk.chosen(size=bound))).freed:
                print(f"max-disk: {pruned_document(done, dry=False).headline}", file=sys.stderr)
        raise


def _bound() -> float:
    from mlmrepro.pyproject import project

    found = project()
    return _DEFAULT if found is None or found.max_disk is None else found.max_disk
