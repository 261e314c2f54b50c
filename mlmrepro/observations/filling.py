"""The fill-mask pipeline: its rows, targets, several masks, defaults and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlmrepro.config import GuideConfig
from mlmrepro.observations.observation import attempt, observation, value, values
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject
from mlmrepro.record import Lane

__all__ = ["defaults", "several", "targets"]


def _prompt(subject: Subject, prompt: str = GuideConfig.prompt) -> str:
    return prompt.replace("<mask>", subject.tokenizer.mask_token)


def _pipeline(subject: Subject, **options: Any) -> Any:
    from transformers import pipeline

    return pipeline("fill-mask", str(subject.checkpoint), **options)


@observation("fill_mask")
def defaults(subject: Subject) -> Iterator[Value]:
    """Rows without `top_k`, their keys, the model's dtype, and the checkpoint that is loaded by default."""
    filler = _pipeline(subject)
    rows = filler(_prompt(subject))
    yield from values(
        {
            "rows": value("", rows, quantity="probability", lane=Lane.RANKING),
            "keys": sorted(rows[0]),
            "dtype": str(filler.model.dtype),
            "device": str(filler.device),
            "no_mask": attempt(lambda: filler("no mask here")),
            "default_checkpoint": attempt(_default_checkpoint),
        }
    )


def _default_checkpoint() -> str:
    from transformers.pipelines import SUPPORTED_TASKS

    tasks: dict[str, Any] = SUPPORTED_TASKS
    default = tasks["fill-mask"]["default"]
    named = default["model"] if isinstance(default["model"], dict) else {"pt": default["model"]}
    return str(named["pt"][0])


@observation("fill_mask")
def targets(subject: Subject) -> Iterator[Value]:
    """Scores of given words: with the space that begins a word, without it, and one that is not a single token."""
    filler = _pipeline(subject)

    def rows(words: list[str]) -> Any:
        return value(
            "", attempt(lambda: filler(_prompt(subject), targets=words)), quantity="probability", lane=Lane.RANKING
        )

    yield from values(
        {
            "with_space": rows([" spiral", " dwarf"]),
            "without_space": rows(["spiral", "dwarf"]),
            "not_one_token": rows([" unremarkableness"]),
        }
    )


@observation("fill_mask")
def several(subject: Subject) -> Iterator[Value]:
    """Two masks, a list of one prompt, and a list of two: how deep the answer is nested, and its first tokens."""
    filler = _pipeline(subject)
    two = filler(_prompt(subject, "The <mask> Way is a <mask> galaxy."), top_k=2)
    prompts = [_prompt(subject), _prompt(subject, "Water is <mask>.")]
    listed, both = filler(prompts[:1], top_k=2), filler(prompts, top_k=2)
    yield from values(
        {
            "two_masks": [[row["token"] for row in rows] for rows in two],
            "list_of_one_is_nested": isinstance(listed[0], list),
            "list_of_two": [[row["token"] for row in rows] for rows in both],
            "batched": attempt(lambda: [[r["token"] for r in rows] for rows in filler(prompts, top_k=2, batch_size=2)]),
        }
    )
