"""What many faults of the catalogue share: how each step of the guide, or the library below it, is got at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from datasets import DatasetDict
from transformers import DataCollatorForLanguageModeling, Trainer
from transformers.pipelines.fill_mask import FillMaskPipeline

from mlmrepro.guide import blocks, collate, dataset, tokens, train
from tests.faults.case import Case

__all__ = [
    "before_blocks",
    "before_steps",
    "call_tokenizer_with",
    "change_answers",
    "change_batches",
    "change_collator",
    "change_encoded",
    "change_eval_loss",
    "change_logits",
    "change_model",
    "change_parts",
    "change_predictions",
    "change_settings",
    "change_training_loss",
    "change_weight",
    "change_weights",
    "choose_rows",
    "collate_with",
    "configure",
    "cut_blocks",
    "draw_masks",
    "draw_normal",
    "eval_loss_of_batches",
    "join_answers",
    "order_vocabulary",
    "train_with",
    "within",
]

Columns = dict[str, list[list[int]]]
Masked = tuple[torch.Tensor, torch.Tensor]  # ids and labels, both (rows, tokens)

_SPECIAL = (0, 1, 2, 3, 15_999)  # ids of the embedded tokenizer's special tokens


def within(case: Case, owner: Any, name: str, context: Callable[[], AbstractContextManager]) -> None:
    """Let a function or method be called inside `context()`."""

    def make(original: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            with context():
                return original(*args, **kwargs)

        return called

    case.wrap(owner, name, make)


# The data


def choose_rows(case: Case, choose: Callable[[int], list[int]]) -> None:
    """Load the rows that `choose(number of rows)` names."""
    case.after(dataset, "load", lambda rows: rows.select(choose(len(rows))))


def change_parts(case: Case, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
    """Let the split give other training and test rows."""

    def changed(parts: Any) -> DatasetDict:
        train_rows, test_rows = change(parts["train"], parts["test"])
        return DatasetDict({"train": train_rows, "test": test_rows})

    case.after(dataset, "split", changed)


def change_answers(case: Case, change: Callable[[list[str]], list[str]]) -> None:
    """Change the answers of every row when they are flattened."""
    case.after(dataset, "flatten", lambda flat: flat.map(lambda row: {"answers.text": change(row["answers.text"])}))


# Token ids and blocks


def join_answers(case: Case, join: Callable[[list[str], str], str]) -> None:
    """Let `join(answers, separator)` make the text that the tokenizer is given."""

    def make(original: Any) -> Any:
        def preprocess_function(tokenizer: Any, column: str, separator: str) -> Any:
            inner = original(tokenizer, column, separator)
            return lambda examples: inner({column: [[join(list(texts), separator)] for texts in examples[column]]})

        return preprocess_function

    case.wrap(tokens, "preprocess_function", make)


def call_tokenizer_with(case: Case, **options: Any) -> None:
    """Give the tokenizer options beside the text."""

    def preprocess_function(tokenizer: Any, column: str, separator: str) -> Any:
        return lambda examples: tokenizer([separator.join(texts) for texts in examples[column]], **options)

    case.set(tokens, "preprocess_function", preprocess_function)


def change_encoded(case: Case, change: Callable[[Columns], Columns]) -> None:
    """Change the columns that the tokenizer gives."""

    def make(original: Any) -> Any:
        def preprocess_function(*args: Any) -> Any:
            inner = original(*args)
            return lambda examples: change(dict(inner(examples)))

        return preprocess_function

    case.wrap(tokens, "preprocess_function", make)


def order_vocabulary(case: Case, order: Callable[[list[str]], list[str]]) -> None:
    """Give the ordinary tokens of tokenizer.json the ids of another order."""

    def edit(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        ordinary = sorted((t for t in vocabulary if vocabulary[t] not in _SPECIAL), key=vocabulary.__getitem__)
        ids = [vocabulary[token] for token in ordinary]
        vocabulary.update(zip(order(list(ordinary)), ids, strict=True))

    case.edit_json("tokenizer.json", edit)


def before_blocks(case: Case, change: Callable[[Columns], Columns]) -> None:
    """Change the columns of a batch before it is cut into blocks."""
    case.wrap(
        blocks,
        "group_texts",
        lambda original: (
            lambda examples, block_size: original(
                change({name: list(examples[name]) for name in examples.keys()}), block_size
            )
        ),
    )


def cut_blocks(case: Case, cuts: Callable[[int, int], list[tuple[int, int]]]) -> None:
    """Concatenate as the guide does, and cut at the (start, stop) of `cuts(number of tokens, block size)`."""

    def group_texts(examples: Any, block_size: int) -> Any:
        joined = {name: [token for row in examples[name] for token in row] for name in examples.keys()}
        places = cuts(len(next(iter(joined.values()))), block_size)
        return {name: [column[start:stop] for start, stop in places] for name, column in joined.items()}

    case.set(blocks, "group_texts", group_texts)


# Masked batches


def change_collator(case: Case, change: Callable[[Any], None]) -> None:
    """Change the guide's collator where it is made."""

    def changed(collator: Any) -> Any:
        change(collator)
        return collator

    case.after(collate, "data_collator", changed)


def collate_with(case: Case, **values: Any) -> None:
    """Give the guide's collator other settings."""

    def change(collator: Any) -> None:
        for name, value in values.items():
            getattr(collator, name)
            setattr(collator, name, value)

    change_collator(case, change)


