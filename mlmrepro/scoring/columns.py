"""Find the column of a table that holds the text: decided on many rows, and an error unless it is clear."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlmrepro.config import GuideConfig
from mlmrepro.errors import UserError

__all__ = ["choose_column", "is_data", "is_prose", "is_usual", "joined", "leaves", "sample_of"]

_USUAL = ("text", GuideConfig().text_column, "body", "content", "sentence", "document")
_HALF = 0.5  # of the rows: less prose, or fewer filled rows, is not clearly a text
_RIVAL = 0.2  # of a column's values: a second column with more prose than this may be meant
_BEGINNING = 2000  # characters of a value that are looked at
_LISTED = 20  # columns that an error lists
_SPACED = 5  # words: a longer value that begins with an address is a text about it
_NOT_IN_WORDS = re.compile(r"[\d/\\@_=<>{}|]")
# A list or an object that became a string.
_WRITTEN_LIST = re.compile(
    r"\s*[\[{]\s*((?:[\"'\[{\d-]|(?:none|nan|null|true|false)\b).*)?[\]}]\s*", re.DOTALL | re.IGNORECASE
)
_CODE = re.compile(r"\S*[\d/\\@_:]\S*")  # an address, a path, an id, a number, a date: no spaces, and no word
_DATE = re.compile(r"(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}:\d{2})[T\s]?[\d:.,+TZ -]*(AM|PM|UTC|GMT)?", re.IGNORECASE)


@dataclass
class _Column:
    """The values of one column in the rows looked at."""

    name: str
    rows: int
    values: list[Any] = field(default_factory=list)  # without nulls

    @cached_property
    def texts(self) -> list[str]:
        return [text for value in self.values if (text := joined(value)) and text.strip()]

    @cached_property
    def only_texts(self) -> bool:
        return all(joined(value) is not None for value in self.values)

    @cached_property
    def prose(self) -> float:
        """Share of the filled values that are prose."""
        texts = self.texts
        return sum(map(is_prose, texts)) / len(texts) if texts else 0.0

    @cached_property
    def mostly_filled(self) -> bool:
        return bool(self.texts) and len(self.texts) >= _HALF * self.rows

    @cached_property
    def is_text(self) -> bool:
        return self.only_texts and self.mostly_filled and self.prose >= _HALF

    @cached_property
    def is_varied(self) -> bool:
        return len(set(self.texts)) > _HALF * len(self.texts)

    @cached_property
    def may_be_text(self) -> bool:
        """Whether it holds short texts, such as single words, rather than codes."""
        codes = sum(is_data(text) or _CODE.fullmatch(text) is not None for text in self.texts)
        return self.only_texts and self.mostly_filled and codes < _HALF * len(self.texts)

    @cached_property
    def shown(self) -> str:
        kinds = " and ".join(sorted({type(value).__name__ for value in self.values}))
        return f"{self.name} ({kinds}: {sample_of(self.values[0])})" if self.values else f"{self.name} (null)"


def choose_column(rows: Sequence[dict[str, Any]], source: str) -> str:
    """Return the column that is clearly the text of the rows: one of the usual names, else the only one of prose.

    All values decide, not a single row: at least half of the rows hold strings (or lists of them), and at least half of
    these are prose. Nested columns have dotted names. Raises UserError, which lists the columns with a sample of each,
    if no column or more than one could be the text.
    """
    columns = _columns(rows)
    if len(columns) == 1 and is_usual(columns[0].name) and columns[0].only_texts:
        return columns[0].name  # nothing else can be meant, whatever it holds
    usual = [column for column in columns if is_usual(column.name)]
    texts = [column for column in usual if column.is_text]
    first = [column for column in texts if column.name.lower() == _USUAL[0]]
    texts = first or texts
    if not texts:
        rivals = [column for column in columns if column.prose > _RIVAL]
        texts = [column for column in usual if column.may_be_text and rivals in ([], [column])]
        if not texts and not any(column.may_be_text for column in usual):
            texts = [column for column in rivals if column.is_text and column.is_varied and len(rivals) == 1]
    if len(texts) == 1 and not texts[0].is_varied:
        # The same text in most rows may be an instruction, and another column the actual text.
        texts += [column for column in columns if column is not texts[0] and column.is_text and column.is_varied]
    if len(texts) == 1:
        return texts[0].name
    listed = "; ".join(column.shown for column in columns[:_LISTED])
    more = f"; and {len(columns) - _LISTED} more" if len(columns) > _LISTED else ""
    raise UserError(
        f"{source} has {'more than one column that could be' if texts else 'no column that is clearly'} the text; "
        f"it has {listed}{more}",
        remedy="name the column of texts with --text-column NAME",
    )


def _columns(rows: Sequence[dict[str, Any]]) -> list[_Column]:
    found: dict[str, _Column] = {}
    for row in rows:
        for name, value in leaves(row):
            column = found.setdefault(name, _Column(name, len(rows)))
            if value is not None:
                column.values.append(value)
    # A column of objects that are null in some rows is named by its fields.
    inner = {name for name in found if any(other.startswith(f"{name}.") for other in found)}
    return [column for column in found.values() if column.values or column.name not in inner]


def is_usual(name: str) -> bool:
    """Return whether a column of this name usually holds the texts."""
    return name.strip().lower() in _USUAL


def leaves(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over (dotted name, value) of everything in a row that is not an object itself."""
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def joined(value: Any) -> str | None:
    """Return a string, or a list of strings joined by a space; None for anything else."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return GuideConfig().separator.join(value)
    return value if isinstance(value, str) else None


def is_prose(text: str) -> bool:
    """Return whether a string looks like running text: three words or more, and most of them made of letters.

    In scripts that need no spaces, eight letters are enough.
    """
    if is_data(text):
        return False
    beginning = text[:_BEGINNING]
    words = beginning.split()
    if not beginning.isascii() and sum(unicodedata.category(c) == "Lo" for c in beginning) >= 8:
        return True
    letters = sum(any(map(str.isalpha, word)) and not _NOT_IN_WORDS.search(word) for word in words)
    return letters >= 3 and letters > 0.6 * len(words)


def is_data(text: str) -> bool:
    """Return whether a string is a number, a date, an address, a path, or a list that was written as a string."""
    text = text[:_BEGINNING].strip()
    if _DATE.fullmatch(text) or _WRITTEN_LIST.fullmatch(text):
        return True
    if "://" in text.partition(" ")[0] and len(text.split()) <= _SPACED:
        return True
    try:
        float(text.replace(",", "."))
    except ValueError:
        return len(text.split()) == 1 and any(c in text for c in "/\\@")
    return True


def sample_of(value: Any) -> str:
    """Return the beginning of a value, in one line."""
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
