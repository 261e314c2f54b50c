"""Load ELI5 dataset: a split slice, the train/test split, and flattening of nested columns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mlmrepro.errors import UserError, causes, first_line
from mlmrepro.guide import versions

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

__all__ = ["flatten", "load", "split"]

_BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".jsonl.gz": "json",  # the builder unpacks it
    ".json.gz": "json",
}


def load(name: str, split: str, cache_dir: Path | None = None) -> Dataset:
    """Return the rows of one split slice, such as ``train_asks[:5000]``.

    `name` is a hub name or a data file; a file counts as the split that `split` names. A fresh `cache_dir` keeps
    leftovers of other runs out (datasets 5.2 was seen to take `num_proc` from them). Raises UserError if the data
    cannot be reached or read.
    """
    from datasets import load_dataset

    cache = None if cache_dir is None else str(cache_dir)
    path = Path(name)
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending not in _BUILDERS and path.exists():
        raise UserError(
            f"the data file {name} has an unknown format", remedy=f"give a file that ends in {', '.join(_BUILDERS)}"
        )
    if ending not in _BUILDERS:
        try:
            return load_dataset(name, split=split, cache_dir=cache, **versions.never_run_scripts())
        except Exception as error:
            raise _hub_error(name, split, error) from error
    if not path.is_file():
        raise UserError(f"the data file {name} does not exist", remedy="give the path of a file")
    match = re.match(r"\w+", split)
    if match is None:
        raise UserError(f"split {split!r} names no split", remedy="write it as name or name[start:stop]")
    try:
        files = {match.group(): str(path)}
        return load_dataset(_BUILDERS[ending], data_files=files, split=split, cache_dir=cache)
    except Exception as error:
        if any(isinstance(cause, OSError) for cause in causes(error)):
            raise  # a full disk is not the file's fault
        raise UserError(
            f"the data file {name} cannot be read as {split!r}: {first_line(error.__cause__ or error)}",
            remedy=f"give a {ending} file with one row per question and a split slice within its rows",
        ) from error


def _hub_error(name: str, split: str, error: Exception) -> UserError:
    reason = first_line(error)
    if re.search(r"scripts are no longer supported|custom code|trust_remote_code", reason):
        return UserError(
            f"the data set {name!r} is a loading script, which is never run: {reason}",
            remedy="use --eli5-category, the successor that the hub serves as files, or --profile embedded",
        )
    if isinstance(error, ValueError) and "split" in reason.lower():
        return UserError(f"the data set {name!r} has no {split!r}: {reason}", remedy="correct --set split=...")
    from huggingface_hub.constants import ENDPOINT

    return UserError(
        f"the data set {name!r} could not be loaded from the hub at {ENDPOINT}: {reason}",
        remedy="check the name and the network, or use --profile embedded, which works offline",
    )


def split(dataset: Dataset, test_size: float) -> DatasetDict:
    """Return ``train`` and ``test``; drawn from numpy's global generator, since the guide gives no seed."""
    try:
        return dataset.train_test_split(test_size=test_size)
    except ValueError as error:
        raise UserError(
            f"{len(dataset)} rows cannot be split with test_size={test_size}: {first_line(error)}",
            remedy="load more rows (--set split=...) or change --set test_size=...",
        ) from error


def flatten(dataset: DatasetDict) -> DatasetDict:
    """Turn each nested field into a column of its own, ``answers.text`` for ``answers["text"]``."""
    return dataset.flatten()
