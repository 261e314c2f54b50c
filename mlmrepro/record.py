"""The record of a run: what every stage did, in one JSON file that needs none of the libraries to be read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write

__all__ = ["SCHEMA", "STAGES", "Lane", "Observation", "RunRecord"]

SCHEMA = 1

# In the order of the data's flow.
STAGES = ("dataset", "flatten", "input_ids", "blocks", "masked_batches", "model", "loss", "evaluation", "fill_mask")


class Lane(str, Enum):
    """How two values of one observation are to be compared."""

    EXACT = "exact"  # ids, orders, counts, draws
    APPROXIMATE = "approximate"  # floats, within a tolerance that has a reason
    RANKING = "ranking"  # orders by score, with their margins
    STATISTICAL = "statistical"  # perplexity, which masks and seeds move
    INFO = "info"  # times and warnings: shown, never compared


@dataclass(frozen=True)
class Observation:
    """One named value of one stage."""

    stage: str
    name: str
    lane: Lane
    value: Any


@dataclass
class RunRecord:
    """Provenance, configuration and the observations of a run."""

    provenance: dict[str, Any]
    config: dict[str, Any]
    stages: dict[str, dict[str, Observation]] = field(default_factory=dict)

    def observe(self, stage: str, name: str, value: Any, lane: Lane) -> None:
        """Write one value down; a second one under the same name is an error of ours."""
        if stage not in STAGES:
            raise KeyError(stage)
        names = self.stages.setdefault(stage, {})
        if name in names:
            raise KeyError(f"{stage}.{name} is observed twice")
        names[name] = Observation(stage, name, lane, value)

    def __getitem__(self, key: str) -> Any:
        """Return the value of ``"stage.name"``."""
        stage, name = key.split(".", 1)
        return self.stages[stage][name].value

    def __iter__(self) -> Iterator[Observation]:
        """Iterate over the observations in the order of the stages."""
        for stage in STAGES:
            yield from self.stages.get(stage, {}).values()

    def results(self) -> dict[str, Any]:
        """Return ``"stage.name" -> value`` of everything that a rerun must repeat: all lanes but INFO."""
        return {f"{o.stage}.{o.name}": _plain(o.value) for o in self if o.lane is not Lane.INFO}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; floats that JSON cannot hold become the strings "NaN", "Infinity", "-Infinity"."""
        stages: dict[str, Any] = {}
        for o in self:
            stages.setdefault(o.stage, {})[o.name] = {"lane": o.lane.value, "value": _plain(o.value)}
        return {"schema": SCHEMA, "provenance": self.provenance, "config": self.config, "stages": stages}

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a record; raises UserError where the file is absent, damaged or of another schema."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise UserError(
                    f"{path} is a record of schema {content['schema']}, this version reads schema {SCHEMA}",
                    remedy="make the record again with this version",
                )
            record = cls(content["provenance"], content["config"])
            for stage, names in content["stages"].items():
                for name, entry in names.items():
                    record.observe(stage, name, _restored(entry["value"]), Lane(entry["lane"]))
        except OSError as error:
            raise UserError(f"the record {path} cannot be read: {error.strerror}", remedy="check the path") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path} is not a whole record: {type(error).__name__}: {error}", remedy="make the record again"
            ) from error
        return record


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return value
