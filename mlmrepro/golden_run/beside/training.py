"""Trainer: effective arguments, optimiser, schedule, gradient accumulation, logging, and what it writes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlmrepro.config import IGNORE_INDEX, TRAINER_SEED
from mlmrepro.golden_run.beside.model import batch, small_model
from mlmrepro.golden_run.beside.probe import Bench, Measured, attempt, probe, seeded
from mlmrepro.guide import versions

__all__ = [
    "accumulation",
    "accumulation_at_the_end",
    "argument_defaults",
    "argument_names",
    "checkpoint_files",
    "evaluation_loss",
    "logs",
    "optimiser",
    "resuming",
    "trainer_names",
]

# Every argument whose default decides what a training computes, keeps or reports.
DEFAULTS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "auto_find_batch_size", "average_tokens_across_devices", "bf16",
    "data_seed", "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "disable_tqdm",
    "do_eval", "eval_accumulation_steps", "eval_delay", "eval_do_concat_batches", "eval_on_start", "eval_strategy",
    "fp16", "full_determinism", "gradient_accumulation_steps", "gradient_checkpointing", "greater_is_better",
    "group_by_length", "hub_strategy", "ignore_data_skip", "include_num_input_tokens_seen", "label_names",
    "label_smoothing_factor", "learning_rate", "load_best_model_at_end", "logging_first_step", "logging_nan_inf_filter",
    "logging_steps", "logging_strategy", "lr_scheduler_type", "max_grad_norm", "max_steps", "neftune_noise_alpha",
    "num_train_epochs", "optim", "overwrite_output_dir", "past_index", "per_device_eval_batch_size",
    "per_device_train_batch_size", "prediction_loss_only", "push_to_hub", "remove_unused_columns", "report_to",
    "restore_callback_states_from_checkpoint", "save_only_model", "save_safetensors", "save_steps", "save_strategy",
    "save_total_limit", "seed", "skip_memory_metrics", "tf32", "train_sampling_strategy", "use_legacy_prediction_loop",
    "warmup_ratio", "warmup_steps", "weight_decay",
)  # fmt: skip

# Arguments that scripts and older copies of the guide pass.
NAMES = (
    "evaluation_strategy", "eval_strategy", "logging_dir", "overwrite_output_dir", "no_cuda", "use_cpu",
    "tpu_num_cores",
    "fp16_opt_level", "half_precision_backend", "per_gpu_train_batch_size", "push_to_hub_token", "torchdynamo",
    "include_inputs_for_metrics", "jit_mode_eval", "use_ipex", "ray_scope", "group_by_length", "warmup_ratio",
)  # fmt: skip


def _arguments(folder: Path, **options: Any) -> Any:
    from transformers import TrainingArguments

    settings: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 0.01}
    return TrainingArguments(output_dir=str(folder), **(settings | options))


def _rows(count: int = 8) -> list[dict[str, Any]]:
    """Rows with unequal numbers of labels: 1 to 4."""
    whole = batch(count)
    for row in range(count):
        keep = 1 + row % 4
        wanted = (whole["labels"][row] != IGNORE_INDEX).nonzero().flatten()
        whole["labels"][row, wanted[keep:]] = IGNORE_INDEX
    return [{name: tensor[row] for name, tensor in whole.items()} for row in range(count)]


def _trainer(folder: Path, rows: int = 8, **options: Any) -> Any:
    from transformers import PrinterCallback, Trainer

    versions.allow_generator_state()
    built = Trainer(
        model=small_model(),
        args=_arguments(folder, **options),
        train_dataset=_rows(rows),
        eval_dataset=_rows(5),
    )
    built.remove_callback(PrinterCallback)
    return built


@probe("loss")
def argument_defaults(bench: Bench) -> Mapping[str, Any]:
    """Effective values of TrainingArguments that is given only its folder."""
    from transformers import TrainingArguments
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()  # disable_tqdm depends on it, and TRANSFORMERS_VERBOSITY may change it
    try:
        arguments = TrainingArguments(output_dir=str(bench.new("defaults")))
    finally:
        logging.set_verbosity(verbosity)
    values = {name: getattr(arguments, name, "absent") for name in DEFAULTS}
    values["report_to"] = "absent" if values["report_to"] == "absent" else _given("report_to")
    return {name: _plain(value) for name, value in values.items()}


def _given(name: str) -> Any:
    """The default as it is written: its effective value depends on the trackers that happen to be installed."""
    from transformers import TrainingArguments

    return inspect.signature(TrainingArguments).parameters[name].default


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    return value if isinstance(value, (str, int, float, bool, list, type(None))) else repr(value)


@probe("loss")
def argument_names(bench: Bench) -> Mapping[str, Any]:
    """Whether TrainingArguments still takes these arguments."""
    from transformers import TrainingArguments

    known = inspect.signature(TrainingArguments).parameters
    return {name: name in known for name in NAMES}


@probe("loss")
def trainer_names(bench: Bench) -> Mapping[str, Any]:
    """Whether Trainer still takes `tokenizer`, and already takes `processing_class`."""
    from transformers import Trainer

    known = inspect.signature(Trainer).parameters
    return {name: name in known for name in ("tokenizer", "processing_class", "compute_loss_func", "model_init")}


@probe("loss")
def optimiser(bench: Bench) -> Mapping[str, Any]:
    """The optimiser by default: class, its settings, the parameters without decay, and the schedule's rates."""
    trainer = _trainer(bench.new("optimiser"), max_steps=4, weight_decay=0.01)
    trainer.create_optimizer_and_scheduler(4)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    rates = []
    for _ in range(4):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    settings = ("betas", "eps", "fused", "foreach", "amsgrad", "maximize", "capturable")
    plain = [sorted(names[id(p)] for p in group["params"]) for group in groups if group["weight_decay"] == 0]
    return {
        "class": type(trainer.optimizer).__name__,
        "settings": {name: _plain(groups[0].get(name)) for name in settings if name != "betas"},
        "betas": list(groups[0]["betas"]),
        "without_decay": plain[0] if plain else [],
        "rates": rates,
    }


