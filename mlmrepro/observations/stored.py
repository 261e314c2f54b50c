"""Saved files as others read them: plain torch, files with copies of a tied weight, Trainer's folders."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro import loading
from mlmrepro.checkpoint_folder import few
from mlmrepro.observations import small_training as small
from mlmrepro.observations.checkpoint import long_mantissas, same, stored_tensors
from mlmrepro.observations.forward import agreeing, apart, logits_of, readable
from mlmrepro.observations.observation import NotApplicable, observation, value
from mlmrepro.observations.plain_training import FLOAT32
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.tokenizer_files import ids_of
from mlmrepro.observations.training import TRAINER
from mlmrepro.observations.vocabulary import EDGES, differing, texts_of

if TYPE_CHECKING:
    import torch

__all__ = [
    "a_training_folder_is_the_model",
    "plain_torch_reads_the_file",
    "stored_names_are_the_models",
    "tied_weights_stored_twice",
]

_READERS = "https://huggingface.co/docs/safetensors: a file consists of names, shapes, dtypes and bytes"


def _aliases(model: Any) -> list[list[str]]:
    """Return the names of every weight that has several names, in the model's order."""
    groups = defaultdict(list)
    for name, weight in model.state_dict(keep_vars=True).items():
        if weight.numel():
            groups[weight.data_ptr(), weight.shape].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _kinds(names: Iterable[str]) -> str:
    """Return the ends of the names, whatever their layer, each once: they show which rule renamed the weights."""
    return few({".".join(name.split(".")[-2:]) for name in names})


@observation(
    "model", source=_READERS, cause="saving renames, casts or duplicates weights, or adds a prefix to their names"
)
def stored_names_are_the_models(subject: Subject) -> Iterator[Value]:
    """A saved file contains each weight of the model once, with its name, shape and dtype, and nothing else."""
    model, folder = long_mantissas(subject), subject.new_folder("saved")
    model.save_pretrained(str(folder))
    state, stored = model.state_dict(), stored_tensors(str(folder))
    tied = {name: names for names in _aliases(model) for name in names}
    missing = [name for name in state if not any(each in stored for each in tied.get(name, [name]))]
    unknown = _kinds(set(stored) - set(state))
    yield value("missing_weights", _kinds(missing), "weights that the file does not name", equals="")
    yield value("unknown_names", unknown, "names that the model does not know", equals="")
    twice = {names[0] for names in tied.values() if sum(name in stored for name in names) > 1}
    yield value("duplicate_weights", few(twice), "tied weights that are stored twice", equals="")
    changed = [name for name, tensor in stored.items() if name in state and not same(tensor, state[name])]
    yield value("changed_weights", few(changed), "weights of another shape, dtype or value", equals="")


@observation(
    "model",
    source=_READERS,
    cause="the file depends on the release that wrote it, which renames weights or adds missing ones when loading",
)
def plain_torch_reads_the_file(subject: Subject) -> Iterator[Value]:
    """A saved file that plain torch loads by its names gives the same predictions as the model that was saved."""
    import torch

    model, folder = long_mantissas(subject), subject.new_folder("saved")
    model.save_pretrained(str(folder))
    batch = subject.batch(2)
    expected = logits_of(copy.deepcopy(model).float(), batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))  # a weight missing from the file shows in every prediction
    problems = model.load_state_dict(stored_tensors(str(folder)), strict=False)
    tied = {name for names in _aliases(model) for name in names}
    missing = set(problems.missing_keys) - tied
    yield value("missing_names", _kinds(missing), "names that torch misses", equals="")
    yield value("unexpected_names", _kinds(problems.unexpected_keys), "names that torch cannot place", equals="")
    if not missing and not problems.unexpected_keys:  # otherwise the logits differ too
        found = logits_of(model.float(), batch["input_ids"], batch["attention_mask"])
        yield agreeing("logit_difference", "difference of the logits", subject, found, expected)


