"""Reading the text of an evaluation: every kind of source, and every way in which one can be wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlmrepro.errors import UserError
from mlmrepro.scoring.documents import Document, Text, read_text

ROWS = [{"text": "one, two"}, {"text": 'a "quoted"\nline'}, {"text": "Größe 水"}]
READ = [row["text"] for row in ROWS]


def _texts(text: Text) -> list[str]:
    return [document.text for document in text.documents]


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _json_lines(folder: Path, rows: list[Any]) -> Path:
    return _file(folder, "t.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return folder / "t.parquet"


def _data_set(folder: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


Writer = Callable[[Path, list[dict[str, Any]]], Path]
EACH_KIND = pytest.mark.parametrize("write", [_json_lines, _csv, _parquet, _data_set])


@EACH_KIND
def test_each_kind_of_table_gives_the_same_documents(tmp_path: Path, write: Writer) -> None:
    """Commas, quotes, line ends and letters beyond ASCII come back as they were written, in order, by row."""
    text = read_text(write(tmp_path, ROWS))
    assert _texts(text) == READ
    assert [document.name for document in text.documents] == ["1", "2", "3"]
    assert (text.column, text.notes) == ("text", (f"the text of {text.source} is in its column 'text'",))


@EACH_KIND
def test_a_topic_and_a_column_can_be_named(tmp_path: Path, write: Writer) -> None:
    """`column` chooses the texts, `topic` what the report tells apart."""
    rows = [{"text": "no", "body": "yes", "about": "sea"}, {"text": "no", "body": "also", "about": "sky"}]
    text = read_text(write(tmp_path, rows), column="body", topic="about")
    assert text.documents == (Document("1", "yes", "sea"), Document("2", "also", "sky"))


@pytest.mark.parametrize("write", [_json_lines, _parquet, _data_set])
def test_a_document_may_have_no_topic(tmp_path: Path, write: Writer) -> None:
    """Nothing in the topic's column is no topic, and a number is told as it is written."""
    path = write(tmp_path, [{"text": "one", "about": None}, {"text": "two", "about": 7}])
    assert [document.topic for document in read_text(path, topic="about").documents] == ["", "7"]


@EACH_KIND
def test_empty_and_repeated_documents_are_left_out_and_said_so(tmp_path: Path, write: Writer) -> None:
    """What is left out is counted; the others keep the row they came from as their name."""
    text = read_text(write(tmp_path, [{"text": t} for t in ("a b", "", "a b", "c d", "  ", "a b")]))
    assert _texts(text) == ["a b", "c d"]
    assert text.documents[1].name == "4"
    assert text.notes[1:] == (
        f"2 empty documents left out of {text.source}",
        f"2 repeated documents left out of {text.source}",
    )


def test_one_document_that_is_left_out_is_one(tmp_path: Path) -> None:
    """The note speaks of one document, and blank lines between rows are none."""
    path = _file(tmp_path, "t.jsonl", '{"text": "a b"}\n\n{"text": ""}\n\n{"text": "c d"}\n')
    text = read_text(path)
    assert (_texts(text), text.notes[1:]) == (["a b", "c d"], (f"1 empty document left out of {path}",))


@EACH_KIND
def test_a_limit_takes_the_first_documents(tmp_path: Path, write: Writer) -> None:
    """Documents that are left out do not count towards the limit."""
    path = write(tmp_path, [{"text": t} for t in ("", "a b", "a b", "c d", "e f")])
    assert _texts(read_text(path, limit=2)) == ["a b", "c d"]
    assert _texts(read_text(path, limit=1)) == ["a b"]


@pytest.mark.parametrize("write", [_json_lines, _parquet, _data_set])
def test_a_column_may_lie_in_another_and_hold_lists(tmp_path: Path, write: Writer) -> None:
    """``answers.text``, the guide's own column of lists of strings, is found without being named."""
    rows = [
        {"q": "x", "answers": {"text": ["one", "two"], "score": [1, 2]}},
        {"q": "y", "answers": {"text": ["three"]}},
    ]
    path = write(tmp_path, rows)
    assert _texts(read_text(path)) == _texts(read_text(path, column="answers.text")) == ["one two", "three"]


