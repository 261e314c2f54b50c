"""The whole guide, top to bottom."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mlmrepro import loading, provenance
from mlmrepro.config import TRAINER_SEED, RunConfig
from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write
from mlmrepro.guide import blocks, collate, dataset, evaluate, fill_mask, observe, tokens, train, versions
from mlmrepro.record import Lane, RunRecord

__all__ = ["Progress", "Silent", "run"]

_RUN = "run.json"  # the settings that a run was started with: it is resumed with the same ones only
_RECORD = "record.json"
_STEP_LOSSES = "step_losses.json"


class Progress(Protocol):
    """Whoever shows the run."""

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
    _check_output_dir(config)
    finished = config.output_dir / _RECORD
    if config.resume and finished.is_file():
        return RunRecord.read(finished)
    guide, model_dir = config.guide, config.output_dir / "model"
    # A fresh cache folder: leftovers of another run change the number of processes, and with it the blocks.
    cache = config.output_dir / "cache" if config.profile == "embedded" else None

    import torch
    from transformers import set_seed

    versions.set_up()
    torch.set_num_threads(config.threads)
    seed = TRAINER_SEED if guide.seed is None else guide.seed  # of what the guide does not draw itself
    if guide.seed is not None:
        set_seed(guide.seed)
    record = RunRecord(provenance.collect(), config.to_dict())

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        progress.stage(name)
        started = time.perf_counter()
        with observe.captured_warnings(record, name):
            yield
        record.observe(name, "seconds", round(time.perf_counter() - started, 3), Lane.INFO)

    try:
        atomic_write(config.output_dir / _RUN, json.dumps(_settings(config), indent=1) + "\n")
        if cache is not None:
            shutil.rmtree(cache, ignore_errors=True)

        with stage("dataset"):
            split = dataset.split(dataset.load(config.dataset, guide.split, cache), guide.test_size)
            observe.observe_split(record, split)

        with stage("flatten"):
            flat = dataset.flatten(split)
            observe.observe_flatten(record, flat)

        with stage("input_ids"):
            tokenizer = loading.load_tokenizer(config.checkpoint)
            limit = loading.max_block_size(config.checkpoint, tokenizer.model_max_length)
            _check_block_size(config, limit)
            prompt = fill_mask.check_prompt(tokenizer, guide.prompt, limit)
            fill_mask.check_top_k(len(tokenizer), guide.top_k)
            tokenized = tokens.tokenize(
                flat, tokenizer, column=guide.text_column, separator=guide.separator, num_proc=guide.num_proc
            )
            observe.observe_input_ids(record, tokenized, tokenizer.all_special_ids)

        with stage("blocks"):
            lm_dataset = blocks.group(
                tokenized, block_size=guide.block_size, num_proc=guide.num_proc, batch_size=guide.map_batch_size
            )
            observe.observe_blocks(record, tokenized, lm_dataset)

        with stage("masked_batches"):
            collator = collate.data_collator(
                tokenizer, mlm_probability=guide.mlm_probability, pad_token=guide.pad_token
            )
            observe.observe_batches(
                record,
                lm_dataset["train"],
                collator,
                batch_size=guide.batch_size,
                mask_token_id=tokenizer.mask_token_id,
                seed=seed,
            )

        with stage("model"):
            model = loading.load_model(config.checkpoint)
            observe.observe_model(record, model)
            observe.observe_forward(record, model, lm_dataset["train"], collator, rows=guide.batch_size, seed=seed)
            # Before anything is learnt. Its own Trainer, so that the guide's finds the generators untouched.
            still = train.training_arguments(guide, model_dir, push_to_hub=False)
            set_seed(seed)
            before = evaluate.evaluate(train.trainer(model, still, lm_dataset, collator))
            record.observe("model", "revision", getattr(model.config, "_commit_hash", None), Lane.INFO)
            record.observe("evaluation", "before_eval_loss", before, Lane.APPROXIMATE)

        with stage("loss"):
            arguments = train.training_arguments(guide, model_dir, push_to_hub=guide.push_to_hub)
            trainer, losses = _fine_tune(config, model, arguments, lm_dataset, collator, progress)
            record.observe("loss", "steps", trainer.state.global_step, Lane.EXACT)
            record.observe("loss", "step_losses", losses, Lane.APPROXIMATE)
            epochs = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
            record.observe("evaluation", "epoch_eval_losses", epochs, Lane.APPROXIMATE)

        with stage("evaluation"):
            eval_loss = evaluate.evaluate(trainer)
            record.observe("evaluation", "eval_loss", eval_loss, Lane.APPROXIMATE)
            record.observe("evaluation", "perplexity", evaluate.perplexity(eval_loss), Lane.STATISTICAL)
            # On the masks of the evaluation before training, so that the two differ by the training alone.
            with observe.preserved_generators():
                set_seed(seed)
                after = evaluate.evaluate(train.trainer(model, still, lm_dataset, collator))
            record.observe("evaluation", "same_masks_eval_loss", after, Lane.INFO)
            pair = {"before": evaluate.perplexity(before), "after": evaluate.perplexity(after)}
            record.observe("evaluation", "same_masks_perplexity", pair, Lane.STATISTICAL)
            _save(trainer, tokenizer, model_dir, push_to_hub=guide.push_to_hub)

        with stage("fill_mask"):
            saved_tokenizer, saved_model = loading.load_tokenizer(str(model_dir)), loading.load_model(str(model_dir))
            pipeline_rows = fill_mask.with_pipeline(str(model_dir), prompt, guide.top_k)
            manual_rows = fill_mask.by_hand(saved_model, saved_tokenizer, prompt, guide.top_k)
            record.observe("fill_mask", "pipeline", pipeline_rows, Lane.RANKING)
            record.observe("fill_mask", "by_hand", manual_rows, Lane.RANKING)
    finally:
        if cache is not None:
            shutil.rmtree(cache, ignore_errors=True)
        if not config.resume and not any(model_dir.rglob("model.safetensors")):
            shutil.rmtree(config.output_dir, ignore_errors=True)  # nothing to resume: bad input leaves no trace

    record.write(finished)
    return record


def _check_output_dir(config: RunConfig) -> None:
    """Raise UserError where the output folder cannot be used: nothing that lies there is written over."""
    directory = config.output_dir
    if directory.exists() and not directory.is_dir():
        raise UserError(f"the output directory {directory} is a file", remedy="give --output-dir another path")
    if not config.resume:
        if directory.exists() and any(directory.iterdir()):
            raise UserError(
                f"the output directory {directory} is not empty",
                remedy="give --output-dir a new path, or continue a killed run in it with --resume",
            )
        return
    started = directory / _RUN
    if not started.is_file():
        raise UserError(
            f"there is no run to resume in {directory}", remedy="give --output-dir of the killed run, or drop --resume"
        )
    earlier = json.loads(started.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(_settings(config)))
    if earlier != now:
        raise UserError(
            f"the run in {directory} was started with other settings: {_difference(earlier, now)}",
            remedy=f"resume with the settings in its {_RUN}, or start in another --output-dir",
        )


def _settings(config: RunConfig) -> dict[str, Any]:
    """What a resumed run must share with its beginning: epochs of two versions would make one record of neither."""
    return config.to_dict() | {"packages": provenance.package_versions()}


def _difference(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    pairs = [(name, earlier["guide"].get(name), value) for name, value in now["guide"].items()]
    pairs += [(name, earlier["packages"].get(name), value) for name, value in now["packages"].items()]
    pairs += [(name, earlier.get(name), now[name]) for name in ("profile", "threads")]
    return ", ".join(f"{name} {old!r}, now {new!r}" for name, old, new in pairs if old != new) or "its overrides differ"


def _check_block_size(config: RunConfig, limit: int) -> None:
    if config.guide.block_size > limit:
        raise UserError(
            f"block_size is {config.guide.block_size}, but {config.guide.checkpoint!r} takes at most {limit} tokens",
            remedy=f"use --set block_size={limit} or less",
        )


def _fine_tune(
    config: RunConfig, model: Any, arguments: Any, lm_dataset: Any, collator: Any, progress: Progress
) -> tuple[Any, list[float]]:
    """Train, from the last checkpoint where the run resumes; return the Trainer and every step's loss in nats.

    transformers 4.41 rounds the losses that Trainer logs to four decimals, so they are read from the model's own
    output, within the steps that Trainer says it takes: an evaluation is none, whatever mode it leaves the model in.
    They are stored beside each of Trainer's checkpoints, from which a resumed run takes the earlier ones.
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
        losses.append(statistics.fmean(pieces) if pieces else math.nan)  # NaN: the step went past the model
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
            lm_dataset,
            collator,
            before_step=begin,
            on_step=end,
            on_save=lambda folder: atomic_write(folder / _STEP_LOSSES, json.dumps(losses)),
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        hook.remove()
    return trainer, losses


def _save(trainer: Any, tokenizer: Any, model_dir: Path, *, push_to_hub: bool) -> None:
    """Push as the guide does, or save only; the tokenizer goes with the model.

    transformers before 4.50 saves no tokenizer here, and `pipeline(<folder>)` would fail.
    """
    tokenizer.save_pretrained(str(model_dir))  # first: a push takes what lies in the folder
    if push_to_hub:
        try:
            trainer.push_to_hub()
        except Exception as error:
            raise train.unpushable(trainer.args.hub_model_id, error) from error
    else:
        trainer.save_model()
