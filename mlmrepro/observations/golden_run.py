"""The golden run: the guide on a few rows, each stage again in isolation, and the observations of the libraries."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlmrepro import loading
from mlmrepro.config import EMBEDDED, TRAINER_SEED, RunConfig, resolve
from mlmrepro.guide import fill_mask, versions
from mlmrepro.guide.prepare import prepare
from mlmrepro.guide.run import Progress
from mlmrepro.guide.run import run as run_guide
from mlmrepro.observations import inputs, isolated
from mlmrepro.observations.observation import Observer
from mlmrepro.observations.observe import observe_into, sample
from mlmrepro.observations.registry import all_observers
from mlmrepro.observations.subject import Subject
from mlmrepro.record import Lane, RunRecord

__all__ = ["embedded_subject", "golden_config", "store_inputs", "take_record"]

# Few rows keep the run within half a minute; everything else is the embedded profile.
SPLIT = ("split", "train_asks[:32]", "golden run: few rows, so that it is quick")


def golden_config(output_dir: Path, *changes: tuple[str, Any, str], threads: int = 2) -> RunConfig:
    """Return the golden run's configuration, with deliberate faults or other settings on top."""
    return resolve("embedded", output_dir=output_dir, changes=(SPLIT, *changes), threads=threads)


def take_record(
    stored: Path,
    *changes: tuple[str, Any, str],
    threads: int = 2,
    observers: Sequence[Observer] | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Run the guide, every stage in isolation, and the observations (default: all of them); return one record.

    `stored` is the goldens' folder of stored inputs, `changes` are deliberate faults or other settings. Raises
    UserError if an input is missing.
    """
    inputs.check_inputs(stored)
    folder = Path(tempfile.mkdtemp(prefix="mlmrepro-"))
    try:
        config = golden_config(folder / "run", *changes, threads=threads)
        record = run_guide(config, progress)
        started = time.perf_counter()
        isolated.observe_isolated(record, config.guide, stored, folder / "isolated")
        subject = embedded_subject(folder / "off_path", stored)
        record.config["model_type"] = subject.model_type
        observe_into(record, subject, all_observers() if observers is None else observers)
        record.observe("dataset", "off_path.seconds", round(time.perf_counter() - started, 3), Lane.INFO)
        return record
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def embedded_subject(folder: Path, stored: Path) -> Subject:
    """Return the embedded checkpoint as a subject, with embedded text and stored inputs; `folder` is written to."""
    texts, _ = sample("embedded")
    return Subject(str(EMBEDDED / "checkpoint"), texts, folder, inputs=stored)


def store_inputs(target: Path) -> None:
    """Write the input of each stage of the golden run, but not the checkpoints of other versions, which those write.

    Raises UserError as the guide's own steps do.
    """
    import torch
    from transformers import set_seed

    versions.set_up()
    with tempfile.TemporaryDirectory() as folder:
        config = golden_config(Path(folder) / "run")
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
