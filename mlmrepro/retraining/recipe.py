"""Retraining variance: fine-tune the guide's recipe with several seeds, all scored on one text and one mask plan."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mlmrepro import loading, provenance
from mlmrepro.config import RunConfig
from mlmrepro.errors import UserError
from mlmrepro.guide import evaluate, observe, train, versions
from mlmrepro.guide.prepare import prepare
from mlmrepro.guide.run import Progress, Silent
from mlmrepro.guide.session import cache_folder
from mlmrepro.record import RunRecord
from mlmrepro.retraining.runs import FILE, HeldOut, Retraining, SeedRun, Start, check_comparable, settings_of
from mlmrepro.scores import Scores
from mlmrepro.scoring.plan import MASK_RATE, token_plan
from mlmrepro.scoring.scorer import Scorer

__all__ = ["OURS", "parse_seeds", "retrain"]

# What differs from `reproduce`; neither can be changed.
OURS: tuple[tuple[str, Any, str], ...] = (
    ("save_strategy", "no", "a killed retraining continues with its next seed"),
    ("push_to_hub", False, "nothing leaves the machine"),
)
_WORK = ".retraining"  # in the output folder, while seeds are trained
_MASKS_SEED = 0


def parse_seeds(text: str, first: int) -> tuple[int, ...]:
    """Return the seeds that ``--seeds`` gives: a number says how many, from `first` on; a comma makes it a list.

    So ``5`` means 42 to 46, ``1,2,3`` these three, and ``43,`` one seed. Raises UserError for no seed, a repeated one,
    and an invalid one.
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise _no_seeds(text, "is neither a number nor a list of numbers") from None
    if "," not in text and numbers:
        if not 1 <= numbers[0] <= 2**32 - first:
            raise _no_seeds(text, "is not a valid number of seeds")
        return tuple(range(first, first + numbers[0]))
    if not numbers:
        raise _no_seeds(text, "names no seed")
    for number in numbers:
        if not 0 <= number < 2**32:
            raise _no_seeds(text, f"holds {number}, which is not a valid seed")
        if numbers.count(number) > 1:
            raise _no_seeds(text, f"holds {number} twice, and the same seed gives the same training")
    return tuple(numbers)


def _no_seeds(text: str, why: str) -> UserError:
    return UserError(
        f"--seeds {text!r} {why}", remedy="say how many (5), or which ones (42,43,44; each below 2**32, each once)"
    )


def retrain(
    config: RunConfig,
    seeds: Sequence[int],
    *,
    against: tuple[str, Retraining] | None = None,
    save_models: bool = False,
    progress: Progress | None = None,
) -> Retraining:
    """Fine-tune the recipe once for each seed and return all seeds in the output folder.

    The data are loaded, split and cut into blocks once, with the recipe's own seed. A seed decides only what training
    draws (order, masks, dropout); its run equals `reproduce` with that seed if the split is the same. Each model is
    scored on the held-out documents with every token masked once. The file is written after each seed, and seeds that
    it holds are not trained again.

    Raises UserError for bad input, a folder of other settings or versions, and, before any training, if `against` (its
    name, and its content) was not scored on the same text.
    """
    progress = progress or Silent()
    _check(config)
    output = config.output_dir
    with _claimed(output) as work:
        result = Retraining.read(output) if (output / FILE).is_file() else None
        if result is not None:
            result.refuse_other(settings_of(config.to_dict(), provenance.package_versions()), output)
        done = [run.seed for run in result.seeds] if result else []
        if save_models:
            _check_models(output, [seed for seed in seeds if seed in done])
        todo = [seed for seed in dict.fromkeys(seeds) if seed not in done]
        if result is None or todo:
            progress.stage("load the data, score the start")
            recipe = _Recipe(config, work)
            if result is not None:
                result.refuse_other(recipe.begun.settings, output)
            result = result or recipe.begun
        if against is not None:
            check_comparable(against[1], result, against[0])
        for n, seed in enumerate(todo, start=len(done) + 1):
            progress.stage(f"seed {seed} ({n} of {len(done) + len(todo)})")
            run = recipe.run(seed, progress, output / f"seed-{seed}" if save_models else None)
            result = result.with_run(run)
            result.write(output)
    return result


