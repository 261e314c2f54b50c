"""Inference: the fill-mask pipeline shows the softmax at the mask, however it is called."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mlmrepro.guide import fill_mask
from mlmrepro.observations.forward import REASON, UNIT, hides_padding, in_float32, last_digits
from mlmrepro.observations.observation import NotApplicable, observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

if TYPE_CHECKING:
    import torch

__all__ = [
    "batched_prompts",
    "filled_sentences",
    "full_ranking",
    "guide_by_hand",
    "pipeline_by_logits",
    "ranking_prefix",
    "several_masks",
    "targets_in_ranking",
]

PIPELINE = "https://huggingface.co/docs/transformers/main_classes/pipelines#transformers.FillMaskPipeline"
TOP = 20
WORDS = (9, 6, 4)  # words in each prompt: unequal numbers, so that a batch has to be padded

Row = dict[str, Any]


def _filler(subject: Subject, tokenizer: Any = None) -> Any:
    from transformers import pipeline

    model = in_float32(subject)
    return pipeline("fill-mask", model=model, tokenizer=tokenizer or subject.tokenizer, device=str(model.device))


def _prompts(subject: Subject, masks: int = 1) -> list[str]:
    """Return prompts: the first words of the texts, `masks` of them (evenly spaced) replaced by the mask token.

    Raises NotApplicable if no text gives a prompt that fits into a row.
    """
    tokenizer, found = subject.tokenizer, []
    for text, count in zip(subject.texts, WORDS * len(subject.texts), strict=False):
        words = text.split()[:count]
        for place in range(1, masks + 1):
            words[place * len(words) // (masks + 1)] = tokenizer.mask_token
        prompt = " ".join(words)
        ids = tokenizer(prompt)["input_ids"]
        if ids.count(tokenizer.mask_token_id) == masks and len(ids) <= subject.row_limit:
            found.append(prompt)
    if not found:
        raise NotApplicable("no text begins with words that fit into a row")
    return found[:3]


def _probabilities(subject: Subject, prompt: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return ids (tokens,), float64 probabilities (masks, vocabulary), and a bound for the error of their logarithms.

    The model gets everything that the tokenizer returns, as in the pipeline.
    """
    import torch

    inputs = subject.tokenizer(prompt, return_tensors="pt")
    ids = inputs["input_ids"][0]
    with torch.no_grad():
        logits = in_float32(subject)(**inputs).logits[0]
    at_masks = logits[ids == subject.tokenizer.mask_token_id]
    # A softmax in float32 rounds each logit's distance from the largest one, and a sum.
    rounding = 2 * last_digits(subject, logits) + 16 * UNIT * float(at_masks.max() - at_masks.min())
    return ids, at_masks.double().softmax(dim=-1), rounding


def _shown(where: str, rows: Sequence[Row], expected: torch.Tensor, bound: float) -> Iterator[Value]:
    """Compare the scores and the order of rows, best first, with the probabilities (vocabulary,)."""
    best, slug = expected.topk(len(rows)).values.tolist(), where.replace(" ", "_")
    scores = [_logs_apart(row["score"], float(expected[row["token"]])) for row in rows]
    places = [_logs_apart(top, float(expected[row["token"]])) for top, row in zip(best, rows, strict=True)]
    yield _measured(f"score_difference_{slug}", f"difference of scores and softmax, {where}", max(scores), bound)
    yield _measured(f"order_difference_{slug}", f"difference of order and softmax, {where}", max(places), bound)


def _logs_apart(left: float, right: float) -> float:
    return abs(math.log(left) - math.log(right)) if left > 0 and right > 0 else math.inf


def _measured(slug: str, title: str, found: float, bound: float) -> Value:
    reason = f"twice a logit's and the softmax's rounding; {REASON}"
    return value(slug, found, title, at_most=bound, unit="of a logarithm", reason=reason)


