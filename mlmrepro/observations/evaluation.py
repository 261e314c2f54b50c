"""Evaluation during training: what `Trainer.evaluate` averages, draws and leaves unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlmrepro.observations.observation import observation, value
from mlmrepro.observations.plain_training import FLOAT32
from mlmrepro.observations.result import Value
from mlmrepro.observations.small_training import build, flat, losses, rows, small_model, train
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.training import TRAINER

__all__ = ["eval_loss", "evaluating", "masks_of_evaluations"]


@observation(
    "evaluation",
    source=f"{TRAINER}: evaluate",
    cause="evaluation updates weights, applies dropout, or changes the mode, the random generators or the row order",
)
def evaluating(subject: Subject) -> Iterator[Value]:
    """Evaluation changes no weight, applies no dropout, and does not affect the training that follows."""
    model, runs = small_model(subject, dropout=0.5), []
    trainer, before = build(subject, model, rows(subject, 5), per_device_eval_batch_size=2), flat(model)
    apart = trainer.evaluate()["eval_loss"] - trainer.evaluate()["eval_loss"]
    yield value("loss_difference", apart, "difference of two evaluations, with dropout 0.5", equals=0.0, unit="nats")
    change = float((flat(model) - before).abs().max())
    yield value("weight_change", change, "change of the weights", equals=0.0)
    options = {"per_device_train_batch_size": 2, "max_steps": 5}
    for when in ("no", "epoch"):
        modes: list[bool] = []
        model = small_model(subject)
        model.register_forward_pre_hook(lambda module, *_, into=modes: into.append(module.training))
        train(build(subject, model, rows(subject, 6), eval_strategy=when, **options))
        runs.append((flat(model), modes))
    (without, _), (between, modes) = runs
    change = float((without - between).abs().max())
    title = "difference of the trained weights with and without evaluations"
    yield value("trained_weight_difference", change, title, equals=0.0)
    yield value("training_steps", sum(modes), "steps in training mode", equals=5)
    yield value("evaluation_batches", len(modes) - sum(modes), "batches in evaluation mode", equals=2)


@observation(
    "evaluation",
    source="the guide, Train: evaluate() masks the test blocks in the collator, as training does",
    cause="evaluation sets a seed, or its batches are not made by the collator",
)
def masks_of_evaluations(subject: Subject) -> Iterator[Value]:
    """Each evaluation draws new masks from torch's global generator, and the same seed gives the same masks."""
    import torch
    from transformers import default_data_collator

    drawn: list[float] = []

    def collate(batch: Any) -> Any:
        drawn.append(float(torch.rand(())))
        return default_data_collator(batch)

    trainer = build(subject, small_model(subject), rows(subject, 4), per_device_eval_batch_size=2)
    trainer.data_collator = collate
    for seed in (1, None, 1):
        if seed is not None:
            torch.manual_seed(seed)
        trainer.evaluate()
    first, second, third = drawn[:2], drawn[2:4], drawn[4:]
    yield value("draws", len(drawn), "draws of three evaluations of two batches", equals=6)
    yield value("next_evaluation_same_draws", first == second, "the next evaluation draws the same", equals=False)
    yield value("same_seed_same_draws", first == third, "the same seed draws the same", equals=True)


@observation(
    "evaluation", source=TRAINER, cause="eval_loss is averaged over batches or tokens, or a batch is padded or skipped"
)
def eval_loss(subject: Subject) -> Iterator[Value]:
    """eval_loss is the mean of the batch losses, weighted by rows: an incomplete last batch counts less."""
    import torch

    model = small_model(subject, dropout=0.5)
    for count in (7, 6):
        data = rows(subject, count)
        found = build(subject, model, data, per_device_eval_batch_size=3).evaluate()["eval_loss"]
        batches = [list(range(count))[start : start + 3] for start in range(0, count, 3)]
        model.eval()
        with torch.no_grad():
            expected = sum(float(losses(model, data.batch(b)).mean()) * len(b) for b in batches) / count
        apart, title = abs(found - expected), f"difference of the loss, {count} rows in batches of 3"
        yield value(f"loss_difference_{count}_rows", apart, title, at_most=1e-4, unit="nats", reason=FLOAT32)
