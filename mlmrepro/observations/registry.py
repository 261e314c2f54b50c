"""Every observation there is: a new module is added to `MODULES`, a new function in a module is found by itself."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from mlmrepro.errors import UserError
from mlmrepro.observations import (
    cache,
    checkpoint,
    collator,
    data,
    edges,
    evaluation,
    fill_mask,
    filling,
    formats,
    masking,
    model,
    saved,
    steps,
    stored,
    tokenizer,
    tokenizer_arguments,
    tokenizer_files,
    trainer,
    training,
    weights,
)
from mlmrepro.observations.observation import Observer

__all__ = ["LIBRARY_MODULES", "MODULES", "all_observers", "bounded_observers", "choose", "observers_of"]

MODULES = (
    *(steps, data, cache, formats, tokenizer, tokenizer_files, tokenizer_arguments, masking, collator),
    *(model, weights, saved, training, trainer, evaluation, checkpoint, stored, fill_mask, filling, edges),
)
LIBRARY_MODULES = (formats, weights, saved, trainer)  # on fixed inputs: the same for every checkpoint


def observers_of(modules: Sequence[ModuleType]) -> list[Observer]:
    """Return the observations of some modules, in the order in which they are defined."""
    return [each for module in modules for each in vars(module).values() if isinstance(each, Observer)]


def all_observers() -> list[Observer]:
    """Return all observations, module by module."""
    return observers_of(MODULES)


def bounded_observers() -> list[Observer]:
    """Return the observations with bounds, which hold for any checkpoint without a golden."""
    return [each for each in all_observers() if each.has_bounds]


def choose(names: Sequence[str], observers: Sequence[Observer] | None = None) -> list[Observer]:
    """Return the observations with these names, keys or groups, by default all; raises UserError for an unknown name.

    A key names the stage too, such as ``loss.accumulation``.
    """
    observers = all_observers() if observers is None else observers
    known = {name for each in observers for name in (each.name, each.key, each.group)}
    if unknown := [name for name in names if name not in known]:
        shown = sorted({name for each in observers for name in (each.name, each.group)})
        raise UserError(f"there is no observation or group {unknown[0]!r}", remedy=f"use one of: {', '.join(shown)}")
    return [each for each in observers if not names or {each.name, each.key, each.group} & set(names)]