def draw_masks(case: Case, draw: Callable[[Any, torch.Tensor, Callable[[torch.Tensor], Masked]], Masked]) -> None:
    """Let `draw(collator, ids, original)` give the ids and labels of a batch, in the library's collator."""

    def make(original: Any) -> Any:
        def torch_mask_tokens(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Masked:
            return draw(self, inputs, lambda ids: original(self, ids.clone(), *args, **kwargs))

        return torch_mask_tokens

    case.wrap(DataCollatorForLanguageModeling, "torch_mask_tokens", make)


def change_batches(case: Case, change: Callable[[Any, Any], None]) -> None:
    """Let `change(collator, batch)` change what the library's collator gives."""

    def make(original: Any) -> Any:
        def torch_call(self: Any, examples: Any) -> Any:
            batch = original(self, examples)
            change(self, batch)
            return batch

        return torch_call

    case.wrap(DataCollatorForLanguageModeling, "torch_call", make)


# The model


def change_weights(case: Case, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Change every tensor, in single precision: the file's half precision would swallow a small change."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(tensors):
            tensors[name] = change(name, tensors[name].float()).contiguous()

    case.edit_weights(edit)


def change_weight(case: Case, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the tensors whose names hold `part`, in the precision of the file."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        (*names,) = (name for name in tensors if part in name)
        if not names:
            raise KeyError(part)
        for name in names:
            tensors[name] = change(tensors[name]).to(tensors[name].dtype).contiguous()

    case.edit_weights(edit)


def configure(case: Case, **values: Any) -> None:
    """Let config.json say something else."""
    case.edit_json("config.json", lambda content: content.update(values))


def draw_normal(shape: Any, seed: int = 0) -> torch.Tensor:
    """Return numbers of a standard normal distribution; the global generators are not touched."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The training


def train_with(case: Case, **values: Any) -> None:
    """Train with other arguments, which only the library reads."""

    def changed(arguments: Any) -> Any:
        for name, value in values.items():
            getattr(arguments, name)
            setattr(arguments, name, value)
        return arguments

    case.after(train, "training_arguments", changed)


def change_settings(case: Case, change: Callable[[Any], dict[str, Any]]) -> None:
    """Train with other settings of the guide than the record says."""

    def make(original: Any) -> Any:
        return lambda guide, *args, **kwargs: original(dataclasses.replace(guide, **change(guide)), *args, **kwargs)

    case.wrap(train, "training_arguments", make)


def change_model(case: Case, change: Callable[[Any], None]) -> None:
    """Change the model that a Trainer is made with."""

    def changed(trainer: Any) -> Any:
        change(trainer.model)
        return trainer

    case.after(train, "trainer", changed)


def before_steps(case: Case, change: Callable[[Any, list[torch.Tensor], int], None]) -> None:
    """Let `change(optimiser, parameters with a gradient, steps done)` come before each step of Trainer's optimiser."""

    def hooked(optimiser: Any) -> Any:
        done = 0

        def hook(*_: Any) -> None:
            nonlocal done
            parameters = [each for group in optimiser.param_groups for each in group["params"]]
            change(optimiser, [each for each in parameters if each.grad is not None], done)
            done += 1

        optimiser.register_step_pre_hook(hook)
        return optimiser

    case.after(Trainer, "create_optimizer", hooked)


def change_training_loss(case: Case, change: Callable[[torch.Tensor, Any, torch.Tensor], torch.Tensor]) -> None:
    """Let `change(loss, logits, labels)` be what a training step descends on."""

    def make(original: Any) -> Any:
        def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            if not model.training:
                return original(self, model, inputs, return_outputs, **kwargs)
            loss, outputs = original(self, model, inputs, True, **kwargs)
            loss = change(loss, outputs["logits"], inputs["labels"])
            return (loss, outputs) if return_outputs else loss

        return compute_loss

    case.wrap(Trainer, "compute_loss", make)


# The evaluation


def change_eval_loss(case: Case, change: Callable[[float], float]) -> None:
    """Let Trainer report another loss than it measured."""
    case.after(Trainer, "evaluate", lambda metrics: metrics | {"eval_loss": change(metrics["eval_loss"])})


def eval_loss_of_batches(case: Case, reduce: Callable[[list[float]], float]) -> None:
    """Let `reduce(losses of the batches)` be the loss that Trainer reports."""
    losses: list[float] = []

    def keep(step: tuple[Any, Any, Any]) -> Any:
        losses.append(float(step[0]))
        return step

    def make(original: Any) -> Any:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            losses.clear()
            metrics = original(*args, **kwargs)
            return metrics | {"eval_loss": reduce(losses)}

        return evaluate

    case.after(Trainer, "prediction_step", keep)
    case.wrap(Trainer, "evaluate", make)


# The filled mask


def change_predictions(case: Case, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the pipeline's predictions for each mask, best first."""

    def changed(rows: list[Any]) -> Any:
        return [change(each) for each in rows] if rows and isinstance(rows[0], list) else change(rows)

    case.after(FillMaskPipeline, "postprocess", changed)


def change_logits(case: Case, change: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
    """Let `change(logits, tokenizer)` be what the pipeline makes its predictions from; (1, tokens, vocabulary)."""

    def make(original: Any) -> Any:
        def postprocess(self: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
            outputs["logits"] = change(outputs["logits"].clone(), self.tokenizer)
            return original(self, outputs, *args, **kwargs)

        return postprocess

    case.wrap(FillMaskPipeline, "postprocess", make)
