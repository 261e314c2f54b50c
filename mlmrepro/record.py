"""The record of a run: what every stage did, in one JSON file that can be read without any of the libraries."""

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

__all__ = [
    "SCHEMA",
    "STAGES",
    "Lane",
    "Observation",
    "Part",
    "RunRecord",
    "part",
    "plain",
    "restored",
    "write_unfinished",
]

SCHEMA = 2

# In the order of the data's flow.
STAGES = ("dataset", "flatten", "input_ids", "blocks", "masked_batches", "model", "loss", "evaluation", "fill_mask")


class Lane(str, Enum):
    """How two values of one observation are compared."""

    EXACT = "exact"  # ids, orders, counts, draws
    APPROXIMATE = "approximate"  # floats, within a tolerance that has a reason
    RANKING = "ranking"  # orders by score, with their margins
    STATISTICAL = "statistical"  # perplexity, which depends on masks and seeds
    INFO = "info"  # times, warnings and values with a bound (compare.bounds): never compared with another record


class Part(str, Enum):
    """Where in a stage a value was observed; the prefix of its name says so."""

    FLOW = "flow"  # on what the previous stage really produced: no prefix
    ALONE = "alone"  # isolated, on the goldens' stored input, so that no earlier stage matters
    BESIDE = "beside"  # off-path: arguments, files and defaults that the guide's run does not use


# What the tolerance of a lane applies to, unless an observation says otherwise.
_QUANTITIES = {Lane.APPROXIMATE: "nats", Lane.RANKING: "probability", Lane.STATISTICAL: "perplexity"}


@dataclass(frozen=True)
class Observation:
    """One named value of one stage; `quantity` names what a float measures, "" in the other lanes."""

    stage: str
    name: str
    lane: Lane
    value: Any
    quantity: str = ""

    @property
    def part(self) -> Part:
        """Return where in its stage it was observed."""
        return part(self.name)


def part(name: str) -> Part:
    """Return the part of a stage that a name such as ``alone.draw`` belongs to."""
    prefix = name.partition(".")[0]
    return Part(prefix) if prefix in (Part.ALONE.value, Part.BESIDE.value) else Part.FLOW


@dataclass
class RunRecord:
    """Provenance, configuration and the observations of a run."""

    provenance: dict[str, Any]
    config: dict[str, Any]
    stages: dict[str, dict[str, Observation]] = field(default_factory=dict)

    def observe(self, stage: str, name: str, value: Any, lane: Lane, quantity: str = "") -> None:
        """Record one value; a second one under the same name is a bug."""
        if stage not in STAGES:
            raise KeyError(stage)
        names = self.stages.setdefault(stage, {})
        if name in names:
            raise KeyError(f"{stage}.{name} is observed twice")
        names[name] = Observation(stage, name, lane, value, quantity or _QUANTITIES.get(lane, ""))

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
        return {f"{o.stage}.{o.name}": plain(o.value) for o in self if o.lane is not Lane.INFO}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; floats that JSON cannot hold become the strings "NaN", "Infinity", "-Infinity"."""
        stages: dict[str, Any] = {}
        for o in self:
            entry = {"lane": o.lane.value} | ({"quantity": o.quantity} if o.quantity else {})
            stages.setdefault(o.stage, {})[o.name] = entry | {"value": plain(o.value)}
        return {"schema": SCHEMA, "provenance": self.provenance, "config": self.config, "stages": stages}

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a record; raises UserError if the file is absent, damaged or of another schema."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if "unfinished" in content:
                raise UserError(
                    f"{path} holds no record: the run did not finish: {content['unfinished']}",
                    remedy="look at its output and run it again",
                )
            if content["schema"] != SCHEMA:
                raise UserError(
                    f"{path} is a record of schema {content['schema']}, but this version reads schema {SCHEMA}",
                    remedy="make the record again with this version",
                )
            sides = content["provenance"], content["config"], content["provenance"].get("packages", {})
            if not all(isinstance(side, dict) for side in sides):
                raise TypeError("provenance, its packages and config must be objects")
            if unknown := set(content["stages"]) - set(STAGES):
                raise ValueError(f"unknown stages {sorted(unknown)}: another version of mlmrepro may have written it")
            record = cls(content["provenance"], content["config"])
            for stage, names in content["stages"].items():
                for name, entry in names.items():
                    record.observe(
                        stage, name, restored(entry["value"]), Lane(entry["lane"]), entry.get("quantity", "")
                    )
        except OSError as error:
            raise UserError(f"the record {path} cannot be read: {error.strerror}", remedy="check the path") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path} is not a complete record: {type(error).__name__}: {error}", remedy="make the record again"
            ) from error
        return record


def write_unfinished(path: Path, problem: str) -> None:
    """Write a note in place of the record that its run did not finish; reading it raises UserError with the note."""
    content = {"schema": SCHEMA, "stages": {}, "unfinished": problem}
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any) -> Any:
    """Return what JSON can hold: NaN and the infinities become strings, tuples lists, keys strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def restored(value: Any) -> Any:
    """Undo `plain` for floats."""
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item) for item in value]
    return value
