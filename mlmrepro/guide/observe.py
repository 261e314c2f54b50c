"""Record each stage: digests, counts and figures. Observing changes nothing and leaves the generators as they were."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.guide import evaluate
from mlmrepro.record import Lane, RunRecord

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from mlmrepro.guide.prepare import Prepared

__all__ = [
    "DrawnMasks",
    "captured_warnings",
    "columns_digest",
    "digest",
    "drawn_masks",
    "generator_states",
    "observe_batches",
    "observe_blocks",
    "observe_evaluation",
    "observe_flatten",
    "observe_forward",
    "observe_input_ids",
    "observe_model",
    "observe_prepared",
    "observe_split",
    "observe_training",
    "preserved_generators",
]


def digest(rows: Iterable[Any]) -> str:
    """Return the SHA-256 of rows of plain values, in order: 16 hexadecimal digits are enough to tell two apart."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=repr).encode())
        sha.update(b"\n")
    return sha.hexdigest()[:16]


def observe_prepared(record: RunRecord, stage: str, made: Prepared, *, batch_size: int, seed: int) -> None:
    """Observe what one stage of the preparation made."""
    if stage == "dataset":
        observe_split(record, made.split)
    elif stage == "flatten":
        observe_flatten(record, made.flat)
    elif stage == "input_ids":
        observe_input_ids(record, made.tokenized, made.tokenizer.all_special_ids)
    elif stage == "blocks":
        observe_blocks(record, made.tokenized, made.blocks)
    else:
        mask = made.tokenizer.mask_token_id
        rows = made.blocks["train"]
        observe_batches(record, rows, made.collator, batch_size=batch_size, mask_token_id=mask, seed=seed)


def observe_split(record: RunRecord, dataset: DatasetDict) -> None:
    """Rows of each split, the digest of their order and content, and the hub's files that they came from."""
    checksums = dataset["train"].info.download_checksums or {}
    record.observe("dataset", "hub_files", sorted(name for name in checksums if name.startswith("hf://")), Lane.INFO)
    for name, rows in dataset.items():
        record.observe("dataset", f"{name}_rows", len(rows), Lane.EXACT)
        record.observe("dataset", f"{name}_order", digest(rows), Lane.EXACT)


def observe_flatten(record: RunRecord, dataset: DatasetDict) -> None:
    """Column names in their order with their Arrow types, and the first row's digest."""
    schema = dataset["train"].features.arrow_schema
    # Arrow's name for the elements of a list differs between its versions; the type does not.
    types = {name: str(schema.field(name).type).replace("element: ", "item: ") for name in schema.names}
    record.observe("flatten", "columns", types, Lane.EXACT)
    record.observe("flatten", "train_content", digest(dataset["train"]), Lane.EXACT)


def columns_digest(rows: Dataset) -> dict[str, str]:
    """Return the digest of every column."""
    return {name: digest(rows[name]) for name in rows.column_names}


def observe_input_ids(record: RunRecord, dataset: DatasetDict, special_ids: Iterable[int]) -> None:
    """Tokens of each split, and the digest of every column."""
    for name, rows in dataset.items():
        record.observe("input_ids", f"{name}_tokens", sum(len(ids) for ids in rows["input_ids"]), Lane.EXACT)
        record.observe("input_ids", f"{name}_columns", columns_digest(rows), Lane.EXACT)
    special = frozenset(special_ids)
    first = [id_ for id_ in dataset["train"][0]["input_ids"] if id_ not in special]
    record.observe("input_ids", "first_ids", first[:16], Lane.EXACT)


def observe_blocks(record: RunRecord, tokens: DatasetDict, blocks: DatasetDict) -> None:
    """Blocks of each split, the tokens that were dropped as remainders, and the digest of every column."""
    for name, rows in blocks.items():
        lengths = [len(ids) for ids in rows["input_ids"]]
        dropped = sum(len(ids) for ids in tokens[name]["input_ids"]) - sum(lengths)
        record.observe("blocks", f"{name}_blocks", len(rows), Lane.EXACT)
        record.observe("blocks", f"{name}_remainder", dropped, Lane.EXACT)
        record.observe("blocks", f"{name}_lengths", {"shortest": min(lengths), "longest": max(lengths)}, Lane.EXACT)
        record.observe("blocks", f"{name}_columns", columns_digest(rows), Lane.EXACT)


@dataclass(frozen=True)
class DrawnMasks:
    """What a collator drew: counts over the selected positions, and the digest of inputs and labels."""

    counts: dict[str, int]
    digest: str


def drawn_masks(blocks: Any, collator: Any, *, batch_size: int, mask_token_id: int, seed: int) -> DrawnMasks:
    """Collate all blocks once, with masks drawn from `seed`, independently of the run.

    The counts are of the selected positions: those that became the mask token, another token, or stayed.
    """
    import torch

    counts = {"tokens": 0, "selected": 0, "mask": 0, "random": 0, "unchanged": 0}
    draws = []
    with preserved_generators():
        torch.manual_seed(seed)
        for start in range(0, len(blocks), batch_size):
            rows = [blocks[i] for i in range(start, min(start + batch_size, len(blocks)))]
            batch = collator(rows)
            selected = batch["labels"] != IGNORE_INDEX
            inputs, labels = batch["input_ids"][selected], batch["labels"][selected]
            masked = inputs == mask_token_id
            same = (inputs == labels) & ~masked
            counts["tokens"] += int(batch["attention_mask"].sum())
            counts["selected"] += int(selected.sum())
            counts["mask"] += int(masked.sum())
            counts["unchanged"] += int(same.sum())
            counts["random"] += int((~masked & ~same).sum())
            draws.append([batch["input_ids"].tolist(), batch["labels"].tolist()])
    return DrawnMasks(counts, digest(draws))


