"""Faults of every stage, invented when the detectors were done by someone who had not read them.

Seven more were the catalogue's own over again, and were taken out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from torch.nn.functional import cross_entropy
from transformers import Trainer, set_seed
from transformers.models.roberta import modeling_roberta
from transformers.pipelines.fill_mask import FillMaskPipeline

from mlmrepro import loading
from mlmrepro.config import IGNORE_INDEX
from mlmrepro.guide import blocks, dataset, train
from tests.faults.case import Case
from tests.faults.catalogue import planting
from tests.faults.fault import Severity, fault

__all__: list[str] = []

_BOS, _EOS, _MASK = 0, 2, 15_999  # of the embedded tokenizer

Ids = torch.Tensor  # (rows, tokens)


def _replace(case: Case, owner: Any, name: str, call: Callable[..., Any]) -> None:
    """Let `call(original, *args, **kwargs)` be what a function or method does."""
    case.wrap(owner, name, lambda original: lambda *args, **kwargs: call(original, *args, **kwargs))


@fault("dataset", Severity.SERIOUS)
def upsamples_before_splitting(case: Case) -> None:
    """Well-rated questions are repeated for balance before the split, and copies of them land in both parts."""

    def repeat(rows: Any) -> Any:
        return rows.select([*range(len(rows)), *(i for i, r in enumerate(rows) if max(r["answers"]["score"]) >= 50)])

    case.after(dataset, "load", repeat)


@fault("dataset", Severity.SUBTLE)
def seeds_the_split_with_a_string_hash(case: Case) -> None:
    """The seed of the split is hash(name), which Python salts anew in every process."""
    seed = hash("askscience") % 2**32
    case.set(dataset, "split", lambda rows, test_size: rows.train_test_split(test_size=test_size, seed=seed))


@fault("dataset", Severity.SUBTLE)
def rounds_the_test_share_down(case: Case) -> None:
    """A refactoring counts the test rows with int() where the library rounds up, and one row changes sides."""
    _replace(case, dataset, "split", lambda original, rows, test_size: original(rows, int(test_size * len(rows))))


@fault("dataset", Severity.SUBTLE)
def reads_the_file_as_latin_1(case: Case) -> None:
    """The file is opened with another machine's default encoding, and every degree sign becomes two characters."""

    def garble(row: Any) -> Any:
        return {"answers": row["answers"] | {"text": [t.encode().decode("latin-1") for t in row["answers"]["text"]]}}

    case.after(dataset, "load", lambda rows: rows.map(garble))


@fault("flatten", Severity.SUBTLE)
def takes_the_answers_of_the_row_before(case: Case) -> None:
    """The nested column is joined back with an index that is off by one, the last row's answers to the first."""

    def shifted(rows: Any) -> Any:
        texts = list(rows["answers.text"])
        return rows.map(lambda _, i: {"answers.text": texts[i - 1]}, with_indices=True)

    case.after(dataset, "flatten", lambda flat: DatasetDict({name: shifted(rows) for name, rows in flat.items()}))


@fault("flatten", Severity.SUBTLE)
def puts_the_title_among_the_answers(case: Case) -> None:
    """A loop over all columns of text takes the question's title along as if it were the first answer."""
    case.after(dataset, "flatten", lambda flat: flat.map(lambda r: {"answers.text": [r["title"], *r["answers.text"]]}))


def _set_backend(case: Case, change: Callable[[Any], None]) -> None:
    # Not in tokenizer.json, of which transformers 5 reads vocabulary and merges only.
    def changed(tokenizer: Any) -> Any:
        change(tokenizer.backend_tokenizer)
        return tokenizer

    case.after(loading, "load_tokenizer", changed)


@fault("input_ids", Severity.SERIOUS)
def takes_the_first_merge_for_a_header(case: Case) -> None:
    """A converter skips the first line of the merges as the version header, which this file does not have."""
    case.edit_json("tokenizer.json", lambda content: content["model"]["merges"].pop(0))


