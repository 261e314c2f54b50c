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
    "ALL_STAGES",
    "SCHEMA",
    "STAGES",
    "TESTS",
    "Bound",
    "Lane",
    "Observation",
    "Part",
    "RunRecord",
    "current",
    "observer",
    "part",
    "plain",
    "restored",
    "write_unfinished",
]

SCHEMA = 3
_READS = (2, 3)  # schema 2 called the parts `alone` and `beside`, and did not say what was asked for

# In the order of the data's flow.
STAGES = ("dataset", "flatten", "input_ids", "blocks", "masked_batches", "model", "loss", "evaluation", "fill_mask")
# Not a stage of the guide: what the user's own tests hold, `mlmrepro record --tests`.
TESTS = "tests"
ALL_STAGES = (*STAGES, TESTS)
_TEST = "::"  # in the name of a value of a test: its golden's file, and the entry


class Lane(str, Enum):
    """How two values of one observation are compared."""

    EXACT = "exact"  # ids, orders, counts, draws
    APPROXIMATE = "approximate"  # floats, within a tolerance that has a reason
    RANKING = "ranking"  # orders by score, with their margins
    STATISTICAL = "statistical"  # perplexity, which depends on masks and seeds
    BOUND = "bound"  # held to a bound that is recorded with it, never compared with another record
    INFO = "info"  # times and warnings: never compared

    @property
    def compared(self) -> bool:
        """Return whether values of this lane are compared with a golden or another record."""
        return self not in (Lane.BOUND, Lane.INFO)


class Part(str, Enum):
    """Where in a stage a value was observed; the prefix of its name says so."""

    FLOW = "flow"  # on what the previous stage really produced: no prefix
    ISOLATED = "isolated"  # on the goldens' stored input, so that no earlier stage matters
    OFF_PATH = "off_path"  # by `mlmrepro.observations`, or a test: what the guide's run does not use or show


# What the tolerance of a lane applies to, unless an observation says otherwise.
_QUANTITIES = {Lane.APPROXIMATE: "nats", Lane.RANKING: "probability", Lane.STATISTICAL: "perplexity"}


@dataclass(frozen=True)
class Bound:
    """What a value must be, with the reason for the numbers; NaN violates every bound. Without numbers, no bound."""

    at_most: float | None = None
    at_least: float | None = None
    equals: float | int | str | bool | None = None
    reason: str = ""

    def __bool__(self) -> bool:
        return not (self.at_most is None and self.at_least is None and self.equals is None)

    def holds(self, value: Any) -> bool:
        """Return whether a value is within the bound."""
        if isinstance(value, float) and math.isnan(value):
            return not self
        if self.equals is not None and value != self.equals:
            return False
        limits = self.at_most is not None or self.at_least is not None
        if limits and not isinstance(value, (int, float)):
            return False
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    def __str__(self) -> str:
        """Return the bound in words, such as ``at most 1e-05``."""
        parts = [
            f"{word} {value:.3g}" if isinstance(value, float) else f"{word} {value!r}"
            for word, value in (("exactly", self.equals), ("at least", self.at_least), ("at most", self.at_most))
            if value is not None
        ]
        return " and ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without empty fields."""
        numbers = {"at_most": self.at_most, "at_least": self.at_least, "equals": self.equals}
        content = {name: plain(value) for name, value in numbers.items() if value is not None}
        return content | ({"reason": self.reason} if self.reason else {})

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Bound:
        """Undo `to_dict`; raises TypeError for a limit that is no number."""
        bound = cls(**{name: restored(value) for name, value in content.items()})
        if not all(isinstance(limit, (int, float, type(None))) for limit in (bound.at_most, bound.at_least)):
            raise TypeError(f"the limits of {content} are not numbers")
        return bound


@dataclass(frozen=True)
class Observation:
    """One named value of one stage; `quantity` names what a float measures, "" in the other lanes."""

    stage: str
    name: str
    lane: Lane
    value: Any
    quantity: str = ""
    bound: Bound = field(default_factory=Bound)  # of the lane BOUND
    title: str = ""  # the name in words, "" if there are none
    tolerance: dict[str, Any] = field(default_factory=dict)  # the fields of its own one, if not that of its quantity

    @property
    def part(self) -> Part:
        """Return where in its stage it was observed."""
        return part(self.name)

    @property
    def observer(self) -> str:
        """Return the observation that it belongs to, "" on the guide's own path and in isolation."""
        return observer(self.name)

    @property
    def compared(self) -> bool:
        """Return whether it is compared with a golden or another record."""
        return self.lane.compared


def part(name: str) -> Part:
    """Return the part of a stage that a name such as ``isolated.draw`` belongs to."""
    prefix = Part.OFF_PATH.value if _TEST in name else name.partition(".")[0]
    return Part(prefix) if prefix in (Part.ISOLATED.value, Part.OFF_PATH.value) else Part.FLOW


