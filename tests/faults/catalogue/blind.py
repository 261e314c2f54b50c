"""Faults that the suite was once blind to, or saw at another stage than theirs."""

from __future__ import annotations

import random
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer
from transformers.models.roberta import modeling_roberta

from mlmrepro.config import IGNORE_INDEX
from tests.faults.case import Case
from tests.faults.catalogue.planting import Masked, change_predictions, draw_masks
from tests.faults.fault import Severity, fault

__all__: list[str] = []

_PAD = 1  # of the embedded tokenizer and of its model


@fault("masked_batches", Severity.SUBTLE)
def mask_rate_rises_along_the_row(case: Case) -> None:
    """A curriculum of an earlier project masks the end of a row a little more often than its beginning."""

    def draw(collator: Any, ids: torch.Tensor, original: Any) -> Masked:
        rate = collator.mlm_probability
        if rate > 0.9:  # no rate rises above 1
            return original(ids)
        collator.mlm_probability = rate * 1.04
        try:
            inputs, labels = original(ids)
        finally:
            collator.mlm_probability = rate
        kept = torch.rand(ids.shape) < torch.linspace(0.96, 1.04, ids.shape[1]) / 1.04
        return torch.where(kept, inputs, ids), labels.masked_fill(~kept, IGNORE_INDEX)

    draw_masks(case, draw)


@fault("model", Severity.SERIOUS)
def attention_mask_ignored(case: Case) -> None:
    """A release loses the attention mask on its way to the kernel, which rows without padding do not show."""

    def make(original: Any) -> Any:
        def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
            return original(self, input_ids, None, *args, **kwargs)

        return forward

    case.wrap(modeling_roberta.RobertaModel, "forward", make)


@fault("model", Severity.SERIOUS)
def positions_count_padding(case: Case) -> None:
    """A release numbers the positions from the left edge of a row, padding before the text included."""

    def positions(input_ids: torch.Tensor, padding_idx: int, past: int = 0) -> torch.Tensor:
        return (torch.arange(input_ids.shape[1]) + padding_idx + 1 + past).expand(input_ids.shape).contiguous()

    case.set(modeling_roberta.RobertaEmbeddings, "create_position_ids_from_input_ids", staticmethod(positions))


@fault("model", Severity.SUBTLE)
def matrix_products_in_tf32(case: Case) -> None:
    """A default of a release lets matrix products round their factors to the ten bits of TF32."""

    def rounded(factor: torch.Tensor) -> torch.Tensor:
        if factor.dtype != torch.float32:
            return factor
        whole = factor.detach().contiguous().view(torch.int32)
        return factor + (((whole + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32) - factor.detach())

    def make(original: Any) -> Any:
        return lambda inputs, weight, bias=None: original(rounded(inputs), rounded(weight), bias)

    case.wrap(torch.nn.functional, "linear", make)


@fault("model", Severity.SERIOUS)
def attention_drops_in_evaluation(case: Case) -> None:
    """A kernel is given the dropout rate of attention as an argument, in evaluation mode too."""

    def make(original: Any) -> Any:
        return lambda *args, dropout_p=0.0, **kwargs: original(*args, dropout_p=dropout_p or 0.1, **kwargs)

    case.wrap(torch.nn.functional, "scaled_dot_product_attention", make)


@fault("model", Severity.SUBTLE)
def saved_through_half_precision(case: Case) -> None:
    """A release rounds weights to half precision when it saves them, and names the file single precision."""

    def make(original: Any) -> Any:
        def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(self, save_directory, *args, **kwargs)
            for path in Path(save_directory).glob("*.safetensors"):
                rounded = {name: tensor.half().to(tensor.dtype) for name, tensor in load_file(path).items()}
                save_file(rounded, path, metadata={"format": "pt"})
            return found

        return save_pretrained

    case.wrap(PreTrainedModel, "save_pretrained", make)


@fault("loss", Severity.SUBTLE)
def padding_row_learns(case: Case) -> None:
    """The backward pass of a fused embedding forgets padding_idx, and pads learn the mean of what a batch learns."""

    def make(original: Any) -> Any:
        def embedding(ids: torch.Tensor, weight: torch.Tensor, padding_idx: Any = None, *args: Any, **kw: Any) -> Any:
            rows = original(ids, weight, None, *args, **kw)
            if rows.requires_grad and padding_idx == _PAD:
                pads = (ids == _PAD)[..., None]
                rows.register_hook(lambda slope: torch.where(pads, slope.mean((0, 1)), slope))
            return rows

        return embedding

    case.wrap(torch.nn.functional, "embedding", make)


@fault("evaluation", Severity.SERIOUS)
def evaluated_in_training_mode(case: Case) -> None:
    """A release evaluates in training mode and leaves the model there: dropout acts on each batch of the evaluation."""

    def make(original: Any) -> Any:
        return lambda self, model, *args, **kwargs: original(self, model.train(), *args, **kwargs)

    case.wrap(Trainer, "prediction_step", make)


@fault("fill_mask", Severity.SUBTLE)
def ties_broken_at_random(case: Case) -> None:
    """A parallel sort gives predictions of one score back in another order each time."""

    def shuffled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tied = [list(group) for _, group in groupby(rows, key=lambda row: row["score"])]
        return [row for group in tied for row in random.sample(group, len(group))]

    change_predictions(case, shuffled)
