"""The phases of pretraining: which rows a step reads, how they are corrupted, and with which learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlmrepro.config import IGNORE_INDEX

__all__ = ["SPECIAL", "Phase", "batch_of", "blocks_of", "corrupt", "learning_rate", "phase_at", "same_sentence"]

_SENTENCE = 45  # tokens
SPECIAL = 4  # ids 0 to 3 are never selected; <mask> does not occur in text


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one block size and one corruption (Devlin et al. 2019, section 3.1)."""

    name: str
    steps: int
    block_size: int  # tokens a row
    batch_size: int  # rows a step
    mlm_probability: float
    mask_share: float
    random_share: float
    sources: tuple[str, ...] = ()  # packages of the corpus that it reads; none means all
    unlikelihood: float = 0.0  # weight of the penalty on words of a sentence as answers for its masks
    sentences: int = 0  # times that each sentence is read by itself, next to the documents: few of them repeat a word


def corrupt(ids: Any, phase: Phase, vocab_size: int, generator: Any) -> tuple[Any, Any]:
    """Return (corrupted ids, labels), both of the shape of `ids` (rows, tokens); -100 where nothing is predicted."""
    import torch

    selected = (torch.rand(ids.shape, generator=generator) < phase.mlm_probability) & (ids >= SPECIAL)
    kind = torch.rand(ids.shape, generator=generator)
    replacement = torch.randint(SPECIAL, vocab_size - 1, ids.shape, generator=generator)
    labels = torch.where(selected, ids, IGNORE_INDEX)
    inputs = torch.where(selected & (kind < phase.mask_share), vocab_size - 1, ids)
    swapped = selected & (kind >= phase.mask_share) & (kind < phase.mask_share + phase.random_share)
    return torch.where(swapped, replacement, inputs), labels


def same_sentence(ids: Any, inputs: Any, positions: Any, content: Any) -> tuple[Any, Any]:
    """Return the words that a mask's sentence holds: (their ids, which of them count), both (positions, tokens).

    `ids` and `inputs` are the rows before and after corruption, `positions` are those of the flattened batch, `content`
    tells for each id whether it is a rare enough word to be conspicuous. Only what stands alone counts: between `<s>`
    and `</s>`, at most `_SENTENCE` tokens long; a document may well repeat its words.
    """
    width = ids.shape[1]
    segment = (ids == 0).cumsum(1)
    alike = segment.unsqueeze(2) == segment.unsqueeze(1)
    short = alike.sum(2) <= _SENTENCE
    rows, columns = positions // width, positions % width
    counts = alike[rows, columns] & (short & content[inputs])[rows]
    return inputs[rows], counts


def blocks_of(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """Cut a stream of tokens into rows, shape (rows, block_size); the remainder is dropped."""
    count = len(tokens) // block_size
    return tokens[: count * block_size].reshape(count, block_size)


def batch_of(rows: np.ndarray, step: int, phase: Phase, seed: int) -> np.ndarray:
    """Rows of one step: a fresh permutation an epoch, drawn from (seed, epoch), so that a step can be resumed."""
    per_epoch = len(rows) // phase.batch_size
    epoch, index = divmod(step, per_epoch)
    order = np.random.default_rng((seed, phase.block_size, epoch)).permutation(len(rows))
    return rows[order[index * phase.batch_size : (index + 1) * phase.batch_size]]


def learning_rate(step: int, phases: list[Phase], optimiser: dict[str, Any]) -> float:
    """Linear warm-up, constant, then linear decay over the last phase (so the phases before it can be prolonged)."""
    peak, final = optimiser["learning_rate"], optimiser["final_learning_rate"]
    if step < optimiser["warmup_steps"]:
        return peak * (step + 1) / optimiser["warmup_steps"]
    last = phases[-1].steps
    done = step - sum(phase.steps for phase in phases[:-1])
    return peak if done < 0 else peak + (final - peak) * done / last


def phase_at(step: int, phases: list[Phase]) -> tuple[int, Phase]:
    """Return (the phase's first step, the phase)."""
    first = 0
    for phase in phases:
        if step < first + phase.steps:
            return first, phase
        first += phase.steps
    raise IndexError(step)
