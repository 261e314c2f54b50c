"""The fill-mask pipeline: its rows, targets, several masks, defaults and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlmrepro.config import GuideConfig
from mlmrepro.golden_run.beside.probe import Bench, Measured, attempt, probe
from mlmrepro.record import Lane

__all__ = ["defaults", "several", "targets"]

PROMPT = GuideConfig.prompt


def _pipeline(bench: Bench, **options: Any) -> Any:
    from transformers import pipeline

    return pipeline("fill-mask", str(bench.checkpoint), **options)


@probe("fill_mask")
def defaults(bench: Bench) -> Mapping[str, Any]:
    """Rows without `top_k`, their keys, the model's dtype, and the checkpoint that is loaded by default."""
    filler = _pipeline(bench)
    rows = filler(PROMPT)
    return {
        "rows": Measured(rows, "probability", Lane.RANKING),
        "keys": sorted(rows[0]),
        "dtype": str(filler.model.dtype),
        "device": str(filler.device),
        "no_mask": attempt(lambda: filler("no mask here")),
        "default_checkpoint": attempt(_default_checkpoint),
    }


def _default_checkpoint() -> str:
    from transformers.pipelines import SUPPORTED_TASKS

    tasks: dict[str, Any] = SUPPORTED_TASKS
    default = tasks["fill-mask"]["default"]
    named = default["model"] if isinstance(default["model"], dict) else {"pt": default["model"]}
    return str(named["pt"][0])


@probe("fill_mask")
def targets(bench: Bench) -> Mapping[str, Any]:
    """Scores of given words: with the space that begins a word, without it, and one that is not a single token."""
    filler = _pipeline(bench)

    def rows(words: list[str]) -> Any:
        return Measured(attempt(lambda: filler(PROMPT, targets=words)), "probability", Lane.RANKING)

    return {
        "with_space": rows([" spiral", " dwarf"]),
        "without_space": rows(["spiral", "dwarf"]),
        "not_one_token": rows([" unremarkableness"]),
    }


@probe("fill_mask")
def several(bench: Bench) -> Mapping[str, Any]:
    """Two masks, a list of one prompt, and a list of two: how deep the answer is nested, and its first tokens."""
    filler = _pipeline(bench)
    two = filler("The <mask> Way is a <mask> galaxy.", top_k=2)
    listed, both = filler([PROMPT], top_k=2), filler([PROMPT, "Water is <mask>."], top_k=2)
    return {
        "two_masks": [[row["token"] for row in rows] for rows in two],
        "list_of_one_is_nested": isinstance(listed[0], list),
        "list_of_two": [[row["token"] for row in rows] for rows in both],
        "batched": attempt(
            lambda: [[r["token"] for r in rows] for rows in filler([PROMPT, "Water is <mask>."], top_k=2, batch_size=2)]
        ),
    }
