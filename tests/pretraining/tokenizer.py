"""The embedded tokenizer: a byte-level BPE with RoBERTa's special tokens, in files that every version reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlmrepro.files import atomic_write

__all__ = ["MASK", "SPECIAL_TOKENS", "train_tokenizer"]

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in RoBERTa
MASK = "<mask>"  # the last id; takes the space before it


def train_tokenizer(texts: Iterable[str], directory: Path, *, vocab_size: int, min_frequency: int, length: int) -> None:
    """Train on `texts` and write `tokenizer.json`, `tokenizer_config.json`, `vocab.json` and `merges.txt`.

    `vocab_size` counts every id, `<mask>` among them; `length` becomes `model_max_length` (tokens).
    """
    from tokenizers import AddedToken, ByteLevelBPETokenizer, processors

    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train_from_iterator(
        texts,
        vocab_size=vocab_size - 1,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    bpe.add_special_tokens([AddedToken(MASK, lstrip=True, normalized=False)])
    tokenizer = bpe._tokenizer
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    content = json.loads(tokenizer.to_str())
    # tokenizers 0.20 and later write merges as pairs, which tokenizers 0.19 (transformers 4.41) cannot read;
    # the older form, one string a merge, is read by both. No merge of a byte-level BPE holds a space.
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    content["model"]["merges"] = merges
    vocabulary = content["model"]["vocab"]
    config = {
        "tokenizer_class": "RobertaTokenizer",
        "model_max_length": length,
        "add_prefix_space": False,
        "trim_offsets": True,
        "errors": "replace",
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": {
            "__type": "AddedToken",
            "content": MASK,
            "lstrip": True,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
        },
    }
    atomic_write(directory / "tokenizer.json", _compact(content))
    atomic_write(directory / "vocab.json", _compact(vocabulary | {MASK: vocab_size - 1}))
    atomic_write(directory / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    atomic_write(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def _compact(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