@observation(
    "fill_mask",
    source=PIPELINE,
    cause="the pipeline reads another position than the mask, or its softmax or ranking is wrong",
)
def pipeline_by_logits(subject: Subject) -> Iterator[Value]:
    """The pipeline's scores are the softmax of the logits at the mask, and its tokens are the best ones."""
    filler = _filler(subject)
    for index, prompt in enumerate(_prompts(subject)):
        _, probabilities, bound = _probabilities(subject, prompt)
        rows = filler(prompt, top_k=TOP)
        count, title = len({row["token"] for row in rows}), f"different tokens, prompt {index}"
        yield value(f"distinct_tokens_prompt_{index}", count, title, equals=len(rows))
        yield from _shown(f"prompt {index}", rows, probabilities[0], bound)


@observation(
    "fill_mask",
    source="the guide, Inference",
    cause="the pipeline or the manual code reads, ranks or decodes differently",
)
def guide_by_hand(subject: Subject) -> Iterator[Value]:
    """The guide's pipeline and its manual top-k give the same tokens, scores and words, as the logits require."""
    prompt = _prompts(subject)[0]
    model = in_float32(subject)
    parts = {"model": model, "tokenizer": subject.tokenizer, "device": str(model.device)}
    piped = fill_mask.with_pipeline(subject.checkpoint, prompt, TOP, **parts)
    manual = fill_mask.by_hand(model, subject.tokenizer, prompt, TOP)
    _, probabilities, bound = _probabilities(subject, prompt)
    for way, rows in (("pipeline", piped), ("by hand", manual)):
        yield value(f"rows_{way.replace(' ', '_')}", len(rows), f"rows, {way}", equals=TOP)
        yield from _shown(way, rows, probabilities[0], bound)
    words = {row["token"]: row["token_str"].strip() for row in piped}
    other = sum(words.get(row["token"], row["token_str"].strip()) != row["token_str"].strip() for row in manual)
    yield value("different_words", other, "tokens that decode to another word", equals=0)


@observation(
    "fill_mask", source=PIPELINE, cause="padding changes predictions, or the answers of a batch come in another order"
)
def batched_prompts(subject: Subject) -> Iterator[Value]:
    """Prompts of different lengths give the same answers in one batch as each on its own."""
    hides_padding(subject)
    if subject.tokenizer.pad_token_id is None:
        raise NotApplicable("its tokenizer has no token to pad with")
    prompts = _prompts(subject)
    batched = _filler(subject)(prompts, top_k=TOP, batch_size=len(prompts))
    answers = batched if len(prompts) > 1 else [batched]
    yield value("answers", len(answers), "answers", equals=len(prompts))
    for index, (prompt, rows) in enumerate(zip(prompts, answers, strict=True)):
        _, probabilities, bound = _probabilities(subject, prompt)
        yield from _shown(f"prompt {index}", rows, probabilities[0], bound)


@observation(
    "fill_mask", source=PIPELINE, cause="scores are not a softmax over the whole vocabulary, or are not sorted"
)
def full_ranking(subject: Subject) -> Iterator[Value]:
    """Over the whole vocabulary, scores are in descending order, lie between 0 and 1, and sum to 1."""
    wordless = copy.copy(subject.tokenizer)
    wordless.decode = lambda *args, **kwargs: ""  # a sentence for each token of the vocabulary would take too long
    prompt = _prompts(subject)[0]
    size = int(subject.model.config.vocab_size)
    rows = _filler(subject, wordless)(prompt, top_k=size)
    scores = [row["score"] for row in rows]
    yield value("distinct_tokens", len({row["token"] for row in rows}), "different tokens", equals=size)
    rising = sum(right > left for left, right in pairwise(scores))
    yield value("rising_scores", rising, "scores that rise", equals=0)
    most, reason = 1 + 4 * UNIT, "the mean is 1/vocabulary"
    yield value("max_score", scores[0], "largest score", at_most=most, at_least=1 / size, reason=reason)
    yield value("min_score", scores[-1], "smallest score", at_least=0.0)
    bound, apart = 2 * _probabilities(subject, prompt)[2], abs(math.fsum(scores) - 1)
    yield value("score_sum_error", apart, "difference of the sum of all scores and 1", at_most=bound, reason=REASON)


