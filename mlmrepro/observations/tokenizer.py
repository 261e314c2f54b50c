"""The tokenizer: no text is lost, the mask absorbs the space before it, special tokens are where they belong.

The bounds hold exactly for byte-level tokenizers, and for others up to the normalisation that they declare.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache

import numpy as np

from mlmrepro import loading
from mlmrepro.observations.observation import NotApplicable, observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.vocabulary import (
    EDGES,
    KINDS,
    around,
    average_word,
    backend,
    contexts_of,
    decoded,
    differing,
    ids_of,
    is_byte_level,
    known,
    letters,
    normalised,
    plain,
    texts_of,
    whole_words,
    without_spaces,
    words_by_kind,
)

__all__ = [
    "a_batch_is_each_text_alone",
    "a_saved_tokenizer_is_the_same",
    "a_truncated_text_keeps_its_beginning",
    "adding_a_token_moves_none",
    "mask_takes_the_space",
    "no_unknown_tokens",
    "offsets_cover_the_text",
    "padding_goes_right",
    "special_tokens_are_marked",
    "special_tokens_in_a_text",
    "special_tokens_stand_around",
    "text_round_trips",
    "tokens_a_word",
    "vocabulary_is_whole",
    "words_of_the_vocabulary",
]

_NEW = "zqxaddedzqx"  # in no text and no vocabulary
_DOCUMENTED = "transformers.PreTrainedTokenizerBase"


@observation(
    "input_ids",
    source=f"{_DOCUMENTED}: decode of what was encoded",
    cause="the decoder, pre-tokenizer or normaliser drops or changes text",
)
def text_round_trips(subject: Subject) -> Iterator[Value]:
    """Decoding restores the encoded text, either exactly or up to the tokenizer's own normalisation and spaces."""
    tokenizer = subject.tokenizer
    texts = known(tokenizer, [*texts_of(subject), *EDGES])
    back = [decoded(tokenizer, ids_of(tokenizer, text)) for text in texts]
    lost = differing(map(letters, texts), map(letters, back))
    yield value("altered_texts", lost, "texts that lose or gain letters or digits", equals=0, unit=f"of {len(texts)}")
    if backend(tokenizer) is not None:
        wanted = [normalised(tokenizer, text) for text in texts]
        if is_byte_level(tokenizer):
            # Some tokenizers put a space before the first word (add_prefix_space).
            space = decoded(tokenizer, ids_of(tokenizer, "x")).startswith(" ")
            wanted = [f" {text}" if space and not text[:1].isspace() else text for text in wanted]
            title, reason = "texts that come back changed", "bytes keep every text as it is"
            yield value("changed_texts", differing(wanted, back), title, equals=0, reason=reason)
        else:
            changed = differing(map(without_spaces, wanted), map(without_spaces, back))
            title, reason = "texts that come back changed, ignoring spaces", "up to its own normaliser and spaces"
            yield value("changed_texts_ignoring_spaces", changed, title, equals=0, reason=reason)
    again = [decoded(tokenizer, ids_of(tokenizer, text)) for text in back]
    moving = differing(map(without_spaces, back), map(without_spaces, again))
    yield value("unstable_texts", moving, "texts that change when encoded and decoded a second time", equals=0)


