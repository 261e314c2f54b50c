"""The checkpoint: its files and weights are sound, and saving and loading change nothing."""

from __future__ import annotations

import copy
import filecmp
import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro import loading
from mlmrepro.checkpoint_folder import few, star
from mlmrepro.observations.forward import agreeing, logits_of
from mlmrepro.observations.observation import NotApplicable, observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

if TYPE_CHECKING:
    import torch

__all__ = [
    "dtype_on_loading",
    "saving_and_loading",
    "saving_twice",
    "sound_weights",
    "special_ids",
    "stored_weights",
    "tied_weights",
]

SAVING = "https://huggingface.co/docs/transformers/main_classes/model#transformers.PreTrainedModel.save_pretrained"
# RoBERTa and similar models do not use token types: in published checkpoints these embeddings are zero.
_MAY_BE_ZERO = "token_type"
# Settings that may change: the version that wrote the file, and the dtype, which has its own observation.
_OF_THE_FILE = {"transformers_version", "torch_dtype", "dtype", "architectures"}


@observation(
    "model", source=SAVING, cause="a tied or renamed weight, or the head's bias, is lost when saving or loading"
)
def saving_and_loading(subject: Subject) -> Iterator[Value]:
    """Saving and loading a model preserves its weights, dtypes, configuration and predictions."""
    import torch

    folder, model = subject.new_folder("saved"), long_mantissas(subject)
    model.save_pretrained(str(folder))
    again = loading.load_model(str(folder)).eval()
    before, after = model.state_dict(), again.state_dict()
    lost = [name for name in before if name not in after or not same(before[name], after[name])]
    yield value("lost_weights", few(lost), "weights that are lost or changed", equals="")
    yield value("new_weights", few(set(after) - set(before)), "weights that are new", equals="")
    one, two = (each.config.to_dict() for each in (model, again))
    changed = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    changed = {name for name in changed - _OF_THE_FILE if not name.startswith("_")}
    yield value("changed_settings", few(changed), "changed settings of the configuration", equals="")

    with torch.no_grad():
        for name in lost:
            if name in after and after[name].shape == before[name].shape:
                after[name].copy_(before[name])
    batch = subject.batch(2)
    new, old = (logits_of(m.float(), batch["input_ids"], batch["attention_mask"]) for m in (again, model))
    title = "difference of the logits, changed weights put back"
    yield agreeing("logit_difference", title, subject, new, old)


def long_mantissas(subject: Subject) -> Any:
    """Return a copy of the model with weights multiplied by 1 + 2^-13, so that a shorter format would round them.

    Many checkpoints were once stored in float16 or bfloat16: their weights have only 11 or 8 significant bits, and
    would survive a cast to half precision unnoticed. A model that is itself in half precision stays as it is.
    """
    import torch

    model = copy.deepcopy(subject.model.eval())
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1 + 2.0**-13
    return model


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and values; NaN counts as equal to NaN."""
    import torch

    return left.dtype == right.dtype and torch.equal(left.nan_to_num(), right.nan_to_num())


@observation("model", source=SAVING, cause="the files depend on the order of tensors, the time or a random number")
def saving_twice(subject: Subject) -> Iterator[Value]:
    """Saving a model twice writes the same files, byte for byte."""
    model, (first, second) = long_mantissas(subject), (subject.new_folder(name) for name in ("first", "second"))
    for folder in (first, second):
        model.save_pretrained(str(folder))
    names = sorted({path.name for folder in (first, second) for path in folder.iterdir()})
    yield value("files", ", ".join(names), "files", shown=True)
    _, differing, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    yield value("different_files", few(differing + missing), "files that differ or are missing", equals="")


@observation(
    "model",
    source="https://github.com/huggingface/transformers/pull/42805",
    cause="weights are cast silently, and another precision gives other losses",
)
def dtype_on_loading(subject: Subject) -> Iterator[Value]:
    """Weights are loaded in the dtype that config.json names, or, without one, in the dtype of the stored weights."""
    named = json.loads(_file(subject.checkpoint, "config.json").read_text(encoding="utf-8"))
    stored = {str(tensor.dtype) for tensor in stored_tensors(subject.checkpoint).values() if tensor.is_floating_point()}
    expected = named.get("dtype") or named.get("torch_dtype") or ", ".join(sorted(stored))
    loaded = {str(weight.dtype) for weight in subject.model.parameters()}
    dtypes, title = _plain(", ".join(sorted(loaded))), "dtype of the loaded weights"
    yield value("stored_dtype", _plain(", ".join(sorted(stored))), "dtype of the stored weights", shown=True)
    yield value("loaded_dtype", dtypes, title, equals=_plain(str(expected)))


def _plain(dtypes: str) -> str:
    return dtypes.replace("torch.", "")


def stored_tensors(checkpoint: str) -> dict[str, torch.Tensor]:
    """Return the tensors of the checkpoint's safetensors files, by name."""
    from safetensors.torch import load_file

    try:
        files = [_file(checkpoint, "model.safetensors")]
    except OSError:  # a sharded checkpoint: the index lists its files
        index = json.loads(_file(checkpoint, "model.safetensors.index.json").read_text(encoding="utf-8"))
        files = [_file(checkpoint, name) for name in sorted(set(index["weight_map"].values()))]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _file(checkpoint: str, name: str) -> Path:
    """Return the local path of a file of a checkpoint (folder or Hub name); raises OSError if it is missing."""
    from transformers.utils.hub import cached_file

    found = cached_file(checkpoint, name)
    if found is None:
        raise FileNotFoundError(name)
    return Path(found)


