"""Choosing the column that is the text: taken where it is clear, asked for where it is not, never another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmrepro.errors import UserError
from mlmrepro.scoring.columns import choose_column, is_data, is_prose, is_usual, leaves, sample_of

PROSE = [
    "The lighthouse stood on the cliff above the harbour.",
    "Rain had fallen on the island for three days.",
    "Nobody on the quay spoke.",
    "The boat had not come back before dark, and it was 1950.",
    "Маяк стоял на скале над гаванью.",
    "灯台は港の上の崖に立っていた。",
    "प्रकाशस्तंभ चट्टान पर खड़ा था।",
    "M K T A Y I A K Q R Q I S F V K S H F S R Q",
    "<p>The keeper wrote the hour</p> into his book and/or the log",
    "2021-03-10 The council met and spoke of the harbour.",
    "20:19 The boat came back.",
    "https://example.org/1 is where the keeper's book can be read",
    "[Music] The lamp was lit again [Applause]",
]
DATA = [
    "https://example.org/1",
    "https://example.org/a page with spaces",
    "12",
    "-1.5e3",
    "1,5",
    "2026-11-28",
    "2026-11-28 20:19:47",
    "28.11.2026",
    "20:19",
    "8:19 PM",
    "2026-11-28T20:19:47.5+01:00",
    "/home/me/text.txt",
    "data\\text.txt",
    "me@example.org",
    "['one two three', 'four five six']",
    '{"a": "one two three four"}',
    "[]",
    "[None, 'one two three four']",
    "nan",
]
NEITHER = ["row-1", "positive", "one two", "", "0b1f3c2e", "Mon Nov 28 20:19:47 UTC 2026", "12 a b 13 14"]


@pytest.mark.parametrize("text", PROSE)
def test_running_text_is_prose_in_any_script(text: str) -> None:
    """Words of letters make prose, with or without spaces between them; a number among them does not matter."""
    assert is_prose(text)
    assert not is_data(text)


@pytest.mark.parametrize("text", [*DATA, *NEITHER])
def test_other_strings_are_no_prose(text: str) -> None:
    """Addresses, numbers, dates, paths, ids, labels and lists that were written as strings are no running text."""
    assert not is_prose(text)
    assert is_data(text) == (text in DATA)


def _rows(**columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


URLS = [f"https://example.org/{n}" for n in range(4)]
IDS = [f"row-{n}" for n in range(4)]
TITLES = ["A light on the cliff", "Rain for three days", "On the quay", "The boat at dark"]


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        (_rows(url=URLS[:3], body=[None, *PROSE[:2]]), "body"),
        (_rows(id=IDS, sentence=PROSE[:4]), "sentence"),
        (_rows(title=TITLES, text=[f"2021-03-1{n} {text}" for n, text in enumerate(PROSE[:4])]), "text"),
        (_rows(title=TITLES, text=[f"{url} {text}" for url, text in zip(URLS, PROSE, strict=False)]), "text"),
        (_rows(id=IDS, message=PROSE[:4]), "message"),
        (_rows(text=URLS, message=PROSE[:4]), "message"),
        (_rows(title=TITLES, text=PROSE[:4]), "text"),
        (_rows(content=PROSE[:4], text=PROSE[:4]), "text"),
        (_rows(title=TITLES, Body=PROSE[:4]), "Body"),
        (_rows(title=TITLES, answers=[{"text": [p], "score": [1]} for p in PROSE[:4]]), "answers.text"),
        (_rows(n=[1, 2], page=[{"deep": {"prose": p}} for p in PROSE[:2]]), "page.deep.prose"),
        (_rows(page=[None, {"prose": PROSE[0]}, {"prose": PROSE[1]}], n=[1, 2, 3]), "page.prose"),
        (_rows(text=["one", "two"], n=[1, 2]), "text"),
        (_rows(text=["", " "]), "text"),
        (_rows(text=IDS), "text"),
        (_rows(text=PROSE[:1] * 4, id=IDS), "text"),
        (_rows(message=[*PROSE[:3], "no"], tag=["a", "b", "c", "d"]), "message"),
    ],
)
def test_what_is_clearly_the_text_is_taken(rows: list[dict[str, Any]], column: str) -> None:
    """A usual name with text in it comes first, else the only column of prose; nulls in a few rows do not matter."""
    assert choose_column(rows, "t") == column


@pytest.mark.parametrize(
    ("rows", "listed"),
    [
        (_rows(left=PROSE[:2], right=PROSE[2:4]), [f"left (str: {sample_of(PROSE[0])}); right"]),
        (_rows(body=[12, *PROSE[:2]], id=IDS[:3]), ["body (int and str: 12); id (str: 'row-0')"]),
        (_rows(body=PROSE[:2], sentence=PROSE[2:4]), ["more than one column that could be the text", "body (str: "]),
        (_rows(label=["good", "bad"]), ["label (str: 'good')"]),
        (_rows(url=URLS, body=[None] * 4), ["url (str: 'https://example.org/0'); body (null)"]),
        (_rows(id=IDS, text=[None, None, None, PROSE[0]]), ["text (str: "]),
        (_rows(text=["Translate this to German"] * 4, body=PROSE[:4]), ["more than one column that could be the text"]),
        (_rows(text=["good", "bad"], message=PROSE[:2]), ["text (str: 'good'); message (str: "]),
        (_rows(message=PROSE[:2] * 5), ["message (str: "]),
        (_rows(answers=[[{"text": p}] for p in PROSE[:2]], n=[1, 2]), ["answers (list: [{'text': "]),
        (_rows(answers=["['a b c', 'd e f']", "['g h i']"]), ["answers (str: "]),
        ([{f"c{n}": n for n in range(23)}], ["c19 (int: 19); and 3 more"]),
    ],
)
def test_what_is_not_clear_is_asked_with_a_sample_of_each_column(rows: list[dict[str, Any]], listed: list[str]) -> None:
    """Two texts, mixed kinds, labels, mostly nulls, repeated texts, lists that became strings: the user decides."""
    with pytest.raises(UserError) as error:
        choose_column(rows, "t.jsonl")
    assert error.value.remedy == "name the column of texts with --text-column NAME"
    assert error.value.problem.startswith("t.jsonl has ")
    for part in listed:
        assert part in error.value.problem


_WORDS = st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), min_size=4, max_size=12)
_CELLS: dict[str, st.SearchStrategy[Any]] = {
    "url": st.from_regex(r"https://[a-z]{3,9}\.org/[a-z0-9]{0,9}", fullmatch=True),
    "id": st.from_regex(r"[a-z]{1,4}-[0-9]{1,6}", fullmatch=True),
    "number": st.one_of(st.integers(), st.floats(allow_nan=False)),
    "number_as_text": st.integers().map(str),
    "date": st.datetimes().map(lambda moment: moment.isoformat(" ")),
    "path": st.from_regex(r"(/[a-z]{1,8}){2,4}\.txt", fullmatch=True),
    "label": st.sampled_from(["positive", "negative", "neutral"]),
    "flag": st.booleans(),
    "tags": st.lists(st.integers(), max_size=3),
}


@st.composite
def _tables(draw: Callable[..., Any]) -> tuple[list[dict[str, Any]], str, bool]:
    """Rows with one column of prose among others, in any order, with nulls; its name; whether it is clear."""
    count = draw(st.integers(4, 12))
    others = draw(st.lists(st.sampled_from(sorted(_CELLS)), unique=True, max_size=4))
    prose = draw(st.sampled_from(["text", "body", "sentence", "message", "x"]))
    texts = draw(st.lists(_WORDS.map(" ".join), min_size=count, max_size=count, unique=True))
    nulls = draw(st.sets(st.integers(0, count - 1), max_size=count // 3))
    columns = {prose: [None if n in nulls else text for n, text in enumerate(texts)]}
    usual = draw(st.sampled_from([None, *others]))  # one of the others has a name that promises a text
    for kind in others:
        cells = st.lists(st.one_of(st.none(), _CELLS[kind]), min_size=count, max_size=count)
        columns["content" if kind == usual else kind] = draw(cells)
    order = draw(st.permutations(sorted(columns)))
    # Labels under a usual name may be meant as short texts, unless the prose has such a name too.
    clear = usual != "label" or is_usual(prose)
    return _rows(**{name: columns[name] for name in order}), prose, clear


@settings(max_examples=80, deadline=None)
@given(_tables())
def test_no_other_column_than_the_prose_is_ever_taken(table: tuple[list[dict[str, Any]], str, bool]) -> None:
    """Whatever stands next to one column of prose, in any order and with nulls: it is taken, or the user is asked."""
    rows, prose, clear = table
    try:
        chosen = choose_column(rows, "t")
    except UserError:
        assert not clear
    else:
        assert chosen == prose


def test_the_property_above_can_fail() -> None:
    """The choice that was made before, the first row's only string, takes another column than the prose."""
    rows = _rows(url=URLS[:3], body=[None, *PROSE[:2]])
    assert [name for name, value in leaves(rows[0]) if isinstance(value, str)] == ["url"]
    assert choose_column(rows, "t") == "body"


def test_a_sample_is_one_short_line() -> None:
    """Line ends are shown as escapes, and a long value is cut."""
    assert sample_of("a\nb") == r"'a\nb'"
    assert sample_of("x" * 100) == f"'{'x' * 38}…"
    assert len(sample_of(["x" * 100])) == 40
