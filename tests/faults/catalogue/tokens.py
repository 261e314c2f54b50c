"""Faults of the second two stages: the text becomes token ids, and these become blocks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from datasets import arrow_dataset
from transformers import set_seed

from mlmrepro.guide import blocks
from tests.faults.case import Case
from tests.faults.catalogue.planting import (
    Columns,
    before_blocks,
    call_tokenizer_with,
    change_encoded,
    cut_blocks,
    join_answers,
    order_vocabulary,
)
from tests.faults.fault import Severity, fault, graded

__all__: list[str] = []

_SPECIAL = (0, 1, 2, 3, 15999)  # ids of <s>, <pad>, </s>, <unk>, <mask>


def _each_id(case: Case, change: Callable[[int], int]) -> None:
    def changed(columns: Columns) -> Columns:
        return columns | {"input_ids": [[change(token) for token in row] for row in columns["input_ids"]]}

    change_encoded(case, changed)


def _generic(case: Case, normalizer: dict[str, Any]) -> None:
    """Let the tokenizer be read by the class that takes the whole of tokenizer.json, with a normaliser in it."""
    case.edit_json("tokenizer.json", lambda content: content.update(normalizer=normalizer))
    case.edit_json("tokenizer_config.json", lambda content: content.update(tokenizer_class="PreTrainedTokenizerFast"))


# input_ids


@fault("input_ids", Severity.FATAL)
def merges_lost(case: Case) -> None:
    """A conversion script writes the tokenizer without its merges, so that words fall apart into characters."""
    case.edit_json("tokenizer.json", lambda content: content["model"].update(merges=[]))


@fault("input_ids", Severity.SERIOUS)
def half_of_the_merges_lost(case: Case) -> None:
    """A file of merges that was cut off in the middle is read without complaint."""

    def halve(content: dict[str, Any]) -> None:
        merges = content["model"]["merges"]
        del merges[len(merges) // 2 :]

    case.edit_json("tokenizer.json", halve)


@fault("input_ids", Severity.SERIOUS)
def ids_of_two_words_swapped(case: Case) -> None:
    """A vocabulary that was merged by hand gives two frequent words each other's id."""

    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["Ġthe"], vocabulary["Ġof"] = vocabulary["Ġof"], vocabulary["Ġthe"]

    case.edit_json("tokenizer.json", swap)


@fault("input_ids", Severity.FATAL)
def vocabulary_sorted(case: Case) -> None:
    """A script that rebuilds vocab.json numbers the tokens in alphabetical order."""
    order_vocabulary(case, sorted)


@graded("input_ids", Severity.SERIOUS, sizes=(1, 4, 16, 64, 256, 1024), required=(256, 1024), unit="pairs")
def ids_swapped(case: Case, pairs: float) -> None:
    """A tokenizer of a later revision has the ids of some tokens exchanged."""

    def swap(ordered: list[str]) -> list[str]:
        places = random.Random(0).sample(range(len(ordered)), 2 * int(pairs))
        for a, b in zip(places[::2], places[1::2], strict=True):
            ordered[a], ordered[b] = ordered[b], ordered[a]
        return ordered

    order_vocabulary(case, swap)


@fault("input_ids", Severity.FATAL)
def tokenizer_of_another_family(case: Case) -> None:
    """A configuration names BERT's tokenizer for RoBERTa's files, and most words become unknown."""
    case.edit_json("tokenizer_config.json", lambda content: content.update(tokenizer_class="BertTokenizer"))


@fault("input_ids", Severity.SUBTLE)
def space_before_the_first_word(case: Case) -> None:
    """A user sets add_prefix_space, with which the model was not pretrained."""
    case.edit_json("tokenizer.json", lambda content: content["pre_tokenizer"].update(add_prefix_space=True))
    case.edit_json("tokenizer_config.json", lambda content: content.update(add_prefix_space=True))


@fault("input_ids", Severity.SERIOUS)
def mask_leaves_the_space_before_it(case: Case) -> None:
    """A tokenizer is saved with a mask token that no longer takes the space before it."""

    def edit(content: dict[str, Any]) -> None:
        (mask,) = (token for token in content["added_tokens"] if token["content"] == "<mask>")
        mask["lstrip"] = False

    case.edit_json("tokenizer.json", edit)
    case.edit_json("tokenizer_config.json", lambda content: content["mask_token"].update(lstrip=False))


@fault("input_ids", Severity.SERIOUS)
def uncased_tokenizer(case: Case) -> None:
    """A tokenizer is converted with the normaliser of an uncased model."""
    _generic(case, {"type": "Lowercase"})


@fault("input_ids", Severity.SUBTLE)
def compatibility_normaliser(case: Case) -> None:
    """A tokenizer is converted with NFKC, which rewrites superscripts and fractions."""
    _generic(case, {"type": "NFKC"})


