"""Tokenizers and models of a few parameters, and the losses of a model by the plainest means there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mlmrepro.scoring.encode import Encoded

# Words of one piece and of several, marks of punctuation, words that no tokenizer here knows, and a written-out [MASK].
TEXTS = [
    "the moon turns around the earth, unseen.",
    "ice is cold",
    "water is wet, and the [MASK] sea is unseen and seen and turned; zyx moons turn around the turning earth. " * 2,
    "the sun turns cold and the ice turns wet",
]
_PIECES = [
    *("the", "moon", "turn", "##s", "##ed", "##ing", "around", "earth", "un", "##seen", "seen", "ice"),
    *("is", "cold", "water", "wet", "and", "sea", "sun", ",", ".", ";"),
]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ESM = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWC", "<mask>"]


def word_piece(max_length: int = 40) -> PreTrainedTokenizerBase:
    """Return a tokenizer such as BERT's."""
    vocabulary = {token: n for n, token in enumerate([*BERT, *_PIECES])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    core.decoder = decoders.WordPiece()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=max_length, **dict(zip(names, BERT, strict=True))
    )


def byte_level(max_length: int = 40) -> PreTrainedTokenizerBase:
    """Return a tokenizer such as RoBERTa's, with a token for each byte and a few pairs of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "t"), ("u", "r"), ("Ġt", "ur"), ("Ġtur", "n"), ("i", "s")]
    vocabulary = {token: n for n, token in enumerate([*ROBERTA, *alphabet, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        **{"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"},
        **{"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"},
    )


def word_level(words: Iterable[str], special: Sequence[str] = ROBERTA) -> PreTrainedTokenizerBase:
    """Return a tokenizer of whole words, with RoBERTa's special tokens."""
    vocabulary = {word: n for n, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"},
        **{"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"},
    )


def esm(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of ESM, which exists in Python only and tells no offsets."""
    from transformers import EsmTokenizer

    (folder / "vocab.txt").write_text("\n".join(ESM))
    return EsmTokenizer(str(folder / "vocab.txt"))


def bert(seed: int = 0, **changes: Any) -> BertForMaskedLM:
    """Return a model for `word_piece`, not yet in evaluation mode; a seed always gives the same weights."""
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    settings = {"vocab_size": len(BERT) + len(_PIECES), "max_position_embeddings": 40, "pad_token_id": 0, **size}
    model = BertForMaskedLM(BertConfig(**{**settings, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):  # not the library's order, which changes with its version
            if weight.dim() > 1:  # wide: two tokens have two losses, and what stands around a token changes its loss
                weight.normal_(0, 0.3, generator=generator)
    return model


def log_probabilities(model: Any, row: Sequence[int], masked: Sequence[int], mask_id: int) -> np.ndarray:
    """Return float64 log-probabilities, (length, vocabulary), of one row alone, `masked` positions hidden from it."""
    ids = torch.tensor([[mask_id if n in masked else token for n, token in enumerate(row)]])
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits[0].double().log_softmax(dim=-1).numpy()


def document(
    length: int, *, special: Iterable[int] = (), words: Sequence[int] | None = None, windows: Sequence[int] = ()
) -> Encoded:
    """Return a document of `length` tokens, cut before the tokens `windows`, without any tokenizer."""
    bounds = [0, *windows, length]
    owner = np.arange(length) if words is None else np.array(words)
    return Encoded(
        ids=np.arange(10, 10 + length, dtype=np.int32),
        maskable=~np.isin(np.arange(length), list(special)),
        words=owner.astype(np.int32),
        pieces=owner.astype(np.int32),
        ends=np.arange(1, length + 1, dtype=np.int32),
        windows=tuple(pairwise(bounds)) if length else (),
    )
