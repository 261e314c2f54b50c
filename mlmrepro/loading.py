"""Load a checkpoint's tokenizer and model, from a folder or the hub: only safetensors, and never custom code."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro import checkpoint_folder
from mlmrepro.checkpoint_folder import Unused, few, star
from mlmrepro.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_folder", "inspect", "load_model", "load_tokenizer", "max_block_size", "positions"]

_TOKENIZER_FILE = re.compile(r"^tokenizer|vocab|^merges\.txt$|\.model$|^bpe\.|^dict\.txt$|\.tiktoken$|^tekken\.json$")

# How transformers 4 and 5 begin their messages about weights that do not fit.
_REPORTS = ("Some weights of", "This checkpoint seem")
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


def check_folder(checkpoint: str) -> None:
    """Raise UserError for a folder that does not exist, or whose configuration cannot be read."""
    # A hub name is "name" or "owner/name"; anything else is meant as a folder.
    meant_as_folder = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1
    if meant_as_folder and not Path(checkpoint).is_dir():
        raise UserError(f"the checkpoint folder {checkpoint} does not exist", remedy="give the path of a folder")
    if Path(checkpoint).is_dir():
        checkpoint_folder.check_config(Path(checkpoint))


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer; raises UserError if there is none or it has no mask token."""
    from transformers import AutoTokenizer

    check_folder(checkpoint)
    _check_tokenizer_files(Path(checkpoint))
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # the libraries raise a dozen kinds for an unreadable tokenizer
        raise UserError(
            f"the tokenizer of {checkpoint!r} cannot be loaded: {first_line(error)}",
            remedy="give a folder with tokenizer.json, or a hub name if the hub can be reached; "
            "the embedded checkpoint works offline",
        ) from error
    _check_vocabulary(Path(checkpoint), tokenizer)
    if tokenizer.mask_token is None:
        raise UserError(
            f"the tokenizer of {checkpoint!r} has no mask token",
            remedy="give the checkpoint of a masked language model, such as a RoBERTa or a BERT",
        )
    return tokenizer


def _check_tokenizer_files(folder: Path) -> None:
    if not folder.is_dir():
        return
    checkpoint_folder.check_own_code_of_tokenizer(folder)
    if not any(_TOKENIZER_FILE.search(path.name) for path in folder.iterdir()):
        raise UserError(
            f"no tokenizer file in the folder {folder}",
            remedy="save the tokenizer next to the model: tokenizer.save_pretrained(folder)",
        )


def _check_vocabulary(folder: Path, tokenizer: Any) -> None:
    """Raise UserError if vocabulary files are missing: transformers 5 goes on with only the special tokens."""
    if not folder.is_dir() or any(folder.glob("tokenizer.*json")):
        return
    files = {name: file for name, file in tokenizer.vocab_files_names.items() if name != "tokenizer_file"}
    missing = [file for file in files.values() if isinstance(file, str) and not (folder / file).is_file()]
    if missing or (not files and tokenizer.vocab_files_names):
        raise UserError(
            f"no tokenizer file in the folder {folder}: {type(tokenizer).__name__} reads tokenizer.json"
            + (f" or {', '.join(files.values())}" if files else ""),
            remedy="save the tokenizer next to the model: tokenizer.save_pretrained(folder)",
        )


def max_block_size(checkpoint: str, model_max_length: int) -> int:
    """Return how many tokens a row may have: the smaller of the tokenizer's limit and the model's positions."""
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


def inspect(checkpoint: str) -> tuple[Unused, ...]:
    """Return what is in a checkpoint's folder but not used; nothing for a hub name.

    Raises UserError for a folder that does not exist, or whose weights cannot be read as its owner reads them.
    """
    check_folder(checkpoint)
    return checkpoint_folder.inspect(Path(checkpoint)) if Path(checkpoint).is_dir() else ()