def observe_batches(
    record: RunRecord, blocks: Dataset, collator: Any, *, batch_size: int, mask_token_id: int, seed: int
) -> None:
    """What the collator selects and inserts, over all training blocks once."""
    drawn = drawn_masks(blocks, collator, batch_size=batch_size, mask_token_id=mask_token_id, seed=seed)
    record.observe("masked_batches", "seed", seed, Lane.EXACT)
    record.observe("masked_batches", "counts", drawn.counts, Lane.EXACT)
    rate = drawn.counts["selected"] / max(drawn.counts["tokens"], 1)
    record.observe("masked_batches", "rate", rate, Lane.EXACT)
    record.observe("masked_batches", "draw", drawn.digest, Lane.EXACT)


def observe_model(record: RunRecord, model: Any) -> None:
    """Class, parameters, dtype and attention kernel, and the digest of the weights as loaded."""
    sha = hashlib.sha256()
    # Tied to the head's weights, the embedding is listed under either name: which one depends on the release.
    embedding = model.get_input_embeddings()
    path = next((name for name, module in model.named_modules() if module is embedding), "")
    names = {p: f"{path}.weight" if p is embedding.weight else name for name, p in model.named_parameters()}
    for name, parameter in sorted((name, parameter) for parameter, name in names.items()):
        sha.update(name.encode() + str(tuple(parameter.shape)).encode())
        sha.update(parameter.detach().cpu().float().numpy().tobytes())
    record.observe("model", "class", type(model).__name__, Lane.EXACT)
    record.observe("model", "parameters", sum(p.numel() for p in model.parameters()), Lane.EXACT)
    record.observe("model", "dtype", str(model.dtype).removeprefix("torch."), Lane.EXACT)
    record.observe("model", "attention", getattr(model.config, "_attn_implementation", None), Lane.EXACT)
    record.observe("model", "weights", sha.hexdigest()[:16], Lane.EXACT)


def observe_forward(record: RunRecord, model: Any, blocks: Any, collator: Any, *, rows: int, seed: int) -> None:
    """The loss of the first training batch before anything is learnt, on masks drawn from `seed`."""
    import torch

    with preserved_generators(), torch.no_grad():
        torch.manual_seed(seed)
        batch = collator([blocks[i] for i in range(min(rows, len(blocks)))])
        was_training = model.training
        loss = float(model.eval()(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss)
        model.train(was_training)
    record.observe("model", "first_loss", loss, Lane.APPROXIMATE)


def observe_training(record: RunRecord, trainer: Any, losses: list[float]) -> None:
    """Steps, the loss of each in nats, and the evaluation after each epoch."""
    record.observe("loss", "steps", trainer.state.global_step, Lane.EXACT)
    record.observe("loss", "step_losses", losses, Lane.APPROXIMATE)
    epochs = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    record.observe("evaluation", "epoch_eval_losses", epochs, Lane.APPROXIMATE)


def observe_evaluation(record: RunRecord, eval_loss: float, before: float, after: float) -> None:
    """The guide's evaluation, and those before and after training on the same masks, in nats and as perplexity."""
    record.observe("evaluation", "eval_loss", eval_loss, Lane.APPROXIMATE)
    record.observe("evaluation", "perplexity", evaluate.perplexity(eval_loss), Lane.STATISTICAL)
    record.observe("evaluation", "same_masks_eval_loss", after, Lane.INFO)
    pair = {"before": evaluate.perplexity(before), "after": evaluate.perplexity(after)}
    record.observe("evaluation", "same_masks_perplexity", pair, Lane.STATISTICAL)


def generator_states() -> tuple[Any, ...]:
    """Return the states of the global generators (python, numpy, torch), as comparable values."""
    import random

    import numpy as np
    import torch

    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore every global generator (python, numpy, torch, CUDA) afterwards."""
    import random

    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class _Collect(logging.Handler):
    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.into = into

    def emit(self, entry: logging.LogRecord) -> None:
        self.into.append(f"{entry.name}: {entry.getMessage()}")


@contextmanager
def captured_warnings(
    record: RunRecord, stage: str, name: str = "warnings", keep: Callable[[str], bool] = lambda _: True
) -> Iterator[None]:
    """Record the libraries' warnings during a stage instead of printing them: each message once, in order."""
    messages: list[str] = []
    handler = _Collect(messages)
    loggers = [logging.getLogger(name) for name in ("transformers", "datasets", "accelerate", "huggingface_hub")]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = lambda message, category, *_, **__: messages.append(
                f"{category.__name__}: {message}"
            )
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        kept = list(dict.fromkeys(filter(keep, messages)))
        if kept:
            record.observe(stage, name, kept, Lane.INFO)
