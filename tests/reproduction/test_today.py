"""What is wrong in today's libraries, each in about ten lines; golden/FINDINGS.md lists them.

A test here fails when upstream mends the fault: then the finding gets the release that did, and the test its bound.
"""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    BertweetTokenizer,
    DataCollatorForLanguageModeling,
    EsmConfig,
    EsmForMaskedLM,
    FunnelConfig,
    FunnelForMaskedLM,
    LukeConfig,
    LukeForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    pipeline,
)

from mlmrepro.config import EMBEDDED
from mlmrepro.observations.two_processes import in_two_processes
from mlmrepro.observations.weights import batch, small_model

from .. import findings
from ..installed import needs

CHECKPOINT = str(EMBEDDED / "checkpoint")
TEXT = "The Milky Way is a spiral galaxy and the Sun is one of its many stars"


SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


def since(requirement: str) -> pytest.MarkDecorator:
    """Skip where the installed version is older than the finding."""
    return needs(requirement, "the finding is newer than the installed version")


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def labels(collator: Any, rows: list[dict[str, Any]]) -> Any:
    torch.manual_seed(0)
    return collator(rows)["labels"] != -100


@since("transformers>=4.57")
def test_whole_word_masking_takes_a_text_for_one_word() -> None:
    """`whole_word_mask=True` masks all of a row or nothing where the offsets include the space before a word.

    Affected: byte-level tokenizers with a template post-processor, transformers 4.57 and later.
    """
    tok = tokenizer()
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    row = dict(tok(TEXT, return_offsets_mapping=True, return_special_tokens_mask=True))
    selected = labels(DataCollatorForLanguageModeling(tok, whole_word_mask=True), [row] * 500)
    shares = selected.float().sum(1) / (len(row["input_ids"]) - 2)
    assert set(shares.tolist()) == {0.0, 1.0}
    assert float((shares == 0).float().mean()) > 0.8


@since("transformers>=4.57")
def test_whole_word_masking_fails_behind_trainer() -> None:
    """Trainer removes the column `offset_mapping` that the collator needs, and the IndexError does not name it.

    Affected: `whole_word_mask=True` with Trainer's defaults.
    """
    rows = [{"input_ids": tokenizer()(TEXT)["input_ids"]}] * 2  # what is left of a row with offset_mapping
    with pytest.raises(IndexError, match="array is 0-dimensional"):
        DataCollatorForLanguageModeling(tokenizer(), whole_word_mask=True)(rows)


@since("transformers>=4.50")
def test_a_seeded_collator_repeats_its_masks_with_workers() -> None:
    """With `seed=` and DataLoader workers every epoch has the masks of the first one: masking is no longer dynamic.

    Affected: the collator's `seed=` with `dataloader_num_workers`, transformers 4.50 and later.
    """
    rows = [{"input_ids": tokenizer()(TEXT)["input_ids"]}] * 16

    def epochs(seed: int | None) -> list[torch.Tensor]:
        collator = DataCollatorForLanguageModeling(tokenizer(), seed=seed)
        loader = DataLoader(rows, batch_size=8, collate_fn=collator, num_workers=1)  # type: ignore[arg-type]
        torch.manual_seed(0)
        return [torch.cat([each["labels"] for each in loader]) for _ in range(2)]

    assert torch.equal(*epochs(7))
    assert not torch.equal(*epochs(None))


@since("transformers>=5.23")
def test_eval_loss_leaves_out_batches_that_are_not_a_number(tmp_path: Path) -> None:
    """Batches with a loss of NaN are left out of `eval_loss`, so perplexity looks healthy (5.12.1 gave NaN).

    Affected: half-precision evaluations that overflow.
    """
    from transformers import Trainer, TrainingArguments

    whole = batch(8)
    rows = [{name: tensor[n] for name, tensor in whole.items()} for n in range(8)]
    model, seen = small_model(), []

    def overflow(module: Any, inputs: Any, output: Any) -> Any:
        seen.append(output.loss)
        if len(seen) % 4:
            output.loss = output.loss * math.nan
        return output

    model.register_forward_hook(overflow)
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=2, report_to="none", disable_tqdm=True)
    loss = Trainer(model=model, args=arguments, eval_dataset=rows).evaluate()["eval_loss"]  # type: ignore[arg-type]
    assert len(seen) == 4
    assert math.isfinite(loss)


