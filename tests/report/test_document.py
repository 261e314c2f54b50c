"""A document in every writer: each part comes out, and no text from outside is ever read as markup."""

from __future__ import annotations

import dataclasses
import re

import pytest

from mlmrepro.compare.judge import Verdict
from mlmrepro.report.document import (
    Code,
    Document,
    Figure,
    In,
    Item,
    Items,
    Line,
    Link,
    Mark,
    Passage,
    Point,
    Section,
    Share,
    Short,
    Strong,
    Table,
    Tag,
    Text,
    sentence,
)
from mlmrepro.report.markdown import PR_LIMIT, document_markdown
from mlmrepro.report.page import document_page
from mlmrepro.report.svg import Drawing

from . import shown
from .checks import HOSTILE
from .test_html import Page

LINK = "https://example.org/notes"


def made(text: str = "") -> Document:
    """Return a document with one of everything; `text` is added to each text in it."""

    def t(word: str) -> str:
        return f"{word}{text}"

    spans: tuple[Line, ...] = (
        *(t("a-string"), Code(t("a-code")), Strong(t("a-strong")), Link(LINK), Mark(Verdict.EXPECTED, t("a-mark"))),
        *(Tag(t("a-tag")), Share(0.5, t("a-share")), Short(t("a-name"), t("a-name"))),
    )
    item = Item(
        ("an item ", Mark(Verdict.REGRESSION, note=t("a-note"))),
        (Point(t("point-1"), more=(t("more-1"), t("more-2")), left=7), Point(t("point-2"))),
        (("cause", (t("a-cause"), " ", Link(LINK))),),
        (Text(t("within-item")),),
        Verdict.REGRESSION,
        t("name"),
        "item-1",
    )
    drawing = Drawing("figure", t("a-drawing"), t("a-description"), "<svg></svg>", (), ("step",), ((t("a-number"),),))
    blocks = (
        Text(spans),  # type: ignore[arg-type]
        Section(
            t("a-section"),
            (
                Table((t("head-1"), t("head-2")), [(t("cell-1"), Mark(Verdict.IDENTICAL, to="item-1")), (t("wide"),)]),
                Items((item,)),
                Section(t("a-subsection"), (Figure(drawing), Passage((("calm", t("a-word"), t("remark")),)))),
            ),
            "details",
            t("a-section-note"),
            fold=In.MARKDOWN,
        ),
    )
    return Document(
        Verdict.REGRESSION,
        t("a-headline"),
        t("a-lead"),
        (("a-fact", t("fact-line")),),
        blocks,
        (*sentence("run `mlmrepro expect` "), t("next-word")),
    )


PARTS = (
    *("a-string", "a-code", "a-strong", LINK, "a-mark", "a-tag", "a-share", "a-name", "an item", "a-note"),
    *("point-1", "point-2", "a-cause", "within-item", "a-drawing", "a-description", "a-section", "head-1"),
    *("head-2", "cell-1", "wide", "a-subsection", "a-word", "a-section-note", "a-headline", "a-lead", "a-fact"),
    *("fact-line", "mlmrepro expect", "next-word", "✗", "Δ", "REGRESSION", "identical"),
)


def markdown(document: Document, limit: int = PR_LIMIT) -> str:
    return document_markdown(document, limit=limit)


WRITERS = {"terminal": shown, "markdown": markdown, "page": document_page}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_part_comes_out_of_every_writer(writer: str) -> None:
    """Whatever a document holds is shown by each of the three writers."""
    text = " ".join(WRITERS[writer](made()).split())
    assert [part for part in PARTS if part not in text.replace("\\", "")] == []


def test_the_page_shows_what_the_others_count() -> None:
    """The page has the differences behind a point, and the numbers of a figure."""
    page = Page(document_page(made()))
    assert page.problems == []
    for part in ("9 differences", "more-1", "more-2", "and 7 more", "a-number"):
        assert part in page.words
    assert set(page.all("href")) == {"data:,", LINK, "#item-1", "#details"}
    assert {"item-1", "details"} <= set(page.all("id"))


