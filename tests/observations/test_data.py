"""The laws of rows: held by the libraries, and each broken by what loses, moves or keeps rows that it must not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Sequence, Value
from datasets.fingerprint import Hasher
from packaging.version import Version

from mlmrepro.guide import blocks, dataset, tokens
from mlmrepro.observations.registry import bounded_observers
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject

from ..installed import needs
from . import held

LAWS = [*held.names("data"), *held.names("cache")]
Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def test_slow_laws_are_those_that_start_processes() -> None:
    """What the fault bench may leave out is named."""
    slow = [each.name for each in bounded_observers() if each.name in LAWS and each.slow]
    assert slow == ["processes_change_no_row", "processes_move_shards_alone", "a_cache_knows_the_processes"]


@pytest.mark.parametrize("on", [True, False])
def test_an_imported_function_alone_is_excused(on: bool, embedded: Subject) -> None:
    """The cache's declared fault is that of imported functions, nothing else; the law leaves the cache on, or off."""
    before = datasets.is_caching_enabled()
    try:
        (datasets.enable_caching if on else datasets.disable_caching)()
        result = held.measure("a_cache_serves_no_edited_function", embedded)
        assert datasets.is_caching_enabled() is on
    finally:
        (datasets.enable_caching if before else datasets.disable_caching)()
    assert result.verdict is BoundVerdict.KNOWN
    assert [each.slug for each in result.broken] == ["fresh_rows_imported_module"]
    assert result.link.endswith("/3297")


def test_a_cache_of_other_processes_is_known_since_datasets_4(embedded: Subject) -> None:
    """The library's cache serves another run's blocks there; with the cache off, as in the guide's run, none are."""
    result = held.measure("a_cache_knows_the_processes", embedded)
    affected = Version(datasets.__version__) >= Version("4.0")
    assert result.verdict is (BoundVerdict.KNOWN if affected else BoundVerdict.HOLDS)
    assert [each.slug for each in result.broken] == ["stale_blocks_cache_on"] * affected


def _split(change: Callable[[Dataset, float], DatasetDict]) -> Plant:
    return lambda patch: patch.setattr(dataset, "split", change)


def _part(rows: Dataset, size: float, **options: Any) -> DatasetDict:
    return rows.train_test_split(test_size=size, **options)


def _a_row_lost(rows: Dataset, size: float) -> DatasetDict:
    parts = _part(rows, size)
    return DatasetDict({"train": parts["train"].select(range(len(parts["train"]) - 1)), "test": parts["test"]})


def _test_rows_in_train(rows: Dataset, size: float) -> DatasetDict:
    parts = _part(rows, size)
    return DatasetDict({"train": rows.shuffle(seed=0).select(range(len(parts["train"]))), "test": parts["test"]})


def _shuffle_without_its_seed(patch: Patch) -> None:
    original = Dataset.shuffle
    patch.setattr(Dataset, "shuffle", lambda self, seed=None, **options: original(self, seed=3))


def _after(owner: Any, name: str, change: Callable[[Any], Any]) -> Plant:
    def plant(patch: Patch) -> None:
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **options: change(original(*args, **options)))

    return plant


def _draws(owner: Any, name: str, draw: Callable[[], Any]) -> Plant:
    return _after(owner, name, lambda result: (draw(), result)[1])


def _answers_as_one_text(rows: DatasetDict) -> DatasetDict:
    flat = {name: part.flatten() for name, part in rows.items()}
    return DatasetDict(
        {name: part.map(lambda row: {"answers.text": " ".join(row["answers.text"])}) for name, part in flat.items()}
    )


def _floats(rows: DatasetDict) -> DatasetDict:
    return rows.cast_column("attention_mask", Sequence(Value("float64")))


def _functions_left_out(patch: Patch) -> None:
    original = Hasher.update

    def update(self: Hasher, value: Any) -> None:
        if not callable(value):
            original(self, value)

    patch.setattr(Hasher, "update", update)


def _hashed_by_their_text(patch: Patch) -> None:
    """Let functions be fingerprinted by what is written in their body, without what it refers to."""
    original = Hasher.update

    def update(self: Hasher, value: Any) -> None:
        code = getattr(value, "__code__", None)
        original(self, value if code is None else (code.co_code, code.co_consts))

    patch.setattr(Hasher, "update", update)


def _files_kept(patch: Patch) -> None:
    """Let a file be loaded once, by its path."""
    original, kept = dataset.load, {}

    def load(name: str, split: str, cache_dir: Any = None) -> Dataset:
        return kept.setdefault((name, split), original(name, split, cache_dir))

    patch.setattr(dataset, "load", load)


def _block_size_of_the_first_call(patch: Patch) -> None:
    original, sizes = blocks.group, []

    def group(rows: DatasetDict, *, block_size: int, **options: Any) -> DatasetDict:
        sizes.append(block_size)
        return original(rows, block_size=sizes[0], **options)

    patch.setattr(blocks, "group", group)


def _in_processes(owner: Any, name: str, change: Callable[[DatasetDict], DatasetDict]) -> Plant:
    """Alter the rows before a step where it has more than one process."""

    def plant(patch: Patch) -> None:
        original = getattr(owner, name)

        def step(rows: DatasetDict, *args: Any, num_proc: int, **options: Any) -> DatasetDict:
            return original(change(rows) if (num_proc or 1) > 1 else rows, *args, num_proc=num_proc, **options)

        patch.setattr(owner, name, step)

    return plant


