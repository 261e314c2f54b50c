"""What laws are tried on: the embedded checkpoint, tiny ones of other architectures, and models that are broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from mlmrepro.config import EMBEDDED
from mlmrepro.laws import checkpoint, fill_mask, model  # noqa: F401 (registers their laws)
from mlmrepro.laws.law import _LAWS, Law
from mlmrepro.laws.result import LawResult
from mlmrepro.laws.run import run_law
from mlmrepro.laws.subject import Subject

from ..scoring import tiny
from ..scoring.test_architectures import ALL, WORDS

ARCHITECTURES = [
    *("RoBERTa", "BERT", "DistilBERT", "ALBERT", "ELECTRA", "DeBERTa", "ModernBERT", "ESM rotary", "BART", "FNet"),
]
TEXTS = tuple(
    " ".join(WORDS[start:] + WORDS[:start] + WORDS[start : start + length])
    for start, length in ((0, 20), (3, 2), (7, 9), (11, 5))
)


def of_group(group: str) -> list[Law]:
    """Return the laws of one of the three groups that are imported here."""
    return [law for law in _LAWS.values() if law.group == group]


def names(group: str) -> list[str]:
    return [law.name for law in of_group(group)]


@cache
def prose() -> tuple[str, ...]:
    """Return answers of the embedded data set."""
    lines = (EMBEDDED / "data" / "askscience.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    return tuple(" ".join(json.loads(line)["answers"]["text"]) for line in lines)


def embedded(folder: Path) -> Subject:
    return Subject(str(EMBEDDED / "checkpoint"), prose(), folder)


def small(folder: Path, name: str = "RoBERTa") -> Subject:
    """Return a random checkpoint of this architecture, wide enough that every token matters to every other."""
    kind, settings = ALL[name]
    if kind not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"this version of transformers has no {kind}")
    tokenizer = tiny.word_level(WORDS)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    size = {"n_words" if kind == "xlm" else "vocab_size": len(tokenizer)}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        fresh = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **{**ids, **size, **settings}))
        for weight in fresh.parameters():
            if weight.requires_grad:
                weight.data += torch.randn_like(weight) * (0.4 if weight.dim() > 1 else 0.1)
    path = folder / "checkpoint"
    fresh.save_pretrained(path)
    tokenizer.save_pretrained(path)
    inputs = ["input_ids"] if kind == "fnet" else ["input_ids", "attention_mask"]
    edit_json(path / "tokenizer_config.json", model_input_names=inputs)
    return Subject(str(path), TEXTS, folder)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def copied(
    subject: Subject,
    folder: Path,
    *,
    weights: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None,
    **config: Any,
) -> Subject:
    """Return the subject's checkpoint with its tensors changed by `weights`, and its config.json by the rest."""
    copy = Path(shutil.copytree(subject.checkpoint, folder / "copy"))
    edit_json(copy / "config.json", **config)
    tensors = load_file(copy / "model.safetensors")
    weights(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return Subject(str(copy), subject.texts, folder / "scratch")


def with_class(subject: Subject, folder: Path, **methods: Any) -> Subject:
    """Return the subject with other methods of its model, which a copy of the model has too."""
    changed = Subject(subject.checkpoint, subject.texts, folder)
    kind = type(changed.model)
    changed.model.__class__ = type(kind.__name__, (kind,), methods)
    return changed


def judged(name: str, subject: Subject, transformers: str | None = None) -> LawResult:
    """Return one law's result, on these versions of transformers or on those that are installed."""
    return run_law(_LAWS[name], subject, versions={"transformers": transformers} if transformers else None)


def broken(subject: Subject, group: str, leaving_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Return what of a group's laws fails, with its numbers or its problem."""
    results = [run_law(law, subject) for law in of_group(group) if law.name not in leaving_out]
    assert len(results) > 5
    return {r.name: r.problem or ", ".join(f"{m.what} {m.value}" for m in r.broken) for r in results if r.verdict.fails}
