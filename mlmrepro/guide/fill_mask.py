"""Inference: fill the mask with the pipeline and by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlmrepro.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["by_hand", "check_prompt", "check_top_k", "with_pipeline"]


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, limit: int) -> str:
    """Return the prompt with this tokenizer's own mask token.

    Raises UserError unless it holds exactly one mask and at most `limit` tokens.
    """
    mask = tokenizer.mask_token
    prompt = prompt.replace("<mask>", mask)
    ids = tokenizer(prompt)["input_ids"]
    count = ids.count(tokenizer.mask_token_id)
    if len(ids) > limit:
        raise UserError(f"the prompt has {len(ids)} tokens, the model takes {limit}", remedy="shorten it")
    if count != 1:
        raise UserError(
            f"the prompt {prompt!r} holds {count or 'no'} mask token{'s' if count > 1 else ''}",
            remedy=f"write <mask> exactly once ({mask} is this tokenizer's own)",
        )
    return prompt


def with_pipeline(checkpoint: str, prompt: str, top_k: int, **parts: Any) -> list[dict[str, Any]]:
    """Return the pipeline's rows, best first: `score`, `token`, `token_str`, `sequence`.

    `parts`, a model and a tokenizer, replace what it would load from the checkpoint.
    """
    from transformers import pipeline

    try:
        given: dict[str, Any] = {"model": checkpoint, "trust_remote_code": False} | parts
        mask_filler = pipeline("fill-mask", **given)
    except Exception as error:
        raise UserError(
            f"no fill-mask pipeline can be made from {checkpoint!r}: {first_line(error)}",
            remedy="give a folder with a masked language model and its tokenizer",
        ) from error
    return list(mask_filler(prompt, top_k=top_k))


def by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, top_k: int
) -> list[dict[str, Any]]:
    """Return the same rows from mask index, logits, `topk` and decode.

    The guide prints only the sentence: `sequence` is the prompt with the mask replaced by the decoded token. That
    token starts with a space of its own, so the sentence has two where the guide's printed output shows one.
    """
    import torch

    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    mask_token_index = torch.where(inputs["input_ids"] == tokenizer.mask_token_id)[1]
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits
    mask_token_logits = logits[0, mask_token_index, :]
    scores = mask_token_logits.softmax(dim=-1)
    rows = []
    for token in torch.topk(mask_token_logits, top_k, dim=1).indices[0].tolist():
        decoded = str(tokenizer.decode([token]))
        rows.append(
            {
                "score": float(scores[0, token]),
                "token": token,
                "token_str": decoded,
                "sequence": prompt.replace(tokenizer.mask_token, decoded),
            }
        )
    return rows


def check_top_k(vocab_size: int, top_k: int) -> None:
    """Raise UserError if more predictions are requested than the vocabulary has tokens."""
    if top_k > vocab_size:
        raise UserError(f"top_k is {top_k}, but the vocabulary has {vocab_size} tokens", remedy="ask for fewer")
