"""The tokenizer's laws: held by tokenizers of every kind, and each broken by what people and releases do to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.vocabulary import around, differing, letters, whole_words, without_spaces

from . import held

LAWS = held.names("tokenizer")
Patch = pytest.MonkeyPatch


# What a tokenizer of characters has not.
WITHOUT = {"esm": {"tokens_a_word", "words_of_the_vocabulary", "offsets_cover_the_text"}}


@pytest.mark.parametrize("kind", [*held.KINDS, "esm"])
def test_holds_on_every_kind(kind: str, tmp_path: Path) -> None:
    """Bytes, word pieces with and without capitals, unigram models and letters of proteins keep the laws alike."""
    subject = held.subject(tmp_path, held.checkpoint(kind, tmp_path))
    verdicts = {law: held.measure(law, subject) for law in LAWS}
    missing = {law for law, result in verdicts.items() if result.verdict is BoundVerdict.NOT_APPLICABLE}
    assert missing == WITHOUT.get(kind, set())
    for law in set(LAWS) - missing:
        assert verdicts[law].verdict is BoundVerdict.HOLDS, f"{law}: {held.broken(verdicts[law])}"


def _replace(pattern: str, by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": by}


def _without_token(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    del vocabulary[next(token for token in reversed(vocabulary) if token.startswith("##"))]


def _unmarked(mask: dict[str, Any]) -> None:
    mask["lstrip"] = False


# kind of tokenizer, law that breaks, what of it, and how tokenizer.json is changed
EDITS: dict[str, tuple[str, str, str, Callable[[dict[str, Any]], Any]]] = {
    "merges lost": ("bytes", "tokens_a_word", "tokens per word", lambda c: c["model"].update(merges=[])),
    "the last twentieth of the merges lost": (
        "bytes",
        "words_of_the_vocabulary",
        "lower case",
        lambda c: c["model"].update(merges=c["model"]["merges"][: -len(c["model"]["merges"]) // 20]),
    ),
    "capitals made small": (
        "bytes",
        "words_of_the_vocabulary",
        "with capitals",
        lambda c: c.update(normalizer={"type": "Lowercase"}),
    ),
    "digits thrown away": ("bytes", "text_round_trips", "digits", lambda c: c.update(normalizer=_replace("[0-9]", ""))),
    "the decoder lost": ("bytes", "text_round_trips", "come back changed", lambda c: c.update(decoder=None)),
    "a decoder that doubles spaces": (
        "bytes",
        "text_round_trips",
        "come back changed",
        lambda c: c.update(decoder={"type": "Sequence", "decoders": [c["decoder"], _literal(" ", "  ")]}),
    ),
    "lstrip off": (
        "bytes",
        "mask_takes_the_space",
        "around the mask",
        lambda c: _unmarked(next(each for each in c["added_tokens"] if each["content"] == "[MASK]")),
    ),
    "the template lost": (
        "unigram",
        "special_tokens_stand_around",
        "text starts with its own CLS token = False",
        lambda c: c.update(post_processor=None),
    ),
    "the separator lost": (
        "WordPiece",
        "special_tokens_stand_around",
        "text ends with its own SEP token = False",
        lambda c: c["post_processor"]["single"].pop(),
    ),
    "long words given up": (
        "WordPiece",
        "no_unknown_tokens",
        "characters are all known",
        lambda c: c["model"].update(max_input_chars_per_word=6),
    ),
    "capitals not made small": (
        "WordPiece of small letters",
        "no_unknown_tokens",
        "share of unknown words",
        lambda c: c["normalizer"].update(lowercase=False),
    ),
    "a gap": ("WordPiece", "vocabulary_is_whole", "gaps", _without_token),
}


def _literal(pattern: str, by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": by}


@pytest.mark.parametrize("edit", EDITS)
def test_a_changed_file_breaks_a_law(edit: str, tmp_path: Path) -> None:
    """A tokenizer.json that lost something is told by the law that speaks of it, with the number."""
    kind, law, what, change = EDITS[edit]
    held.assert_broken(law, held.subject(tmp_path, held.checkpoint(kind, tmp_path, change)), what)


@pytest.mark.parametrize(
    ("law", "what", "options"),
    [
        ("padding_goes_right", "rows padded wrongly", {"padding_side": "left"}),
        ("a_truncated_text_keeps_its_beginning", "not their beginning", {"truncation_side": "left"}),
        ("vocabulary_is_whole", "tokens of the tokenizer", {"rows": 1}),
    ],
)
def test_another_setting_breaks_a_law(law: str, what: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Padding or cutting on the left, and a model with too few embeddings, are told."""
    held.assert_broken(law, held.subject(tmp_path, held.checkpoint("WordPiece", tmp_path, **options)), what)


def _call(patch: Patch, kind: type, change: Callable[[Any, Any], Any]) -> None:
    """Let `change(text, encoding)` touch what the tokenizer gives."""
    original = kind.__call__  # type: ignore[operator]

    def call(self: Any, text: Any, *args: Any, **options: Any) -> Any:
        encoding = original(self, text, *args, **options)
        change(text, encoding)
        return encoding

    patch.setattr(kind, "__call__", call)


def _shorter_in_a_batch(patch: Patch, kind: type) -> None:
    def cut(text: Any, encoding: Any) -> None:
        if isinstance(text, list):
            encoding["input_ids"] = [ids[:-1] for ids in encoding["input_ids"]]

    _call(patch, kind, cut)


def _longer_than_asked(patch: Patch, kind: type) -> None:
    original = kind.__call__  # type: ignore[operator]

    def call(self: Any, text: Any, **options: Any) -> Any:
        if options.get("max_length"):
            options["max_length"] += 1
        return original(self, text, **options)

    patch.setattr(kind, "__call__", call)


