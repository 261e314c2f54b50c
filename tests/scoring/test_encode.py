"""From texts to tokens, words and windows, with every kind of tokenizer."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import EsmTokenizer, PreTrainedTokenizerFast

from mlmrepro.config import EMBEDDED
from mlmrepro.errors import UserError
from mlmrepro.loading import load_tokenizer
from mlmrepro.scoring.encode import Encoded, Encoder, unmasked, words_of

from . import tiny

PIECE, BYTES = tiny.word_piece(), tiny.byte_level()
_words = st.sampled_from(
    ["the", "unseen", "turning", "zyx", "sea,", "[MASK]", "<mask>", "é", "水水水", "🙂", "icy-cold;"]
)
_spaces = st.sampled_from([" ", "  ", "\n", " \t\n", "\u00a0", "\u2003"])
texts = st.lists(st.tuples(_words, _spaces), max_size=40).map(lambda parts: "".join(map("".join, parts)))
EACH = pytest.mark.parametrize("tokenizer", [PIECE, BYTES], ids=["WordPiece", "bytes"])


def _pieces(text: str, document: Encoded) -> list[str]:
    return [text[start:stop] for start, stop in pairwise([0, *document.ends.tolist()])]


@EACH
@settings(max_examples=40)
@given(texts, st.integers(4, 30))
def test_windows_hold_each_token_once_and_fit_the_model(tokenizer: Any, text: str, max_length: int) -> None:
    """One window follows the other; none, with its special tokens, is longer than the model reads."""
    encoder = Encoder(tokenizer, max_length)
    (document,) = encoder.encode([text])
    covered = [place for start, stop in document.windows for place in range(start, stop)]
    assert covered == list(range(len(document)))
    for start, stop in document.windows:
        assert 2 < len(encoder.with_special_tokens(document.ids[start:stop])) <= max_length
    fewest = -(-len(document) // encoder.room)
    assert fewest <= len(document.windows) <= max(2 * fewest, 1)


@EACH
@settings(max_examples=40)
@given(texts, st.integers(16, 30))
def test_windows_are_cut_between_words(tokenizer: Any, text: str, max_length: int) -> None:
    """No word that is shorter than half a window lies in two of them."""
    (document,) = Encoder(tokenizer, max_length).encode([text])
    for _, stop in document.windows[:-1]:
        assert document.words[stop - 1] != document.words[stop]


def test_a_word_longer_than_a_window_is_cut_where_it_must_be() -> None:
    """A text without spaces is scored none the less."""
    (document,) = Encoder(BYTES, 12).encode(["x" * 25])
    assert [stop - start for start, stop in document.windows] == [9, 8, 8]


def test_windows_cost_what_their_text_costs() -> None:
    """Eight times the document takes about eight times as long: looking through all of it for each window took 64."""

    def seconds(words: int) -> float:
        indices, encoder, best = np.arange(words, dtype=np.int32), Encoder(BYTES, 12), float("inf")
        for _ in range(3):
            started = time.process_time()
            encoder._windows(indices)
            best = min(best, time.process_time() - started)
        return best

    assert seconds(80_000) < 24 * seconds(10_000)


@EACH
@settings(max_examples=40)
@given(texts)
def test_ends_take_the_text_apart_and_words_are_those_of_white_space(tokenizer: Any, text: str) -> None:
    """From end to end the pieces join up to the text, and each lies in the word that it is said to belong to."""
    (document,) = Encoder(tokenizer, 30).encode([text])
    assert (np.diff(document.ends, prepend=0) >= 0).all()
    rest = text[int(document.ends[-1]) :] if len(document) else text
    assert "".join(_pieces(text, document)) + rest == text
    words = words_of(text)
    if len(document):
        assert not rest.strip()
        assert sorted(set(document.words.tolist())) == list(range(len(words)))
    for word, piece in zip(document.words, _pieces(text, document), strict=True):
        assert piece.strip() in words[word]


@EACH
def test_ids_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    """A document's tokens, and a window with what stands around it, are what the tokenizer itself gives."""
    encoder = Encoder(tokenizer, 200)
    for text, document in zip(tiny.TEXTS, encoder.encode(tiny.TEXTS), strict=True):
        assert document.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert encoder.with_special_tokens(document.ids) == tokenizer(text)["input_ids"]
        assert document.windows == ((0, len(document)),)