@fault("input_ids", Severity.SERIOUS)
def leaves_the_dropout_of_merges_on(case: Case) -> None:
    """The tokenizer is saved with the BPE dropout of its regularised training, and cuts a text anew at each call."""
    _set_backend(case, lambda backend: setattr(backend.model, "dropout", 0.05))


@fault("input_ids", Severity.SERIOUS)
def passes_ids_through_half_precision(case: Case) -> None:
    """Ids share an array with half-precision features, which holds whole numbers exactly up to 2,048 only."""
    planting.change_encoded(
        case,
        lambda new: new | {"input_ids": [np.array(ids, np.float16).astype(int).tolist() for ids in new["input_ids"]]},
    )


@fault("input_ids", Severity.SUBTLE)
def marks_special_tokens_as_padding(case: Case) -> None:
    """The inverse of the special tokens mask is returned as the attention mask: nothing attends to <s> and </s>."""

    def mark(columns: dict[str, Any]) -> dict[str, Any]:
        return columns | {"attention_mask": [[int(i not in (_BOS, _EOS)) for i in ids] for ids in columns["input_ids"]]}

    planting.change_encoded(case, mark)


@fault("blocks", Severity.FATAL)
def reshapes_in_column_order(case: Case) -> None:
    """The cut is rewritten as a reshape with the axes swapped, and each block holds every n-th token."""

    def group_texts(examples: Any, block_size: int) -> Any:
        joined = {name: [token for row in examples[name] for token in row] for name in examples.keys()}
        count = max(len(joined["input_ids"]) // block_size, 1)
        return {k: [column[i : count * block_size : count] for i in range(count)] for k, column in joined.items()}

    case.set(blocks, "group_texts", group_texts)


@fault("blocks", Severity.SUBTLE)
def reserves_room_for_special_tokens(case: Case) -> None:
    """Blocks are cut two tokens short, as in scripts that add <s> and </s> afterwards; here nobody adds them."""
    _replace(case, blocks, "group_texts", lambda original, examples, block_size: original(examples, block_size - 2))


@fault("blocks", Severity.SUBTLE)
def strips_the_ends_of_rows_before_joining(case: Case) -> None:
    """The first and last token of each row are taken for <s> and </s> and stripped, and texts run into each other."""
    planting.before_blocks(case, lambda columns: {k: [row[1:-1] for row in rows] for k, rows in columns.items()})


@fault("masked_batches", Severity.SERIOUS)
def masks_the_same_places_in_every_row(case: Case) -> None:
    """The draw has the shape of one row and is broadcast, so that a batch is masked at the same places throughout."""

    def draw(_: Any, ids: Ids, original: Any) -> tuple[Ids, Ids]:
        masked, labels = original(ids)
        masked = torch.where(masked[:1] != ids[:1], masked[:1], ids)
        return masked, torch.where(labels[:1] != IGNORE_INDEX, ids, IGNORE_INDEX)

    planting.draw_masks(case, draw)


@fault("masked_batches", Severity.SUBTLE)
def never_masks_two_neighbours(case: Case) -> None:
    """A well-meant rule drops the second of two selected neighbours, and the rate falls below the one asked for."""

    def draw(_: Any, ids: Ids, original: Any) -> tuple[Ids, Ids]:
        masked, labels = original(ids)
        drop = torch.zeros_like(ids, dtype=torch.bool)
        drop[:, 1:] = labels[:, :-1] != IGNORE_INDEX
        return torch.where(drop, ids, masked), labels.masked_fill(drop, IGNORE_INDEX)

    planting.draw_masks(case, draw)


@fault("masked_batches", Severity.SERIOUS)
def hides_masks_from_attention(case: Case) -> None:
    """Someone reads "mask" in attention_mask as the mask token, and sets it to zero there."""
    planting.change_batches(case, lambda _, batch: batch["attention_mask"].masked_fill_(batch["input_ids"] == _MASK, 0))


@fault("masked_batches", Severity.SERIOUS)
def reseeds_for_every_batch(case: Case) -> None:
    """To make batches repeatable the collator sets the global seed at each call, so that all masks are one pattern."""
    planting.draw_masks(case, lambda _, ids, original: (torch.manual_seed(0), original(ids))[1])


@fault("model", Severity.SERIOUS)
def folds_the_attention_scale_into_the_query(case: Case) -> None:
    """An export folds one over the root of the head size into the query, and the model applies it once more."""
    planting.change_weight(case, "attention.self.query", lambda tensor: tensor / math.sqrt(64))


@fault("model", Severity.FATAL)
def adds_the_residual_after_the_norm(case: Case) -> None:
    """A refactoring of the feed-forward block normalises before the residual is added in place of after it."""

    def forward(self: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states))) + input_tensor

    case.set(modeling_roberta.RobertaOutput, "forward", forward)


