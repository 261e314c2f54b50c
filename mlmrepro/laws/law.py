"""The ``law`` decorator: it registers a generator of bounded numbers with its stage, source and likely cause."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mlmrepro.laws.result import Measured
from mlmrepro.laws.subject import Subject

__all__ = ["GROUPS", "Law", "NotApplicable", "all_laws", "law"]

# One module each. `steps` compares the guide's own steps with our definitions, on random inputs.
# `edges` covers what the guide's own batches never contain: padding, ties, one kind of dropout.
GROUPS = (
    *("steps", "data", "cache", "tokenizer", "tokenizer_files", "masking"),
    *("model", "training", "evaluation", "checkpoint", "stored", "fill_mask", "edges"),
)

Check = Callable[[Subject], Iterator[Measured]]


class NotApplicable(Exception):
    """The law does not apply to this checkpoint; the message says why."""


@dataclass(frozen=True)
class Law:
    """A claim, the function that measures it, the stage where a fault would lie, and the likely cause."""

    name: str
    group: str
    stage: str
    claim: str
    source: str
    cause: str
    check: Check
    slow: bool = False  # it starts worker processes


_LAWS: dict[str, Law] = {}


def law(stage: str, *, source: str, cause: str, slow: bool = False) -> Callable[[Check], Check]:
    """Register a law under its function's name. Its group is its module; its claim is the docstring's first line.

    `source` is a paper, a documentation page or a part of the guide. `cause` is the most likely reason for a breach.
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
    """Return all laws, group by group, in the order in which they are defined."""
    for group in GROUPS:
        importlib.import_module(f"mlmrepro.laws.{group}")
    return sorted(_LAWS.values(), key=lambda each: GROUPS.index(each.group))
