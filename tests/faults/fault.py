"""How a fault is written: a function that plants it, with its stage, its severity and, where it is graded, its sizes.

A fault is planted in a process of its own that ends with the case, so nothing is ever taken back.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from mlmrepro.record import STAGES
from tests.faults.case import Case

__all__ = ["CATALOGUE", "Fault", "Severity", "all_faults", "fault", "graded"]

# One module for each part of the catalogue. `later` was invented when the detectors were done, and is scored apart.
CATALOGUE = ("data", "tokens", "masks", "weights", "training", "filling", "upstream", "usage", "blind", "later")


class Severity(str, Enum):
    """What a fault does to whoever has it."""

    SUBTLE = "subtle"  # figures move a little; nobody notices
    SERIOUS = "serious"  # results are wrong
    FATAL = "fatal"  # results are worthless


@dataclass(frozen=True)
class Fault:
    """One way in which people or releases break the guide. Of a graded fault each size is a fault of its own."""

    name: str
    stage: str
    severity: Severity
    story: str  # who makes it, and how: one sentence
    part: str  # the module of the catalogue
    plant: Callable[[Case], None]
    family: str = ""  # the graded fault that it is a size of
    size: float | None = None
    unit: str = ""
    required: bool = True  # False: a size that is only there for the sensitivity curve


_FAULTS: dict[str, Fault] = {}

Plant = Callable[[Case], None]
GradedPlant = Callable[[Case, float], None]


def fault(stage: str, severity: Severity) -> Callable[[Plant], Plant]:
    """Register a fault under its function's name; the docstring's first line is its story."""

    def register(plant: Plant) -> Plant:
        _add(Fault(plant.__name__, stage, severity, _story(plant), _part(plant), plant))
        return plant

    return register


def graded(
    stage: str, severity: Severity, *, sizes: Sequence[float], required: Sequence[float], unit: str
) -> Callable[[GradedPlant], GradedPlant]:
    """Register a fault of several sizes, of which the `required` ones must be detected; all make its curve."""

    def register(plant: GradedPlant) -> GradedPlant:
        family = plant.__name__
        for size in sizes:

            def at_size(case: Case, size: float = size) -> None:
                plant(case, size)

            name = f"{family}_{size:g}"
            story = f"{_story(plant)} ({size:g} {unit})"
            _add(
                Fault(name, stage, severity, story, _part(plant), at_size, family, float(size), unit, size in required)
            )
        return plant

    return register


def _add(new: Fault) -> None:
    if new.name in _FAULTS:
        raise ValueError(f"two faults are called {new.name}")
    if new.stage not in STAGES:
        raise ValueError(f"{new.name}: there is no stage {new.stage!r}")
    _FAULTS[new.name] = new


def _story(plant: Callable[..., None]) -> str:
    return (plant.__doc__ or "").strip().splitlines()[0]


def _part(plant: Callable[..., None]) -> str:
    return plant.__module__.rpartition(".")[2]


def all_faults() -> list[Fault]:
    """Return the catalogue, part by part, in the order in which it is written."""
    for part in CATALOGUE:
        importlib.import_module(f"tests.faults.catalogue.{part}")
    return sorted(_FAULTS.values(), key=lambda each: CATALOGUE.index(each.part))
