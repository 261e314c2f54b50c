"""Laws held against the embedded checkpoint, or against small ones of other kinds that are made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from mlmrepro.config import EMBEDDED
from mlmrepro.laws.law import all_laws
from mlmrepro.laws.result import LawResult
from mlmrepro.laws.run import run_law
from mlmrepro.laws.subject import Subject

from ..scoring import tiny

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


def measure(name: str, held: Subject) -> LawResult:
    """Measure one law."""
    (law,) = (each for each in all_laws() if each.name == name)
    return run_law(law, held)


def names(group: str) -> list[str]:
    """Return the laws of a group."""
    return [each.name for each in all_laws() if each.group == group]


def broken(result: LawResult) -> str:
    """Return what is out of its bounds, or what was raised."""
    return "; ".join([*(f"{each.what} = {each.value}" for each in result.broken), result.problem])


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