@pytest.mark.parametrize("write", [_json_lines, _parquet, _data_set])
def test_a_column_may_lie_two_columns_deep(tmp_path: Path, write: Writer) -> None:
    """Each dot of a column's name is one step inwards; a column whose own name has a dot is found by that name."""
    path = write(tmp_path, [{"page": {"body": {"text": "deep"}}, "page.title": "flat"}])
    assert _texts(read_text(path, column="page.body.text")) == ["deep"]
    assert _texts(read_text(path, column="page.title")) == ["flat"]


def test_the_embedded_text_is_known_by_name() -> None:
    """The text that is shipped has documents, all different; nothing about it has to be said."""
    text = read_text("embedded", limit=20)
    assert len(set(_texts(text))) == 20
    assert (text.source, text.column, text.notes) == ("embedded", "answers.text", ())


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("one\ntwo\nthree", ["one", "two", "three"]),
        ("one\ntwo\n", ["one", "two"]),
        ("one\ntwo\n\n\n", ["one", "two"]),
        ("\n\none\ntwo\n", ["one", "two"]),
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("one\n \n\n\ttwo\n\nthree\nfour", ["one", "\ttwo", "three\nfour"]),
        ("one\r\ntwo\r\n\r\nthree\r\n", ["one\ntwo", "three"]),
        ("\ufeffone\ntwo", ["one", "two"]),
        ("one\u2028still one\ntwo\x0ctwo", ["one\u2028still one", "two\x0ctwo"]),
        ("just one", ["just one"]),
    ],
)
def test_plain_text_is_cut_at_blank_lines_else_at_lines(tmp_path: Path, content: str, documents: list[str]) -> None:
    """Blank lines between texts end documents; at the beginning and the end of a file they say nothing."""
    text = read_text(_file(tmp_path, "t.txt", content))
    assert _texts(text) == documents
    assert (text.notes, text.column) == ((), "")


def test_a_plain_document_is_named_by_its_first_line(tmp_path: Path) -> None:
    """The name is the line at which an editor finds the document."""
    text = read_text(_file(tmp_path, "t.txt", "\none\ntwo\n\n\nthree\n"))
    assert [document.name for document in text.documents] == ["2", "6"]


def test_line_separators_within_a_row_end_no_row(tmp_path: Path) -> None:
    """U+2028 and a form feed may stand in a JSON string and in a CSV cell, quoted or not."""
    odd = "one\u2028two\x0cthree\x85four"
    assert _texts(read_text(_json_lines(tmp_path, [{"text": odd}, {"text": "x y"}]))) == [odd, "x y"]
    assert _texts(read_text(_file(tmp_path, "t.csv", f'text,n\n{odd},1\n"{odd}.",2\n'))) == [odd, f"{odd}."]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """What some editors put before UTF-8 is part of no key, no header and no text."""
    assert _texts(read_text(_file(tmp_path, "t.jsonl", '\ufeff{"text": "a b"}\n\n'))) == ["a b"]
    assert _texts(read_text(_file(tmp_path, "t.csv", "\ufefftext\na b\n"))) == ["a b"]


def test_a_cell_may_be_longer_than_the_csv_library_takes_by_default(tmp_path: Path) -> None:
    """A document of 200,000 characters is read whole."""
    assert len(_texts(read_text(_csv(tmp_path, [{"text": "ab " * 70_000}])))[0]) == 210_000
    assert csv.field_size_limit() == 2**31 - 1  # the most that every system's library takes


def test_the_ending_may_be_in_capitals(tmp_path: Path) -> None:
    """A file from an older system is read as any other."""
    assert _texts(read_text(_file(tmp_path, "T.TXT", "a b\nc d"))) == ["a b", "c d"]


def test_the_split_for_testing_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    """Of several splits it is test, else validation; an only split is taken; another is taken by its name."""
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "validation", "test")}
    for names in (("train", "validation", "test"), ("train", "validation"), ("train",)):
        path = tmp_path / "-".join(names)
        datasets.DatasetDict({name: parts[name] for name in names}).save_to_disk(str(path))
        assert _texts(read_text(path)) == [names[-1]]
        assert _texts(read_text(path, split="train")) == ["train"]
    with pytest.raises(UserError, match=r"has the splits train, validation, test, not 'dev'.*--split"):
        read_text(tmp_path / "train-validation-test", split="dev")