def _strided(rows: DatasetDict) -> DatasetDict:
    return DatasetDict(
        {name: part.select([*range(0, len(part), 2), *range(1, len(part), 2)]) for name, part in rows.items()}
    )


def _one_process(patch: Patch) -> None:
    original = blocks.group
    patch.setattr(blocks, "group", lambda rows, **options: original(rows, **{**options, "num_proc": 1}))


PLANTS: dict[str, tuple[str, str, Plant]] = {
    "a fixed seed": (
        "orders_follow_their_seed",
        "the guide's split: another seed gives the same order",
        _split(lambda rows, size: _part(rows, size, seed=1)),
    ),
    "a generator of its own": (
        "orders_follow_their_seed",
        "the guide's split: the same seed gives the same order",
        _split(lambda rows, size: _part(rows, size, generator=np.random.default_rng())),
    ),
    "not shuffled": (
        "orders_follow_their_seed",
        "the order is the file's",
        _split(lambda rows, size: _part(rows, size, shuffle=False)),
    ),
    "a row lost": ("orders_follow_their_seed", "rows lost or repeated", _split(_a_row_lost)),
    "test rows in train": ("orders_follow_their_seed", "rows lost or repeated", _split(_test_rows_in_train)),
    "another share": (
        "orders_follow_their_seed",
        "rows in the test split",
        _split(lambda rows, size: _part(rows, max(0.01, size - 0.01))),
    ),
    "a shuffle without its seed": (
        "orders_follow_their_seed",
        "seeded shuffle: another seed gives the same order",
        _shuffle_without_its_seed,
    ),
    "lines turned round": (
        "json_lines_keep_their_order",
        "from the file's",
        _after(dataset, "load", lambda rows: rows.select(range(len(rows))[::-1])),
    ),
    "the last line lost": (
        "json_lines_keep_their_order",
        "from the file's",
        _after(dataset, "load", lambda rows: rows.select(range(len(rows) - 1))),
    ),
    "rows sorted on the disk": (
        "rows_survive_the_disk",
        "after saving and loading",
        _after(datasets, "load_from_disk", lambda rows: rows.sort("q_id")),
    ),
    "rows put together the wrong way": (
        "rows_survive_the_disk",
        "after concatenating",
        _after(datasets, "concatenate_datasets", lambda rows: rows.select(range(len(rows))[::-1])),
    ),
    "answers as one text": (
        "answers_are_lists_of_strings",
        "answers.text is a list of strings",
        lambda patch: patch.setattr(dataset, "flatten", _answers_as_one_text),
    ),
    "a mask of floats": (
        "tokens_are_lists_of_integers",
        "not lists of integers = attention_mask",
        _after(tokens, "tokenize", _floats),
    ),
    "map draws": ("generators_are_left_alone", "moved by map", _draws(Dataset, "map", np.random.random)),
    "flatten draws": ("generators_are_left_alone", "moved by flatten", _draws(Dataset, "flatten", random.random)),
    "filter draws": ("generators_are_left_alone", "moved by filter", _draws(Dataset, "filter", random.random)),
    "fingerprints without the function": (
        "a_cache_serves_no_edited_function",
        "an edit of the constant",
        _functions_left_out,
    ),
    "fingerprints of a body": (
        "a_cache_serves_no_edited_function",
        "default argument = False; fresh rows after an edit of the closure = False; "
        "fresh rows after an edit of the global variable = False",
        _hashed_by_their_text,
    ),
    "a file loaded once": ("a_cache_serves_no_edited_function", "an edit of the data file", _files_kept),
    "an old block size": (
        "a_cache_knows_the_block_size",
        "do not give their own blocks",
        _block_size_of_the_first_call,
    ),
    "tokenised in another order": (
        "processes_change_no_row",
        "rows that differ",
        _in_processes(tokens, "tokenize", _strided),
    ),
    "shards of every second row": (
        "processes_move_shards_alone",
        "with num_proc=2",
        _in_processes(blocks, "group", _strided),
    ),
    "a cache that cannot be switched off": (
        "a_cache_knows_the_processes",
        "with the cache off = 3 after 2, 2 after 3, 1 after 2",
        lambda patch: patch.setattr(datasets, "disable_caching", lambda: None),
    ),
    "processes ignored": ("processes_move_shards_alone", "with num_proc=4", _one_process),
}


_STALE = needs(
    "datasets>=4.0", "in older versions the cache knows the processes, so that nothing shows whether it is on"
)


@pytest.mark.parametrize(
    "plant",
    [pytest.param(each, marks=_STALE if each == "a cache that cannot be switched off" else ()) for each in PLANTS],
)
def test_another_step_breaks_a_law(plant: str, embedded: Subject, monkeypatch: Patch) -> None:
    """A step or library that does something else is told by the law that speaks of it, with the number."""
    law, what, change = PLANTS[plant]
    change(monkeypatch)
    held.assert_broken(law, embedded, what)


def test_every_law_is_broken_by_something() -> None:
    """No law of the group is without a fault that it tells."""
    assert {law for law, _, _ in PLANTS.values()} == set(LAWS)


def test_a_law_works_in_an_empty_folder_twice(tmp_path: Path) -> None:
    """The same law can be measured again on the same subject."""
    subject = held.subject(tmp_path)
    verdicts = [held.measure("json_lines_keep_their_order", subject).verdict for _ in range(2)]
    assert verdicts == [BoundVerdict.HOLDS] * 2