@probe("loss")
def accumulation(bench: Bench) -> Mapping[str, Any]:
    """One step of plain gradient descent on 8 rows with unequal numbers of labels, in 4 pieces of 2 rows.

    The step should be the one that all 8 rows together give; its length is measured as a multiple of that one's. The
    mean of the pieces' means has another direction, and without dividing by the pieces the step is 4 times as long.
    """
    import torch

    trainer = _trainer(
        bench.new("pieces"), per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1,
        logging_steps=1, max_grad_norm=0.0, optim="sgd", lr_scheduler_type="constant",
    )  # fmt: skip
    before = _flat(trainer.model)
    trainer.train()
    step = before - _flat(trainer.model)
    whole, rows = small_model(), _rows()
    loss = whole(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]}).loss
    loss.backward()
    wanted = 0.01 * torch.cat([p.grad.double().flatten() for _, p in sorted(whole.named_parameters())])
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {
        "logged_loss_over_loss": Measured(round(logged / float(loss), 3), "ratio"),
        "step_over_wanted": Measured(round(float(step.norm() / wanted.norm()), 3), "ratio"),
        "cosine_with_wanted": Measured(round(float(step @ wanted / step.norm() / wanted.norm()), 3), "ratio"),
    }


def _flat(model: Any) -> Any:
    import torch

    return torch.cat([p.detach().double().flatten() for _, p in sorted(model.named_parameters())])


@probe("loss")
def accumulation_at_the_end(bench: Bench) -> Mapping[str, Any]:
    """Optimiser steps of two epochs of 5 batches with 2 accumulated: what happens to the odd batch."""
    trainer = _trainer(
        bench.new("odd"), 10, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2
    )
    trainer.train()
    return {"steps": trainer.state.global_step, "planned": trainer.state.max_steps}


@probe("loss")
def logs(bench: Bench) -> Mapping[str, Any]:
    """What Trainer logs of a step, and to how many decimals."""
    trainer = _trainer(bench.new("logs"), max_steps=2, logging_steps=1)
    trainer.train()
    first = trainer.state.log_history[0]
    return {
        "names": sorted(first),
        "loss_decimals_at_most_4": round(first["loss"], 4) == first["loss"],
        "gradient_norm_type": type(first.get("grad_norm")).__name__,
        "last": sorted(trainer.state.log_history[-1]),
    }


@probe("loss")
def checkpoint_files(bench: Bench) -> Mapping[str, Any]:
    """The files of a checkpoint folder if Trainer was given no tokenizer."""
    folder = bench.new("files")
    _trainer(folder, max_steps=1, save_strategy="steps", save_steps=1).train()
    return {"names": sorted(path.name for path in (folder / "checkpoint-1").iterdir())}


@probe("loss")
def resuming(bench: Bench) -> Mapping[str, Any]:
    """Whether two steps, resumed for two more, end where four do; without extending torch's safe loader."""
    import torch

    whole = _trainer(bench.new("whole-4"), 16, max_steps=4, logging_steps=1, save_strategy="steps", save_steps=2)
    whole.train()
    torch.serialization.clear_safe_globals()
    again = _trainer_bare(bench.new("again"), 16, max_steps=4, logging_steps=1)
    outcome = attempt(lambda: bool(again.train(resume_from_checkpoint=str(bench.folder / "whole-4" / "checkpoint-2"))))
    versions.allow_generator_state()
    same = outcome is True and all(
        torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True)
    )
    return {"outcome": outcome, "equals_unbroken": same}


def _trainer_bare(folder: Path, rows: int, **options: Any) -> Any:
    from transformers import PrinterCallback, Trainer

    built = Trainer(model=small_model(), args=_arguments(folder, **options), train_dataset=_rows(rows))
    built.remove_callback(PrinterCallback)
    return built


@probe("evaluation")
def evaluation_loss(bench: Bench) -> Mapping[str, Any]:
    """`eval_loss` of 5 rows in batches of 2: averaged over rows, batches or labelled tokens; and the metrics' names."""
    import torch

    trainer = _trainer(bench.new("evaluation"), per_device_eval_batch_size=2)
    with seeded(TRAINER_SEED):
        before = torch.get_rng_state()
        metrics = trainer.evaluate()
        drawn = not torch.equal(before, torch.get_rng_state())
        prediction = trainer.predict(_rows(3))
    rows = _rows(5)
    with torch.no_grad():
        pieces = [rows[i : i + 2] for i in (0, 2, 4)]
        losses = [float(trainer.model(**{n: torch.stack([r[n] for r in p]) for n in p[0]}).loss) for p in pieces]
    wanted = [sum(int((r["labels"] != IGNORE_INDEX).sum()) for r in p) for p in pieces]
    means = {
        "rows": sum(x * len(p) for x, p in zip(losses, pieces, strict=True)) / 5,
        "batches": sum(losses) / 3,
        "tokens": sum(x * n for x, n in zip(losses, wanted, strict=True)) / sum(wanted),
    }
    nearest = min(means, key=lambda name: abs(means[name] - metrics["eval_loss"]))
    return {
        "eval_loss": Measured(metrics["eval_loss"], "nats"),
        "averaged_over": nearest if abs(means[nearest] - metrics["eval_loss"]) < 1e-5 else "none of them",
        "metrics": sorted(metrics),
        "draws_from_the_global_generator": drawn,
        "predictions": list(prediction.predictions.shape),
    }
