"""The fast blocks and tokens: the rows, columns and features of the guide's own functions, on any input."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from datasets import Dataset, Features, IterableDataset, Sequence, Value, concatenate_datasets
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlmrepro.errors import UserError
from mlmrepro.guide import arrow
from mlmrepro.guide.arrow import arrow_blocks, arrow_tokens
from mlmrepro.guide.blocks import group_texts
from mlmrepro.guide.tokens import preprocess_function
from mlmrepro.observations.steps import mapped_differences, ragged

from ..scoring import tiny

TYPES = ("int8", "int32", "int64")
LENGTHS = st.lists(st.integers(0, 20), max_size=12)


def columns(lengths: list[int], types: list[str], cut: int = 0) -> Dataset:
    """Build rows of these lengths with a column of each type; all but the first column have `cut` tokens less a row."""
    features = Features({f"column {n}": Sequence(Value(kind)) for n, kind in enumerate(types)})
    rows = {
        name: [
            [(7 * n + 3 * row + i) % 101 for i in range(max(length - (cut if n else 0), 0))]
            for row, length in enumerate(lengths)
        ]
        for n, name in enumerate(features)
    }
    return Dataset.from_dict(rows, features=features)


def mapped(rows: Any, block_size: int, batch_size: int, num_proc: int | None = None) -> Any:
    processes = {"num_proc": num_proc} if num_proc else {}
    return rows.map(partial(group_texts, block_size=block_size), batched=True, batch_size=batch_size, **processes)


def check(made: Dataset, expected: Dataset) -> None:
    assert made.column_names == expected.column_names
    assert made.features == expected.features
    assert made.features.arrow_schema == expected.features.arrow_schema
    assert made[:] == expected[:]


@settings(max_examples=80, deadline=None)
@given(
    lengths=LENGTHS,
    types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=3),
    cut=st.integers(-5, 5),
    block_size=st.integers(1, 40),
    batch_size=st.integers(1, 13),
    pieces=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
@example([0, 0, 3], ["int32"], 0, 8, 2, 1, None)  # a batch without a token
@example([8, 8], ["int32", "int8"], 0, 8, 1000, 1, None)  # no remainder
@example([3, 4], ["int64"], 0, 8, 1000, 1, None)  # one short block
@example([5, 9, 2], ["int32", "int8"], 3, 4, 2, 1, None)  # a second column that ends before the first
@example([5, 9, 2], ["int32", "int8"], -3, 4, 2, 1, None)  # and one that ends after it
def test_any_rows_are_cut_as_the_guide_cuts_them(
    lengths: list[int], types: list[str], cut: int, block_size: int, batch_size: int, pieces: int, order: Any
) -> None:
    """Blocks in Arrow's buffers are those of `map`, for any row and batch lengths, types, chunks and order of rows."""
    rows = concatenate_datasets([columns(lengths, types, cut)] * pieces)  # a chunk of the table each
    if order is not None:
        shuffled = list(range(len(rows)))
        order.shuffle(shuffled)
        rows = rows.select(shuffled)
    check(arrow_blocks(rows, block_size=block_size, batch_size=batch_size), mapped(rows, block_size, batch_size))


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, block_size=st.integers(1, 40), batch_size=st.integers(1, 13), num_proc=st.integers(1, 15))
def test_shards_end_where_processes_would(lengths: list[int], block_size: int, batch_size: int, num_proc: int) -> None:
    """For any number of processes the blocks are those of the definition that `map` is held to."""
    examples = ragged(lengths)
    features = Features({name: Sequence(Value("int64")) for name in examples})
    made = arrow_blocks(
        Dataset.from_dict(examples, features=features), block_size=block_size, batch_size=batch_size, num_proc=num_proc
    )
    assert mapped_differences(made, examples, block_size, batch_size, max(min(num_proc, len(lengths)), 1)) == []


@pytest.mark.parametrize("num_proc", [2, 4])
def test_real_processes_make_the_same_blocks(num_proc: int) -> None:
    """`map` in two or four processes, which is more than there are rows, gives the rows that are made without any."""
    rows = columns([5, 9, 2], ["int32", "int8"])
    check(arrow_blocks(rows, block_size=4, batch_size=2, num_proc=num_proc), mapped(rows, 4, 2, num_proc))


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS.filter(bool), block_size=st.integers(1, 40), batch_size=st.integers(1, 13), shards=st.integers(1, 3)
)
def test_a_stream_is_cut_as_the_guide_cuts_it(
    lengths: list[int], block_size: int, batch_size: int, shards: int
) -> None:
    """An IterableDataset gives the rows of its `map`; its features stay known, where `map` forgets them."""
    rows = columns(lengths, ["int32", "int8"])
    stream = rows.to_iterable_dataset(num_shards=min(shards, len(rows)))
    made = arrow_blocks(stream, block_size=block_size, batch_size=batch_size)
    assert list(made) == list(mapped(stream, block_size, batch_size))
    assert made.features == rows.features


