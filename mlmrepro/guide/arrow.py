"""Tokens and blocks on Arrow's buffers: the rows of tokens.py and blocks.py, without a Python list for each row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from mlmrepro.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset, Features, IterableDataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    Rows = TypeVar("Rows", Dataset, IterableDataset)

__all__ = ["arrow_blocks", "arrow_tokens", "no_arrow_blocks", "no_arrow_tokens"]

_BATCH = 1000  # rows of a call of `map`, the default of datasets
_PARALLEL = "TOKENIZERS_PARALLELISM"
_ATTRIBUTES = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}  # of an Encoding


def no_arrow_blocks(features: Features | None) -> str:
    """Return why columns of these features are not cut on their buffers, "" if they are."""
    import pyarrow as pa

    if features is None:
        return "the types of the columns are not known"
    for field in features.arrow_schema:
        lists = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        if not lists or not pa.types.is_integer(field.type.value_type):
            return f"the column {field.name!r} holds {field.type}, not lists of integers"
    return ""


def arrow_blocks(dataset: Rows, *, block_size: int, batch_size: int = _BATCH, num_proc: int = 1) -> Rows:
    """Return the rows, columns and features that ``dataset.map`` makes with the guide's `group_texts`.

    `num_proc` says where shards end, since each begins a new batch; nothing is forked. The tokens of a Dataset are not
    copied: blocks point into their buffers. An IterableDataset is cut as it is read, `batch_size` rows at a time, and
    `num_proc` does not matter. Raises UserError for columns that `no_arrow_blocks` refuses, and for a null row.
    """
    from datasets import Dataset

    if reason := no_arrow_blocks(dataset.features):
        raise UserError(reason, remedy="cut it with group_texts, which takes lists of anything")
    if not isinstance(dataset, Dataset):
        return _streamed(dataset, lambda table: _cut(table, block_size), batch_size, dataset.features)
    import pyarrow as pa
    from datasets.fingerprint import Hasher

    rows = dataset if dataset._indices is None else dataset.flatten_indices()
    table, pieces, start = rows.data.table, [], 0
    shards = max(min(num_proc, len(rows)), 1)
    for shard in range(shards):
        stop = start + len(rows) // shards + (shard < len(rows) % shards)  # as Dataset.shard: the first ones are longer
        batches = range(start, stop, batch_size)
        pieces += [_cut(table.slice(at, min(batch_size, stop - at)), block_size) for at in batches]
        start = stop
    full = [piece for piece in pieces if piece.num_rows]
    made = pa.concat_tables(full) if full else table.slice(0, 0)
    # Given, or datasets would hash all tokens.
    fingerprint = Hasher.hash([rows._fingerprint, "arrow_blocks", block_size, batch_size, shards])
    return Dataset(made, info=rows.info.copy(), split=rows.split, fingerprint=fingerprint)


def _cut(table: pa.Table, block_size: int) -> pa.Table:
    """Cut one batch: all columns where the first one is, which loses its remainder if it has a full block."""
    import numpy as np
    import pyarrow as pa

    columns: list[pa.Array] = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if column.null_count:
            raise UserError(f"the column {field.name!r} has rows that are null", remedy="leave them out")
        chunks = [chunk.flatten() for chunk in column.chunks]  # of a slice: the values of its rows only
        values = chunks[0] if len(chunks) == 1 else pa.concat_arrays([pa.array([], field.type.value_type), *chunks])
        count = len(columns[0]) if columns else len(values) // block_size or min(len(values), 1)
        columns.append(_lists(np.minimum(np.arange(count + 1) * block_size, len(values)), values, field.type))
    return pa.table(columns, schema=table.schema)


def _lists(ends: NDArray[np.int64], values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return an array of lists: row n holds the values from ``ends[n]`` to ``ends[n + 1]``."""
    import pyarrow as pa

    large = pa.types.is_large_list(kind)
    offsets = pa.array(ends, pa.int64() if large else pa.int32())
    return (pa.LargeListArray if large else pa.ListArray).from_arrays(offsets, values, type=kind)


def no_arrow_tokens(tokenizer: PreTrainedTokenizerBase, features: Features) -> str:
    """Return why the ids of a tokenizer are not written to buffers, "" if they are.

    `features` are those of rows that the guide's own function made.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return f"{type(tokenizer).__name__} is not a fast tokenizer"
    if other := set(features) - set(_ATTRIBUTES):
        return f"{type(tokenizer).__name__} also gives {', '.join(sorted(other))}"
    return no_arrow_blocks(features)


def arrow_tokens(
    dataset: Rows, tokenizer: PreTrainedTokenizerBase, *, column: str, separator: str, features: Features
) -> Rows:
    """Return the rows that ``dataset.map`` makes with the guide's `preprocess_function`, and no other column.

    One process tokenises, with as many threads as there are cores. `features` are those of rows that the guide's own
    function made. `no_arrow_tokens` says which tokenizers are not taken.
    """
    from datasets import Dataset

    backend = deepcopy(tokenizer.backend_tokenizer)  # the tokenizer itself keeps its padding and truncation
    backend.no_truncation()
    backend.no_padding()
    encode = getattr(backend, "encode_batch_fast", backend.encode_batch)  # without offsets, since tokenizers 0.20
    schema = features.arrow_schema

    def tokenised(table: pa.Table) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        with _all_threads():
            encodings: list[Any] = encode([separator.join(texts) for texts in table.column(column).to_pylist()])
        ends = np.cumsum([0, *map(len, encodings)])
        columns = []
        for field in schema:
            values = chain.from_iterable(getattr(row, _ATTRIBUTES[field.name]) for row in encodings)
            flat = np.fromiter(values, field.type.value_type.to_pandas_dtype(), ends[-1])
            columns.append(_lists(ends, pa.array(flat), field.type))
        return pa.table(columns, schema=schema)

    if not isinstance(dataset, Dataset):
        return _streamed(dataset, tokenised, _BATCH, features)
    made = dataset.with_format("arrow").map(
        tokenised, batched=True, batch_size=_BATCH, remove_columns=dataset.column_names, features=features
    )
    return made.with_format(None)


def _streamed(
    dataset: IterableDataset, function: Callable[[pa.Table], pa.Table], batch_size: int, features: Features
) -> IterableDataset:
    made = dataset.with_format("arrow").map(function, batched=True, batch_size=batch_size, features=features)
    return made.with_format(None)  # a table replaces all columns


@contextmanager
def _all_threads() -> Iterator[None]:
    """Let the tokenizer use its threads; afterwards it must not, since another step may fork."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "true"
    try:
        yield
    finally:
        os.environ.pop(_PARALLEL)
        if before is not None:
            os.environ[_PARALLEL] = before
