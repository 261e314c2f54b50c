"""Training and evaluation: bounds hold on the embedded model and other architectures, and faults break them."""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import trainer as trainer_module

from mlmrepro.config import EMBEDDED
from mlmrepro.errors import UserError
from mlmrepro.observations import evaluation, training
from mlmrepro.observations import plain_training as plain
from mlmrepro.observations import small_training as small
from mlmrepro.observations.observe import observe
from mlmrepro.observations.registry import bounded_observers
from mlmrepro.observations.result import BoundVerdict, ObservationResult
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.two_processes import in_two_processes

from ..installed import needs, needs_model_type

OBSERVERS = {each.name: each for each in bounded_observers() if each.group in ("training", "evaluation")}
TEXTS = tuple(
    f"A text of {word} words, which is long enough to be cut into rows." for word in ("six", "ten", "five", "two")
)
OTHERS = ("bert", "distilbert", "albert", "modernbert")
Patch = pytest.MonkeyPatch


def a_subject(folder: Path, kind: str) -> Subject:
    """Return the embedded checkpoint, or its tokenizer and a tiny fresh model of another kind."""
    found = Subject(str(EMBEDDED / "checkpoint"), TEXTS, folder)
    if kind != "embedded":
        needs_model_type(kind)
        config = transformers.AutoConfig.for_model(
            kind, vocab_size=16000, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, pad_token_id=1,
            intermediate_size=64, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
        )  # fmt: skip
        found.__dict__["row_limit"] = 48
        found.__dict__["model"] = transformers.AutoModelForMaskedLM.from_config(config).eval()
    return found


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return a_subject(tmp_path_factory.mktemp("training"), "embedded")


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return a_subject(tmp_path_factory.mktemp("training"), request.param)


def kept(result: ObservationResult) -> bool:
    return result.verdict in (BoundVerdict.HOLDS, BoundVerdict.KNOWN, BoundVerdict.NOT_APPLICABLE)


def told(result: ObservationResult) -> str:
    """Return what a failed assertion shows."""
    return f"{result.verdict.value} {result.problem} {[(each.slug, each.value) for each in result.broken]}"


def test_the_bounds_hold_on_other_architectures(other: Subject) -> None:
    """So do they on models with other names, shared layers, no padding or losses that take the number of labels."""
    results = [observe(each, other) for each in OBSERVERS.values() if not each.slow]
    assert [told(result) for result in results if not kept(result)] == []


@needs("transformers>=4.57", "ModernBERT ignored the number before 4.53, and processes counted the same before 4.57")
def test_a_loss_that_takes_the_number_of_labels_keeps_the_bounds_of_pieces(tmp_path: Path) -> None:
    """Where the model divides by all labels, the step is that of the whole batch: nothing has to be excused."""
    modern = a_subject(tmp_path, "modernbert")
    found = [observe(OBSERVERS[name], modern).verdict for name in ("accumulation", "two_processes")]
    assert found == [BoundVerdict.HOLDS] * 2


# Faults: each is planted in the libraries, under an observation that must see it by a value outside its bound.


def arguments(**fixed: Any) -> Callable[[Patch], None]:
    """Let TrainingArguments take these values, whatever it is given."""

    def plant(patch: Patch) -> None:
        # Not the class's name in its module: transformers 5 puts another module in its place while it is imported.
        real = transformers.TrainingArguments.__init__
        patch.setattr(transformers.TrainingArguments, "__init__", lambda self, **given: real(self, **(given | fixed)))

    return plant


def method(owner: Any, name: str, change: Callable[..., Any]) -> Callable[[Patch], None]:
    """Put `change(real, *arguments)` in the place of a function."""

    def plant(patch: Patch) -> None:
        # A static method is called without the object in both.
        fixed = isinstance(vars(owner).get(name), staticmethod) if isinstance(owner, type) else False
        wrapped = functools.partial(change, getattr(owner, name))
        replacement = (
            (lambda *a, **k: wrapped(*a, **k)) if not fixed else staticmethod(lambda *a, **k: wrapped(*a, **k))
        )
        patch.setattr(owner, name, replacement)

    return plant


