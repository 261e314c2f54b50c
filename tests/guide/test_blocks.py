"""Chunks: any ragged columns, block size and batch boundary against an independent definition of the blocks."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import chain, pairwise
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Features, Sequence, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlmrepro.errors import UserError
from mlmrepro.guide.blocks import group, group_texts
from mlmrepro.observations.steps import block_differences, blocks_of, mapped_blocks, mapped_differences, ragged

Columns = dict[str, list[list[int]]]
Cut = Callable[[Columns, int], Columns]

NAMES = ("input_ids", "attention_mask", "späte Spalte")


def columns(lengths: list[int], width: int = 2) -> Columns:
    """Build `width` columns of rows of these lengths in which every token is unique, so none can be mistaken."""
    return ragged(lengths, NAMES[:width])


def check_blocks(cut: Cut, examples: Columns, block_size: int) -> None:
    """Assert every property of the blocks that `cut` makes of one batch."""
    before = deepcopy(examples)
    blocks = cut(examples, block_size)
    assert examples == before, "the input was changed"
    assert list(blocks) == list(examples)
    sizes = [[len(block) for block in column] for column in blocks.values()]
    assert all(column == sizes[0] for column in sizes), "columns are cut apart"
    for name, rows in examples.items():
        tokens = list(chain.from_iterable(rows))
        kept = list(chain.from_iterable(blocks[name]))
        assert tokens[: len(kept)] == kept, "tokens are out of order, doubled or lost within"
        if len(tokens) >= block_size:
            assert len(tokens) - len(kept) == len(tokens) % block_size, "more or less than the remainder is lost"
            assert set(sizes[0]) == {block_size}, "a block is not full"
        else:
            assert kept == tokens, "a short batch lost tokens"
            assert len(blocks[name]) == (1 if tokens else 0), "a short batch is not one block, an empty one none"
    assert block_differences(cut, examples, block_size) == []


def check_mapped(grouped: Dataset, examples: Columns, block_size: int, batch_size: int, num_proc: int) -> None:
    """Assert that a mapped data set holds the blocks of its batches within its shards, in order."""
    assert mapped_differences(grouped, examples, block_size, batch_size, num_proc) == []


def dataset(examples: Columns) -> DatasetDict:
    """Build a data set of one split; the features are given, since rows that are all empty name no type."""
    features = Features({name: Sequence(Value("int64")) for name in examples})
    return DatasetDict({"train": Dataset.from_dict(examples, features=features)})


LENGTHS = st.lists(st.integers(0, 20), max_size=12)


@settings(max_examples=200)
@given(lengths=LENGTHS, width=st.integers(1, 3), block_size=st.integers(1, 40))
@example(lengths=[64, 64], width=2, block_size=128)  # exactly one full block
@example(lengths=[64, 63], width=2, block_size=128)  # one token short of it: the short block stays
@example(lengths=[128, 127], width=2, block_size=128)  # the longest remainder that is dropped
@example(lengths=[], width=2, block_size=128)
@example(lengths=[0, 0], width=2, block_size=1)
def test_any_batch_is_cut_like_the_definition(lengths: list[int], width: int, block_size: int) -> None:
    """Any ragged batch loses the remainder at most, has full blocks and equal cuts in all columns."""
    check_blocks(group_texts, columns(lengths, width), block_size)


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([], []),
        ([0, 0], []),
        ([3], [3]),
        ([3, 4], [7]),
        ([3, 5], [8]),
        ([3, 6], [8]),
        ([8, 7], [8]),
        ([8, 8], [8, 8]),
        ([5, 0, 20], [8, 8, 8]),
    ],
)
def test_remainder_rule(lengths: list[int], sizes: list[int]) -> None:
    """A partial block is dropped only beside a full one; a short batch keeps its block, an empty one has none."""
    blocks = group_texts(columns(lengths), block_size=8)
    assert [len(block) for block in blocks["input_ids"]] == sizes


@settings(max_examples=100)
@given(lengths=LENGTHS, cuts=st.sets(st.integers(0, 12)), block_size=st.integers(1, 40))
def test_any_batch_boundary_costs_its_own_remainder(lengths: list[int], cuts: set[int], block_size: int) -> None:
    """Wherever batches end, the blocks are as many as each batch's own token count gives."""
    examples = columns(lengths)
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(lengths)), len(lengths)]
    count = expected = 0
    for start, stop in pairwise(bounds):
        batch = {name: rows[start:stop] for name, rows in examples.items()}
        check_blocks(group_texts, batch, block_size)
        count += len(group_texts(batch, block_size)["input_ids"])
        total = sum(lengths[start:stop])
        expected += max(total // block_size, min(total, 1))
    assert count == expected


def check_group(examples: Columns, block_size: int, batch_size: int, num_proc: int) -> None:
    """Assert that `group` gives the defined blocks, or names the split where there are none."""
    rows = dataset(examples)
    if not any(examples["input_ids"]):
        with pytest.raises(UserError, match="train split gives no block"):
            group(rows, block_size=block_size, num_proc=num_proc, batch_size=batch_size)
        return
    grouped = group(rows, block_size=block_size, num_proc=num_proc, batch_size=batch_size)
    check_mapped(grouped["train"], examples, block_size, batch_size, num_proc)


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=12), block_size=st.integers(1, 40), data=st.data())
def test_map_cuts_batch_by_batch(lengths: list[int], block_size: int, data: st.DataObject) -> None:
    """Dataset.map in one process gives the blocks of each batch of `batch_size` rows, one batch after the other."""
    batch_size = data.draw(st.integers(1, len(lengths) + 1))
    check_group(columns(lengths), block_size, batch_size, num_proc=1)


