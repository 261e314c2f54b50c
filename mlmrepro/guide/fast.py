"""The fast way: what computes the same as the guide's own code in less time, switched on only where that is shown."""

from __future__ import annotations

import dataclasses
import json
import math
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.errors import UserError, first_line
from mlmrepro.files import atomic_write
from mlmrepro.guide import arrow, blocks, tokens
from mlmrepro.guide.observe import preserved_generators
from mlmrepro.scoring.shortcuts import cuts, still, taken, unchanged

if TYPE_CHECKING:
    import torch
    from datasets import DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from mlmrepro.guide.prepare import Prepared

__all__ = ["GRADIENT", "LOSS", "LOSS_BFLOAT16", "Fast", "MaskedOnly", "no_bfloat16"]

# Allowed differences, relative to the guide's own value. A sum of n numbers in another order differs by about
# sqrt(n) roundings of 2**-24: in a gradient n is at most the vocabulary, 50,265 for RoBERTa; a loss is a sum of few.
LOSS = 2e-6
GRADIENT = 50_265**0.5 * 2**-24  # 1.3e-5, of the norm of all gradients together
# bfloat16 has 8 bits: each rounding is 2**-9 of a value, and the logits of a loss have gone through several.
LOSS_BFLOAT16 = 2**-7

_FILE = "fast.json"  # the switches of a run; a resumed one must have the same
_SAMPLE = 16  # rows on which the guide's own functions are run for comparison
_EVERY = 7  # every seventh position of the trial batch is masked, as many as the guide's 15 %
_ON = "on"


