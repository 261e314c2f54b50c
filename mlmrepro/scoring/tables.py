"""Read files and folders as one table: rows of named cells, each with its place in the source."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mlmrepro.errors import UserError, first_line
from mlmrepro.scoring.columns import is_data, is_prose, is_usual, sample_of

__all__ = ["KINDS", "LOOKED_AT", "Row", "Table", "read_table"]

KINDS = ".txt, .jsonl, .json, .csv, .tsv or .parquet, all but the last also with .gz"
LOOKED_AT = 1000  # rows by which a header or a column is judged
_TESTS = ("test", "validation", "valid", "val", "dev", "eval")  # splits that are taken by default, in this order
_SPLITS = {"train", "training", "evaluation", *_TESTS}
_SHARD = re.compile(r"(.+?)-\d+-of-\d+.*")  # train-00000-of-00002.parquet
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class Row(NamedTuple):
    """One row of a table."""

    where: str  # file and line, for errors
    name: str  # of the document
    cells: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows, read one by one as needed, and notes on what was decided about the source."""

    rows: Iterator[Row]
    notes: tuple[str, ...] = ()
    plain: bool = False  # the only column is "text", which the file itself does not name


def read_table(path: Path, *, column: str | None = None, split: str | None = None) -> Table:
    """Return the rows of a file, of a folder of files of one kind, or of a folder that `save_to_disk` wrote.

    If the first line of a CSV file contains `column`, it is a header. Raises UserError if the source cannot be read or
    has an unknown format.
    """
    if path.is_dir():
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        return _saved_data_set(path, split) if saved else _folder(path, column, split)
    if not path.is_file():
        raise UserError(
            f"the text {path} does not exist", remedy=f"give a file ({KINDS}), a folder or a saved data set"
        )
    if split is not None:
        raise UserError(f"the text {path} is a file, which has no splits", remedy="leave --split out")
    kind = _kind(path)
    if kind is None:
        raise UserError(f"the text {path} has an unknown format", remedy=f"give a file that ends in {KINDS}")
    return Table(_READERS[kind](path, column), plain=kind == ".txt")


def _kind(path: Path) -> str | None:
    """Return the ending that decides how a file is read, without .gz."""
    suffix = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    return suffix if suffix in _READERS and (suffix != ".parquet" or path.suffix.lower() != ".gz") else None


def _folder(path: Path, column: str | None, split: str | None) -> Table:
    # What Spark and others put next to their files begins with a dot or an underscore.
    inside = sorted(each for each in path.iterdir() if not each.name.startswith((".", "_")))
    if not inside:
        raise UserError(f"the folder {path} is empty", remedy=f"give a folder of files ({KINDS}) or a saved data set")
    kinds = Counter(_kind(each) if each.is_file() else "folders" for each in inside)
    if len(kinds) > 1 or None in kinds or "folders" in kinds:
        listed = ", ".join(f"{each.name}/" if each.is_dir() else each.name for each in inside[:8])
        more = f" and {len(inside) - 8} more" if len(inside) > 8 else ""
        raise UserError(
            f"the folder {path} does not hold files of one known kind; it has {listed}{more}",
            remedy=f"give one of them, or a folder with nothing but files of one kind ({KINDS})",
        )
    (kind,) = kinds
    files, notes = _of_split(path, inside, split)
    if kind == ".txt" and not any(map(_split_name, files)):
        notes.append(f"each of the {len(files)} text files in {path} is one document")
        return Table(map(_whole, files), tuple(notes), plain=True)
    notes.append(f"{len(files)} {kind} file{'s' if len(files) > 1 else ''} of {path} read, in the order of their names")
    return Table(_chained(files, column), tuple(notes), plain=kind == ".txt")


def _chained(files: Iterable[Path], column: str | None) -> Iterator[Row]:
    for file in files:
        for row in _READERS[_kind(file) or ""](file, column):
            yield row._replace(name=f"{file.name}:{row.name}")


def _of_split(path: Path, files: list[Path], split: str | None) -> tuple[list[Path], list[str]]:
    """Return the files of one split, if the files are named after splits, and a note that says so."""
    names = {file: _split_name(file) for file in files}
    splits = list(dict.fromkeys(name for name in names.values() if name))
    if not splits:
        if split is not None:
            raise UserError(f"the files of {path} are not named after splits", remedy="leave --split out")
        return files, []
    if None in names.values():
        other = next(file.name for file, name in names.items() if name is None)
        raise UserError(
            f"the folder {path} has the splits {', '.join(splits)}, and {other} belongs to none of them",
            remedy="give one of the files, or move the others away",
        )
    chosen = _chosen(f"the folder {path}", splits, split)
    return [file for file, name in names.items() if name == chosen], _split_note(path, chosen, splits)


def _split_name(file: Path) -> str | None:
    stem = file.name.split(".")[0]
    shard = _SHARD.fullmatch(stem)
    return shard.group(1) if shard else stem if stem.lower() in _SPLITS else None


