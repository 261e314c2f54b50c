"""Real bugs of the libraries, planted anew: each does what the version that had it did (faults/upstream.toml).

Where what had the bug is not used here (the collator for whole words, the metric of evaluate), it is planted in what
the guide uses in its place; the story says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers.trainer
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from datasets.fingerprint import Hasher
from transformers import DataCollatorForLanguageModeling, Trainer
from transformers.models.roberta import modeling_roberta
from transformers.pipelines.fill_mask import FillMaskPipeline
from transformers.trainer_pt_utils import LabelSmoother, LengthGroupedSampler

from tests.faults.case import Case
from tests.faults.catalogue.planting import change_batches
from tests.faults.fault import Severity, fault

__all__: list[str] = []

_ENDS = ("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id")


# input_ids


@fault("input_ids", Severity.SERIOUS)
def upstream_imported_function_stale(case: Case) -> None:
    """A fingerprint knows a function by its name alone, so that the cache serves rows of before it was edited."""

    def make(original: Any) -> Any:
        def by_name(value: Any) -> Any:
            return original((value.__module__, value.__qualname__) if isinstance(value, FunctionType) else value)

        return staticmethod(by_name)

    case.wrap(Hasher, "hash", make)


def _mask_token(case: Case, **values: bool) -> None:
    def edit(content: dict[str, Any]) -> None:
        (mask,) = (token for token in content["added_tokens"] if token["content"] == "<mask>")
        mask.update(values)

    case.edit_json("tokenizer.json", edit)
    case.edit_json("tokenizer_config.json", lambda content: content["mask_token"].update(values))


@fault("input_ids", Severity.SERIOUS)
def upstream_space_before_mask(case: Case) -> None:
    """A release of the fast tokenizers makes the space before the mask a token of its own."""
    _mask_token(case, lstrip=False)


@fault("input_ids", Severity.SERIOUS)
def upstream_space_after_mask(case: Case) -> None:
    """A release drops the space after the mask, so that the next word continues the masked one."""
    _mask_token(case, rstrip=True)


# masked_batches


@fault("masked_batches", Severity.FATAL)
def upstream_mask_id_of_another(case: Case) -> None:
    """A release counts the ids of special tokens otherwise, and masks hold the embedding of another token."""

    def edit(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        (mask,) = (token for token in content["added_tokens"] if token["content"] == "<mask>")
        (other,) = (text for text, token in vocabulary.items() if token == mask["id"] - 1)
        vocabulary.update({other: mask["id"], "<mask>": mask["id"] - 1})
        mask["id"] -= 1

    case.edit_json("tokenizer.json", edit)


def _taken_for_special(case: Case, choose: Callable[[Any], set[int]]) -> None:
    """Let the collator spare the ids of `choose(tokenizer)` and no others."""

    def make(original: Any) -> Any:
        def torch_mask_tokens(self: Any, inputs: Any, special_tokens_mask: Any = None, **kwargs: Any) -> Any:
            spared = torch.isin(inputs, torch.tensor(sorted(choose(self.tokenizer))))
            return original(self, inputs, special_tokens_mask=spared, **kwargs)

        return torch_mask_tokens

    case.wrap(DataCollatorForLanguageModeling, "torch_mask_tokens", make)


def _ends(tokenizer: Any) -> set[int]:
    return {getattr(tokenizer, name) for name in _ENDS}


@fault("masked_batches", Severity.SERIOUS)
def upstream_pads_selected(case: Case) -> None:
    """A release that tidies the collator loses the lines that spare padding, which some tokenizers do not mark."""
    _taken_for_special(case, _ends)


@fault("masked_batches", Severity.SERIOUS)
def upstream_ends_selected(case: Case) -> None:
    """A script of the examples selects and masks the tokens that begin and end a sequence."""
    _taken_for_special(case, lambda tokenizer: set(tokenizer.all_special_ids) - _ends(tokenizer))


@fault("masked_batches", Severity.SUBTLE)
def upstream_specials_in_text_selected(case: Case) -> None:
    """The collator takes the tokenizer's column, which marks only what the tokenizer has added itself."""
    _taken_for_special(case, lambda tokenizer: _ends(tokenizer) | {tokenizer.pad_token_id})


@fault("masked_batches", Severity.SERIOUS)
def upstream_attention_mask_dropped(case: Case) -> None:
    """The collator returns no attention mask, as the one for whole words did."""
    change_batches(case, lambda collator, batch: batch.pop("attention_mask", None))


# model


@fault("model", Severity.FATAL)
def upstream_camembert_untied(case: Case) -> None:
    """A release ties no weights where a configuration's class is silent on it, and draws the decoder at random."""
    case.set(modeling_roberta.RobertaForMaskedLM, "get_expanded_tied_weights_keys", lambda self, *_, **__: {})


@fault("model", Severity.SERIOUS)
def upstream_head_bias_twice(case: Case) -> None:
    """A release gives the decoder the head's bias, which the head adds as well."""
    case.wrap(
        modeling_roberta.RobertaLMHead,
        "forward",
        lambda original: lambda self, *args, **kwargs: original(self, *args, **kwargs) + self.bias,
    )


@fault("model", Severity.SERIOUS)
def upstream_layer_norm_drawn(case: Case) -> None:
    """The layer norms of a fresh model are drawn around 0 as its matrices are."""
    from transformers import initialization  # it leaves weights alone that are loaded; no release before 5 has it

    def make(original: Any) -> Any:
        def _init_weights(self: Any, module: Any) -> None:
            original(self, module)
            if isinstance(module, torch.nn.LayerNorm):
                for parameter in (module.weight, module.bias):
                    initialization.normal_(parameter, std=self.config.initializer_range)

        return _init_weights

    case.wrap(modeling_roberta.RobertaPreTrainedModel, "_init_weights", make)


