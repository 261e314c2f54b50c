"""What scoring measures and the gate judges: one row for each masked token or word, in plain numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scores"]


@dataclass(frozen=True)
class Scores:
    """The losses of one checkpoint on one mask plan; every array has shape (units,).

    A unit is a masked token, or a word whose tokens are all masked. Losses are raw: NaN and infinity stay.
    """

    document: NDArray[np.int32]  # index of the document, ascending
    position: NDArray[np.int32]  # place of the unit in its document, ascending within it
    token: NDArray[np.int32]  # the token's id; -1 for a word
    loss: NDArray[np.float32]  # nats, summed over the unit's tokens
    size: NDArray[np.int32]  # what the mean loss is divided by: 1 for a token, the UTF-8 bytes of a word
    correct: NDArray[np.bool_]  # whether the most probable token is the true one, for a word: all of them
    confidence: NDArray[np.float32]  # probability of the most probable token, for a word: the product

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of different lengths: {lengths}")

    @classmethod
    def empty(cls) -> Scores:
        """Return scores without any unit."""
        whole, real = np.array([], dtype=np.int32), np.array([], dtype=np.float32)
        return cls(whole, whole, whole, real, whole, real.astype(bool), real)

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def mean_loss(self) -> float:
        """Nats per token (micro-average over masked tokens), or nats per byte if the units are words."""
        return float(self.loss.sum(dtype=np.float64) / self.size.sum(dtype=np.int64))

    @property
    def perplexity(self) -> float:
        """``exp(mean_loss)`` of tokens; infinite if a float cannot hold it."""
        try:
            return math.exp(self.mean_loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Mean loss of words in bits per byte."""
        return self.mean_loss / math.log(2)
