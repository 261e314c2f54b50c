"""Faults of the evaluation, and of filling the mask with what was trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer
from transformers.pipelines.fill_mask import FillMaskPipeline

from mlmrepro.config import EMBEDDED
from mlmrepro.guide import evaluate, fill_mask, train
from tests.faults.case import Case
from tests.faults.catalogue.planting import (
    change_eval_loss,
    change_logits,
    change_predictions,
    eval_loss_of_batches,
    within,
)
from tests.faults.fault import Severity, fault, graded

__all__: list[str] = []


# evaluation: how it is evaluated


@fault("evaluation", Severity.SUBTLE)
def evaluation_seeded(case: Case) -> None:
    """A user seeds the evaluation so that all of them have equal masks, which the guide does not."""

    @contextmanager
    def seeded() -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield

    within(case, Trainer, "evaluate", seeded)


@fault("evaluation", Severity.SERIOUS)
def starting_model_evaluated(case: Case) -> None:
    """A script keeps a reference to the weights of before the training and evaluates those."""

    def keep(trainer: Any) -> Any:
        trainer.weights_before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        return trainer

    def make(original: Any) -> Any:
        def evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
            now = {name: weight.clone() for name, weight in self.model.state_dict().items()}
            self.model.load_state_dict(getattr(self, "weights_before", now))
            try:
                return original(self, *args, **kwargs)
            finally:
                self.model.load_state_dict(now)

        return evaluate

    case.after(train, "trainer", keep)
    case.wrap(Trainer, "evaluate", make)


@graded(
    "evaluation",
    Severity.SERIOUS,
    sizes=(1e-9, 1e-6, 1e-4, 1e-3, 0.01, 0.1),
    required=(0.01, 0.1),
    unit="of the activations",
)
def dropout_in_the_evaluation(case: Case, share: float) -> None:
    """An evaluation loop of one's own forgets evaluation mode."""

    def make(original: Any) -> Any:
        def prediction_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            layers = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
            before = [layer.p for layer in layers]
            for layer in layers:
                layer.train()
                layer.p = share
            try:
                return original(self, model, *args, **kwargs)
            finally:
                for layer, p in zip(layers, before, strict=True):
                    layer.eval()
                    layer.p = p

        return prediction_step

    case.wrap(Trainer, "prediction_step", make)


@fault("evaluation", Severity.SUBTLE)
def evaluated_in_bfloat16(case: Case) -> None:
    """A launcher's default of mixed precision is taken over for the evaluation."""
    within(case, Trainer, "prediction_step", lambda: torch.autocast("cpu", torch.bfloat16))


@fault("evaluation", Severity.SUBTLE)
def last_batch_counts_in_full(case: Case) -> None:
    """A loop of one's own averages over batches, of which the last is smaller."""
    eval_loss_of_batches(case, statistics.fmean)


@fault("evaluation", Severity.SERIOUS)
def best_batch_reported(case: Case) -> None:
    """A running minimum that was meant for epochs is taken over the batches."""
    eval_loss_of_batches(case, min)


@fault("evaluation", Severity.FATAL)
def loss_of_the_last_batch_reported(case: Case) -> None:
    """A loop of one's own overwrites the loss in place of adding it up."""
    eval_loss_of_batches(case, lambda losses: losses[-1])


# evaluation: what is reported


@graded(
    "evaluation",
    Severity.SUBTLE,
    sizes=(1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1),
    required=(1e-3, 0.01, 0.1),
    unit="nats too high",
)
def eval_loss_off(case: Case, nats: float) -> None:
    """A release rounds or adds up the evaluation's loss in another way."""
    change_eval_loss(case, lambda loss: loss + nats)


@fault("evaluation", Severity.SUBTLE)
def eval_loss_rounded(case: Case) -> None:
    """A release rounds the loss to two decimals before the perplexity is made of it."""
    change_eval_loss(case, lambda loss: round(loss, 2))


@fault("evaluation", Severity.SERIOUS)
def eval_loss_in_bits(case: Case) -> None:
    """A release reports the loss in bits."""
    change_eval_loss(case, lambda loss: loss / math.log(2))


