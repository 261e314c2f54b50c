"""The fast way to train and evaluate: the guide's numbers within rounding, or the guide's own way with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForMaskedLM, PrinterCallback, Trainer, TrainingArguments

from mlmrepro.compare.judge import agree
from mlmrepro.config import RunConfig, resolve
from mlmrepro.errors import UserError
from mlmrepro.guide import arrow, fast, tokens
from mlmrepro.guide.fast import GRADIENT, LOSS, LOSS_BFLOAT16, Fast, MaskedOnly, _step, no_bfloat16
from mlmrepro.guide.run import run
from mlmrepro.guide.session import claim
from mlmrepro.record import RunRecord
from mlmrepro.report.markdown import document_markdown
from mlmrepro.report.summary import run_document

from ..installed import has, needs_model_type
from ..scoring import tiny
from ..scoring.test_architectures import NAMED

VOCABULARY = 60
MODELS = ("RoBERTa", "BERT", "DistilBERT", "ELECTRA", "DeBERTa-v2", "ModernBERT")
ON = "on"


def model_of(name: str, **changes: Any) -> Any:
    """Return a random model, with dropout where its configuration has any, and wide weights so that all matters."""
    kind, settings = NAMED[name]
    needs_model_type(kind)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForMaskedLM.from_config(
            AutoConfig.for_model(kind, **{**settings, "vocab_size": VOCABULARY, **changes})
        )
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, 0, 0.2)
    return model


def batch_of(rows: int = 4, length: int = 16, masked: float = 0.15, padded: int = 3, seed: int = 0) -> Any:
    """Return a batch whose last row is padded, as the collator makes it."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=draw)
    attention = torch.ones_like(ids)
    attention[-1, length - padded :] = 0
    chosen = (torch.rand(ids.shape, generator=draw) < masked) & attention.bool()
    labels = ids.where(chosen, -100)
    return {"input_ids": ids.masked_fill(chosen, 4), "attention_mask": attention, "labels": labels}


@pytest.mark.parametrize("name", MODELS)
def test_the_head_at_masked_positions_gives_the_models_own_step(name: str) -> None:
    """Loss, gradients and dropout's draws of other batches than the trial are the model's own, in both modes."""
    model = model_of(name)
    batches = [batch_of(seed=seed, masked=share) for seed, share in ((1, 0.15), (2, 0.5), (3, 1.0))]
    own = {training: [_step(model, batch, training) for batch in batches] for training in (True, False)}
    assert MaskedOnly(model).prove(batch_of()) == {True: ON, False: ON}
    for training, steps in own.items():
        made = [_step(model, batch, training) for batch in batches]
        assert [step.difference(other) for step, other in zip(steps, made, strict=True)] == [""] * 3
    logits = model(**batches[0]).logits
    assert logits.shape == (1, int((batches[0]["labels"] != -100).sum()), VOCABULARY)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_without_a_masked_position_is_the_models_own(name: str) -> None:
    """Without a masked position, and without labels, the call is not cut: same logits, same loss."""
    model, batch = model_of(name).eval(), batch_of(masked=0)
    expected = model(**batch)
    MaskedOnly(model).prove(batch_of())
    made = model(**batch)
    assert torch.equal(made.logits, expected.logits)
    assert torch.equal(made.loss, expected.loss) or (made.loss.isnan() and expected.loss.isnan())
    del batch["labels"]
    assert torch.equal(model(**batch).logits, expected.logits)
    assert torch.equal(model.base_model(**batch)[0], model.base_model(**batch)[0])


def test_dropout_moves_the_cut_of_the_training() -> None:
    """With dropout the training is cut after the encoder, since less dropout would draw other numbers; else earlier."""
    with_dropout, without = (model_of("RoBERTa", hidden_dropout_prob=rate) for rate in (0.1, 0.0))
    cuts = []
    for model in (with_dropout, without):
        hooks = MaskedOnly(model)
        assert hooks.prove(batch_of()) == {True: ON, False: ON}
        cuts.append([hooks.cuts[training] is model.base_model for training in (True, False)])
    assert cuts == [[True, False], [False, False]]


def _looks_at_neighbours(model: Any) -> None:
    model.lm_head.register_forward_pre_hook(lambda module, given: (given[0] + given[0].roll(1, dims=1),))


def _counts_positions(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, given, output: output * (1 + 1e-4 * output.shape[1]))


def _draws(model: Any) -> None:
    dropout = torch.nn.Dropout(0.5)
    dropout.train(True)
    model.lm_head.register_forward_pre_hook(lambda module, given: (torch.nn.functional.dropout(given[0], 0.5),))


