"""The data: row order, files, column types, worker processes, and the global random generators."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mlmrepro.guide import blocks, dataset, tokens
from mlmrepro.guide.observe import generator_states
from mlmrepro.observations.cache import caching
from mlmrepro.observations.observation import observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.steps import HERE, mapped_differences, ragged
from mlmrepro.observations.subject import Subject

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "answers_are_lists_of_strings",
    "generators_are_left_alone",
    "json_lines_keep_their_order",
    "orders_follow_their_seed",
    "processes_change_no_row",
    "processes_move_shards_alone",
    "rows_survive_the_disk",
    "tokens_are_lists_of_integers",
]

_EXACT = "discrete values: nothing may differ"


def _questions(subject: Subject, rows: int = 24) -> list[dict[str, Any]]:
    """Return rows in the schema of ELI5 with one to three of the texts as answers; one row has no answers."""
    texts = [text[:160] for text in subject.texts]
    found = []
    for n in range(rows):
        answers = [] if n == 5 else [texts[(n + i) % len(texts)] for i in range(1 + n % 3)]
        ids = [f"c{n}_{i}" for i in range(len(answers))]
        found.append({"q_id": f"q{n}", "title": "é\u2028☀", "answers": {"a_id": ids, "text": answers}})
    return found


def _file(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write a JSON Lines file and return its path."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _numbers(count: int = 100) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({"n": list(range(count))})


@observation(
    "dataset",
    source="numpy.random.permutation; datasets.Dataset.train_test_split and shuffle",
    cause="the split does not depend on the seed, or it loses or duplicates rows",
)
def orders_follow_their_seed(subject: Subject) -> Iterator[Value]:
    """The order of rows is random and depends only on the seed; every row is in exactly one of train and test."""
    rows = _numbers()

    def guide(seed: int) -> list[list[int]]:
        np.random.seed(seed)
        parts = dataset.split(rows, 0.2)
        return [list(parts["train"]["n"]), list(parts["test"]["n"])]

    def seeded(seed: int) -> list[list[int]]:
        parts = rows.train_test_split(test_size=0.2, seed=seed)
        return [list(parts["train"]["n"]), list(parts["test"]["n"])]

    draws: dict[str, Callable[[int], list[list[int]]]] = {
        "guide_split": guide,
        "seeded_split": seeded,
        "seeded_shuffle": lambda seed: [list(rows.shuffle(seed=seed)["n"])],
    }
    chance = "two orders of 100 rows are the same once in 100!"
    for slug, draw in draws.items():
        what = slug.replace("_", " ").replace("guide", "the guide's")
        one, again, other = draw(subject.seed), draw(subject.seed), draw(subject.seed + 1)
        found = [n for part in one for n in part]
        lost = _difference(sorted(found), list(range(100)))
        yield value(f"rows_lost_or_repeated_{slug}", lost, f"{what}: rows lost or repeated", equals=0)
        title = f"{what}: the same seed gives the same order"
        yield value(f"same_seed_same_order_{slug}", one == again, title, equals=True, reason=_EXACT)
        title = f"{what}: another seed gives the same order"
        yield value(f"other_seed_same_order_{slug}", one == other, title, equals=False, reason=chance)
        title = f"{what}: the order is the file's"
        yield value(f"file_order_{slug}", found == sorted(found), title, equals=False, reason=chance)
    for size in (0.2, 0.155, 0.001):
        held_out = len(dataset.split(rows, size)["test"])
        title = f"rows in the test split for test_size={size:g}"
        yield value(f"test_rows_size_{size:g}", held_out, title, equals=math.ceil(size * 100), unit="of 100")


def _difference(found: Sequence[Any], wanted: Sequence[Any]) -> int:
    """Count the positions at which two sequences differ, including those that only one of them has."""
    common = sum(a == b for a, b in zip(found, wanted, strict=False))
    return max(len(found), len(wanted)) - common


@observation(
    "dataset",
    source="datasets.load_dataset for JSON Lines; the guide's split slice train[:5000]",
    cause="reading a file loses, duplicates, reorders or changes rows",
)
def json_lines_keep_their_order(subject: Subject) -> Iterator[Value]:
    """Loading a JSON Lines file gives all rows unchanged and in order, and a split slice gives the first rows."""
    rows = _questions(subject, 40)
    folder = subject.new_folder("json_lines")
    path = _file(folder, rows)
    loaded = dataset.load(path, "train", folder / "cache")
    differing = _difference(list(loaded), rows)
    yield value("differing_rows", differing, "rows that differ from the file's", equals=0, reason=_EXACT)
    some = dataset.load(path, "train[:10]", folder / "cache")
    differing = _difference(list(some), rows[:10])
    yield value("differing_rows_slice", differing, "rows that differ in a slice of ten", equals=0, reason=_EXACT)


@observation(
    "dataset",
    source="datasets.Dataset.select, save_to_disk and load_from_disk",
    cause="an indices mapping, a shard or a column type is lost when rows are written",
)
def rows_survive_the_disk(subject: Subject) -> Iterator[Value]:
    """Selecting, saving and loading rows preserves their values, order and types."""
    from datasets import Dataset, concatenate_datasets, load_from_disk

    rows = _questions(subject)
    order = np.random.default_rng([subject.seed, 20]).permutation(len(rows)).tolist()
    chosen = Dataset.from_list(rows).select(order)
    wanted = [rows[i] for i in order]
    folder = str(subject.new_folder("disk"))
    chosen.save_to_disk(folder, num_shards=3)
    back = load_from_disk(folder)
    differing = _difference(list(chosen), wanted)
    yield value("differing_rows_selected", differing, "rows that differ after selecting", equals=0, reason=_EXACT)
    differing = _difference(list(back), wanted)
    title = "rows that differ after saving and loading"
    yield value("differing_rows_loaded", differing, title, equals=0, reason=_EXACT)
    same = back.features == chosen.features
    yield value("same_types", same, "the types are the same after saving and loading", equals=True)
    both = concatenate_datasets([back.select([2, 1]), chosen.select([0])])
    differing = _difference(list(both), [wanted[i] for i in (2, 1, 0)])
    title = "rows that differ after concatenating"
    yield value("differing_rows_concatenated", differing, title, equals=0, reason=_EXACT)


@observation(
    "flatten",
    source="the guide, Preprocess: answers.text is a list of strings; the tokenizer expects strings",
    cause="loading or flattening changes the type or the values of a column",
)
def answers_are_lists_of_strings(subject: Subject) -> Iterator[Value]:
    """After flattening, answers.text is a list of strings with the answers from the file."""
    from datasets import DatasetDict

    rows = _questions(subject)
    folder = subject.new_folder("types")
    flat = dataset.flatten(
        DatasetDict({"train": dataset.load(_file(folder, rows), "train", folder / "cache").select(range(8))})
    )
    kind = flat["train"].features.arrow_schema.field("answers.text").type
    strings = pa.types.is_list(kind) and (
        pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    )
    yield value("answers_are_string_lists", strings, "answers.text is a list of strings", equals=True)
    wanted = [row["answers"]["text"] for row in rows[:8]]
    differing = _difference(list(flat["train"]["answers.text"]), wanted)
    yield value("differing_answers", differing, "rows of answers that flattening changes", equals=0, reason=_EXACT)


@observation(
    "input_ids",
    source="the guide, Preprocess: group_texts joins every column that the tokenizer gives",
    cause="tokenising keeps a text column, returns other types, or draws from a global generator",
)
def tokens_are_lists_of_integers(subject: Subject) -> Iterator[Value]:
    """Tokenising gives lists of integers, of equal length within a row, and draws no random number."""
    from datasets import Dataset, DatasetDict

    answers = [row["answers"]["text"] for row in _questions(subject)[:8]]
    flat = DatasetDict({"train": Dataset.from_dict({"answers.text": answers})})
    before = generator_states()
    mapped = tokens.tokenize(flat, subject.tokenizer, column="answers.text", separator=" ", num_proc=HERE)["train"]
    moved = sum(a != b for a, b in zip(before, generator_states(), strict=True))
    yield value("generators_moved", moved, "global generators moved by tokenising", equals=0)
    schema = mapped.features.arrow_schema
    others = [name for name in schema.names if not _holds_integers(schema.field(name).type)]
    yield value("non_integer_columns", ", ".join(others), "columns that are not lists of integers", equals="")
    lengths = [[len(row) for row in mapped[name]] for name in schema.names]
    equal = all(each == lengths[0] for each in lengths)
    yield value("equal_lengths", equal, "the columns of a row have equal lengths", equals=True)


def _holds_integers(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_integer(kind.value_type)


@observation(
    "input_ids",
    source="datasets.fingerprint: random fingerprints come from their own generator",
    cause="a step draws from a global generator, which changes the split, the masks and the training after it",
)
def generators_are_left_alone(subject: Subject) -> Iterator[Value]:
    """Mapping, filtering, seeded shuffling, reading and writing do not draw from the global random generators."""
    from datasets import Dataset, DatasetDict, load_from_disk

    rows, folder = _numbers(), subject.new_folder("generators")
    nested = DatasetDict({"train": dataset.load(_file(folder, _questions(subject)), "train", folder / "other")})
    mapped = DatasetDict({"train": Dataset.from_dict(ragged([3] * 100))})
    drawn_by: dict[str, Callable[[], Any]] = {
        "load": lambda: dataset.load(_file(folder, _questions(subject)), "train", folder / "cache"),
        "flatten": lambda: dataset.flatten(nested),
        "group": lambda: blocks.group(mapped, block_size=8, num_proc=HERE, batch_size=7),
        "map": lambda: rows.map(lambda row: {"m": row["n"] + 1}),
        "filter": lambda: rows.filter(lambda row: row["n"] % 2 == 0),
        "seeded_shuffle": lambda: rows.shuffle(seed=subject.seed),
        "seeded_split": lambda: rows.train_test_split(test_size=0.2, seed=subject.seed),
        "sort_and_select": lambda: rows.sort("n").select([3, 1]),
        "save_and_load": lambda: (rows.save_to_disk(str(folder / "saved")), load_from_disk(str(folder / "saved"))),
    }
    for on in (False, True):
        with caching(on):
            for slug, act in drawn_by.items():
                before = generator_states()
                act()
                moved = sum(a != b for a, b in zip(before, generator_states(), strict=True))
                state = "on" if on else "off"
                title = f"global generators moved by {slug.replace('_', ' ')}, with the cache {state}"
                yield value(f"moved_by_{slug}_cache_{state}", moved, title, equals=0)


@observation(
    "input_ids",
    source="datasets.Dataset.map: num_proc",
    cause="worker processes lose, duplicate or reorder rows, or tokenise them differently",
    slow=True,
)
def processes_change_no_row(subject: Subject) -> Iterator[Value]:
    """Tokenising in two processes gives the same rows in the same order as in one process."""
    from datasets import Dataset, DatasetDict

    answers = [row["answers"]["text"] for row in _questions(subject, 13)]
    rows = DatasetDict({"train": Dataset.from_dict({"answers.text": answers})})
    two = tokens.tokenize(rows, subject.tokenizer, column="answers.text", separator=" ", num_proc=2)["train"]
    one = [list(ids) for ids in subject.tokenizer([" ".join(texts) for texts in answers])["input_ids"]]
    differing = _difference(list(two["input_ids"]), one)
    yield value("differing_rows", differing, "rows that differ", equals=0, reason=_EXACT)


@observation(
    "blocks",
    source="datasets.Dataset.map: each process gets one contiguous shard, and batches stay within a shard",
    cause="shards are cut at other rows or joined in another order, which changes the blocks and their number",
    slow=True,
)
def processes_move_shards_alone(subject: Subject) -> Iterator[Value]:
    """With any number of processes, the blocks are those of contiguous shards of the rows, in order."""
    from datasets import Dataset, DatasetDict

    lengths = np.random.default_rng([subject.seed, 21]).integers(1, 21, size=11).tolist()
    examples = ragged(lengths)
    for num_proc in (1, 2, 4):
        rows = DatasetDict({"train": Dataset.from_dict(examples)})
        grouped = blocks.group(rows, block_size=8, num_proc=num_proc, batch_size=2)["train"]
        differences = mapped_differences(grouped, examples, 8, 2, num_proc)
        title = f"columns that differ with num_proc={num_proc}"
        yield value(f"differing_columns_num_proc_{num_proc}", len(differences), title, equals=0, reason=_EXACT)
