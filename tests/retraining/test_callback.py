"""The gate within a training: the training stays as it is, and the answers are those of the saved checkpoints."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from mlmrepro.errors import UserError
from mlmrepro.gate.result import Answer, CheckResult
from mlmrepro.retraining import callback as room
from mlmrepro.retraining.callback import GateCallback
from mlmrepro.retraining.check import check, check_checkpoint, make_baseline
from mlmrepro.retraining.settings import Settings
from mlmrepro.scoring.scorer import Scorer

from . import tiny

TOKENIZER = tiny.tokenizer()
# The name under which a Trainer takes its tokenizer: transformers 4.46 renamed it.
TAKES = "processing_class" if "processing_class" in inspect.signature(Trainer).parameters else "tokenizer"


@pytest.fixture(autouse=True)
def own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a training in bfloat16 from deciding later ones: TrainingArguments of transformers 4 leaves this behind."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline of the model that every training begins with."""
    folder = tmp_path_factory.mktemp("baseline") / "baseline"
    make_baseline(Scorer(tiny.model(), TOKENIZER), tiny.TEXT, checkpoint="tiny").write(folder)
    return folder


def trainer(
    folder: Path, *callbacks: GateCallback, tokenizer: Any = TOKENIZER, evaluated: Any = None, **arguments: Any
):  # type: ignore[no-untyped-def]
    """Return the trainer of four steps with an evaluation after each second one; nothing but torch and the masks."""
    encoded = TOKENIZER([document.text for document in tiny.TEXT.documents], truncation=True, max_length=24)
    rows = [{"input_ids": ids} for ids in encoded["input_ids"]]
    settings = {"learning_rate": 1e-2, "max_steps": 4, "save_strategy": "no", "seed": 1, **arguments}
    return Trainer(
        model=tiny.model(),
        args=TrainingArguments(
            output_dir=str(folder),
            eval_strategy="steps",
            eval_steps=2,
            logging_steps=1,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **settings,
        ),
        train_dataset=rows,
        eval_dataset=evaluated or rows[:4],
        data_collator=DataCollatorForLanguageModeling(TOKENIZER),
        callbacks=list(callbacks),
        **{TAKES: tokenizer},
    )


def trained(folder: Path, *callbacks: GateCallback, **arguments: Any) -> Any:
    made = trainer(folder, *callbacks, **arguments)
    made.train()
    return made


