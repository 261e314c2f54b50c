"""Reading files and folders: each kind gives the same rows, and what may be misread is refused or said aloud."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro.errors import UserError
from mlmrepro.scoring.documents import Text, read_text
from mlmrepro.scoring.tables import read_table

SENTENCES = [
    "The keeper wrote the hour into his book.",
    'Then he trimmed "the wick", slowly;\nand went up the stairs.',
    "A ship, far out, answered\tfrom the dark | twice.",
]


def _texts(text: Text) -> list[str]:
    return [document.text for document in text.documents]


def _separated(rows: list[list[str]], separator: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(rows)
    return out.getvalue()


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


ROWS = [{"id": f"row-{n}", "sentence": text} for n, text in enumerate(SENTENCES)]
COLUMNS = {"id": [row["id"] for row in ROWS], "sentence": SENTENCES}
TABLE = [["id", "sentence"], *([row["id"], row["sentence"]] for row in ROWS)]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
PANDAS = {name: {str(n): cell for n, cell in enumerate(cells)} for name, cells in COLUMNS.items()}
FILES = {
    "t.jsonl": JSON_LINES,
    "t.jsonl.gz": JSON_LINES,
    "T.JSONL.GZ": gzip.compress(JSON_LINES.encode()),
    "t.json": json.dumps(ROWS, indent=1),
    "t.json.gz": json.dumps(ROWS),
    "columns.json": json.dumps(COLUMNS),
    "pandas.json": json.dumps(PANDAS),
    "lines.json": JSON_LINES,
    "t.csv": _separated(TABLE, ","),
    "t.csv.gz": _separated(TABLE, ","),
    "bom.csv": "\ufeff" + _separated(TABLE, ","),
    "semicolons.csv": _separated(TABLE, ";"),
    "tabs.csv": _separated(TABLE, "\t"),
    "bars.csv": _separated(TABLE, "|"),
    "t.tsv": _separated(TABLE, "\t"),
    "t.tsv.gz": _separated(TABLE, "\t"),
    "commas.tsv": _separated(TABLE, ","),
    "compressed.csv": gzip.compress(_separated(TABLE, ",").encode()),  # by its content, whatever its name
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    """Compressed or not, whatever separates the cells: the sentences come back, and their column is named."""
    path = _write(tmp_path / name, FILES[name])
    text = read_text(path)
    assert _texts(text) == SENTENCES
    assert (text.column, text.notes) == ("sentence", (f"the text of {path} is in its column 'sentence'",))


@pytest.mark.parametrize("name", ["t.txt.gz", "T.TXT.gz"])
def test_plain_text_may_be_compressed(tmp_path: Path, name: str) -> None:
    """A blank line ends a document, as in a file that is not compressed."""
    assert _texts(read_text(_write(tmp_path / name, "one\ntwo\n\nthree\n"))) == ["one\ntwo", "three"]


_CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)


@given(
    st.lists(st.tuples(_CELL, _CELL), min_size=1, max_size=5),
    st.sampled_from(",;\t|"),
    st.sampled_from([".csv", ".tsv"]),
)
def test_any_cells_come_back_whatever_separates_them(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], separator: str, ending: str
) -> None:
    """Cells that hold other separators, quotes and line ends are read as they were written."""
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_text(_separated([["id", "text"], *map(list, cells)], separator), encoding="utf-8", newline="")
    assert [tuple(row.cells.values()) for row in read_table(path).rows] == cells


FOLDERS: dict[str, Callable[[Path], object]] = {
    "parquet": lambda d: [_parquet(d / "a.parquet", ROWS[:2]), _parquet(d / "b.parquet", ROWS[2:])],
    "json lines": lambda d: [_write(d / "a.jsonl", JSON_LINES.splitlines()[0]), _write(d / "b.jsonl.gz", JSON_LINES)],
    "csv": lambda d: [_write(d / "a.csv", _separated(TABLE, ",")), _write(d / "_SUCCESS", ""), _write(d / ".x", "")],
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_files_of_one_kind_is_one_table(tmp_path: Path, kind: str) -> None:
    """Files are read in the order of their names; what other tools leave next to them is not."""
    FOLDERS[kind](tmp_path / "d")
    text = read_text(tmp_path / "d")
    assert _texts(text) == SENTENCES
    assert text.documents[0].name.startswith("a.")
    assert f"of {tmp_path / 'd'} read, in the order of their names" in text.notes[0]
    assert len({document.name for document in text.documents}) == 3


def test_each_text_file_of_a_folder_is_one_document(tmp_path: Path) -> None:
    """A blank line ends no document there, which a note says; the file's name is the document's."""
    for name, content in (("b.txt", "one\n\ntwo"), ("a.txt.gz", "three\r\nfour")):
        _write(tmp_path / "d" / name, content)
    text = read_text(tmp_path / "d")
    assert [(d.name, d.text) for d in text.documents] == [("a.txt.gz", "three\nfour"), ("b.txt", "one\n\ntwo")]
    assert text.notes == (f"each of the 2 text files in {tmp_path / 'd'} is one document",)


@pytest.mark.parametrize("pattern", ["{}.jsonl", "{}-00000-of-00001.jsonl", "{}-00000-of-00001-0ab1.jsonl.gz"])
def test_files_named_by_splits_are_splits(tmp_path: Path, pattern: str) -> None:
    """Training and test rows are never scored together: the split for testing is taken and named, or another."""
    for name in ("train", "test"):
        _write(tmp_path / "d" / pattern.format(name), json.dumps({"text": f"of {name}"}))
    text = read_text(tmp_path / "d")
    assert _texts(text) == ["of test"]
    assert text.notes[0] == f"the split 'test' of {tmp_path / 'd'} is read (it has test, train)"
    assert _texts(read_text(tmp_path / "d", split="train")) == ["of train"]


def test_plain_files_named_by_splits_are_read_as_files(tmp_path: Path) -> None:
    """A folder with train.txt and test.txt holds splits, not two documents."""
    _write(tmp_path / "d" / "train.txt", "one\ntwo")
    _write(tmp_path / "d" / "test.txt", "three\nfour")
    assert _texts(read_text(tmp_path / "d")) == ["three", "four"]


def test_nulls_are_left_out_and_counted(tmp_path: Path) -> None:
    """A body that is null is no document, and the count stands next to the column's name."""
    rows = [{"url": f"https://example.org/{n}", "body": text} for n, text in enumerate([None, *SENTENCES, None])]
    path = _write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    text = read_text(path)
    assert _texts(text) == SENTENCES
    assert text.notes == (
        f"the text of {path} is in its column 'body'",
        f"2 rows with null in 'body' left out of {path}",
    )


