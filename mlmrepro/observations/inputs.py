"""The input of each stage of the golden run, stored with the goldens, so that a stage can be run in isolation.

inputs/flatten.arrow         training rows of the split, nested
inputs/input_ids.arrow       training rows, flattened
inputs/blocks.arrow          token ids of each training row
inputs/masked_batches.arrow  training blocks
inputs/batches.safetensors   masked training blocks, for the model, the training and the evaluation
inputs/fill_mask.safetensors the prompt's length, and the position and logits (vocabulary,) of its mask
inputs/checkpoints/VERSION/  a small checkpoint as that version of transformers writes it
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["check_inputs", "load_rows", "load_tensors", "store_rows", "store_tensors"]

_FILES = (
    "flatten.arrow",
    "input_ids.arrow",
    "blocks.arrow",
    "masked_batches.arrow",
    "batches.safetensors",
    "fill_mask.safetensors",
    "checkpoints",
)


def check_inputs(folder: Path, *, embedded: bool = True) -> None:
    """Raise UserError if a stored input is missing: every stage has to be measured in isolation.

    Only the `embedded` checkpoint has checkpoints of other versions.
    """
    wanted = _FILES if embedded else [name for name in _FILES if name != "checkpoints"]
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"the stored inputs in {folder} lack {', '.join(missing)}",
            remedy="give --goldens a folder whose inputs/ is whole, such as golden/embedded, or restore it",
        )


def store_rows(path: Path, rows: Dataset) -> None:
    """Write rows as an Arrow file of plain columns: without the library's notes in the schema."""
    import pyarrow as pa

    table = rows.with_format("arrow")[:].replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    atomic_write(path, sink.getvalue().to_pybytes())


def load_rows(path: Path) -> Dataset:
    """Return the rows of an Arrow file, in memory: nothing is cached next to the file."""
    import pyarrow as pa
    from datasets import Dataset

    with pa.ipc.open_file(pa.BufferReader(path.read_bytes())) as file:
        return Dataset(file.read_all())


def store_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write tensors as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        save_file({name: t.contiguous() for name, t in tensors.items()}, os.path.join(folder, "tensors"))
        atomic_write(path, Path(folder, "tensors").read_bytes())


def load_tensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file; integers as the models expect them (int64)."""
    from safetensors.torch import load

    tensors = load(path.read_bytes())
    return {name: t if t.is_floating_point() else t.long() for name, t in tensors.items()}
