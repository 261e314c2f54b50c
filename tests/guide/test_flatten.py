"""Flattening: any nested schema against a definition of its own, in which structs flatten and lists do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Sequence, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlmrepro.guide.dataset import flatten
from mlmrepro.observations.steps import flat_differences

Row = dict[str, Any]

TEXT = st.text(max_size=6)  # all of unicode that UTF-8 can hold
SCALARS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-128, 127),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(allow_nan=False, width=32),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): TEXT,
    pa.large_string(): TEXT,
    pa.binary(): st.binary(max_size=4),
    pa.timestamp("us"): st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)),
    pa.null(): st.none(),
}
# A dot in a name could make two flattened names equal, which no flattening can tell apart.
NAMES = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="."), min_size=1, max_size=4)


def structs(children: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    """Draw a struct of one to three fields, its names in any order."""
    fields = st.lists(st.tuples(NAMES, children), min_size=1, max_size=3, unique_by=lambda field: field[0])
    return fields.map(lambda drawn: pa.struct([pa.field(name, kind) for name, kind in drawn]))


TYPES = st.recursive(
    st.sampled_from(list(SCALARS)), lambda children: structs(children) | children.map(pa.list_), max_leaves=6
)


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Draw a value of an Arrow type, or None, at every level."""
    if pa.types.is_struct(kind):
        drawn: st.SearchStrategy[Any] = st.fixed_dictionaries({field.name: values(field.type) for field in kind})
    elif pa.types.is_list(kind):
        drawn = st.lists(values(kind.value_type), max_size=2)
    else:
        drawn = SCALARS[kind]
    return drawn | st.none()


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Schema, list[Row]]:
    """Draw a schema of one to four columns with rows that fit it."""
    columns = draw(st.lists(st.tuples(NAMES, TYPES), min_size=1, max_size=4, unique_by=lambda column: column[0]))
    rows = draw(st.lists(st.fixed_dictionaries({name: values(kind) for name, kind in columns}), max_size=6))
    return pa.schema(columns), rows


def leaves(fields: Iterable[pa.Field], value: Row | None) -> Iterator[tuple[str, pa.DataType, Any]]:
    """Define flattening, by nothing but these lines: a field of a struct is its own column, named by its path."""
    for field in fields:
        inner = None if value is None else value[field.name]
        if pa.types.is_struct(field.type):
            for name, kind, leaf in leaves(field.type, inner):
                yield f"{field.name}.{name}", kind, leaf
        else:
            yield field.name, field.type, inner


def check_flat(flat: Dataset, schema: pa.Schema, rows: list[Row]) -> None:
    """Assert that `flat` holds `rows` flattened: names, types, order of columns and rows, values, row count."""
    columns = {name: kind for name, kind, _ in leaves(schema, None)}
    assert flat.column_names == list(columns)
    assert flat.data.schema.types == flat.features.arrow_schema.types == list(columns.values())
    assert list(flat) == [{name: leaf for name, _, leaf in leaves(schema, row)} for row in rows]
    assert [list(row) for row in flat] == [list(columns)] * len(rows)


PLAIN = (pa.schema([("b", pa.int32()), ("a", pa.string())]), [{"b": 1, "a": "é"}, {"b": None, "a": "\U0001f600"}])
LISTS = (
    pa.schema([("s", pa.struct([("l", pa.list_(pa.struct([("x", pa.int8())])))])), ("l", pa.list_(pa.string()))]),
    [{"s": {"l": [{"x": 1}, None]}, "l": ["a", None]}, {"s": None, "l": []}, {"s": {"l": None}, "l": None}],
)


@settings(max_examples=80)
@given(table=tables(), data=st.data())
@example(table=PLAIN, data=None)
@example(table=LISTS, data=None)
def test_any_schema_flattens_like_the_definition(table: tuple[pa.Schema, list[Row]], data: Any) -> None:
    """Every split of any nested data equals the pure-Python flattening of its rows, in its own row order."""
    schema, rows = table
    order = list(range(len(rows))) if data is None else data.draw(st.permutations(range(len(rows))))
    cut = len(rows) // 2 if data is None else data.draw(st.integers(0, len(rows)))
    # Two chunks and shuffled rows, as a real split has: offsets and the indices mapping must survive.
    whole = pa.Table.from_pylist(rows, schema=schema)
    dataset = Dataset(pa.concat_tables([whole[:cut], whole[cut:]]))
    parts = {"train": order[:cut], "test": order[cut:]}
    flat = flatten(DatasetDict({name: dataset.select(part) for name, part in parts.items()}))
    assert list(flat) == ["train", "test"]
    for name, part in parts.items():
        check_flat(flat[name], schema, [rows[i] for i in part])
        assert flat_differences(flat[name], schema, [rows[i] for i in part]) == []  # the observation's own definition