class MaskedOnly:
    """Hooks by which a model computes its head, and its loss, at masked positions only.

    `cuts` says after which module the other positions are left out, with gradients (True) and in evaluation mode
    (False); None leaves the model as it is, which `prove` changes. The logits of a call with labels are then those of
    the masked positions, (1, positions, vocabulary); a call without labels, or without a masked position, is the
    model's own.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cuts: dict[bool, torch.nn.Module | None] = {True: None, False: None}
        self._at: torch.Tensor | None = None  # (2, positions) of row and column, during a call that is cut
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, always_call=True)
        for module in cuts(model):
            module.register_forward_hook(self._cut)

    def prove(self, batch: dict[str, torch.Tensor]) -> dict[bool, str]:
        """Choose both cuts on a trial batch; return for each mode "on", or why the model's own way stays.

        A cut is taken if the loss, the gradients and the draws of dropout are the model's own, within `LOSS` and
        `GRADIENT`. So dropout after the last attention moves the cut of the training to the end of the encoder.
        """
        found: dict[bool, str] = {}
        for training in self.cuts:
            own, found[training] = _step(self.model, batch, training), ""
            for module in cuts(self.model):
                self.cuts[training] = module
                try:
                    found[training] = own.difference(_step(self.model, batch, training))
                except Exception as error:  # an unknown architecture may raise anything if it has fewer positions
                    found[training] = first_line(error)
                if not found[training]:
                    break
                self.cuts[training] = None
            found[training] = found[training] or _ON
        return found

    def _begin(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._at, labels = None, kwargs.get("labels")
        if labels is not None and self.cuts[model.training] is not None:
            at = (labels != IGNORE_INDEX).nonzero().T
            if at.shape[1]:
                self._at, kwargs = at, kwargs | {"labels": labels[at[0], at[1]].unsqueeze(0)}
        return args, kwargs

    def _cut(self, module: torch.nn.Module, given: Any, output: Any) -> Any:
        is_here = self._at is not None and module is self.cuts[self.model.training]
        return taken(output, self._at) if is_here and self._at is not None else output

    def _end(self, model: Any, given: Any, output: Any) -> None:
        self._at = None


@dataclasses.dataclass(frozen=True)
class _Step:
    """What a step of the training depends on."""

    loss: float
    gradients: list[Any]  # in the order of the parameters, None where a parameter has none
    generator: Any  # the state of the generator afterwards

    def difference(self, other: _Step) -> str:
        """Return in which way the other step is another one, "" if it is the same within rounding."""
        import torch

        if not torch.equal(self.generator, other.generator):
            return "dropout draws other numbers"
        if not abs(other.loss - self.loss) <= LOSS * abs(self.loss):
            return f"the loss is {other.loss:.8g}, not {self.loss:.8g}"
        if not (apart := self.gradients_apart(other)) <= GRADIENT:
            return f"the gradients differ by {apart:.1e} of their norm"
        return ""

    def gradients_apart(self, other: _Step) -> float:
        """Return the norm of the difference of all gradients, relative to the norm of the gradients."""
        pairs = list(zip(self.gradients, other.gradients, strict=True))
        if any((own is None) != (new is None) for own, new in pairs):
            return math.inf
        squares = [
            ((own - new).double().norm() ** 2, own.double().norm() ** 2) for own, new in pairs if own is not None
        ]
        apart, norm = (float(sum(column)) ** 0.5 for column in zip(*squares, strict=True)) if squares else (0.0, 1.0)
        return apart / norm if norm else apart


def _step(model: PreTrainedModel, batch: dict[str, torch.Tensor], training: bool) -> _Step:
    """Compute the loss of a batch, with gradients if training; model and generators stay as they are."""
    import torch

    with preserved_generators(), still(model), unchanged(model), torch.set_grad_enabled(training):
        torch.manual_seed(0)
        model.train(training)
        loss = model(**batch).loss
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = list(torch.autograd.grad(loss, weights, allow_unused=True)) if training else []
        on_gpu = model.device.type == "cuda"
        return _Step(float(loss.detach()), gradients, torch.cuda.get_rng_state() if on_gpu else torch.get_rng_state())


def no_bfloat16(device: str) -> str:
    """Return why bfloat16 is not computed by the hardware of a torch device, "" if it is."""
    import torch

    if device == "cuda":
        return "" if torch.cuda.is_bf16_supported() else "this GPU has no bfloat16"
    checks = [getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("amx_tile", "avx512_bf16")]
    return (
        "" if device == "cpu" and any(check() for check in checks) else f"this {device} has neither AMX nor AVX512-BF16"
    )


class Fast:
    """The switches of one run in a number format, "float32" or "bfloat16": `report` says what is on, or why not."""

    def __init__(self, number_format: str = "float32") -> None:
        self.number_format = number_format
        self.report: dict[str, str] = {}
        self._arguments: dict[str, Any] = {}

    def tokenize(
        self, dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, column: str, separator: str, num_proc: int
    ) -> DatasetDict:
        """Return what tokens.tokenize returns; compares the rows of a sample with it."""
        from datasets import DatasetDict

        tokens.check_column(dataset, column)
        sample = DatasetDict({name: rows.select(range(min(_SAMPLE, len(rows)))) for name, rows in dataset.items()})
        own = tokens.preprocess_function(deepcopy(tokenizer), column, separator)  # a call changes the tokenizer
        expected = sample.map(own, batched=True, remove_columns=dataset["train"].column_names)
        features = expected["train"].features
        quick = partial(arrow.arrow_tokens, tokenizer=tokenizer, column=column, separator=separator, features=features)
        reason = arrow.no_arrow_tokens(tokenizer, features)
        if not reason and any(quick(rows)[:] != expected[name][:] for name, rows in sample.items()):
            reason = f"{type(tokenizer).__name__} gives other rows with its threads"
        self.report["tokens in Arrow buffers"] = reason or _ON
        if reason:
            return tokens.tokenize(dataset, tokenizer, column=column, separator=separator, num_proc=num_proc)
        return DatasetDict({name: quick(rows) for name, rows in dataset.items()})

    def group(self, dataset: DatasetDict, *, block_size: int, num_proc: int, batch_size: int) -> DatasetDict:
        """Return what blocks.group returns."""
        from datasets import DatasetDict

        settings = {"block_size": block_size, "num_proc": num_proc, "batch_size": batch_size}
        reason = arrow.no_arrow_blocks(dataset["train"].features)
        self.report["blocks in Arrow buffers"] = reason or _ON
        made = {} if reason else {name: arrow.arrow_blocks(rows, **settings) for name, rows in dataset.items()}
        if reason or not all(map(len, made.values())):  # the guide's own function says which split has no block
            return blocks.group(dataset, **settings)
        return DatasetDict(made)

    def switch_on(self, model: PreTrainedModel, made: Prepared, folder: Path) -> None:
        """Move the model to the device of the training, and switch on what is the same on the first and last block.

        Raises UserError if the run in `folder` was started with other switches.
        """
        import torch

        model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        rows = made.blocks["train"]
        with preserved_generators():
            batch = dict(made.collator([rows[0], rows[len(rows) - 1]]))
        ids = batch["input_ids"]
        chosen = (torch.arange(ids.numel()).view_as(ids) % _EVERY == 0) & batch["attention_mask"].bool()
        batch["labels"] = ids.where(chosen, IGNORE_INDEX)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        self.report["packing"] = f"{_ON}: the guide's blocks are full already"
        for training, state in self._head(model, batch).items():
            self.report[f"head at masked positions in {'training' if training else 'evaluation'}"] = state
        attention = getattr(model.config, "_attn_implementation", None)
        self.report["SDPA attention"] = _ON if attention == "sdpa" else f"{type(model).__name__} has {attention}"
        self.report["fused AdamW"] = _ON
        self._arguments["optim"] = "adamw_torch_fused"
        reason = "" if self.number_format == "bfloat16" else "not asked for with --bfloat16"
        reason = reason or no_bfloat16(model.device.type) or _bfloat16_apart(model, batch)
        self.report["bfloat16"] = reason or _ON
        if not reason:
            self._arguments |= {"bf16": True, "use_cpu": model.device.type == "cpu"}
        self._note(folder / _FILE)

    def arguments(self, own: TrainingArguments) -> TrainingArguments:
        """Return the guide's arguments with the optimiser and the number format of this run."""
        return dataclasses.replace(own, **self._arguments)

    def _head(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[bool, str]:
        import torch

        if torch.cuda.device_count() > 1:
            return dict.fromkeys((True, False), "several GPUs compute a batch in parts")
        return MaskedOnly(model).prove(batch)

    def _note(self, path: Path) -> None:
        """Keep the switches with the run: its record must not mix epochs of two ways."""
        if path.is_file() and (earlier := json.loads(path.read_text(encoding="utf-8"))) != self.report:
            other = [f"{name}: {earlier.get(name)}, now {now}" for name, now in self.report.items()]
            raise UserError(
                f"the run in {path.parent} was started with other switches of --fast: {'; '.join(other)}",
                remedy="resume it on the machine and with the packages that it was started with",
            )
        atomic_write(path, json.dumps(self.report, indent=1) + "\n")


def _bfloat16_apart(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> str:
    """Return by how much the loss in bfloat16 is another one, "" if it is the same within its rounding."""
    import torch

    own = _step(model, batch, training=False).loss
    with torch.autocast(model.device.type, torch.bfloat16):
        half = _step(model, batch, training=False).loss
    same = abs(half - own) <= LOSS_BFLOAT16 * abs(own)
    return "" if same else f"the loss is {half:.5g}, not {own:.5g}"