def load_model(checkpoint: str, *, unused: list[Unused] | None = None, refuse_unread: bool = True) -> PreTrainedModel:
    """Return the masked language model of a hub name or folder, from safetensors only.

    Unused things in the folder are added to `unused`. Raises UserError if the model cannot be read, is of another kind
    (a causal model), lacks weights (an encoder without its language-model head; the library would only warn and fill
    them with random numbers), or was trained with weights that its configuration has no place for; without
    `refuse_unread` the caller must report the latter.
    """
    import transformers

    found = list(inspect(checkpoint))
    with checkpoint_folder.without_adapter(checkpoint) as place:
        try:
            model, info = _loaded(place)
        except Exception as error:  # OSError, ValueError, SafetensorError, RuntimeError ...: one message for the user
            _refuse_shapes(checkpoint, place, error)
            raise _unloadable(checkpoint, error) from error
    model.config._name_or_path = checkpoint
    checkpoint_folder.check_own_code(vars(model.config), checkpoint, "config.json")  # for a hub name
    _refuse_missing(checkpoint, info["missing_keys"], info["unexpected_keys"])
    names = model.state_dict()
    trained, others = checkpoint_folder.sort_unexpected(info["unexpected_keys"], names, model.base_model_prefix)
    if trained and refuse_unread:
        raise UserError(
            f"the checkpoint {checkpoint!r} holds weights that its config.json has no place for: {few(trained)}",
            remedy="give the config.json that the weights were saved with (num_hidden_layers among others), or save "
            "the model again with save_pretrained",
        )
    if others:
        found.append(Unused("head", tuple(others)))
    if own := [name for name in model.config.architectures or () if not hasattr(transformers, name)]:
        found.append(Unused("class", tuple(own), type(model).__name__))
    if unused is not None:
        unused += found
    return model


def _loaded(place: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    from transformers import AutoModelForMaskedLM

    # transformers 4.41 reads a folder's pickles in spite of use_safetensors=True: `inspect` refuses those.
    with _without_report():
        return AutoModelForMaskedLM.from_pretrained(
            place, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers' report of missing and unused weights off standard error: the result or the error has it.

    Other warnings pass, and so does everything if a caller collects the messages with handlers of its own.
    """
    import logging

    def passes(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "LOAD REPORT" not in message and not message.startswith(_REPORTS)

    handlers = [each for each in logging.getLogger("transformers").handlers if isinstance(each, logging.StreamHandler)]
    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


def _refuse_missing(checkpoint: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    if not missing:
        return
    stored = {star(name) for name in _stored(checkpoint)}
    layers = [name for name in missing if star(name) in stored]
    remedy = "give a checkpoint with a masked-language-model head (saved from an AutoModelForMaskedLM)"
    if len(layers) == len(missing):
        remedy = (
            "give the config.json that the weights were saved with: it asks for layers that the file does not hold "
            "(num_hidden_layers among others)"
        )
    elif unexpected:
        remedy += f"; the file holds {few(unexpected)}, which the model does not have"
    raise UserError(f"the checkpoint {checkpoint!r} has no weights for {few(missing)}", remedy=remedy)


def _stored(checkpoint: str) -> list[str]:
    return checkpoint_folder.names(Path(checkpoint)) if Path(checkpoint).is_dir() else []


def _refuse_shapes(checkpoint: str, place: str, error: Exception) -> None:
    """Raise UserError with the tensors whose shapes do not fit, if that is why the model was not loaded."""
    if not isinstance(error, RuntimeError):
        return
    try:
        _, info = _loaded(place, ignore_mismatched_sizes=True)
    except Exception:  # something else is wrong as well: the first error is reported
        return
    wrong = sorted((name, tuple(stored), tuple(wanted)) for name, stored, wanted in info["mismatched_keys"])
    if wrong:
        told = [f"{name} is {stored} in the file, but {wanted} by config.json" for name, stored, wanted in wrong]
        raise UserError(
            f"the checkpoint {checkpoint!r} cannot be loaded because shapes do not fit: {'; '.join(told[:3])}"
            + (f"; and {len(told) - 3} more" if len(told) > 3 else ""),
            remedy="give the config.json that the weights were saved with",
        ) from error


def _unloadable(checkpoint: str, error: Exception) -> UserError:
    reason = first_line(error)
    if "Unrecognized configuration class" in reason:
        reason = "its architecture has no masked-language-model head"
    return UserError(
        f"the checkpoint {checkpoint!r} cannot be loaded: {reason}",
        remedy="give a folder with config.json and model.safetensors of a masked language model, or a hub name if the "
        "hub can be reached; the embedded checkpoint works offline",
    )
