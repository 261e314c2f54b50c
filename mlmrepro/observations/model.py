"""The model: what its predictions and its loss may depend on, and what they must depend on."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from mlmrepro import loading
from mlmrepro.config import IGNORE_INDEX
from mlmrepro.errors import first_line
from mlmrepro.observations.forward import (
    agreeing,
    another,
    even,
    exact_losses,
    hides_padding,
    in_float32,
    logits_of,
    longest,
    losses_agreeing,
    moving,
    ordinary,
    readable,
    takes,
)
from mlmrepro.observations.observation import NotApplicable, observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

__all__ = [
    "all_positions",
    "better_than_guessing",
    "both_directions",
    "companions",
    "dropout_switch",
    "every_layer",
    "float64_reference",
    "head_on_masked",
    "hidden_tokens",
    "ignored_labels",
    "inputs_embeds",
    "kernels",
    "loss_batch_size",
    "mean_loss",
    "padding",
    "row_order",
    "same_bits",
    "token_order",
    "vocabulary_rows",
]

GLOSSARY = "https://huggingface.co/docs/transformers/glossary#attention-mask"
BERT = "Devlin et al. 2019, https://aclanthology.org/N19-1423"
MOST_POSITIONS = 512  # in one row: running a longer one would take too long


@observation("model", source=GLOSSARY, cause="the attention mask is lost or too weak, or position ids count pads")
def padding(subject: Subject) -> Iterator[Value]:
    """Padding changes no prediction: on the right with any token, on the left if position ids skip pads."""
    import torch

    model = hides_padding(subject)
    ids, places = longest(subject)
    ids = ids[:, : subject.row_limit - 4]
    alone = logits_of(model, ids, torch.ones_like(ids))
    real = torch.nn.functional.pad(torch.ones_like(ids), (0, 4))
    fillers = {"pads": subject.pad_id}
    if not model.config.is_encoder_decoder:  # a decoder finds the end of its row by its pads
        fillers["hidden words"] = int(ids[0, places[0]])
    for what, filler in fillers.items():
        padded = logits_of(model, torch.nn.functional.pad(ids, (0, 4), value=filler), real)[:, : ids.shape[1]]
        slug = f"logit_difference_{what.replace(' ', '_')}_after"
        yield agreeing(slug, f"difference of the logits with four {what} after the row", subject, padded, alone)
    if _positions_skip_pads(model, subject.pad_id):
        padded = torch.nn.functional.pad(ids, (4, 0), value=subject.pad_id)
        moved = logits_of(model, padded, real.flip(1))[:, 4:]
        title = "difference of the logits with four pads before the row"
        yield agreeing("logit_difference_pads_before", title, subject, moved, alone)


def _positions_skip_pads(model: Any, pad_id: int) -> bool:
    """Return whether position ids skip pads, which RoBERTa's position embeddings show by their padding_idx."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return any(getattr(table, "padding_idx", None) == pad_id for table in tables)


@observation("model", source=GLOSSARY, cause="attention or normalisation mixes the rows of a batch")
def companions(subject: Subject) -> Iterator[Value]:
    """A row's predictions do not depend on the other rows of its batch."""
    model, ids = in_float32(subject), even(subject)["input_ids"]
    together = logits_of(model, ids)
    for which, index in (("first", 0), ("last", len(ids) - 1)):
        alone = logits_of(model, ids[[index]])
        title = f"difference of the logits of the {which} row, alone and in the batch"
        yield agreeing(f"logit_difference_{which}_row", title, subject, together[[index]], alone)


@observation("model", source=GLOSSARY, cause="something in the model depends on a row's index in the batch")
def row_order(subject: Subject) -> Iterator[Value]:
    """The order of the rows in a batch does not change their predictions."""
    model, batch = in_float32(subject), subject.batch()
    ids, real = batch["input_ids"], batch["attention_mask"]
    backward = logits_of(model, ids.flip(0), real.flip(0)).flip(0)
    title = "difference of the logits, rows reversed"
    yield agreeing("logit_difference", title, subject, backward, logits_of(model, ids, real))


