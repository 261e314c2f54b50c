"""Loading the tokenizer: with any class and any set of files, it gives the ids of tokenizer.json.

The reference is the tokenizers library, which reads only tokenizer.json. transformers reads the same file, but may
rebuild parts of it from the settings of a class.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlmrepro.observations.observation import NotApplicable, observation, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.vocabulary import EDGES, contexts_of, differing, texts_of

__all__ = ["every_set_of_files_gives_the_ids", "every_way_of_loading_gives_the_ids", "saving_keeps_the_ids_of_the_file"]

_DOCUMENTED = "https://huggingface.co/docs/tokenizers/api/tokenizer#tokenizers.Tokenizer.from_file"
_CAUSE = (
    "the tokenizer's class builds the normaliser, pre-tokenizer or special tokens from its own settings instead of "
    "tokenizer.json (https://github.com/huggingface/transformers/issues/44462); "
    "PreTrainedTokenizerFast(tokenizer_file=...) uses the file as it is"
)
_REASON = "discrete values: the file alone decides"
_WAYS = {
    "auto_tokenizer": "AutoTokenizer",
    "generic_class": "PreTrainedTokenizerFast(tokenizer_file)",
    "named_class": "the class of tokenizer_config.json",
}
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_CONFIG = "config.json"
# Vocabularies of SentencePiece are left out: their conversion needs another package.
_VOCABULARIES = (("vocab.json", "merges.txt"), ("vocab.txt",))
# Pre-tokenizers differ in how they split digits and letters that are next to each other.
_PROBES = ("In 2023 it cost 1234567.89 (a 10x rise): see §3.2, eq.12b", "camelCase snake_case AI-based U.S.A. 3rd")


def _texts(subject: Subject) -> list[str]:
    left, right = contexts_of(subject)[0]
    mask = subject.tokenizer.mask_token
    return [*texts_of(subject), *EDGES, *_PROBES, f"{left} {mask}{right}", f"{left}{mask}{right}", ""]


def _by_the_file(path: Path | None, texts: list[str]) -> list[list[int]]:
    """Return the ids that tokenizer.json gives, neither truncated nor padded; raises NotApplicable without the file."""
    from tokenizers import Tokenizer

    if path is None:
        raise NotApplicable("the checkpoint has no tokenizer.json")
    core = Tokenizer.from_file(str(path))
    core.no_truncation()
    core.no_padding()
    return [encoding.ids for encoding in core.encode_batch(texts)]


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]


def _agreeing(slug: str, title: str, found: list[list[int]], expected: list[list[int]]) -> Value:
    return value(slug, differing(found, expected), title, equals=0, unit=f"of {len(expected)}", reason=_REASON)


def _with(subject: Subject, name: str, *names: str) -> str:
    """Return a new folder with copies of these files, as far as the checkpoint has them."""
    folder = subject.new_folder(name)
    for each in names:
        if (path := subject.file(each)) is not None:
            shutil.copyfile(path, folder / each)
    return str(folder)


def _settings(subject: Subject) -> dict[str, Any]:
    path = subject.file(_SETTINGS[0])
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))


def _named_class(subject: Subject) -> Any:
    """Return the tokenizer class that tokenizer_config.json names, preferably its fast version, or None."""
    import transformers

    name = str(_settings(subject).get("tokenizer_class", "")).removesuffix("Fast")
    return getattr(transformers, f"{name}Fast", None) or getattr(transformers, name, None)


def _is_plain(kind: Any) -> bool:
    """Return whether this is the class that takes any tokenizer.json (TokenizersBackend since transformers 5)."""
    import transformers

    return kind in (transformers.PreTrainedTokenizerFast, getattr(transformers, "TokenizersBackend", None))


def _takes_defaults(subject: Subject, kind: Any) -> bool:
    """Return whether the settings of the checkpoint's tokenizer are the defaults of its class."""

    def content(value: Any) -> str:
        return str(value["content"] if isinstance(value, dict) and "content" in value else value)

    settings = _settings(subject)
    defaults = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}
    return all(content(settings[name]) == content(defaults[name]) for name in defaults if name in settings)


