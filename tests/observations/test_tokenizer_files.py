"""The ids of tokenizer.json come back from every class and set of files, and each law is broken where they do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version

from mlmrepro.config import EMBEDDED
from mlmrepro.observations.result import BoundVerdict
from mlmrepro.observations.subject import Subject

from . import held
from .test_tokenizer import saves_without_merges

LAWS = held.names("tokenizer_files")
WAYS, FILES, SAVED = LAWS


@pytest.mark.parametrize("kind", held.KINDS)
def test_the_laws_hold_on_every_kind(kind: str, tmp_path: Path) -> None:
    """A generic tokenizer of any kind gives the ids of its file."""
    subject = held.subject(tmp_path, held.checkpoint(kind, tmp_path))
    assert {law: held.measure(law, subject).verdict for law in LAWS} == dict.fromkeys(LAWS, BoundVerdict.HOLDS)


def test_a_checkpoint_without_the_file_has_no_reference(tmp_path: Path) -> None:
    """ESM's letters come from vocab.txt alone."""
    subject = held.subject(tmp_path, held.checkpoint("esm", tmp_path))
    assert {held.measure(law, subject).verdict for law in LAWS} == {BoundVerdict.NOT_APPLICABLE}


def _copy(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Subject:
    """Return the embedded checkpoint with another tokenizer.json, as `edit` changes it."""
    path = Path(shutil.copytree(EMBEDDED / "checkpoint", folder / "copy"))
    content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    edit(content)
    (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return held.subject(folder, path)


def _digits(content: dict[str, Any]) -> None:
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}


def _cut_and_padded(content: dict[str, Any]) -> None:
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}


def test_stored_truncation_and_padding_are_no_breach(tmp_path: Path) -> None:
    """A tokenizer.json may say how a training cut and padded; that changes no law's verdict."""
    subject = _copy(tmp_path, _cut_and_padded)
    assert all(not held.measure(law, subject).verdict.fails for law in LAWS)


def test_a_pre_tokenizer_that_the_class_replaces_is_seen(tmp_path: Path) -> None:
    """With transformers 5 a RoBERTa that splits digits has other ids through AutoTokenizer and through its class."""
    subject = _copy(tmp_path, _digits)
    loaded, files, saved = (held.measure(law, subject) for law in LAWS)
    replaced = Version(transformers.__version__) >= Version("5.0")
    assert loaded.verdict is (BoundVerdict.BROKEN if replaced else BoundVerdict.HOLDS)
    assert "44462" in loaded.cause
    wrong = {each.slug for each in loaded.broken}
    assert wrong == ({"other_ids_auto_tokenizer", "other_ids_named_class"} if replaced else set())
    # vocab.json and merges.txt hold no pre-tokenizer in any version.
    assert files.verdict is BoundVerdict.BROKEN
    assert any("vocab.json" in each.slug for each in files.broken)
    assert saved.verdict is (BoundVerdict.BROKEN if replaced else BoundVerdict.HOLDS)


def test_a_class_that_gives_other_ids_is_seen(embedded: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any version: what the class does to the text is held against the file."""
    kind = type(embedded.tokenizer)
    original = kind.__call__

    def call(self: Any, text: Any, **options: Any) -> Any:
        return original(self, [each.lower() for each in text], **options)

    monkeypatch.setattr(kind, "__call__", call)
    held.assert_broken(WAYS, embedded, "with other ids, loaded by AutoTokenizer")


def test_vocabulary_files_of_another_tokenizer_are_seen(tmp_path: Path) -> None:
    """A merges.txt that lost its end gives other ids than tokenizer.json, to whoever loads it."""
    subject = _copy(tmp_path, lambda content: None)
    merges = Path(subject.checkpoint) / "merges.txt"
    lines = merges.read_text(encoding="utf-8").splitlines()
    merges.write_text("\n".join(lines[: len(lines) // 2]) + "\n", encoding="utf-8")
    held.assert_broken(FILES, subject, "vocab.json, merges.txt, tokenizer_config.json, config.json")
    assert held.measure(WAYS, subject).verdict is BoundVerdict.HOLDS


def test_a_mask_made_from_vocabulary_files_is_known(embedded: Subject) -> None:
    """Since transformers 5 it leaves the space before it alone: known for RoBERTa there, a breach in other versions."""
    now = held.measure(FILES, embedded)
    if Version(transformers.__version__) < Version("5.0"):
        assert now.verdict is BoundVerdict.HOLDS
        return
    assert now.verdict is BoundVerdict.KNOWN
    assert held.measure(FILES, embedded, "4.57.6").verdict is BoundVerdict.BROKEN


def test_word_pieces_from_vocab_txt_give_the_ids(tmp_path: Path) -> None:
    """BERT's vocab.txt, with and without tokenizer_config.json, is as good as tokenizer.json."""
    path = held.checkpoint("WordPiece of small letters", tmp_path)
    vocabulary = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    mask = next(each for each in vocabulary["added_tokens"] if each["content"] == "[MASK]")
    tokens = {**vocabulary["model"]["vocab"], "[MASK]": mask["id"]}
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(tokens, key=tokens.__getitem__)), "utf-8")
    mask["lstrip"] = False  # as BERT's own
    (path / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "special_tokens_map.json").unlink(missing_ok=True)
    result = held.measure(FILES, held.subject(tmp_path, path))
    assert {each.slug for each in result.values} >= {
        "other_ids_vocab.txt_tokenizer_config",
        "other_ids_vocab.txt_config",
    }
    assert result.verdict is BoundVerdict.HOLDS, held.broken(result)


def test_a_file_that_saving_changes_is_seen(embedded: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """tokenizer.json without its merges gives other ids, whatever transformers makes of it."""
    saves_without_merges(monkeypatch, type(embedded.tokenizer))
    held.assert_broken(SAVED, embedded, "in the file saved by AutoTokenizer")
