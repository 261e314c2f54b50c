"""A masked language model that is made in no time, and graded ones beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM

from mlmrepro.config import EMBEDDED
from mlmrepro.scoring.documents import Text, read_text

Maker = Callable[..., str]


@pytest.fixture(scope="session")
def lines(text: Text) -> list[str]:
    return [document.text for document in text.documents]


@pytest.fixture(scope="session")
def tokenizers(lines: list[str]) -> tuple[Any, Any]:
    """Return two byte-level tokenizers with 600 and 1,200 tokens: a small vocabulary makes a fast head."""
    embedded: Any = AutoTokenizer.from_pretrained(str(EMBEDDED / "checkpoint"))
    return embedded.train_new_from_iterator(lines, 600), embedded.train_new_from_iterator(lines, 1200)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizers: tuple[Any, Any], lines: list[str]) -> Maker:
    """Return a maker of checkpoints: an encoder that knows nothing and a head that knows each token's frequency.

    `knowledge` 1 is the head as counted, 0 knows nothing: the perplexity is the higher, the less it knows.
    """
    made: dict[tuple, str] = {}

    def make(knowledge: float = 1.0, *, positions: int = 130, weight: float = 0.0, other: bool = False) -> str:
        key = (knowledge, positions, weight, other)
        if key not in made:
            torch.manual_seed(0)
            tokenizer = tokenizers[other]
            ids = [token for row in tokenizer(lines, verbose=False)["input_ids"] for token in row]
            counts = torch.bincount(torch.tensor(ids), minlength=len(tokenizer))
            config = RobertaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=positions,
                pad_token_id=1,
            )
            model = RobertaForMaskedLM(config)
            with torch.no_grad():
                model.lm_head.bias.copy_(knowledge * (counts + 1).log())
                if weight:
                    model.lm_head.dense.weight[0, 0] = weight
            folder = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = str(folder)
        return made[key]

    return make


@pytest.fixture(scope="session")
def text() -> Text:
    return read_text("embedded", limit=12)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, text: Text) -> Path:
    path = tmp_path_factory.mktemp("text") / "eval.jsonl"
    rows = ({"text": d.text, "topic": "even" if n % 2 else "odd"} for n, d in enumerate(text.documents))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
