"""What training must do, written without Trainer: losses, gradients, AdamW, weight decay, defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.observations.forward import readable
from mlmrepro.observations.observation import value
from mlmrepro.observations.result import Value
from mlmrepro.observations.small_training import Rows, flat, gradient, joined, losses, move, named

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULTS",
    "FLOAT32",
    "ROUNDED",
    "Mixture",
    "Plan",
    "about_one",
    "kinds",
    "mixture",
    "replay",
    "shifted",
    "smoothed",
    "without_decay",
]

FLOAT32 = "float32 sums in another order: an eighth of it at most was measured, over 30 architectures and 18 versions"
ROUNDED = "logged losses, of some 5 nats, are rounded to four decimals before transformers 5: 1e-5 of them"

# Defaults of TrainingArguments that affect the result and have been the same in every release since 4.41.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0, "num_train_epochs": 3.0, "max_steps": -1, "lr_scheduler_type": "linear", "warmup_steps": 0,
    "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 1,
    "dataloader_drop_last": False, "dataloader_num_workers": 0, "seed": 42, "data_seed": None, "fp16": False,
    "bf16": False, "gradient_checkpointing": False, "label_smoothing_factor": 0.0, "neftune_noise_alpha": None,
    "full_determinism": False, "ignore_data_skip": False, "remove_unused_columns": True, "eval_strategy": "no",
    "save_strategy": "steps", "save_steps": 500, "logging_steps": 500, "load_best_model_at_end": False,
    "auto_find_batch_size": False, "prediction_loss_only": False,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Settings for some steps of AdamW, with gradient clipping and a learning rate that falls linearly to 0."""

    rate: float
    steps: int
    decay: float
    betas: tuple[float, float]
    eps: float
    clip: float

    def arguments(self) -> dict[str, Any]:
        """Return the settings under their names in TrainingArguments."""
        return {
            "learning_rate": self.rate,
            "max_steps": self.steps,
            "weight_decay": self.decay,
            "adam_beta1": self.betas[0],
            "adam_beta2": self.betas[1],
            "adam_epsilon": self.eps,
            "max_grad_norm": self.clip,
        }


def replay(
    model: Any, batches: Sequence[Mapping[str, torch.Tensor]], plan: Plan, decay: Mapping[str, float]
) -> list[float]:
    """Train by the formulas of AdamW (arXiv:1711.05101, algorithm 2), and return the loss of each batch in nats.

    `decay` maps each parameter's name to its weight decay. Parameters that the loss does not depend on stay unchanged.
    """
    import torch

    fading = joined([torch.full_like(parameter, decay[name]) for name, parameter in named(model)])
    first, second = torch.zeros_like(fading), torch.zeros_like(fading)
    found = []
    for index, batch in enumerate(batches):
        loss = losses(model, batch).mean()
        slope = gradient(model, loss)
        slope *= min(1.0, plan.clip / float(slope.nan_to_num(0.0).norm()))
        first = plan.betas[0] * first + (1 - plan.betas[0]) * slope
        second = plan.betas[1] * second + (1 - plan.betas[1]) * slope**2
        mean = first / (1 - plan.betas[0] ** (index + 1))
        size = (second / (1 - plan.betas[1] ** (index + 1))).sqrt() + plan.eps
        move(model, -plan.rate * (1 - index / plan.steps) * (mean / size + fading * flat(model)))
        found.append(float(loss))
    return found


def without_decay(model: Any) -> set[str]:
    """Return the parameters that must not decay: biases, and all parameters of normalisation layers.

    A normalisation layer is recognised by its class, and a bias by having one number per output, never by their names.
    """
    spared = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if "norm" in type(module).__name__.lower() or parameter.shape[1:].numel() == 1:
                spared.add(name)
    return spared


def kinds(model: Any, names: Sequence[str] | set[str]) -> str:
    """Return the kinds of these parameters, such as ``LayerNorm.weight, Linear.bias``, whatever their layer."""
    found = set()
    for name in names:
        path, _, last = name.rpartition(".")
        found.add(f"{type(model.get_submodule(path)).__name__}.{last}")
    return ", ".join(sorted(found))


def smoothed(model: Any, batch: Mapping[str, torch.Tensor], share: float) -> torch.Tensor:
    """Return the label-smoothed loss in nats: `share` of each label is spread evenly over the vocabulary."""
    logits = model(**readable(model, batch)).logits.float()[batch["labels"] != IGNORE_INDEX]
    of_all_words = logits.logsumexp(-1) - logits.mean(-1)
    return (1 - share) * losses(model, batch).mean() + share * of_all_words.mean()


def shifted(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the batch with each label one position earlier, where a causal model predicts it."""
    labels = batch["labels"].roll(-1, 1)
    labels[:, -1] = IGNORE_INDEX
    return {**batch, "labels": labels}


@dataclass(frozen=True)
class Mixture:
    """A step as a scaled mixture of two gradients: one counts every label the same, one every piece of the batch.

    `scale` is the length of the step over that of the mixture. `labels` is the share of the first gradient: 1 if the
    loss is the mean over all labels, 0 if it is the mean of the pieces' means. `rest` is the share of the step that
    neither gradient explains. `loss` is the same mixture of both losses, in nats.
    """

    scale: float
    labels: float
    rest: float
    loss: float

    def measured(self, found: float) -> Iterator[Value]:
        """Yield the numbers, bounded by those of a step on the whole batch; `found` is the logged loss."""
        yield about_one("step_ratio", "length of the step over the expected one", self.scale, 1e-4, FLOAT32)
        title = "share of the step in which each label counts the same"
        yield about_one("label_share", title, self.labels, 1e-4, FLOAT32)
        title = "share of the step that is no mean of the gradients"
        yield value("residual_share", self.rest, title, at_most=1e-5, reason=FLOAT32)
        yield about_one("loss_ratio", "logged loss over the expected one", found / self.loss, 1e-4, ROUNDED)


def mixture(model: Any, step: torch.Tensor, data: Rows, pieces: Sequence[Sequence[int]]) -> Mixture:
    """Decompose a step of plain gradient descent, at the learning rate 1, on these pieces of the rows."""
    import torch

    of_labels = torch.cat([losses(model, data.batch(piece)) for piece in pieces]).mean()
    of_pieces = torch.stack([losses(model, data.batch(piece)).mean() for piece in pieces]).mean()
    both = torch.stack([gradient(model, of_labels), gradient(model, of_pieces)], 1).nan_to_num(0.0)
    parts = torch.linalg.lstsq(both, step[:, None]).solution[:, 0]
    scale = float(parts.sum())
    labels = float(parts[0]) / scale
    rest = float((step - both @ parts).norm() / step.norm())
    return Mixture(scale, labels, rest, labels * float(of_labels) + (1 - labels) * float(of_pieces))


def about_one(slug: str, title: str, found: float, within: float, reason: str) -> Value:
    """Return a ratio that must be 1."""
    return value(slug, found, title, at_least=1 - within, at_most=1 + within, reason=reason)