ELI5_FEATURES = {
    "q_id": Value("string"),
    "title": Value("string"),
    "selftext": Value("string"),
    "document": Value("string"),
    "subreddit": Value("string"),
    "answers": Sequence({"a_id": Value("string"), "text": Value("string"), "score": Value("int32")}),
    "title_urls": Sequence({"url": Value("string")}),
    "selftext_urls": Sequence({"url": Value("string")}),
    "answers_urls": Sequence({"url": Value("string")}),
}
ELI5_ROWS: list[Row] = [
    {
        "q_id": name,
        "title": f"Why {name}?",
        "selftext": "",
        "document": "",
        "subreddit": "askscience",
        "answers": {"a_id": [f"c{name}", "c2"][:n], "text": ["Da wäre ☀…", "It is."][:n], "score": [21, 19][:n]},
        "title_urls": {"url": []},
        "selftext_urls": {"url": ["http://example.org/a"][:n]},
        "answers_urls": {"url": []},
    }
    for name, n in (("nyxfp", 2), ("5lchat", 1), ("none", 0))
]


def eli5() -> Dataset:
    """Build three rows in the schema that ELI5's loading script declares."""
    columns = {name: [row[name] for row in ELI5_ROWS] for name in ELI5_FEATURES}
    return Dataset.from_dict(columns, features=Features(ELI5_FEATURES))


def test_eli5_flattens_as_the_guide_shows() -> None:
    """ELI5's own schema gives the guide's eleven columns, `answers.text` a list of strings among them."""
    dataset = eli5()
    flat = flatten(DatasetDict({"train": dataset}))["train"]
    string = pa.string()
    assert dict(zip(flat.column_names, flat.data.schema.types, strict=True)) == {
        **dict.fromkeys(("q_id", "title", "selftext", "document", "subreddit"), string),
        "answers.a_id": pa.list_(string),
        "answers.text": pa.list_(string),
        "answers.score": pa.list_(pa.int32()),
        **dict.fromkeys(("title_urls.url", "selftext_urls.url", "answers_urls.url"), pa.list_(string)),
    }
    check_flat(flat, dataset.data.schema, ELI5_ROWS)
    assert flat[0] == {
        "q_id": "nyxfp",
        "title": "Why nyxfp?",
        "selftext": "",
        "document": "",
        "subreddit": "askscience",
        "answers.a_id": ["cnyxfp", "c2"],
        "answers.text": ["Da wäre ☀…", "It is."],
        "answers.score": [21, 19],
        "title_urls.url": [],
        "selftext_urls.url": ["http://example.org/a"],
        "answers_urls.url": [],
    }


NESTED = pa.schema(
    [("z", pa.struct([("y", pa.struct([("x", pa.int32())])), ("w", pa.list_(pa.int32()))])), ("a", "int32")]
)
NESTED_ROWS: list[Row] = [{"z": {"y": {"x": 1}, "w": [1, 2]}, "a": 3}, {"z": None, "a": 4}]


def _zeros_for_none(flat: pa.Table) -> pa.Table:
    return flat.set_column(0, "z.y.x", pa.array([1, 0], pa.int32()))


def _lists_cut_to_scalars(flat: pa.Table) -> pa.Table:
    return flat.set_column(1, "z.w", pa.array([1, None], pa.int32()))


FAULTS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "columns sorted": lambda flat: flat.select(sorted(flat.column_names)),
    "a column lost": lambda flat: flat.drop_columns(["z.w"]),
    "names joined by an underscore": lambda flat: flat.rename_columns(["z_y_x", "z_w", "a"]),
    "leaf names alone": lambda flat: flat.rename_columns(["x", "w", "a"]),
    "names swapped": lambda flat: flat.rename_columns(["a", "z.w", "z.y.x"]).select(["z.y.x", "z.w", "a"]),
    "rows reversed": lambda flat: flat.take([1, 0]),
    "a row lost": lambda flat: flat[:1],
    "a type widened": lambda flat: flat.set_column(2, "a", flat["a"].cast(pa.int64())),
    "a missing struct filled": _zeros_for_none,
    "a list flattened": _lists_cut_to_scalars,
}


def _nested() -> pa.Table:
    return pa.Table.from_pylist(NESTED_ROWS, schema=NESTED)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_rejected(fault: str) -> None:
    """The check accepts the right flattening and rejects each planted fault; so does the observation's definition."""
    flat = _nested().flatten().flatten()
    check_flat(Dataset(flat), NESTED, NESTED_ROWS)
    with pytest.raises(AssertionError):
        check_flat(Dataset(FAULTS[fault](flat)), NESTED, NESTED_ROWS)
    assert flat_differences(Dataset(FAULTS[fault](flat)), NESTED, NESTED_ROWS)


@pytest.mark.parametrize("levels", [0, 1])
def test_too_few_levels_are_rejected(levels: int) -> None:
    """The check rejects data left nested, wholly or one level too early."""
    table = _nested()
    for _ in range(levels):
        table = table.flatten()
    with pytest.raises(AssertionError):
        check_flat(Dataset(table), NESTED, NESTED_ROWS)
