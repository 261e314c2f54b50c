"""The model: loading (dtype, names, kernels), fresh weights, tied weights, and its outputs at the edges."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlmrepro.config import IGNORE_INDEX, TRAINER_SEED
from mlmrepro.observations.observation import attempt, measure, observation, seeded, value, values
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

__all__ = [
    "attention",
    "config_defaults",
    "fresh_weights",
    "half_precision",
    "incomplete_weights",
    "labels_at_the_edge",
    "loading_dtype",
    "old_names",
    "pickles",
    "resizing",
    "saved_model",
    "tied_after_loading",
]

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 1,
}


def small_model(**options: Any) -> Any:
    """Return a RoBERTa of 120 words whose weights depend on no library's initialisation: cosines, by their names."""
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    model = RobertaForMaskedLM(RobertaConfig(**{**SIZES, **options}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            phase = zlib.crc32(name.encode()) % 628 / 100
            wave = torch.cos(torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + phase)
            parameter.copy_((0.1 * wave).reshape(parameter.shape))
    return model.eval()


def batch(rows: int = 4, length: int = 12) -> dict[str, Any]:
    """Return a batch with a label at every third position."""
    import torch

    ids = (torch.arange(rows * length) * 37 % 110 + 5).reshape(rows, length)
    labels = torch.where(torch.arange(length) % 3 == 1, ids, torch.tensor(IGNORE_INDEX))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(str(folder), **options)


def _stored(subject: Subject, name: str, *, half: bool = False, config: Mapping[str, Any] | None = None) -> Path:
    """Write the small model as a checkpoint by hand, so that it does not depend on how a library saves."""
    from safetensors.torch import save_file

    folder = subject.new_folder(name)
    model = small_model()
    tied = "lm_head.decoder."
    weights = {k: v.half() if half else v for k, v in model.state_dict().items() if not k.startswith(tied)}
    weights = {k: v.contiguous() for k, v in weights.items() if v.is_floating_point() or not half}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    content = {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], **SIZES, **(config or {})}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@observation("model")
def loading_dtype(subject: Subject) -> Iterator[Value]:
    """The dtype that half-precision weights get, depending on their configuration."""

    def dtype(name: str, config: Mapping[str, Any]) -> Any:
        return attempt(lambda: str(_load(_stored(subject, f"dtype-{name}", half=True, config=config)).dtype))

    yield from values(
        {
            "config_silent": dtype("silent", {}),
            "torch_dtype": dtype("torch", {"torch_dtype": "float16"}),
            "dtype": dtype("new", {"dtype": "float16"}),
            "torch_dtype_argument": attempt(
                lambda: str(_load(_stored(subject, "dtype-a"), torch_dtype="float16").dtype)
            ),
            "dtype_argument": attempt(lambda: str(_load(_stored(subject, "dtype-b"), dtype="float16").dtype)),
        }
    )


@observation("model")
def attention(subject: Subject) -> Iterator[Value]:
    """The attention kernel by default, and what asking for the attentions gives with it."""
    stored = _stored(subject, "attention")
    model = _load(stored)
    example = {name: value for name, value in batch().items() if name != "labels"}
    attentions = attempt(lambda: model(**example, output_attentions=True).attentions)
    yield from values(
        {
            "default": getattr(model.config, "_attn_implementation", None),
            "attentions": attentions if isinstance(attentions, str) else [a is not None for a in attentions or ()],
            "loss": measure(lambda: model(**batch()).loss, "nats"),
            "eager_loss": measure(lambda: _load(stored, attn_implementation="eager")(**batch()).loss, "nats"),
        }
    )


@observation("model")
def fresh_weights(subject: Subject) -> Iterator[Value]:
    """A model made from its configuration under one seed: its first loss above ln(vocabulary), and its weights."""
    from transformers import AutoModelForMaskedLM, RobertaConfig

    with seeded(TRAINER_SEED):
        model = AutoModelForMaskedLM.from_config(RobertaConfig(**SIZES)).eval()
    weights = model.state_dict()
    word = weights["roberta.embeddings.word_embeddings.weight"]
    yield from values(
        {
            "loss_above_ln_vocabulary": value(
                "", float(model(**batch()).loss) - math.log(SIZES["vocab_size"]), quantity="nats"
            ),
            "embedding_norm": value("", float(word.norm()), quantity="norm"),
            "padding_row_is_zero": bool((word[1] == 0).all()),
            "dense_norm": value(
                "", float(weights["roberta.encoder.layer.0.output.dense.weight"].norm()), quantity="norm"
            ),
            "head_norm": value("", float(weights["lm_head.dense.weight"].norm()), quantity="norm"),
            "tied": weights["lm_head.decoder.weight"].data_ptr() == word.data_ptr(),
        }
    )


@observation("model")
def tied_after_loading(subject: Subject) -> Iterator[Value]:
    """Whether decoder and embeddings share their weights, and the head's two biases are one, after loading."""
    model = _load(_stored(subject, "tied"))
    head = model.lm_head
    yield from values(
        {
            "weights": head.decoder.weight is model.get_input_embeddings().weight,
            "biases": head.decoder.bias is head.bias,
            "bias_is_the_stored_one": bool((head.decoder.bias == small_model().lm_head.bias).all()),
            "parameters": len(list(model.named_parameters())),
        }
    )


@observation("model")
def resizing(subject: Subject) -> Iterator[Value]:
    """New rows of the embeddings after ``resize_token_embeddings``: whether they are near the others' mean."""
    with seeded(TRAINER_SEED):
        model = small_model()
        model.resize_token_embeddings(SIZES["vocab_size"] + 3)
    rows = model.get_input_embeddings().weight.detach()
    mean = rows[: SIZES["vocab_size"]].mean(0)
    yield from values(
        {
            "new_rows_near_mean": bool(((rows[-3:] - mean).norm(dim=1) < 0.05 * mean.norm() + 1e-3).all()),
            "bias": list(model.lm_head.bias.shape),
            "tied": model.lm_head.decoder.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr(),
        }
    )


@observation("model")
def old_names(subject: Subject) -> Iterator[Value]:
    """A checkpoint with old names (``LayerNorm.gamma``, ``beta``): whether its weights are loaded."""
    from safetensors.torch import load_file, save_file

    folder = _stored(subject, "old_names")
    weights = load_file(folder / "model.safetensors")
    renamed = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in weights.items()
    }
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    no_format = subject.new_folder("no_format")
    shutil.copy(folder / "config.json", no_format)
    save_file(weights, no_format / "model.safetensors")

    yield from values(
        {
            "gamma_and_beta_loss": measure(lambda: _load(folder)(**batch()).loss, "nats"),
            "without_format_metadata_loss": measure(lambda: _load(no_format)(**batch()).loss, "nats"),
        }
    )


