"""The guide's own steps: they agree with our plain definitions on random inputs from the subject's seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from decimal import Decimal, localcontext
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mlmrepro.config import GuideConfig
from mlmrepro.guide import blocks, collate, dataset, evaluate, tokens
from mlmrepro.observations.masking import PADDING, collated, mask_breaches, pad_tokens, plain_rows
from mlmrepro.observations.observation import observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "HERE",
    "block_differences",
    "blocks_of",
    "collating_any_rows",
    "flat_columns",
    "flat_differences",
    "flattening_any_schema",
    "grouping_any_batch",
    "joining_and_tokenising",
    "mapped_blocks",
    "mapped_differences",
    "perplexity_of_any_loss",
    "ragged",
    "value_at",
]

Columns = dict[str, list[list[Any]]]
Row = dict[str, Any]

HERE: Any = None  # num_proc without workers; datasets 4 and later start a worker for num_proc=1
NONE_DIFFERS = "the definition is exact"


# Definitions


def flat_columns(fields: Iterable[pa.Field], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], pa.DataType]]:
    """Return the path and the type of every leaf, depth first; only structs are expanded."""
    leaves: list[tuple[tuple[str, ...], pa.DataType]] = []
    for field in fields:
        here = (*path, field.name)
        leaves += flat_columns(field.type, here) if pa.types.is_struct(field.type) else [(here, field.type)]
    return leaves


def value_at(value: Any, path: Sequence[str]) -> Any:
    """Return the value of a row at a path; None if a struct on the path is missing."""
    for name in path:
        value = None if value is None else value[name]
    return value


def flat_differences(flat: Dataset, schema: pa.Schema, rows: Sequence[Row]) -> list[str]:
    """Return how `flat` differs from `rows` flattened: names, order and types of columns, number of rows, values."""
    leaves = flat_columns(schema)
    names = [".".join(path) for path, _ in leaves]
    if not flat.column_names == flat.features.arrow_schema.names == list(flat[:]) == names:
        return ["the columns"]
    kinds = [kind for _, kind in leaves]
    found = [] if flat.data.schema.types == flat.features.arrow_schema.types == kinds else ["the types"]
    if len(flat) != len(rows):
        return [*found, "the number of rows"]
    batch = flat[:]
    wanted = {name: [value_at(row, path) for row in rows] for name, (path, _) in zip(names, leaves, strict=True)}
    return found + [f"the column {name}" for name in names if batch[name] != wanted[name]]


def blocks_of(rows: Iterable[Sequence[Any]], block_size: int) -> list[list[Any]]:
    """Define the blocks of one column: all full ones, or the single short one if there is no full one."""
    tokens = chain.from_iterable(rows)
    blocks = []
    while len(block := list(islice(tokens, block_size))) == block_size:
        blocks.append(block)
    return blocks or ([block] if block else [])


def mapped_blocks(rows: Sequence[Sequence[Any]], block_size: int, batch_size: int, num_proc: int) -> list[list[Any]]:
    """Define the blocks of a mapped column: contiguous shards, the first ones a row longer, cut into batches each."""
    blocks = []
    for shard in np.array_split(np.arange(len(rows)), num_proc):
        for start in range(0, len(shard), batch_size):
            blocks += blocks_of([rows[i] for i in shard[start : start + batch_size]], block_size)
    return blocks


def ragged(lengths: Sequence[int], names: Sequence[str] = ("input_ids", "attention_mask")) -> Columns:
    """Return columns of rows of these lengths; every token is unique, so that none can be taken for another."""
    return {
        name: [[1_000_000 * column + 1_000 * row + i for i in range(length)] for row, length in enumerate(lengths)]
        for column, name in enumerate(names)
    }


def block_differences(cut: Callable[[Columns, int], Columns], examples: Columns, block_size: int) -> list[str]:
    """Return how the blocks that `cut` makes of one batch differ from the definition."""
    before = deepcopy(examples)
    made = cut(examples, block_size)
    found = [] if examples == before else ["the input was changed"]
    if list(made) != list(before):
        return [*found, "the columns"]
    return found + [f"the column {name}" for name, rows in before.items() if made[name] != blocks_of(rows, block_size)]


def mapped_differences(
    grouped: Dataset, examples: Columns, block_size: int, batch_size: int, num_proc: int
) -> list[str]:
    """Return how a mapped dataset differs from the blocks of its batches within its shards, in order."""
    wanted = {name: mapped_blocks(rows, block_size, batch_size, num_proc) for name, rows in examples.items()}
    if grouped.column_names != list(wanted):
        return ["the columns"]
    got = grouped[:]
    return [f"the column {name}" for name, rows in wanted.items() if got[name] != rows]


# Random inputs

_SCALARS: dict[pa.DataType, Callable[[np.random.Generator], Any]] = {
    pa.bool_(): lambda rng: bool(rng.integers(2)),
    pa.int32(): lambda rng: int(rng.integers(-(2**31), 2**31)),
    pa.int64(): lambda rng: int(rng.integers(-(2**62), 2**62)),
    pa.float64(): lambda rng: float(rng.normal()),
    pa.string(): lambda rng: "".join(rng.choice(list("aZ9 é☀🙂"), size=rng.integers(5))),
}


def _drawn_type(rng: np.random.Generator, depth: int) -> pa.DataType:
    shape = rng.choice(["scalar", "struct", "list"], p=[1, 0, 0] if depth == 0 else [0.4, 0.4, 0.2])
    if shape == "list":
        return pa.list_(_drawn_type(rng, depth - 1))
    if shape == "struct":
        names = rng.permutation(["x", "y", "ü z"])[: rng.integers(1, 4)]
        return pa.struct([pa.field(str(name), _drawn_type(rng, depth - 1)) for name in names])
    return list(_SCALARS)[rng.integers(len(_SCALARS))]


def _drawn_value(rng: np.random.Generator, kind: pa.DataType) -> Any:
    if rng.random() < 0.15:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _drawn_value(rng, field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_drawn_value(rng, kind.value_type) for _ in range(rng.integers(3))]
    return _SCALARS[kind](rng)


# Observations


@observation(
    "flatten",
    source="the guide, Preprocess: flatten; datasets.Dataset.flatten",
    cause="flatten names, orders or fills columns differently, or leaves a level nested",
)
def flattening_any_schema(subject: Subject) -> Iterator[Value]:
    """Flattening turns every field of a nested schema into its own column, and leaves lists and rows unchanged."""
    from datasets import Dataset, DatasetDict

    rng = np.random.default_rng([subject.seed, 1])
    tables, wrong = 10, 0
    for _ in range(tables):
        schema = pa.schema([(name, _drawn_type(rng, 3)) for name in rng.permutation(["b", "a", "answers"])])
        rows = [{field.name: _drawn_value(rng, field.type) for field in schema} for _ in range(5)]
        order = rng.permutation(len(rows)).tolist()  # rows with an indices mapping, like those of a split
        nested = Dataset(pa.Table.from_pylist(rows, schema=schema))
        parts = {"train": order[:3], "test": order[3:]}
        flat = dataset.flatten(DatasetDict({name: nested.select(part) for name, part in parts.items()}))
        differences = [flat_differences(flat[name], schema, [rows[i] for i in part]) for name, part in parts.items()]
        wrong += list(flat) != list(parts) or any(differences)
    yield value(
        "differing_schemas",
        wrong,
        "schemas flattened differently from the definition",
        equals=0,
        unit=f"of {tables}",
        reason=NONE_DIFFERS,
    )


@observation(
    "blocks",
    source="the guide, Preprocess: group_texts",
    cause="group_texts cuts at other places, drops another remainder, or mixes columns",
)
def grouping_any_batch(subject: Subject) -> Iterator[Value]:
    """Blocks are full and in order, all columns are cut alike, and a remainder is dropped only after a full block."""
    from datasets import Dataset, DatasetDict

    rng = np.random.default_rng([subject.seed, 2])
    # One full block, one token less, the longest remainder, two blocks, short rows, nothing.
    cases: list[tuple[Sequence[int], int]] = [
        ([5, 3], 8),
        ([5, 2], 8),
        ([8, 7], 8),
        ([8, 8], 8),
        ([3], 8),
        ([0, 0], 1),
        ([], 4),
    ]
    cases += [(rng.integers(0, 21, size=rng.integers(1, 12)).tolist(), int(rng.integers(1, 41))) for _ in range(60)]
    found = [block_differences(blocks.group_texts, ragged(lengths), size) for lengths, size in cases]
    yield value(
        "differing_batches",
        sum(map(bool, found)),
        "batches cut differently from the definition",
        equals=0,
        reason=NONE_DIFFERS,
    )
    wrong = 0
    for batch_size in (3, 1000):
        examples = ragged(rng.integers(1, 21, size=11).tolist())
        rows = DatasetDict({"train": Dataset.from_dict(examples), "test": Dataset.from_dict(examples).select(range(5))})
        grouped = blocks.group(rows, block_size=8, num_proc=HERE, batch_size=batch_size)
        first = {name: column[:5] for name, column in examples.items()}
        wrong += bool(mapped_differences(grouped["train"], examples, 8, batch_size, 1))
        wrong += bool(mapped_differences(grouped["test"], first, 8, batch_size, 1))
    yield value(
        "differing_mapped_splits",
        wrong,
        "mapped splits cut differently from the definition",
        equals=0,
        reason=NONE_DIFFERS,
    )


def _joined(texts: Sequence[str], separator: str) -> str:
    """Define the joined text: a separator before each text except the first."""
    return "".join(part for n, text in enumerate(texts) for part in ((separator, text) if n else (text,)))


@observation(
    "input_ids",
    source="the guide, Preprocess: preprocess_function",
    cause="texts are joined differently, truncated, left out or tokenised with other options",
)
def joining_and_tokenising(subject: Subject) -> Iterator[Value]:
    """The texts of a row are joined by the separator and tokenised in full, independently of other rows."""
    from datasets import Dataset, DatasetDict

    rng = np.random.default_rng([subject.seed, 3])
    tokenizer = subject.tokenizer
    pool = [text[:200] for text in subject.texts[:20]]
    rows = [[pool[i] for i in rng.integers(len(pool), size=size)] for size in (0, 1, 2, 3, 1, 5)]
    wrong = 0
    for separator in (" ", "\n\n", ""):
        made = tokens.preprocess_function(tokenizer, "answers.text", separator)({"answers.text": rows})
        wanted = [tokenizer(_joined(row, separator)) for row in rows]
        wrong += set(made) != set(wanted[0]) or any(
            list(made[name]) != [row[name] for row in wanted] for name in wanted[0]
        )
    yield value(
        "differing_batches",
        int(wrong),
        "batches tokenised differently from the definition",
        equals=0,
        reason="for three separators",
    )

    columns = {"q_id": [str(n) for n in range(len(rows))], "answers.text": rows}
    split = DatasetDict(
        {"train": Dataset.from_dict(columns).select([2, 1, 0])}
    )  # only one split: each costs a fingerprint
    mapped = tokens.tokenize(split, tokenizer, column="answers.text", separator=" ", num_proc=HERE)
    ids = [list(tokenizer(_joined(rows[n], " "))["input_ids"]) for n in (2, 1, 0)]
    got = [list(row) for row in mapped["train"]["input_ids"]]
    yield value("rows_in_order", got == ids, "mapped rows stay in order", equals=True)
    left = set(mapped["train"].column_names) & set(columns)
    yield value(
        "text_columns_left",
        len(left),
        "text columns that are left",
        equals=0,
        reason="the guide removes them: no model reads them",
    )


@observation(
    "masked_batches",
    source="the guide, Preprocess: data_collator; transformers.DataCollatorForLanguageModeling",
    cause="the collator pads to another length, on another side or with another token, or its attention mask is wrong",
)
def collating_any_rows(subject: Subject) -> Iterator[Value]:
    """Rows are padded on the right to the longest row or to a multiple (pad_to_multiple_of); no token is lost."""
    rng = np.random.default_rng([subject.seed, 4])
    for pad_token in pad_tokens(subject.tokenizer):
        tokenizer = subject.fresh_tokenizer()
        collator = collate.data_collator(tokenizer, mlm_probability=GuideConfig.mlm_probability, pad_token=pad_token)
        pad_id = tokenizer.convert_tokens_to_ids(getattr(tokenizer, pad_token))
        pool = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        for multiple in (None, 8):
            collator.pad_to_multiple_of = multiple
            breaches: Mapping[str, int] = {}
            for lengths in ([1, 9, 4], [16, 3], [5], [7, 7]):
                rows = [rng.choice(pool, size=length).tolist() for length in lengths]
                width = max(lengths) if multiple is None else math.ceil(max(lengths) / multiple) * multiple
                found = mask_breaches(
                    collator(plain_rows(rows, tokenizer)),
                    rows,
                    pad_id=pad_id,
                    special_ids=tokenizer.all_special_ids,
                    width=width,
                    names=collated(tokenizer),
                )
                found.pop(PADDING, None)  # covered by special_tokens_stay
                breaches = {name: breaches.get(name, 0) + count for name, count in found.items()}
            yield value(
                f"wrong_positions_{pad_token}" + (f"_multiple_of_{multiple}" if multiple else ""),
                sum(breaches.values()),
                f"wrong batches or positions, padded with {pad_token}"
                + (f" to a multiple of {multiple}" if multiple else ""),
                equals=0,
                reason=", ".join(name for name, count in breaches.items() if count) or "every position is looked at",
            )


@observation(
    "evaluation",
    source="the guide, Train: math.exp of eval_loss; Jelinek et al. 1977, doi:10.1121/1.2016299",
    cause="the perplexity uses another base or another loss",
)
def perplexity_of_any_loss(subject: Subject) -> Iterator[Value]:
    """Perplexity is exp(loss in nats): 1 for a loss of 0, and infinite if the result is too large for a float."""
    rng = np.random.default_rng([subject.seed, 5])
    losses = [math.log(2), 3.0, *rng.uniform(0, 12, size=50).tolist(), 700.0]
    with localcontext() as context:
        context.prec = 40
        exact = [Decimal(loss).exp() for loss in losses]
        errors = [abs(Decimal(evaluate.perplexity(n)) / e - 1) for n, e in zip(losses, exact, strict=True)]
    yield value(
        "relative_error",
        float(max(errors)),
        "largest relative error",
        at_most=2.0**-51,
        reason="two units in the last place of a double: the C library's exp is good to one, rounding adds half",
    )
    yield value("perplexity_of_zero_loss", evaluate.perplexity(0.0), "perplexity of a loss of 0", equals=1.0)
    infinite = math.isinf(evaluate.perplexity(1000.0))
    yield value("large_loss_is_infinite", infinite, "perplexity of a loss of 1000 is infinite", equals=True)
