"""Laws held against the embedded checkpoint, or against small ones of other kinds that are made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mlmrepro.config import EMBEDDED
from mlmrepro.observations.observe import observe, silenced
from mlmrepro.observations.registry import bounded_observers
from mlmrepro.observations.result import BoundVerdict, ObservationResult
from mlmrepro.observations.subject import Subject

from ..installed import has, needs_model_type
from ..scoring import tiny
from ..scoring.test_architectures import ALL, WORDS

PROTEINS = ("MKTAYIAKQR QISFVKSHFS RQLEERLGLI EVQAPILSRV GDGTQDNLSG AEKAVQVKVK", "GAVLIPFMWS TCYNQDEKRH " * 4) * 3


@cache
def texts() -> tuple[str, ...]:
    """Return some answers of the embedded data."""
    rows = map(json.loads, (EMBEDDED / "data" / "askscience.jsonl").read_text(encoding="utf-8").splitlines())
    return tuple(text for row in rows for text in row["answers"]["text"])[:300]


def subject(folder: Path, checkpoint: Path = EMBEDDED / "checkpoint", *, seed: int = 0) -> Subject:
    """Return what laws are held against: a checkpoint with text of its kind."""
    chosen = PROTEINS if "esm" in checkpoint.name else texts()[:24]
    return Subject(str(checkpoint), chosen, folder, seed)


def measure(name: str, held: Subject, transformers: str | None = None) -> ObservationResult:
    """Measure one law, as if this version of transformers were installed."""
    (observer,) = (each for each in bounded_observers() if each.name == name)
    with silenced():
        return observe(observer, held, versions={"transformers": transformers} if transformers else None)


def assert_known_since(requirement: str, name: str, held: Subject) -> None:
    """Assert that versions with the breach declare it, as they may and older ones may not, and that older ones hold."""
    if has(requirement):
        assert measure(name, held).verdict is BoundVerdict.KNOWN
        assert measure(name, held, "4.41.2").verdict is BoundVerdict.BROKEN
    else:
        assert measure(name, held).verdict is BoundVerdict.HOLDS


def names(group: str) -> list[str]:
    """Return the laws of a group."""
    return [each.name for each in bounded_observers() if each.group == group]


def broken(result: ObservationResult) -> str:
    """Return what is out of its bounds, or what was raised."""
    return "; ".join([*(f"{each.name} = {each.value}" for each in result.broken), result.problem])


def assert_broken(name: str, held: Subject, what: str) -> None:
    """Assert that the law is broken, and that `what` stands in its numbers or its problem."""
    result = measure(name, held)
    assert result.verdict is BoundVerdict.BROKEN
    assert what in broken(result)


def failing(held: Subject, group: str, leaving_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Return what of a group's laws fails, with its numbers or its problem."""
    results = [measure(name, held) for name in names(group) if name not in leaving_out]
    assert len(results) > 5
    return {result.name: broken(result) for result in results if result.verdict.fails}


# Small checkpoints of other tokenizers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MASK = AddedToken("[MASK]", lstrip=True, normalized=False, special=True)


def _byte_level() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(core, trainers.BpeTrainer, vocab_size=1500, initial_alphabet=alphabet)


def _word_piece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return _trained(core, trainers.WordPieceTrainer, vocab_size=1500)


def _word_piece_of_small_letters() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return _trained(core, trainers.WordPieceTrainer, vocab_size=1500)


def _unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _trained(core, trainers.UnigramTrainer, vocab_size=1000, unk_token="[UNK]")


def _trained(core: Tokenizer, trainer: Any, **options: Any) -> Tokenizer:
    core.train_from_iterator(texts(), trainer(special_tokens=SPECIAL, show_progress=False, **options))
    core.add_special_tokens([MASK])
    around = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return core


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": _byte_level,
    "WordPiece": _word_piece,
    "WordPiece of small letters": _word_piece_of_small_letters,
    "unigram": _unigram,
}


@cache
def _core(kind: str) -> str:
    return KINDS[kind]().to_str()


def checkpoint(
    kind: str,
    folder: Path,
    edit: Callable[[dict[str, Any]], Any] = lambda content: None,
    *,
    rows: int = 0,
    **options: Any,
) -> Path:
    """Write a small checkpoint; `edit` changes its tokenizer.json, `rows` are missing in its embedding."""
    if kind == "esm":
        path = folder / "esm"
        path.mkdir()
        tokenizer: Any = tiny.esm(path)
    else:
        path = folder / "checkpoint"
        content = json.loads(_core(kind))
        edit(content)
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
        mask = next((each for each in content["added_tokens"] if each["content"] == "[MASK]"), {"lstrip": True})
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(content)),
            mask_token=AddedToken("[MASK]", lstrip=mask["lstrip"], normalized=False, special=True),
            model_max_length=64,
            **names,
            **options,
        )
    tokenizer.save_pretrained(path)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer) - rows, max_position_embeddings=64, **size)).save_pretrained(
        path
    )
    return path


# Small checkpoints of other architectures, and broken ones

ARCHITECTURES = [
    *("RoBERTa", "BERT", "DistilBERT", "ALBERT", "ELECTRA", "DeBERTa", "ModernBERT", "ESM rotary", "BART", "FNet"),
]
TEXTS = tuple(
    " ".join(WORDS[start:] + WORDS[:start] + WORDS[start : start + length])
    for start, length in ((0, 20), (3, 2), (7, 9), (11, 5))
)


def small(folder: Path, name: str = "RoBERTa") -> Subject:
    """Return a random checkpoint of this architecture, wide enough that every token matters to every other."""
    kind, settings = ALL[name]
    needs_model_type(kind)
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


def with_few_tokens(folder: Path) -> Path:
    """Write a random RoBERTa with a tokenizer such as the embedded one, but with 600 tokens: a fast golden run."""
    embedded: Any = AutoTokenizer.from_pretrained(str(EMBEDDED / "checkpoint"))
    tokenizer = embedded.train_new_from_iterator(texts(), 600)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
        pad_token_id=1,
        initializer_range=0.2,  # far from the uniform distribution, so that each change of a weight is seen
    )
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(folder / "few")
    tokenizer.save_pretrained(folder / "few")
    return folder / "few"


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
