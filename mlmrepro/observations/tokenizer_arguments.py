"""The tokenizer: which files it comes from, which class, special tokens, decoding, and what is saved."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlmrepro.observations.observation import attempt, json_digest, observation, values
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

__all__ = [
    "adding_tokens",
    "calls_of_old",
    "classes",
    "decoding",
    "edge_texts",
    "from_other_files",
    "saved_files",
    "special_tokens",
]

# Texts on which tokenizers differ.
TEXTS = (
    "The Milky Way is a spiral galaxy.",
    " Leading space, double  space and a tab\t.",
    "Line\nbreak\r\nand none",
    "café e\u0301 naïve — “quotes” … 10\u00a0km",
    "emoji 👩‍🔬 and 日本語",
    "A <mask> here, a<mask>there, <mask> , and <s> inside </s>.",
    "_URL_0_ and don't we'll I've 1,234.5",
    "",
)


def _load(folder: Path | str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), **options)


def _ids(tokenizer: Any) -> list[list[int]]:
    return [list(tokenizer(text)["input_ids"]) for text in TEXTS]


def _part(subject: Subject, name: str, *files: str) -> Path:
    """Return a folder with some of the checkpoint's files."""
    folder = subject.new_folder(name)
    for file in files:
        shutil.copy(Path(subject.checkpoint, file), folder)
    return folder


@observation("input_ids")
def edge_texts(subject: Subject) -> Iterator[Value]:
    """Token ids of texts with odd spaces, accents, emoji, and literal special tokens."""
    yield from values(
        {"ids": _ids(subject.tokenizer), "tokens": subject.tokenizer.convert_ids_to_tokens(_ids(subject.tokenizer)[5])}
    )


@observation("input_ids")
def classes(subject: Subject) -> Iterator[Value]:
    """The class that AutoTokenizer takes, with and without ``use_fast=False``, and whether it is fast."""
    slow = attempt(lambda: _load(subject.checkpoint, use_fast=False))
    yield from values(
        {
            "default": type(subject.tokenizer).__name__,
            "is_fast": subject.tokenizer.is_fast,
            "use_fast_false": slow if isinstance(slow, str) else [type(slow).__name__, bool(slow.is_fast)],
            "use_fast_false_ids": attempt(lambda: _ids(slow) == _ids(subject.tokenizer)),
        }
    )


@observation("input_ids")
def from_other_files(subject: Subject) -> Iterator[Value]:
    """Whether the same token ids come from vocabulary and merges alone, and from tokenizer.json alone."""
    expected = _ids(subject.tokenizer)
    config = ("config.json", "tokenizer_config.json")
    vocabulary = _part(subject, "vocabulary", *config, "vocab.json", "merges.txt")
    no_config = _part(subject, "no_config", "config.json", "vocab.json", "merges.txt")
    single = _part(subject, "single", *config, "tokenizer.json")
    bare = _part(subject, "bare", "tokenizer.json")
    yield from values(
        {
            "vocab_and_merges": attempt(lambda: _ids(_load(vocabulary)) == expected),
            "vocab_and_merges_without_config": attempt(lambda: _ids(_load(no_config)) == expected),
            "vocab_and_merges_max_length": attempt(lambda: int(min(_load(no_config).model_max_length, 10**9))),
            "tokenizer_json": attempt(lambda: _ids(_load(single)) == expected),
            "tokenizer_json_without_config": attempt(lambda: _ids(_load(bare)) == expected),
            "add_prefix_space": attempt(lambda: json_digest(_ids(_load(subject.checkpoint, add_prefix_space=True)))),
            "class_by_name": attempt(lambda: _by_class(vocabulary) == expected),
        }
    )


def _by_class(folder: Path) -> list[list[int]]:
    from transformers import RobertaTokenizer

    return _ids(RobertaTokenizer.from_pretrained(str(folder)))


