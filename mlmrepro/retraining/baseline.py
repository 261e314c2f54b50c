"""The baseline: a text, its mask plan, and the old checkpoint's loss on each masked token and word.

A folder of three files, so that a check needs neither the old checkpoint nor the file that the text came from:
``baseline.json`` (settings, figures, provenance, and a checksum of everything), ``documents.jsonl`` and
``scores.safetensors``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmrepro.checkpoint_folder import Unused
from mlmrepro.errors import UserError, first_line
from mlmrepro.files import check_writable
from mlmrepro.gate.result import Prediction, Rounded
from mlmrepro.scores import Scores
from mlmrepro.scoring.documents import Document

__all__ = ["MANIFEST", "SCHEMA", "Baseline", "ProbeRows", "check_target", "first_difference"]

SCHEMA = 1
MANIFEST = "baseline.json"
_DOCUMENTS = "documents.jsonl"
_SCORES = "scores.safetensors"


@dataclass(frozen=True)
class ProbeRows:
    """A prompt and what the old checkpoint filled in, best first."""

    prompt: str
    expected: str
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class Baseline:
    """All that a check needs of the old checkpoint."""

    documents: tuple[Document, ...]
    ids: tuple[NDArray[np.int32], ...]  # token ids of each document, to detect a changed tokenizer
    tokens: Scores
    token_draws: NDArray[np.int32]  # the pass that masks each of them: with `tokens` this is the mask plan
    words: Scores
    word_draws: NDArray[np.int32]
    probes: tuple[ProbeRows, ...]
    settings: dict[str, Any]  # mask rate, seed, max_length, dtype, mask token
    about: dict[str, Any]  # checkpoint, weights, their digests rounded to each format, what was unused, packages, text

    def write(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the folder whole or not at all.

        Raises UserError if the folder already holds something; `overwrite` replaces another baseline.
        """
        check_target(folder, overwrite=overwrite)
        folder = folder.resolve()  # replace what a link points to, not the link
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            whole = work / "new"
            whole.mkdir()
            contents = {_DOCUMENTS: self._documents(), _SCORES: self._arrays()}
            for name, content in contents.items():
                _write(whole / name, content)
            manifest = {
                "schema": SCHEMA,
                "about": self.about,
                "settings": self.settings,
                "probes": [dataclasses.asdict(probe) for probe in self.probes],
                "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            }
            manifest["checksum"] = _checksum(manifest)
            _write(whole / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
            if folder.exists():
                os.replace(folder, work / "old")
            os.replace(whole, folder)
        finally:
            if (work / "old").exists() and not folder.exists():
                os.replace(work / "old", folder)
            shutil.rmtree(work, ignore_errors=True)

    def rounding(self, rounded: Callable[[str], str], dtype: str) -> Rounded | None:
        """Return how a candidate differs from this checkpoint by number format alone, None if it differs otherwise.

        `rounded` gives the digest of the candidate's weights, rounded to a format, and of its configuration; `dtype` is
        the format that it is scored in. Also None for a baseline of an earlier version, which has no such digests.
        """
        before, ours = self.about.get("rounded"), self.settings["dtype"]
        if not before:
            return None
        if (now := rounded("float32")) == before["float32"]:
            narrow = next((name for name in (dtype, ours) if name != "float32"), dtype)
            return Rounded("evaluation", narrow) if dtype != ours else None
        for name in before:
            if now == before[name]:
                return Rounded("candidate", name)
            if rounded(name) == before["float32"]:
                return Rounded("baseline", name)
        return None

    @property
    def unused(self) -> list[Unused]:
        """What was in the old checkpoint's folder, but not used for the losses."""
        return [
            Unused(each["kind"], tuple(each["names"]), each["used"], "baseline")
            for each in self.about.get("unused", ())
        ]

    def _documents(self) -> bytes:
        rows = (json.dumps(dataclasses.asdict(document), ensure_ascii=False) for document in self.documents)
        return "".join(f"{row}\n" for row in rows).encode("utf-8", "surrogatepass")

    def _arrays(self) -> bytes:
        from safetensors.numpy import save

        arrays = {f"tokens.{f.name}": getattr(self.tokens, f.name) for f in dataclasses.fields(Scores)}
        arrays |= {f"words.{f.name}": getattr(self.words, f.name) for f in dataclasses.fields(Scores)}
        arrays |= {"tokens.draw": self.token_draws, "words.draw": self.word_draws}
        arrays["ids"] = np.concatenate(self.ids)
        arrays["lengths"] = np.array([len(ids) for ids in self.ids], dtype=np.int32)
        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    @classmethod
    def read(cls, folder: Path) -> Baseline:
        """Read a baseline; raises UserError if it is absent, of another schema, damaged, or edited by hand."""
        manifest = _manifest(folder)
        contents = {}
        for name in (_DOCUMENTS, _SCORES):
            try:
                contents[name] = (folder / name).read_bytes()
            except OSError as error:
                raise _damaged(folder / name, str(error.strerror)) from error
            if hashlib.sha256(contents[name]).hexdigest() != manifest["files"].get(name):
                raise _damaged(folder / name, "its content is not what baseline.json says")
        try:
            return cls._of(manifest, contents)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folder, f"{type(error).__name__}: {first_line(error)}") from error

    @classmethod
    def _of(cls, manifest: dict[str, Any], contents: dict[str, bytes]) -> Baseline:
        from safetensors.numpy import load

        arrays = load(contents[_SCORES])
        text = contents[_DOCUMENTS].decode("utf-8", "surrogatepass")
        names = [f.name for f in dataclasses.fields(Scores)]
        return cls(
            documents=tuple(Document(**json.loads(line)) for line in text.split("\n") if line),
            ids=tuple(np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])),
            tokens=Scores(**{name: arrays[f"tokens.{name}"] for name in names}),
            token_draws=arrays["tokens.draw"],
            words=Scores(**{name: arrays[f"words.{name}"] for name in names}),
            word_draws=arrays["words.draw"],
            probes=tuple(
                ProbeRows(probe["prompt"], probe["expected"], tuple(Prediction(**row) for row in probe["predictions"]))
                for probe in manifest["probes"]
            ),
            settings=manifest["settings"],
            about=manifest["about"],
        )


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError if a baseline cannot be written to `folder` without losing what it holds."""
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if (folder.exists() and not folder.is_dir()) or inside - {MANIFEST, _DOCUMENTS, _SCORES}:
        raise UserError(f"{folder} exists and holds something other than a baseline", remedy="give -o a new folder")
    if inside and not overwrite:
        raise UserError(
            f"{folder} already holds a baseline", remedy="give -o a new folder, or --overwrite to replace it"
        )
    check_writable(folder.resolve().parent / MANIFEST)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} holds no baseline" if folder.is_dir() else f"the baseline {folder} does not exist",
            remedy="give the folder that mlmrepro baseline wrote (-o)",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {first_line(error)}") from error
    if schema != SCHEMA:
        raise UserError(
            f"{path} is a baseline of schema {schema}, but this version reads schema {SCHEMA}",
            remedy="make it again with mlmrepro baseline",
        )
    if manifest.get("checksum") != _checksum(manifest) or not isinstance(manifest.get("files"), dict):
        raise UserError(
            f"{path} was edited by hand or damaged: its checksum differs",
            remedy="restore the file (git checkout), or make the baseline again with mlmrepro baseline",
        )
    return manifest


def _checksum(manifest: dict[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is truncated, damaged or edited: {reason}",
        remedy="restore the file (git checkout), or make the baseline again with mlmrepro baseline",
    )


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def first_difference(before: Sequence[NDArray[np.int32]], after: Sequence[NDArray[np.int32]]) -> int | None:
    """Return the first document whose token ids differ, None if all are equal."""
    pairs = enumerate(zip(before, after, strict=True))
    return next((n for n, (old, new) in pairs if not np.array_equal(old, new)), None)