def _loading(subject: Subject) -> dict[str, Callable[[], Any]]:
    """Return the ways of loading the checkpoint's tokenizer, by slug."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    named, file = _named_class(subject), subject.file("tokenizer.json")
    ways: dict[str, Callable[[], Any]] = {
        "auto_tokenizer": lambda: AutoTokenizer.from_pretrained(subject.checkpoint, trust_remote_code=False),
        "generic_class": lambda: PreTrainedTokenizerFast(tokenizer_file=str(file)),
    }
    if named is not None and not _is_plain(named):
        ways["named_class"] = lambda: named.from_pretrained(subject.checkpoint)
    return ways


@observation("input_ids", source=_DOCUMENTED, cause=_CAUSE)
def every_way_of_loading_gives_the_ids(subject: Subject) -> Iterator[Value]:
    """Loaded by AutoTokenizer, its class or PreTrainedTokenizerFast, the tokenizer gives the ids of tokenizer.json."""
    texts = _texts(subject)
    expected = _by_the_file(subject.file("tokenizer.json"), texts)
    for way, load in _loading(subject).items():
        title = f"texts with other ids, loaded by {_WAYS[way]}"
        yield _agreeing(f"other_ids_{way}", title, ids_of(load(), texts), expected)


@observation(
    "input_ids",
    source=_DOCUMENTED,
    cause=f"{_CAUSE}; or the vocabulary files and tokenizer.json belong to different tokenizers",
)
def every_set_of_files_gives_the_ids(subject: Subject) -> Iterator[Value]:
    """Loaded from any sufficient set of its files, the tokenizer gives the ids of tokenizer.json."""
    from transformers import AutoTokenizer

    texts, named = _texts(subject), _named_class(subject)
    expected = _by_the_file(subject.file("tokenizer.json"), texts)
    sets: dict[str, tuple[str, ...]]
    sets = {"tokenizer.json_tokenizer_config": ("tokenizer.json", *_SETTINGS)} if named is not None else {}
    # Leave tokenizer_config.json out only if nothing is lost: its settings must be the defaults of the class.
    bare = named is not None and not _is_plain(named) and _takes_defaults(subject, named)
    if bare:
        sets["tokenizer.json_config"] = ("tokenizer.json", _CONFIG)
    for vocabulary in _VOCABULARIES:
        if named is None or _is_plain(named) or any(subject.file(name) is None for name in vocabulary):
            continue
        sets[f"{vocabulary[0]}_tokenizer_config"] = (*vocabulary, *_SETTINGS, _CONFIG)
        if bare:
            sets[f"{vocabulary[0]}_config"] = (*vocabulary, _CONFIG)
    if not sets:
        raise NotApplicable("the checkpoint has tokenizer.json alone")
    for which, names in sets.items():
        tokenizer = AutoTokenizer.from_pretrained(_with(subject, "files", *names), trust_remote_code=False)
        files = ", ".join(name for name in names if name not in _SETTINGS[1:])
        title = f"texts with other ids, loaded from {files}"
        yield _agreeing(f"other_ids_{which}", title, ids_of(tokenizer, texts), expected)


@observation("input_ids", source=f"{_DOCUMENTED}; transformers.PreTrainedTokenizerBase.save_pretrained", cause=_CAUSE)
def saving_keeps_the_ids_of_the_file(subject: Subject) -> Iterator[Value]:
    """After loading and saving the tokenizer, the new files give the ids of the old tokenizer.json."""
    from transformers import AutoTokenizer

    texts = _texts(subject)
    expected = _by_the_file(subject.file("tokenizer.json"), texts)
    for way, load in _loading(subject).items():
        folder = subject.new_folder("saved")
        load().save_pretrained(str(folder))
        found = _by_the_file(folder / "tokenizer.json", texts)
        title = f"texts with other ids in the file saved by {_WAYS[way]}"
        yield _agreeing(f"other_ids_saved_{way}", title, found, expected)
        again = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        title = f"texts with other ids after saving by {_WAYS[way]} and loading again"
        yield _agreeing(f"other_ids_reloaded_{way}", title, ids_of(again, texts), expected)
