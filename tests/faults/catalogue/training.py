"""Faults of the training: its settings, the optimiser, the loss that is descended on, and the batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.guide import train
from tests.faults.case import Case
from tests.faults.catalogue.planting import (
    before_steps,
    change_model,
    change_settings,
    change_training_loss,
    train_with,
    within,
)
from tests.faults.fault import Severity, fault, graded

__all__: list[str] = []


# loss: rates and schedules


@graded(
    "loss",
    Severity.SUBTLE,
    sizes=(1e-9, 1e-5, 1e-3, 0.01, 0.1, 1.0, 9.0),
    required=(0.01, 0.1, 1.0, 9.0),
    unit="times 2e-5 too much",
)
def learning_rate_too_high(case: Case, relative: float) -> None:
    """A user mistypes the learning rate."""
    change_settings(case, lambda guide: {"learning_rate": guide.learning_rate * (1 + relative)})


@fault("loss", Severity.SUBTLE)
def schedule_constant(case: Case) -> None:
    """A release changes the default schedule, so that the learning rate no longer falls."""
    train_with(case, lr_scheduler_type="constant")


@fault("loss", Severity.SUBTLE)
def schedule_cosine(case: Case) -> None:
    """A user takes the cosine schedule over from another script."""
    train_with(case, lr_scheduler_type="cosine")


@fault("loss", Severity.SUBTLE)
def warmup_added(case: Case) -> None:
    """A release warms the learning rate up in the first steps, unasked."""
    train_with(case, warmup_steps=2)


@fault("loss", Severity.SUBTLE)
def schedule_too_long(case: Case) -> None:
    """A script counts the steps of the schedule before the rows are grouped, so that the rate falls too slowly."""
    case.wrap(
        Trainer,
        "create_scheduler",
        lambda original: lambda self, num_training_steps, **rest: original(self, 3 * num_training_steps, **rest),
    )


# loss: the optimiser


@fault("loss", Severity.SUBTLE)
def weight_decay_lost(case: Case) -> None:
    """A release forgets to hand the weight decay to the optimiser."""
    change_settings(case, lambda guide: {"weight_decay": 0.0})


@graded(
    "loss",
    Severity.SUBTLE,
    sizes=(1e-6, 1e-4, 1e-3, 0.01, 0.09, 0.99),
    required=(0.09, 0.99),
    unit="above 0.01",
)
def weight_decay_too_strong(case: Case, above: float) -> None:
    """A user takes the weight decay of another recipe."""
    change_settings(case, lambda guide: {"weight_decay": guide.weight_decay + above})


@fault("loss", Severity.SUBTLE)
def weight_decay_on_everything(case: Case) -> None:
    """A release that knows biases and norms by other names lets them decay as well."""
    case.set(Trainer, "get_decay_parameter_names", lambda self, model: [name for name, _ in model.named_parameters()])


@fault("loss", Severity.SUBTLE)
def weight_decay_through_the_gradient(case: Case) -> None:
    """A release takes Adam with L2 for AdamW, whose decay does not pass through the moments."""

    def add(optimiser: Any, parameters: list[torch.Tensor], done: int) -> None:
        for group in optimiser.param_groups:
            decay = group.setdefault("l2", group["weight_decay"])
            group["weight_decay"] = 0.0
            for each in group["params"]:
                if each.grad is not None:
                    each.grad.add_(each.detach(), alpha=decay)

    before_steps(case, add)


@fault("loss", Severity.SUBTLE)
def second_moment_forgets_faster(case: Case) -> None:
    """A user copies the second beta of RoBERTa's pretraining."""
    train_with(case, adam_beta2=0.98)


@fault("loss", Severity.SUBTLE)
def epsilon_of_pretraining(case: Case) -> None:
    """A user copies the epsilon of RoBERTa's pretraining."""
    train_with(case, adam_epsilon=1e-6)