def _chosen(what: str, splits: list[str], split: str | None) -> str:
    only = splits[0] if len(splits) == 1 else ""
    chosen = split or next((name for name in _TESTS if name in splits), only)
    if chosen not in splits:
        raise UserError(
            f"{what} has the splits {', '.join(splits)}, not {chosen or 'test'!r}",
            remedy="name one of them with --split",
        )
    return chosen


def _split_note(path: Path, chosen: str, splits: list[str]) -> list[str]:
    return [f"the split {chosen!r} of {path} is read (it has {', '.join(splits)})"] if len(splits) > 1 else []


def _saved_data_set(path: Path, split: str | None) -> Table:
    import datasets

    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(
            f"the folder {path} is not a saved data set: {first_line(error)}",
            remedy="give a folder that datasets' save_to_disk wrote, or a file",
        ) from error
    notes: list[str] = []
    if isinstance(rows, datasets.DatasetDict):
        chosen = _chosen(f"the data set {path}", list(rows), split)
        notes = _split_note(path, chosen, list(rows))
        rows = rows[chosen]
    elif split is not None:
        raise UserError(f"the data set {path} has no splits", remedy="leave --split out")
    return Table((Row(f"{path}, row {n}", str(n), row) for n, row in enumerate(rows, start=1)), tuple(notes))


def _whole(path: Path) -> Row:
    return Row(str(path), path.name, {"text": _decoded(path)})