@pytest.mark.parametrize("separator", [";", ",", "\t", "^"])
def test_the_separator_that_excel_writes_is_taken(separator: str, tmp_path: Path) -> None:
    """The line `sep=;` names the separator and is no header."""
    rows = _separated([["id", "sentence"], *([str(n), text] for n, text in enumerate(SENTENCES))], separator)
    text = read_text(_write(tmp_path / "t.csv", f"sep={separator}\n{rows}"))
    assert _texts(text) == SENTENCES
    assert "its column 'sentence'" in text.notes[0]


def test_a_quoted_cell_of_several_lines_is_one_text(tmp_path: Path) -> None:
    """Quotes that join lines of unequal numbers of cells are what they seem."""
    path = _write(tmp_path / "t.csv", 'id,text\n1,"The sea,\nthe salt, and\nthe sky"\n2,"So it is"\n')
    assert _texts(read_text(path)) == ["The sea,\nthe salt, and\nthe sky", "So it is"]


def test_an_object_that_is_null_holds_a_null_text(tmp_path: Path) -> None:
    """However deep the column lies."""
    rows = [{"a": {"b": {"text": SENTENCES[0]}}}, {"a": {"b": None}}, {"a": None}]
    text = read_text(_write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), column="a.b.text")
    assert _texts(text) == SENTENCES[:1]
    assert "2 rows with null in 'a.b.text'" in " ".join(text.notes)


