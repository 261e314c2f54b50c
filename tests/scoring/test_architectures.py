"""Every architecture with a masked-language-model head, against one row at a time; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    EsmConfig,
    EsmForMaskedLM,
)

from mlmrepro.errors import UserError
from mlmrepro.scoring.plan import rows, token_plan
from mlmrepro.scoring.scorer import BATCH_TOKENS, ROUNDING, Scorer

from ..installed import needs_model_type
from . import tiny

WORDS = [
    *("water", "is", "wet", "the", "moon", "turns", "around", "earth", "ice", "sun"),
    *("star", "heat", "cold", "light", "dark", "sea", "wind", "rain", "snow", "hill"),
]
# 40 words fill two windows of a model that reads 22 tokens, 22 words one of a model that reads 24.
TEXTS = [" ".join((WORDS * 2)[:40]), " ".join((WORDS * 2)[-22:]), "the sun", "cold dark rain ice hill wind"]
POSITIONS = 24

_SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
_TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "mask_token_id": 4}
_BERT = {**_SIZE, **_TOKENS, "max_position_embeddings": POSITIONS, "type_vocab_size": 2}
_XLM = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": POSITIONS, "pad_index": 1}
_BART = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    **{"max_position_embeddings": POSITIONS, "decoder_start_token_id": 2, **_TOKENS},
}

# Of those that the issue names the head has to be run on masked positions only, and rows have to be padded.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "RoBERTa": ("roberta", _BERT),
    "BERT": ("bert", _BERT),
    "DistilBERT": (
        "distilbert",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": POSITIONS},
    ),
    "ALBERT": ("albert", {**_BERT, "embedding_size": 8}),
    "ELECTRA": ("electra", {**_BERT, "embedding_size": 8}),
    "DeBERTa": ("deberta", {**_BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "DeBERTa-v2": (
        "deberta-v2",
        {**_BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    ),
    "ModernBERT": ("modernbert", {**_BERT, "global_attn_every_n_layers": 2, "local_attention": 8}),
    "ESM rotary": ("esm", {**_BERT, "position_embedding_type": "rotary", "token_dropout": True}),
    "ESM absolute": ("esm", {**_BERT, "position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    "XLM-RoBERTa": ("xlm-roberta", _BERT),
    "CamemBERT": ("camembert", _BERT),
    "MPNet": ("mpnet", _BERT),
    "RoFormer": ("roformer", {**_BERT, "embedding_size": 16}),
    "XLM": ("xlm", _XLM),
    "BART": ("bart", _BART),
}
# These come to other results beside a longer row: theirs are scored among rows of one length.
UNPADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvBERT": ("convbert", {**_BERT, "embedding_size": 16, "head_ratio": 1}),
    "FNet": ("fnet", {name: n for name, n in _BERT.items() if name != "num_attention_heads"}),
    "MobileBERT": (
        "mobilebert",
        {**_BERT, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
    "Funnel": (
        "funnel",
        {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16, "block_sizes": [1, 1], "num_decoder_layers": 1},
    ),
}
# Longformer's rows are padded to its attention's window, and LUKE splits words from entities: neither may be misread.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Longformer": ("longformer", {**_BERT, "attention_window": 4}),
    "LUKE": ("luke", {**_BERT, "entity_vocab_size": 5, "entity_emb_size": 8}),
}


def _checkpoint(folder: Path, kind: str, settings: dict[str, Any], head: Any = AutoModelForMaskedLM) -> str:
    """Save a random model, with weights so wide that what stands around a token changes its loss."""
    needs_model_type(kind)
    tokenizer = tiny.word_level(WORDS)
    names = "n_words" if kind == "xlm" else "vocab_size"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = head.from_config(AutoConfig.for_model(kind, **{names: len(tokenizer), **settings}))
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, 0, 0.4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _furthest(scorer: Scorer, texts: Sequence[str] = TEXTS) -> float:
    """Return by how much the losses of a plan differ at most from those of one row at a time."""
    encoded = scorer.encode(texts)
    plan = token_plan(texts, encoded, rate=0.3)
    wanted = np.zeros(len(plan))
    for row in rows(plan, encoded):
        window = [0, *encoded[row.document].ids[row.start : row.stop].tolist(), 2]  # <s> ... </s>
        places = (row.masked - row.start + 1).tolist()
        table = tiny.log_probabilities(scorer.model, window, places, mask_id=scorer.mask_id)
        for unit, place in zip(row.units, places, strict=True):
            wanted[unit] = -table[place, window[place]]
    assert wanted.std() > 0.5
    return float(np.abs(scorer.score(plan, encoded).loss - wanted).max())


ALL = {**NAMED, **UNPADDED, **OTHERS}


@pytest.mark.parametrize("name", ALL)
def test_an_architecture_is_scored_as_it_would_be_row_by_row(tmp_path: Path, name: str) -> None:
    """Losses in batches, with every shortcut, equal those of a whole forward pass of each row, at full length too."""
    scorer = Scorer.load(_checkpoint(tmp_path, *ALL[name]), device="cpu", max_length=POSITIONS)
    longest = max(stop - start + 2 for document in scorer.encode(TEXTS) for start, stop in document.windows)
    assert longest == scorer.encoder.max_length
    assert _furthest(scorer) < ROUNDING["float32"]
    if name in NAMED:
        assert scorer.prunes_head
        assert scorer.forward.pads
    if name in UNPADDED:
        assert not scorer.forward.pads
        scorer.forward.pads = True
        assert _furthest(scorer) > 1e-2  # what is measured here is there to be seen


@pytest.mark.parametrize("name", ["RoBERTa", "LUKE"])
def test_a_window_is_as_long_as_positions_that_begin_behind_padding_allow(tmp_path: Path, name: str) -> None:
    """RoBERTa and its kin count from pad_token_id + 1: a model of 24 positions reads 22 tokens."""
    scorer = Scorer.load(_checkpoint(tmp_path, *ALL[name]), device="cpu")
    assert scorer.encoder.max_length == POSITIONS - 2


def test_the_last_feed_forward_layer_is_left_out_where_it_can_be(tmp_path: Path) -> None:
    """In BERT, and in what was made of it, masked positions alone go on behind the last attention."""
    for name, behind in (("BERT", "BertAttention"), ("RoBERTa", "RobertaAttention"), ("ALBERT", "AlbertModel")):
        (tmp_path / name).mkdir()
        scorer = Scorer.load(_checkpoint(tmp_path / name, *NAMED[name]), device="cpu")
        assert type(scorer.forward.cut).__name__ == behind
        if name != "ALBERT":  # whose layers are one and the same
            assert scorer.forward.cut is scorer.model.base_model.encoder.layer[-1].attention
    (tmp_path / "DistilBERT").mkdir()
    scorer = Scorer.load(_checkpoint(tmp_path / "DistilBERT", *NAMED["DistilBERT"]), device="cpu")
    assert scorer.forward.cut is scorer.model.base_model.transformer.layer[-1].sa_layer_norm


def test_proteins_are_scored_with_the_tokenizer_they_come_with(tmp_path: Path) -> None:
    """ESM's tokenizer exists in Python only: its checkpoints are scored all the same, unknown letters left out."""
    tokenizer = tiny.esm(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        EsmForMaskedLM(EsmConfig(**{**_BERT, "vocab_size": len(tokenizer)}, initializer_range=0.5)).save_pretrained(
            tmp_path
        )
    tokenizer.save_pretrained(tmp_path)
    scorer = Scorer.load(str(tmp_path), device="cpu")
    assert not scorer.tokenizer.is_fast
    proteins = ["MKTAYIAKQRQISFVKSHFSRQLE", "GAVLJKMW", "ST"]
    encoded = scorer.encode(proteins)
    assert [len(document.windows) for document in encoded] == [2, 1, 1]
    plan = token_plan(proteins, encoded)
    assert len(plan) == sum(map(len, proteins)) - 1
    assert _furthest(scorer, proteins) < ROUNDING["float32"]


def _saved(folder: Path, model: Any, tokenizer: Any = None) -> str:
    model.save_pretrained(folder)
    (tokenizer or tiny.word_piece()).save_pretrained(folder)
    return str(folder)


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """From a folder come the same losses as from memory, in the dtype that is asked for."""
    memory = Scorer(tiny.bert(), tiny.word_piece())
    loaded = Scorer.load(_saved(tmp_path, tiny.bert()), device="cpu")
    encoded = memory.encode(tiny.TEXTS)
    plan = token_plan(tiny.TEXTS, encoded)
    assert np.abs(loaded.score(plan, encoded).loss - memory.score(plan, encoded).loss).max() < ROUNDING["float32"]
    assert loaded.about["weights"] == memory.about["weights"]
    assert loaded.dtype == "float32"
    assert Scorer.load(str(tmp_path), device="cpu", dtype="bfloat16").dtype == "bfloat16"
    assert loaded.about == {
        "architecture": "BertForMaskedLM",
        "parameters": sum(weight.numel() for weight in tiny.bert().parameters()),
        "weights": memory.about["weights"],
        "tokenizer": f"{type(loaded.tokenizer).__name__}, {len(tiny.word_piece())} tokens",
        "dtype": "float32",
        "device": "cpu",
        "head": "masked positions only",
    }
    small = Scorer.load(str(tmp_path), device="cpu", max_length=9, batch_tokens=50)
    assert (small.encoder.max_length, small.batch_tokens) == (9, 50)
    assert (loaded.encoder.max_length, loaded.batch_tokens) == (40, BATCH_TOKENS)  # as much as the model reads


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, broken: float) -> None:
    """One of them in a checkpoint is named, with the tensor it lies in."""
    folder = _saved(tmp_path, tiny.bert())
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][3, 5] = broken
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or infinite: bert\.encoder\.layer\.1\.output\.dense\.weight"):
        Scorer.load(folder, device="cpu")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    """Tokens without an embedding would be read from beyond the table."""
    tokenizer = tiny.word_piece()
    tokenizer.add_tokens(["planet"])
    model = tiny.bert()
    with pytest.raises(UserError, match=f"has {len(tokenizer)} tokens, the model only {model.config.vocab_size}"):
        Scorer.load(_saved(tmp_path, model, tokenizer), device="cpu")
    model.resize_token_embeddings(len(tokenizer))
    assert Scorer(model, tokenizer).encode(["planet"])[0].ids.tolist() == [len(tokenizer) - 1]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"dtype": "float16"}, r"^the dtype is 'float16'\. Remedy: use one of: float32, bfloat16\.$"),
        ({"device": "tpu9"}, r"^the model cannot be moved to 'tpu9': [^.]+\. Remedy: use --device cpu\.$"),
        ({"batch_tokens": 0}, r"^the batch has 0 tokens\. Remedy: give 1 or more\.$"),
        ({"max_length": 3}, r"^max_length is 3, too short for two tokens\. Remedy: give a larger one\.$"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    """The error names the setting."""
    with pytest.raises(UserError, match=problem):
        Scorer.load(_saved(tmp_path, tiny.bert()), **{"device": "cpu", **settings})


GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 2}