@observation("model", source=f"{BERT}, section 3.1", cause="a causal mask: is_decoder is set, or a kernel gets one")
def both_directions(subject: Subject) -> Iterator[Value]:
    """Replacing a token changes the predictions before it and after it."""
    model = in_float32(subject)
    ids, places = longest(subject)
    before, first, last = logits_of(model, ids), places[0], places[-1]
    for side, place, where in (("before", last, slice(last)), ("after", first, slice(first + 1, None))):
        changed, title = logits_of(model, another(ids, places, place)), f"change of the logits {side} a replaced token"
        yield moving(f"logit_change_{side}", title, subject, changed[:, where], before[:, where])


@observation("model", source=GLOSSARY, cause="the attention mask is not applied in every layer, or is too weak")
def hidden_tokens(subject: Subject) -> Iterator[Value]:
    """A token hidden by the attention mask does not change the predictions at other positions."""
    import torch

    model = hides_padding(subject)
    if model.config.is_encoder_decoder:
        raise NotApplicable("its decoder reads every token")
    ids, places = longest(subject)
    place = places[len(places) // 2]
    real = torch.ones_like(ids)
    real[0, place] = 0
    others = [index for index in range(ids.shape[1]) if index != place]
    one = logits_of(model, ids, real)[:, others]
    two = logits_of(model, another(ids, places, place), real)[:, others]
    yield agreeing("logit_difference", "difference of the other logits, hidden token replaced", subject, two, one)


@observation("model", source=f"{BERT}, section 3", cause="positions are lost: all ids are equal, or none are added")
def token_order(subject: Subject) -> Iterator[Value]:
    """The order of the tokens matters: swapping two of them changes the predictions elsewhere."""
    model = in_float32(subject)
    ids, places = longest(subject)
    first = places[0]
    second = next(place for place in reversed(places) if ids[0, place] != ids[0, first])
    swapped = ids.clone()
    swapped[0, [first, second]] = ids[0, [second, first]]
    others = [index for index in range(ids.shape[1]) if index not in (first, second)]
    before, after = (logits_of(model, row)[:, others] for row in (ids, swapped))
    yield moving("logit_change", "change of the other logits when two tokens are swapped", subject, after, before)


@observation("model", source=f"{BERT}, section 3", cause="wrong max_position_embeddings or padding_idx, or equal rows")
def all_positions(subject: Subject) -> Iterator[Value]:
    """A row may be as long as the configuration allows, and no two positions have the same embedding."""
    import torch

    model = in_float32(subject)
    limit = min(MOST_POSITIONS, loading.positions(model.config, subject.tokenizer.model_max_length))
    tokens = [row[place] for row in subject.rows for place in ordinary(subject, row)]
    ids = torch.tensor([(tokens * (limit // len(tokens) + 1))[:limit]])
    strange = int((~torch.isfinite(logits_of(model, ids))).sum())
    yield value("nonfinite_logits", strange, f"logits of a row of {limit} tokens that are not finite", equals=0)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and "position" in name.rpartition(".")[2]:
            repeated = len(module.weight) - len(module.weight.detach().unique(dim=0))
            slug, reason = f"repeated_{name.lower()}", "positions must be told apart"
            yield value(slug, repeated, f"repeated rows of {name}", equals=0, reason=reason)


@observation("model", source=f"{BERT}, section 3.1", cause="the loss is a sum, or has another unit or other positions")
def mean_loss(subject: Subject) -> Iterator[Value]:
    """The loss is the mean of -ln p(original token) over exactly the labelled positions."""
    import torch

    model, batch = in_float32(subject), subject.batch()
    with torch.no_grad():
        output = model(**readable(model, batch))
    labelled = batch["labels"] != IGNORE_INDEX
    own = float(exact_losses(output.logits[labelled], batch["labels"][labelled]).mean())
    yield value("loss", float(output.loss), "the model's loss", unit="nats", shown=True)
    title = "difference between the model's loss and the formula"
    yield losses_agreeing("loss_difference", title, subject, float(output.loss), own, output.logits)


@observation("model", source="torch.nn.CrossEntropyLoss", cause="label -100 is not ignored, or pads have a label")
def ignored_labels(subject: Subject) -> Iterator[Value]:
    """Positions with label -100 do not affect the loss: its gradient at their logits is zero."""
    import torch

    model, batch = in_float32(subject), subject.batch()
    output = model(**readable(model, batch))
    (gradient,) = torch.autograd.grad(output.loss, output.logits)
    ignored = batch["labels"] == IGNORE_INDEX
    at, elsewhere = (float(gradient[where].abs().max()) for where in (ignored, ~ignored))
    yield value("max_ignored_gradient", at, "largest gradient where the label is -100", equals=0.0)
    yield value("max_labelled_gradient", elsewhere, "largest gradient elsewhere", shown=True)


@observation("model", source="micro-average of a loss", cause="a batch's loss is not the mean over its masked tokens")
def loss_batch_size(subject: Subject) -> Iterator[Value]:
    """The mean loss over masked tokens does not depend on the batch size, in the model or in the scorer."""
    import torch

    from mlmrepro.scoring.plan import token_plan
    from mlmrepro.scoring.scorer import Scorer

    model, batch = in_float32(subject), subject.batch(3)
    parts = readable(model, batch)
    counts = (batch["labels"] != IGNORE_INDEX).sum(dim=1)
    with torch.no_grad():
        whole = model(**parts)
        singles = [model(**{name: tensor[[row]] for name, tensor in parts.items()}).loss for row in range(len(counts))]
    mean = float((torch.stack(singles).double() * counts).sum() / counts.sum())
    title = "model: difference between one batch and single rows"
    yield losses_agreeing("model_loss_difference", title, subject, mean, float(whole.loss), whole.logits)

    texts = [subject.tokenizer.decode(row, skip_special_tokens=True) for row in subject.rows[:3]]
    scorer = Scorer(model, subject.tokenizer)
    encoded = scorer.encode(texts)
    plan = token_plan(texts, encoded, rate=0.5)
    many = float(scorer.score(plan, encoded).loss.mean(dtype="float64"))
    scorer.batch_tokens = 1
    one = float(scorer.score(plan, encoded).loss.mean(dtype="float64"))
    title = "scorer: difference between large batches and single rows"
    yield losses_agreeing("scorer_loss_difference", title, subject, many, one, whole.logits)


@observation(
    "model",
    source="https://huggingface.co/docs/transformers/attention_interface",
    cause="one kernel uses another scale, mask or dropout",
)
def kernels(subject: Subject) -> Iterator[Value]:
    """The eager and the SDPA attention kernels give the same predictions."""
    if not getattr(subject.model, "_supports_sdpa", False):
        raise NotApplicable(f"{type(subject.model).__name__} has no SDPA kernel in this version")
    batch = subject.batch(3)
    ids, real = batch["input_ids"], batch["attention_mask"]
    models = [_with_kernel(subject, name) for name in ("eager", "sdpa")]
    used = ", ".join(model.config._attn_implementation for model in models)
    yield value("used_kernels", used, "kernels in use", equals="eager, sdpa")
    eager, sdpa = (logits_of(model, ids, real)[real.bool()] for model in models)
    yield agreeing("logit_difference", "difference of the logits, eager and SDPA", subject, sdpa, eager)


def _with_kernel(subject: Subject, name: str) -> Any:
    """Load the model with the given attention kernel; our loading module always uses the library's default."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(
        subject.checkpoint, use_safetensors=True, trust_remote_code=False, attn_implementation=name
    )
    return model.float().eval()


@observation("model", source="Higham 2002, section 3.1", cause="something is computed in lower precision than float32")
def float64_reference(subject: Subject) -> Iterator[Value]:
    """Predictions in float32 agree with those in float64 up to float32 rounding."""
    model, batch = in_float32(subject), subject.batch(2)
    ids, real = batch["input_ids"], batch["attention_mask"]
    try:
        exact = logits_of(copy.deepcopy(model).double(), ids, real)
    except RuntimeError as error:
        raise NotApplicable(f"it does not compute in float64: {first_line(error)}") from error
    title = "difference of the logits, float32 and float64"
    yield agreeing("logit_difference", title, subject, logits_of(model, ids, real), exact)


@observation("evaluation", source="mlmrepro.scoring", cause="the scorer selects positions before a layer mixes them")
def head_on_masked(subject: Subject) -> Iterator[Value]:
    """Running the head on masked positions only, as the scorer does, gives the same logits as running it on all."""
    from mlmrepro.scoring.scorer import Scorer, still

    model = in_float32(subject)
    scorer = Scorer(model, subject.tokenizer)
    batch = subject.batch() if scorer.forward.pads else even(subject)
    ids, real = batch["input_ids"], batch["attention_mask"]
    at = (batch["labels"] != IGNORE_INDEX).nonzero().T
    with still(model):
        cut = scorer.logits(ids, real, at)
    whole = logits_of(model, ids, real)[at[0], at[1]]
    yield value("prunes_head", scorer.prunes_head, "the head runs on masked positions only", shown=True)
    yield agreeing("logit_difference", "difference of the logits, masked positions only and all", subject, cut, whole)


@observation(
    "model",
    source="PreTrainedModel.get_input_embeddings",
    cause="the model treats embeddings that are passed in differently from those that it looks up",
)
def inputs_embeds(subject: Subject) -> Iterator[Value]:
    """Passing the embeddings of the input ids gives the same predictions as passing the ids."""
    import torch

    model = in_float32(subject)
    embeddings = model.get_input_embeddings()
    known = takes(model, "inputs_embeds") and isinstance(embeddings, torch.nn.Embedding)
    if not known or model.config.is_encoder_decoder:
        raise NotApplicable("it does not accept embeddings alone, or does not look them up in a plain table")
    if getattr(model.config, "token_dropout", False):
        raise NotApplicable("it scales embeddings by the share of mask tokens, which it can only count in the ids")
    ids = even(subject)["input_ids"]
    with torch.no_grad():
        given = model(inputs_embeds=embeddings(ids)).logits
    title = "difference of the logits, embeddings and ids"
    yield agreeing("logit_difference", title, subject, given, logits_of(model, ids))


@observation("model", source="torch.nn.Module.eval", cause="dropout or other randomness is left on in evaluation mode")
def same_bits(subject: Subject) -> Iterator[Value]:
    """In evaluation mode, repeating a batch gives identical logits; with two threads they differ only by rounding."""
    import torch

    model, batch = in_float32(subject), subject.batch(2)
    ids, real = batch["input_ids"], batch["attention_mask"]
    torch.set_num_threads(1)
    first, again = (logits_of(model, ids, real) for _ in range(2))
    yield value("unequal_logits", int((first != again).sum()), "logits that differ when repeated", equals=0)
    torch.set_num_threads(2)
    title = "difference of the logits, one thread and two"
    yield agreeing("logit_difference_threads", title, subject, logits_of(model, ids, real), first)


@observation("model", source="Srivastava et al. 2014, Dropout", cause="dropout is lost, or has another rate")
def dropout_switch(subject: Subject) -> Iterator[Value]:
    """Every dropout rate is one from the configuration, and dropout is active in training mode."""
    import torch

    model, ids = copy.deepcopy(in_float32(subject)).train(), even(subject, 2)["input_ids"]
    elsewhere = ("classif", "qa", "seq", "summary", "token")  # of other heads; ESM's token_dropout is not a rate
    rates = {
        float(value)
        for name, value in model.config.to_dict().items()
        if "dropout" in name and isinstance(value, (int, float)) and not name.startswith(elsewhere)
    }
    used = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    strange = ", ".join(map(str, sorted(used - rates - {0.0})))
    yield value("unknown_dropout_rates", strange, "dropout rates that the configuration does not name", equals="")
    if any(rates):
        one, two = logits_of(model, ids), logits_of(model, ids)
        yield moving("logit_difference", "difference of the logits of two passes in training mode", subject, one, two)


@observation(
    "model", source="PreTrainedTokenizer.get_vocab", cause="it is another model's tokenizer, or embeddings were cut off"
)
def vocabulary_rows(subject: Subject) -> Iterator[Value]:
    """Every id of the tokenizer has an embedding and a logit, and all logits are finite."""
    import torch

    model, batch = in_float32(subject), subject.batch()
    rows = len(model.get_input_embeddings().weight)
    reason = f"there are {rows} embeddings"
    largest = max(subject.tokenizer.get_vocab().values())
    yield value("max_token_id", largest, "largest id of the tokenizer", at_most=rows - 1, reason=reason)
    size = int(model.config.vocab_size)
    yield value("config_vocab_size", size, "vocab_size of the configuration", equals=rows, reason=reason)
    logits = logits_of(model, batch["input_ids"], batch["attention_mask"])
    yield value("logits_per_position", logits.shape[-1], "logits of a position", equals=rows, reason=reason)
    yield value("nonfinite_logits", int((~torch.isfinite(logits)).sum()), "logits that are not finite", equals=0)


@observation("model", source="Shannon 1948: a guess costs ln(n)", cause="weights are not loaded, or ids are shifted")
def better_than_guessing(subject: Subject) -> Iterator[Value]:
    """The model predicts masked tokens better than a guess, without context, or from a neighbouring position."""
    model, batch = in_float32(subject), subject.batch(8)
    logits = logits_of(model, batch["input_ids"], batch["attention_mask"])
    row, place = (batch["labels"] != IGNORE_INDEX).nonzero().T
    tokens = batch["labels"][row, place]
    own = float(exact_losses(logits[row, place], tokens).mean())
    guess = math.log(logits.shape[-1])
    yield value("mean_loss", own, "mean loss at masked positions", at_most=guess, unit="nats", reason="ln(vocabulary)")
    blind = float(-logits[row, place].double().softmax(dim=-1).mean(dim=0)[tokens].log().mean())
    others = [("mean_loss_without_context", blind, "mean loss of the mean of these predictions")]
    for step, side in ((-1, "before"), (1, "after")):
        loss = float(exact_losses(logits[row, (place + step).clamp(0, logits.shape[1] - 1)], tokens).mean())
        others.append((f"mean_loss_position_{side}", loss, f"mean loss of the predictions one position {side}"))
    for slug, loss, title in others:
        yield value(slug, loss, title, at_least=own, unit="nats", reason="the model's own loss")


@observation("model", source="back-propagation", cause="a layer is skipped, cut off from the loss, or frozen")
def every_layer(subject: Subject) -> Iterator[Value]:
    """Every layer gets a gradient from the loss, and no weights are frozen except fixed position embeddings."""
    import torch

    model = copy.deepcopy(in_float32(subject))
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad and "pos" not in name]
    yield value("frozen_weights", ", ".join(frozen[:3]), "frozen weights", equals="", reason="except fixed positions")
    model(**readable(model, subject.batch(2))).loss.backward()
    layers = {
        f"{name}.{index}": [weight.grad for weight in layer.parameters()]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        for index, layer in enumerate(module)
    }
    idle = [name for name, found in layers.items() if found and not any(g is not None and bool(g.any()) for g in found)]
    yield value("layers_without_gradient", ", ".join(idle), "layers that get no gradient", equals="")
