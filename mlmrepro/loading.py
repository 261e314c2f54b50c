"""A checkpoint's tokenizer and model, from a folder or the hub: safetensors only, and none of its code is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_folder", "load_model", "load_tokenizer", "max_block_size", "positions"]

# RoBERTa and what was built on it count positions from padding_idx + 1.
_POSITIONS_AFTER_PADDING = (
    "roberta",
    "roberta-prelayernorm",
    "camembert",
    "xlm-roberta",
    "xlm-roberta-xl",
    "longformer",
    "xmod",
    "mpnet",
    "data2vec-text",
    "ibert",
    "esm",
    "luke",
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")


def check_folder(checkpoint: str) -> None:
    """Raise UserError where a folder is meant that is not there."""
    # A hub name is "name" or "owner/name"; anything else is meant as a folder.
    meant_as_folder = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1
    if meant_as_folder and not Path(checkpoint).is_dir():
        raise UserError(f"the checkpoint folder {checkpoint} does not exist", remedy="give the path of a folder")


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer; raises UserError where there is none or it has no mask token."""
    from transformers import AutoTokenizer

    check_folder(checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # the libraries raise a dozen kinds for an unreadable tokenizer
        raise UserError(
            f"the tokenizer of {checkpoint!r} cannot be loaded: {first_line(error)}",
            remedy="give a folder that holds tokenizer.json, or a name that the hub can be reached for; "
            "the embedded one works offline",
        ) from error
    if tokenizer.mask_token is None:
        raise UserError(
            f"the tokenizer of {checkpoint!r} has no mask token",
            remedy="give the checkpoint of a masked language model, such as a RoBERTa or a BERT",
        )
    return tokenizer


def max_block_size(checkpoint: str, model_max_length: int) -> int:
    """Return how many tokens a row may have: the tokenizer's limit or the model's positions, the smaller one."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:
        raise _unloadable(checkpoint, error) from error
    return positions(config, model_max_length)


def positions(config: Any, model_max_length: int) -> int:
    """Return how many tokens a model of this configuration reads at once, special tokens included."""
    count = getattr(config, "max_position_embeddings", None) or model_max_length
    if config.model_type in _POSITIONS_AFTER_PADDING:
        count -= (config.pad_token_id or 0) + 1
    return int(min(model_max_length, count))


def load_model(checkpoint: str) -> PreTrainedModel:
    """Return the masked language model of a hub name or folder, from safetensors only.

    Raises UserError where it cannot be read, is of another kind (a causal model), or lacks weights, which the
    library would fill with random numbers and a warning (an encoder without its language-model head).
    """
    from transformers import AutoModelForMaskedLM

    # transformers 4.41 reads a folder's pickles in spite of use_safetensors=True.
    folder = Path(checkpoint)
    if folder.is_dir() and not any((folder / name).is_file() for name in _SAFETENSORS):
        raise UserError(
            f"the checkpoint folder {checkpoint} has no {_SAFETENSORS[0]}",
            remedy="save the model as safetensors (save_pretrained with safe_serialization): pickles are not read",
        )
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            checkpoint, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # OSError, ValueError, SafetensorError, RuntimeError ...: one message for the user
        raise _unloadable(checkpoint, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"the checkpoint {checkpoint!r} has no weights for {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            remedy="give a checkpoint with a masked-language-model head (saved from an AutoModelForMaskedLM)",
        )
    return model


def _unloadable(checkpoint: str, error: Exception) -> UserError:
    reason = first_line(error)
    if "Unrecognized configuration class" in reason:
        reason = "its architecture has no masked-language-model head"
    return UserError(
        f"the checkpoint {checkpoint!r} cannot be loaded: {reason}",
        remedy="give a folder with config.json and model.safetensors of a masked language model, or a name that the "
        "hub can be reached for; the embedded one works offline",
    )