@fault("evaluation", Severity.SERIOUS)
def eval_loss_smoothed(case: Case) -> None:
    """A dashboard's smoothed loss is taken for the last one."""
    kept: list[float] = []

    def smoothed(loss: float) -> float:
        kept.append(loss if not kept else 0.6 * kept[-1] + 0.4 * loss)
        return kept[-1]

    change_eval_loss(case, smoothed)


@fault("evaluation", Severity.SERIOUS)
def first_evaluation_repeated(case: Case) -> None:
    """A script caches the metrics of a Trainer, and gives those of the first evaluation ever after."""

    def make(original: Any) -> Any:
        def evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not hasattr(self, "first_metrics"):
                self.first_metrics = original(self, *args, **kwargs)
            return dict(self.first_metrics)

        return evaluate

    case.wrap(Trainer, "evaluate", make)


@fault("evaluation", Severity.SERIOUS)
def perplexity_to_base_two(case: Case) -> None:
    """A formula for bits is used on nats."""
    case.set(evaluate, "perplexity", lambda eval_loss: 2.0**eval_loss)


@fault("evaluation", Severity.SUBTLE)
def perplexity_capped(case: Case) -> None:
    """A line that guards against overflow caps the loss at a value that models reach."""
    case.wrap(evaluate, "perplexity", lambda original: lambda eval_loss: original(min(eval_loss, 2.0)))


# fill_mask: the pipeline


@fault("fill_mask", Severity.SERIOUS)
def ranking_reversed(case: Case) -> None:
    """A release sorts the predictions by ascending score."""
    change_predictions(case, lambda rows: rows[::-1])


@fault("fill_mask", Severity.FATAL)
def least_likely_first(case: Case) -> None:
    """A release takes the smallest logits in place of the largest."""
    change_logits(case, lambda logits, tokenizer: -logits)


@fault("fill_mask", Severity.SUBTLE)
def log_probabilities_for_scores(case: Case) -> None:
    """A release gives logarithms of probabilities as scores."""
    change_predictions(case, lambda rows: [row | {"score": math.log(max(row["score"], 1e-30))} for row in rows])


@fault("fill_mask", Severity.SUBTLE)
def scores_of_the_best_sum_to_one(case: Case) -> None:
    """A release takes the softmax over the predictions that are shown, not over the vocabulary."""

    def shared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        total = sum(row["score"] for row in rows)
        return [row | {"score": row["score"] / total} for row in rows]

    change_predictions(case, shared)


@fault("fill_mask", Severity.SUBTLE)
def scores_rounded(case: Case) -> None:
    """A release rounds scores to two decimals."""
    change_predictions(case, lambda rows: [row | {"score": round(row["score"], 2)} for row in rows])


@graded(
    "fill_mask",
    Severity.SUBTLE,
    sizes=(1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.5),
    required=(0.01, 0.1, 0.5),
    unit="above 1",
)
def temperature_off(case: Case, above: float) -> None:
    """A setting of text generation leaks into the pipeline as a temperature."""
    change_logits(case, lambda logits, tokenizer: logits / (1 + above))


@fault("fill_mask", Severity.FATAL)
def position_before_the_mask_read(case: Case) -> None:
    """A release looks the mask up without the token in front of the text, and reads the position before it."""
    change_logits(case, lambda logits, tokenizer: logits.roll(1, 1))


@fault("fill_mask", Severity.SERIOUS)
def padding_token_first(case: Case) -> None:
    """A release fills padded columns of the vocabulary with large numbers."""

    def raised(logits: torch.Tensor, tokenizer: Any) -> torch.Tensor:
        logits[..., 1] = logits.max() + 1  # <pad>
        return logits

    change_logits(case, raised)


