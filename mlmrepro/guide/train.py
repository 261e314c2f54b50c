"""Train: the model, the training arguments, and Trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro.config import TRAINER_SEED, GuideConfig
from mlmrepro.errors import UserError, first_line
from mlmrepro.guide import versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments

__all__ = ["last_checkpoint", "trainer", "training_arguments", "unpushable"]


def training_arguments(guide: GuideConfig, output_dir: Path, *, push_to_hub: bool) -> TrainingArguments:
    """Return the guide's TrainingArguments; what the guide leaves out keeps the library's default."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(output_dir),
        eval_strategy=guide.eval_strategy,
        learning_rate=guide.learning_rate,
        num_train_epochs=guide.num_train_epochs,
        weight_decay=guide.weight_decay,
        push_to_hub=push_to_hub,
        hub_model_id=guide.hub_model if push_to_hub else None,
        per_device_train_batch_size=guide.batch_size,
        per_device_eval_batch_size=guide.batch_size,
        save_strategy=guide.save_strategy,
        logging_steps=guide.logging_steps,
        report_to=guide.report_to,
        seed=TRAINER_SEED if guide.seed is None else guide.seed,
        disable_tqdm=guide.disable_tqdm,
    )


def trainer(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    datasets: Any,
    collator: Any,
    *,
    before_step: Callable[[], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_save: Callable[[Path], None] | None = None,
) -> Trainer:
    """Return the guide's Trainer; `before_step()`, `on_step(step, total)`, `on_save(checkpoint folder)` only watch.

    Its constructor sets every global generator to `arguments.seed`; with `push_to_hub` it creates the repository,
    and raises UserError if it cannot.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if before_step is not None:
                before_step()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if on_step is not None:
                on_step(state.global_step, state.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if on_save is not None:
                on_save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    versions.allow_generator_state()
    try:
        built = Trainer(
            model=model,
            args=arguments,
            train_dataset=datasets["train"],
            eval_dataset=datasets["test"],
            data_collator=collator,
            callbacks=[Watch()],
        )
    except Exception as error:
        if not arguments.push_to_hub:
            raise
        raise unpushable(arguments.hub_model_id, error) from error  # Trainer creates the repository
    built.remove_callback(PrinterCallback)  # it prints every log entry
    return built


def unpushable(repository: str | None, error: Exception) -> UserError:
    """Return the error of a push that failed."""
    return UserError(
        f"the model cannot be pushed to the hub as {repository!r}: {first_line(error)}",
        remedy="log in (`hf auth login`) and check the network, or leave push_to_hub=true out",
    )


def last_checkpoint(output_dir: Path, needed: str) -> Path | None:
    """Return the newest of Trainer's checkpoint folders that holds `needed`, the file written last, or None.

    A checkpoint of the last step is skipped: resumed from it, Trainer would train no step and would not restore
    the random generators either, and the evaluation after it would draw other masks.
    """
    found = []
    for path in output_dir.glob("checkpoint-*"):
        if (path / needed).is_file():
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            if state["global_step"] < state["max_steps"]:
                found.append((state["global_step"], path))
    return max(found)[1] if found else None
