"""The guide from the data set to blocks, written once for everything that needs prepared data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro import loading
from mlmrepro.config import RunConfig
from mlmrepro.errors import UserError
from mlmrepro.guide import blocks, collate, dataset, tokens

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["Prepared", "prepare"]


@dataclass
class Prepared:
    """The result of each step of the preparation; every data set has the splits ``train`` and ``test``."""

    split: DatasetDict = field(init=False)
    flat: DatasetDict = field(init=False)
    tokenizer: Any = field(init=False)
    limit: int = field(init=False)  # tokens of the longest row that the model takes
    tokenized: DatasetDict = field(init=False)
    blocks: DatasetDict = field(init=False)  # rows of block_size tokens
    collator: Any = field(init=False)


def prepare(
    config: RunConfig,
    cache: Path | None,
    stage: Callable[[str, Prepared], AbstractContextManager[Any]] = lambda name, made: nullcontext(),
    check: Callable[[Any, int], None] = lambda tokenizer, limit: None,
    *,
    tokenize: Callable[..., DatasetDict] = tokens.tokenize,
    group: Callable[..., DatasetDict] = blocks.group,
) -> Prepared:
    """Load, split, flatten, tokenise and group the data, and make the collator (guide, "Preprocess").

    Every step runs within ``stage(name, results so far)``. `check` gets the tokenizer and the longest row that the
    model takes before any text is tokenised. Without a `cache` folder the library's own is used. `tokenize` and `group`
    replace the guide's own functions, with the same results. Raises UserError for bad input.
    """
    guide, made = config.guide, Prepared()
    with stage("dataset", made):
        made.split = dataset.split(dataset.load(config.dataset, guide.split, cache), guide.test_size)
    with stage("flatten", made):
        made.flat = dataset.flatten(made.split)
    with stage("input_ids", made):
        made.tokenizer = loading.load_tokenizer(config.checkpoint)
        made.limit = loading.max_block_size(config.checkpoint, made.tokenizer.model_max_length)
        _check_block_size(config, made.limit)
        check(made.tokenizer, made.limit)
        made.tokenized = tokenize(
            made.flat, made.tokenizer, column=guide.text_column, separator=guide.separator, num_proc=guide.num_proc
        )
    with stage("blocks", made):
        made.blocks = group(
            made.tokenized, block_size=guide.block_size, num_proc=guide.num_proc, batch_size=guide.map_batch_size
        )
    with stage("masked_batches", made):
        made.collator = collate.data_collator(
            made.tokenizer, mlm_probability=guide.mlm_probability, pad_token=guide.pad_token
        )
    return made


def _check_block_size(config: RunConfig, limit: int) -> None:
    if config.guide.block_size > limit:
        raise UserError(
            f"block_size is {config.guide.block_size}, but {config.guide.checkpoint!r} takes at most {limit} tokens",
            remedy=f"use --set block_size={limit} or less",
        )