def test_splits_of_other_names_have_to_be_named(tmp_path: Path) -> None:
    """Among splits of which none is for testing there is no guess."""
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("left", "right")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(UserError) as error:
        read_text(tmp_path / "d")
    assert error.value.problem == f"the data set {tmp_path / 'd'} has the splits left, right, not 'test'"
    assert error.value.remedy == "name one of them with --split"


def test_a_split_of_what_has_none_is_an_error(tmp_path: Path) -> None:
    """A split that is named and not there would be another text than the one that was meant."""
    for path, problem in (
        (_json_lines(tmp_path, ROWS), "the text {} is a file, which has no splits"),
        (_data_set(tmp_path, ROWS), "the data set {} has no splits"),
    ):
        with pytest.raises(UserError) as error:
            read_text(path, split="test")
        assert (error.value.problem, error.value.remedy) == (problem.format(path), "leave --split out")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says is in the message."""

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    path = _file(tmp_path, "t.txt", "a b")
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(UserError) as error:
        read_text(path)
    assert error.value.problem == f"{path} cannot be read: [Errno 13] Permission denied: '{path}'"
    assert error.value.remedy == "make it readable"


KINDS = ".txt, .jsonl, .json, .csv, .tsv or .parquet, all but the last also with .gz"
REMEDIES = {
    "copy it again",
    "copy it again, or unpack it",
    "give 1 or more",
    "give a file with text",
    "give a folder that datasets' save_to_disk wrote, or a file",
    f"give a file ({KINDS}), a folder or a saved data set",
    f"give a file that ends in {KINDS}",
    f"give a folder of files ({KINDS}) or a saved data set",
    f"give one of them, or a folder with nothing but files of one kind ({KINDS})",
    "give a header and quoted cells",
    "give a list of objects",
    "give a list of objects, columns of equal length, or one object per line (.jsonl)",
    "give each column a name of its own",
    "write one object per line; copy a truncated file again",
    "give one of the files, or move the others away",
    "leave --split out",
    "leave --text-column out",
    "make it readable",
    "name one of them with --split",
    "name one that every row has with --text-column or --topic-column",
    "name the column of texts with --text-column NAME",
    "put a line of column names first, such as text; if it is a header, name the column of texts with "
    "--text-column NAME",
    "quote texts that hold the separator, which is one of commas, semicolons, tabs, bars",
    "rename the columns so that the header holds only one of them, or give .jsonl",
    "save it as UTF-8",
    "write it as a text, leave the row out, or name another column with --text-column",
    "write the file again",
    "write the file again, or copy it again if truncated",
    "write the Parquet file again",
    "write the text again from its source",
}


def _cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def _empty_folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


@pytest.mark.parametrize(
    ("make", "settings", "problem"),
    [
        (lambda d: d / "none.txt", {}, r"none\.txt does not exist.*give a file \(\.txt, \.jsonl"),
        (lambda d: _file(d, "t.pdf", "x"), {}, r"t\.pdf has an unknown format.*\.parquet"),
        (lambda d: _file(d, "t.txt", ""), {}, r"t\.txt is empty"),
        (lambda d: _file(d, "t.txt", " \n\t\n"), {}, r"t\.txt is empty"),
        (lambda d: _file(d, "t.jsonl", "\n"), {}, r"t\.jsonl is empty"),
        (lambda d: _file(d, "t.jsonl", '{"text": ""}\n{"text": null}'), {}, r"t\.jsonl is empty"),
        (lambda d: _file(d, "t.csv", "text\n"), {}, r"t\.csv is empty"),
        (lambda d: _file(d, "t.txt", b"Gr\xf6\xdfe"), {}, r"t\.txt is not UTF-8: byte 2 .*save it as UTF-8"),
        (lambda d: _file(d, "t.txt", "Größe".encode("utf-16")), {}, r"t\.txt is not UTF-8"),
        (lambda d: _file(d, "t.txt", "ab".encode("utf-16-le")), {}, r"t\.txt holds null bytes.*UTF-8"),
        (lambda d: _file(d, "t.csv", b"text\na\0b\n"), {}, r"t\.csv holds null bytes"),
        (lambda d: _cut(_json_lines(d, ROWS), 0.8), {}, r"t\.jsonl, line 3 is not a JSON object.*truncated"),
        (
            lambda d: _file(d, "t.jsonl", '{"text": "水"}'.encode()[:-3]),
            {},
            r"t\.jsonl ends within a character.*truncated",
        ),
        (
            lambda d: _json_lines(d, [{"text": "a"}, ["b"]]),
            {},
            r"t\.jsonl, line 2 is not a JSON object: it is not an object",
        ),
        (lambda d: _file(d, "t.jsonl", '{"text": "a\\ud83d b"}'), {}, r"line 1 holds half a character.*'text'"),
        (lambda d: _file(d, "t.jsonl", '{"text": ["a", "\\udc00"]}'), {}, r"line 1 holds half a character.*'text'"),
        (lambda d: _json_lines(d, [{"text": "a"}, {"tex": "b"}]), {}, r"line 2 has no column 'text'; it has tex"),
        (lambda d: _json_lines(d, [{"text": 5}]), {"column": "text"}, r"line 1 holds int in the column 'text'"),
        (lambda d: _json_lines(d, [{"text": [1, 2]}]), {"column": "text"}, r"line 1 holds list in the column 'text'"),
        (
            lambda d: _json_lines(d, [{"text": "a"}, {"text": {"x": "b"}}]),
            {"column": "text"},
            r"line 2 holds dict in the column 'text'",
        ),
        (lambda d: _json_lines(d, [{"text": "a"}, {"text": {"x": "b"}}]), {}, r"line 2 holds dict in the column"),
        (
            lambda d: _json_lines(d, [{"text": n and "a b c"} for n in range(3)]),
            {},
            r"no column that is clearly the text; it has text \(int and str: 0\)",
        ),
        (lambda d: _json_lines(d, ROWS), {"column": "body"}, r"line 1 has no column 'body'; it has text"),
        (lambda d: _json_lines(d, ROWS), {"column": "text.x"}, r"line 1 has no column 'text.x'"),
        (
            lambda d: _json_lines(d, [{"a": {"b": 1}}]),
            {"column": "a.b.text"},
            r"line 1 has no column 'a.b.text'; it has a.b",
        ),
        (lambda d: _json_lines(d, ROWS), {"topic": "about"}, r"line 1 has no column 'about'.*--topic-column"),
        (lambda d: _json_lines(d, ROWS), {"limit": 0}, r"the limit is 0 documents"),
        (
            lambda d: _file(d, "t.csv", "text,n\na,b,c\n"),
            {},
            r"t\.csv, row 1 has a different number of cells than the header",
        ),
        (
            lambda d: _file(d, "t.csv", "text,n\na,1\nb\n"),
            {},
            r"t\.csv, row 2 has a different number of cells.*quote texts",
        ),
        (lambda d: _file(d, "t.csv", 'text\n"a\n'), {}, r"t\.csv is not valid CSV: unexpected end of data"),
        (lambda d: _parquet(d, [{"text": 5}, {"text": 6}]), {}, r"no column that is clearly the text; .*\(int: 5\)"),
        (lambda d: _parquet(d, ROWS), {"column": "body"}, r"t\.parquet, row 1 has no column 'body'"),
        (
            lambda d: _cut(_parquet(d, ROWS), 0.6),
            {},
            r"t\.parquet cannot be read: .*[Pp]arquet.*write the Parquet file again",
        ),
        (lambda d: _file(d, "t.parquet", b""), {}, r"t\.parquet cannot be read"),
        (_empty_folder, {}, "the folder .*nothing is empty"),
        (lambda d: _data_set(d, [{"text": 5}]), {"column": "text"}, r"saved, row 1 holds int in the column 'text'"),
        (lambda d: _data_set(d, ROWS), {"column": "body"}, r"saved, row 1 has no column 'body'"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, make: Callable[[Path], Path], settings: dict[str, Any], problem: str
) -> None:
    """The error names the file, the row, the field and what to do."""
    with pytest.raises(UserError, match=problem) as error:
        read_text(make(tmp_path), **settings)
    assert error.value.remedy in REMEDIES


def test_a_damaged_saved_data_set_is_named(tmp_path: Path) -> None:
    """An Arrow file that ends too early is an error of the user's, not a stack of the library's."""
    path = _data_set(tmp_path, [{"text": f"row {n} " * 50} for n in range(200)])
    _cut(next(path.glob("*.arrow")), 0.5)
    with pytest.raises(UserError, match=r"saved is not a saved data set: (?!None)"):
        read_text(path)
