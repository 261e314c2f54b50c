"""The golden run: the guide on few rows, each stage once more on its stored input, and what lies beside."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from mlmrepro import loading
from mlmrepro.config import EMBEDDED, TRAINER_SEED, RunConfig, resolve
from mlmrepro.golden_run import alone, inputs
from mlmrepro.golden_run.beside.probe import Bench, all_probes, observe_probes
from mlmrepro.guide import blocks, collate, dataset, fill_mask, tokens, versions
from mlmrepro.guide.run import Progress
from mlmrepro.guide.run import run as run_guide
from mlmrepro.record import Lane, RunRecord

__all__ = ["golden_config", "store_inputs", "take_record"]

# Few rows keep it within half a minute; everything else is the embedded profile.
SPLIT = ("split", "train_asks[:32]", "golden run: few rows, so that it is quick")


def golden_config(output_dir: Path, *changes: tuple[str, Any, str], threads: int = 2) -> RunConfig:
    """Return the golden run's configuration, with deliberate faults or other settings on top."""
    return resolve("embedded", output_dir=output_dir, changes=(SPLIT, *changes), threads=threads)


def take_record(
    stored: Path,
    *changes: tuple[str, Any, str],
    threads: int = 2,
    beside: bool = True,
    progress: Progress | None = None,
) -> RunRecord:
    """Run the guide, every stage alone and, with `beside`, the probes; return the record of all.

    `stored` is the goldens' folder of stored inputs, `changes` are deliberate faults or other settings. Raises
    UserError where an input is missing.
    """
    inputs.check_inputs(stored)
    folder = Path(tempfile.mkdtemp(prefix="mlmrepro-"))
    try:
        config = golden_config(folder / "run", *changes, threads=threads)
        record = run_guide(config, progress)
        started = time.perf_counter()
        alone.observe_alone(record, config.guide, stored, folder / "alone")
        if beside:
            observe_probes(record, Bench(EMBEDDED / "checkpoint", stored, folder / "beside"), all_probes())
        record.observe("dataset", "beside.seconds", round(time.perf_counter() - started, 3), Lane.INFO)
        return record
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def store_inputs(target: Path) -> None:
    """Write what each stage of the golden run is given. The checkpoints of other versions are written by those.

    Raises UserError as the guide's own steps do.
    """
    import torch
    from transformers import set_seed

    versions.set_up()
    with tempfile.TemporaryDirectory() as folder:
        config = golden_config(Path(folder) / "run")
        guide = config.guide
        set_seed(TRAINER_SEED)
        split = dataset.split(dataset.load(config.dataset, guide.split, Path(folder) / "cache"), guide.test_size)
        inputs.store_rows(target / "flatten.arrow", split["train"])
        flat = dataset.flatten(split)
        inputs.store_rows(target / "input_ids.arrow", flat["train"])
        tokenizer = loading.load_tokenizer(config.checkpoint)
        tokenized = tokens.tokenize(
            flat, tokenizer, column=guide.text_column, separator=guide.separator, num_proc=guide.num_proc
        )
        inputs.store_rows(target / "blocks.arrow", tokenized["train"])
        grouped = blocks.group(
            tokenized, block_size=guide.block_size, num_proc=guide.num_proc, batch_size=guide.map_batch_size
        )["train"]
        inputs.store_rows(target / "masked_batches.arrow", grouped)
        collator = collate.data_collator(tokenizer, mlm_probability=guide.mlm_probability, pad_token=guide.pad_token)
        torch.manual_seed(TRAINER_SEED)
        batches = {name: tensor.int() for name, tensor in collator([grouped[i] for i in range(len(grouped))]).items()}
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