# loss


@fault("loss", Severity.SERIOUS)
def upstream_smoothing_counts_ignored(case: Case) -> None:
    """The uniform part of a smoothed loss counts ignored positions too, here in Trainer and not in torch."""

    def make(original: Any) -> Any:
        def smoothed(self: Any, outputs: Any, labels: Any, **kwargs: Any) -> Any:
            ignored = labels == self.ignore_index
            uniform = -outputs["logits"].log_softmax(-1).mean(-1)
            too_much = self.epsilon * uniform[ignored].sum() / (~ignored).sum()
            return original(self, outputs, labels, **kwargs) + too_much

        return smoothed

    case.wrap(LabelSmoother, "__call__", make)


@fault("loss", Severity.SUBTLE)
def upstream_layer_norm_decayed(case: Case) -> None:
    """Trainer knows layer norms by the name LayerNorm, and the one in RoBERTa's head is called layer_norm."""

    def decaying(self: Any, model: Any) -> list[str]:
        spared = ("bias", "LayerNorm.weight")
        return [name for name, _ in model.named_parameters() if not any(each in name for each in spared)]

    case.set(Trainer, "get_decay_parameter_names", decaying)


@fault("loss", Severity.SERIOUS)
def upstream_resume_order(case: Case) -> None:
    """A training that is resumed inside a later epoch takes the rows that the first epoch's order leaves."""

    def make(original: Any) -> Any:
        def skip_first_batches(loader: Any, count: int = 0) -> Any:
            skipping = original(loader, count)
            skipping.set_epoch = lambda epoch: None  # the sampler keeps epoch 0
            return skipping

        return skip_first_batches

    case.wrap(transformers.trainer, "skip_first_batches", make)


@fault("loss", Severity.SERIOUS)
def upstream_resume_first_epoch_order(case: Case) -> None:
    """A training that is resumed at a later epoch shuffles that epoch as it has shuffled the first."""

    def make(original: Any) -> Any:
        def _run_epoch(self: Any, *, epoch: int, resume_from_checkpoint: Any, epochs_trained: int, **rest: Any) -> Any:
            resumes = resume_from_checkpoint is not None and epoch == epochs_trained
            told = {"epoch": epoch, "resume_from_checkpoint": resume_from_checkpoint, "epochs_trained": epochs_trained}
            with mock.patch.object(SeedableRandomSampler, "set_epoch") if resumes else nullcontext():
                return original(self, **told, **rest)

        return _run_epoch

    case.wrap(Trainer, "_run_epoch", make)


# evaluation


@fault("evaluation", Severity.SUBTLE)
def upstream_eval_order_unseeded(case: Case) -> None:
    """Rows to evaluate are grouped by length in an order that is drawn from the global generator."""

    def sampler(self: Any, rows: Any) -> LengthGroupedSampler:
        return LengthGroupedSampler(self.args.eval_batch_size, dataset=rows, model_input_name="input_ids")

    case.set(Trainer, "_get_eval_sampler", sampler)


def _before_prediction(case: Case, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the batches that Trainer evaluates."""
    case.wrap(
        Trainer,
        "prediction_step",
        lambda original: (
            lambda self, model, inputs, *args, **kwargs: original(self, model, change(dict(inputs)), *args, **kwargs)
        ),
    )


@fault("evaluation", Severity.SERIOUS)
def upstream_start_token_unseen(case: Case) -> None:
    """The first token of each row is hidden from the others, as evaluate's metric of perplexity did."""

    def hidden(batch: dict[str, Any]) -> dict[str, Any]:
        seen = batch["attention_mask"].clone()
        seen[:, 0] = 0
        return batch | {"attention_mask": seen}

    _before_prediction(case, hidden)


@fault("evaluation", Severity.SERIOUS)
def upstream_only_20_tokens(case: Case) -> None:
    """Rows are cut at 20 tokens, a default for generated text, as evaluate's metric of perplexity did."""
    _before_prediction(case, lambda batch: {name: tensor[:, :20].contiguous() for name, tensor in batch.items()})


@fault("evaluation", Severity.SERIOUS)
def upstream_last_batch_lost(case: Case) -> None:
    """The last batch is thrown away where the rows divide evenly into batches."""

    def make(original: Any) -> Any:
        def gather_for_metrics(self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
            state, gathered = self.gradient_state, original(self, data, *args, **kwargs)
            lost = state.end_of_dataloader and state.remainder == 0
            return gathered[:0] if lost else gathered

        return gather_for_metrics

    case.wrap(Accelerator, "gather_for_metrics", make)


# fill_mask


class _Places(np.ndarray):
    """Ids, of which each gives its place in place of itself."""

    def __getitem__(self, place: Any) -> Any:
        return np.int64(place)


@fault("fill_mask", Severity.SERIOUS)
def upstream_target_indices(case: Case) -> None:
    """A release gives a target's place in the list of targets for its id, and the words of those ids."""

    def make(original: Any) -> Any:
        def postprocess(self: Any, outputs: Any, top_k: int = 5, target_ids: Any = None) -> Any:
            return original(self, outputs, top_k, None if target_ids is None else target_ids.view(_Places))

        return postprocess

    case.wrap(FillMaskPipeline, "postprocess", make)
