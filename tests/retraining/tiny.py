"""A masked language model of 16 dimensions and a text of some hundred words: a check of it takes milliseconds."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from mlmrepro.scoring.documents import Document, Text, read_text
from mlmrepro.scoring.encode import words_of

TEXT = Text("short", tuple(Document(d.name, d.text[:150]) for d in read_text("embedded", limit=12).documents))
_SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def tokenizer() -> PreTrainedTokenizerBase:
    """Return a fast tokenizer that knows every word of the text."""
    words = sorted({word for document in TEXT.documents for word in words_of(document.text)})
    vocabulary = {word: n for n, word in enumerate([*_SPECIAL.values(), *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [(name, vocabulary[name]) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **_SPECIAL)


def model(seed: int = 0) -> RobertaForMaskedLM:
    """Return the model; a seed always gives the same weights."""
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RobertaForMaskedLM(RobertaConfig(vocab_size=len(tokenizer()), max_position_embeddings=66, **size))