@observation("model")
def incomplete_weights(subject: Subject) -> Iterator[Value]:
    """What loading reports about a missing weight, a superfluous one and a wrong shape, and in which types."""
    from safetensors.torch import load_file, save_file

    folder = _stored(subject, "incomplete")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.dense.weight"]
    save_file(
        {**weights, "spare.weight": weights["lm_head.bias"].clone()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    _, info = _load(folder, output_loading_info=True)
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 30}
    narrow = subject.new_folder("narrow")
    (narrow / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", narrow)
    yield from values(
        {
            "missing": sorted(map(str, info["missing_keys"])),
            "unexpected": sorted(map(str, info["unexpected_keys"])),
            "container": type(info["missing_keys"]).__name__,
            "wrong_shape": attempt(lambda: type(_load(narrow)).__name__),
            "wrong_shape_ignored": attempt(lambda: type(_load(narrow, ignore_mismatched_sizes=True)).__name__),
        }
    )


@observation("model")
def pickles(subject: Subject) -> Iterator[Value]:
    """Whether a folder that holds only a pickle is loaded, with and without ``use_safetensors=True``."""
    import torch

    folder = _stored(subject, "pickle")
    (folder / "model.safetensors").unlink()
    torch.save(small_model().state_dict(), folder / "pytorch_model.bin")
    yield from values(
        {
            "default": attempt(lambda: type(_load(folder)).__name__),
            "use_safetensors": attempt(lambda: type(_load(folder, use_safetensors=True)).__name__),
        }
    )


@observation("model")
def saved_model(subject: Subject) -> Iterator[Value]:
    """What ``save_pretrained`` writes: files, names of the weights, dtype's key, and the default shard."""
    from safetensors import safe_open

    folder = subject.new_folder("saved_model")
    small_model().save_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        names, metadata = sorted(file.keys()), file.metadata()
    yield from values(
        {
            "files": sorted(path.name for path in folder.iterdir()),
            "weights": len(names),
            "head": [name for name in names if name.startswith("lm_head")],
            "config_keys": sorted(set(config) - {"transformers_version"}),
            "dtype_key": next((key for key in ("dtype", "torch_dtype") if key in config), None),
            "metadata": metadata,
            "safe_serialization_false": attempt(lambda: _pickled(subject)),
        }
    )


def _pickled(subject: Subject) -> list[str]:
    folder = subject.new_folder("saved_pickle")
    small_model().save_pretrained(str(folder), safe_serialization=False)
    return sorted(path.name for path in folder.iterdir() if path.name != "config.json")


@observation("model")
def config_defaults(subject: Subject) -> Iterator[Value]:
    """Defaults of RobertaConfig that decide a model."""
    from transformers import RobertaConfig

    config = RobertaConfig()
    names = ("vocab_size", "pad_token_id", "type_vocab_size", "layer_norm_eps", "hidden_act", "hidden_dropout_prob")
    more = (
        "use_cache",
        "tie_word_embeddings",
        "position_embedding_type",
        "is_decoder",
        "return_dict",
        "use_return_dict",
        "num_beams",
    )
    yield from values({name: getattr(config, name, "absent") for name in (*names, *more)})


@observation("model")
def labels_at_the_edge(subject: Subject) -> Iterator[Value]:
    """The loss of a batch without labels, and the logits of a row that is all padding."""
    import torch

    model = small_model()
    nothing = batch() | {"labels": torch.full((4, 12), IGNORE_INDEX)}
    padded = batch()
    padded["attention_mask"][0] = 0
    yield from values(
        {
            "no_label": str(float(model(**nothing).loss)),
            "padded_row_is_finite": bool(torch.isfinite(model(**padded).logits[0]).all()),
            "num_items_in_batch": attempt(
                lambda: bool(model(**batch(), num_items_in_batch=4).loss > model(**batch()).loss)
            ),
        }
    )


@observation("model")
def half_precision(subject: Subject) -> Iterator[Value]:
    """The loss in bfloat16, with the default kernel: the largest effect of a kernel's rounding."""
    import torch

    model = _load(_stored(subject, "bfloat16"))
    yield from values({"loss": value("", float(model.to(torch.bfloat16)(**batch()).loss), quantity="nats")})