def test_the_verdict_is_first_and_the_next_step_where_it_is_seen() -> None:
    """The headline opens every form; the terminal ends with the next step, the others say it before the details."""
    assert shown(made()).lstrip().startswith("✗ a-headline.")
    assert shown(made()).rstrip().endswith("Next: run mlmrepro expect next-word")
    assert markdown(made()).startswith("### ✗ a-headline")
    for text in (markdown(made()), document_page(made())):
        assert text.index("next-word") < text.index("a-section")


def test_text_from_outside_is_never_markup() -> None:
    """Control characters are written as escapes; no tag, mention, heading or table cell comes from text."""
    document = made(f" {HOSTILE}")
    for writer in WRITERS.values():
        assert not re.search(r"[\x00\x1b\u202e]", writer(document))
    page = Page(document_page(document))
    assert page.problems == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.words
    assert "[/i]" in shown(document)
    text = markdown(document)
    outside_code = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert "<script" not in outside_code
    assert not re.search(r"@\w", outside_code)
    assert "\n# y" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {3}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("input_ids", "input_ids"), ("_a_", r"\_a\_"), ("__init__", r"\_\_init\_\_"), ("*a*", r"\*a\*")],
)
def test_only_what_would_be_emphasis_is_escaped(text: str, escaped: str) -> None:
    """Underscores within a word stay readable; all others, and stars, are escaped."""
    assert document_markdown(Document(None, text)) == f"### {escaped}\n"


@pytest.mark.parametrize("address", ["javascript:alert(1)", 'https://x.org/"onload="alert(1)', "https://a b"])
def test_only_a_web_address_becomes_a_link(address: str) -> None:
    """Any other text in a link is shown as text."""
    document = Document(Verdict.IDENTICAL, "x", blocks=(Text(Link(address)),))
    assert [link for link in Page(document_page(document)).all("href")] == ["data:,"]
    assert f"<{address}>" not in markdown(document)


def test_a_section_is_shown_where_it_belongs() -> None:
    """A section that names writers is left out by the others."""
    for only in (In.TERMINAL, In.MARKDOWN, In.PAGE):
        document = Document(Verdict.IDENTICAL, "x", blocks=(Section("only here", (Text("y"),), shown=only),))
        found = [where for where, writer in zip(In, WRITERS.values(), strict=False) if "only here" in writer(document)]
        assert found == [only]


def test_a_long_list_is_cut_and_counted() -> None:
    """The terminal shows the first items, Markdown as many as fit, and both count the rest."""
    items = Items([Item(f"item {n} {'x' * 50}", name="loss") for n in range(100)], brief=3)
    folded = Document(Verdict.IDENTICAL, "x", blocks=(Section("all", (items,), fold=In.MARKDOWN),))
    open_list = dataclasses.replace(folded, blocks=(items,))
    for document in (folded, open_list):
        assert "and 97 more changes (97 of loss)" in shown(document)
        text = markdown(document, limit=2000)
        assert len(text) <= 2000
        assert text.count("item") > 3
        assert text.count("<details>") == text.count("</details>")
        assert "more lines in the HTML report" in text
    values = Document(Verdict.IDENTICAL, "x", blocks=(Items([Item("i", [Point(f"p{n}", f"n{n}") for n in range(9)])]),))
    assert "i: p0; p1; and 7 more values (n2, n3, n4, …)" in shown(values)


@pytest.mark.parametrize("width", [80, 40])
def test_no_line_is_wider_than_the_shown(width: int) -> None:
    """Everything folds."""
    assert max(map(len, shown(made(f" {HOSTILE}"), width).splitlines())) <= width


def test_equal_documents_give_equal_text() -> None:
    """Every writer is deterministic."""
    assert all(writer(made()) == writer(made()) for writer in WRITERS.values())