def _needs_a_batch(model: Any) -> None:
    def refuse(module: Any, given: Any) -> None:
        if given[0].shape[0] == 1:
            raise RuntimeError("a batch has several rows")

    model.lm_head.register_forward_pre_hook(refuse)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_looks_at_neighbours, "the loss is"),
        (_counts_positions, "the loss is"),
        (_draws, "dropout draws other numbers"),
        (_needs_a_batch, "a batch has several rows"),
    ],
)
def test_a_head_that_needs_all_positions_stays_as_it_is(change: Any, reason: str) -> None:
    """A head that looks at neighbours, counts positions, draws or raises is refused with the reason, and not cut."""
    model = model_of("RoBERTa")
    change(model)
    hooks = MaskedOnly(model)
    found = hooks.prove(batch_of())
    assert all(reason in state for state in found.values())
    assert hooks.cuts == {True: None, False: None}
    with torch.no_grad():
        assert model.eval()(**batch_of(rows=2)).logits.shape == (2, 16, VOCABULARY)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"loss": 2.0 * (1 + 2 * LOSS)}, "the loss is"),
        ({"loss": float("nan")}, "the loss is"),
        ({"gradients": [torch.tensor([3.0, 4.0 + 10 * GRADIENT]), None]}, "the gradients differ"),
        ({"gradients": [torch.tensor([3.0, float("nan")]), None]}, "the gradients differ"),
        ({"gradients": [torch.tensor([3.0, 4.0]), torch.ones(1)]}, "the gradients differ"),
        ({"generator": torch.ones(1)}, "dropout draws"),
    ],
)
def test_another_step_is_told(change: dict[str, Any], problem: str) -> None:
    """The comparison that proves a cut sees another loss, gradient and draw, and accepts rounding."""
    own = fast._Step(2.0, [torch.tensor([3.0, 4.0]), None], torch.zeros(1))
    rounded = {"loss": 2.0 * (1 + LOSS / 2), "gradients": [torch.tensor([3.0, 4.0 + GRADIENT]), None]}
    assert own.difference(fast.dataclasses.replace(own, **rounded)) == ""
    assert problem in own.difference(fast.dataclasses.replace(own, **change))


# An update moves a weight by the learning rate at most, so four steps do not amplify a rounding beyond a few LOSS.
STEPS = 4
AFTER_STEPS = 5 * LOSS


