"""The cache of datasets: `map` never returns rows of an earlier run with another function or setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mlmrepro.guide import blocks, dataset
from mlmrepro.observations.observation import observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.steps import HERE, mapped_differences, ragged
from mlmrepro.observations.subject import Subject

__all__ = [
    "a_cache_knows_the_block_size",
    "a_cache_knows_the_processes",
    "a_cache_serves_no_edited_function",
    "caching",
]

_ABOUT = "https://huggingface.co/docs/datasets/about_cache: the fingerprint covers the data and the whole transform"
_EXACT = "discrete values: nothing may differ"


@contextmanager
def caching(on: bool) -> Iterator[None]:
    """Switch the cache of datasets on or off, and restore the previous setting afterwards."""
    import datasets

    def switch(wanted: bool) -> None:
        (datasets.enable_caching if wanted else datasets.disable_caching)()

    before = datasets.is_caching_enabled()
    switch(on)
    try:
        yield
    finally:
        switch(before)


def _defined(body: str, **names: Any) -> Callable[..., Any]:
    """Return the function f that some source code defines, as in a script or a notebook."""
    content: dict[str, Any] = {"__name__": "__main__", **names}
    exec(body, content)
    return content["f"]


def _in_a_module(folder: Path, factor: int) -> Callable[..., Any]:
    """Return the function f of a module that was edited and imported again."""
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    name = "mlmrepro_edited_module"
    path = folder / f"version_{factor}" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"def f(row):\n    return {{'m': row['n'] * {factor}}}\n", encoding="utf-8")
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.f


class _Times:
    """A callable object."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, row: dict[str, int]) -> dict[str, int]:
        return {"m": row["n"] * self.factor}


def _times(row: dict[str, int], factor: int) -> dict[str, int]:
    return {"m": row["n"] * factor}


@observation(
    "input_ids",
    source=_ABOUT,
    cause="the fingerprint does not cover the whole function, so the cache returns rows of an older version",
)
def a_cache_serves_no_edited_function(subject: Subject) -> Iterator[Value]:
    """With the cache on, an edited function or file never returns rows of its old version, wherever the edit is."""
    import sys

    from datasets import Dataset, load_from_disk

    folder = subject.new_folder("cache")
    made: dict[str, Callable[[int], Callable[..., Any]]] = {
        "constant": lambda k: _defined(f"def f(row): return {{'m': row['n'] * {k}}}"),
        "default_argument": lambda k: _defined(f"def f(row, k={k}): return {{'m': row['n'] * k}}"),
        "closure": lambda k: _defined(
            f"def g():\n    k = {k}\n    def f(row): return {{'m': row['n'] * k}}\n    return f\nf = g()"
        ),
        "global_variable": lambda k: _defined("def f(row): return {'m': row['n'] * K}", K=k),
        "called_function": lambda k: _defined(f"def g(n): return n * {k}\ndef f(row): return {{'m': g(row['n'])}}"),
        "partial_argument": lambda k: partial(_times, factor=k),
        "object_attribute": _Times,
        "imported_module": lambda k: _in_a_module(folder, k),
    }
    count = 5
    Dataset.from_dict({"n": list(range(count))}).save_to_disk(str(folder / "rows"))
    reused = 0
    with caching(True):
        try:
            for part, make in made.items():
                factors = [
                    sorted(
                        {row["m"] // row["n"] for row in load_from_disk(str(folder / "rows")).map(make(k)) if row["n"]}
                    )
                    for k in (2, 3)
                ]
                title = f"fresh rows after an edit of the {part.replace('_', ' ')}"
                yield value(f"fresh_rows_{part}", factors == [[2], [3]], title, equals=True)
                again = load_from_disk(str(folder / "rows")).map(make(3)).cache_files
                reused += again == load_from_disk(str(folder / "rows")).map(make(3)).cache_files
        finally:
            sys.modules.pop("mlmrepro_edited_module", None)
        title = "functions for which the cache is used at all"
        yield value("cached_functions", reused, title, unit=f"of {len(made)}", shown=True)
        files = []
        for text in ("first", "other"):
            path = folder / "rows.jsonl"
            path.write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
            files.append([row["text"] for row in dataset.load(str(path), "train", folder / "files")])
        fresh = files == [["first"], ["other"]]
        yield value("fresh_rows_data_file", fresh, "fresh rows after an edit of the data file", equals=True)


@observation(
    "blocks",
    source=_ABOUT,
    cause="the fingerprint does not cover the block size, so the cache returns blocks of another size",
)
def a_cache_knows_the_block_size(subject: Subject) -> Iterator[Value]:
    """With the cache on, grouping the same rows with another block size gives blocks of the new size."""
    from datasets import Dataset, DatasetDict, load_from_disk

    folder, examples, wrong = str(subject.new_folder("blocks")), ragged([5] * 6), 0
    Dataset.from_dict(examples).save_to_disk(folder)
    with caching(True):
        for size in (4, 8):
            rows = DatasetDict({"train": load_from_disk(folder)})
            grouped = blocks.group(rows, block_size=size, num_proc=HERE, batch_size=1000)["train"]
            wrong += bool(mapped_differences(grouped, examples, size, 1000, 1))
    yield value("wrong_block_sizes", wrong, "block sizes that do not give their own blocks", equals=0, reason=_EXACT)


@observation(
    "blocks",
    source=f"{_ABOUT}; datasets.Dataset.map: num_proc",
    cause="the cache returns the shards of a run with another num_proc, whose blocks are cut at other places: switch "
    "the cache off (datasets.disable_caching, as the guide's run does) or use a new cache folder",
    slow=True,
)
def a_cache_knows_the_processes(subject: Subject) -> Iterator[Value]:
    """Grouping the same rows with another num_proc gives the blocks of that num_proc, with or without the cache."""
    from datasets import Dataset, DatasetDict, load_from_disk

    examples = ragged([5] * 11)  # 1, 2 and 3 processes each cut these at different places
    ways = {"cache_off": False, "cache_on": True}  # the guide's run has it off
    stale: dict[str, list[str]] = {way: [] for way in ways}
    for first, second in ((2, 3), (3, 2), (2, HERE)):
        folder = str(subject.new_folder("processes"))
        Dataset.from_dict(examples).save_to_disk(folder)
        with caching(True):
            _grouped(DatasetDict({"train": load_from_disk(folder)}), first)
        for way, on in ways.items():
            with caching(on):
                again = _grouped(DatasetDict({"train": load_from_disk(folder)}), second)
            if mapped_differences(again, examples, 8, 4, second or 1):
                stale[way].append(f"{second or 1} after {first}")
    for way, found in stale.items():
        title = f"num_proc that gives the blocks of an earlier num_proc, with the {way.replace('_', ' ')}"
        yield value(f"stale_blocks_{way}", ", ".join(found), title, equals="", reason=_EXACT)


def _grouped(rows: Any, num_proc: int) -> Any:
    return blocks.group(rows, block_size=8, num_proc=num_proc, batch_size=4)["train"]