@fault("input_ids", Severity.FATAL)
def separator_is_the_pad_token(case: Case) -> None:
    """A hand-edited configuration names the padding token as the separator that ends each text."""
    case.edit_json("tokenizer_config.json", lambda content: content.update(sep_token="<pad>"))


@fault("input_ids", Severity.SERIOUS)
def special_tokens_left_out(case: Case) -> None:
    """A script tokenises without special tokens, as is right for causal models."""
    call_tokenizer_with(case, add_special_tokens=False)


@fault("input_ids", Severity.SERIOUS)
def truncated_at_the_maximum(case: Case) -> None:
    """A script cuts every text at the model's maximum before the blocks are made."""
    call_tokenizer_with(case, truncation=True)


@fault("input_ids", Severity.FATAL)
def padded_on_the_left(case: Case) -> None:
    """A script for text generation pads on the left and cuts at the maximum."""
    call_tokenizer_with(case, padding="max_length", truncation=True, padding_side="left")


@fault("input_ids", Severity.SUBTLE)
def attention_mask_not_returned(case: Case) -> None:
    """A tokenizer's saved settings leave the attention mask out of what it returns."""
    call_tokenizer_with(case, return_attention_mask=False)


@fault("input_ids", Severity.SERIOUS)
def joined_without_separator(case: Case) -> None:
    """A refactoring joins the answers by nothing, which glues the last word of one to the first of the next."""
    join_answers(case, lambda texts, separator: "".join(texts))


@fault("input_ids", Severity.SUBTLE)
def joined_by_newlines(case: Case) -> None:
    """A user joins the answers by line breaks, as they look better in print."""
    join_answers(case, lambda texts, separator: "\n".join(texts))


@fault("input_ids", Severity.SERIOUS)
def letters_joined(case: Case) -> None:
    """A script joins the letters of the first answer in place of the answers."""
    join_answers(case, lambda texts, separator: separator.join(texts[0]))


@fault("input_ids", Severity.SERIOUS)
def only_the_first_answer_tokenised(case: Case) -> None:
    """A script takes the first answer of each question, as the copy of another guide did."""
    join_answers(case, lambda texts, separator: texts[0])


@fault("input_ids", Severity.SUBTLE)
def special_tokens_doubled(case: Case) -> None:
    """A script writes the special tokens into the text, and the tokenizer adds its own."""
    join_answers(case, lambda texts, separator: f"<s>{separator.join(texts)}</s>")


@fault("input_ids", Severity.SERIOUS)
def rare_tokens_unknown(case: Case) -> None:
    """A vocabulary that was trimmed to its first 12,000 tokens makes the others unknown."""
    _each_id(case, lambda token: 3 if 12_000 <= token < 15_999 else token)


@fault("input_ids", Severity.FATAL)
def ids_off_by_one(case: Case) -> None:
    """A vocabulary that is counted from one moves every id by one."""
    _each_id(case, lambda token: (token + 1) % 16_000)


@fault("input_ids", Severity.SUBTLE)
def last_token_cut(case: Case) -> None:
    """A loop that leaves room for a token that was already there cuts the last token of every text."""
    change_encoded(case, lambda columns: {name: [row[:-1] for row in rows] for name, rows in columns.items()})


@fault("input_ids", Severity.SERIOUS)
def cache_keyed_without_the_function(case: Case) -> None:
    """A release leaves the function out of map's fingerprint, so that an edited one is served its old rows."""

    def make(original: Any) -> Any:
        def update_fingerprint(fingerprint: str, transform: Any, arguments: dict[str, Any]) -> Any:
            return original(fingerprint, transform, {k: v for k, v in arguments.items() if k != "function"})

        return update_fingerprint

    case.wrap(arrow_dataset, "update_fingerprint", make)


@fault("input_ids", Severity.SUBTLE)
def mapping_seeds_the_generators(case: Case) -> None:
    """A release seeds the global generators in map, so that whatever is drawn after it is always the same."""

    def make(original: Any) -> Any:
        def seeded(*args: Any, **kwargs: Any) -> Any:
            set_seed(0)
            return original(*args, **kwargs)

        return seeded

    case.wrap(arrow_dataset.Dataset, "map", make)


# blocks


def _full(count: int, size: int, step: int = 0) -> list[tuple[int, int]]:
    """Cut as the guide does, or every `step` tokens."""
    total = count // size * size if count >= size else count
    return [(start, min(start + size, total)) for start in range(0, total, step or size)]


@fault("blocks", Severity.SUBTLE)
def cut_begins_one_token_late(case: Case) -> None:
    """An off-by-one loses the first token of every batch and moves all blocks by one."""
    cut_blocks(case, lambda count, size: [(start + 1, stop + 1) for start, stop in _full(count - 1, size)])


@fault("blocks", Severity.SUBTLE)
def block_one_token_short(case: Case) -> None:
    """A cut that leaves room for a token makes blocks of 127."""
    cut_blocks(case, lambda count, size: _full(count, size - 1))


