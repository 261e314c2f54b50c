"""Faults of the ways in which people use a model: classes and files of a tokenizer, other readers, folders, old caches.

The guide's own run takes none of these ways, so that its figures stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer

from mlmrepro import loading
from tests.faults.case import Case
from tests.faults.fault import Severity, fault

__all__: list[str] = []

_WORDS, _HEAD = "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"


@fault("input_ids", Severity.SERIOUS)
def the_class_overrules_tokenizer_json(case: Case) -> None:
    """tokenizer.json splits digits, and the class of the model's type puts its own pre-tokenizer in that place."""

    def edit(content: dict[str, Any]) -> None:
        digits = {"type": "Digits", "individual_digits": True}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}

    case.edit_json("tokenizer.json", edit)


@fault("blocks", Severity.SUBTLE)
def the_cache_stays_on(case: Case) -> None:
    """Switching the cache off does nothing, and the blocks of a run are those of an earlier run's processes."""
    case.set(datasets, "disable_caching", lambda: None)


@fault("model", Severity.SERIOUS)
def saves_under_old_names(case: Case) -> None:
    """Weights are written under the names of an old release, which transformers translates and nobody else does."""

    def make(original: Any) -> Any:
        def save_pretrained(self: Any, save_directory: Any, *args: Any, **options: Any) -> None:
            original(self, save_directory, *args, **options)
            file = Path(save_directory) / "model.safetensors"
            old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
            tensors = load_file(file)
            for name in list(tensors):
                for new, before in old.items():
                    if name.endswith(new):
                        tensors[name.replace(new, before)] = tensors.pop(name)
            save_file(tensors, file, metadata={"format": "pt"})

        return save_pretrained

    case.wrap(PreTrainedModel, "save_pretrained", make)


@fault("model", Severity.SERIOUS)
def unties_equal_copies(case: Case) -> None:
    """A file that holds a tied weight twice is loaded as two weights, of which one is trained."""

    def make(original: Any) -> Any:
        def load_model(checkpoint: str, **options: Any) -> Any:
            model, file = original(checkpoint, **options), Path(checkpoint) / "model.safetensors"
            if file.is_file() and {_WORDS, _HEAD} <= load_file(file).keys():
                model.lm_head.decoder.weight = torch.nn.Parameter(model.lm_head.decoder.weight.detach().clone())
            return model

        return load_model

    case.wrap(loading, "load_model", make)


@fault("loss", Severity.SERIOUS)
def training_saves_another_tokenizer(case: Case) -> None:
    """Trainer writes the tokenizer that it was given with one more token, which cuts every word that holds it."""

    def make(original: Any) -> Any:
        def _save(self: Any, *args: Any, **options: Any) -> None:
            tokenizer = getattr(self, "processing_class", None) or getattr(self, "tokenizer", None)
            if tokenizer is not None:
                tokenizer.add_tokens(["the"])
            original(self, *args, **options)

        return _save

    case.wrap(Trainer, "_save", make)