class _Recipe:
    """The data, prepared once as in the guide, and the text that all seeds are scored on."""

    def __init__(self, config: RunConfig, work: Path) -> None:
        import torch
        from transformers import set_seed

        versions.set_up()
        torch.set_num_threads(config.threads)
        guide = config.guide
        assert guide.seed is not None
        self.config, self.work = config, work
        with _quiet() as self.warnings:
            set_seed(guide.seed)  # the split draws from it
            made = prepare(config, cache_folder(config, work))
            self.tokenizer, self.blocks, self.collator = made.tokenizer, made.blocks, made.collator
            self.texts = [guide.separator.join(answers) for answers in made.flat["test"][guide.text_column]]
            # A second one: the collator changes the padding token of the first, and special tokens are never masked.
            self.scoring_tokenizer = loading.load_tokenizer(config.checkpoint)
            model = loading.load_model(config.checkpoint)
            scorer = Scorer(model.to(self._arguments(guide.seed).device), self.scoring_tokenizer)  # type: ignore[arg-type]
            self.encoded = scorer.encode(self.texts)
            self.plan = token_plan(self.texts, self.encoded, rate=MASK_RATE, seed=_MASKS_SEED)
        self.begun = self._begun(scorer)

    def _begun(self, start: Scorer) -> Retraining:
        """Return what all seeds share, with the loss before training and no seed yet."""
        scores = start.score(self.plan, self.encoded)
        if not math.isfinite(scores.mean_loss):
            raise UserError(
                f"the checkpoint {self.config.guide.checkpoint!r} has the loss {scores.mean_loss} before any training",
                remedy="start from another checkpoint",
            )
        return Retraining(
            config=self.config.to_dict(),
            provenance=provenance.collect(),
            blocks=observe.digest(self.blocks["train"]["input_ids"]),
            held_out=HeldOut(
                documents=[_digest(text.encode("utf-8", "surrogatepass")) for text in self.texts],
                tokens=np.bincount(self.plan.document, minlength=len(self.texts)).tolist(),
                ids=_digest(b"".join(hashlib.sha256(document.ids.tobytes()).digest() for document in self.encoded)),
                plan={
                    "mask_rate": MASK_RATE,
                    "masks_seed": _MASKS_SEED,
                    "masks": "complementary",
                    "max_length": start.encoder.max_length,
                    "mask_token": start.mask_id,
                    "dtype": start.dtype,
                },
            ),
            start=Start(start.about["weights"], scores.mean_loss, self._by_document(scores)),
            warnings=self.warnings,
        )

    def run(self, seed: int, progress: Progress, model_dir: Path | None) -> SeedRun:
        """Fine-tune a fresh copy of the start with one seed and score it; save it if a folder is given."""
        started = time.perf_counter()
        losses: list[float] = []

        def keep_loss(module: Any, inputs: Any, output: Any) -> None:
            if module.training:
                losses.append(float(output.loss.detach()))

        with _quiet() as warnings:
            model = loading.load_model(self.config.checkpoint)
            hook = model.register_forward_hook(keep_loss)
            trainer = train.trainer(
                model,
                self._arguments(seed),
                self.blocks,
                self.collator,
                on_step=lambda done, total: progress.step(done, total, losses[-1]),
            )
            trainer.train()
            hook.remove()
            eval_loss = evaluate.evaluate(trainer)
            scores = Scorer(model, self.scoring_tokenizer).score(self.plan, self.encoded)
            if model_dir is not None:
                self.tokenizer.save_pretrained(str(model_dir))
                trainer.save_model(str(model_dir))
        steps = math.ceil(len(self.blocks["train"]) / self.config.guide.batch_size)
        return SeedRun(
            seed=seed,
            loss=scores.mean_loss,
            document_losses=self._by_document(scores),
            eval_loss=eval_loss,
            train_loss=float(np.mean(losses[-steps:])),
            seconds=round(time.perf_counter() - started, 3),
            warnings=warnings,
        )

    def _arguments(self, seed: int) -> Any:
        guide = dataclasses.replace(self.config.guide, seed=seed)
        return train.training_arguments(guide, self.work / "trainer", push_to_hub=False)

    def _by_document(self, scores: Scores) -> list[float]:
        sums: list[float] = np.bincount(scores.document, weights=scores.loss, minlength=len(self.texts)).tolist()
        return sums


def _check(config: RunConfig) -> None:
    for name, value, reason in OURS:
        if getattr(config.guide, name) != value:
            raise UserError(
                f"{name} is {getattr(config.guide, name)!r}, but here it must be {value!r}: {reason}",
                remedy=f"leave --set {name} out; --save-models keeps the models",
            )
    if config.guide.seed is None:
        raise UserError(
            "without a seed each run would hold out a different text", remedy="leave --set seed out, or give a number"
        )


def _check_models(output: Path, seeds: Sequence[int]) -> None:
    for seed in seeds:
        if not (output / f"seed-{seed}" / "config.json").is_file():
            raise UserError(
                f"seed {seed} in {output} is already trained, and its model was not saved",
                remedy="leave --save-models out, or give another --output",
            )


@contextmanager
def _claimed(output: Path) -> Iterator[Path]:
    """Lock the output folder against other processes and yield a folder for temporary files."""
    if output.exists() and not output.is_dir():
        raise UserError(f"the output folder {output} is a file", remedy="give --output another path")
    work = output / _WORK
    inside = {path.name for path in output.iterdir()} - {_WORK} if output.exists() else set()
    if inside and FILE not in inside:
        raise UserError(
            f"the output folder {output} is not empty and holds no {FILE}", remedy="give --output a new path"
        )
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another retraining is running in {output}", remedy="wait for it, or give another --output"
        ) from None
    try:
        for leftover in ("cache", "trainer"):  # of a killed run
            shutil.rmtree(work / leftover, ignore_errors=True)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()
        with suppress(OSError):  # raised unless empty: a refused run leaves no folder behind
            output.rmdir()


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Yield a list that collects the libraries' warnings, which are not printed."""
    record, messages = RunRecord({}, {}), list[str]()
    with observe.captured_warnings(record, "loss"):
        yield messages
    messages += [message for observation in record for message in observation.value]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
