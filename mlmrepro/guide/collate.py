"""Preprocess, last step: the collator pads a batch and draws its masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlmrepro.errors import UserError

if TYPE_CHECKING:
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

__all__ = ["data_collator"]


def data_collator(
    tokenizer: PreTrainedTokenizerBase, *, mlm_probability: float, pad_token: str
) -> DataCollatorForLanguageModeling:
    """Set the padding token as the guide does (it changes `tokenizer`) and return the collator.

    A batch has `input_ids`, `attention_mask` and `labels`, each (rows, longest row); its masks are drawn afresh from
    torch's global generator at every call.
    """
    from transformers import DataCollatorForLanguageModeling

    token = getattr(tokenizer, pad_token)
    if token is None:
        raise UserError(
            f"the tokenizer has no {pad_token} to pad with", remedy="use --set pad_token=pad_token for this checkpoint"
        )
    tokenizer.pad_token = token
    return DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=mlm_probability)
