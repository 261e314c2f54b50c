"""How a law is written: a generator of numbers with bounds, registered with its stage, source and likely cause."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mlmrepro.laws.result import Measured
from mlmrepro.laws.subject import Subject

__all__ = ["GROUPS", "Law", "NotApplicable", "all_laws", "law"]

# One module each. `steps` holds the guide's own steps against definitions of ours, on drawn inputs.
# `edges` holds what the guide's own batches never do: padding, ties, one kind of dropout.
GROUPS = (
    *("steps", "data", "cache", "tokenizer", "tokenizer_files", "masking"),
    *("model", "training", "evaluation", "checkpoint", "stored", "fill_mask", "edges"),
)

Check = Callable[[Subject], Iterator[Measured]]


class NotApplicable(Exception):
    """The checkpoint has nothing that the law speaks of; the message says what is missing."""


@dataclass(frozen=True)
class Law:
    """One claim, the function that measures it, where a fault would lie, and the likely cause in plain words."""

    name: str
    group: str
    stage: str
    claim: str
    source: str
    cause: str
    check: Check
    slow: bool = False  # it starts processes


_LAWS: dict[str, Law] = {}


def law(stage: str, *, source: str, cause: str, slow: bool = False) -> Callable[[Check], Check]:
    """Register a law under its function's name; its group is its module, its claim the docstring's first line.

    `source` is a paper, a documentation page or a part of the guide; `cause` is what most likely broke it.
    """

    def register(check: Check) -> Check:
        name = check.__name__
        if name in _LAWS:
            raise ValueError(f"two laws are called {name}")
        claim = (check.__doc__ or "").strip().splitlines()[0]
        _LAWS[name] = Law(name, check.__module__.rpartition(".")[2], stage, claim, source, cause, check, slow)
        return check

    return register


def all_laws() -> list[Law]:
    """Return every law, group by group, in the order in which they are written."""
    for group in GROUPS:
        importlib.import_module(f"mlmrepro.laws.{group}")
    return sorted(_LAWS.values(), key=lambda each: GROUPS.index(each.group))