def test_what_may_not_be_masked_is_marked() -> None:
    """Unknown words and special tokens that a text spells out are not maskable; all else is."""
    (document,) = Encoder(PIECE, 40).encode(["the zyx [MASK] sea [SEP]"])
    assert document.maskable.tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("around", "make"),
    [
        (("<s>", "</s>"), lambda folder: BYTES),
        (("[CLS]", "[SEP]"), lambda folder: PIECE),
        (("<cls>", "<eos>"), tiny.esm),
        (("<s>", "</s>"), lambda folder: load_tokenizer(str(EMBEDDED / "checkpoint"))),
    ],
    ids=["RoBERTa", "BERT", "ESM", "embedded"],
)
def test_special_tokens_stand_around_a_window(tmp_path: Path, around: tuple[str, str], make: Any) -> None:
    """Before and behind a window is what the tokenizer puts there."""
    tokenizer = make(tmp_path)
    encoder = Encoder(tokenizer, 30)
    assert tokenizer.convert_ids_to_tokens(encoder.prefix) == [around[0]]
    assert tokenizer.convert_ids_to_tokens(encoder.suffix) == [around[1]]
    assert encoder.room == 28


def test_nothing_stands_around_a_window_where_the_tokenizer_puts_nothing() -> None:
    """A tokenizer without a template gives windows as long as the model reads."""
    core = tiny.word_level(["a", "b"]).backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=core, mask_token="<mask>", unk_token="<unk>"), 30)
    assert (encoder.prefix, encoder.suffix, encoder.room) == ([], [], 30)


def test_proteins_are_read_with_the_tokenizer_of_esm(tmp_path: Path) -> None:
    """It exists in Python only and tells no offsets; they are found all the same, with unknown and special tokens."""
    tokenizer = tiny.esm(tmp_path)
    assert not tokenizer.is_fast
    texts = ["MKTAYIAK", "MK TA\n\nYI ", "MKJ<mask>AK", ""]
    documents = Encoder(tokenizer, 8).encode(texts)
    for text, document in zip(texts, documents, strict=True):
        assert document.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(_pieces(text, document)) == text.rstrip()
    assert documents[0].windows == ((0, 4), (4, 8))
    assert documents[1].words.tolist() == [0, 0, 1, 1, 2, 2]
    assert documents[2].maskable.tolist() == [True, True, False, False, True, True]
    assert _pieces(texts[2], documents[2]) == ["M", "K", "J", "<mask>", "A", "K"]


def test_a_slow_tokenizer_that_changes_the_spelling_is_read_by_words(tmp_path: Path) -> None:
    """Where letters do not add up to the word, its first token stands for all of it."""

    class Doubling(EsmTokenizer):
        def _tokenize(self, text: str, **settings: Any) -> list[str]:
            return [letter.upper() for word in text.split() for letter in (*word, word[0])]

    tiny.esm(tmp_path)
    (document,) = Encoder(Doubling(str(tmp_path / "vocab.txt")), 20).encode(["mk t"])
    assert document.words.tolist() == [0, 0, 0, 1, 1]
    assert _pieces("mk t", document) == ["mk", "", "", " t", ""]


def test_a_slow_tokenizer_that_looks_beyond_words_is_refused(tmp_path: Path) -> None:
    """Where words one by one give other tokens than the whole text, nobody can say which token stands where."""

    class Backwards(EsmTokenizer):
        def _tokenize(self, text: str, **settings: Any) -> list[str]:
            return [letter.upper() for letter in reversed(text.replace(" ", ""))]

    tiny.esm(tmp_path)
    encoder = Encoder(Backwards(str(tmp_path / "vocab.txt")), 20)
    assert len(encoder.encode(["mk"])[0]) == 2
    with pytest.raises(UserError) as error:
        encoder.encode(["mk t"])
    assert error.value.problem == "Backwards cannot say where in the text each token stands"
    assert error.value.remedy == "give a checkpoint with a tokenizer.json"


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    """A causal model's tokenizer has nothing to mask with."""
    core = tiny.word_level(["a"]).backend_tokenizer
    with pytest.raises(
        UserError, match=r"^the tokenizer has no mask token. Remedy: give a masked language model's tok"
    ):
        Encoder(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"), 20)


def test_a_tokenizer_that_alters_text_between_its_special_tokens_is_refused() -> None:
    """Windows are put together from tokens: a template that leaves the text out would be read wrongly."""
    core = tiny.word_level(["a"]).backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single="<s> </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    with pytest.raises(
        UserError, match=r"^the tokenizer changes a text when it adds special tokens. Remedy: use a stan"
    ):
        Encoder(PreTrainedTokenizerFast(tokenizer_object=core, mask_token="<mask>"), 20)


def test_a_length_without_room_is_refused() -> None:
    """Two special tokens and one other: there is nothing that the masked token could be told from."""
    with pytest.raises(UserError, match=r"^max_length is 3, too short for two tokens. Remedy: give a larger one.$"):
        Encoder(PIECE, 3)
    assert Encoder(PIECE, 4).room == 2


def test_what_is_never_masked_is_counted() -> None:
    """Unknown words and written-out special tokens of all texts together are one note; where there are none, none."""
    encoder = Encoder(PIECE, 40)
    assert unmasked(encoder.encode(["the moon zyx", "[MASK] is wet", "zyx"])) == [
        "3 tokens of the text are special or unknown to the tokenizer, and never masked"
    ]
    assert unmasked(encoder.encode(["the moon is wet"])) == []
