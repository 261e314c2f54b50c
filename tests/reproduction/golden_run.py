"""The run that the goldens hold: the whole guide on the first questions of the embedded data.

``python -m tests.reproduction.golden_run`` makes `golden/embedded/` again (``tox run -e goldens``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlmrepro.compare.golden import Expected, write_golden
from mlmrepro.config import RunConfig, resolve
from mlmrepro.record import Lane, RunRecord

GOLDENS = Path(__file__).parents[2] / "golden" / "embedded"

# Few rows keep it within half a minute; everything else is the embedded profile.
SPLIT = ("split", "train_asks[:32]", "golden run: few rows, so that it is quick")

# What the goldens hold of each stage. The attention kernel is left out: it is the library's choice.
NAMES = {
    "dataset": ("train_rows", "test_rows", "train_order", "test_order"),
    "flatten": ("columns", "train_content"),
    "input_ids": ("train_tokens", "test_tokens", "train_columns", "test_columns", "first_ids"),
    "blocks": ("train_blocks", "test_blocks", "train_remainder", "test_remainder", "train_columns", "test_columns"),
    "masked_batches": ("seed", "counts", "rate", "draw"),
    "model": ("class", "parameters", "dtype", "weights", "eval_loss"),
    "loss": ("steps", "step_losses", "epoch_eval_losses"),
    "evaluation": ("eval_loss", "perplexity", "same_masks_perplexity"),
    "fill_mask": ("pipeline", "by_hand"),
}

# Rounding differs between kernels, processors and numbers of threads. The two numbers of threads of one machine
# show its size; the factor leaves room for processors that were not measured.
FACTOR = 20
FLOOR = {Lane.APPROXIMATE: 1e-4, Lane.RANKING: 1e-5, Lane.STATISTICAL: 1e-4}


def golden_config(output_dir: Path, *changes: tuple[str, Any, str], threads: int = 2) -> RunConfig:
    """Return the golden run's configuration, with deliberate faults or other settings on top."""
    return resolve("embedded", output_dir=output_dir, changes=(SPLIT, *changes), threads=threads)


def obtained(record: RunRecord, stage: str) -> dict[str, Any]:
    """Return the values of a stage that its golden holds."""
    return {name: record[f"{stage}.{name}"] for name in NAMES[stage] if name in record.stages.get(stage, {})}


def make_goldens(directory: Path = GOLDENS) -> None:
    """Run with two threads and with one, and write what the first gave with the tolerance that both show."""
    from mlmrepro.guide.run import run

    with tempfile.TemporaryDirectory() as folder:
        first = run(golden_config(Path(folder) / "two", threads=2))
        second = run(golden_config(Path(folder) / "one", threads=1))
    for stage in NAMES:
        a, b = obtained(first, stage), obtained(second, stage)
        lanes = {name: first.stages[stage][name].lane for name in a}
        expected = {name: _expected(lanes[name], a[name], b[name]) for name in a}
        write_golden(directory / f"{stage}.json", _header(first), expected)


def _header(record: RunRecord) -> Mapping[str, Any]:
    return record.provenance | {"config": record.config}


def _expected(lane: Lane, first: Any, second: Any) -> Expected:
    if lane is Lane.EXACT:
        if first != second:
            raise AssertionError(f"an exact value depends on the number of threads: {first!r}, {second!r}")
        return Expected(lane, first)
    pairs = list(zip(_numbers(first), _numbers(second), strict=True))
    relative = lane is Lane.STATISTICAL
    spread = max(abs(x - y) / (abs(x) if relative else 1.0) for x, y in pairs)
    tolerance = max(FACTOR * spread, FLOOR[lane])
    unit = {Lane.APPROXIMATE: "nats", Lane.RANKING: "probability", Lane.STATISTICAL: "of the value"}[lane]
    return Expected(
        lane,
        first,
        tolerance,
        f"{FACTOR} times the largest difference between 1 and 2 threads ({spread:.2g} {unit}), "
        f"at least {FLOOR[lane]:g}: rounding alone",
    )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for key, item in value.items() if key != "token" for n in _numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in _numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


if __name__ == "__main__":
    make_goldens()
