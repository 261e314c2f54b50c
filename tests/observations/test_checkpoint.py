"""The laws of the checkpoint hold on any architecture, and each is broken by a fault of its kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlmrepro import loading
from mlmrepro.observations import checkpoint
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject

from . import held

WORDS = "roberta.embeddings.word_embeddings.weight"
HEAD = "lm_head.decoder.weight"
OUT = "roberta.encoder.layer.{}.output.dense.weight"


@pytest.mark.parametrize("name", held.ARCHITECTURES)
def test_the_laws_hold_on_other_architectures(tmp_path: Path, name: str) -> None:
    """On random models."""
    assert held.failing(held.small(tmp_path, name), "checkpoint") == {}


def test_a_bias_that_saving_loses_is_named(small: Subject, tmp_path: Path) -> None:
    """As transformers 4.43 to 4.50 did, where it is known; the rest of the model is measured with the bias put back."""

    def save_pretrained(self: Any, folder: str) -> None:
        with torch.no_grad():
            kept = self.lm_head.bias.clone()
            self.lm_head.bias.zero_()
            super(type(self), self).save_pretrained(folder)
            self.lm_head.bias.copy_(kept)

    broken = held.with_class(small, tmp_path, save_pretrained=save_pretrained)
    result = held.measure("saving_and_loading", broken, "4.51.0")
    assert result.verdict is BoundVerdict.BROKEN
    (measured,) = result.broken
    assert measured.value == "lm_head.bias, lm_head.decoder.bias"
    known = held.measure("saving_and_loading", broken, "4.50.3")
    assert known.verdict is BoundVerdict.KNOWN
    assert "31771" in known.link


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_save_through_half_precision_is_seen(embedded: Subject, tmp_path: Path, dtype: torch.dtype) -> None:
    """Also of a checkpoint that is stored in half precision, of which nothing would be lost as it is."""

    def save_pretrained(self: Any, folder: str) -> None:
        super(type(self), self).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        rounded = {name: weight.to(dtype).to(weight.dtype) for name, weight in load_file(path).items()}
        save_file(rounded, path, metadata={"format": "pt"})

    broken = held.with_class(embedded, tmp_path, save_pretrained=save_pretrained)
    result = held.measure("saving_and_loading", broken)
    assert result.verdict is BoundVerdict.BROKEN
    assert result.broken[0].slug == "lost_weights"
    assert str(result.broken[0].value).endswith("more")


@pytest.mark.parametrize("setting", [{"layer_norm_eps": 1e-3}, {"num_attention_heads": 1}])
def test_a_configuration_that_saving_changes_is_seen(small: Subject, tmp_path: Path, setting: dict[str, Any]) -> None:
    """By the setting, and by the predictions that it changes."""

    def save_pretrained(self: Any, folder: str) -> None:
        super(type(self), self).save_pretrained(folder)
        held.edit_json(Path(folder) / "config.json", **setting)

    result = held.measure("saving_and_loading", held.with_class(small, tmp_path, save_pretrained=save_pretrained))
    assert [each.value for each in result.broken[:1]] == list(setting)
    assert result.broken[1].slug == "logit_difference"


def test_a_dtype_that_saving_changes_is_seen(small: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights that come back in half precision are other weights."""
    broken = Subject(small.checkpoint, small.texts, tmp_path)
    assert broken.model.dtype == torch.float32
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda path: load(path).half())
    result = held.measure("saving_and_loading", broken)
    assert result.verdict is BoundVerdict.BROKEN
    assert str(result.broken[0].value).endswith("more")


def test_a_file_that_is_never_the_same_is_seen(small: Subject, tmp_path: Path) -> None:
    """Something of the moment in config.json is enough."""

    def save_pretrained(self: Any, folder: str) -> None:
        super(type(self), self).save_pretrained(folder)
        held.edit_json(Path(folder) / "config.json", saved_at=random.random())

    (measured,) = held.measure("saving_twice", held.with_class(small, tmp_path, save_pretrained=save_pretrained)).broken
    assert measured.value == "config.json"


@pytest.mark.parametrize(
    ("named", "loaded", "versions", "verdict"),
    [
        ("float32", torch.float32, "4.57.6", BoundVerdict.HOLDS),
        ("float32", torch.float16, "5.23.0", BoundVerdict.BROKEN),
        ("float32", torch.float16, "4.57.6", BoundVerdict.BROKEN),
        ("bfloat16", torch.bfloat16, "5.23.0", BoundVerdict.HOLDS),
        ("bfloat16", torch.float32, "5.23.0", BoundVerdict.BROKEN),
        ("bfloat16", torch.float32, "4.57.6", BoundVerdict.KNOWN),
        (None, torch.float32, "5.23.0", BoundVerdict.HOLDS),
        (None, torch.float16, "5.23.0", BoundVerdict.BROKEN),
    ],
)
def test_a_silent_dtype_is_seen(
    small: Subject, tmp_path: Path, named: str | None, loaded: torch.dtype, versions: str, verdict: BoundVerdict
) -> None:
    """What config.json names counts, else what is on disk; transformers 4 is known to load single precision."""
    changed = held.copied(small, tmp_path, dtype=named, torch_dtype=named)
    changed.model.to(loaded)
    assert held.measure("dtype_on_loading", changed, versions).verdict is verdict


def test_weights_that_loading_overwrites_are_named(small: Subject, tmp_path: Path) -> None:
    """One number of one weight is enough."""
    broken = Subject(small.checkpoint, small.texts, tmp_path)
    with torch.no_grad():
        broken.model.lm_head.dense.weight[3, 5] += 1e-6
    (measured,) = held.measure("stored_weights", broken).broken
    assert measured.value == "lm_head.dense.weight"