@observation(
    "fill_mask",
    source=PIPELINE,
    cause="scores are renormalised over the targets, or targets lose their leading space or their order",
)
def targets_in_ranking(subject: Subject) -> Iterator[Value]:
    """Targets get the scores of the full ranking, whether given as tokens or as words with their leading space."""
    filler, prompt, tokenizer = _filler(subject), _prompts(subject)[0], subject.tokenizer
    _, probabilities, bound = _probabilities(subject, prompt)
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    ranked = [row["token"] for row in filler(prompt, top_k=TOP) if row["token"] not in special]
    chosen = [token for token in ranked if tokenizer.decode([token]).strip()][::5]
    if not chosen:
        raise NotApplicable("none of the best tokens is a word")
    for how, names in (
        ("tokens", tokenizer.convert_ids_to_tokens(chosen)),
        ("words", [tokenizer.decode([token]) for token in chosen]),
    ):
        # A name that is not a token stands for the first token that it is split into.
        split = [tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in names]
        expected = {vocabulary.get(name, first) for name, first in zip(names, split, strict=True)}
        rows = filler(prompt, targets=list(names))
        missing = len(expected ^ {row["token"] for row in rows})
        title = f"{how}: targets without a row, and rows without a target"
        yield value(f"unmatched_targets_{how}", missing, title, equals=0)
        apart = max(_logs_apart(row["score"], float(probabilities[0, row["token"]])) for row in rows)
        yield _measured(f"score_difference_{how}", f"{how}: difference of scores and softmax", apart, bound)
        rising = sum(right["score"] > left["score"] for left, right in pairwise(rows))
        yield value(f"rising_scores_{how}", rising, f"{how}: scores that rise", equals=0)


@observation("fill_mask", source=PIPELINE, cause="top_k is off by one, or ranks other tokens")
def ranking_prefix(subject: Subject) -> Iterator[Value]:
    """A ranking with a small top_k is the beginning of a ranking with a larger top_k."""
    filler, prompt = _filler(subject), _prompts(subject)[0]
    long = filler(prompt, top_k=TOP)
    for count in (1, 5):
        short = filler(prompt, top_k=count)
        yield value(f"rows_top_k_{count}", len(short), f"rows for top_k={count}", equals=count)
        # Tokens with equal scores may come in any order.
        strange = sum(
            row["score"] != other["score"]
            or row["token"] not in {r["token"] for r in long if r["score"] == row["score"]}
            for row, other in zip(short, long, strict=False)
        )
        title = f"rows for top_k={count} that top_k={TOP} has in another place"
        yield value(f"misplaced_rows_top_k_{count}", strange, title, equals=0)


@observation("fill_mask", source=PIPELINE, cause="masks are mixed up, or one is filled before the next is read")
def several_masks(subject: Subject) -> Iterator[Value]:
    """With several masks, each has its own ranking, from the logits at its position with the others still masked."""
    prompt = _prompts(subject, masks=2)[0]
    rankings = _filler(subject)(prompt, top_k=TOP)
    yield value("rankings", len(rankings), "rankings", equals=2)
    _, probabilities, bound = _probabilities(subject, prompt)
    for index, rows in enumerate(rankings):
        yield from _shown(f"mask {index}", rows, probabilities[index], bound)


@observation("fill_mask", source=PIPELINE, cause="the sentence is filled at another position, or with another token")
def filled_sentences(subject: Subject) -> Iterator[Value]:
    """Each answer's sentence is the prompt with its token in place of the mask, and its word is that token decoded."""
    filler, tokenizer = _filler(subject), subject.tokenizer
    sentences = words = 0
    for masks in (1, 2):
        prompt = _prompts(subject, masks=masks)[0]
        ids = _probabilities(subject, prompt)[0]
        places = (ids == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        rankings = filler(prompt, top_k=5)
        for place, rows in zip(places, rankings if masks > 1 else [rankings], strict=True):
            for row in rows:
                filled = ids.tolist()
                filled[place] = row["token"]
                filled = [token for token in filled if token != tokenizer.pad_token_id]
                sentences += row["sequence"] != tokenizer.decode(filled, skip_special_tokens=masks == 1)
                words += row["token_str"] != tokenizer.decode([row["token"]])
    yield value("wrong_sentences", sentences, "sentences that are filled differently", equals=0)
    yield value("wrong_words", words, "words of another token", equals=0)