def test_a_stream_is_read_a_batch_at_a_time() -> None:
    """The first block of an endless stream comes after one batch."""
    seen = []

    def endless() -> Any:
        while True:
            seen.append(1)
            yield {"ids": [1, 2, 3]}

    stream = IterableDataset.from_generator(endless, features=Features({"ids": Sequence(Value("int32"))}))
    assert next(iter(arrow_blocks(stream, block_size=4, batch_size=10))) == {"ids": [1, 2, 3, 1]}
    assert len(seen) <= 20


def test_tokens_are_not_copied() -> None:
    """The blocks of a Dataset point into the buffer of its tokens."""
    rows = columns([100, 60], ["int32"])
    values = [
        table.column(0).chunk(0).values for table in (rows.data.table, arrow_blocks(rows, block_size=8).data.table)
    ]
    assert values[0].buffers()[1].address == values[1].buffers()[1].address


@pytest.mark.parametrize(
    ("kind", "row", "problem"),
    [(Value("string"), "a", "not lists of integers"), (Sequence(Value("string")), ["a"], "not lists of integers")],
)
def test_other_columns_are_left_to_the_guide(kind: Any, row: Any, problem: str) -> None:
    """A column that is not a list of integers is refused, with its type."""
    with pytest.raises(UserError, match=problem):
        arrow_blocks(Dataset.from_dict({"ids": [row]}, features=Features({"ids": kind})), block_size=2)


def test_a_null_row_is_refused() -> None:
    """A row without a list, on which `sum` fails too, is not taken for an empty one."""
    rows = Dataset.from_dict({"ids": [[1], None]}, features=Features({"ids": Sequence(Value("int32"))}))
    with pytest.raises(UserError, match="'ids' has rows that are null"):
        arrow_blocks(rows, block_size=1)


cut = partial(arrow_blocks, block_size=4, batch_size=2)
FAULTS: dict[str, Callable[[Dataset], Dataset]] = {
    "the remainder kept": lambda rows: mapped(rows, 4, 1000).select([0]),
    "batches joined": lambda rows: arrow_blocks(rows, block_size=4, batch_size=1000),
    "another type": lambda rows: cut(rows.cast_column("column 0", Sequence(Value("int64")))),
    "one token lost": lambda rows: cut(columns([4, 9, 2, 7], ["int32", "int8"])),
    "columns swapped": lambda rows: cut(rows.select_columns(["column 1", "column 0"])),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_blocks_are_rejected(fault: str) -> None:
    """The check of the tests above rejects blocks with other rows, columns or features."""
    rows = columns([5, 9, 2, 7], ["int32", "int8"])
    check(cut(rows), mapped(rows, 4, 2))
    with pytest.raises(AssertionError):
        check(FAULTS[fault](rows), mapped(rows, 4, 2))


WORDS = ["water", "is", "Wet", "", "  ", "é ☀ 🙂", "unaffable waters", "<mask>", "</s>", "\n\t", "x" * 300]
TEXTS = st.lists(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), max_size=3), min_size=1, max_size=6
)


@pytest.mark.parametrize("tokenizer", [tiny.word_piece(), tiny.byte_level(), tiny.word_level(WORDS[:3])])
@settings(max_examples=15, deadline=None)
@given(texts=TEXTS)
def test_any_texts_have_the_guides_tokens(tokenizer: Any, texts: list[list[str]]) -> None:
    """WordPiece, byte-level and word-level tokenizers give the guide's rows and types, from a Dataset and a stream."""
    rows = Dataset.from_dict(
        {"answers.text": texts, "n": [0] * len(texts)},
        features=Features({"answers.text": Sequence(Value("string")), "n": Value("int8")}),
    )
    expected = rows.map(
        preprocess_function(tokenizer, "answers.text", " "), batched=True, remove_columns=rows.column_names
    )
    given = {"tokenizer": tokenizer, "column": "answers.text", "separator": " ", "features": expected.features}
    assert arrow.no_arrow_tokens(tokenizer, expected.features) == ""
    check(arrow_tokens(rows, **given), expected)
    assert list(arrow_tokens(rows.to_iterable_dataset(), **given)) == list(expected)


def test_padding_and_truncation_of_the_tokenizer_neither_matter_nor_change() -> None:
    """A tokenizer that pads and truncates gives whole rows, and keeps its settings and the environment's."""
    tokenizer, before = tiny.byte_level(), os.environ.get("TOKENIZERS_PARALLELISM")
    rows = Dataset.from_dict({"text": [["water is wet"], ["ice"]]})
    expected = rows.map(preprocess_function(tokenizer, "text", " "), batched=True, remove_columns=["text"])
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    check(arrow_tokens(rows, tokenizer, column="text", separator=" ", features=expected.features), expected)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 2
    assert tokenizer.backend_tokenizer.padding["length"] == 7
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_a_tokenizer_in_python_is_left_to_the_guide() -> None:
    """A tokenizer without the Rust library, and one that gives a column of its own, are refused with the reason."""
    features = Features({"input_ids": Sequence(Value("int32"))})
    assert "not a fast tokenizer" in arrow.no_arrow_tokens(object(), features)  # type: ignore[arg-type]
    other = Features({**features, "own": Sequence(Value("int32"))})
    assert "also gives own" in arrow.no_arrow_tokens(tiny.word_piece(), other)
