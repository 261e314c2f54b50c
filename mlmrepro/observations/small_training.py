"""What observations of training share: a small model of the checkpoint's architecture, rows, a quiet Trainer, formulas.

The training loop, the optimiser and the loss depend on the checkpoint's architecture only, not on its weights or its
vocabulary. So the model has the checkpoint's configuration, but is shallow and narrow, with only 200 words.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.guide.versions import allow_generator_state, trainer_takes
from mlmrepro.observations.forward import readable
from mlmrepro.observations.subject import Subject

if TYPE_CHECKING:
    import torch

__all__ = [
    "Rows",
    "before_steps",
    "build",
    "build_in",
    "descend",
    "flat",
    "generator_states_readable",
    "gradient",
    "initial_variance",
    "joined",
    "logged",
    "losses",
    "move",
    "named",
    "narrow_model",
    "noise_of_embeddings",
    "rows",
    "safe_types_restored",
    "small_model",
    "train",
    "weights_before_steps",
    "whole_vocabulary",
]

WORDS = 200
TOKENS = 12
# Rows have 1 to 5 labels in turn. 8 rows have 21, so equal pieces of a batch never all have the same number.
ROW_LABELS = 5
_WORDS = {"vocab_size": WORDS}
_DEPTH = {"num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
_WIDTH = {"hidden_size": 32, "intermediate_size": 64, "embedding_size": 32, **_HEADS}


class Rows:
    """A dataset of stored tensors that records the order in which its rows are requested."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.tensors["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked.append(int(index))
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def batch(self, indices: Sequence[int] | slice = slice(None)) -> dict[str, torch.Tensor]:
        """Return these rows as one batch, without recording it."""
        return {name: tensor[indices] for name, tensor in self.tensors.items()}


def rows(subject: Subject, count: int) -> Rows:
    """Return rows of 12 random tokens, 1 to 5 of which have random labels."""
    import torch

    drawn = torch.Generator().manual_seed(subject.seed + 1)
    ids, labels = torch.randint(5, WORDS, (2, count, TOKENS), generator=drawn)
    place, kept = torch.arange(TOKENS), 1 + torch.arange(count)[:, None] % ROW_LABELS
    labels[(place % 2 == 0) | (place >= 2 * kept)] = IGNORE_INDEX
    return Rows({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})


def small_model(subject: Subject, *, dropout: float = 0.0, attention: float | None = None) -> Any:
    """Return a new model of the checkpoint's architecture in training mode: 2 layers, width 32, 200 words.

    `attention` is the rate of attention dropout if it differs from `dropout`. Sizes that the architecture cannot reduce
    stay as they are. From here on torch uses one thread: the model is too small for two, and the number of threads
    changes the last bits of a result.
    """
    import torch

    torch.set_num_threads(1)
    sizes = (_WORDS | _DEPTH | _WIDTH, _WORDS | _DEPTH, _WORDS)
    return _fresh(subject, sizes, dropout, attention).train()


def narrow_model(subject: Subject) -> Any:
    """Return a new model with the checkpoint's vocabulary in training mode: 2 layers, and width 32 if possible."""
    return _fresh(subject, (_DEPTH | _WIDTH, _DEPTH, {}), 0.0, batch=subject.batch(2)).train()


def whole_vocabulary(subject: Subject) -> Any:
    """Return a new model with the checkpoint's width and vocabulary in evaluation mode: 2 layers."""
    return _fresh(subject, (_DEPTH, {}), 0.0, batch=subject.batch(2)).eval()


def _fresh(
    subject: Subject,
    choices: Sequence[Mapping[str, int]],
    dropout: float,
    attention: float | None = None,
    batch: Mapping[str, torch.Tensor] | None = None,
) -> Any:
    """Return a model of the first sizes that the architecture accepts; if there are none, raise its first error."""
    import torch

    problem: Exception | None = None
    for sizes in choices:
        try:
            model = _of_size(subject, sizes, dropout, attention)
            with torch.no_grad():
                losses(model, rows(subject, 2).batch() if batch is None else batch)
            return model
        except Exception as error:  # architectures reject sizes with all kinds of errors
            problem = problem or error
    raise problem or ValueError("no sizes were given")


def _of_size(subject: Subject, sizes: Mapping[str, int], dropout: float, attention: float | None) -> Any:
    import torch
    import transformers

    config = copy.deepcopy(subject.model.config)
    depth = getattr(config, "num_hidden_layers", None)
    for name, size in sizes.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size if name in _WORDS else min(size, getattr(config, name)))
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth:  # one entry per layer
            setattr(config, name, value[: config.num_hidden_layers])
        if "dropout" in name and type(value) in (int, float):  # ALBERT's rates were the integer 0; True is not a rate
            setattr(config, name, attention if attention is not None and "attention" in name else dropout)
        if name.endswith("token_id") and isinstance(value, int) and value >= config.vocab_size:
            setattr(config, name, 3)
    torch.manual_seed(subject.seed)
    return transformers.AutoModelForMaskedLM.from_config(config).float()


