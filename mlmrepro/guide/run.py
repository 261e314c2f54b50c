"""The whole guide, top to bottom."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mlmrepro import loading, provenance
from mlmrepro.config import TRAINER_SEED, RunConfig
from mlmrepro.files import atomic_write
from mlmrepro.guide import evaluate, fill_mask, observe, train, versions
from mlmrepro.guide.fast import Fast
from mlmrepro.guide.prepare import Prepared, prepare
from mlmrepro.guide.session import MODEL, RECORD, claim, session
from mlmrepro.record import Lane, RunRecord

__all__ = ["Progress", "Silent", "run"]

_STEP_LOSSES = "step_losses.json"


class Progress(Protocol):
    """Shows the progress of the run."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int, loss: float) -> None:
        """A training step is done; `loss` in nats."""


class Silent:
    """Shows nothing."""

    def stage(self, name: str) -> None:
        """Ignore it."""

    def step(self, done: int, total: int, loss: float) -> None:
        """Ignore it."""


def run(config: RunConfig, progress: Progress | None = None) -> RunRecord:
    """Run the guide and return its record, which is also written to ``<output_dir>/record.json``.

    The fine-tuned checkpoint goes to ``<output_dir>/model``. Raises UserError for bad input; nothing is overwritten,
    and a finished run that is resumed is only read.
    """
    progress = progress or Silent()
    claim(config)
    finished = config.output_dir / RECORD
    if config.resume and finished.is_file():
        return RunRecord.read(finished)

    import torch
    from transformers import set_seed

    versions.set_up()
    torch.set_num_threads(config.threads)
    guide, model_dir = config.guide, config.output_dir / MODEL
    seed = TRAINER_SEED if guide.seed is None else guide.seed  # of draws that the guide does not make
    if guide.seed is not None:
        set_seed(guide.seed)
    record = RunRecord(provenance.collect(), config.to_dict(), asked={})

    @contextmanager
    def stage(name: str, made: Prepared | None = None) -> Iterator[None]:
        progress.stage(name)
        started = time.perf_counter()
        with observe.captured_warnings(record, name):
            yield
            if made is not None:
                observe.observe_prepared(record, name, made, batch_size=guide.batch_size, seed=seed)
        record.observe(name, "seconds", round(time.perf_counter() - started, 3), Lane.INFO)

    fast = Fast(config.fast) if config.fast else None

    def arguments_of(push_to_hub: bool) -> Any:
        own = train.training_arguments(guide, model_dir, push_to_hub=push_to_hub)
        return fast.arguments(own) if fast else own

    def check(tokenizer: Any, limit: int) -> None:
        fill_mask.check_prompt(tokenizer, guide.prompt, limit)
        fill_mask.check_top_k(len(tokenizer), guide.top_k)

    with session(config) as cache:
        ways: dict[str, Any] = {"tokenize": fast.tokenize, "group": fast.group} if fast else {}
        made = prepare(config, cache, stage, check, **ways)

        with stage("model"):
            model = loading.load_model(config.checkpoint)
            observe.observe_model(record, model)
            if fast:
                fast.switch_on(model, made, config.output_dir)
                record.observe("model", "fast", fast.report, Lane.INFO)
            observe.observe_forward(
                record, model, made.blocks["train"], made.collator, rows=guide.batch_size, seed=seed
            )
            # Before anything is learnt. A separate Trainer, so that the guide's finds the generators untouched.
            still = arguments_of(push_to_hub=False)
            set_seed(seed)
            before = evaluate.evaluate(train.trainer(model, still, made.blocks, made.collator))
            record.observe("model", "revision", getattr(model.config, "_commit_hash", None), Lane.INFO)
            record.observe("evaluation", "before_eval_loss", before, Lane.APPROXIMATE)

        with stage("loss"):
            arguments = arguments_of(push_to_hub=guide.push_to_hub)
            trainer, losses = _fine_tune(config, model, arguments, made, progress)
            observe.observe_training(record, trainer, losses)

        with stage("evaluation"):
            eval_loss = evaluate.evaluate(trainer)
            # On the masks of the evaluation before training, so that the two differ only by the training.
            with observe.preserved_generators():
                set_seed(seed)
                after = evaluate.evaluate(train.trainer(model, still, made.blocks, made.collator))
            observe.observe_evaluation(record, eval_loss, before, after)
            _save(trainer, made.tokenizer, model_dir, push_to_hub=guide.push_to_hub)

        with stage("fill_mask"):
            tokenizer, model = loading.load_tokenizer(str(model_dir)), loading.load_model(str(model_dir))
            prompt = fill_mask.check_prompt(made.tokenizer, guide.prompt, made.limit)
            pipeline_rows = fill_mask.with_pipeline(str(model_dir), prompt, guide.top_k)
            manual_rows = fill_mask.by_hand(model, tokenizer, prompt, guide.top_k)
            record.observe("fill_mask", "pipeline", pipeline_rows, Lane.RANKING)
            record.observe("fill_mask", "by_hand", manual_rows, Lane.RANKING)

    record.write(finished)
    return record


def _fine_tune(
    config: RunConfig, model: Any, arguments: Any, made: Prepared, progress: Progress
) -> tuple[Any, list[float]]:
    """Train, from the last checkpoint if the run resumes; return the Trainer and every step's loss in nats.

    transformers 4.41 rounds the losses that Trainer logs to four decimals, so they are read from the model's own
    output, during the steps that Trainer reports: an evaluation is not one, whatever mode it leaves the model in. They
    are stored in each of Trainer's checkpoints, where a resumed run finds the earlier ones.
    """
    losses: list[float] = []
    pieces: list[float] | None = None  # the losses of the step that is being taken

    def begin() -> None:
        nonlocal pieces
        pieces = []

    def keep_loss(module: Any, inputs: Any, output: Any) -> None:
        if pieces is not None:
            pieces.append(float(output.loss.detach()))

    def end(done: int, total: int) -> None:
        nonlocal pieces
        losses.append(statistics.fmean(pieces) if pieces else math.nan)  # NaN: the step did not call the model
        pieces = None
        progress.step(done, total, losses[-1])

    checkpoint = train.last_checkpoint(Path(arguments.output_dir), _STEP_LOSSES) if config.resume else None
    if checkpoint is not None:
        losses += json.loads((checkpoint / _STEP_LOSSES).read_text())
    hook = model.register_forward_hook(keep_loss)
    try:
        trainer = train.trainer(
            model,
            arguments,
            made.blocks,
            made.collator,
            before_step=begin,
            on_step=end,
            on_save=lambda folder: atomic_write(folder / _STEP_LOSSES, json.dumps(losses)),
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        hook.remove()
    return trainer, losses


def _save(trainer: Any, tokenizer: Any, model_dir: Path, *, push_to_hub: bool) -> None:
    """Push as the guide does, or only save; the tokenizer goes with the model.

    transformers before 4.50 saves no tokenizer here, and `pipeline(<folder>)` would fail.
    """
    tokenizer.save_pretrained(str(model_dir))  # first: a push uploads what is in the folder
    if push_to_hub:
        try:
            trainer.push_to_hub()
        except Exception as error:
            raise train.unpushable(trainer.args.hub_model_id, error) from error
    else:
        trainer.save_model()