def test_a_named_column_shows_that_the_first_line_is_a_header(tmp_path: Path) -> None:
    """A header that looks like a text or a number is taken where the user names it."""
    for name in ("Write your text here.", "0"):
        path = _write(tmp_path / "t.csv", _separated([[name], *([text] for text in SENTENCES)], ","))
        with pytest.raises(UserError, match="may not be a header"):
            read_text(path)
        assert _texts(read_text(path, column=name)) == SENTENCES


def test_a_column_beyond_the_rows_looked_at_is_held_to_the_choice(tmp_path: Path) -> None:
    """After the first 1,000 rows another kind of cell is an error of its row, not another choice."""
    rows = [{"text": f"This is the sentence number {n}."} for n in range(1000)]
    path = _write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, {"text": 5}]))
    with pytest.raises(UserError, match="line 1001 holds int in the column 'text'"):
        read_text(path)


def _mixed(folder: Path) -> Path:
    _write(folder / "d" / "a.jsonl", JSON_LINES)
    _write(folder / "d" / "README.md", "x")
    (folder / "d" / "more").mkdir()
    return folder / "d"


def _with_other_file(folder: Path) -> Path:
    for name in ("train", "test", "other"):
        _write(folder / "d" / f"{name}.jsonl", JSON_LINES)
    return folder / "d"


def _two_kinds(folder: Path) -> Path:
    _write(folder / "d" / "a.jsonl", JSON_LINES)
    return _write(folder / "d" / "b.csv", "text\nx\n").parent


def _double_parquet(folder: Path) -> Path:
    table = pa.table([pa.array(["a b c"]), pa.array(["d e f"])], names=["text", "text"])
    pq.write_table(table, folder / "t.parquet")
    return folder / "t.parquet"