def build(subject: Subject, model: Any, data: Rows, **options: Any) -> Any:
    """Return a Trainer as `build_in` does, with a new folder."""
    return build_in(subject.new_folder("training"), model, data, **options)


def build_in(
    output: Path, model: Any, data: Rows, *, callbacks: Sequence[Any] = (), tokenizer: Any = None, **options: Any
) -> Any:
    """Return a Trainer that runs on the CPU and prints, reports and saves nothing; `options` are TrainingArguments."""
    import transformers

    settings: dict[str, Any] = {
        "output_dir": str(output),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 0.05,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    arguments = transformers.TrainingArguments(**(settings | options))
    built = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        callbacks=list(callbacks),
        data_collator=transformers.default_data_collator,  # with any tokenizer: the rows have equal lengths
        **({} if tokenizer is None else trainer_takes(tokenizer)),
    )
    built.remove_callback(transformers.PrinterCallback)
    return built


def train(trainer: Any, **options: Any) -> Any:
    """Train, and return the Trainer.

    Trainer collects the garbage of the whole process, ten times slower than all steps: older objects are frozen out.
    """
    gc.freeze()
    try:
        trainer.train(**options)
    finally:
        gc.unfreeze()
    return trainer


def before_steps(trainer: Any, look: Callable[[Any], Any]) -> list[Any]:
    """Return a list to which the result of `look(optimiser)` is added before each step."""
    seen: list[Any] = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(lambda optimiser, *_: seen.append(look(optimiser)))
    return seen


def weights_before_steps(trainer: Any) -> list[torch.Tensor]:
    """Return a list to which the weights are added before each step, as `flat` returns them."""
    return before_steps(trainer, lambda _: flat(trainer.model))


def noise_of_embeddings(table: Any, seen: list[torch.Tensor]) -> Any:
    """Return a callback that adds to `seen`, at each look-up, the noise that training adds to the embeddings."""
    import transformers

    class Look(transformers.TrainerCallback):  # after Trainer's own hook, which was set just before
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            table.register_forward_hook(lambda _, ids, rows: seen.append((rows - table.weight[ids[0]]).detach()))

    return Look()


def descend(output: Path, model: Any, data: Rows, **options: Any) -> tuple[torch.Tensor, Any]:
    """Take one step of plain gradient descent at the learning rate 1; return the step and the Trainer.

    The step, what is subtracted from the weights in the order of `flat`, is the gradient itself.
    """
    settings: dict[str, Any] = {
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "max_steps": 1,
    }
    before = flat(model)
    trainer = train(build_in(output, model, data, **(settings | options)))
    return before - flat(model), trainer


def logged(trainer: Any, name: str) -> list[float]:
    """Return the values that the Trainer logged under this name, in order."""
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def losses(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy of each label in nats, from the logits; the model's own loss is their mean."""
    wanted = batch["labels"] != IGNORE_INDEX
    logits = model(**readable(model, batch)).logits.float()[wanted]
    return logits.logsumexp(-1) - logits.gather(-1, batch["labels"][wanted][:, None])[:, 0]


def named(model: Any) -> list[tuple[str, Any]]:
    """Return the trainable parameters with their names, sorted by name."""
    return sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return all numbers as one float64 vector."""
    import torch

    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def flat(model: Any) -> torch.Tensor:
    """Return all trainable weights as one float64 vector, sorted by name."""
    return joined([parameter for _, parameter in named(model)])


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a loss in the order of `flat`; NaN for weights that the loss does not depend on."""
    import torch

    parameters = [parameter for _, parameter in named(model)]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return joined([torch.full_like(p, math.nan) if g is None else g for p, g in zip(parameters, found, strict=True)])


def move(model: Any, step: torch.Tensor) -> None:
    """Add a step, in the order of `flat`, to the weights; NaN leaves a weight unchanged."""
    import torch

    parameters = [parameter for _, parameter in named(model)]
    parts = step.nan_to_num(0.0).split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter += part.reshape(parameter.shape)


def initial_variance(model: Any) -> float:
    """Return the expected variance of a new model's logits: the head's input width times the variance of weights."""
    names = ("initializer_range", "embed_init_std", "init_std")
    deviation = next((float(value) for name in names if (value := getattr(model.config, name, None))), 0.02)
    head = model.get_output_embeddings() or model.get_input_embeddings()
    return deviation**2 * int(head.weight.shape[1])


@contextmanager
def generator_states_readable() -> Iterator[None]:
    """Let transformers 4.41 resume with a recent torch; restore torch's list of safe types afterwards."""
    with safe_types_restored():
        allow_generator_state()
        yield


@contextmanager
def safe_types_restored() -> Iterator[None]:
    """Restore the list of types that torch's safe loader accepts afterwards."""
    import torch

    before = torch.serialization.get_safe_globals()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