# Of schema 2: how the parts and some observations were called, and what bounds say now.
_PARTS = {"alone": Part.ISOLATED.value, "beside": Part.OFF_PATH.value}
_OBSERVATIONS = {
    "argument_defaults": "argument_values",
    "optimiser": "optimiser_settings",
    "resuming": "resuming_unaided",
    "tied_weights": "tied_after_loading",
}
_GONE = "beside.accumulation."


def current(name: str) -> str:
    """Return today's name of a value of schema 2, "" if it is gone; other names are returned as they are."""
    prefix, *rest = name.split(".")
    if prefix not in _PARTS or not rest or name.startswith(_GONE):
        return "" if name.startswith(_GONE) else name
    if prefix == "beside":
        rest[0] = _OBSERVATIONS.get(rest[0], rest[0])
    return ".".join([_PARTS[prefix], *rest])


def observer(name: str) -> str:
    """Return the observation of an off-path value such as ``off_path.accumulation.step_ratio``, "" of any other.

    Of a test's value, such as ``tests/test_a/test_one::loss``, it is the file of the golden.
    """
    if _TEST in name:
        return name.partition(_TEST)[0]
    return name.split(".")[1] if part(name) is Part.OFF_PATH and "." in name else ""


@dataclass
class RunRecord:
    """Provenance, configuration and the observations of a run."""

    provenance: dict[str, Any]
    config: dict[str, Any]
    stages: dict[str, dict[str, Observation]] = field(default_factory=dict)
    # The observations that the record was asked for, each with what went wrong ("" if nothing); None if not known.
    asked: dict[str, str] | None = None

    def observe(
        self,
        stage: str,
        name: str,
        value: Any,
        lane: Lane,
        quantity: str = "",
        bound: Bound | None = None,
        title: str = "",
        tolerance: dict[str, Any] | None = None,
    ) -> None:
        """Record one value; a second one under the same name is a bug."""
        if stage not in ALL_STAGES:
            raise KeyError(stage)
        names = self.stages.setdefault(stage, {})
        if name in names:
            raise KeyError(f"{stage}.{name} is observed twice")
        quantity = quantity or _QUANTITIES.get(lane, "")
        names[name] = Observation(stage, name, lane, value, quantity, bound or Bound(), title, tolerance or {})

    def __getitem__(self, key: str) -> Any:
        """Return the value of ``"stage.name"``."""
        stage, name = key.split(".", 1)
        return self.stages[stage][name].value

    def __iter__(self) -> Iterator[Observation]:
        """Iterate over the observations in the order of the stages."""
        for stage in ALL_STAGES:
            yield from self.stages.get(stage, {}).values()

    def results(self) -> dict[str, Any]:
        """Return ``"stage.name" -> value`` of everything that a rerun must repeat: neither bounds nor the lane INFO."""
        return {f"{o.stage}.{o.name}": plain(o.value) for o in self if o.compared}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; floats that JSON cannot hold become the strings "NaN", "Infinity", "-Infinity"."""
        stages: dict[str, Any] = {}
        for o in self:
            words = {"quantity": o.quantity, "title": o.title, "bound": o.bound.to_dict(), "tolerance": o.tolerance}
            entry = {"lane": o.lane.value} | {name: word for name, word in words.items() if word}
            stages.setdefault(o.stage, {})[o.name] = entry | {"value": plain(o.value)}
        head = {"schema": SCHEMA, "provenance": self.provenance, "config": self.config}
        return head | ({} if self.asked is None else {"asked": self.asked}) | {"stages": stages}

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
            if content["schema"] not in _READS:
                raise UserError(
                    f"{path} is a record of schema {content['schema']}, but this version reads {_READS[0]} to {SCHEMA}",
                    remedy="make the record again with this version",
                )
            sides = content["provenance"], content["config"], content["provenance"].get("packages", {})
            if not all(isinstance(side, dict) for side in (*sides, content.get("asked", {}))):
                raise TypeError("provenance, its packages, config and asked must be objects")
            if unknown := set(content["stages"]) - set(ALL_STAGES):
                raise ValueError(f"unknown stages {sorted(unknown)}: another version of mlmrepro may have written it")
            record = cls(content["provenance"], content["config"], asked=content.get("asked"))
            for stage, names in content["stages"].items():
                for name, entry in names.items():
                    bound = Bound.from_dict(entry.get("bound", {}))
                    words = entry.get("quantity", ""), bound, entry.get("title", ""), entry.get("tolerance")
                    if new := current(name):
                        record.observe(stage, new, restored(entry["value"]), Lane(entry["lane"]), *words)
            if content["schema"] == 2:  # it was asked for everything that there was
                off_path = [o for o in record if o.part is Part.OFF_PATH and o.name.count(".") > 1]
                record.asked = {f"{o.stage}.{o.name.split('.')[1]}": "" for o in off_path}
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
