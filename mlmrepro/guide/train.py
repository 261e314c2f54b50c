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

__all__ = ["last_checkpoint", "load_model", "max_block_size", "trainer", "training_arguments", "unpushable"]

# RoBERTa and what was built on it count positions from padding_idx + 1.
_POSITIONS_AFTER_PADDING = ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "longformer", "xmod", "mpnet")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")


def max_block_size(checkpoint: str, model_max_length: int) -> int:
    """Return how many tokens a row may have: the tokenizer's limit or the model's positions, the smaller one."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:
        raise _unloadable(checkpoint, error) from error
    positions = getattr(config, "max_position_embeddings", None) or model_max_length
    if config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
    return min(model_max_length, positions)


def load_model(checkpoint: str) -> PreTrainedModel:
    """Return the masked language model of a hub name or folder, from safetensors only.

    Raises UserError where it cannot be read, is of another kind (a causal model), or lacks weights, which the
    library would fill with random numbers and a warning (an encoder without its language-model head).
    """
    from transformers import AutoModelForMaskedLM

    # transformers 4.41 reads a folder's pickles in spite of use_safetensors=True.
    folder = Path(checkpoint)
    if folder.is_dir() and not any((folder / name).is_file() for name in _SAFETENSORS):
        raise UserError(
            f"the checkpoint folder {checkpoint} has no {_SAFETENSORS[0]}",
            remedy="save the model as safetensors (save_pretrained with safe_serialization): pickles are not read",
        )
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            checkpoint, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # OSError, ValueError, SafetensorError, RuntimeError ...: one message for the user
        raise _unloadable(checkpoint, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"the checkpoint {checkpoint!r} has no weights for {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            remedy="give a checkpoint with a masked-language-model head (saved from an AutoModelForMaskedLM)",
        )
    return model


def _unloadable(checkpoint: str, error: Exception) -> UserError:
    reason = first_line(error)
    if "Unrecognized configuration class" in reason:
        reason = "its architecture has no masked-language-model head"
    return UserError(
        f"the checkpoint {checkpoint!r} cannot be loaded: {reason}",
        remedy="give a folder with config.json and model.safetensors of a masked language model, or a name that the "
        "hub can be reached for; --profile embedded works offline",
    )


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
    on_step: Callable[[int, int], None] | None = None,
    on_save: Callable[[Path], None] | None = None,
) -> Trainer:
    """Return the guide's Trainer; `on_step(step, total)` and `on_save(checkpoint folder)` only watch.

    Its constructor sets every global generator to `arguments.seed`; with `push_to_hub` it creates the repository,
    and a UserError says why it could not.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class Watch(TrainerCallback):
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
        raise unpushable(arguments.hub_model_id, error) from error  # it makes the repository
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

    A checkpoint of the last step is passed over: resumed from it, Trainer would train no step and would not restore
    the random generators either, and the evaluation after it would draw other masks.
    """
    found = []
    for path in output_dir.glob("checkpoint-*"):
        if (path / needed).is_file():
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            if state["global_step"] < state["max_steps"]:
                found.append((state["global_step"], path))
    return max(found)[1] if found else None