@observation(
    "input_ids",
    source="Sennrich et al. 2016, arXiv:1508.07909: subwords make the vocabulary open",
    cause="the vocabulary or the normaliser lost something, or the tokenizer was not made for this text (--text)",
)
def no_unknown_tokens(subject: Subject) -> Iterator[Value]:
    """No word of the text gives an unknown token, unless it contains a character that the vocabulary lacks."""
    tokenizer = subject.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None:
        raise NotApplicable("the tokenizer has no unknown token")
    texts = [*texts_of(subject), *(EDGES if is_byte_level(tokenizer) else ())]
    words = [word for text in texts for word in text.split()]
    vocabulary = tokenizer.get_vocab()
    continues = any(token.startswith("##") for token in vocabulary)

    @cache
    def spelled(character: str) -> bool:
        return unknown not in ids_of(tokenizer, character) and (not continues or f"##{character}" in vocabulary)

    bad = [word for word in words if unknown in ids_of(tokenizer, word)]
    # WordPiece gives up on words of more than 100 characters.
    spellable = sum(len(word) <= 100 and all(map(spelled, normalised(tokenizer, word))) for word in bad)
    yield value("spellable_unknown_words", spellable, "unknown words whose characters are all known", equals=0)
    if is_byte_level(tokenizer):
        yield value("unknown_words", len(bad), "unknown words", equals=0, reason="every byte is in the vocabulary")
    else:
        reason = "a vocabulary for this language lacks only rare characters"
        yield value("unknown_word_share", len(bad) / len(words), "share of unknown words", at_most=0.01, reason=reason)


@observation(
    "input_ids",
    source="Sennrich et al. 2016, arXiv:1508.07909; Rust et al. 2021, arXiv:2012.15613 (fertility)",
    cause="the merges are lost and words are split into characters, or words are dropped",
)
def tokens_a_word(subject: Subject) -> Iterator[Value]:
    """On average, a word has at least one token and a token covers at least two characters."""
    tokenizer = subject.tokenizer
    if next(whole_words(tokenizer), None) is None:
        raise NotApplicable("the tokenizer's vocabulary is of characters, not of words")
    characters = average_word(subject)
    texts = known(tokenizer, texts_of(subject))
    words = sum(len(text.split()) for text in texts)
    count = sum(len(ids_of(tokenizer, text)) for text in texts)
    yield value(
        "tokens_per_word",
        count / words,
        "tokens per word",
        at_least=1.0,
        at_most=characters / 2,
        reason=f"words have {characters:.2f} characters on average; beyond half of that, tokens are almost characters",
    )


@observation(
    "input_ids",
    source="Land and Bartolo 2024, arXiv:2405.05417: a token is unreachable if its own text is encoded differently",
    cause="merges are lost or out of order, or the normaliser changes letters that the vocabulary contains",
)
def words_of_the_vocabulary(subject: Subject) -> Iterator[Value]:
    """A word that is a token of the vocabulary is encoded as that single token."""
    tokenizer = subject.tokenizer
    rng = np.random.default_rng([subject.seed, 30])
    chosen = {kind: words for kind, words in words_by_kind(tokenizer).items() if len(words) >= 20}
    if not chosen:
        raise NotApplicable("the tokenizer's vocabulary holds no words")
    for kind, words in chosen.items():
        tokens = rng.permutation(list(words))[:1000].tolist()
        found = tokenizer([words[token] for token in tokens], add_special_tokens=False, verbose=False)["input_ids"]
        yield value(
            f"one_token_share_{kind}",
            1 - differing(found, [[token] for token in tokens]) / len(tokens),
            f"share of words {KINDS[kind]} that are one token",
            at_least=0.98,
            reason=f"{len(tokens)} drawn; BPE and WordPiece reach 1, unigram models at least 0.99",
        )


@observation(
    "input_ids",
    source="Liu et al. 2019, arXiv:1907.11692; transformers' AddedToken(lstrip=True) of mask tokens",
    cause="the mask token has lost lstrip=True: the space before it becomes a token that no training text has",
)
def mask_takes_the_space(subject: Subject) -> Iterator[Value]:
    """A mask in a sentence is one token that absorbs the space before it and leaves the text around it unchanged."""
    tokenizer = subject.tokenizer
    contexts = contexts_of(subject)
    mask = int(tokenizer.mask_token_id)
    # A mask that stands for a single character has no space to absorb.
    space = " " if next(whole_words(tokenizer), None) else ""
    wrong = several = 0
    for left, right in contexts:
        found = ids_of(tokenizer, f"{left}{space}{tokenizer.mask_token}{right}")
        wrong += found != [*ids_of(tokenizer, left), mask, *ids_of(tokenizer, right)]
        several += found.count(mask) != 1
    total = f"of {len(contexts)}"
    yield value("not_one_mask", several, "sentences without exactly one mask", equals=0, unit=total)
    title, reason = "sentences changed around the mask", "in training a mask takes the place of a word with its space"
    yield value("changed_around_mask", wrong, title, equals=0, unit=total, reason=reason)


