"""The laws of the guide's steps: held by them, and each broken by a step that does something else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from mlmrepro.guide import blocks, collate, dataset, evaluate, tokens
from mlmrepro.observations import steps
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject

from . import held

LAWS = held.names("steps")
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("kind", ["WordPiece", "esm"])
def test_holds_for_other_tokenizers_and_seeds(kind: str, tmp_path: Path) -> None:
    """A tokenizer without an end-of-sequence token, and one in Python only, keep the laws on other draws as well."""
    subject = held.subject(tmp_path, held.checkpoint(kind, tmp_path), seed=7)
    for law in LAWS:
        result = held.measure(law, subject)
        assert result.verdict is BoundVerdict.HOLDS, f"{law}: {held.broken(result)}"


def _flat(change: Callable[[Dataset], Dataset]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        patch.setattr(
            dataset, "flatten", lambda rows: DatasetDict({name: change(part.flatten()) for name, part in rows.items()})
        )

    return plant


def _underscores(flat: Dataset) -> Dataset:
    return flat.rename_columns({name: name.replace(".", "_") for name in flat.column_names if "." in name})


def _cut(change: Callable[[Any, int], Any]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(blocks, "group_texts", change)


ORIGINAL = blocks.group_texts


def _short_one_dropped(examples: Any, block_size: int) -> Any:
    return {
        name: [block for block in column if len(block) == block_size]
        for name, column in ORIGINAL(examples, block_size).items()
    }


def _remainder_kept(examples: Any, block_size: int) -> Any:
    joined = {name: [token for row in rows for token in row] for name, rows in examples.items()}
    return {name: [t[i : i + block_size] for i in range(0, len(t), block_size)] for name, t in joined.items()}


def _batch_size_ignored(patch: Patch) -> None:
    original = blocks.group
    patch.setattr(blocks, "group", lambda rows, **options: original(rows, **{**options, "batch_size": 1000}))


def _preprocess(change: Callable[[Any, list[str], str], Any]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        def preprocess_function(tokenizer: Any, column: str, separator: str) -> Callable[[Any], Any]:
            return lambda examples: change(tokenizer, examples[column], separator)

        patch.setattr(tokens, "preprocess_function", preprocess_function)

    return plant


def _reversed_rows(patch: Patch) -> None:
    original = tokens.tokenize

    def tokenize(rows: DatasetDict, *args: Any, **options: Any) -> DatasetDict:
        mapped = original(rows, *args, **options)
        return DatasetDict({name: part.select(range(len(part))[::-1]) for name, part in mapped.items()})

    patch.setattr(tokens, "tokenize", tokenize)


def _padded(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        original = collate.data_collator

        def data_collator(*args: Any, **options: Any) -> Any:
            collator = original(*args, **options)
            change(collator.tokenizer)
            return collator

        patch.setattr(collate, "data_collator", data_collator)

    return plant


def _to_the_left(tokenizer: Any) -> None:
    tokenizer.padding_side = "left"


def _with_the_mask(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.mask_token


PLANTS: dict[str, tuple[str, str, Callable[[Patch], None]]] = {
    "names joined by an underscore": ("flattening_any_schema", "schemas", _flat(_underscores)),
    "columns sorted": (
        "flattening_any_schema",
        "schemas",
        _flat(lambda flat: flat.select_columns(sorted(flat.column_names))),
    ),
    "rows turned round": ("flattening_any_schema", "schemas", _flat(lambda flat: flat.select(range(len(flat))[::-1]))),
    "one level too few": (
        "flattening_any_schema",
        "schemas",
        lambda patch: patch.setattr(dataset, "flatten", lambda rows: rows),
    ),
    "short blocks dropped": ("grouping_any_batch", "batches cut", _cut(_short_one_dropped)),
    "remainders kept": ("grouping_any_batch", "batches cut", _cut(_remainder_kept)),
    "one token less": (
        "grouping_any_batch",
        "batches cut",
        _cut(lambda examples, size: ORIGINAL(examples, size - 1 or 1)),
    ),
    "the batch size ignored": ("grouping_any_batch", "mapped splits", _batch_size_ignored),
    "no separator": (
        "joining_and_tokenising",
        "batches tokenised",
        _preprocess(lambda tokenizer, rows, separator: tokenizer(["".join(row) for row in rows])),
    ),
    "a separator behind": (
        "joining_and_tokenising",
        "batches tokenised",
        _preprocess(lambda tokenizer, rows, separator: tokenizer([separator.join([*row, ""]) for row in rows])),
    ),
    "the first text alone": (
        "joining_and_tokenising",
        "batches tokenised",
        _preprocess(lambda tokenizer, rows, separator: tokenizer([separator.join(row[:1]) for row in rows])),
    ),
    "cut": (
        "joining_and_tokenising",
        "batches tokenised",
        _preprocess(
            lambda tokenizer, rows, separator: tokenizer(
                [separator.join(row) for row in rows], truncation=True, max_length=128
            )
        ),
    ),
    "no special tokens": (
        "joining_and_tokenising",
        "batches tokenised",
        _preprocess(
            lambda tokenizer, rows, separator: tokenizer(
                [separator.join(row) for row in rows], add_special_tokens=False
            )
        ),
    ),
    "mapped backwards": ("joining_and_tokenising", "stay in order", _reversed_rows),
    "padded on the left": ("collating_any_rows", "padded with eos_token", _padded(_to_the_left)),
    "padded with another token": ("collating_any_rows", "padded with eos_token", _padded(_with_the_mask)),
    "perplexity of base 2": (
        "perplexity_of_any_loss",
        "largest relative error",
        lambda patch: patch.setattr(evaluate, "perplexity", lambda loss: 2.0**loss),
    ),
    "perplexity in float32": (
        "perplexity_of_any_loss",
        "largest relative error",
        lambda patch: patch.setattr(evaluate, "perplexity", lambda loss: float(np.exp(np.float32(loss)))),
    ),
    "perplexity cut at 1e9": (
        "perplexity_of_any_loss",
        "infinite",
        lambda patch: patch.setattr(evaluate, "perplexity", lambda loss: math.exp(min(loss, 709.0))),
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_another_step_breaks_a_law(plant: str, embedded: Subject, monkeypatch: Patch) -> None:
    """A step that does something else is told by the law that speaks of it, with the number."""
    law, what, change = PLANTS[plant]
    change(monkeypatch)
    held.assert_broken(law, embedded, what)


def test_every_law_is_broken_by_something() -> None:
    """No law of the group is without a fault that it tells."""
    assert {law for law, _, _ in PLANTS.values()} == set(LAWS)


def test_definitions_are_the_ones_meant() -> None:
    """The definitions of blocks and columns give what can be worked out by hand."""
    rows = [[1, 2, 3], [], [4, 5]]
    assert steps.blocks_of(rows, 2) == [[1, 2], [3, 4]]
    assert steps.blocks_of(rows, 9) == [[1, 2, 3, 4, 5]]
    assert steps.blocks_of([[]], 9) == []
    assert steps.mapped_blocks(rows, 2, 1, 1) == [[1, 2], [4, 5]]
    assert steps.mapped_blocks(rows, 2, 9, 2) == [[1, 2], [4, 5]]
    assert steps.mapped_blocks(rows, 2, 9, 1) == [[1, 2], [3, 4]]
    schema = pa.schema([("a", pa.struct([("b", pa.list_(pa.struct([("c", pa.int8())])))])), ("d", pa.int8())])
    assert [".".join(path) for path, _ in steps.flat_columns(schema)] == ["a.b", "d"]
    assert steps.value_at({"a": None}, ("a", "b")) is None
    assert steps.value_at({"a": {"b": 2}}, ("a", "b")) == 2
