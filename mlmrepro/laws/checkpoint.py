"""Laws of the checkpoint: its files, its weights, and what saving and loading may change (nothing)."""

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
from mlmrepro.laws.forward import agreeing, logits_of
from mlmrepro.laws.law import NotApplicable, law
from mlmrepro.laws.result import Measured
from mlmrepro.laws.subject import Subject

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
# RoBERTa and its kin have no use for token types: their published rows of them are zero.
_MAY_BE_ZERO = "token_type"
# Of the configuration: who wrote it, and in which dtype (which has a law of its own).
_OF_THE_FILE = {"transformers_version", "torch_dtype", "dtype", "architectures"}


@law("model", source=SAVING, cause="a tied or renamed weight, or the head's bias, is lost on the way")
def saving_and_loading(subject: Subject) -> Iterator[Measured]:
    """A model that is saved and loaded again is the same model: weights, dtypes, configuration and predictions."""
    import torch

    folder, model = subject.new_folder("saved"), long_mantissas(subject)
    model.save_pretrained(str(folder))
    again = loading.load_model(str(folder)).eval()
    before, after = model.state_dict(), again.state_dict()
    lost = [name for name in before if name not in after or not same(before[name], after[name])]
    yield Measured("weights that are lost or changed", few(lost), equals="")
    yield Measured("weights that are new", few(set(after) - set(before)), equals="")
    one, two = (each.config.to_dict() for each in (model, again))
    changed = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    changed = {name for name in changed - _OF_THE_FILE if not name.startswith("_")}
    yield Measured("changed settings of the configuration", few(changed), equals="")

    with torch.no_grad():
        for name in lost:
            if name in after and after[name].shape == before[name].shape:
                after[name].copy_(before[name])
    batch = subject.batch(2)
    new, old = (logits_of(m.float(), batch["input_ids"], batch["attention_mask"]) for m in (again, model))
    yield agreeing("difference of the logits, weights that changed put back", subject, new, old)


def long_mantissas(subject: Subject) -> Any:
    """Return the model with 2^-13 of each weight added to it, so that a shorter format would round it.

    Checkpoints are often stored in half precision: its 11 digits, and 8 of bfloat16, would pass through it unharmed.
    A model in half precision itself stays as good as it is.
    """
    import torch

    model = copy.deepcopy(subject.model.eval())
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1 + 2.0**-13
    return model


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether two tensors have one dtype, one shape and the same numbers, bit by bit but for NaN."""
    import torch

    return left.dtype == right.dtype and torch.equal(left.nan_to_num(), right.nan_to_num())


@law("model", source=SAVING, cause="the order of tensors, a time or a random number gets into the files")
def saving_twice(subject: Subject) -> Iterator[Measured]:
    """What is saved a second time equals the first byte for byte."""
    model, (first, second) = long_mantissas(subject), (subject.new_folder(name) for name in ("first", "second"))
    for folder in (first, second):
        model.save_pretrained(str(folder))
    names = sorted({path.name for folder in (first, second) for path in folder.iterdir()})
    yield Measured("files", ", ".join(names))
    _, differing, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    yield Measured("files that differ or are missing", few(differing + missing), equals="")


@law(
    "model",
    source="https://github.com/huggingface/transformers/pull/42805",
    cause="weights are cast silently: another precision gives other losses",
)
def dtype_on_loading(subject: Subject) -> Iterator[Measured]:
    """Weights are loaded in the dtype that config.json names, or else in the one that they are stored in."""
    named = json.loads(_file(subject.checkpoint, "config.json").read_text(encoding="utf-8"))
    stored = {str(tensor.dtype) for tensor in stored_tensors(subject.checkpoint).values() if tensor.is_floating_point()}
    wanted = named.get("dtype") or named.get("torch_dtype") or ", ".join(sorted(stored))
    loaded = {str(weight.dtype) for weight in subject.model.parameters()}
    yield Measured("dtype of the stored weights", _plain(", ".join(sorted(stored))))
    yield Measured("dtype of the loaded weights", _plain(", ".join(sorted(loaded))), equals=_plain(str(wanted)))


def _plain(dtypes: str) -> str:
    return dtypes.replace("torch.", "")


def stored_tensors(checkpoint: str) -> dict[str, torch.Tensor]:
    """Return the tensors of the checkpoint's safetensors files, by their names there."""
    from safetensors.torch import load_file

    try:
        files = [_file(checkpoint, "model.safetensors")]
    except OSError:  # one of several shards: the index names them
        index = json.loads(_file(checkpoint, "model.safetensors.index.json").read_text(encoding="utf-8"))
        files = [_file(checkpoint, name) for name in sorted(set(index["weight_map"].values()))]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _file(checkpoint: str, name: str) -> Path:
    """Return where a file of a folder or a hub name lies on this machine; raises OSError where it is missing."""
    from transformers.utils.hub import cached_file

    found = cached_file(checkpoint, name)
    if found is None:
        raise FileNotFoundError(name)
    return Path(found)