def left_behind(made: Any) -> tuple[Any, ...]:
    """Return all that a training leaves: losses of every step and evaluation, weights, modes, gradients, generators."""
    timings = ("_runtime", "_per_second", "_time", "total_flos")
    history = [
        {name: x for name, x in entry.items() if not name.endswith(timings) and "gate" not in name}
        for entry in made.state.log_history
    ]
    weights = {name: weight.tolist() for name, weight in made.model.state_dict().items()}
    modes = [module.training for module in made.model.modules()]
    gradients = [None if p.grad is None else p.grad.tolist() for p in made.model.parameters()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return history, weights, modes, gradients, states


def drawing(*arguments: Any, **named: Any) -> CheckResult:
    """A check that draws from every global generator, as a library below it might do some day."""
    random.random()
    np.random.random()
    torch.rand(3)
    return check(*arguments, **named)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_training_stays_as_it_is(
    tmp_path: Path, baseline: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    """With the callback every loss, weight, gradient, mode and generator is bit for bit what it is without it."""
    without = left_behind(trained(tmp_path / "without", bf16=bf16))
    monkeypatch.setattr(room, "check", drawing)
    gate = GateCallback(baseline)
    assert left_behind(trained(tmp_path / "with", gate, bf16=bf16)) == without
    assert [step for step, _ in gate.results] == [2, 4]
    monkeypatch.setattr(room, "preserved_generators", lambda: torch.no_grad())
    assert left_behind(trained(tmp_path / "unguarded", GateCallback(baseline), bf16=bf16)) != without


@pytest.mark.parametrize("bf16", [False, True])
def test_the_answers_are_those_of_the_saved_checkpoints(tmp_path: Path, baseline: Path, bf16: bool) -> None:
    """Each result is equal to that of `mlmrepro check` on the checkpoint of its step, also in mixed precision."""
    gate = GateCallback(baseline)
    trained(tmp_path, gate, bf16=bf16, save_strategy="steps", save_steps=2)
    for step, result in gate.results:
        saved = check_checkpoint(str(tmp_path / f"checkpoint-{step}"), baseline, device="cpu")
        assert dataclasses.replace(result, provenance={}) == dataclasses.replace(saved, provenance={})
        assert result.provenance["candidate"]["weights"] == saved.provenance["candidate"]["weights"]
        assert result.provenance["candidate"]["checkpoint"] == f"step {step}"
    assert gate.results[0][1].after > gate.results[1][1].after


@pytest.mark.parametrize(("learning_rate", "finite"), [(3.0, True), (1e37, False)])
def test_a_planted_bad_training_is_a_regression(
    tmp_path: Path, baseline: Path, caplog: pytest.LogCaptureFixture, learning_rate: float, finite: bool
) -> None:
    """A much too large learning rate is called a regression, without an exception where losses are no numbers."""
    gate = GateCallback(baseline)
    made = trained(tmp_path, gate, learning_rate=learning_rate)
    assert [result.answer for _, result in gate.results] == [Answer.REGRESSION] * 2
    assert (gate.results[0][1].not_finite == 0) is finite
    assert made.state.global_step == 4
    said = [(entry.levelno, entry.message[:19]) for entry in caplog.records if entry.name == room.__name__]
    assert said == [(logging.WARNING, f"step {step}: REGRESSION:"[:19]) for step in (2, 4)]


def test_a_regression_stops_the_training_if_wanted(tmp_path: Path, baseline: Path) -> None:
    """It ends after the evaluation that found it; one that improves goes on."""
    bad, good = (GateCallback(baseline, stop_on_regression=True) for _ in range(2))
    assert trained(tmp_path, bad, learning_rate=3.0).state.global_step == 2
    assert trained(tmp_path, good).state.global_step == 4
    assert len(good.results) == 2
    assert Answer.REGRESSION not in [result.answer for _, result in good.results]


def test_the_numbers_are_in_the_log(tmp_path: Path, baseline: Path) -> None:
    """Each evaluation has them, and they choose the best model."""
    gate = GateCallback(baseline)
    best = {"metric_for_best_model": "gate_difference_percent", "greater_is_better": False}
    made = trained(tmp_path, gate, save_strategy="steps", save_steps=2, load_best_model_at_end=True, **best)
    entries = [entry for entry in made.state.log_history if "eval_loss" in entry]
    for entry, (step, result) in zip(entries, gate.results, strict=True):
        assert (entry["step"], entry["eval_gate_perplexity"]) == (step, result.after)
        assert result.paired is not None
        assert math.isclose(entry["eval_gate_difference_percent"], 100 * math.expm1(result.paired.difference))
        assert entry["eval_gate_exit_code"] == result.exit_code
    assert made.state.best_metric == min(entry["eval_gate_difference_percent"] for entry in entries)
    assert made.state.best_model_checkpoint


def test_a_model_is_scored_once_for_all_data_sets(
    tmp_path: Path, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several evaluations of one step share a result; changed weights have a new one, also without a step."""
    gate = GateCallback(baseline)
    checked: list[str] = []

    def counted(*arguments: Any, checkpoint: str) -> CheckResult:
        checked.append(checkpoint)
        return check(*arguments, checkpoint=checkpoint)

    monkeypatch.setattr(room, "check", counted)
    rows = [{"input_ids": TOKENIZER(document.text)["input_ids"][:24]} for document in tiny.TEXT.documents]
    made = trained(tmp_path, gate, evaluated={"a": rows[:4], "b": rows[4:8]})
    assert [step for step, _ in gate.results] == [2, 4]
    assert checked == ["step 2", "step 4"]
    with torch.no_grad():
        made.model.lm_head.bias[0] += 1.0
    metrics = made.evaluate(rows[:4])
    assert [step for step, _ in gate.results] == [2, 4, 4]
    assert metrics["eval_gate_perplexity"] == gate.results[-1][1].after != gate.results[1][1].after


def test_settings_are_the_projects_or_those_given(
    tmp_path: Path, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the command: what pyproject.toml says, where nothing is given."""
    (tmp_path / "pyproject.toml").write_text("[tool.mlmrepro]\nmargin = 0.25\n")
    monkeypatch.chdir(tmp_path)
    assert GateCallback(baseline).settings.margin == 0.25
    gate = GateCallback(baseline, settings=Settings(margin=0.5))
    evaluated(gate, tiny.model())
    assert gate.results[0][1].margin == 0.5


def evaluated(gate: GateCallback, model: Any, *, main: bool = True, **tokenizer: Any) -> SimpleNamespace:
    """Ask the callback as a Trainer does, and return its control."""
    control = SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(global_step=1, is_world_process_zero=main, log_history=[])
    gate.on_evaluate(None, state, control, model=model, metrics={}, **(tokenizer or {TAKES: TOKENIZER}))  # type: ignore[arg-type]
    return control


class Compiled(torch.nn.Module):
    """What torch.compile returns, as far as it matters here."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._orig_mod = model


def test_a_wrapped_model_is_unwrapped(baseline: Path) -> None:
    """Data parallelism, compilation and autocast around a model change nothing of its result, nor its own state."""
    plain, wrapped = GateCallback(baseline), GateCallback(baseline)
    evaluated(plain, tiny.model())
    model = tiny.model().train()
    model._compiled_call_impl = lambda **inputs: pytest.fail("the compiled model was called")
    replaced = model._compiled_call_impl
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluated(wrapped, torch.nn.DataParallel(Compiled(model)))
    assert wrapped.results == plain.results
    assert wrapped.results[0][1].paired.difference == 0.0  # type: ignore[union-attr]
    assert model._compiled_call_impl is replaced
    assert all(module.training for module in model.modules())


def test_other_processes_score_nothing_and_stop_too(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under data parallelism the main process's result reaches all of them."""
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.randn(len(TOKENIZER)))
    main = GateCallback(baseline, stop_on_regression=True)
    sent: list[Any] = []
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda found: sent.extend(found) or found)
    assert evaluated(main, model).should_training_stop
    other = GateCallback(baseline, stop_on_regression=True)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda found: sent)
    monkeypatch.setattr(room, "check", lambda *_, **__: pytest.fail("another process scored"))
    assert evaluated(other, model, main=False).should_training_stop
    assert other.results == main.results