@fault("loss", Severity.SUBTLE)
def no_bias_correction(case: Case) -> None:
    """A release takes BERT's own Adam, which does not correct the moments of the first steps."""

    def start_late(optimiser: Any, parameters: list[torch.Tensor], done: int) -> None:
        for each in parameters if done == 0 else ():
            zeros = torch.zeros_like(each)
            optimiser.state[each] = {"step": torch.tensor(1e6), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    before_steps(case, start_late)


@fault("loss", Severity.SERIOUS)
def another_optimiser(case: Case) -> None:
    """A release changes the default optimiser to Adafactor."""
    train_with(case, optim="adafactor")


@fault("loss", Severity.SUBTLE)
def clipping_off(case: Case) -> None:
    """A user switches gradient clipping off."""
    train_with(case, max_grad_norm=0.0)


@fault("loss", Severity.SUBTLE)
def clipping_too_tight(case: Case) -> None:
    """A user clips gradients at a tenth."""
    train_with(case, max_grad_norm=0.1)


@fault("loss", Severity.SERIOUS)
def gradients_never_zeroed(case: Case) -> None:
    """A training loop of one's own forgets zero_grad, so that gradients pile up."""
    case.set(torch.nn.Module, "zero_grad", lambda self, set_to_none=True: None)


@fault("loss", Severity.SUBTLE)
def first_step_skipped(case: Case) -> None:
    """A scaler for half precision skips the first step to find its scale, while the schedule goes on."""
    before_steps(case, lambda optimiser, parameters, done: _drop_gradients(parameters if done == 0 else []))


@fault("loss", Severity.FATAL)
def optimiser_of_another_model(case: Case) -> None:
    """A script makes the model anew after the optimiser, which then steps on weights that nobody uses."""
    before_steps(case, lambda optimiser, parameters, done: _drop_gradients(parameters))


def _drop_gradients(parameters: list[torch.Tensor]) -> None:
    for each in parameters:
        each.grad = None


@graded(
    "loss",
    Severity.SUBTLE,
    sizes=(1e-8, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0),
    required=(0.1, 1.0),
    unit="of the gradient",
)
def gradient_noise(case: Case, relative: float) -> None:
    """A reduction in low precision leaves noise on the gradients."""
    generator = torch.Generator().manual_seed(0)

    def add(optimiser: Any, parameters: list[torch.Tensor], done: int) -> None:
        for each in parameters:
            assert each.grad is not None
            noise = torch.randn(each.grad.shape, generator=generator)
            each.grad.add_(noise, alpha=relative * float(each.grad.norm()) / math.sqrt(each.grad.numel()))

    before_steps(case, add)


# loss: what is descended on


@graded(
    "loss",
    Severity.SUBTLE,
    sizes=(1e-8, 1e-5, 1e-4, 1e-3, 0.01, 0.1),
    required=(0.01, 0.1),
    unit="of the probability",
)
def label_smoothing(case: Case, share: float) -> None:
    """A release smooths the labels, unasked."""

    def smoothed(loss: torch.Tensor, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        wanted = logits[labels != IGNORE_INDEX]
        return (1 - share) * loss - share * wanted.log_softmax(-1).mean()

    change_training_loss(case, smoothed)


@fault("loss", Severity.SERIOUS)
def gradient_of_the_sum(case: Case) -> None:
    """A training loop of one's own sums the loss over the batch, and clipping sees other gradients."""
    change_training_loss(case, lambda loss, logits, labels: loss * (labels != IGNORE_INDEX).sum())


@fault("loss", Severity.SUBTLE)
def gradient_of_the_mean_over_all(case: Case) -> None:
    """A training loop of one's own divides the loss by all positions."""
    change_training_loss(case, lambda loss, logits, labels: loss * (labels != IGNORE_INDEX).float().mean())


@fault("loss", Severity.SERIOUS)
def trained_in_bfloat16(case: Case) -> None:
    """A launcher's default of mixed precision is taken over, unseen."""
    within(case, Trainer, "training_step", lambda: torch.autocast("cpu", torch.bfloat16))


@fault("loss", Severity.SUBTLE)
def embeddings_frozen(case: Case) -> None:
    """A script freezes the embeddings to save memory."""
    change_model(case, lambda model: _freeze(model, "embedding"))


@fault("loss", Severity.SUBTLE)
def head_frozen(case: Case) -> None:
    """A script that freezes all but the encoder leaves the head as it was."""
    change_model(case, lambda model: _freeze(model, "head"))


def _freeze(model: Any, part: str) -> None:
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.requires_grad_(False)


@fault("loss", Severity.SUBTLE)
def dropout_off_in_training(case: Case) -> None:
    """A model that was left in evaluation mode is trained without dropout."""

    def without(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    change_model(case, without)


# loss: batches and steps


@fault("loss", Severity.SERIOUS)
def batches_not_shuffled(case: Case) -> None:
    """A release or a sampler of one's own takes the training rows in their order."""
    train_with(case, train_sampling_strategy="sequential")


class _Shuffled(Sampler[int]):
    """Draws an order each time, or `once`. It is no RandomSampler: accelerate would give that one its own seed."""

    def __init__(self, rows: Any, *, once: bool = False) -> None:
        self.rows, self.once = rows, once
        self.order: list[int] = []
        self.generator = torch.Generator()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        if not (self.once and self.order):
            self.order = torch.randperm(len(self.rows), generator=self.generator).tolist()
        return iter(self.order)


@fault("loss", Severity.SUBTLE)
def batches_unseeded(case: Case) -> None:
    """A sampler of one's own is seeded by the operating system."""

    def sampler(self: Any, rows: Any = None) -> Any:
        shuffled = _Shuffled(self.train_dataset if rows is None else rows)
        shuffled.generator.seed()
        return shuffled

    case.set(Trainer, "_get_train_sampler", sampler)


@fault("loss", Severity.SUBTLE)
def one_order_for_all_epochs(case: Case) -> None:
    """A sampler of one's own shuffles once and gives all epochs the same order."""

    def sampler(self: Any, rows: Any = None) -> Any:
        shuffled = _Shuffled(self.train_dataset if rows is None else rows, once=True)
        shuffled.generator.manual_seed(self.args.seed)
        return shuffled

    case.set(Trainer, "_get_train_sampler", sampler)


@fault("loss", Severity.SUBTLE)
def last_training_batch_dropped(case: Case) -> None:
    """A release drops the last, smaller batch of an epoch unless it is told not to."""

    def make(original: Any) -> Any:
        def after_init(self: Any) -> None:
            self.dataloader_drop_last = True
            original(self)

        return after_init

    case.wrap(TrainingArguments, "__post_init__", make)


@fault("loss", Severity.SERIOUS)
def batch_twice_as_large(case: Case) -> None:
    """A second device appears, and the batch size that is given per device doubles."""
    train_with(case, per_device_train_batch_size=16)


@fault("loss", Severity.SERIOUS)
def two_batches_accumulated(case: Case) -> None:
    """A user accumulates gradients over two batches, and takes half the steps."""
    train_with(case, gradient_accumulation_steps=2)


@fault("loss", Severity.SERIOUS)
def accumulated_gradients_divided_twice(case: Case) -> None:
    """A release divides accumulated losses by the square of their number; none at all is what 5.23 does already."""

    def make(original: Any) -> Any:
        def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            loss = original(self, model, *args, **kwargs)
            return loss / self.args.gradient_accumulation_steps**2 if model.training else loss

        return compute_loss

    case.wrap(Trainer, "compute_loss", make)


@fault("loss", Severity.SERIOUS)
def half_of_the_epochs(case: Case) -> None:
    """A run that is taken for finished stops at half of its epochs."""
    change_settings(case, lambda guide: {"num_train_epochs": guide.num_train_epochs / 2})


@fault("loss", Severity.SERIOUS)
def other_seed(case: Case) -> None:
    """A release changes the default seed of the training arguments."""
    train_with(case, seed=0)


@fault("loss", Severity.FATAL)
def trained_on_the_test_rows(case: Case) -> None:
    """A script hands Trainer the two splits in the wrong order."""
    case.wrap(
        train,
        "trainer",
        lambda original: (
            lambda model, arguments, rows, *args, **kwargs: original(
                model, arguments, {"train": rows["test"], "test": rows["train"]}, *args, **kwargs
            )
        ),
    )
