"""What an observation is: a function of a subject that yields named values, each with a bound or for a golden."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mlmrepro.guide.observe import digest, preserved_generators
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject
from mlmrepro.record import Bound, Lane

__all__ = ["NotApplicable", "Observer", "attempt", "json_digest", "measure", "observation", "seeded", "value", "values"]

Look = Callable[[Subject], Iterator[Value]]


class NotApplicable(Exception):
    """The observation does not apply to this subject; the message says why."""


@dataclass(frozen=True)
class Observer:
    """A function that observes one behaviour of one stage, and what is known about it.

    Its name is the function's, its group is the module, its claim the first line of the docstring. `source` (a paper, a
    documentation page or a part of the guide) and `cause` (the most likely reason for a breach) are given if it yields
    bounds.
    """

    name: str
    group: str
    stage: str
    claim: str
    look: Look
    source: str = ""
    cause: str = ""
    slow: bool = False  # it starts worker processes

    @property
    def key(self) -> str:
        """Return its identity in records, such as ``loss.accumulation``."""
        return f"{self.stage}.{self.name}"

    @property
    def has_bounds(self) -> bool:
        """Return whether it yields bounds, which hold for any checkpoint; otherwise its values need a golden."""
        return bool(self.cause)


def observation(stage: str, *, source: str = "", cause: str = "", slow: bool = False) -> Callable[[Look], Observer]:
    """Turn a function of a subject that yields values into an `Observer`."""

    def decorate(look: Look) -> Observer:
        claim = (look.__doc__ or "").strip().splitlines()[0]
        group = look.__module__.rpartition(".")[2]
        return Observer(look.__name__, group, stage, claim, look, source, cause, slow)

    return decorate


def value(
    slug: str,
    found: Any,
    title: str = "",
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    equals: float | int | str | bool | None = None,
    unit: str = "",
    reason: str = "",
    quantity: str = "",
    lane: Lane | None = None,
    shown: bool = False,
) -> Value:
    """Return one value: held to a bound if there is one, else compared with a golden, or only `shown`.

    `slug` is its identity, unique within its observation; `title` says the same in words. A value for a golden is
    exact, or approximate if a `quantity` of `compare.tolerance` is given.
    """
    bound = Bound(at_most, at_least, equals, reason)
    if bound:
        lane = Lane.BOUND
    elif shown:
        lane = Lane.INFO
    return Value(slug, found, title, lane or (Lane.APPROXIMATE if quantity else Lane.EXACT), quantity, bound, unit)


def values(found: Mapping[str, Any]) -> Iterator[Value]:
    """Yield a value for each entry; plain ones are exact, and a `Value` gets the entry's name."""
    for slug, each in found.items():
        yield replace(each, slug=slug) if isinstance(each, Value) else value(slug, each)


def attempt(look: Callable[[], Any]) -> Any:
    """Return the result of `look`, or the class of the error it raises: failing is a behaviour too."""
    try:
        return look()
    except Exception as error:  # whatever a version raises
        return f"raises {type(error).__name__}"


def measure(look: Callable[[], float], quantity: str) -> Value:
    """Return the float that `look` gives, or the class of the error it raises, to be compared as this quantity."""
    return value("", attempt(lambda: float(look())), quantity=quantity)


def json_digest(found: Any) -> str:
    """Return the digest of one plain value."""
    return digest([json.loads(json.dumps(found))])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator, and restore them afterwards."""
    from transformers import set_seed

    with preserved_generators():
        set_seed(seed)
        yield
