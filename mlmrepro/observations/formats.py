"""datasets: types of columns, orders drawn from a seed, shards, formats, and how files are read."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mlmrepro.guide.observe import digest, generator_states
from mlmrepro.observations.observation import attempt, observation, values
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

__all__ = [
    "column_access",
    "columns_of_lists",
    "cut_into_shards",
    "formats",
    "json_files",
    "loading_options",
    "map_and_generators",
    "seeded_orders",
    "tables",
]


def _numbers() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"n": list(range(100))})


@observation("dataset")
def seeded_orders(subject: Subject) -> Iterator[Value]:
    """Orders drawn with an explicit ``seed=42``."""
    rows = _numbers()
    parts = rows.train_test_split(test_size=0.2, seed=42)
    yield from values(
        {
            "shuffle": digest(rows.shuffle(seed=42)["n"]),
            "train_test_split": digest([list(parts["train"]["n"]), list(parts["test"]["n"])]),
        }
    )


@observation("dataset")
def cut_into_shards(subject: Subject) -> Iterator[Value]:
    """Rows of the first of four shards, as ``shard`` gives them without `contiguous`."""
    yield from values({"first": list(_numbers().shard(4, 0)["n"])[:3]})


@observation("dataset")
def column_access(subject: Subject) -> Iterator[Value]:
    """What ``dataset["column"]`` is, and what indexing and adding do with it."""
    column = _numbers()["n"]
    yield from values({"type": type(column).__name__, "plus": attempt(lambda: len(column + column))})


@observation("dataset")
def json_files(subject: Subject) -> Iterator[Value]:
    """Arrow types of columns that JSON lines leave open: empty lists, nulls, missing keys, mixed numbers, dates."""
    from datasets import load_dataset

    path = subject.new_folder("json_files") / "rows.jsonl"
    lines: list[dict[str, Any]] = [
        {"a": [], "b": None, "c": 1, "d": "2020-01-01", "e": {"x": 1}},
        {"a": [], "b": None, "c": 1.5, "d": "2020-01-02", "e": {"x": 2}, "f": "late"},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))

    def read() -> Mapping[str, Any]:
        schema = load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent)).data.schema
        return {name: str(schema.field(name).type).replace("element: ", "item: ") for name in sorted(schema.names)}

    found = attempt(read)
    yield from values(found if isinstance(found, dict) else {"outcome": found})


@observation("dataset")
def tables(subject: Subject) -> Iterator[Value]:
    """A CSV file with a quoted line break, an empty cell and the word NA."""
    from datasets import load_dataset

    path = subject.new_folder("tables") / "rows.csv"
    path.write_text('n,text\n1,"one\ntwo"\n2,\n3,NA\n')
    rows = load_dataset("csv", data_files=str(path), split="train", cache_dir=str(path.parent))
    yield from values({"texts": list(rows["text"]), "types": [str(t) for t in rows.data.schema.types]})


@observation("dataset")
def loading_options(subject: Subject) -> Iterator[Value]:
    """Whether load_dataset still knows these arguments."""
    from datasets import load_dataset

    known = inspect.signature(load_dataset).parameters
    yield from values(
        {name: name in known for name in ("trust_remote_code", "use_auth_token", "task", "ignore_verifications")}
    )


@observation("flatten")
def columns_of_lists(subject: Subject) -> Iterator[Value]:
    """The feature type of a list of strings, of a list of records, and the column that flattening makes of each."""
    from datasets import Dataset, Features, Sequence, Value

    rows = Dataset.from_dict({"a": [["x"]], "b": [[{"c": 1}]]})
    features = Features({"s": Sequence({"c": Value("int64")}), "t": Sequence(Value("string"))})
    record = Dataset.from_dict({"s": [{"c": [1]}], "t": [["x"]]}, features=features)
    yield from values(
        {
            "of_strings": type(rows.features["a"]).__name__,
            "of_records": type(rows.features["b"]).__name__,
            "sequence_of_records": type(features["s"]).__name__,
            "flattened": attempt(lambda: list(record.flatten().column_names)),
        }
    )


@observation("input_ids")
def map_and_generators(subject: Subject) -> Iterator[Value]:
    """Whether ``map`` draws from the global generators; how many rows a process gets when there are fewer than four."""
    before = generator_states()
    mapped = _numbers().map(lambda row: {"m": row["n"]})
    few = _numbers().select(range(3)).map(_double, num_proc=4)
    yield from values(
        {"drawn": generator_states() != before, "columns": mapped.column_names, "few_rows": list(few["n"])}
    )


def _double(row: dict[str, Any]) -> dict[str, Any]:
    return {"n": 2 * row["n"]}


@observation("blocks")
def formats(subject: Subject) -> Iterator[Value]:
    """Types that tokens take in numpy's and torch's format."""
    from datasets import Dataset

    rows = Dataset.from_dict({"ids": [[1, 2], [3, 4]], "mask": [[1.0, 0.0], [1.0, 1.0]]})
    yield from values(
        {
            "numpy": attempt(lambda: [str(rows.with_format("numpy")[0][name].dtype) for name in ("ids", "mask")]),
            "torch": attempt(lambda: str(rows.with_format("torch")[:]["ids"].dtype)),
        }
    )