def _plain(path: Path, column: str | None) -> Iterator[Row]:
    lines = _decoded(path).split("\n")  # not splitlines: it takes U+2028 or a form feed for the end of a line
    groups = groupby(enumerate(lines, start=1), key=lambda numbered: bool(numbered[1].strip()))
    blocks = [list(group) for filled, group in groups if filled]
    if len(blocks) == 1:
        blocks = [[numbered] for numbered in blocks[0]]
    if blocks and all(_is_object(line) for _, line in blocks[0]):
        raise UserError(f"{path} holds JSON, one object per line", remedy="rename it to .jsonl")
    for block in blocks:
        n = block[0][0]
        yield Row(f"{path}, line {n}", str(n), {"text": "\n".join(line for _, line in block)})


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _decoded(path: Path) -> str:
    """Return the text of a file in UTF-8, compressed by gzip or not, with line feeds as line ends."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz" or content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is not a gzip file, or is truncated: {first_line(error)}", remedy="copy it again, or unpack it"
        ) from error
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise UserError(f"{path} ends within a character: it is truncated", remedy="copy it again") from error
        raise UserError(f"{path} is not UTF-8: byte {error.start} is invalid", remedy="save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}", remedy="make it readable") from error
    if "\0" in text:
        raise UserError(f"{path} holds null bytes, so it is not text in UTF-8", remedy="save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json_lines(path: Path, column: str | None) -> Iterator[Row]:
    for n, line in enumerate(_decoded(path).split("\n"), start=1):  # U+2028 may stand in a JSON string
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_doubles)
            if not isinstance(row, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {n} is not a JSON object: {first_line(error)}",
                remedy="rename it to .json: it holds one list"
                if n == 1 and line.lstrip().startswith("[")
                else "write one object per line; copy a truncated file again",
            ) from error
        yield Row(f"{path}, line {n}", str(n), row)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the name {_double(name for name, _ in pairs)!r} occurs twice in one object")
    return row


def _double(names: Iterable[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _json(path: Path, column: str | None) -> Iterator[Row]:
    """Read a list of objects, an object of columns, or JSON lines in a file named .json."""
    try:
        content = json.loads(_decoded(path), object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _json_lines(path, column)
            return
        raise UserError(
            f"{path} is not valid JSON: {first_line(error)}",
            remedy="write the file again, or copy it again if truncated",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON table: {first_line(error)}", remedy="write the file again") from error
    if isinstance(content, dict):
        columns = list(content.values())
        same = columns and all(isinstance(each, dict) and each.keys() == columns[0].keys() for each in columns)
        if same and all(map(str.isdigit, columns[0])):  # as pandas' to_json writes them, by row number
            columns = [list(each.values()) for each in columns]
        if not (columns and all(isinstance(each, list) and len(each) == len(columns[0]) for each in columns)):
            raise UserError(
                f"{path} is an object but not a table; it has {', '.join(content)}",
                remedy="give a list of objects, columns of equal length, or one object per line (.jsonl)",
            )
        content = [dict(zip(content, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if not isinstance(content, list):
        raise UserError(f"{path} holds one {type(content).__name__}", remedy="give a list of objects")
    for n, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {n} is not an object but {sample_of(row)}", remedy="give a list of objects")
        yield Row(f"{path}, row {n}", str(n), row)


def _csv(path: Path, column: str | None) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # else 128 KiB: a document may be longer
    text = _decoded(path)
    said = re.match(r"sep=([^\n])\n", text)  # Excel's first line
    text = text[said.end() :] if said else text
    try:
        separator = said[1] if said else _separator(path, text)
        records = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        filled = (record for record in records if record)
        header = next(filled, [])
        looked_at = list(islice(filled, LOOKED_AT))
        _check_header(path, header, looked_at, column)
        _check_quotes(path, text, separator, len(header))
        for n, record in enumerate((*looked_at, *filled), start=1):
            if len(record) != len(header):
                raise UserError(
                    f"{path}, row {n} has a different number of cells than the header",
                    remedy=f"quote texts that hold the separator, which is one of {', '.join(_SEPARATORS.values())}",
                )
            yield Row(f"{path}, row {n}", str(n), dict(zip(header, record, strict=True)))
    except csv.Error as error:
        raise UserError(
            f"{path} is not valid CSV: {first_line(error)}", remedy="give a header and quoted cells"
        ) from error


def _separator(path: Path, text: str) -> str:
    """Return the cell separator: the one in the header that cuts every row into the same number of cells."""
    native = "\t" if _kind(path) == ".tsv" else ","

    def sizes(separator: str) -> list[int]:
        records = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        found: list[int] = []
        try:
            found.extend(len(record) for record in islice(filter(None, records), LOOKED_AT))
        except csv.Error:
            found.append(0)  # cells that end elsewhere than at this separator
        return found

    found = {each: counts for each in _SEPARATORS if (counts := sizes(each)) and counts[0] > 1}
    even = [each for each, counts in found.items() if len(set(counts)) == 1]
    if len(even) > 1:
        raise UserError(
            f"{path} may be separated by {' or '.join(_SEPARATORS[each] for each in even)}",
            remedy="rename the columns so that the header holds only one of them, or give .jsonl",
        )
    if even:
        return even[0]
    return native if native in found or not found else next(iter(found))


def _check_quotes(path: Path, text: str, separator: str, cells: int) -> None:
    """Raise if quotation marks join lines that each have as many cells as the header."""
    lines = list(islice(filter(str.strip, io.StringIO(text)), LOOKED_AT + 1))
    if cells < 2 or any(line.count(separator) != cells - 1 for line in lines):
        return
    if (rows := sum(1 for _ in csv.reader(lines, delimiter=separator))) < len(lines):
        raise UserError(
            f"{path} has {len(lines)} lines of {cells} cells each, which quotation marks join into {rows} rows",
            remedy='double each quotation mark within a quoted cell ("a ""b"" c"), or give .jsonl',
        )


def _check_header(path: Path, header: list[str], records: list[list[str]], column: str | None) -> None:
    """Raise if the first line may not be a header, or if it names two columns alike."""
    if (double := _double(header)) is not None:
        raise UserError(
            f"{path} has two columns named {double!r}; its header is {', '.join(header)}",
            remedy="give each column a name of its own",
        )
    if column in header or any(map(is_usual, header)):
        return
    if len(header) == 1 and (mark := _other_separator(header[0], [record[0] for record in records])):
        raise UserError(
            f"{path} seems to be separated by {mark!r}: its header is {header[0]}",
            remedy=f"separate the cells by {', '.join(_SEPARATORS.values())}; if it is one column, name it with "
            "--text-column NAME",
        )
    for n, name in enumerate(header):
        values = [record[n] for record in records if len(record) > n]
        if name and (_is_value(name) or name in values or _is_like(name, values)):
            raise UserError(
                f"the first line of {path} may not be a header: {sample_of(name)} looks like the values below it",
                remedy="put a line of column names first, such as text; if it is a header, name the column "
                "of texts with --text-column NAME",
            )


def _other_separator(header: str, lines: list[str]) -> str:
    """Return the mark between the names of a header that each line below has at least as often; "" for none."""
    marks = re.findall(r"[^\w\s'\"().-]+|\s{2,}|[\x00-\x1f]+", header.strip())
    return next((mark for mark in marks if all(line.count(mark) >= header.count(mark) for line in lines)), "")


def _is_value(name: str) -> bool:
    return is_data(name) or (is_prose(name) and (name.rstrip()[-1] in ".!?" or len(name.split()) > 5))


def _is_like(name: str, values: list[str]) -> bool:
    """Return whether a name of several words is about as long as the texts below it."""
    prose = [len(value.split()) for value in values if is_prose(value)]
    words = len(name.split())
    return words > 1 and len(prose) > len(values) / 2 and 2 * words > median(prose)


def _parquet(path: Path, column: str | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if (double := _double(file.schema_arrow.names)) is not None:
                raise UserError(f"{path} has two columns named {double!r}", remedy="give each column a name of its own")
            n = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    n += 1
                    yield Row(f"{path}, row {n}", str(n), row)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}", remedy="write the Parquet file again") from error


_READERS: dict[str, Callable[[Path, str | None], Iterator[Row]]] = {
    ".txt": _plain,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
