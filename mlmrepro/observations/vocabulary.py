"""Helpers for observing the tokenizer: the kind of a tokenizer, the words it knows, and texts to try."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from mlmrepro.observations.observation import NotApplicable
from mlmrepro.observations.subject import Subject

__all__ = [
    "EDGES",
    "KINDS",
    "around",
    "average_word",
    "backend",
    "contexts_of",
    "decoded",
    "differing",
    "ids_of",
    "is_byte_level",
    "known",
    "letters",
    "normalised",
    "ordinary",
    "plain",
    "texts_of",
    "whole_words",
    "without_spaces",
    "words_by_kind",
]

EDGES = (
    "  two  spaces, a tab\t and\nnew line\r\n ",
    "café e\u0301 naïve “quotes” … 10\u00a0km — ½",
    "emoji 👩‍🔬 and 日本語",
    "don't we'll 1,234.5 _x_ #tag UPPER MiXeD",
)

# The kinds of words, by what a normaliser could do to their letters.
KINDS = {"lowercase": "in lower case", "capitals": "with capitals", "non_ascii": "with letters beyond a to z"}


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of ids, without cleaning up spaces."""
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def texts_of(subject: Subject) -> list[str]:
    """Return some of the subject's texts, shortened to keep the observations fast."""
    return [text[:500] for text in subject.texts[:20]]


def known(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """Return the texts without words that give unknown tokens; `no_unknown_tokens` covers those."""
    unknown = tokenizer.unk_token_id

    @cache
    def whole(text: str) -> bool:
        return unknown not in ids_of(tokenizer, text)

    kept = [text if whole(text) else " ".join(filter(whole, text.split())) for text in texts]
    if not any(text.strip() for text in kept):
        raise NotApplicable("the tokenizer knows no word of the text")
    return kept


def backend(tokenizer: Any) -> Any:
    """Return the underlying tokenizer of the tokenizers library, or None."""
    return getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None


def is_byte_level(tokenizer: Any) -> bool:
    """Return whether the tokenizer reads bytes, and so can encode every text exactly."""
    core = backend(tokenizer)
    return core is not None and "ByteLevel" in repr(core.pre_tokenizer)


def normalised(tokenizer: Any, text: str) -> str:
    """Return the text after the tokenizer's own normaliser."""
    core = backend(tokenizer)
    return text if core is None or core.normalizer is None else str(core.normalizer.normalize_str(text))


def without_spaces(text: str) -> str:
    """Return the text without white space and its marker, ▁."""
    return "".join(text.replace("▁", " ").split())


def letters(text: str) -> str:
    """Return the letters and digits of a text, without case, accents and typographic forms."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(character for character in decomposed if character.isalnum())


def ordinary(tokenizer: Any) -> dict[int, str]:
    """Return the tokens that are not special, by id."""
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(len(tokenizer)) if token not in special]
    return {
        token: text for token, text in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True) if text is not None
    }


def whole_words(tokenizer: Any) -> Iterator[tuple[int, str]]:
    """Yield the id and the text of every token that is a whole word of two letters or more.

    The marker of a word's beginning (▁) or continuation (##) shows which tokens can stand alone; without markers, as
    in byte-level tokenizers, all can. Only scripts with upper and lower case count: others are often split in advance.
    """
    tokens = ordinary(tokenizer)
    starts = sum(text.startswith("▁") for text in tokens.values()) > len(tokens) / 20
    for token, text in tokens.items():
        if text.startswith("##") or (starts and not text.startswith("▁")) or len(text) < 2:
            continue
        word = tokenizer.convert_tokens_to_string([text])
        letters = word.strip()
        if len(letters) > 1 and all(letter.lower() != letter.upper() for letter in letters):
            yield token, word


def words_by_kind(tokenizer: Any) -> dict[str, dict[int, str]]:
    """Return the whole words of the vocabulary, grouped by their kind in `KINDS`."""
    kinds: dict[str, dict[int, str]] = {kind: {} for kind in KINDS}
    for token, word in whole_words(tokenizer):
        kind = "lowercase" if word == word.lower() else "capitals"
        kinds[kind if word.isascii() else "non_ascii"][token] = word
    return kinds


def differing(one: Iterable[Any], other: Iterable[Any]) -> int:
    """Count the positions at which two sequences of texts, or of lists of ids, differ."""
    return sum(list(a) != list(b) for a, b in zip(one, other, strict=True))


def average_word(subject: Subject) -> float:
    """Return the mean length of a word between spaces; raises NotApplicable if the text has no spaces."""
    words = [word for text in texts_of(subject) for word in text.split()]
    characters = sum(map(len, words)) / len(words)
    if characters > 20:
        raise NotApplicable("the text puts no spaces between words")
    return characters


def contexts_of(subject: Subject) -> list[tuple[str, str]]:
    """Return the text before and after a mask, the latter with its space; texts of one word are cut in two."""
    found = []
    for n, text in enumerate(known(subject.tokenizer, texts_of(subject))):
        words = text.split() if " " in text else [text[: len(text) // 2], text[len(text) // 2 :]]
        middle = max(1, len(words) // 2 + n % 3 - 1)
        if all(words[:2]) and len(words) > 1:
            found.append((" ".join(words[max(0, middle - 8) : middle]), " " + " ".join(words[middle : middle + 8])))
    if not found:
        raise NotApplicable("the tokenizer knows too few words of the text")
    return found


def around(tokenizer: Any, text: str) -> tuple[list[int], list[int]] | None:
    """Return the ids that are added before and after a text's own ids, or None if the tokenizer changes the latter."""
    bare, full = ids_of(tokenizer, text), list(tokenizer(text, verbose=False)["input_ids"])
    for start in range(min(4, len(full) - len(bare) + 1)):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return None


def plain(value: Any) -> Any:
    """Return a tokenizer setting in comparable form: the order and duplicates of listed tokens do not count."""
    if isinstance(value, dict):
        return {name: str(plain(each)) for name, each in sorted(value.items())}
    return sorted(set(value)) if isinstance(value, list) else value
