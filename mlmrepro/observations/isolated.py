"""Each stage in isolation, on its stored input: a change seen here cannot come from an earlier stage.

Training and evaluation get a model of two matrices in plain torch, so that Trainer is observed without the library's
models; the pipeline gets stored logits, so that it is observed without the model.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mlmrepro import loading
from mlmrepro.config import TRAINER_SEED, GuideConfig, RunConfig
from mlmrepro.errors import first_line
from mlmrepro.guide import blocks, collate, dataset, fill_mask, tokens, train
from mlmrepro.guide.observe import captured_warnings, columns_digest, digest, drawn_masks
from mlmrepro.observations.forward import SEE_PADDING, takes
from mlmrepro.observations.inputs import load_rows, load_tensors
from mlmrepro.observations.small_training import Rows
from mlmrepro.record import Bound, Lane, RunRecord

__all__ = ["ISOLATED", "observe_isolated"]

# Eager and SDPA passes of the embedded checkpoint differ from float64 by 1.9e-7 of their norm, which is 3 roundings of
# float32 (2^-24). The factor of 64 is that of mlmrepro.observations.forward. With TF32 the difference is 8e-5.
_PASS = 64 * 2.0**-24
_REASON = "float32 rounding allows 64 times 2^-24 of the norm of the logits, 20 times the measured value"


def observe_isolated(record: RunRecord, config: RunConfig, inputs: Path, folder: Path) -> None:
    """Run every stage that has a stored input, and observe it under ``isolated.``."""
    for stage, look in ISOLATED.items():
        ignored = RunRecord({}, {})  # the guide's own run has already recorded the warnings
        with captured_warnings(ignored, stage):
            observe = _Isolated(record, stage, config.checkpoint)
            try:
                look(observe, config.guide, inputs, folder)
            except Exception as error:  # a release that breaks one stage must not cost the others' record
                observe("outcome", f"raises {type(error).__name__}: {first_line(error)}")


class _Isolated:
    """Observes values of one stage under ``isolated.``."""

    def __init__(self, record: RunRecord, stage: str, checkpoint: str) -> None:
        self.record, self.stage, self.checkpoint = record, stage, checkpoint

    def __call__(
        self, name: str, value: Any, lane: Lane = Lane.EXACT, quantity: str = "", bound: Bound | None = None
    ) -> None:
        lane = Lane.BOUND if bound else lane
        self.record.observe(self.stage, f"isolated.{name}", value, lane, quantity, bound)


def _words(rows: Any) -> int:
    return int(max(rows.tensors[name].max() for name in ("input_ids", "labels"))) + 1


def _only(rows: Any) -> Any:
    from datasets import DatasetDict

    return DatasetDict({"train": rows})


def _flatten(observe: _Isolated, guide: GuideConfig, inputs: Path, folder: Path) -> None:
    flat = dataset.flatten(_only(load_rows(inputs / "flatten.arrow")))
    observe("columns", list(flat["train"].column_names))
    observe("content", digest(flat["train"]))


def _input_ids(observe: _Isolated, guide: GuideConfig, inputs: Path, folder: Path) -> None:
    tokenized = tokens.tokenize(
        _only(load_rows(inputs / "input_ids.arrow")),
        loading.load_tokenizer(observe.checkpoint),
        column=guide.text_column,
        separator=guide.separator,
        num_proc=guide.num_proc,
    )
    observe("columns", columns_digest(tokenized["train"]))


def _blocks(observe: _Isolated, guide: GuideConfig, inputs: Path, folder: Path) -> None:
    rows = _only(load_rows(inputs / "blocks.arrow"))
    grouped = blocks.group(rows, block_size=guide.block_size, num_proc=guide.num_proc, batch_size=guide.map_batch_size)
    observe("columns", columns_digest(grouped["train"]))
    observe("blocks", len(grouped["train"]))


def _masked_batches(observe: _Isolated, guide: GuideConfig, inputs: Path, folder: Path) -> None:
    tokenizer = loading.load_tokenizer(observe.checkpoint)
    collator = collate.data_collator(tokenizer, mlm_probability=guide.mlm_probability, pad_token=guide.pad_token)
    rows = load_rows(inputs / "masked_batches.arrow")
    drawn = drawn_masks(
        rows, collator, batch_size=guide.batch_size, mask_token_id=tokenizer.mask_token_id, seed=TRAINER_SEED
    )
    observe("counts", drawn.counts)
    observe("draw", drawn.digest)


def _model(observe: _Isolated, guide: GuideConfig, inputs: Path, folder: Path) -> None:
    import torch

    model = loading.load_model(observe.checkpoint).eval()
    batch = {name: tensor[:8] for name, tensor in load_tensors(inputs / "batches.safetensors").items()}
    model_saved_here = folder / "reloaded"
    model.save_pretrained(str(model_saved_here))
    with torch.no_grad():
        output = model(**batch)
        reloaded = loading.load_model(str(model_saved_here)).eval()(**batch)
    observe("attention", getattr(model.config, "_attn_implementation", None))
    observe("loss", float(output.loss), Lane.APPROXIMATE)
    observe("logits_norm", float(output.logits.double().norm()), Lane.APPROXIMATE, "norm")
    observe("reloaded_loss", float(reloaded.loss), Lane.APPROXIMATE)
    _model_errors(observe, model, batch["input_ids"][:2])
    # Add 2^-13 of each weight: the stored ones are exact in half precision, so a save through it would not change them.
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1 + 2.0**-13
    model.save_pretrained(str(folder / "changed"))
    after = dict(loading.load_model(str(folder / "changed")).named_parameters())
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    changed = [name for name, weight in matrices.items() if name not in after or not weight.equal(after[name])]
    unchanged = Bound(at_most=0, reason="saving and loading a model must not change it")
    observe("matrices_changed_by_saving", len(changed), bound=unchanged)


def _model_errors(observe: _Isolated, model: Any, ids: Any) -> None:
    """Observe distances between logits relative to their norm, which should be 0 but for rounding.

    A loss and a norm hide errors that cancel: matrix products rounded as TF32 does move the stored batch's loss by
    2e-5 nats and its norm by 3e-7, but each logit by a thousandth.
    """
    import torch

    def apart(found: Any, expected: Any) -> float:
        return float((found.double() - expected.double()).norm() / expected.double().norm())

    inner, after = ids[:, : ids.shape[1] - 32], 32  # cut before padding: a row may have the model's full length
    hides = model.config.model_type not in SEE_PADDING and takes(model, "attention_mask")
    padded = torch.nn.functional.pad(inner, (0, after), value=model.config.pad_token_id or 0)
    real = torch.nn.functional.pad(torch.ones_like(inner), (0, after))
    with torch.no_grad():
        logits = model(input_ids=inner).logits
        exact = copy.deepcopy(model).double()(input_ids=inner).logits
        hidden = model(input_ids=padded, attention_mask=real).logits[:, :-after] if hides else logits
    observe("float32_error", apart(logits, exact), bound=Bound(at_most=_PASS, reason=_REASON))
    if hides:
        observe("padding_error", apart(hidden, logits), bound=Bound(at_most=_PASS, reason=_REASON))


def _loss(observe: _Isolated, guide: GuideConfig, inputs: Path, folder: Path) -> None:
    import torch

    from mlmrepro.observations.toy import Toy

    rows = Rows(load_tensors(inputs / "batches.safetensors"))
    model = Toy(_words(rows))
    losses: list[float] = []
    model.register_forward_hook(
        lambda module, _, output: losses.append(float(output["loss"].detach())) if module.training else None
    )
    # A model of two matrices has to move to show anything.
    settings = dataclasses.replace(guide, save_strategy="no", eval_strategy="no", learning_rate=0.01)
    arguments = train.training_arguments(settings, folder / "loss", push_to_hub=False)
    trainer = train.trainer(cast(Any, model), arguments, {"train": rows, "test": rows}, None)
    trainer.train()
    observe("step_losses", losses, Lane.APPROXIMATE)
    observe("row_order", digest(rows.asked))
    logged = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    observe("learning_rates", [round(entry["learning_rate"], 10) for entry in logged])
    observe("gradient_norms", [float(entry["grad_norm"]) for entry in logged], Lane.APPROXIMATE, "norm")
    with torch.no_grad():
        observe("weight_norm", float(model.head.weight.double().norm()), Lane.APPROXIMATE, "norm")


def _evaluation(observe: _Isolated, guide: GuideConfig, inputs: Path, folder: Path) -> None:
    from mlmrepro.observations.toy import Toy

    rows = Rows(load_tensors(inputs / "batches.safetensors"))
    arguments = train.training_arguments(guide, folder / "evaluation", push_to_hub=False)
    model = Toy(_words(rows), dropout=0.5)  # which shows if an evaluation runs in training mode
    trainer = train.trainer(cast(Any, model), arguments, {"train": rows, "test": rows}, None)
    observe("eval_loss", float(trainer.evaluate()["eval_loss"]), Lane.APPROXIMATE)
    observe("row_order", digest(rows.asked))


def _fill_mask(observe: _Isolated, guide: GuideConfig, inputs: Path, folder: Path) -> None:
    import torch
    from transformers.modeling_outputs import MaskedLMOutput

    stored = load_tensors(inputs / "fill_mask.safetensors")
    logits = torch.zeros(1, int(stored["tokens"]), len(stored["logits"]))
    logits[0, int(stored["position"])] = stored["logits"]
    model, tokenizer = loading.load_model(observe.checkpoint), loading.load_tokenizer(observe.checkpoint)
    model.forward = lambda **_: MaskedLMOutput(logits=logits)
    prompt = fill_mask.check_prompt(tokenizer, guide.prompt, tokenizer.model_max_length)
    rows = fill_mask.with_pipeline(observe.checkpoint, prompt, guide.top_k, model=model, tokenizer=tokenizer)
    observe("pipeline", rows, Lane.RANKING)
    observe("by_hand", fill_mask.by_hand(model, tokenizer, prompt, guide.top_k), Lane.RANKING)


# The data set's file is a stored input already, so the stage dataset has no isolated twin.
ISOLATED: dict[str, Callable[[_Isolated, GuideConfig, Path, Path], None]] = {
    "flatten": _flatten,
    "input_ids": _input_ids,
    "blocks": _blocks,
    "masked_batches": _masked_batches,
    "model": _model,
    "loss": _loss,
    "evaluation": _evaluation,
    "fill_mask": _fill_mask,
}