@observation(
    "model",
    source="Press and Wolf 2017, https://aclanthology.org/E17-2025; files of torch.save contain tied weights twice",
    cause="the wrong one of two stored copies is loaded, or the weights are untied and only one of them is trained",
)
def tied_weights_stored_twice(subject: Subject) -> Iterator[Value]:
    """A tied weight stored twice stays tied; if the copies differ, the input embedding wins or a warning says so."""
    model = subject.model
    table = model.get_input_embeddings().weight
    tied = [names for names in _aliases(model) if model.state_dict()[names[0]].data_ptr() == table.data_ptr()]
    if not tied:
        raise NotApplicable("no other weight of the model is its input embedding")
    folder = subject.new_folder("once")
    model.save_pretrained(str(folder))
    once, stored = loading.load_model(str(folder)).eval(), stored_tensors(str(folder))
    names = tied[0]
    holder = next((name for name in names if name in stored), "")
    if not holder:
        raise NotApplicable("the saved file holds the tied weight under none of its names")
    (source,) = (n for n, p in model.named_parameters() if p is table)
    batch = subject.batch(2)
    old = logits_of(once, batch["input_ids"], batch["attention_mask"])

    equal = _written(folder, stored | {name: stored[holder].clone() for name in names})
    again = loading.load_model(equal).eval()
    head, rows = again.get_output_embeddings(), again.get_input_embeddings().weight
    one = head is None or head.weight is rows
    yield value("equal_copies_tied", one, "equal copies: they are one weight", equals=True)
    new = logits_of(again, batch["input_ids"], batch["attention_mask"])
    title = "equal copies: difference of the logits"
    yield agreeing("equal_copies_logit_difference", title, subject, new.float(), old.float())

    copies = {name: stored[holder] + (0 if name == source else 0.5) for name in names}
    with _said() as said:
        other = loading.load_model(_written(folder, stored | copies))
    state = other.state_dict()
    input_wins = all(same(state[name], copies[source].to(state[name].dtype)) for name in names)
    both_kept = all(same(state[name], copies[name].to(state[name].dtype)) for name in names)
    winner = "the input embedding wins" if input_wins else "both are kept" if both_kept else "another one wins"
    warned = _names_one(said, names)
    unit = "with a warning" if warned else "without a warning"
    yield value("different_copies", winner, "copies that differ", unit=unit, shown=True)
    title = "copies that differ: the input embedding wins, or a warning says so"
    yield value("different_copies_input_or_warning", input_wins or warned, title, equals=True)


def _names_one(lines: Iterable[str], names: Iterable[str]) -> bool:
    return any(name in line for line in lines for name in names)


def _written(folder: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Replace the weights in the folder with these tensors, and return the folder."""
    from safetensors.torch import save_file

    for old in folder.glob("*.safetensors*"):
        old.unlink()
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@contextmanager
def _said() -> Iterator[list[str]]:
    """Collect what transformers logs in the meantime, warnings and above."""
    from transformers.utils import logging as theirs

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger, before = logging.getLogger("transformers"), theirs.get_verbosity()
    theirs.set_verbosity_warning()
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        theirs.set_verbosity(before)


@observation(
    "loss",
    source=f"{TRAINER}: save_model and checkpoints",
    cause="Trainer or save_pretrained changes or omits the tokenizer, or writes weights that load differently",
)
def a_training_folder_is_the_model(subject: Subject) -> Iterator[Value]:
    """The folders that Trainer writes, at a step and at the end, load as the model of that moment and its tokenizer."""
    import torch
    import transformers

    given, model = subject.fresh_tokenizer(), small.narrow_model(subject)
    texts = [*texts_of(subject), *EDGES]
    before = ids_of(given, texts)
    batch = subject.batch(4)
    moments: dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]] = {}

    class Look(transformers.TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            moments[f"checkpoint-{state.global_step}"] = _now(model, batch)

    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    folder = subject.new_folder("training")
    trainer = small.build_in(
        folder,
        model,
        small.Rows(readable(model, batch)),
        callbacks=[Look()],
        tokenizer=given,
        save_only_model=True,
        **options,
    )
    small.train(trainer)
    trainer.save_model()
    moments["."] = _now(model, batch)
    yield value("folders", ", ".join(sorted(moments)), "folders", equals="., checkpoint-1, checkpoint-2")
    changed, title = differing(ids_of(given, texts), before), "texts with other ids, by the tokenizer itself"
    yield value("changed_texts_tokenizer", changed, title, equals=0)
    for name, (weights, expected) in moments.items():
        slug, which = ("output_folder", "the output folder") if name == "." else (name, name)
        tokenizer = loading.load_tokenizer(str(folder / name))
        changed = differing(ids_of(tokenizer, texts), before)
        yield value(f"changed_texts_{slug}", changed, f"texts with other ids, {which}", equals=0)
        again = loading.load_model(str(folder / name)).eval()
        state = again.state_dict()
        lost = [n for n in weights if n not in state or not same(state[n], weights[n])]
        yield value(f"lost_weights_{slug}", few(lost), f"weights that are lost or changed, {which}", equals="")
        with torch.no_grad():
            for each in set(lost) & set(state):
                state[each].copy_(weights[each])
        found = logits_of(again, batch["input_ids"], batch["attention_mask"])
        share = apart(found, expected) / float(expected.abs().max())
        title = f"difference of the logits over the largest, {which}"
        yield value(f"logit_difference_{slug}", share, title, at_most=1e-5, reason=FLOAT32)


def _now(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return copies of the model's weights, and its logits for a batch without dropout."""
    training = model.training
    logits = logits_of(model.eval(), batch["input_ids"], batch["attention_mask"])
    model.train(training)
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}, logits
