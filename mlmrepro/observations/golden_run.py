"""The golden run: the guide on a few rows, each stage again in isolation, and the observations of the libraries."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlmrepro import loading
from mlmrepro.config import TRAINER_SEED, RunConfig, resolve
from mlmrepro.guide import fill_mask, versions
from mlmrepro.guide.prepare import prepare
from mlmrepro.guide.run import Progress
from mlmrepro.guide.run import run as run_guide
from mlmrepro.observations import inputs, isolated
from mlmrepro.observations.adopt import (
    Adopted,
    Change,
    check_free,
    read_subject,
    replace_folder,
    store_subject,
    write_goldens,
)
from mlmrepro.observations.observation import Observer
from mlmrepro.observations.observe import observe_into, sample, silenced
from mlmrepro.observations.registry import all_observers
from mlmrepro.observations.subject import Subject
from mlmrepro.record import Lane, RunRecord

__all__ = ["adopt", "check_subject", "golden_config", "store_inputs", "subject_of", "take_record"]

# Few rows keep the run within half a minute; everything else is the embedded profile.
SPLIT = ("split", "train_asks[:32]", "golden run: few rows, so that it is quick")


def golden_config(output_dir: Path, *changes: Change, threads: int = 2) -> RunConfig:
    """Return the golden run's configuration, with deliberate faults or other settings on top."""
    return resolve("embedded", output_dir=output_dir, changes=(SPLIT, *changes), threads=threads)


def take_record(
    stored: Path,
    *changes: Change,
    threads: int = 2,
    observers: Sequence[Observer] | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Run the guide, every stage in isolation, and the observations (default: all of them); return one record.

    `stored` is the goldens' folder of stored inputs: of the embedded checkpoint, or of an adopted one. `changes` are
    deliberate faults or other settings. Raises UserError if an input is missing or the checkpoint has other weights.
    """
    return _taken(check_subject(stored), stored, changes, threads, observers, progress)


def check_subject(stored: Path) -> Adopted | None:
    """Return the adopted subject of stored inputs, None for the embedded one.

    Raises UserError if an input is missing or the checkpoint has other weights.
    """
    adopted = read_subject(stored.parent)
    inputs.check_inputs(stored, embedded=adopted is None)
    if adopted is not None:
        adopted.check()
    return adopted


def _taken(
    adopted: Adopted | None,
    stored: Path,
    changes: Sequence[Change],
    threads: int,
    observers: Sequence[Observer] | None,
    progress: Progress | None,
) -> RunRecord:
    changes = (*(adopted.changes if adopted else ()), *changes)
    folder = Path(tempfile.mkdtemp(prefix="mlmrepro-"))
    try:
        config = golden_config(folder / "run", *changes, threads=threads)
        record = run_guide(config, progress)
        started = time.perf_counter()
        if progress is not None:
            progress.stage("off_path")
        isolated.observe_isolated(record, config, stored, folder / "isolated")
        subject = subject_of(config, folder / "off_path", stored)
        record.config["model_type"] = subject.model_type
        observe_into(record, subject, all_observers() if observers is None else observers)
        record.observe("dataset", "off_path.seconds", round(time.perf_counter() - started, 3), Lane.INFO)
        if adopted:
            record.config = adopted.anonymous(record.config)
        return record
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def subject_of(config: RunConfig, folder: Path, stored: Path) -> Subject:
    """Return the checkpoint of a golden run with text and stored inputs, as a subject; `folder` is written to."""
    source = "embedded" if config.guide.dataset == "embedded" else config.dataset
    texts, _ = sample(source, column=config.guide.text_column)
    return Subject(config.checkpoint, texts, folder, inputs=stored)


def adopt(
    checkpoint: str,
    text: str,
    target: Path,
    *,
    threads: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[int, tuple[str, ...]]:
    """Take goldens of a checkpoint on some text; return the number of values, and notes on the text and the bounds.

    `options` are those of `adopt.store_subject`. Raises UserError for bad input; `target` is written whole or not at
    all.
    """
    check_free(target, checkpoint, text, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        made = Path(folder) / "made"
        adopted, notes = store_subject(checkpoint, text, made, home=target, **options)
        with silenced():
            store_inputs(made / "inputs", *adopted.changes)
        record = _taken(adopted, made / "inputs", (), threads, None, progress)
        count, broken = write_goldens(record, made)
        replace_folder(made, target)
    if broken:
        said = f"already outside their bounds, which later comparisons accept: {', '.join(broken)}"
        notes = (*notes, said)
    return count, notes


def store_inputs(target: Path, *changes: Change) -> None:
    """Write the input of each stage of a golden run, but not the checkpoints of other versions, which those write.

    Raises UserError as the guide's own steps do.
    """
    import torch
    from transformers import set_seed

    versions.set_up()
    with tempfile.TemporaryDirectory() as folder:
        config = golden_config(Path(folder) / "run", *changes)
        guide = config.guide
        set_seed(TRAINER_SEED)
        made = prepare(config, Path(folder) / "cache")
        tokenizer, grouped = made.tokenizer, made.blocks["train"]
        inputs.store_rows(target / "flatten.arrow", made.split["train"])
        inputs.store_rows(target / "input_ids.arrow", made.flat["train"])
        inputs.store_rows(target / "blocks.arrow", made.tokenized["train"])
        inputs.store_rows(target / "masked_batches.arrow", grouped)
        torch.manual_seed(TRAINER_SEED)
        batches = {
            name: tensor.int() for name, tensor in made.collator([grouped[i] for i in range(len(grouped))]).items()
        }
        inputs.store_tensors(target / "batches.safetensors", batches)
        prompt = fill_mask.check_prompt(tokenizer, guide.prompt, tokenizer.model_max_length)
        ids = tokenizer(prompt, return_tensors="pt")
        position = int((ids["input_ids"][0] == tokenizer.mask_token_id).nonzero())
        with torch.no_grad():
            logits = loading.load_model(config.checkpoint).eval()(**ids).logits
        stored = {
            "logits": logits[0, position].float(),
            "position": torch.tensor(position, dtype=torch.int32),
            "tokens": torch.tensor(ids["input_ids"].shape[1], dtype=torch.int32),
        }
        inputs.store_tensors(target / "fill_mask.safetensors", stored)