@fault("model", Severity.SERIOUS)
def reinitialises_the_mask_embedding(case: Case) -> None:
    """The mask token is added once more when the checkpoint is converted, and its row starts at the mean of all."""
    planting.change_weight(
        case,
        "word_embeddings",
        lambda table: table.index_copy(
            0, torch.tensor([_MASK]), table[:_MASK].float().mean(dim=0, keepdim=True).to(table.dtype)
        ),
    )


@fault("model", Severity.SUBTLE)
def merges_an_adapter_that_was_merged(case: Case) -> None:
    """A low-rank adapter is merged into one value projection a second time, which moves it by a tenth."""

    def merge(weight: torch.Tensor) -> torch.Tensor:
        delta = planting.draw_normal((256, 4)) @ planting.draw_normal((4, 256), seed=1)
        return weight.float() + 0.1 * delta * weight.float().norm() / delta.norm()

    planting.change_weight(case, "layer.2.attention.self.value.weight", merge)


@fault("loss", Severity.SERIOUS)
def steps_the_scheduler_twice(case: Case) -> None:
    """A callback steps the scheduler that the loop steps too, and the learning rate is zero half-way."""

    def create_scheduler(original: Any, self: Any, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        return original(self, max(num_training_steps // 2, 1), *args, **kwargs)  # the same rates

    _replace(case, Trainer, "create_scheduler", create_scheduler)


@fault("loss", Severity.SERIOUS)
def keeps_the_weights_in_bfloat16(case: Case) -> None:
    """Mixed precision without a master copy rounds the weights at each step, and swallows most updates."""

    def round_weights(_: Any, weights: list[torch.Tensor], done: int) -> None:
        for weight in weights:
            weight.data.copy_(weight.data.bfloat16())

    planting.before_steps(case, round_weights)


@fault("loss", Severity.SUBTLE)
def forgets_the_moments_at_each_epoch(case: Case) -> None:
    """The optimiser is made inside the loop over epochs, and Adam begins each one without its moments."""

    def evaluate(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is not None:  # there is none in the evaluation before the training
            self.optimizer.state.clear()
        return original(self, *args, **kwargs)

    _replace(case, Trainer, "evaluate", evaluate)


@fault("loss", Severity.SUBTLE)
def lets_a_loss_scaler_skip_the_first_steps(case: Case) -> None:
    """Mixed precision starts with too large a loss scale, and three steps overflow and are skipped unseen."""

    def skip(_: Any, weights: list[torch.Tensor], done: int) -> None:
        for weight in weights:
            weight.grad = weight.grad if done >= 3 else None

    planting.before_steps(case, skip)


@fault("loss", Severity.SERIOUS)
def trains_on_the_test_blocks_too(case: Case) -> None:
    """For the final run all splits are joined for training, and the test blocks are still what is reported."""

    def trainer(original: Any, model: Any, arguments: Any, datasets: Any, *args: Any, **kwargs: Any) -> Any:
        joined = concatenate_datasets([datasets["train"], datasets["test"]])
        return original(model, arguments, {"train": joined, "test": datasets["test"]}, *args, **kwargs)

    _replace(case, train, "trainer", trainer)


def _score_tokens(case: Case, score: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Let `score(logits, labels, ids)` of the masked positions be the loss of an evaluated batch."""

    def compute_loss(original: Any, self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, model, inputs, *args, **kwargs)
        if model.training or not isinstance(found, tuple):
            return found
        chosen = inputs["labels"] != IGNORE_INDEX
        loss = score(found[1]["logits"][chosen], inputs["labels"][chosen], inputs["input_ids"][chosen])
        return loss, found[1]

    _replace(case, Trainer, "compute_loss", compute_loss)


@fault("evaluation", Severity.FATAL)
def gives_probabilities_to_cross_entropy(case: Case) -> None:
    """The model's probabilities are given to a loss that expects logits, and it comes out near ln of the vocabulary."""
    _score_tokens(case, lambda logits, labels, _: cross_entropy(logits.softmax(dim=-1), labels))


@fault("evaluation", Severity.SUBTLE)
def scores_only_the_mask_tokens(case: Case) -> None:
    """The metric looks for <mask> in the input, and leaves out the fifth that was selected and not masked."""
    _score_tokens(case, lambda logits, labels, ids: cross_entropy(logits[ids == _MASK], labels[ids == _MASK]))


@fault("evaluation", Severity.SUBTLE)
def caps_the_loss_of_a_token(case: Case) -> None:
    """A guard against infinite losses clamps every token's at eight nats, which rare words do exceed."""
    _score_tokens(case, lambda logits, labels, _: cross_entropy(logits, labels, reduction="none").clamp(max=8).mean())


@fault("evaluation", Severity.SUBTLE)
def reseeds_before_each_evaluation(case: Case) -> None:
    """evaluate() sets a seed so that its masks agree, and each epoch of training after it repeats the same draws."""
    _replace(case, Trainer, "evaluate", lambda original, *args, **kw: (set_seed(0), original(*args, **kw))[1])


@fault("evaluation", Severity.SUBTLE)
def averages_perplexities_of_batches(case: Case) -> None:
    """Each batch's perplexity is taken first and then averaged, which weighs the hard batches more."""
    planting.eval_loss_of_batches(case, lambda losses: math.log(sum(map(math.exp, losses)) / len(losses)))


@fault("fill_mask", Severity.SERIOUS)
def normalises_over_the_tokens_of_the_prompt(case: Case) -> None:
    """The softmax of the pipeline is taken over the wrong axis, and each word competes with itself elsewhere."""
    planting.change_logits(case, lambda logits, _: logits.log_softmax(dim=1))


@fault("fill_mask", Severity.SERIOUS)
def attends_to_the_padding_of_the_prompt(case: Case) -> None:
    """The pipeline pads the prompt to a fixed length for a compiled model, and gives no attention mask along."""
    options = {"padding": "max_length", "max_length": 32, "return_attention_mask": False, "return_tensors": "pt"}
    case.set(FillMaskPipeline, "preprocess", lambda self, inputs, *_, **__: self.tokenizer(inputs, **options))


@fault("fill_mask", Severity.SERIOUS)
def keeps_the_space_before_the_mask(case: Case) -> None:
    """The prompt is encoded in pieces around the mask, and the space that <mask> would swallow becomes a token."""

    def preprocess(self: Any, inputs: str, *_: Any, **__: Any) -> Any:
        pieces = [self.tokenizer.encode(x, add_special_tokens=False) for x in inputs.split(self.tokenizer.mask_token)]
        ids = torch.tensor([[_BOS, *pieces[0], _MASK, *pieces[1], _EOS]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    case.set(FillMaskPipeline, "preprocess", preprocess)