def trained(tmp_path: Path, *, masked_only: bool = False, attention: str = "sdpa", **arguments: Any) -> list[float]:
    """Return the loss of each step of a Trainer, and of an evaluation afterwards."""
    model = model_of("RoBERTa")
    model.config._attn_implementation = attention
    if masked_only:
        assert MaskedOnly(model).prove(batch_of()) == {True: ON, False: ON}
    rows = [{name: tensor[0] for name, tensor in batch_of(rows=1, seed=n, padded=0).items()} for n in range(16)]
    losses: list[float] = []
    model.register_forward_hook(lambda module, given, output: losses.append(float(output.loss.detach())))
    settings = {
        **{"output_dir": str(tmp_path), "max_steps": STEPS, "per_device_train_batch_size": 4, "report_to": "none"},
        **{"save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-3, "optim": "adamw_torch", "use_cpu": True},
    }
    trainer = Trainer(model=model, args=TrainingArguments(**(settings | arguments)), train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [*losses, trainer.evaluate(rows)["eval_loss"]]


@pytest.fixture(scope="module")
def own_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return trained(tmp_path_factory.mktemp("own"), attention="eager")


SWITCHES: dict[str, tuple[dict[str, Any], float]] = {
    "head at masked positions": ({"masked_only": True, "attention": "eager"}, AFTER_STEPS),
    "fused AdamW": ({"optim": "adamw_torch_fused", "attention": "eager"}, AFTER_STEPS),
    "SDPA attention": ({"attention": "sdpa"}, AFTER_STEPS),
    "all of these": ({"masked_only": True, "optim": "adamw_torch_fused"}, AFTER_STEPS),
    "all, and bfloat16": ({"masked_only": True, "optim": "adamw_torch_fused", "bf16": True}, LOSS_BFLOAT16),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_gives_the_steps_of_the_guide(
    switch: str, own_losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each switch by itself, and all together, give the losses of four steps and of an evaluation within rounding."""
    # Set by TrainingArguments, for good: restored after the test.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    changes, tolerance = SWITCHES[switch]
    made = trained(tmp_path, **changes)
    assert len(set(made)) == STEPS + 1  # no two are the same
    assert made == pytest.approx(own_losses, rel=tolerance, abs=0)


def test_another_learning_rate_is_not_within_rounding(own_losses: list[float], tmp_path: Path) -> None:
    """The comparison of the test above is narrow enough to see a learning rate that is 1 % higher."""
    made = trained(tmp_path, learning_rate=1.01e-3, attention="eager")
    assert made != pytest.approx(own_losses, rel=AFTER_STEPS, abs=0)


SMALL = (("split", "train_asks[:24]", "small"), ("num_train_epochs", 1.0, "small"), ("num_proc", 1, "small"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunConfig, RunRecord]]:
    """Return a run of the guide's own way, and one with --fast."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {way: resolve(output_dir=folder / f"run-{way}", changes=SMALL, fast=way) for way in ("", "float32")}
    return {way: (config, run(config)) for way, config in configs.items()}


def test_a_fast_run_has_the_guides_record(runs: dict[str, tuple[RunConfig, RunRecord]]) -> None:
    """Every compared value of `reproduce --fast` agrees with the guide's own run; discrete ones are the same."""
    own, made = ({f"{o.stage}.{o.name}": o for o in record if o.compared} for _, record in runs.values())
    assert list(own) == list(made)
    assert len(own) > 30
    assert [name for name in own if not agree(own[name], made[name])] == []


def test_the_record_says_what_is_on(runs: dict[str, tuple[RunConfig, RunRecord]]) -> None:
    """The record and the page name each switch; a run of the guide's own way has no such entry, nor its settings."""
    report = runs["float32"][1]["model.fast"]
    sdpa = has("transformers>=4.45")  # of RoBERTa
    off = {name for name, state in report.items() if not state.startswith(ON)}
    assert off == {"bfloat16", *([] if sdpa else ["SDPA attention"])}
    assert len(report) == 8
    page = document_markdown(run_document(runs["float32"][1]))
    assert all(name in page for name in report)
    assert "fast" not in runs[""][1].to_dict()["stages"]["model"]
    assert "fast" not in runs[""][0].to_dict()
    assert "--fast" not in document_markdown(run_document(runs[""][1]))


def test_the_two_ways_never_share_a_folder(runs: dict[str, tuple[RunConfig, RunRecord]]) -> None:
    """A run of one way is not resumed in the other, and the message names both."""
    for way, other in (("", "float32"), ("float32", ""), ("float32", "bfloat16")):
        config = fast.dataclasses.replace(runs[way][0], fast=other, resume=True)
        with pytest.raises(UserError, match=f"fast '{way}', now '{other}'"):
            claim(config)


def test_a_resumed_run_has_the_same_switches(tmp_path: Path) -> None:
    """What another machine or package switches otherwise cannot continue a run."""
    made = Fast()
    made.report = {"bfloat16": ON}
    made._note(tmp_path / "fast.json")
    made._note(tmp_path / "fast.json")
    made.report = {"bfloat16": "this cpu has none"}
    with pytest.raises(UserError, match="bfloat16: on, now this cpu has none"):
        made._note(tmp_path / "fast.json")


@pytest.mark.parametrize(
    ("device", "amx", "avx", "has"), [("cpu", 1, 0, 1), ("cpu", 0, 1, 1), ("cpu", 0, 0, 0), ("mps", 1, 1, 0)]
)
def test_bfloat16_needs_hardware(monkeypatch: pytest.MonkeyPatch, device: str, amx: int, avx: int, has: int) -> None:
    """A CPU computes in bfloat16 with AMX or AVX512-BF16, and other devices are not taken for one."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx), raising=False)
    assert no_bfloat16(device) == ("" if has else f"this {device} has neither AMX nor AVX512-BF16")


def test_bfloat16_is_refused_where_it_changes_the_loss() -> None:
    """The rounding of bfloat16 is within the tolerance, a head that it breaks is not."""
    model, batch = model_of("BERT"), batch_of()
    assert fast._bfloat16_apart(model, batch) == ""
    half = torch.bfloat16
    model.cls.register_forward_hook(lambda module, given, output: output * (1.1 if output.dtype == half else 1.0))
    assert "the loss is" in fast._bfloat16_apart(model, batch)


def test_what_is_not_proved_is_left_to_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer with other rows, and columns of another type, take the guide's own functions and say why."""
    tokenizer = tiny.word_piece()
    data = DatasetDict({name: Dataset.from_dict({"text": [["water is wet"], ["ice"]]}) for name in ("train", "test")})
    given = {"column": "text", "separator": " ", "num_proc": 1}
    expected = tokens.tokenize(data, tokenizer, **given)
    wrong = expected["train"].map(lambda row: {"input_ids": row["input_ids"][::-1]})
    monkeypatch.setattr(arrow, "arrow_tokens", lambda rows, **_: wrong)
    made = Fast()
    assert made.tokenize(data, tokenizer, **given)["train"][:] == expected["train"][:]
    assert "gives other rows" in made.report["tokens in Arrow buffers"]

    floats = DatasetDict({"train": Dataset.from_dict({"ids": [[0.5, 1.5, 2.5]]})})
    settings = {"block_size": 2, "num_proc": 1, "batch_size": 10}
    assert made.group(floats, **settings)["train"]["ids"][:] == [[0.5, 1.5]]
    assert "not lists of integers" in made.report["blocks in Arrow buffers"]
    with pytest.raises(UserError, match="train split gives no block"):
        made.group(DatasetDict({"train": expected["train"].select([])}), **settings)