@pytest.mark.parametrize(
    ("lengths", "block_size", "batch_size"),
    [
        ([5, 9, 2, 7, 4, 8, 3], 8, 1000),  # an odd number of rows: the first shard has one more
        ([5, 9, 2, 7, 4, 8, 3, 6], 8, 3),  # shards of 4 rows in batches of 3: batches restart in each shard
        ([3, 6], 8, 1000),  # one row a shard, both short: two short blocks where one process gives a full one
        ([0, 0, 9, 7], 8, 3),  # the first shard has no block at all
    ],
)
def test_two_processes_differ_by_the_shards_alone(lengths: list[int], block_size: int, batch_size: int) -> None:
    """One and two processes both follow the definition, in which contiguous shards are the only difference."""
    rows = columns(lengths)["input_ids"]
    assert mapped_blocks(rows, block_size, batch_size, 1) != mapped_blocks(rows, block_size, batch_size, 2)
    for num_proc in (1, 2):
        check_group(columns(lengths), block_size, batch_size, num_proc)


def _all_but_partial(examples: Columns, block_size: int) -> Columns:
    return {
        name: [block for block in blocks if len(block) == block_size]
        for name, blocks in group_texts(examples, block_size).items()
    }


def _with_partial(examples: Columns, block_size: int) -> Columns:
    tokens = {name: list(chain.from_iterable(rows)) for name, rows in examples.items()}
    return {name: [t[i : i + block_size] for i in range(0, len(t), block_size)] for name, t in tokens.items()}


def _apart(examples: Columns, block_size: int) -> Columns:
    first, *others = examples
    cut = group_texts({first: examples[first]}, block_size)
    return cut | group_texts({name: examples[name] for name in others}, block_size + 1)


def _columns_mixed(examples: Columns, block_size: int) -> Columns:
    blocks = group_texts(examples, block_size)
    return dict.fromkeys(blocks, blocks["input_ids"])


def _without_row(examples: Columns, block_size: int) -> Columns:
    return group_texts({name: rows[1:] for name, rows in examples.items()}, block_size)


def _row_by_row(examples: Columns, block_size: int) -> Columns:
    return {name: list(chain(*(blocks_of([row], block_size) for row in rows))) for name, rows in examples.items()}


def _out_of_order(examples: Columns, block_size: int) -> Columns:
    return {name: blocks[::-1] for name, blocks in group_texts(examples, block_size).items()}


def _consuming(examples: Columns, block_size: int) -> Columns:
    blocks = group_texts(examples, block_size)
    for rows in examples.values():
        rows.clear()
    return blocks


FAULTS: dict[str, tuple[Cut, list[int]]] = {
    "block size one more": (lambda examples, size: group_texts(examples, size + 1), [9, 9]),
    "block size one less": (lambda examples, size: group_texts(examples, size - 1), [9, 9]),
    "the last full block dropped": (lambda e, size: {k: v[:-1] for k, v in group_texts(e, size).items()}, [9, 9]),
    "a short batch's tail dropped": (_all_but_partial, [3, 4]),
    "the remainder kept": (_with_partial, [9, 9]),
    "columns cut apart": (_apart, [9, 9]),
    "one column's blocks in all": (_columns_mixed, [9, 9]),
    "a row lost": (_without_row, [9, 9]),
    "each row cut by itself": (_row_by_row, [9, 9]),
    "blocks out of order": (_out_of_order, [9, 9]),
    "the input changed": (_consuming, [9, 9]),
    "an empty batch with a block": (lambda examples, size: {name: [[]] for name in examples}, [0]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_rejected(fault: str) -> None:
    """The check accepts group_texts and rejects each planted fault on the same batch."""
    cut, lengths = FAULTS[fault]
    check_blocks(group_texts, columns(lengths), 8)
    with pytest.raises(AssertionError):
        check_blocks(cut, columns(lengths), 8)


@pytest.mark.parametrize(
    "wrong",
    [{"block_size": 7}, {"batch_size": 2}, {"num_proc": 2}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_mapped_blocks_are_rejected(wrong: dict[str, Any]) -> None:
    """The check of mapped blocks rejects those of another block size, batch size or number of shards."""
    examples = columns([5, 9, 2, 7, 4])
    right = {"block_size": 8, "batch_size": 4, "num_proc": 1}
    blocks = {name: mapped_blocks(rows, **(right | wrong)) for name, rows in examples.items()}
    with pytest.raises(AssertionError):
        check_mapped(Dataset.from_dict(blocks), examples, **right)
    blocks = {name: mapped_blocks(rows, **right) for name, rows in examples.items()}
    check_mapped(Dataset.from_dict(blocks), examples, **right)
