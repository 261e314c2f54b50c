"""Evaluate: the mean loss of the test blocks, and the perplexity that the guide prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["evaluate", "perplexity"]


def evaluate(trainer: Trainer) -> float:
    """Return `eval_loss`: nats, averaged over rows of equal weight, on masks drawn afresh."""
    return float(trainer.evaluate()["eval_loss"])


def perplexity(eval_loss: float) -> float:
    """Return ``exp(eval_loss)``; infinite if a float cannot hold it."""
    try:
        return math.exp(eval_loss)
    except OverflowError:
        return math.inf