@law("model", source=SAVING, cause="loading skips, overwrites or re-initialises weights that the file holds")
def stored_weights(subject: Subject) -> Iterator[Measured]:
    """Every weight of the model's file arrives in the model as it is stored."""
    state, stored = subject.model.state_dict(), stored_tensors(subject.checkpoint)
    both = [name for name in stored if name in state]
    lost = [name for name in both if not same(state[name], stored[name].to(state[name].dtype))]
    yield Measured("stored weights", len(stored))
    yield Measured("of these with a name of the model's", len(both), at_least=1)
    yield Measured("of these not as they are stored", few(lost), equals="")
    # Other heads are left out for good reasons, and some names are translated.
    kinds = {star(name) for name in state}
    left_out = [name for name in stored if name not in state and star(name) in kinds]
    yield Measured("stored weights without a counterpart in the model", few(left_out), equals="")


@law(
    "model",
    source="Press and Wolf 2017, https://aclanthology.org/E17-2025",
    cause="tying was lost: one of two copies is trained",
)
def tied_weights(subject: Subject) -> Iterator[Measured]:
    """The head's output embedding is the input embedding where config.json ties them, in memory and in the file."""
    model = subject.model
    head = model.get_output_embeddings()
    if head is None:
        raise NotApplicable("its head has no output embedding")
    tied = bool(getattr(model.config, "tie_word_embeddings", True))
    shared = head.weight is model.get_input_embeddings().weight
    yield Measured("the output embedding is the input embedding", shared, equals=tied)
    stored = stored_tensors(subject.checkpoint)
    groups = defaultdict(list)
    for name, weight in model.state_dict(keep_vars=True).items():
        if name in stored and weight.numel():
            groups[weight.data_ptr()].append(name)
    apart = [two for names in groups.values() for one, two in pairwise(names) if not same(stored[one], stored[two])]
    yield Measured("stored copies of one weight that differ", few(apart), equals="")


@law(
    "model",
    source="what any trained checkpoint has",
    cause="a run that diverged, a damaged file, or layers that were never trained",
)
def sound_weights(subject: Subject) -> Iterator[Measured]:
    """No weight is NaN or infinite, no matrix and no used embedding is all zero, and no two layers are the same."""
    import torch

    weights = dict(subject.model.named_parameters())
    strange = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    yield Measured("weights with NaN or infinity", few(strange), equals="")
    matrices = {name: weight for name, weight in weights.items() if weight.dim() > 1 and weight.numel()}
    empty = [name for name, weight in matrices.items() if not bool(weight.any()) and _MAY_BE_ZERO not in name]
    yield Measured("matrices of zeros", few(empty), equals="")
    tokens = {token for row in subject.rows for token in row} | {subject.tokenizer.mask_token_id}
    used = torch.tensor(sorted(tokens - {subject.pad_id}))
    blank = int((~subject.model.get_input_embeddings().weight[used].any(dim=-1)).sum())
    yield Measured("tokens of the text whose embedding is zero", blank, equals=0)
    yield Measured("matrices that two layers share", few(_repeated(matrices)), equals="")


def _repeated(matrices: dict[str, Any]) -> list[str]:
    """Return the matrices that equal one of the same name in another layer."""
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


@law(
    "model",
    source="PretrainedConfig",
    cause="the tokenizer is another model's, or was made anew without its config.json",
)
def special_ids(subject: Subject) -> Iterator[Measured]:
    """The configuration's ids of special tokens are the tokenizer's."""
    config, tokenizer = subject.model.config, subject.tokenizer
    found = 0
    masks = ("mask_token_id",) if hasattr(config, "token_dropout") else ()  # ESM reads it; XLM's is never right
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", *masks):
        ours, theirs = getattr(tokenizer, name, None), getattr(config, name, None)
        if ours is not None and theirs is not None:
            found += 1
            yield Measured(f"{name} of the configuration", int(theirs), equals=int(ours), reason="the tokenizer's")
    if not found:
        raise NotApplicable("its configuration names no special token")