@observation(
    "input_ids",
    source=f"{_DOCUMENTED}: special tokens are never split",
    cause="a special token that is spelled out in a text is split, or does not count as special",
)
def special_tokens_in_a_text(subject: Subject) -> Iterator[Value]:
    """A special token that is spelled out in a text becomes its single id and is marked as special."""
    tokenizer = subject.tokenizer
    left, right = contexts_of(subject)[0]
    names = ("mask_token", "bos_token", "cls_token", "eos_token", "sep_token", "pad_token")
    cut, unmarked = [], []
    for token in sorted({str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name) is not None}):
        ids = ids_of(tokenizer, f"{left} {token}{right}")
        places = [n for n, found in enumerate(ids) if found == tokenizer.convert_tokens_to_ids(token)]
        marked = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        cut += [token] if len(places) != 1 else []
        unmarked += [token] if not all(marked[n] for n in places) else []
    yield value("split_special_tokens", " ".join(cut), "special tokens that are not one id", equals="")
    yield value("unmarked_special_tokens", " ".join(unmarked), "special tokens that are not marked", equals="")


@observation(
    "input_ids",
    source=f"{_DOCUMENTED}.get_special_tokens_mask and all_special_ids",
    cause="the special-tokens mask marks the wrong positions, so special tokens can be masked",
)
def special_tokens_are_marked(subject: Subject) -> Iterator[Value]:
    """The special-tokens mask marks exactly the special ids, whether made while encoding or from the ids."""
    tokenizer = subject.tokenizer
    special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id
    from_build = from_ids = 0
    for text in texts_of(subject):
        encoded = tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids = list(encoded["input_ids"])
        own = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        for token, build, said in zip(ids, encoded["special_tokens_mask"], own, strict=True):
            from_ids += bool(said) != (token in special)
            # Encoding marks the tokens that the tokenizer adds; the unknown token is special, but not added.
            from_build += token != unknown and bool(build) != (token in special)
    yield value("wrong_marks_from_ids", from_ids, "positions marked wrongly from the ids", equals=0)
    yield value("wrong_marks_encoding", from_build, "positions marked wrongly while encoding", equals=0)


@observation(
    "input_ids",
    source="Devlin et al. 2019, arXiv:1810.04805, section 3; the tokenizer's own cls_token and sep_token",
    cause="the template of special tokens is lost or wrong (post_processor in tokenizer.json)",
)
def special_tokens_stand_around(subject: Subject) -> Iterator[Value]:
    """Each text is encoded as one CLS token, its own tokens and one SEP token (or the BOS and EOS tokens)."""
    tokenizer = subject.tokenizer
    found = [around(tokenizer, text) for text in texts_of(subject)]
    yield value("changed_texts", found.count(None), "texts whose own tokens change", equals=0)
    ends = {(tuple(each[0]), tuple(each[1])) for each in found if each is not None}
    yield value("templates", len(ends), "different sets of special tokens around a text", equals=1)
    before, behind = next(iter(ends), ((), ()))
    for slug, title, got, names in (
        ("starts_with_cls", "text starts with its own CLS token", before, ("cls_token_id", "bos_token_id")),
        ("ends_with_sep", "text ends with its own SEP token", behind, ("sep_token_id", "eos_token_id")),
    ):
        ids = {getattr(tokenizer, name) for name in names} - {None}
        shown = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(got)))) or "nothing"
        declared = getattr(tokenizer, names[0]) is not None  # a model that has the token was trained with it
        right = len(got) == 1 and got[0] in ids
        yield value(slug, right, title, equals=True if declared else None, unit=f"({shown})", shown=not declared)


