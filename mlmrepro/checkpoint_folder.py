"""Inspect a checkpoint's folder: which weights are read, what is not used, and what would load as another model.

Only names, shapes and JSON are read, never a weight, a pickle or code; neither torch nor transformers is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError, first_line

__all__ = [
    "Unused",
    "check_own_code",
    "check_own_code_of_tokenizer",
    "few",
    "inspect",
    "names",
    "sort_unexpected",
    "star",
    "without_adapter",
]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Files that Trainer needs to resume; they hold no model weights.
_OF_TRAINING = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)$")
_PICKLE = re.compile(r"\.(bin|pt|pth|ckpt|pkl)$")
_POINTER = b"version https://git-lfs"
_OTHER_FORMAT = re.compile(r"\.(h5|msgpack|onnx|ot|gguf)$")
_OF_ADAPTER = re.compile(r"^adapter_|^pytorch_adapter")
# Classes in whose place custom code would be run.
_LOADED_CLASSES = ("AutoConfig", "AutoModelForMaskedLM", "AutoTokenizer")
# Components that torch.compile, data parallelism, FSDP and activation checkpointing add to the names of weights.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_DATA_PARALLEL = "module"
# Parts of a checkpoint that never take part in masked language modelling: pooled output, the sentence heads of BERT and
# ALBERT, ESM's contacts, and tables that the configuration determines (positions, rotary frequencies, causal masks).
_HARMLESS = re.compile(
    r"(^|[._])(pooler|seq_relationship|sop_classifier|contact_head|position_ids|token_type_ids|inv_freq|masked_bias|"
    r"num_batches_tracked)([._]|$)"
)


@dataclass(frozen=True)
class Unused:
    """Something in the checkpoint's folder that is not used for any result.

    `kind` is "adapter", "format" (weights in another format, equal or not), "weights" (another safetensors file),
    "pickle", "code", "class" (that config.json names and transformers does not have), "head" (stored weights of another
    head) or "folder" (a folder with weights of its own).
    """

    kind: str
    names: tuple[str, ...]
    used: str = ""  # what is read instead
    side: str = ""  # "baseline" if it is in the baseline's folder, "" for the checkpoint at hand


def inspect(folder: Path) -> tuple[Unused, ...]:
    """Return what is in the folder but not used.

    Raises UserError if no model can be read (no configuration, no safetensors, a damaged or missing shard), and if
    loading would give another model than its owner runs (custom code, names that a wrapper changed).
    """
    check_own_code(_json(folder / "config.json"), folder, "config.json")
    check_own_code_of_tokenizer(folder)
    files = _files(folder)
    used = _used(folder, files)
    if "config.json" not in files:
        raise UserError(
            f"the checkpoint folder {folder} has no config.json", remedy="save the model with save_pretrained"
        )
    _check_wrappers(folder, used)
    return tuple(_unused(folder, files, used))


def check_config(folder: Path) -> None:
    """Raise UserError if config.json is damaged; a folder with only a tokenizer has none."""
    path = folder / "config.json"
    try:
        json.loads(path.read_text(encoding="utf-8") if path.exists() else "{}")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {first_line(error)}", remedy="copy the file again") from error


def check_own_code_of_tokenizer(folder: Path) -> None:
    """Raise UserError if tokenizer_config.json names custom code."""
    check_own_code(_json(folder / "tokenizer_config.json"), folder, "tokenizer_config.json")


def names(folder: Path) -> list[str]:
    """Return the names of the weights that are read, as stored in the files; raises UserError as `inspect` does."""
    return [name for file in _used(folder, _files(folder)) for name in _names(folder / file)]


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def check_own_code(config: Mapping[str, Any], checkpoint: object, file: str) -> None:
    """Raise UserError if a configuration names custom code for a class that is loaded here."""
    classes = config.get("auto_map")
    if isinstance(classes, list):  # the old form of tokenizer_config.json: (slow, fast)
        classes = {"AutoTokenizer": classes} if any(classes) else {}
    named = [name for name in _LOADED_CLASSES if isinstance(classes, dict) and classes.get(name)]
    if named:
        code = classes[named[0]]  # type: ignore[index]
        code = next((part for part in code if part), code) if isinstance(code, list) else code
        raise UserError(
            f"the checkpoint {str(checkpoint)!r} cannot be loaded: its {file} names custom code for {named[0]} "
            f"({code}), which is never run, and the built-in class may compute something else",
            remedy=f"if you use the built-in class yourself, remove auto_map from {file} in a copy",
        )


def _used(folder: Path, files: Collection[str]) -> list[str]:
    """Return the weight files that transformers reads: a single file takes precedence over shards."""
    if WEIGHTS in files:
        return [WEIGHTS]
    if INDEX in files:
        shards = _json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{folder / INDEX} names no weights", remedy="save the model again with save_pretrained")
        for name in sorted(set(map(str, shards.values()))):
            if name not in files:
                raise UserError(
                    f"the checkpoint {str(folder)!r} cannot be loaded: {INDEX} names {name}, "
                    "which is not in the folder",
                    remedy="copy the missing file, or save the model again with save_pretrained",
                )
        return sorted(set(map(str, shards.values())))
    if ADAPTER in files:
        adapter = _json(folder / ADAPTER)
        base = adapter.get("base_model_name_or_path") or "a base model that it does not name"
        raise UserError(
            f"{folder} holds an adapter ({adapter.get('peft_type') or 'of unknown type'}) of {base}, but no model",
            remedy=_merge(str(adapter.get("base_model_name_or_path") or "BASE"), str(folder)),
        )
    pickles = sorted(name for name in files if _PICKLE.search(name) and not _OF_TRAINING.search(name))
    others = sorted(name for name in files if name.endswith(".safetensors"))
    remedy = "save the model as safetensors (save_pretrained with safe_serialization): pickles are not read"
    if others:
        remedy = f"if it is the whole model, rename it to {WEIGHTS}; otherwise save the model with save_pretrained"
    elif not pickles and (inner := _inner(folder)):
        remedy = f"give one of the folders in it: {few(inner)}"
    found = others or pickles
    raise UserError(
        f"the checkpoint folder {folder} has no {WEIGHTS}" + (f", only {few(found)}" if found else ""), remedy=remedy
    )


def _merge(base: str, folder: str) -> str:
    return (
        f"merge it with PEFT installed: PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained({base!r}), "
        f"{folder!r}).merge_and_unload().save_pretrained('merged'), save the tokenizer there too, and give that folder"
    )


def _names(file: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file; raises UserError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        with file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise UserError(
                    f"the checkpoint {str(file.parent)!r} cannot be loaded: {file.name} is a Git LFS pointer, "
                    "not the weights",
                    remedy="fetch them with git lfs pull",
                ) from error
        raise UserError(
            f"the checkpoint {str(file.parent)!r} cannot be loaded: {file.name} is damaged or truncated "
            f"({first_line(error)})",
            remedy="copy the file again, or save the model again with save_pretrained",
        ) from error


def _check_wrappers(folder: Path, files: Sequence[str]) -> None:
    stored = names(folder)
    wrapped = {name: found for name in stored if (found := _wrappers(name))}
    if wrapped:
        prefixes = sorted({f"{part}." for found in wrapped.values() for part in found})
        first = next(iter(wrapped))
        inner = "|".join(_WRAPPERS)
        pattern = rf"^(({_DATA_PARALLEL}|{inner})\.)+|\b({inner})\."
        whole = len(wrapped) == len(stored)
        who = "all names" if whole else f"{len(wrapped)} of {len(stored)} names"
        raise UserError(
            f"{who} of the weights in {folder} contain {' and '.join(prefixes)} (such as {first}), which torch.compile "
            "or distributed training adds: loading would leave these weights out",
            remedy="save the model inside the wrapper (model._orig_mod or model.module), or strip the names: "
            f"import re; from safetensors.torch import load_file, save_file; weights = load_file({files[0]!r}); "
            f"save_file({{re.sub(r'{pattern}', '', n): w for n, w in weights.items()}}, {files[0]!r}, "
            "metadata={'format': 'pt'})"
            + (f"; do so for each of the {len(files)} files, and in {INDEX}" if len(files) > 1 else ""),
        )


def _wrappers(name: str) -> list[str]:
    """Return the components of a weight's name that come from a wrapper; `module` counts only at the beginning."""
    found = []
    leading = True
    for part in name.split("."):
        leading = leading and part in (*_WRAPPERS, _DATA_PARALLEL)
        if part in _WRAPPERS or (leading and part == _DATA_PARALLEL):
            found.append(part)
    return found


