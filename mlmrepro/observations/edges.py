"""Cases that the guide's own batches never contain: padding in training, ties, one kind of dropout, or none."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from mlmrepro.config import IGNORE_INDEX
from mlmrepro.guide import fill_mask
from mlmrepro.observations.forward import UNIT, hides_padding, in_float32, logits_of
from mlmrepro.observations.observation import NotApplicable, observation, value
from mlmrepro.observations.plain_training import FLOAT32
from mlmrepro.observations.result import Value
from mlmrepro.observations.small_training import flat, gradient, losses, rows, small_model
from mlmrepro.observations.subject import Subject

__all__ = ["attention_dropout", "exact_ties", "padded_training", "training_mode"]

SRIVASTAVA = "Srivastava et al. 2014, Dropout"


@observation(
    "loss",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html: padding_idx",
    cause="a training kernel ignores the attention mask, position ids count pads, or the padding row of the embedding "
    "gets a gradient",
)
def padded_training(subject: Subject) -> Iterator[Value]:
    """Padding on the right changes neither the loss nor any gradient, including that of the padding embedding."""
    import torch

    if hides_padding(subject).config.is_encoder_decoder:
        raise NotApplicable("its decoder reads every token")
    model, data = small_model(subject), rows(subject, 3).batch()
    pad = getattr(model.config, "pad_token_id", None)
    if pad is None:
        raise NotApplicable("its configuration names no padding")
    fillers = {"input_ids": pad, "attention_mask": 0, "labels": IGNORE_INDEX}
    padded = {n: torch.nn.functional.pad(tensor, (0, 4), value=fillers[n]) for n, tensor in data.items()}
    bare, filled = (losses(model, batch).mean() for batch in (data, padded))
    without, with_pads = (gradient(model, loss).nan_to_num(0.0) for loss in (bare, filled))
    apart = abs(float(filled) - float(bare))
    yield value("loss_difference", apart, "difference of the loss", at_most=1e-5, unit="nats", reason=FLOAT32)
    apart = float((with_pads - without).norm() / without.norm())
    title = "difference of the gradient, over its length"
    yield value("gradient_difference", apart, title, at_most=1e-5, reason=FLOAT32)
    table = model.get_input_embeddings()
    if isinstance(table, torch.nn.Embedding):
        # If tied to the head, the row also gets a gradient from its logit, which padding must not change either.
        one, two = (torch.autograd.grad(losses(model, b).mean(), table.weight)[0][pad] for b in (data, padded))
        largest = max(float(without.abs().max()), UNIT)
        apart = float((two - one).abs().max()) / largest
        why = f"over the largest number of the gradient; {FLOAT32}"
        title = "change of the padding row's gradient by padding"
        yield value("padding_row_gradient_change", apart, title, at_most=1e-5, reason=why)


@observation(
    "model", source=SRIVASTAVA, cause="training mode does more than dropout: it scales, adds noise or skips layers"
)
def training_mode(subject: Subject) -> Iterator[Value]:
    """With all dropout rates at 0, training mode gives the same predictions as evaluation mode."""
    model, ids = small_model(subject), rows(subject, 3).batch()["input_ids"]
    training = logits_of(model.train(), ids)
    evaluating = logits_of(model.eval(), ids)
    apart = float((training - evaluating).abs().max() / evaluating.abs().max())
    why = f"of the largest logit; {FLOAT32}"
    yield value("logit_difference", apart, "difference of the logits in the two modes", at_most=1e-5, reason=why)


@observation(
    "model",
    source=SRIVASTAVA,
    cause="attention dropout is an argument of the attention kernel, not a module: the kernel gets it in evaluation "
    "mode too, or in neither mode",
)
def attention_dropout(subject: Subject) -> Iterator[Value]:
    """Attention dropout draws a new mask in each training pass, and does nothing in evaluation mode."""
    import torch

    plain = small_model(subject).eval()
    model = small_model(subject, attention=0.5)
    rates = ("attention_probs_dropout_prob", "attention_dropout")
    if not any(getattr(model.config, name, 0.0) == 0.5 for name in rates):
        raise NotApplicable("its configuration names no dropout of attention")
    ids = rows(subject, 3).batch()["input_ids"]
    same = bool(flat(model).equal(flat(plain)))
    yield value("same_weights", same, "the two models have the same weights", equals=True)
    passes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        passes.append(logits_of(model.train(), ids))
    still, again = (logits_of(model.eval(), ids) for _ in range(2))
    size = float(still.abs().max())
    why = "64 float32 roundings of the largest logit; rounding alone gave at most 8"
    for slug, what, left, right in (
        ("training_passes", "two passes of training mode", passes[0], passes[1]),
        ("modes", "training and evaluation mode", passes[0], still),
    ):
        apart = float((left - right).abs().max()) / size
        yield value(f"logit_difference_{slug}", apart, f"difference between {what}", at_least=64 * UNIT, reason=why)
    changed = int((still != again).sum())
    yield value("unequal_logits", changed, "logits that differ when evaluation mode is repeated", equals=0)
    apart = float((still - logits_of(plain, ids)).abs().max()) / size
    title = "difference between evaluation mode and a model without dropout"
    yield value("logit_difference_no_dropout", apart, title, at_most=1e-5, reason=FLOAT32)


@observation(
    "fill_mask",
    source="https://docs.pytorch.org/docs/stable/generated/torch.topk.html",
    cause="ties are broken at random, or tied tokens are lost or get different scores",
)
def exact_ties(subject: Subject) -> Iterator[Value]:
    """Tokens with equal logits get equal scores, rank below better tokens, and come in the same order every time."""
    import torch
    from transformers import pipeline
    from transformers.modeling_outputs import MaskedLMOutput

    tokenizer, model = subject.tokenizer, in_float32(subject)
    prompt = f"{' '.join(subject.texts[0].split()[:3])} {tokenizer.mask_token}"
    place = tokenizer(prompt)["input_ids"].index(tokenizer.mask_token_id)
    special, size = set(tokenizer.all_special_ids), int(model.config.vocab_size)
    chosen = [token for token in range(min(size, len(tokenizer))) if token not in special][:9]
    best, tied = chosen[4], {token for token in chosen if token != chosen[4]}
    logits = torch.zeros(1, len(tokenizer(prompt)["input_ids"]), size)
    logits[0, place, list(tied)] = 2.0
    logits[0, place, best] = 3.0

    stored = copy.copy(model)  # shares the weights, but always returns these logits
    stored.forward = lambda *_, **__: MaskedLMOutput(logits=logits.clone())
    filler = pipeline("fill-mask", model=stored, tokenizer=tokenizer, device=str(model.device))
    ways = {
        "pipeline": lambda count: filler(prompt, top_k=count),
        "by hand": lambda count: fill_mask.by_hand(stored, tokenizer, prompt, count),
    }
    for way, ask in ways.items():
        slug = way.replace(" ", "_")
        answers = [ask(1 + len(tied)) for _ in range(8)]
        first = answers[0]
        best_first = first[0]["token"] == best
        yield value(f"best_token_first_{slug}", best_first, f"the best token comes first, {way}", equals=True)
        lost = len(tied ^ {row["token"] for row in first[1:]})
        yield value(f"lost_tied_tokens_{slug}", lost, f"tied tokens that are lost or replaced, {way}", equals=0)
        scores = len({row["score"] for row in first[1:]})
        yield value(f"tied_scores_{slug}", scores, f"different scores of the tied tokens, {way}", equals=1)
        orders = len({tuple(row["token"] for row in rows) for rows in answers})
        yield value(f"orders_{slug}", orders, f"different orders in eight calls, {way}", equals=1)
        short = {row["token"] for row in ask(4)}
        beaten = len(short - tied - {best}) + (best not in short)
        title = f"tokens in the wrong place where the tie is cut, {way}"
        yield value(f"misplaced_tokens_{slug}", beaten, title, equals=0)
