"""From documents to token ids, words and windows; special tokens are put around each window, never masked."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlmrepro.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Encoder", "unmasked", "words_of"]

_WORD = re.compile(r"\S+")


def words_of(text: str) -> list[str]:
    """Return what white space separates: words that do not depend on any tokenizer."""
    return _WORD.findall(text)


def unmasked(encoded: Sequence[Encoded]) -> list[str]:
    """Return a note if texts hold tokens that are never masked: unknown ones, or special ones written out."""
    count = sum(int((~document.maskable).sum()) for document in encoded)
    return [f"{count} tokens of the text are special or unknown to the tokenizer, and never masked"] if count else []


@dataclass(frozen=True)
class Encoded:
    """One document in tokens, without special tokens around it; the arrays have shape (tokens,)."""

    ids: NDArray[np.int32]
    maskable: NDArray[np.bool_]  # False for special tokens within the text, including unknown ones
    words: NDArray[np.int32]  # index of the white-space word that a token belongs to
    pieces: NDArray[np.int32]  # index of the tokenizer's own word, which may split off punctuation
    ends: NDArray[np.int32]  # character at which a token ends; a token's text begins where the one before ends
    windows: tuple[tuple[int, int], ...]  # (start, stop) of what the model reads at once

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """Turns texts into tokens and windows of at most `max_length` tokens, special ones included."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if tokenizer.mask_token_id is None:
            raise UserError("the tokenizer has no mask token", remedy="give a masked language model's tokenizer")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int32)
        self.prefix, self.suffix = _around(tokenizer)
        self.room = max_length - len(self.prefix) - len(self.suffix)
        if self.room < 2:
            raise UserError(f"max_length is {max_length}, too short for two tokens", remedy="give a larger one")

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Return each text in tokens and windows.

        Raises UserError if a tokenizer without offsets (a slow one) cannot be aligned word by word.
        """
        if not self.tokenizer.is_fast:
            return [self._encoded(text, *_word_by_word(self.tokenizer, text)) for text in texts]
        encoding = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,  # documents may be longer than the model: they are cut into windows
        )
        return [
            self._encoded(text, ids, encoding["offset_mapping"][n], encoding.word_ids(n))
            for n, (text, ids) in enumerate(zip(texts, encoding["input_ids"], strict=True))
        ]

    def with_special_tokens(self, ids: NDArray[np.int32]) -> list[int]:
        """Return a window's ids as the model reads them."""
        return [*self.prefix, *ids.tolist(), *self.suffix]

    def _encoded(self, text: str, ids: list[int], offsets: list[tuple[int, int]], pieces: list[Any]) -> Encoded:
        array = np.array(ids, dtype=np.int32)
        words = _word_indices(text, offsets)
        # A token that belongs to no word of the tokenizer counts as a word of its own.
        own = np.array([-n - 1 if piece is None else piece for n, piece in enumerate(pieces)], dtype=np.int32)
        ends = np.array([stop for _, stop in offsets], dtype=np.int32)
        return Encoded(array, ~np.isin(array, self.special), words, own, ends, self._windows(words))

    def _windows(self, words: NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
        """Cut into as few windows as possible, of about equal length, and between words if possible."""
        starts = np.flatnonzero(np.diff(words, prepend=-1)).tolist()
        windows, start = [], 0
        while start < len(words):
            left = len(words) - start
            stop = start + -(-left // -(-left // self.room))
            if stop < len(words):
                last = starts[bisect_right(starts, stop) - 1]  # a search: a long document has many windows
                stop = last if last > start else stop
            windows.append((start, stop))
            start = stop
        return tuple(windows)


def _word_indices(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """Return the word of each token: that of its last character, for a token may begin with the space before it."""
    ends = np.array([match.end() for match in _WORD.finditer(text)], dtype=np.int64)
    last = np.array([max(stop - 1, start) for start, stop in offsets], dtype=np.int64)
    found = np.searchsorted(ends, last, side="right")
    return np.minimum(found, max(len(ends) - 1, 0)).astype(np.int32)


def _word_by_word(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Return ids, offsets and words of a text as a slow tokenizer, such as ESM's, splits it."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    words: list[int] = []
    for n, word in enumerate(_WORD.finditer(text)):
        tokens = tokenizer.tokenize(word.group())
        lengths = [len(token) for token in tokens]
        if sum(lengths) != len(word.group()):  # it changed the spelling: the first token stands for the whole word
            lengths = [len(word.group()), *[0] * (len(tokens) - 1)]
        offsets.extend((word.start(), word.start() + end) for end in accumulate(lengths[: len(tokens)]))
        words.extend([n] * len(tokens))
        ids.extend(tokenizer.convert_tokens_to_ids(tokens))  # type: ignore[arg-type]
    if ids != tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
        raise UserError(
            f"{type(tokenizer).__name__} cannot say where in the text each token stands",
            remedy="give a checkpoint with a tokenizer.json",
        )
    return ids, offsets, words


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise UserError("the tokenizer changes a text when it adds special tokens", remedy="use a standard tokenizer")