def test_the_tokenizers_own_mask_lets_special_tokens_be_selected() -> None:
    """Special tokens written in a text are masked as words are.

    See [tokenizers 790](https://github.com/huggingface/tokenizers/issues/790).

    Affected: rows with `return_special_tokens_mask=True`.
    """
    tok = tokenizer()
    row = dict(tok("Water is made of hydrogen.<pad>", return_special_tokens_mask=True))
    place = row["input_ids"].index(tok.pad_token_id)
    collator = DataCollatorForLanguageModeling(tok, mlm_probability=0.5)
    assert float(labels(collator, [row] * 400)[:, place].float().mean()) > 0.4
    row.pop("special_tokens_mask")
    assert not labels(collator, [row] * 400)[:, place].any()


def test_naming_the_mask_token_again_takes_its_space() -> None:
    """`add_special_tokens({"mask_token": "<mask>"})` drops `lstrip`: the space before the mask becomes a token.

    Affected: fill-mask with RoBERTa and its relatives, all versions since 4.41 at least.
    """
    tok, sentence = tokenizer(), "Water is made of hydrogen and <mask>."
    before = len(tok(sentence)["input_ids"])
    tok.add_special_tokens({"mask_token": "<mask>"})
    assert len(tok(sentence)["input_ids"]) == before + 1


def test_an_added_token_with_an_accent_is_decoded_as_bytes() -> None:
    """An added token with an accent, such as `caffè`, is decoded as damaged bytes.

    See [tokenizers 1392](https://github.com/huggingface/tokenizers/issues/1392).

    Affected: byte-level vocabularies with added words.
    """
    tok = tokenizer()
    tok.add_tokens(["caffè"])
    ids = tok("un caffè nero", add_special_tokens=False)["input_ids"]
    assert tok.decode(ids) != "un caffè nero"
    assert "\ufffd" in tok.decode(ids)


def _mapped(tmp_path: Path) -> Any:
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    return load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )


@pytest.fixture
def cached() -> Any:
    """Let map keep what it made, as it does unless it is told otherwise."""
    import datasets

    before = datasets.is_caching_enabled()
    datasets.enable_caching()
    yield
    if not before:
        datasets.disable_caching()


@pytest.mark.usefixtures("cached")
def test_map_serves_the_old_result_of_an_edited_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`map` caches an imported function by its name: after an edit it returns the old rows.

    See [datasets 3297](https://github.com/huggingface/datasets/issues/3297).

    Affected: functions imported from a module, in a running process.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    rows, module = _mapped(tmp_path), tmp_path / "edited_functions.py"

    def times(factor: int) -> list[int]:
        module.write_text(f"def change(row):\n    return {{'m': row['n'] * {factor}}}\n")
        importlib.invalidate_caches()
        sys.modules.pop("edited_functions", None)
        return list(rows.map(importlib.import_module("edited_functions").change)["m"])

    assert times(2) == [2, 4]
    assert times(3) == [2, 4]


@since("datasets>=4.7")
@pytest.mark.usefixtures("cached")
def test_map_serves_ids_from_before_a_truncation(tmp_path: Path) -> None:
    """Truncation set on a tokenizer's backend does not change the fingerprint: `map` returns the old ids.

    See [datasets 7982](https://github.com/huggingface/datasets/pull/7982).

    Affected: `enable_truncation` on a tokenizer's backend, datasets 4.7 and later.
    """
    tok = tokenizer()

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {"ids": tok.backend_tokenizer.encode(TEXT).ids}

    rows = _mapped(tmp_path)
    before = len(rows.map(encode)[0]["ids"])
    tok.backend_tokenizer.enable_truncation(4)
    assert len(encode({})["ids"]) == 4
    assert len(rows.map(encode)[0]["ids"]) == before


def test_more_than_five_targets_are_cut_to_five() -> None:
    """The default `top_k=5` silently cuts the `targets` that were asked for.

    Affected: fill-mask with more than five `targets`.
    """
    fill = pipeline("fill-mask", model=CHECKPOINT, device="cpu")
    targets = [" galaxy", " star", " planet", " sun", " moon", " sky", " water"]
    assert len(fill("The Milky Way is a <mask>.", targets=targets)) == 5
    assert len(fill("The Milky Way is a <mask>.", targets=targets, top_k=7)) == 7


@since("transformers>=5.0")
def test_loading_a_funnel_zeroes_a_row(tmp_path: Path) -> None:
    """The pad token's stored embedding is set to zero when the model is loaded.

    Affected: Funnel, transformers 5.0 and later.
    """
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 16,
        "pad_token_id": 1,
    }
    model = FunnelForMaskedLM(FunnelConfig(block_sizes=[1], **sizes))
    with torch.no_grad():
        model.get_input_embeddings().weight[1] = 0.5
    model.save_pretrained(tmp_path)
    loaded = FunnelForMaskedLM.from_pretrained(tmp_path).get_input_embeddings().weight
    assert float(loaded[1].detach().abs().sum()) == 0.0


