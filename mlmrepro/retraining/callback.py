"""The gate during training: each evaluation checks the current model against the baseline."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from mlmrepro.errors import UserError
from mlmrepro.gate.result import Answer, CheckResult
from mlmrepro.guide.observe import preserved_generators
from mlmrepro.retraining.baseline import Baseline
from mlmrepro.retraining.check import check
from mlmrepro.retraining.settings import Settings
from mlmrepro.scoring.scorer import BATCH_TOKENS, Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

__all__ = ["GateCallback"]

_LOGGER = logging.getLogger(__name__)
_SHARDED = {"FullyShardedDataParallel", "FlatParameter", "DTensor"}


class GateCallback(TrainerCallback):
    """Checks the model against a baseline at each evaluation of a Trainer, without changing the training.

    `results` holds (step, result), on every process. Numbers go into the evaluation's metrics and its entry of the
    trainer's log history: ``eval_gate_exit_code`` (0, 1 or 3), ``eval_gate_difference_percent``,
    ``eval_gate_perplexity`` or ``eval_gate_bits_per_byte``, and ``eval_gate_loss``, the logarithm of either; so
    ``metric_for_best_model="gate_loss"`` loads the best model (for a name that does not end in "loss", Trainer takes
    the greatest value). Trackers get the evaluation's metrics before callbacks run, so they do not see these numbers.
    The answer is logged by the logger of this module.

    `settings` defaults to those of pyproject.toml, as in ``mlmrepro check``, and `tokenizer` to the trainer's. Raises
    UserError for a baseline that cannot be read, and at the start of training for a model that cannot be scored.
    """

    def __init__(
        self,
        baseline: str | Path,
        *,
        settings: Settings | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        stop_on_regression: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.baseline = Baseline.read(Path(baseline))
        self.settings = settings or Settings.find()
        self.stop_on_regression = stop_on_regression
        self.batch_tokens = batch_tokens
        self.results: list[tuple[int, CheckResult]] = []
        self.tokenizer = tokenizer
        self._weights: tuple[int, int] | None = None  # of the last result

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a model that cannot be scored now, not only after the first epoch."""
        with self._scorer(_unwrapped(kwargs["model"]), kwargs):
            pass

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the model, on the main process; every process gets the result, so that either all stop or none."""
        from accelerate.utils import broadcast_object_list

        main, step = state.is_world_process_zero, state.global_step
        found = [self._found(step, kwargs) if main else None]
        weights, result = broadcast_object_list(found)[0]
        if weights != self._weights:
            self._weights = weights
            self.results.append((step, result))
            if main:
                level = logging.WARNING if result.answer is Answer.REGRESSION else logging.INFO
                _LOGGER.log(level, "step %d: %s: %s", step, result.answer.value, result.reason)
        _note(result, state, kwargs["metrics"])
        if self.stop_on_regression and result.answer is Answer.REGRESSION:
            control.should_training_stop = True

    def _found(self, step: int, kwargs: dict[str, Any]) -> tuple[tuple[int, int], CheckResult]:
        """Return an identity of the current weights, and the result: the last one if the weights are the same.

        Trainer evaluates once for each of several data sets, while the model does not change.
        """
        model = _unwrapped(kwargs["model"])
        weights = step, sum(parameter._version for parameter in model.parameters())
        if weights == self._weights:
            return weights, self.results[-1][1]
        with self._scorer(model, kwargs) as scorer:
            return weights, check(scorer, self.baseline, self.settings, checkpoint=f"step {step}")

    @contextmanager
    def _scorer(self, model: Any, kwargs: dict[str, Any]) -> Iterator[Scorer]:
        # transformers 4.46 renamed the tokenizer.
        given = (self.tokenizer, kwargs.get("processing_class"), kwargs.get("tokenizer"))
        tokenizer = next((each for each in given if each is not None), None)
        if tokenizer is None:
            raise UserError("the Trainer has no tokenizer", remedy="give GateCallback(..., tokenizer=...)")
        _refuse_shards(model)
        wanted = self.baseline.settings["max_length"]
        with _aside(model), _set_as_before(tokenizer):
            yield Scorer(model, tokenizer, max_length=wanted, batch_tokens=self.batch_tokens)


def _note(result: CheckResult, state: TrainerState, metrics: dict[str, float]) -> None:
    """Add the numbers to those of the evaluation: only numbers, as trackers and model cards expect."""
    numbers = {
        "exit_code": float(result.exit_code),
        result.measure.replace(" ", "_"): result.after,
        "loss": math.log(result.after) if result.after > 0 else math.nan,
        "difference_percent": 100 * (result.after / result.before - 1),
    }
    named = {f"eval_gate_{name}": number for name, number in numbers.items()}
    metrics.update(named)
    if state.log_history and state.log_history[-1].get("step") == state.global_step:
        state.log_history[-1].update(named)


@contextmanager
def _aside(model: Any) -> Iterator[None]:
    """Score the weights as ``mlmrepro check`` would: no autocast, nothing compiled, no random draws."""
    import torch

    changed = ["_compiled_call_impl"]
    if "_original_forward" in model.__dict__:  # accelerate's mixed precision replaced it
        changed.append("forward")
    replaced = {name: model.__dict__.pop(name) for name in changed if name in model.__dict__}
    try:
        with preserved_generators(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.__dict__.update(replaced)


@contextmanager
def _set_as_before(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Restore padding and truncation afterwards: scoring switches them off in the underlying fast tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    padding, truncation = backend.padding, backend.truncation
    try:
        yield
    finally:
        if padding:
            backend.enable_padding(**padding)
        if truncation:
            backend.enable_truncation(**truncation)


def _unwrapped(model: Any) -> Any:
    """Return the model within what accelerate, torch.compile and data parallelism wrap around it."""
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    return model


def _refuse_shards(model: Any) -> None:
    """Raise UserError if no single process holds the whole weights: FSDP, tensor parallelism, ZeRO stage 3."""
    kinds = {type(part).__name__ for part in (*model.modules(), *model.parameters())}
    if kinds & _SHARDED or not all(parameter.numel() for parameter in model.parameters()):
        raise UserError(
            "the model's weights are split among processes, so that none can score it alone",
            remedy="leave GateCallback out, and check the saved checkpoint with mlmrepro check",
        )
