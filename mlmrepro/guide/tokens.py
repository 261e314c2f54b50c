"""Preprocess, first half: the answers of a question are joined and tokenised."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlmrepro.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_column", "preprocess_function", "tokenize"]


def preprocess_function(
    tokenizer: PreTrainedTokenizerBase, column: str, separator: str
) -> Callable[[dict[str, Any]], Any]:
    """Return the guide's preprocess_function: (batch of rows) -> `input_ids` and `attention_mask`, ragged lists."""

    def preprocess(examples: dict[str, Any]) -> Any:
        return tokenizer([separator.join(x) for x in examples[column]])

    return preprocess


def tokenize(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, column: str, separator: str, num_proc: int
) -> DatasetDict:
    """Map preprocess_function over every split and drop the text columns; `check_column` refuses other columns."""
    check_column(dataset, column)
    return dataset.map(
        preprocess_function(tokenizer, column, separator),
        batched=True,
        num_proc=num_proc,
        remove_columns=dataset["train"].column_names,
    )


def check_column(dataset: DatasetDict, column: str) -> None:
    """Raise UserError if `column` is absent or is not a list of strings.

    Joining a plain string would put the separator between its characters, and nothing downstream would complain.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = dataset["train"].features.arrow_schema
    if column not in schema.names:
        raise UserError(
            f"the data set has no column {column!r} after flattening; it has {', '.join(schema.names)}",
            remedy="give data in ELI5's schema, or name the column of texts with --set text_column=...",
        )
    kind = schema.field(column).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not (
        pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    ):
        raise UserError(
            f"the column {column!r} holds {kind}, not lists of strings",
            remedy="give each row a list of texts, even if it holds only one",
        )
    texts = dataset["train"].data.column(column)
    if texts.null_count or pc.list_flatten(texts).null_count:
        raise UserError(f"the column {column!r} has rows or texts that are null", remedy="leave them out")
