"""Trainer: effective arguments, optimiser, schedule, gradient accumulation, logging, and what it writes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlmrepro.config import IGNORE_INDEX, TRAINER_SEED
from mlmrepro.observations.observation import attempt, observation, seeded, value, values
from mlmrepro.observations.result import Value
from mlmrepro.observations.small_training import Rows, build, safe_types_restored, train
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.weights import batch, small_model

__all__ = [
    "accumulation_at_the_end",
    "argument_names",
    "argument_values",
    "checkpoint_files",
    "evaluation_loss",
    "logs",
    "optimiser_settings",
    "resuming_unaided",
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


def _rows(count: int = 8) -> Rows:
    """Return rows with unequal numbers of labels: 1 to 4."""
    whole = batch(count)
    for row in range(count):
        keep = 1 + row % 4
        wanted = (whole["labels"][row] != IGNORE_INDEX).nonzero().flatten()
        whole["labels"][row, wanted[keep:]] = IGNORE_INDEX
    return Rows(whole)


@observation("loss")
def argument_values(subject: Subject) -> Iterator[Value]:
    """Effective values of TrainingArguments that is given only its folder."""
    from transformers import TrainingArguments
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()  # disable_tqdm depends on it, and TRANSFORMERS_VERBOSITY may change it
    try:
        arguments = TrainingArguments(output_dir=str(subject.new_folder("defaults")))
    finally:
        logging.set_verbosity(verbosity)
    found = {name: getattr(arguments, name, "absent") for name in DEFAULTS}
    found["report_to"] = "absent" if found["report_to"] == "absent" else _given("report_to")
    yield from values({name: _plain(each) for name, each in found.items()})


def _given(name: str) -> Any:
    """The default as it is written: its effective value depends on the trackers that happen to be installed."""
    from transformers import TrainingArguments

    return inspect.signature(TrainingArguments).parameters[name].default


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    return value if isinstance(value, (str, int, float, bool, list, type(None))) else repr(value)


@observation("loss")
def argument_names(subject: Subject) -> Iterator[Value]:
    """Whether TrainingArguments still takes these arguments."""
    from transformers import TrainingArguments

    known = inspect.signature(TrainingArguments).parameters
    yield from values({name: name in known for name in NAMES})


@observation("loss")
def trainer_names(subject: Subject) -> Iterator[Value]:
    """Whether Trainer still takes `tokenizer`, and already takes `processing_class`."""
    from transformers import Trainer

    known = inspect.signature(Trainer).parameters
    yield from values(
        {name: name in known for name in ("tokenizer", "processing_class", "compute_loss_func", "model_init")}
    )


@observation("loss")
def optimiser_settings(subject: Subject) -> Iterator[Value]:
    """The optimiser by default: class, its settings, the parameters without decay, and the schedule's rates."""
    trainer = build(subject, small_model(), _rows(), max_steps=4, weight_decay=0.01, learning_rate=0.01)
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
    yield from values(
        {
            "class": type(trainer.optimizer).__name__,
            "settings": {name: _plain(groups[0].get(name)) for name in settings if name != "betas"},
            "betas": list(groups[0]["betas"]),
            "without_decay": plain[0] if plain else [],
            "rates": rates,
        }
    )


@observation("loss")
def accumulation_at_the_end(subject: Subject) -> Iterator[Value]:
    """Optimiser steps of two epochs of 5 batches with 2 accumulated: what happens to the odd batch."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    trainer = train(build(subject, small_model(), _rows(10), **options))
    yield from values({"steps": trainer.state.global_step, "planned": trainer.state.max_steps})


@observation("loss")
def logs(subject: Subject) -> Iterator[Value]:
    """What Trainer logs of a step, and to how many decimals."""
    trainer = train(build(subject, small_model(), _rows(), max_steps=2))
    first = trainer.state.log_history[0]
    yield from values(
        {
            "names": sorted(first),
            "loss_decimals_at_most_4": round(first["loss"], 4) == first["loss"],
            "gradient_norm_type": type(first.get("grad_norm")).__name__,
            "last": sorted(trainer.state.log_history[-1]),
        }
    )


@observation("loss")
def checkpoint_files(subject: Subject) -> Iterator[Value]:
    """The files of a checkpoint folder if Trainer was given no tokenizer."""
    trainer = train(build(subject, small_model(), _rows(), max_steps=1, save_strategy="steps", save_steps=1))
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-1"
    yield from values({"names": sorted(path.name for path in checkpoint.iterdir())})


@observation("loss")
def resuming_unaided(subject: Subject) -> Iterator[Value]:
    """Whether two steps, resumed for two more, end where four do; without extending torch's safe loader."""
    import torch

    whole = train(build(subject, small_model(), _rows(16), max_steps=4, save_strategy="steps", save_steps=2))
    again = build(subject, small_model(), _rows(16), max_steps=4)
    with safe_types_restored():
        torch.serialization.clear_safe_globals()
        saved = f"{whole.args.output_dir}/checkpoint-2"
        outcome = attempt(lambda: bool(train(again, resume_from_checkpoint=saved)))
    same = outcome is True and all(
        torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True)
    )
    yield from values({"outcome": outcome, "equals_unbroken": same})


@observation("evaluation")
def evaluation_loss(subject: Subject) -> Iterator[Value]:
    """`eval_loss` of 5 rows in batches of 2: averaged over rows, batches or labelled tokens; and the metrics' names."""
    import torch

    rows = _rows(5)
    trainer = build(subject, small_model(), rows, per_device_eval_batch_size=2)
    with seeded(TRAINER_SEED):
        before = torch.get_rng_state()
        metrics = trainer.evaluate()
        drawn = not torch.equal(before, torch.get_rng_state())
        prediction = trainer.predict(_rows(3))
    pieces = [rows.batch(slice(i, i + 2)) for i in (0, 2, 4)]
    with torch.no_grad():
        losses = [float(trainer.model(**piece).loss) for piece in pieces]
    wanted = [int((piece["labels"] != IGNORE_INDEX).sum()) for piece in pieces]
    means = {
        "rows": sum(x * len(p["labels"]) for x, p in zip(losses, pieces, strict=True)) / 5,
        "batches": sum(losses) / 3,
        "tokens": sum(x * n for x, n in zip(losses, wanted, strict=True)) / sum(wanted),
    }
    nearest = min(means, key=lambda name: abs(means[name] - metrics["eval_loss"]))
    yield from values(
        {
            "eval_loss": value("", metrics["eval_loss"], quantity="nats"),
            "averaged_over": nearest if abs(means[nearest] - metrics["eval_loss"]) < 1e-5 else "none of them",
            "metrics": sorted(metrics),
            "draws_from_the_global_generator": drawn,
            "predictions": list(prediction.predictions.shape),
        }
    )