@fault("fill_mask", Severity.SUBTLE)
def words_inside_words_excluded(case: Case) -> None:
    """A release suppresses tokens that do not begin a word."""

    def suppressed(logits: torch.Tensor, tokenizer: Any) -> torch.Tensor:
        inner = [token for text, token in tokenizer.get_vocab().items() if not text.startswith("Ġ")]
        logits[..., inner] = -torch.inf
        return logits

    change_logits(case, suppressed)


@fault("fill_mask", Severity.SUBTLE)
def one_prediction_too_few(case: Case) -> None:
    """A release counts top_k from zero."""
    change_predictions(case, lambda rows: rows[:-1])


@fault("fill_mask", Severity.SUBTLE)
def token_text_stripped(case: Case) -> None:
    """A release strips the space that belongs to the predicted token."""
    change_predictions(case, lambda rows: [row | {"token_str": row["token_str"].strip()} for row in rows])


@fault("fill_mask", Severity.SUBTLE)
def special_tokens_in_the_sequence(case: Case) -> None:
    """A release leaves the special tokens in the filled sentence."""
    change_predictions(case, lambda rows: [row | {"sequence": f"<s>{row['sequence']}</s>"} for row in rows])


@fault("fill_mask", Severity.SERIOUS)
def dropout_in_the_pipeline(case: Case) -> None:
    """A release of the pipeline forgets evaluation mode."""

    def make(original: Any) -> Any:
        def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.model.train()
            return original(self, *args, **kwargs)

        return _forward

    case.wrap(FillMaskPipeline, "_forward", make)


@fault("fill_mask", Severity.SERIOUS)
def starting_checkpoint_filled(case: Case) -> None:
    """A user copies the line with the pipeline and leaves the name of the starting checkpoint in it."""
    start = str(EMBEDDED / "checkpoint")
    case.wrap(
        fill_mask,
        "with_pipeline",
        lambda original: lambda checkpoint, *args, **parts: original(start, *args, **parts),
    )


@fault("fill_mask", Severity.SERIOUS)
def targets_ignored(case: Case) -> None:
    """A release loses the targets on their way to the pipeline's last step."""
    case.wrap(
        FillMaskPipeline,
        "postprocess",
        lambda original: lambda self, outputs, top_k=5, target_ids=None: original(self, outputs, top_k),
    )


@fault("fill_mask", Severity.SERIOUS)
def first_of_several_masks_only(case: Case) -> None:
    """A release gives the predictions of the first mask and forgets the others."""
    case.after(
        FillMaskPipeline,
        "postprocess",
        lambda rows: rows[0] if rows and isinstance(rows[0], list) else rows,
    )


@fault("fill_mask", Severity.FATAL)
def answers_of_a_list_in_reverse(case: Case) -> None:
    """A release sorts a list of prompts by length for speed, and gives the answers back in that order."""

    def make(original: Any) -> Any:
        def __call__(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(self, inputs, *args, **kwargs)
            return found[::-1] if isinstance(inputs, list) and len(inputs) > 1 else found

        return __call__

    case.wrap(FillMaskPipeline, "__call__", make)


# fill_mask: by hand


def _by_hand(case: Case, change: Any) -> None:
    case.after(fill_mask, "by_hand", lambda rows: [change(row) for row in rows])


@fault("fill_mask", Severity.SERIOUS)
def softmax_over_the_wrong_dimension(case: Case) -> None:
    """A reader types the guide's lines with the softmax over the masks, of which there is one."""
    _by_hand(case, lambda row: row | {"score": 1.0})


@fault("fill_mask", Severity.FATAL)
def first_token_read_for_the_mask(case: Case) -> None:
    """A reader forgets the index of the mask and takes the logits of the first token."""

    def make(original: Any) -> Any:
        def by_hand(model: Any, tokenizer: Any, prompt: str, top_k: int) -> Any:
            with torch.no_grad():
                logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, 0]
            best = logits.softmax(-1).topk(top_k)
            rows = original(model, tokenizer, prompt, top_k)
            found = zip(rows, best.values.tolist(), best.indices.tolist(), strict=True)
            return [row | {"score": score, "token": token} for row, score, token in found]

        return by_hand

    case.wrap(fill_mask, "by_hand", make)