def _unused(folder: Path, files: Collection[str], used: Collection[str]) -> Iterator[Unused]:
    read = WEIGHTS if WEIGHTS in used else INDEX
    rest = sorted(set(files) - set(used))
    if adapter := [name for name in rest if _OF_ADAPTER.search(name)]:
        yield Unused("adapter", tuple(adapter), read)
    rest = [name for name in rest if name not in adapter]
    placed = _json(folder / INDEX).get("weight_map") if INDEX in files else None
    shards = set(map(str, placed.values())) if isinstance(placed, dict) else set()
    formats = [name for name in rest if (name == INDEX and read != INDEX) or name in shards]
    formats += [name for name in rest if _OTHER_FORMAT.search(name)]
    if formats:
        yield Unused("format", tuple(formats), read)
    if weights := [name for name in rest if name.endswith(".safetensors") and name not in formats]:
        yield Unused("weights", tuple(weights), read)
    if pickles := [name for name in rest if _PICKLE.search(name) and not _OF_TRAINING.search(name)]:
        yield Unused("pickle", tuple(pickles), read)
    if code := [name for name in rest if name.endswith(".py")]:
        yield Unused("code", tuple(code))
    if inner := _inner(folder):
        yield Unused("folder", tuple(inner), read)


def _inner(folder: Path) -> list[str]:
    """Return the folders within this one that hold weights, at any depth."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.rglob("*.safetensors")))


def sort_unexpected(unexpected: Iterable[str], model: Collection[str], encoder: str) -> tuple[list[str], list[str]]:
    """Sort stored weights that have no place in the model: (those it was trained with, those of other heads).

    `model` holds the names of the loaded model's weights and `encoder` is the prefix of its encoder's, such as
    "roberta". The model was trained with a weight that differs from one of its own only by an index (another layer),
    and with one of the encoder or of its own head, except for parts without a role in masked language modelling, such
    as a pooler.
    """
    kinds = {star(name) for name in model}
    parts = {name.partition(".")[0] for name in model} | {encoder}
    trained, others = [], []
    for name in sorted(unexpected):
        if star(name) in kinds or (name.partition(".")[0] in parts and not _HARMLESS.search(name)):
            trained.append(name)
        else:
            others.append(name)
    return trained, others


def star(name: str) -> str:
    """Return a weight's name with a star in place of each index: the same for all layers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def few(names: Iterable[str]) -> str:
    """Return three names at most, and how many more there are."""
    found = sorted(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


@contextmanager
def without_adapter(checkpoint: str) -> Iterator[str]:
    """Yield a place to load from without an adapter: transformers would apply one if PEFT is installed.

    For a folder with an adapter this is a folder of links to its other files; otherwise it is the checkpoint itself.
    """
    folder = Path(checkpoint)
    if not (folder / ADAPTER).is_file():
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="mlmrepro-") as plain:
        for path in folder.iterdir():
            if path.is_file() and not _OF_ADAPTER.search(path.name):
                try:
                    os.symlink(path.resolve(), Path(plain, path.name))
                except OSError:  # Windows needs a privilege for links
                    shutil.copyfile(path, Path(plain, path.name))
        yield plain


def _json(file: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if the file is missing or damaged, which transformers reports better."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
