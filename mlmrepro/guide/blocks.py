"""Preprocess, second half: all tokens are concatenated and cut into blocks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlmrepro.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["group", "group_texts"]


def group_texts(examples: dict[str, list[list[Any]]], block_size: int) -> dict[str, list[list[Any]]]:
    """Concatenate the rows of each column and cut them into blocks of `block_size`, the guide's function.

    The remainder is dropped only when there is at least one full block; a shorter batch keeps its one short block.
    All columns are cut where the first one is.
    """
    concatenated = {k: sum(examples[k], []) for k in examples.keys()}  # noqa: RUF017 - the guide's own words
    total_length = len(concatenated[list(examples.keys())[0]])  # noqa: RUF015
    if total_length >= block_size:
        total_length = (total_length // block_size) * block_size
    return {k: [t[i : i + block_size] for i in range(0, total_length, block_size)] for k, t in concatenated.items()}


def group(dataset: DatasetDict, *, block_size: int, num_proc: int, batch_size: int) -> DatasetDict:
    """Map group_texts over every split.

    Each process and each batch of `batch_size` rows drops a remainder of its own, so both numbers change the number
    of blocks. Raises UserError if a split has no block.
    """
    blocks = dataset.map(
        partial(group_texts, block_size=block_size), batched=True, num_proc=num_proc, batch_size=batch_size
    )
    for name, rows in blocks.items():
        if len(rows) == 0:
            raise UserError(f"the {name} split gives no block of {block_size} tokens", remedy="load more text")
    return blocks