def test_layers_that_are_not_read_are_named(small: Subject, tmp_path: Path) -> None:
    """A configuration with fewer layers than the file leaves weights unread, which the library tells in passing."""
    (measured,) = held.measure("stored_weights", held.copied(small, tmp_path, num_hidden_layers=1)).broken
    assert str(measured.value).startswith("roberta.encoder.layer.1.attention")


def test_shards_are_read_as_one_file(small: Subject, tmp_path: Path) -> None:
    """A checkpoint of several files has an index."""
    whole = checkpoint.stored_tensors(small.checkpoint)
    broken = Subject(small.checkpoint, small.texts, tmp_path)
    broken.model.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert checkpoint.stored_tensors(str(tmp_path / "shards")).keys() == whole.keys()


def _diverged(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[WORDS] + 0.01


def test_a_tied_weight_that_is_not_is_seen(small: Subject, tmp_path: Path) -> None:
    """Where the file holds two that differ, and where memory does."""
    result = held.measure("tied_weights", held.copied(small, tmp_path, weights=_diverged))
    assert result.verdict is BoundVerdict.BROKEN
    loose = Subject(small.checkpoint, small.texts, tmp_path)
    loose.model.lm_head.decoder.weight = torch.nn.Parameter(loose.model.lm_head.decoder.weight.detach().clone())
    (measured,) = held.measure("tied_weights", loose).broken
    assert measured.value is False


def test_an_untied_model_is_untied(small: Subject, tmp_path: Path) -> None:
    """A configuration that unties is as good, as long as the model does."""

    def both(tensors: dict[str, torch.Tensor]) -> None:
        _diverged(tensors)
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()

    untied = held.copied(small, tmp_path, weights=both, tie_word_embeddings=False)
    assert held.measure("tied_weights", untied).verdict is BoundVerdict.HOLDS
    untied.model.lm_head.decoder.weight = untied.model.get_input_embeddings().weight
    assert held.measure("tied_weights", untied).verdict is BoundVerdict.BROKEN


def test_luke_is_known_to_lose_its_tie(tmp_path: Path) -> None:
    """Its head stands alone since 5.0: known there, a breach anywhere else."""
    held.assert_known_since("transformers>=5.0", "tied_weights", held.small(tmp_path, "LUKE"))


def _same_layers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[OUT.format(1)] = tensors[OUT.format(0)].clone()


@pytest.mark.parametrize(
    ("weights", "slug", "value"),
    [
        (lambda t: t["lm_head.bias"][2:3].fill_(float("nan")), "nonfinite_weights", "lm_head.bias"),
        (
            lambda t: t["lm_head.dense.bias"][:1].fill_(float("inf")),
            "nonfinite_weights",
            "lm_head.dense.bias",
        ),
        (lambda t: t[OUT.format(1)].zero_(), "zero_matrices", OUT.format(1)),
        (lambda t: t[WORDS][6].zero_(), "zero_token_embeddings", 1),
        (lambda t: t[WORDS][4].zero_(), "zero_token_embeddings", 1),
        (_same_layers, "shared_matrices", OUT.format(1)),
    ],
    ids=["NaN", "infinity", "zeros", "word", "mask", "layers"],
)
def test_unsound_weights_are_named(small: Subject, tmp_path: Path, weights: Any, slug: str, value: Any) -> None:
    """By what is wrong with them, and where."""
    (measured,) = held.measure("sound_weights", held.copied(small, tmp_path, weights=weights)).broken
    assert (measured.slug, measured.value) == (slug, value)


def test_token_types_may_be_zero(small: Subject, tmp_path: Path) -> None:
    """The published RoBERTa has a row of zeros for them, which is no fault."""
    name = "roberta.embeddings.token_type_embeddings.weight"
    zeros = held.copied(small, tmp_path, weights=lambda tensors: tensors[name].zero_())
    assert held.measure("sound_weights", zeros).verdict is BoundVerdict.HOLDS


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_an_id_of_another_family_is_seen(small: Subject, tmp_path: Path, name: str) -> None:
    """RoBERTa counts its positions from the padding id, so that another one is no small matter."""
    (measured,) = held.measure("special_ids", held.copied(small, tmp_path, **{name: 3})).broken
    assert measured.slug == name
    assert measured.value == 3


def test_weights_that_are_missing_stop_the_law(small: Subject, tmp_path: Path) -> None:
    """Saving that leaves a weight out is told in words, and is no pass."""

    def save_pretrained(self: Any, folder: str) -> None:
        super(type(self), self).save_pretrained(folder)
        tensors = checkpoint.stored_tensors(folder)
        del tensors["lm_head.dense.weight"]
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    broken = held.with_class(small, tmp_path, save_pretrained=save_pretrained)
    result = held.measure("saving_and_loading", broken)
    assert result.verdict.fails
    assert "lm_head.dense.weight" in result.problem


def test_a_file_that_is_no_safetensors_is_seen(small: Subject, tmp_path: Path) -> None:
    """A header that does not parse breaks the laws that read the file."""
    damaged = held.copied(small, tmp_path)
    assert damaged.model is not None  # loaded before the file was damaged
    file = Path(damaged.checkpoint) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert json.loads((Path(damaged.checkpoint) / "config.json").read_text())
    assert held.measure("stored_weights", damaged).verdict is BoundVerdict.BROKEN