def test_a_tokenizer_is_left_as_it_was(baseline: Path) -> None:
    """How the trainer's own tokenizer pads and truncates afterwards is what it was before."""
    tokenizer = tiny.tokenizer()
    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=7)
    before = tokenizer.backend_tokenizer.to_str()
    evaluated(GateCallback(baseline), tiny.model(), **{TAKES: tokenizer})
    assert tokenizer.backend_tokenizer.to_str() == before


def test_what_cannot_be_scored_is_refused_before_the_first_step(tmp_path: Path, baseline: Path) -> None:
    """No baseline, no tokenizer, or weights that no process has whole: a problem and a remedy, and no training."""
    with pytest.raises(UserError, match=r"nowhere does not exist\. Remedy: "):
        GateCallback(tmp_path / "nowhere")
    made = trainer(tmp_path, GateCallback(baseline), tokenizer=None)
    with pytest.raises(UserError, match=r"has no tokenizer\. Remedy: give GateCallback\(\.\.\., tokenizer="):
        made.train()
    assert made.state.global_step == 0
    trained(tmp_path, GateCallback(baseline, tokenizer=TOKENIZER), tokenizer=None, max_steps=1)
    for shard in (torch.nn.Parameter(torch.empty(0)), type("FullyShardedDataParallel", (torch.nn.Module,), {})()):
        made = trainer(tmp_path, GateCallback(baseline))
        made.model.shard = shard
        with pytest.raises(UserError, match="split among processes"):
            made.train()