def _trainer(model: Any, folder: Path, count: int, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    row = {
        "input_ids": torch.arange(4, 12),
        "labels": torch.arange(4, 12),
    }  # alike: all ways to cut a batch are the same
    return Trainer(model, TrainingArguments(str(folder), **quiet, **options), train_dataset=[row] * count)  # type: ignore[arg-type]


def _gradient_norm(folder: Path, rows: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = RobertaForMaskedLM(RobertaConfig(vocab_size=50, max_position_embeddings=20, **SMALL, **dropout))
    trainer = _trainer(model, folder, 8, max_steps=1, per_device_train_batch_size=rows)
    trainer.train()
    return {"norm": torch.tensor(trainer.state.log_history[0]["grad_norm"])}


@since("transformers>=5.0")
def test_two_processes_double_the_gradient(tmp_path: Path) -> None:
    """Two processes give twice the gradient and the logged loss, n processes n times.

    Affected: models whose loss ignores `num_items_in_batch` (BERT, RoBERTa and most others), transformers 5.0 on.
    """
    (tmp_path / "two").mkdir()
    both = in_two_processes(_gradient_norm, (tmp_path / "two", 4), tmp_path)
    alone = _gradient_norm(tmp_path / "one", 8)["norm"]
    assert float(both[0]["norm"] / alone) == pytest.approx(2, rel=1e-4)


@since("transformers>=5.0")
def test_an_esm_is_resumed_with_other_weights(tmp_path: Path) -> None:
    """`resume_from_checkpoint` does not load the layer norms.

    See [transformers 48805](https://github.com/huggingface/transformers/issues/48805).

    Affected: ESM, GTE and Jina v3, transformers 5.0 and later.
    """
    torch.manual_seed(0)
    config = EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary", **SMALL)
    EsmForMaskedLM(config).save_pretrained(tmp_path / "esm")
    models = [EsmForMaskedLM.from_pretrained(tmp_path / "esm") for _ in range(2)]
    options = {"max_steps": 2, "save_steps": 2, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    _trainer(models[0], tmp_path, 8, **options).train()
    _trainer(models[1], tmp_path, 8, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    pairs = zip(models[0].named_parameters(), models[1].parameters(), strict=True)
    unequal = [name for (name, whole), resumed in pairs if not torch.equal(whole, resumed)]
    assert unequal
    assert all("layer_norm" in name or "LayerNorm" in name for name in unequal)


@since("transformers>=5.0")
def test_a_saved_bertweet_has_lost_its_merges(tmp_path: Path) -> None:
    """A tokenizer that was saved and loaded splits words into letters.

    Affected: BERTweet, transformers 5.0 and later.
    """
    (tmp_path / "vocab.txt").write_text("m@@ 9\noo@@ 9\no@@ 9\nn 9\nmoon 9\n")
    (tmp_path / "bpe.codes").write_text("o o 9\nm oo 8\nmoo n</w> 7\n")
    first = BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    first.save_pretrained(tmp_path / "saved")
    again = BertweetTokenizer.from_pretrained(tmp_path / "saved")
    assert first.tokenize("moon") == ["moon"]
    assert again.tokenize("moon") == ["m@@", "o@@", "o@@", "n"]


@since("transformers>=5.0")
def test_a_luke_has_an_output_embedding_of_its_own() -> None:
    """The output embedding of a checkpoint saved by 4.x is drawn at random at each load.

    Affected: LUKE, transformers 5.0 and later.
    """
    model = LukeForMaskedLM(LukeConfig(vocab_size=20, entity_vocab_size=4, entity_emb_size=16, **SMALL))
    assert model.config.tie_word_embeddings
    assert model.lm_head.decoder.weight is not model.get_input_embeddings().weight


def test_each_finding_says_what_happens_and_who_is_affected() -> None:
    """The page of findings has a row for each test of this file, with both."""
    rows = list(findings._today())
    tests = [name for name in globals() if name.startswith("test_")]
    assert [row[0] for row in rows] == [f"`{name}`" for name in tests[:-1]]
    assert all(what and who for _, what, who in rows)
