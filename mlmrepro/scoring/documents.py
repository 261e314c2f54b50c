"""Read the text of an evaluation: a table's column of texts, or plain text, as documents."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mlmrepro.config import EMBEDDED, GuideConfig
from mlmrepro.errors import UserError
from mlmrepro.scoring.columns import choose_column, joined, leaves
from mlmrepro.scoring.tables import LOOKED_AT, Row, read_table

__all__ = ["Document", "Text", "read_text"]

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold one; UTF-8 and so the tokenizers cannot


@dataclass(frozen=True)
class Document:
    """The unit of the statistics: the tokens of one document are not independent of each other."""

    name: str
    text: str
    topic: str = ""


@dataclass(frozen=True)
class Text:
    """The documents of an evaluation, and notes on what was chosen by default and what was left out."""

    source: str
    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()
    column: str = ""  # that holds the texts; "" if the source is not a table


def read_text(
    source: str | Path,
    *,
    column: str | None = None,
    topic: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Text:
    """Return the documents of a file, of a folder of files, of a saved data set, or of "embedded".

    In a .txt file a blank line ends a document; without blank lines, each line is one. In a folder of .txt files each
    file is one. `column` names the column of texts, which may hold lists of strings (they are joined by a space) and
    may be nested (``answers.text``); by default it is the column that is clearly the text, and a note names it. `topic`
    names a column whose values the report lists separately; `limit` takes only the first documents. Rows without text
    and repeated texts are left out, and notes count them.

    Raises UserError if the source cannot be read, has no such column or split, or holds no text, or if it is not clear
    which column is the text.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the limit is {limit} documents", remedy="give 1 or more")
    name = str(source)
    if name == "embedded":
        source, column = EMBEDDED / "data" / "askscience.jsonl", column or GuideConfig().text_column
    table = read_table(Path(source), column=column, split=split)
    if column is not None and table.plain and column != "text":
        raise UserError(
            f"the text {name} is not a table, so it has no column {column!r}", remedy="leave --text-column out"
        )
    notes = list(table.notes)
    rows = table.rows
    if table.plain:
        column = "text"
    elif column is None:
        looked_at = list(islice(rows, LOOKED_AT))
        if looked_at:
            column = choose_column([row.cells for row in looked_at], name)
            notes.append(f"the text of {name} is in its column {column!r}")
        rows = chain(looked_at, rows)
    documents, left_out = _collected(rows, column or "", topic, limit)
    if not documents:
        raise UserError(f"the text {name} is empty", remedy="give a file with text")
    notes += [f"{n} {kind if n == 1 else many} left out of {name}" for (kind, many), n in left_out.items() if n]
    return Text(name, tuple(documents), tuple(notes), "" if table.plain else column or "")


def _collected(
    rows: Iterable[Row], column: str, topic: str | None, limit: int | None
) -> tuple[list[Document], dict[tuple[str, str], int]]:
    """Return the documents, and how many rows of which kind (its name in singular and plural) were left out."""
    documents: list[Document] = []
    seen: set[str] = set()
    null = (f"row with null in {column!r}", f"rows with null in {column!r}")
    empty, repeated = (("empty document", "empty documents"), ("repeated document", "repeated documents"))
    left_out = dict.fromkeys((null, empty, repeated), 0)
    for row in rows:
        if limit is not None and len(documents) == limit:
            break
        content = _cell(row.cells, column, row.where)
        text = "" if content is None else _text(content, column, row.where)
        if content is None:
            left_out[null] += 1
        elif not text.strip():
            left_out[empty] += 1
        elif text in seen:
            left_out[repeated] += 1
        else:
            seen.add(text)
            about = None if topic is None else _cell(row.cells, topic, row.where)
            documents.append(Document(row.name, text, "" if about is None else str(about)))
    return documents, left_out


def _cell(row: dict[str, Any], column: str, where: str) -> Any:
    cells, rest = row, column
    while rest not in cells:
        first, _, rest = rest.partition(".")
        inner = cells.get(first)
        if rest and first in cells and inner is None:
            return None  # an object that is null holds nulls
        if not rest or not isinstance(inner, dict):
            raise UserError(
                f"{where} has no column {column!r}; it has {', '.join(name for name, _ in leaves(row))}",
                remedy="name one that every row has with --text-column or --topic-column",
            )
        cells = inner
    return cells[rest]


def _text(content: Any, column: str, where: str) -> str:
    text = joined(content)
    if text is None:
        raise UserError(
            f"{where} holds {type(content).__name__} in the column {column!r}, not a text or a list of texts",
            remedy="write it as a text, leave the row out, or name another column with --text-column",
        )
    if _SURROGATE.search(text):
        raise UserError(
            f"{where} holds half a character (a lone surrogate) in the column {column!r}",
            remedy="write the text again from its source",
        )
    return text