@observation("input_ids")
def special_tokens(subject: Subject) -> Iterator[Value]:
    """Names, ids and order of the special tokens, and the mask of their positions, also after padding with eos."""
    tokenizer = _load(subject.checkpoint)
    ids = tokenizer(TEXTS[5])["input_ids"]
    before = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    tokenizer.pad_token = tokenizer.eos_token
    yield from values(
        {
            "all": list(tokenizer.all_special_tokens),
            "ids": sorted(set(tokenizer.all_special_ids)),
            "map": {key: str(value) for key, value in sorted(tokenizer.special_tokens_map.items())},
            "positions": before,
            "positions_with_eos_padding": tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True),
            "added_by_build": attempt(lambda: tokenizer.build_inputs_with_special_tokens([9, 10], [11])),
            "max_length": int(min(tokenizer.model_max_length, 10**9)),
        }
    )


@observation("input_ids")
def decoding(subject: Subject) -> Iterator[Value]:
    """What decoding gives back: spaces before punctuation, special tokens left out, and a list of lists."""
    tokenizer = subject.tokenizer
    ids = tokenizer("Hello , world ! It 's <mask> .")["input_ids"]
    folder = _word_pieces(subject)
    words = "do not stop , now !"
    yield from values(
        {
            "text": tokenizer.decode(ids),
            "without_special": tokenizer.decode(ids, skip_special_tokens=True),
            "cleaned_up": attempt(lambda: tokenizer.decode(ids, clean_up_tokenization_spaces=True)),
            "clean_up_default": attempt(lambda: bool(_load(folder).clean_up_tokenization_spaces)),
            "word_pieces": attempt(lambda: _load(folder).decode(_load(folder)(words)["input_ids"])),
            "bert_of_vocab_file": attempt(
                lambda: _bert(folder).convert_ids_to_tokens(_bert(folder)(words)["input_ids"])
            ),
            "of_lists": attempt(lambda: tokenizer.decode([ids[:3], ids[:2]])),
            "of_one_id": tokenizer.decode(ids[1]),
        }
    )


def _word_pieces(subject: Subject) -> Path:
    """Return a folder with a BERT tokenizer of a few words, whose configuration does not mention cleaning up."""
    folder = subject.new_folder("word_pieces")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "do", "not", "stop", ",", "now", "!"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def _bert(folder: Path) -> Any:
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    return BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))


@observation("input_ids")
def saved_files(subject: Subject) -> Iterator[Value]:
    """The files that ``save_pretrained`` writes, and what the class is called in them."""
    import json

    folder = subject.new_folder("saved_tokenizer")
    subject.tokenizer.save_pretrained(str(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    yield from values(
        {
            "names": sorted(path.name for path in folder.iterdir()),
            "class": config.get("tokenizer_class"),
            "config_keys": sorted(config),
            "same_ids": attempt(lambda: _ids(_load(folder)) == _ids(subject.tokenizer)),
        }
    )


@observation("input_ids")
def adding_tokens(subject: Subject) -> Iterator[Value]:
    """The ids that added tokens get, and how a text with one is cut."""
    tokenizer = _load(subject.checkpoint)
    size = len(tokenizer)
    count = tokenizer.add_tokens(["quokka"])
    special = attempt(lambda: tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>"]}))
    ids = tokenizer("a quokka and<ent> b")["input_ids"]
    yield from values(
        {
            "count": [count, special],
            "grown_by": len(tokenizer) - size,
            "text": [i - size if i >= size else i for i in ids],
            "attribute": attempt(lambda: list(tokenizer.additional_special_tokens)),
        }
    )


@observation("input_ids")
def calls_of_old(subject: Subject) -> Iterator[Value]:
    """Whether methods and arguments that older code uses are still there."""
    tokenizer = subject.tokenizer
    yield from values(
        {
            "encode_plus": attempt(lambda: len(tokenizer.encode_plus("a b")["input_ids"])),
            "batch_encode_plus": attempt(lambda: len(tokenizer.batch_encode_plus(["a b"])["input_ids"])),
            "prepare_for_model": attempt(lambda: len(tokenizer.prepare_for_model([5, 6])["input_ids"])),
            "pad_to_max_length": attempt(
                lambda: len(tokenizer("a", max_length=6, pad_to_max_length=True)["input_ids"])
            ),
            "as_target_tokenizer": hasattr(tokenizer, "as_target_tokenizer"),
            "sanitize_special_tokens": hasattr(tokenizer, "sanitize_special_tokens"),
        }
    )