@observation("model", source=SAVING, cause="loading skips, overwrites or re-initialises weights that are in the file")
def stored_weights(subject: Subject) -> Iterator[Value]:
    """The model's weights are loaded exactly as the checkpoint's files store them."""
    state, stored = subject.model.state_dict(), stored_tensors(subject.checkpoint)
    both = [name for name in stored if name in state]
    lost = [name for name in both if not same(state[name], stored[name].to(state[name].dtype))]
    yield value("stored_weights", len(stored), "stored weights", shown=True)
    yield value("matched_weights", len(both), "stored weights whose name the model has", at_least=1)
    yield value("changed_weights", few(lost), "weights that are not loaded as they are stored", equals="")
    # Weights of other heads are rightly left out, and some names are translated.
    kinds = {star(name) for name in state}
    left_out = [name for name in stored if name not in state and star(name) in kinds]
    yield value("unmatched_weights", few(left_out), "stored weights without a counterpart in the model", equals="")


@observation(
    "model",
    source="Press and Wolf 2017, https://aclanthology.org/E17-2025",
    cause="tying was lost, so only one of two copies is trained",
)
def tied_weights(subject: Subject) -> Iterator[Value]:
    """The output embedding is the input embedding if and only if config.json ties them, and stored copies agree."""
    model = subject.model
    head = model.get_output_embeddings()
    if head is None:
        raise NotApplicable("its head has no output embedding")
    tied = bool(getattr(model.config, "tie_word_embeddings", True))
    shared = head.weight is model.get_input_embeddings().weight
    yield value("tied", shared, "the output embedding is the input embedding", equals=tied)
    stored = stored_tensors(subject.checkpoint)
    groups = defaultdict(list)
    for name, weight in model.state_dict(keep_vars=True).items():
        if name in stored and weight.numel():
            groups[weight.data_ptr()].append(name)
    apart = [two for names in groups.values() for one, two in pairwise(names) if not same(stored[one], stored[two])]
    yield value("different_copies", few(apart), "stored copies of one weight that differ", equals="")


@observation(
    "model",
    source="true of any trained checkpoint",
    cause="a run that diverged, a damaged file, or layers that were never trained",
)
def sound_weights(subject: Subject) -> Iterator[Value]:
    """No weight is NaN or infinite, no matrix or used embedding is all zero, and no two layers have equal matrices."""
    import torch

    weights = dict(subject.model.named_parameters())
    strange = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    yield value("nonfinite_weights", few(strange), "weights with NaN or infinity", equals="")
    matrices = {name: weight for name, weight in weights.items() if weight.dim() > 1 and weight.numel()}
    empty = [name for name, weight in matrices.items() if not bool(weight.any()) and _MAY_BE_ZERO not in name]
    yield value("zero_matrices", few(empty), "matrices of zeros", equals="")
    tokens = {token for row in subject.rows for token in row} | {subject.tokenizer.mask_token_id}
    used = torch.tensor(sorted(tokens - {subject.pad_id}))
    blank = int((~subject.model.get_input_embeddings().weight[used].any(dim=-1)).sum())
    yield value("zero_token_embeddings", blank, "tokens of the text whose embedding is zero", equals=0)
    yield value("shared_matrices", few(_repeated(matrices)), "matrices that two layers share", equals="")


def _repeated(matrices: dict[str, Any]) -> list[str]:
    """Return the matrices that are equal to the matrix of the same name in another layer."""
    import torch

    alike: dict[Any, list[str]] = defaultdict(list)
    for name, matrix in matrices.items():
        alike[star(name), matrix.shape, tuple(matrix.flatten()[:16].tolist())].append(name)
    return [
        two
        for names in alike.values()
        for index, two in enumerate(names)
        if any(torch.equal(matrices[one], matrices[two]) for one in names[:index])
    ]


@observation(
    "model",
    source="PretrainedConfig",
    cause="the tokenizer belongs to another model, or was rebuilt without updating config.json",
)
def special_ids(subject: Subject) -> Iterator[Value]:
    """The ids of special tokens in config.json are those of the tokenizer."""
    config, tokenizer = subject.model.config, subject.tokenizer
    found = 0
    masks = ("mask_token_id",) if hasattr(config, "token_dropout") else ()  # ESM uses this id; XLM's is always wrong
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", *masks):
        ours, theirs = getattr(tokenizer, name, None), getattr(config, name, None)
        if ours is not None and theirs is not None:
            found += 1
            title = f"{name} of the configuration"
            yield value(name, int(theirs), title, equals=int(ours), reason="the tokenizer's")
    if not found:
        raise NotApplicable("its configuration names no special token")