def _offsets(change: Callable[[list[Any]], list[Any]]) -> Callable[[Patch, type], None]:
    def moved(text: Any, encoding: Any) -> None:
        if "offset_mapping" in encoding:
            encoding["offset_mapping"] = change(encoding["offset_mapping"])

    return lambda patch, kind: _call(patch, kind, moved)


def _attended(patch: Patch, kind: type) -> None:
    def change(text: Any, encoding: Any) -> None:
        if isinstance(text, list):
            encoding["attention_mask"] = [[1] * len(row) for row in encoding["input_ids"]]

    _call(patch, kind, change)


def _mask_of(change: Callable[[list[int]], list[int]]) -> Callable[[Patch, type], None]:
    def plant(patch: Patch, kind: type) -> None:
        patch.setattr(kind, "get_special_tokens_mask", lambda self, ids, *args, **options: change(ids))

    return plant


def _adds(others: Callable[[list[str]], list[str]]) -> Callable[[Patch, type], None]:
    def plant(patch: Patch, kind: type) -> None:
        original = kind.add_tokens  # type: ignore[attr-defined]

        def add(self: Any, new: list[Any], *args: Any, **options: Any) -> Any:
            asked = any("zqx" in str(token) for token in new)  # loading adds tokens too
            return original(self, others(new) if asked else new, *args, **options)

        patch.setattr(kind, "add_tokens", add)

    return plant


def saves_without_merges(patch: Patch, kind: type) -> None:
    """Let `save_pretrained` lose the merges of tokenizer.json."""
    original = kind.save_pretrained  # type: ignore[attr-defined]

    def save(self: Any, folder: str, *args: Any, **options: Any) -> Any:
        written = original(self, folder, *args, **options)
        path = Path(folder) / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["model"]["merges"] = []
        path.write_text(json.dumps(content), encoding="utf-8")
        return written

    patch.setattr(kind, "save_pretrained", save)


PLANTS: dict[str, tuple[str, str, Callable[[Patch, type], None]]] = {
    "a batch cut": ("a_batch_is_each_text_alone", "with other ids", _shorter_in_a_batch),
    "one more than asked": ("a_truncated_text_keeps_its_beginning", "longer than max_length", _longer_than_asked),
    "offsets reversed": ("offsets_cover_the_text", "out of order", _offsets(lambda pairs: pairs[::-1])),
    "offsets one short": (
        "offsets_cover_the_text",
        "no token covers",
        _offsets(lambda pairs: [(start, max(start, stop - 1)) for start, stop in pairs]),
    ),
    "padding attended": ("padding_goes_right", "wrong attention masks", _attended),
    "no special tokens": ("special_tokens_are_marked", "from the ids", _mask_of(lambda ids: [0] * len(ids))),
    "only the ends are special": (
        "special_tokens_in_a_text",
        "special tokens that are not marked = [CLS]",
        _mask_of(lambda ids: [int(n in (0, len(ids) - 1)) for n in range(len(ids))]),
    ),
    "a word of the text added": ("adding_a_token_moves_none", "texts with other ids", _adds(lambda new: [*new, "the"])),
    "an id left out": ("adding_a_token_moves_none", "after the last id = 2", _adds(lambda new: ["filler", *new])),
    "merges not saved": ("a_saved_tokenizer_is_the_same", "with other ids", saves_without_merges),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_changed_tokenizer_breaks_a_law(plant: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """A method that does something else is told by the law that speaks of it, with the number."""
    law, what, change = PLANTS[plant]
    subject = held.subject(tmp_path, held.checkpoint("bytes", tmp_path))
    change(monkeypatch, type(subject.tokenizer))
    held.assert_broken(law, subject, what)


def test_every_law_is_broken_by_something() -> None:
    """No law of the group is without a fault that it tells."""
    told = {law for _, law, _, _ in EDITS.values()} | {law for law, _, _ in PLANTS.values()}
    assert set(LAWS) - told == set()


def test_text_without_spaces_has_no_words(tmp_path: Path) -> None:
    """Where nothing separates words, the tokens per word are not measured."""
    subject = held.subject(tmp_path)
    subject.texts = tuple("".join(text.split()) for text in subject.texts)
    result = held.measure("tokens_a_word", subject)
    assert result.verdict is BoundVerdict.NOT_APPLICABLE
    assert "no spaces" in result.problem


@settings(max_examples=50)
@given(st.text(max_size=12), st.text(max_size=12))
def test_letters_are_what_case_and_spaces_leave(one: str, other: str) -> None:
    """Letters do not depend on case, spaces or marks, and letters of texts put together are put together."""
    assert letters(f"{one} ({other})") == letters(one) + letters(other)
    assert letters(letters(one)) == letters(one)
    assert without_spaces(f"▁{one} \n") == without_spaces(one)


def test_helpers_tell_what_they_say(embedded: Subject) -> None:
    """Differences are counted, tokens around a text are found, words are whole ones of letters."""
    assert differing([[1], (2,), "ab"], [[1], [3], "ab"]) == 1
    with pytest.raises(ValueError, match=r"shorter|longer"):
        differing([1], [])
    tokenizer = embedded.tokenizer
    assert around(tokenizer, "The moon") == ([tokenizer.bos_token_id], [tokenizer.eos_token_id])
    words = dict(whole_words(tokenizer))
    assert " galaxy" in words.values()
    assert not any(token in tokenizer.all_special_ids for token in words)
    assert all(word.strip().isalpha() for word in words.values())