@fault("blocks", Severity.SUBTLE)
def blocks_overlap_by_one(case: Case) -> None:
    """A stride that is one too small repeats the last token of each block at the start of the next."""
    cut_blocks(case, lambda count, size: [(s, s + size) for s in range(0, count - size + 1, size - 1)] or [(0, count)])


@fault("blocks", Severity.SUBTLE)
def remainder_kept(case: Case) -> None:
    """A refactoring keeps the short remainder of every batch as a block."""
    cut_blocks(case, lambda count, size: [(start, min(start + size, count)) for start in range(0, count, size)])


@fault("blocks", Severity.SUBTLE)
def remainder_padded(case: Case) -> None:
    """A refactoring fills the remainder up with padding that is attended to."""

    def pad(columns: Columns) -> Columns:
        missing = -sum(map(len, columns["input_ids"])) % 128
        return {name: [*rows, [1] * missing] for name, rows in columns.items()}  # 1: <pad>, and attended to

    before_blocks(case, pad)


@fault("blocks", Severity.SUBTLE)
def whole_last_block_dropped(case: Case) -> None:
    """A test with `>` in place of `>=` throws the last block away where the tokens come out even."""
    cut_blocks(
        case, lambda count, size: _full(count, size) if count % size or count <= size else _full(count - size, size)
    )


@fault("blocks", Severity.SERIOUS)
def short_batch_dropped(case: Case) -> None:
    """A refactoring without the guide's condition loses a batch of less than one block."""
    cut_blocks(case, lambda count, size: _full(count, size) if count >= size else [])


@fault("blocks", Severity.SERIOUS)
def last_full_block_dropped(case: Case) -> None:
    """An off-by-one in the number of blocks loses the last one of every batch."""
    cut_blocks(case, lambda count, size: _full(count, size)[:-1] or [(0, count)])


@fault("blocks", Severity.SUBTLE)
def blocks_in_reverse(case: Case) -> None:
    """A list that is built from its end gives the blocks in reverse order."""
    cut_blocks(case, lambda count, size: _full(count, size)[::-1])


@fault("blocks", Severity.SERIOUS)
def blocks_end_with_their_text(case: Case) -> None:
    """A script cuts every text by itself, so that most blocks are short."""

    def group_texts(examples: Any, block_size: int) -> Any:
        return {
            name: [
                row[start : start + block_size] for row in examples[name] for start in range(0, len(row), block_size)
            ]
            for name in examples.keys()
        }

    case.set(blocks, "group_texts", group_texts)


@fault("blocks", Severity.SERIOUS)
def only_the_first_block_of_each_text(case: Case) -> None:
    """A script truncates every text at the block size and throws the rest away."""
    before_blocks(case, lambda columns: {name: [row[:128] for row in rows] for name, rows in columns.items()})


@fault("blocks", Severity.SUBTLE)
def special_tokens_removed_from_blocks(case: Case) -> None:
    """A script that skips special tokens takes the borders between texts away."""

    def without(columns: Columns) -> Columns:
        kept = [[n for n, token in enumerate(row) if token not in _SPECIAL] for row in columns["input_ids"]]
        return {
            name: [[row[n] for n in places] for row, places in zip(rows, kept, strict=True)]
            for name, rows in columns.items()
        }

    before_blocks(case, without)


@fault("blocks", Severity.SUBTLE)
def texts_in_other_order(case: Case) -> None:
    """A script sorts the texts by length before it joins them."""

    def ordered(columns: Columns) -> Columns:
        return {name: sorted(rows, key=len) for name, rows in columns.items()}

    before_blocks(case, ordered)


@fault("blocks", Severity.SUBTLE)
def labels_copied_from_ids(case: Case) -> None:
    """A user keeps the line of the causal guide that copies the ids into labels."""
    case.wrap(
        blocks,
        "group_texts",
        lambda original: lambda examples, block_size: _with_labels(original(examples, block_size)),
    )


def _with_labels(columns: dict[str, Any]) -> dict[str, Any]:
    return columns | {"labels": [list(row) for row in columns["input_ids"]]}


@fault("blocks", Severity.SERIOUS)
def attention_mask_made_anew(case: Case) -> None:
    """A script computes the attention mask from the ids, with </s> for the padding token that it has become."""

    def anew(columns: Columns) -> Columns:
        return columns | {"attention_mask": [[int(token != 2) for token in row] for row in columns["input_ids"]]}

    before_blocks(case, anew)


@fault("blocks", Severity.SUBTLE)
def batches_of_four_rows(case: Case) -> None:
    """A user lowers the batch size of map to save memory, and every small batch drops a remainder of its own."""
    case.wrap(blocks, "group", lambda original: lambda rows, **options: original(rows, **options | {"batch_size": 4}))


@fault("blocks", Severity.SUBTLE)
def other_number_of_processes(case: Case) -> None:
    """A user maps with two processes, each of which drops a remainder of its own."""
    case.wrap(blocks, "group", lambda original: lambda rows, **options: original(rows, **options | {"num_proc": 2}))
