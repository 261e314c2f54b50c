"""Ratios of two ways that ran in turns: the only thing that a benchmark here asserts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Return the median of how many times as long the first took, of runs that follow each other."""
    return statistics.median(one / other for one, other in zip(slower, faster, strict=True))


def broken(info: Mapping[str, Any], least: Mapping[str, float]) -> dict[str, Any]:
    """Return the ratios that are below what is claimed, or were not measured."""
    return {name: info.get(name) for name, bound in least.items() if not info.get(name, 0.0) >= bound}
