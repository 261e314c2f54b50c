"""What is written is the model to other readers too, on any architecture; each law is broken by a fault of its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import RobertaForMaskedLM, Trainer

from mlmrepro import loading
from mlmrepro.observations.checkpoint import stored_tensors
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject

from ..installed import needs
from . import held

NAMES, PLAIN, TWICE, TRAINED = (
    "stored_names_are_the_models",
    "plain_torch_reads_the_file",
    "tied_weights_stored_twice",
    "a_training_folder_is_the_model",
)
WORDS, HEAD = "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"
Tensors = dict[str, torch.Tensor]
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", held.ARCHITECTURES)
def test_the_laws_hold_on_other_architectures(tmp_path: Path, name: str) -> None:
    """On random models; what a release is known to rename is declared."""
    subject = held.small(tmp_path, name)
    results = [held.measure(law, subject) for law in (NAMES, PLAIN, TWICE, TRAINED)]
    assert {result.name: held.broken(result) for result in results if result.verdict.fails} == {}


def test_names_that_only_transformers_reads_are_known_of_esm_alone(tmp_path: Path, small: Subject) -> None:
    """Of another model, or in transformers 4, the names of ESM's file would be a breach."""
    esm = held.small(tmp_path, "ESM rotary")
    assert held.measure(NAMES, esm).verdict is not BoundVerdict.BROKEN
    now = held.measure(PLAIN, esm)
    assert held.measure(PLAIN, esm, "4.57.6").verdict is (
        BoundVerdict.HOLDS if now.verdict is BoundVerdict.HOLDS else BoundVerdict.BROKEN
    )


def _saves(change: Callable[[Tensors], Tensors]) -> Callable[..., None]:
    """Return a save_pretrained whose file holds what `change` makes of its tensors."""

    def save_pretrained(self: Any, folder: str, **options: Any) -> None:
        super(type(self), self).save_pretrained(folder, **options)
        tensors = change(stored_tensors(folder))
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    return save_pretrained


def _prefixed(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def _twice(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[WORDS].clone()}


def _half(tensors: Tensors) -> Tensors:
    return {name: tensor.half().float() for name, tensor in tensors.items()}


def _cast(tensors: Tensors) -> Tensors:
    return {name: tensor.double() for name, tensor in tensors.items()}


def _one_left_out(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.dense.weight"}


@pytest.mark.parametrize(
    ("law", "change", "what"),
    [
        (NAMES, _prefixed, "names that the model does not know"),
        (NAMES, _twice, "stored twice = lm_head.decoder.weight"),
        (NAMES, _half, "another shape, dtype or value"),
        (NAMES, _cast, "another shape, dtype or value"),
        (NAMES, _one_left_out, "does not name = dense.weight"),
        (PLAIN, _prefixed, "names that torch cannot place"),
        (PLAIN, _one_left_out, "names that torch misses = dense.weight"),
        (PLAIN, _half, "difference of the logits"),
    ],
)
def test_a_file_that_says_something_else_is_seen(
    law: str, change: Callable[[Tensors], Tensors], what: str, small: Subject, tmp_path: Path
) -> None:
    """A prefix, a second copy, fewer digits, another dtype and a lost weight are told by what is in the file."""
    broken = held.with_class(small, tmp_path, save_pretrained=_saves(change))
    result = held.measure(law, broken)
    assert result.verdict is BoundVerdict.BROKEN
    assert what in held.broken(result) or any(what.split(" = ")[0] in each.name for each in result.broken)


def _loads(patch: Patch, change: Callable[[Any, Tensors], None]) -> None:
    """Let a loaded model be what `change` makes of it, given the tensors of its file."""
    original = loading.load_model

    def load(path: str, **options: Any) -> Any:
        model = original(path, **options)
        with torch.no_grad():
            change(model, stored_tensors(path))
        return model

    patch.setattr(loading, "load_model", load)


def _untied(model: Any, tensors: Tensors) -> None:
    if HEAD in tensors:
        model.lm_head.decoder.weight = torch.nn.Parameter(tensors[HEAD].clone())


def _head_counts(model: Any, tensors: Tensors) -> None:
    if HEAD in tensors:
        model.lm_head.decoder.weight = model.roberta.embeddings.word_embeddings.weight
        model.lm_head.decoder.weight.copy_(tensors[HEAD])


def test_equal_copies_that_are_untied_are_seen(small: Subject, monkeypatch: Patch) -> None:
    """Two weights that start alike part in the first step of a training."""
    _loads(monkeypatch, _untied)
    held.assert_broken(TWICE, small, "equal copies: they are one weight")


@needs("transformers>=4.43", "before, a copy that counts in silence is what is declared")
def test_a_copy_that_counts_in_silence_is_seen(small: Subject, monkeypatch: Patch) -> None:
    """The head's copy in place of the input's, and no word about it."""
    monkeypatch.setattr("mlmrepro.observations.stored._names_one", lambda lines, names: False)
    _loads(monkeypatch, _head_counts)
    held.assert_broken(TWICE, small, "copies that differ: the input embedding wins, or a warning says so")


def test_an_untied_model_has_no_copies(small: Subject, tmp_path: Path) -> None:
    """Where the configuration unties, the law says nothing."""

    def both(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[WORDS] + 0.01
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()

    untied = held.copied(small, tmp_path, weights=both, tie_word_embeddings=False)
    assert held.measure(TWICE, untied).verdict is BoundVerdict.NOT_APPLICABLE


def test_a_training_that_saves_other_weights_is_seen(small: Subject, monkeypatch: Patch) -> None:
    """Weights in half precision, in each folder that Trainer writes."""
    original = RobertaForMaskedLM.save_pretrained

    def save(self: Any, folder: str, **options: Any) -> None:
        original(self, folder, **options)
        save_file(_half(stored_tensors(folder)), Path(folder) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(RobertaForMaskedLM, "save_pretrained", save)
    result = held.measure(TRAINED, small)
    assert result.verdict is BoundVerdict.BROKEN
    assert [each.slug for each in result.broken] == [
        "lost_weights_checkpoint-1",
        "lost_weights_checkpoint-2",
        "lost_weights_output_folder",
    ]


def test_a_tokenizer_that_training_leaves_out_is_seen(small: Subject, monkeypatch: Patch) -> None:
    """A folder without the tokenizer cannot be loaded, or gives other ids."""
    original = Trainer._save

    def save(self: Any, folder: Any = None, state_dict: Any = None) -> None:
        original(self, folder, state_dict)
        for path in Path(folder or self.args.output_dir).glob("*token*"):
            path.unlink()

    monkeypatch.setattr(Trainer, "_save", save)
    assert held.measure(TRAINED, small).verdict.fails


def test_a_tokenizer_that_training_changes_is_seen(small: Subject, monkeypatch: Patch) -> None:
    """One more token that a training adds changes the ids of texts that hold its letters."""
    kind = type(small.tokenizer)
    original = kind.save_pretrained

    def save(self: Any, *args: Any, **options: Any) -> Any:
        self.add_tokens(["e"])
        return original(self, *args, **options)

    monkeypatch.setattr(kind, "save_pretrained", save)
    held.assert_broken(TRAINED, small, "texts with other ids, by the tokenizer itself")