def test_a_causal_model_is_refused(tmp_path: Path) -> None:
    """Its architecture has no head for masks, though its tokenizer may have a mask token."""
    from transformers import AutoModelForCausalLM

    folder = _checkpoint(tmp_path, "gpt2", GPT2, AutoModelForCausalLM)
    with pytest.raises(UserError, match=r"its architecture has no masked-language-model head.*masked language model"):
        Scorer.load(folder, device="cpu")


@pytest.mark.parametrize("head", [AutoModel, AutoModelForSequenceClassification])
@pytest.mark.parametrize("name", ["RoBERTa", "BERT", "DistilBERT"])
def test_an_encoder_without_its_head_is_refused(tmp_path: Path, name: str, head: Any) -> None:
    """The library would fill the head with random numbers and a warning."""
    folder = _checkpoint(tmp_path, *NAMED[name], head)
    with pytest.raises(UserError, match=r"has no weights for .* more.*with a masked-language-model head"):
        Scorer.load(folder, device="cpu")


def test_a_discriminator_is_refused(tmp_path: Path) -> None:
    """Of ELECTRA's two models it is the generator that predicts tokens."""
    from transformers import AutoModelForPreTraining

    folder = _checkpoint(tmp_path, *NAMED["ELECTRA"], AutoModelForPreTraining)
    with pytest.raises(UserError, match=r"has no weights for .*generator_"):
        Scorer.load(folder, device="cpu")


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """A folder that brings its own classes is refused, and nothing of it is executed."""
    folder = Path(_checkpoint(tmp_path, *NAMED["BERT"]))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "own.Mine", "AutoModelForMaskedLM": "own.MyModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import BertConfig as Mine\n"
    )
    with pytest.raises(UserError, match="cannot be loaded"):
        Scorer.load(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_pickles_are_not_read(tmp_path: Path) -> None:
    """A folder with pytorch_model.bin alone is refused: opening a pickle runs what it says."""
    folder = Path(_checkpoint(tmp_path, *NAMED["BERT"]))
    model = AutoModelForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model\.safetensors.*pickles are not read"):
        Scorer.load(str(folder), device="cpu")


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    """A copy that broke off says so before anything is scored."""
    folder = Path(_checkpoint(tmp_path, *NAMED["BERT"]))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        Scorer.load(str(folder), device="cpu")


class Images(torch.nn.Module):
    """Something that takes no tokens, as a model of the library that a wrong class was made of."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values


def test_a_model_that_reads_no_tokens_is_refused() -> None:
    """Whatever a strange model raises is one sentence for the user, and so is an answer of another shape."""
    model = tiny.bert()
    model.forward = Images().forward  # type: ignore[method-assign]
    remedy = r"\. Remedy: give a checkpoint of a masked language model\.$"
    with pytest.raises(UserError, match=rf"BertForMaskedLM cannot read a row of tokens: .*input_ids.*{remedy}"):
        Scorer(model, tiny.word_piece())
    model = tiny.bert()
    full = model.forward
    model.forward = lambda **given: type("Output", (), {"logits": full(**given).logits[:, 0]})  # type: ignore
    with pytest.raises(UserError, match=f"BertForMaskedLM does not score every token at every position{remedy}"):
        Scorer(model, tiny.word_piece())