def constant_rate(real: Any, name: Any, optimizer: Any = None, *_: Any, **__: Any) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def unfrozen(real: Any, self: Any, *rest: Any) -> Any:
    for parameter in self.model.parameters():
        parameter.requires_grad_(True)
    return real(self, *rest)


def twice_as_wide(real: Any, *given: Any, **options: Any) -> Any:
    model = real(*given, **options)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 2
    return model


def with_kwargs(**changed: Any) -> Callable[..., Any]:
    def change(real: Any, *given: Any) -> Any:
        kind, options = real(*given)
        return kind, options | changed

    return change


def evaluation_that_drops_out(real: Any, self: Any, model: Any, *rest: Any, **options: Any) -> Any:
    model.train()
    return real(self, model, *rest, **options)


def evaluation_that_trains(real: Any, self: Any, *given: Any, **options: Any) -> Any:
    with torch.no_grad():
        next(self.model.parameters()).add_(1e-6)
    return real(self, *given, **options)


def seeded(real: Any, *given: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return real(*given, **options)


def last_lost(real: Any, self: Any, data: Any, *rest: Any, **options: Any) -> Any:
    state, gathered = self.gradient_state, real(self, data, *rest, **options)
    return gathered[:0] if state.end_of_dataloader and state.remainder == 0 else gathered


def first_order(real: Any, *given: Any) -> Any:
    skipping = real(*given)
    skipping.batch_sampler.batch_sampler.sampler.set_epoch = lambda epoch: None
    return skipping


def unclipped(real: Any, self: Any, parameters: Any, *rest: Any, **options: Any) -> Any:
    return torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()


def summed(real: Any, *given: Any, **options: Any) -> Any:
    return real(*given, **(options | {"reduction": "sum"}))


def never_nan(real: Any, *given: Any, **options: Any) -> Any:
    return real(*given, **options).nan_to_num(0.0)


def in_order(real: Any, self: Any, *_: Any) -> Any:
    return torch.utils.data.SequentialSampler(self.train_dataset)


def forgetful(real: Any, function: Any, *given: Any, **options: Any) -> Any:
    return real(function, *given, **(options | {"preserve_rng_state": False}))


def all_decay(real: Any, self: Any, model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def less_smooth(real: Any, self: Any, *given: Any, **options: Any) -> Any:
    self.epsilon = 0.2
    return real(self, *given, **options)


def too_large(real: Any, *given: Any, **options: Any) -> Any:
    return real(*given, **options) * 1.01


TRAINER, ACCELERATOR, F = transformers.Trainer, accelerate.Accelerator, torch.nn.functional
AUTO, SMOOTHER = transformers.AutoModelForMaskedLM, transformers.trainer_pt_utils.LabelSmoother
ADAMW = "get_optimizer_cls_and_kwargs"
FAULTS = {
    "fresh weights twice as wide": ("first_loss", method(AUTO, "from_config", twice_as_wide)),
    "loss summed": ("first_loss", method(F, "cross_entropy", summed)),
    "loss 1.01 times too large": ("accumulation", method(TRAINER, "compute_loss", too_large)),
    "no label gives 0": ("batch_without_labels", method(F, "cross_entropy", never_nan)),
    "everything decays": ("decay_groups", method(TRAINER, "get_decay_parameter_names", all_decay)),
    "nothing decays": ("decay_groups", method(TRAINER, "get_decay_parameter_names", lambda *_: [])),
    "decay is not passed on": ("decay_groups", arguments(weight_decay=0.0)),
    "another beta": ("optimiser", arguments(adam_beta2=0.98)),
    "another eps": ("optimiser", arguments(adam_epsilon=1e-6)),
    "another optimiser": ("optimiser", arguments(optim="adagrad")),
    "another default": ("argument_defaults", arguments(max_grad_norm=0.5)),
    "eps of AdamW ignored": ("plain_loop", method(TRAINER, ADAMW, with_kwargs(eps=1e-8))),
    "betas of AdamW ignored": ("plain_loop", method(TRAINER, ADAMW, with_kwargs(betas=(0.8, 0.96)))),
    "rate of the loop constant": ("plain_loop", method(trainer_module, "get_scheduler", constant_rate)),
    "clipping of the loop off": ("plain_loop", method(ACCELERATOR, "clip_grad_norm_", unclipped)),
    "loss of the loop summed": ("plain_loop", method(F, "cross_entropy", summed)),
    "rate constant": ("schedule", method(trainer_module, "get_scheduler", constant_rate)),
    "warm-up forgotten": ("schedule", arguments(warmup_steps=0)),
    "last batch dropped": ("schedule", arguments(dataloader_drop_last=True)),
    "not shuffled": ("batch_order", method(TRAINER, "_get_train_sampler", in_order)),
    "seed fixed": ("batch_order", arguments(seed=1)),
    "rows dropped": ("batch_order", arguments(dataloader_drop_last=True)),
    "clipping off": ("clipping", method(ACCELERATOR, "clip_grad_norm_", unclipped)),
    "clipped to another norm": ("clipping", arguments(max_grad_norm=0.1)),
    "no data skipped": ("resuming", method(trainer_module, "skip_first_batches", lambda real, batches, *_: batches)),
    "order of the first epoch": ("resuming", method(trainer_module, "skip_first_batches", first_order)),
    "generators not restored": ("resuming", method(TRAINER, "_load_rng_state", lambda *_: None)),
    "optimiser not restored": ("resuming", method(TRAINER, "_load_optimizer_and_scheduler", lambda *_: None)),
    "weights not restored": ("resuming", method(TRAINER, "_load_from_checkpoint", lambda *_, **__: None)),
    "evaluation drops out": ("evaluating", method(TRAINER, "prediction_step", evaluation_that_drops_out)),
    "evaluation trains": ("evaluating", method(TRAINER, "evaluate", evaluation_that_trains)),
    "evaluation seeded": ("masks_of_evaluations", method(TRAINER, "evaluate", seeded)),
    "last batch not evaluated": ("eval_loss", arguments(dataloader_drop_last=True)),
    "last of even batches not evaluated": ("eval_loss", method(ACCELERATOR, "gather_for_metrics", last_lost)),
    "generators forgotten": ("gradient_checkpointing", method(transformers.modeling_utils, "checkpoint", forgetful)),
    "frozen weights thaw": ("frozen_weights", method(TRAINER, "create_optimizer", unfrozen)),
    "another smoothing": ("label_smoothing", method(SMOOTHER, "__call__", less_smooth)),
    "noise twice as large": ("embedding_noise", arguments(neftune_noise_alpha=10.0)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_breaks_its_bound(fault: str, subject: Subject, monkeypatch: Patch) -> None:
    """A bound that the libraries keep is broken by this fault in them; what is known excuses no other value."""
    name, plant = FAULTS[fault]
    plant(monkeypatch)
    result = observe(OBSERVERS[name], subject)
    assert result.verdict is BoundVerdict.BROKEN
    assert result.broken, result.problem  # by a number, not by an exception


def unjoined(real: Any, self: Any, model: Any, *_: Any, **__: Any) -> Any:
    return model


def test_processes_that_do_not_average_break_their_bound(subject: Subject, monkeypatch: Patch) -> None:
    """Two processes that train apart are seen: the fault is planted here and is in both of them."""
    method(accelerate.Accelerator, "prepare_model", unjoined)(monkeypatch)
    result = observe(OBSERVERS["two_processes"], subject)
    assert "same_weights" in [each.slug for each in result.broken], told(result)


def _rank(factor: int) -> dict[str, torch.Tensor]:
    mean = torch.tensor([float(torch.distributed.get_rank() + 1)])
    torch.distributed.all_reduce(mean)
    return {"mean": factor * mean}


def _fails() -> dict[str, torch.Tensor]:
    if torch.distributed.get_rank() == 1:
        raise ValueError("the second has failed")
    torch.distributed.barrier()
    return {}


def _hangs(end: Path) -> dict[str, torch.Tensor]:
    time.sleep(600)
    end.touch()
    return {}


def test_two_processes_are_joined_though_threads_have_run(tmp_path: Path) -> None:
    """Each gives what both have computed together, and threads of this process before them do no harm."""
    torch.set_num_threads(2)
    torch.rand(512, 512, requires_grad=True).matmul(torch.rand(512, 512)).sum().backward()
    assert [found["mean"].item() for found in in_two_processes(_rank, (2,), tmp_path)] == [6.0, 6.0]


def test_a_process_that_fails_is_told_and_one_that_hangs_is_ended(tmp_path: Path) -> None:
    """A failure ends the other process too, with its words; a hang is no result, and nobody waits for its end."""
    for name in ("fails", "hangs"):
        (tmp_path / name).mkdir()
    with pytest.raises(RuntimeError, match="ValueError: the second has failed"):
        in_two_processes(_fails, (), tmp_path / "fails")
    with pytest.raises(UserError, match="did not end in time"):
        in_two_processes(_hangs, (tmp_path / "end",), tmp_path / "hangs", seconds=0.5)
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "end").exists()


# The formulas that Trainer is compared with.


@given(scale=st.floats(0.1, 10), labels=st.floats(-0.5, 1.5))
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mixture_is_taken_apart(scale: float, labels: float, subject: Subject) -> None:
    """Any multiple of any mixture of both gradients is found again, with its loss."""
    data, pieces = small.rows(subject, 8), [[0, 1, 2, 3], [4, 5, 6, 7]]
    model = small.small_model(subject)
    apart = [small.losses(model, data.batch(piece)) for piece in pieces]
    both = [torch.cat(apart).mean(), (apart[0].mean() + apart[1].mean()) / 2]
    model_loss = labels * both[0] + (1 - labels) * both[1]
    step = scale * small.gradient(model, model_loss).nan_to_num(0.0)
    found = plain.mixture(model, step, data, pieces)
    assert found.scale == pytest.approx(scale, rel=1e-4)
    assert found.labels == pytest.approx(labels, abs=1e-3)
    assert found.loss == pytest.approx(float(model_loss), rel=1e-4)
    assert found.rest < 1e-5


class OddNorm(torch.nn.Module):
    """A normalisation of a class of its own, whose parameters have no telling names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.ones(4, 4))


def test_who_decays_is_told_by_class_and_shape() -> None:
    """A matrix under a telling name decays; a normalisation under none, a bias and a bias as a column do not."""
    model = torch.nn.Module()
    model.layernorm = torch.nn.Linear(3, 4)
    model.plain = OddNorm()
    model.one_type = torch.nn.Embedding(1, 4)
    model.column = torch.nn.Parameter(torch.zeros(4, 1))
    spared = plain.without_decay(model)
    assert spared == {"layernorm.bias", "plain.table", "column"}
    assert plain.kinds(model, spared) == "Linear.bias, Module.column, OddNorm.table"


def test_a_model_without_weight_in_the_loss_stays(subject: Subject) -> None:
    """What the loss does not reach gets no gradient and no decay, as with torch's optimisers."""
    model = small.small_model(subject)
    model.spare = torch.nn.Parameter(torch.ones(3))
    data = small.rows(subject, 4)
    plan = plain.Plan(rate=0.1, steps=2, decay=0.5, betas=(0.9, 0.99), eps=1e-8, clip=1.0)
    before = small.flat(model)
    found = plain.replay(model, [data.batch()] * 2, plan, dict.fromkeys([n for n, _ in small.named(model)], 0.5))
    assert torch.equal(model.spare.detach(), torch.ones(3))
    assert found[1] < found[0]
    assert not torch.equal(before, small.flat(model))


def test_resuming_leaves_the_list_of_safe_types_as_it_was() -> None:
    """What may be unpickled is widened for the observation alone."""
    before = torch.serialization.get_safe_globals()
    with small.generator_states_readable():
        assert len(torch.serialization.get_safe_globals()) >= 4
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_only_the_observation_with_processes_is_slow() -> None:
    """Only the observation that starts processes is marked as slow, and every function of the module is found."""
    assert [each.name for each in OBSERVERS.values() if each.slow] == ["two_processes"]
    assert sorted(OBSERVERS) == sorted([*training.__all__, *evaluation.__all__])