NO_HEADER = "The first document is no header.\nThe second document follows it.\nThe third one is the last.\n"
CASES: list[tuple[Callable[[Path], Path], str]] = [
    (
        lambda d: _write(d / "t.csv", NO_HEADER),
        r"first line of .*t\.csv may not be a header: 'The first document is no h",
    ),
    (lambda d: _write(d / "t.csv", "0,A long sentence of words\n1,Another of them\n"), "may not be a header: '0'"),
    (lambda d: _write(d / "t.csv", "pos,hello\npos,other\nneg,words\n"), "may not be a header: 'pos'"),
    (
        lambda d: _write(d / "t.csv", "https://example.org/1,x\nhttps://example.org/2,y\n"),
        "may not be a header: 'https",
    ),
    (lambda d: _write(d / "t.csv", "Great film\nI liked it\nNot my taste\n"), "may not be a header: 'Great film'"),
    (
        lambda d: _write(d / "t.csv", "text,text\nleft one,right one is longer\n"),
        r"t\.csv has two columns named 'text'; its header is text, text",
    ),
    (lambda d: _write(d / "t.jsonl", '{"text": "a b c", "text": "d e f"}'), "'text' occurs twice in one object"),
    (lambda d: _write(d / "t.json", '[{"text": "a b c", "text": "d e f"}]'), "'text' occurs twice in one object"),
    (_double_parquet, r"t\.parquet has two columns named 'text'"),
    (lambda d: _write(d / "t.csv", "a,b;c\n1,2;3\n"), "may be separated by commas or semicolons"),
    (
        lambda d: _write(d / "t.csv", "id;text\n1;a b c\n2;d; e\n"),
        "row 2 has a different number of cells than the header",
    ),
    (
        lambda d: _write(d / "t.csv", "id^sentence\n0^The sea is salt.\n1^So it is.\n"),
        r"separated by '\^'.*commas, semi",
    ),
    (lambda d: _write(d / "t.tsv", "id   sentence\n0   The sea.\n1   The sky.\n"), r"separated by '   '"),
    (lambda d: _write(d / "t.csv", "id\uff1btext\n0\uff1bsalt\n1\uff1bsea\n"), "separated by '\uff1b'"),
    (
        lambda d: _write(d / "t.tsv", 'n\ttext\n0\t"Hello there.\n1\tAnd you.\n2\tWell, thank you."\n'),
        "4 lines of 2 cells each, which quotation marks join into 2 rows",
    ),
    (lambda d: _write(d / "t.txt", '{"text": "a b c"}\n{"text": "d e f"}\n'), r"holds JSON.*rename it to \.jsonl"),
    (
        lambda d: _write(d / "t.jsonl", '[{"text": "a b c"},\n {"text": "d"}]'),
        r"line 1 is not a JSON .*rename it to \.json",
    ),
    (lambda d: _write(d / "t.csv", 'text\n"a" b\n'), r"t\.csv is not valid CSV"),
    (lambda d: _write(d / "t.csv", b"text\nGr\xf6\xdfe\n"), r"t\.csv is not UTF-8"),
    (lambda d: _write(d / "t.csv", ""), r"t\.csv is empty"),
    (lambda d: _write(d / "t.json", ""), r"t\.json is not valid JSON"),
    (lambda d: _write(d / "t.json", "[]"), r"t\.json is empty"),
    (lambda d: _write(d / "t.json", '[{"text": "a b c"}'), r"t\.json is not valid JSON: .*copy it again if truncated"),
    (lambda d: _write(d / "t.json", "[" * 100_000), r"t\.json is not a JSON table"),
    (lambda d: _write(d / "t.json", '{"version": 1, "data": []}'), "an object but not a table; it has version, data"),
    (
        lambda d: _write(
            d / "t.json", '{"doc1": {"title": "x", "text": "a b c"}, "doc2": {"title": "y", "text": "d"}}'
        ),
        "an object but not a table; it has doc1, doc2",
    ),
    (lambda d: _write(d / "t.json", '{"a": ["x"], "b": []}'), "an object but not a table; it has a, b"),
    (lambda d: _write(d / "t.json", '"text"'), r"t\.json holds one str"),
    (lambda d: _write(d / "t.json", '["a b c"]'), r"t\.json, row 1 is not an object but 'a b c'"),
    (lambda d: _write(d / "t.jsonl", b"\x1f\x8b123"), r"t\.jsonl is not a gzip file, or is truncated"),
    (lambda d: _write(d / "x.gz", JSON_LINES).rename(d / "t.parquet.gz"), r"t\.parquet\.gz has an unknown format"),
    (lambda d: _write(d / "t.gz", JSON_LINES), r"t\.gz has an unknown format"),
    (_mixed, r"does not hold files of one known kind; it has README\.md, a\.jsonl, more/\. Remedy: give one of them"),
    (_two_kinds, r"it has a\.jsonl, b\.csv\. Remedy: give one of them"),
    (_with_other_file, r"has the splits test, train, and other\.jsonl belongs to none of them"),
    (lambda d: _write(d / "d" / "left-0-of-1.csv", "text\na\n").parent / "x", r"x does not exist"),
    (lambda d: _write(d / "d" / "empty.txt", "").parent, "the text .* is empty"),
]


@pytest.mark.parametrize(("make", "problem"), CASES)
def test_what_may_be_misread_is_refused(tmp_path: Path, make: Callable[[Path], Path], problem: str) -> None:
    """The error names the file, what it found there, and what to do; nothing is scored."""
    with pytest.raises(UserError, match=problem) as error:
        read_text(make(tmp_path))
    assert error.value.remedy


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    """Half a file is not half a text."""
    path = _write(tmp_path / "t.txt.gz", "\n".join(f"Line {n}." for n in range(500)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"t\.txt\.gz is not a gzip file, or is truncated"):
        read_text(path)
    path.write_bytes(b"plain")
    with pytest.raises(UserError, match=r"t\.txt\.gz is not a gzip file"):
        read_text(path)


def test_what_has_no_columns_or_no_splits_refuses_a_name(tmp_path: Path) -> None:
    """An option that cannot be heeded is an error, not ignored."""
    _write(tmp_path / "d" / "a.txt", "one")
    for path in (tmp_path / "d", tmp_path / "d" / "a.txt"):
        with pytest.raises(UserError, match="not a table, so it has no column 'body'"):
            read_text(path, column="body")
        with pytest.raises(UserError, match="leave --split out"):
            read_text(path, split="test")
