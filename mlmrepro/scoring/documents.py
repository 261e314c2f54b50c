"""Read the text of an evaluation: plain text, JSON lines, CSV, Parquet, or a saved data set."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mlmrepro.config import EMBEDDED, GuideConfig
from mlmrepro.errors import UserError, first_line

__all__ = ["Document", "Text", "read_text"]

_KINDS = ".txt, .jsonl, .csv, .parquet"
_NAMES = ("text", GuideConfig().text_column, "content", "sentence", "document")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold one; UTF-8 and so the tokenizers cannot
_TESTS = ("test", "validation", "eval")  # the split that is taken where a data set has several


@dataclass(frozen=True)
class Document:
    """What is resampled as a whole: the tokens of one document are not independent of each other."""

    name: str
    text: str
    topic: str = ""


@dataclass(frozen=True)
class Text:
    """The documents of an evaluation, and what was left out of them."""

    source: str
    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()


def read_text(
    source: str | Path,
    *,
    column: str | None = None,
    topic: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Text:
    """Return the documents of a file, of a folder that datasets' `save_to_disk` wrote, or of "embedded".

    In a .txt file a blank line ends a document; where there is none, each line is one. `column` names the column of
    texts, which may hold lists of strings (they are joined by a space) and may lie in another one
    (``answers.text``). `topic` names a column whose values the report tells apart, `limit` takes the first documents.
    Empty documents and repeated ones are left out, and said so.

    Raises UserError where the source cannot be read, has no such column or split, or holds no text.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the limit is {limit} documents", remedy="give 1 or more")
    name = str(source)
    path = EMBEDDED / "data" / "askscience.jsonl" if name == "embedded" else Path(source)
    if path.is_dir():
        rows: Iterable[tuple[str, dict[str, Any]]] = _saved_data_set(path, split)
    elif not path.is_file():
        raise UserError(f"the text {name} does not exist", remedy=f"give a file ({_KINDS}) or a saved data set")
    elif split is not None:
        raise UserError(f"the text {name} is a file, which has no splits", remedy="leave --split out")
    elif path.suffix.lower() == ".txt":
        rows = _plain(path)
        column = "text"
    elif path.suffix.lower() in _READERS:
        rows = _READERS[path.suffix.lower()](path)
    else:
        raise UserError(f"the text {name} is of no known kind", remedy=f"give a file that ends in {_KINDS}")
    return _collected(name, rows, column, topic, limit)


def _collected(
    source: str, rows: Iterable[tuple[str, dict[str, Any]]], column: str | None, topic: str | None, limit: int | None
) -> Text:
    documents: list[Document] = []
    seen: set[str] = set()
    empty = repeated = 0
    for where, row in rows:
        if limit is not None and len(documents) == limit:
            break
        if column is None:
            column = _text_column(row, where)
        text = _joined(_cell(row, column, where), column, where)
        if not text.strip():
            empty += 1
        elif text in seen:
            repeated += 1
        else:
            seen.add(text)
            about = None if topic is None else _cell(row, topic, where)
            documents.append(Document(where.rpartition(" ")[2], text, "" if about is None else str(about)))
    if not documents:
        raise UserError(f"the text {source} is empty", remedy="give a file with text")
    left_out = ((empty, "empty document"), (repeated, "repeated document"))
    notes = tuple(f"{n} {kind}{'s' if n > 1 else ''} left out of {source}" for n, kind in left_out if n)
    return Text(source, tuple(documents), notes)


def _text_column(row: dict[str, Any], where: str) -> str:
    """Return the column of texts where none is named: one of the usual names, else the only one of strings."""
    for name in _NAMES:
        if _found(row, name):
            return name
    strings = [name for name, content in row.items() if isinstance(content, str)]
    if len(strings) == 1:
        return strings[0]
    raise UserError(f"{where} has no column 'text'; it has {', '.join(row)}", remedy="name it with --text-column")


def _found(row: dict[str, Any], column: str) -> bool:
    if column in row:
        return True
    first, _, rest = column.partition(".")
    return bool(rest) and isinstance(row.get(first), dict) and _found(row[first], rest)


def _cell(row: dict[str, Any], column: str, where: str) -> Any:
    if not _found(row, column):
        raise UserError(
            f"{where} has no column {column!r}; it has {', '.join(row)}",
            remedy="name one that every row has with --text-column or --topic-column",
        )
    first, _, rest = column.partition(".")
    return row[column] if column in row else _cell(row[first], rest, where)


def _joined(content: Any, column: str, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, str) for part in content):
        content = GuideConfig().separator.join(content)
    if not isinstance(content, str):
        raise UserError(
            f"{where} holds {type(content).__name__} in the column {column!r}, not a text or a list of texts",
            remedy="name the column of texts with --text-column",
        )
    if _SURROGATE.search(content):
        raise UserError(
            f"{where} holds half a character (a lone surrogate) in the column {column!r}",
            remedy="write the text again from its source",
        )
    return content


def _plain(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = _decoded(path).split("\n")  # not splitlines: it takes U+2028 or a form feed for the end of a line
    groups = groupby(enumerate(lines, start=1), key=lambda numbered: bool(numbered[1].strip()))
    blocks = [list(group) for filled, group in groups if filled]
    if len(blocks) == 1:
        blocks = [[numbered] for numbered in blocks[0]]
    for block in blocks:
        yield f"{path}, line {block[0][0]}", {"text": "\n".join(line for _, line in block)}


def _decoded(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise UserError(f"{path} ends within a character: it is truncated", remedy="copy it again") from error
        raise UserError(f"{path} is not UTF-8: byte {error.start} is no text", remedy="save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}", remedy="make it readable") from error
    if "\0" in text:
        raise UserError(f"{path} holds null bytes, as no text in UTF-8 does", remedy="save it as UTF-8")
    return text


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for n, line in enumerate(_decoded(path).split("\n"), start=1):  # U+2028 may stand in a JSON string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {n} is no JSON object: {first_line(error)}",
                remedy="give one object a line; a truncated file has to be copied again",
            ) from error
        yield f"{path}, line {n}", row


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # else 128 KiB: a document may be longer
    try:
        reader = csv.DictReader(io.StringIO(_decoded(path)), strict=True)
        for n, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, row {n} has not as many cells as the header", remedy="quote texts that hold commas"
                )
            yield f"{path}, row {n}", dict(row)
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {first_line(error)}", remedy="give a header and quoted cells") from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            n = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    n += 1
                    yield f"{path}, row {n}", row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}", remedy="write the Parquet file again") from error


def _saved_data_set(path: Path, split: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(
            f"the folder {path} is no saved data set: {first_line(error)}",
            remedy="give a folder that datasets' save_to_disk wrote, or a file",
        ) from error
    if isinstance(rows, datasets.DatasetDict):
        chosen = split or next((name for name in _TESTS if name in rows), next(iter(rows)) if len(rows) == 1 else "")
        if chosen not in rows:
            raise UserError(
                f"the data set {path} has the splits {', '.join(rows)}, not {chosen or 'test'!r}",
                remedy="name one of them with --split",
            )
        rows = rows[chosen]
    elif split is not None:
        raise UserError(f"the data set {path} has no splits", remedy="leave --split out")
    for n, row in enumerate(rows, start=1):
        yield f"{path}, row {n}", row


_READERS = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
