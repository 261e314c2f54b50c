"""The embedded checkpoint: small, safe to load, and with the tokenizer that it says it has."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlmrepro import loading
from mlmrepro.config import EMBEDDED, GuideConfig
from mlmrepro.guide import fill_mask
from tests.pretraining.examination import examine
from tests.pretraining.phases import Phase, corrupt

CHECKPOINT = EMBEDDED / "checkpoint"

# Of the ids of every title and answer of the embedded data, in order: equal under every supported version.
IDS_DIGEST = "2679e5e74eaaa889"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(CHECKPOINT))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CHECKPOINT / "pretraining.json").read_text())
    return content


def test_it_is_small_and_holds_no_pickle() -> None:
    """At most 16 MB with its tokenizer; the weights are safetensors and nothing else."""
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert sum(files.values()) <= 16_000_000
    assert {name for name in files if not name.endswith((".json", ".txt"))} == {"model.safetensors"}


def test_its_weights_are_stored_in_half_and_used_in_full_precision() -> None:
    """float16 on disk, float32 in the model, whichever default the library has."""
    with safe_open(CHECKPOINT / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}
    assert {parameter.dtype for parameter in loading.load_model(str(CHECKPOINT)).parameters()} == {torch.float32}


def test_its_tokenizer_is_built_as_robertas(tokenizer: PreTrainedTokenizerBase) -> None:
    """Byte-level BPE with RoBERTa's special tokens; `<mask>` takes the space before it, any text comes back."""
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    with_space, without = (tokenizer(f"is a{space}<mask> galaxy")["input_ids"] for space in (" ", ""))
    assert with_space == without
    assert [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in (" spiral", " galaxy")] == [1, 1]
    for text in ("naïve – 1.5 × 10⁸ km\n\tπ≈3", "👩‍🚀", " two  spaces "):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.unk_token_id not in ids


def test_its_tokenizer_gives_the_same_ids_under_every_version(tokenizer: PreTrainedTokenizerBase) -> None:
    """The ids of the whole embedded data set have one digest, with the oldest and the newest libraries."""
    sha = hashlib.sha256()
    for line in (EMBEDDED / "data" / "askscience.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for ids in tokenizer([row["title"], *row["answers"]["text"]])["input_ids"]:
            sha.update(json.dumps(ids).encode())
    assert sha.hexdigest()[:16] == IDS_DIGEST


def test_it_has_learnt_a_fortieth_of_the_unigram_perplexity(record: dict[str, Any]) -> None:
    """The figures of the pretraining, on held-out documents with the selected tokens replaced by <mask>."""
    for figures in record["figures"].values():
        assert figures["mask only"]["ratio"] >= 40
        for figure in figures.values():
            assert figure["ratio"] == pytest.approx(figure["unigram_perplexity"] / figure["perplexity"])


@pytest.mark.parametrize("half", ["open", "sealed"])
def test_its_examination_is_the_stated_one(
    tokenizer: PreTrainedTokenizerBase, record: dict[str, Any], half: str
) -> None:
    """The shipped weights give the stated share of right answers, and no sentence was in the corpus."""
    assert examine(loading.load_model(str(CHECKPOINT)), tokenizer, half) == pytest.approx(record["examination"][half])
    assert record["sentences_in_corpus"] == 0


def test_the_figures_are_of_this_model(tokenizer: PreTrainedTokenizerBase, record: dict[str, Any]) -> None:
    """On the embedded data, which it has never seen, it predicts about as well as on its held-out documents.

    The corpus itself is not shipped; a checkpoint that was exchanged or damaged is far from its stated figure.
    """
    model = loading.load_model(str(CHECKPOINT)).eval()
    answers = [
        " ".join(json.loads(line)["answers"]["text"])
        for line in (EMBEDDED / "data" / "askscience.jsonl").read_text(encoding="utf-8").splitlines()[:80]
    ]
    ids = [token for row in tokenizer(answers)["input_ids"] for token in row]
    rows = torch.tensor(ids[: len(ids) // 128 * 128]).view(-1, 128)
    phase = Phase("test", 1, 128, 32, 0.15, 1.0, 0.0)
    inputs, labels = corrupt(rows, phase, len(tokenizer), torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = [
            model(input_ids=i, labels=wanted).loss for i, wanted in zip(inputs.split(16), labels.split(16), strict=True)
        ]
    ratio = math.exp(float(torch.stack(losses).mean())) / record["figures"]["all"]["mask only"]["perplexity"]
    assert 0.5 < ratio < 3


def test_the_milky_way_is_a_spiral_galaxy(tokenizer: PreTrainedTokenizerBase) -> None:
    """The token for spiral is among its five best for the guide's sentence, before any fine-tuning."""
    rows = fill_mask.by_hand(loading.load_model(str(CHECKPOINT)), tokenizer, GuideConfig().prompt, 5)
    assert " spiral" in [row["token_str"] for row in rows]