@observation(
    "input_ids",
    source=f"{_DOCUMENTED}.add_tokens: new tokens get indices from the vocabulary's length on",
    cause="adding a token renumbers the vocabulary, takes an id that is in use, or splits text differently",
)
def adding_a_token_moves_none(subject: Subject) -> Iterator[Value]:
    """An added token gets the next free id, and texts without it keep their ids."""
    tokenizer = subject.fresh_tokenizer()
    texts = [*texts_of(subject), *EDGES]
    before = [list(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    vocabulary = tokenizer.get_vocab()
    for kind, special in (("ordinary", False), ("special", True)):
        token = _NEW + kind
        last = max(tokenizer.get_vocab().values())
        tokenizer.add_tokens([token], special_tokens=special)
        after = [list(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        new = tokenizer.convert_tokens_to_ids(token)
        yield value(f"other_ids_{kind}", differing(before, after), f"{kind} token: texts with other ids", equals=0)
        yield value(f"place_{kind}", int(new) - last, f"{kind} token: place after the last id", equals=1)
        times = ids_of(tokenizer, f"a {token} b").count(new)
        yield value(f"occurrences_{kind}", times, f"{kind} token: occurrences in a text that has it once", equals=1)
    now = tokenizer.get_vocab()
    changed = sum(now.get(token) != n for token, n in vocabulary.items())
    yield value("changed_ids", changed, "tokens whose id changes", equals=0)


@observation("input_ids", source=f"{_DOCUMENTED}.__call__", cause="the ids of a text depend on the rest of the batch")
def a_batch_is_each_text_alone(subject: Subject) -> Iterator[Value]:
    """Tokenising texts in a batch gives the same ids as tokenising each text on its own."""
    tokenizer = subject.tokenizer
    texts = [*texts_of(subject), *EDGES, ""]
    together = tokenizer(texts, verbose=False)["input_ids"]
    alone = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    yield value("other_ids", differing(together, alone), "texts with other ids", equals=0, unit=f"of {len(texts)}")


@observation(
    "input_ids",
    source=f"{_DOCUMENTED}: padding_side of masked language models",
    cause="rows are padded on the left or with another token, or the attention mask is wrong",
)
def padding_goes_right(subject: Subject) -> Iterator[Value]:
    """Texts are padded on the right to the longest one, and the attention mask covers exactly the real tokens."""
    tokenizer = subject.tokenizer
    if tokenizer.pad_token_id is None:
        raise NotApplicable("the tokenizer has no padding token")
    texts = sorted(texts_of(subject), key=len)
    texts = [texts[0][:40], texts[-1], texts[len(texts) // 2]]
    rows = [list(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    padded = tokenizer(texts, padding=True, return_attention_mask=True, verbose=False)
    width = max(map(len, rows))
    wanted = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
    real = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    yield value("wrong_rows", differing(padded["input_ids"], wanted), "rows padded wrongly", equals=0)
    yield value("wrong_masks", differing(padded["attention_mask"], real), "wrong attention masks", equals=0)


@observation(
    "input_ids",
    source=f"{_DOCUMENTED}: truncation and max_length",
    cause="truncation drops the beginning or the special tokens, or keeps too many tokens",
)
def a_truncated_text_keeps_its_beginning(subject: Subject) -> Iterator[Value]:
    """A truncated text has at most max_length tokens: its first ones, with the special tokens around them."""
    tokenizer = subject.tokenizer
    wrong = longer = 0
    for text in texts_of(subject)[:6]:
        bare, ends = ids_of(tokenizer, text), around(tokenizer, text)
        if ends is None:
            raise NotApplicable("the tokenizer changes the text next to special tokens")
        for length in (6, 9, 16):
            got = list(tokenizer(text, truncation=True, max_length=length, verbose=False)["input_ids"])
            longer += len(got) > length
            wrong += got != [*ends[0], *bare[: max(0, length - len(ends[0]) - len(ends[1]))], *ends[1]]
    yield value("too_long_texts", longer, "truncated texts longer than max_length", equals=0)
    yield value("wrong_beginnings", wrong, "truncated texts that are not their beginning", equals=0)


@observation(
    "input_ids",
    source="tokenizers: offsets are characters of the text that was given",
    cause="a normaliser or pre-tokenizer loses track of the text, so words, spans and whole-word masks are wrong",
)
def offsets_cover_the_text(subject: Subject) -> Iterator[Value]:
    """Token offsets are in order and cover every character except spaces, combining marks and control characters."""
    tokenizer = subject.tokenizer
    if not tokenizer.is_fast:
        raise NotApplicable("a slow (pure Python) tokenizer has no offsets")
    out_of_order = uncovered = 0
    for text in texts_of(subject):
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        out_of_order += starts != sorted(starts) or stops != sorted(stops)
        covered = {place for start, stop in spans for place in range(start, stop)}
        uncovered += sum(
            place not in covered and not character.isspace() and unicodedata.category(character)[0] not in "MC"
            for place, character in enumerate(text)
        )
    yield value("unordered_offsets", out_of_order, "texts with offsets out of order", equals=0)
    yield value("uncovered_characters", uncovered, "characters that no token covers", equals=0)


@observation(
    "input_ids",
    source=f"{_DOCUMENTED}.save_pretrained",
    cause="a part of the tokenizer is not saved, or is loaded differently",
)
def a_saved_tokenizer_is_the_same(subject: Subject) -> Iterator[Value]:
    """Saving and loading a tokenizer preserves its ids, special tokens and limits."""
    one, folder = subject.tokenizer, str(subject.new_folder("tokenizer"))
    one.save_pretrained(folder)
    other = loading.load_tokenizer(folder)
    left, right = contexts_of(subject)[0]
    texts = [*texts_of(subject), *EDGES, f"{left} {one.mask_token}{right}", ""]
    wrong = differing(*([each(text, verbose=False)["input_ids"] for text in texts] for each in (one, other)))
    yield value("other_ids", wrong, "texts with other ids", equals=0, unit=f"of {len(texts)}")
    for what in ("special_tokens_map", "all_special_ids", "model_max_length", "padding_side", "truncation_side"):
        same = plain(getattr(one, what)) == plain(getattr(other, what))
        yield value(f"same_{what}", same, f"{what} is the same", equals=True)
    yield value("same_length", len(one) == len(other), "the number of tokens is the same", equals=True)


@observation(
    "input_ids",
    source="torch.nn.Embedding: an id is a row of the weights",
    cause="ids do not match the embedding: tokens were added, or another model's tokenizer was saved with the weights",
)
def vocabulary_is_whole(subject: Subject) -> Iterator[Value]:
    """Ids run from 0 without gaps, each is one token, and each has a row in the model's embedding."""
    tokenizer = subject.tokenizer
    vocabulary = tokenizer.get_vocab()
    size = len(tokenizer)
    without = sum(not isinstance(token, str) for token in tokenizer.convert_ids_to_tokens(list(range(size))))
    yield value("ids_without_token", without, "ids without a token", equals=0)
    used = set(vocabulary.values())
    yield value("gaps", len(set(range(size)) - used), "gaps in the vocabulary", equals=0)
    yield value("shared_ids", len(vocabulary) - len(used), "tokens that share an id", equals=0)
    last = max(max(ids_of(tokenizer, text), default=0) for text in texts_of(subject))
    yield value("largest_id", last, "largest id in the text", at_most=size - 1, reason="last id of the tokenizer")
    rows = getattr(subject.model.config, "vocab_size", None)
    if rows is not None:
        yield value("length", size, "tokens of the tokenizer", at_most=int(rows), reason="rows of the embedding")
