"""Run a function in two processes with torch.distributed, on this machine and without a network or a free port."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from mlmrepro.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["in_two_processes"]

SECONDS = 60.0  # a run takes about one second

Work = Callable[..., "dict[str, torch.Tensor]"]


def in_two_processes(
    work: Work, arguments: tuple[Any, ...], folder: Path, *, seconds: float = SECONDS
) -> list[dict[str, torch.Tensor]]:
    """Call ``work(*arguments)`` in two connected processes and return their results, by rank.

    `work` must belong to a module, and `folder` must be empty. Raises RuntimeError with the error of a process that
    failed, and UserError on a timeout, which says nothing about the libraries.
    """
    import torch

    # A fork keeps patches made in this process, but with a GPU autograd refuses to run in a fork.
    forks = sys.platform == "linux" and not torch.cuda.is_available()
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    members = [context.Process(target=_member, args=(rank, folder, work, arguments), daemon=True) for rank in (0, 1)]
    with patch.dict(os.environ, TOKENIZERS_PARALLELISM="false"):  # otherwise tokenizers warns about the fork
        for each in members:
            each.start()
    try:
        _join(members, folder, time.monotonic() + seconds)
    finally:
        for each in members:
            each.kill()
            each.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _join(members: list[Any], folder: Path, deadline: float) -> None:
    left = list(members)
    while left:
        wait([each.sentinel for each in left], max(0.0, deadline - time.monotonic()))
        left = [each for each in left if each.exitcode is None]
        for error in folder.glob("*.error"):
            raise RuntimeError(error.read_text(encoding="utf-8"))
        if dead := [each.exitcode for each in members if each.exitcode]:
            raise RuntimeError(f"one of two processes ended with exit code {dead[0]}")
        if left and time.monotonic() > deadline:
            raise UserError(
                "two processes that train together did not end in time",
                remedy="try again while the machine does less; if it happens again, torch's gloo cannot connect here",
            )


def _member(rank: int, folder: Path, work: Work, arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)  # before any computation: a fork does not have its parent's threads
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    nowhere, code = os.open(os.devnull, os.O_WRONLY), 1
    for stream in (1, 2):  # errors go to a file; torch itself prints below Python's streams
        os.dup2(nowhere, stream)
    try:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
        torch.save(work(*arguments), folder / f"{rank}.pt")
        torch.distributed.destroy_process_group()
        code = 0
    except BaseException as error:  # it is reported to the parent, and none of the parent's hooks may run here
        told = folder / f"{rank}.told"
        told.write_text("".join(traceback.format_exception_only(error)).strip(), encoding="utf-8")
        told.rename(folder / f"{rank}.error")
    finally:
        os._exit(code)
