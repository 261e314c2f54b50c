"""The page of a check: complete, self-contained, safe, and readable without colour."""

from __future__ import annotations

import html
import math
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mlmrepro.gate.assess import DocumentText, assess
from mlmrepro.gate.probes import probe_change
from mlmrepro.gate.result import Answer, CheckResult, DocumentChange, Prediction, TokenChange
from mlmrepro.report import check as check_page
from mlmrepro.report.check import STEPS, check_document
from mlmrepro.report.page import TEMPLATES, document_page, write_page
from mlmrepro.report.svg import SERIES
from mlmrepro.scores import Scores

from . import checks
from .test_html import Page, contrast, palettes


def document_page_of(result: CheckResult) -> str:
    return document_page(check_document(result))


RESULTS = {
    "full": checks.check(),
    "bare": checks.bare(),
    "equal": checks.equal(),
    "broken": checks.broken(),
    "words": checks.in_words(),
    "hostile": checks.hostile(),
}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {name: document_page_of(result) for name, result in RESULTS.items()}


@pytest.mark.parametrize("name", RESULTS)
def test_the_page_is_well_formed(name: str, sources: dict[str, str]) -> None:
    """Every tag is closed, ids are unique, and each link within the page has a target."""
    page = Page(sources[name])
    assert page.problems == []
    assert [found for found, n in Counter(page.all("id")).items() if n > 1] == []
    assert {link[1:] for link in page.all("href") if link.startswith("#")} <= set(page.all("id"))
    for names in page.all("aria-labelledby"):
        assert set(names.split()) <= set(page.all("id"))


@pytest.mark.parametrize("name", RESULTS)
def test_the_page_fetches_nothing(name: str, sources: dict[str, str]) -> None:
    """There are no scripts, no external images, fonts, styles or links, and no event handlers."""
    page = Page(sources[name])
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "embed", "video", "audio"} == set()
    assert page.all("src") == []
    assert {link for link in page.all("href") if not link.startswith("#")} == {"data:,"}
    assert re.findall(r"url\((?!#)|@import|@font-face", sources[name]) == []
    assert "default-src 'none'" in sources[name]
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]


def test_the_answer_stands_first(sources: dict[str, str]) -> None:
    """Answer, reason, numbers, notes and the next step come before any figure."""
    start = Page(sources["full"]).words.partition("How large the difference is")[0]
    for part in (
        "REGRESSION: the new checkpoint is worse.",
        "The perplexity rose by 3.10 %",
        "40.412 → 41.664, +3.10 % (98 % interval",
        "2 of 5 worse: token frequency once +5.34 %",
        "The margin is that of [tool.mlmrepro].",
        "Next: Look at the slices and documents that got worse.",
    ):
        assert part in start


_NO_FIGURES = {"probes", "accuracy", "origin"}  # of a checkpoint against itself


def test_what_was_not_measured_has_no_section(sources: dict[str, str]) -> None:
    """Slices, documents, probes, accuracy and provenance have no heading if they are missing, and None is not shown."""
    for name, present in (("bare", {"difference", "origin"}), ("broken", {"origin"}), ("equal", _NO_FIGURES)):
        page = Page(sources[name])
        sections = {"difference", "slices", "documents", "probes", "accuracy", "origin"}
        assert sections & set(page.all("id")) == present
        assert not re.search(r"\bNone\b(?! of)|\bnan\b", page.words)
    assert "40.412 → NaN" in Page(sources["broken"]).words


def test_every_figure_has_a_text_alternative_and_the_colours_of_the_page(sources: dict[str, str]) -> None:
    """Each drawing has a title, a description, a table of its numbers, and no colours or fonts of its own."""
    drawn = re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', sources["full"], re.DOTALL)
    assert len(drawn) == sources["full"].count("<summary>numbers</summary>") == 2
    for svg in drawn:
        assert re.search(r'<title id="[\w-]+">[^<]{10,}</title><desc id="[\w-]+">[^<]{20,}</desc>', svg)
        assert re.findall(r"#[0-9a-fA-F]{6}\b|font-family", svg) == []
        assert "← better" in svg
        assert "worse →" in svg
    assert all(code not in sources["full"] for code in SERIES)


def passage(result: CheckResult) -> list[tuple[str, str, str]]:
    """Return (class, title, text) of each token of the first document."""
    source = document_page_of(result)
    first = re.search(r'<p class="passage" dir="auto">(.*?)</p>', source, re.DOTALL)
    assert first is not None
    spans = re.findall(r'<span class="([\w-]+)"(?: title="([^"]*)")?>(.*?)</span>', first[1], re.DOTALL)
    return [(css, html.unescape(title), html.unescape(text)) for css, title, text in spans]


def test_tokens_are_shaded_by_their_change_with_both_losses() -> None:
    """The shade depends on the change in nats, the tooltip gives both losses, and unmasked tokens are plain."""
    spans = passage(checks.check())
    assert [css for css, _, _ in spans] == [
        "plain",
        "calm",
        "worse-1",
        "worse-2",
        "worse-3",
        "worse-4",
        "better-1",
        "better-2",
        "better-3",
        "better-4",
    ]
    assert spans[0] == ("plain", "", "The")
    assert spans[5] == ("worse-4", "4.00 → 7.50 nats (+3.50)", " mat")
    assert spans[6] == ("better-1", "1.00 → 0.70 nats (-0.30)", ".↵\n")
    legend = re.search(r'<ul class="legend shades">.*?</ul>', document_page_of(checks.check()), re.DOTALL)
    assert legend is not None
    for meaning in (
        "better by 2 or more nats",
        "changed by less than 0.1 nats",
        "worse by 0.5 to 1 nats",
        "not masked",
    ):
        assert meaning in legend[0]


def test_the_direction_does_not_rest_on_colour() -> None:
    """Worse tokens have a solid underline, better ones a dotted one; each step of the scale has a CSS rule."""
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    assert '[class^="worse-"] { text-decoration: underline solid' in style
    assert '[class^="better-"] { text-decoration: underline dotted' in style
    for n in range(1, len(STEPS) + 1):
        assert f".worse-{n} {{ background: var(--worse-{n})" in style
        assert f".better-{n} {{ background: var(--better-{n})" in style


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n", "↵\n"),
        ("a\tb", "a⇥\tb"),
        ("  ", "␣␣"),
        ("\u202e", "\\u202e"),
        ("\x00", "\\x00"),
        (" a", " a"),
        ("\u00a0", "\\xa0"),
    ],
)
def test_what_is_invisible_in_a_token_is_shown(text: str, shown: str) -> None:
    """Line breaks, tabs, lone spaces, direction marks and control characters are all visible."""
    tokens = (TokenChange("x"), TokenChange(text, 1.0, 1.0))
    assert passage(checks.check(worst=(DocumentChange("d", "", 0.1, tokens),)))[1][2] == shown


@pytest.mark.parametrize(("after", "css"), [(math.inf, "worse-4"), (math.nan, "worse-4"), (1.0, "calm")])
def test_losses_that_are_no_numbers_are_the_worst(after: float, css: str) -> None:
    """An infinite or NaN loss has the strongest shade, an equal loss has none."""
    tokens = (TokenChange("x", 1.0, after),)
    assert passage(checks.check(worst=(DocumentChange("d", "", 0.1, tokens),)))[0][0] == css


def test_words_stand_apart(sources: dict[str, str]) -> None:
    """Words come without spaces and are shown with spaces between them; tokens contain their own."""
    assert "Words without spaces" in Page(sources["words"]).words
    assert "The cat sat on the mat." in Page(sources["full"]).words


def test_text_from_right_to_left_is_isolated(sources: dict[str, str]) -> None:
    """Documents and prompts have their own direction; names and tokens cannot reverse the text next to them."""
    page = Page(sources["hostile"])
    assert all(a.get("dir") == "auto" for tag, a in page.tags if a.get("class") == "passage")
    assert sources["hostile"].count('<h3 dir="auto">') >= 4
    assert "<bdi>\u05e9\u05dc\u05d5\u05dd</bdi>" in sources["hostile"]
    assert '<h3 dir="auto"><strong><bdi>&lt;script&gt;' in sources["hostile"]


def test_hostile_text_stays_text(sources: dict[str, str]) -> None:
    """Documents, prompts, tokens, slices, notes and names from outside are shown, never interpreted."""
    page = Page(sources["hostile"])
    assert "<script>alert(1)</script>" in page.words
    assert "{{7*7}}" in page.words
    assert not re.search(r"[\x00\x1b\u202e]", sources["hostile"])
    assert page.words.count("<script>alert(1)</script>") >= 15


def cells(source: str, prompt: str) -> list[str]:
    """Return the words of each cell of a prompt's table: rank, before, after, rank, ..."""
    probes = source.partition('<section id="probes">')[2].split("<h3")[1:]
    card = next(part for part in probes if prompt in part).split("</table>")[0]
    return [Page(cell).words for cell in re.findall(r"<t[hd][^>]*>(?:(?!</t[hd]>).)*</t[hd]>", card, re.DOTALL)][3:]


def test_probes_stand_side_by_side(sources: dict[str, str]) -> None:
    """Each row has both words with probabilities and moves; right answers are marked; the most changed come first."""
    rows = cells(sources["full"], "Water boils")
    assert rows[:3] == ["1", "temperature now 2 0.6", "pressure was 2 0.6"]
    assert rows[-3:] == ["5", "point gone 0.0375", "x new 0.0375"]
    assert cells(sources["full"], "Plants need")[:3] == ["1", "water gone ✓ right answer 0.6", "time new 0.6"]
    assert cells(sources["full"], "The sun")[:3] == ["1", "star ✓ right answer 0.6", "star ✓ right answer 0.6"]
    text = Page(sources["full"]).words
    assert text.index("Plants need") < text.index("Water boils") < text.index("The sun is")
    assert (
        "rank-biased overlap 0; common to both: top 1: 0 %, top 5: 0 %; right answer water: rank 1 → not in the top 5"
        in text
    )
    assert re.findall(r'style="width: ([\d.]+)%"', sources["full"])[:2] == ["60.0", "60.0"]


def test_rankings_of_different_lengths_leave_a_gap() -> None:
    """A side with fewer rows has empty cells."""
    short = probe_change("A <mask>.", [Prediction(1, "one", 0.5)], [])
    assert cells(document_page_of(checks.check(probes=(short,))), "A &lt;mask") == ["1", "one gone 0.5", ""]


def test_many_probes_and_long_documents_are_cut() -> None:
    """Thousands of tokens and hundreds of prompts give a page of bounded size, which counts what is left out."""
    tokens = tuple(TokenChange(f" w{n}", 1.0, 2.0) for n in range(3000))
    probes = tuple(checks.probe(f"Prompt {n} <mask>.", "a b", "b a") for n in range(120))
    source = document_page_of(checks.check(worst=(DocumentChange("long", "", 1.0, tokens),) * 30, probes=probes))
    assert source.count('<p class="passage"') == check_page._DOCUMENTS
    assert f"and {3000 - check_page._TOKENS} more" in source
    assert "44 more prompts" in source
    assert "and 70 prompts that changed less" in source
    assert len(source) < 1_500_000


def test_what_differs_between_the_checkpoints_is_told_first(sources: dict[str, str]) -> None:
    """Differing checkpoints, digests and packages are visible; equal facts are folded and counted."""
    text = Page(sources["full"]).words.partition("Where the two checkpoints come from")[2]
    assert "checkpoint models/old models/new" in text
    assert "packages torch 2.6.0 2.7.0" in text
    assert text.index("models/new") < text.index("1 fact is the same for both")
    assert "settings p 0.15 0.15" in text


def test_equal_results_give_equal_bytes(sources: dict[str, str], tmp_path: Path) -> None:
    """The page is the same in another process with another hash seed, and is written as rendered."""
    script = (
        "import sys; from pathlib import Path; from tests.report.checks import check\n"
        "from mlmrepro.report.check import check_document; from mlmrepro.report.page import write_page\n"
        "write_page(check_document(check()), Path(sys.argv[1]))"
    )
    paths = os.pathsep.join([*sys.path, str(Path(__file__).resolve().parents[2])])
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": paths}
    path = tmp_path / "out" / "check.html"
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=tmp_path, env=environment, check=True)
    assert path.read_text(encoding="utf-8") == sources["full"]


def test_every_answer_has_its_own_page(tmp_path: Path) -> None:
    """The title of each page is the headline of its answer."""
    titles = set()
    for answer in Answer:
        write_page(check_document(checks.bare(answer)), tmp_path / "check.html")
        titles |= set(re.findall("<title>(.*?) · mlmrepro</title>", (tmp_path / "check.html").read_text("utf-8")))
    assert len(titles) == len(Answer)
    assert all(title.partition(":")[0] in {a.value for a in Answer} for title in titles)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read_on_every_shade(mode: str) -> None:
    """Text has a contrast of at least 4.5 to 1 on each shade, and each shade differs more from the page."""
    colours = palettes()[mode]
    for side in ("worse", "better"):
        shades = [colours[f"{side}-{n}"] for n in range(1, len(STEPS) + 1)]
        assert min(contrast(colours["ink"], shade) for shade in shades) >= 4.5
        distances = [contrast(colours["surface"], shade) for shade in shades]
        assert distances == sorted(distances)
        assert all(b > 1.1 * a for a, b in pairwise(distances))


def test_what_the_gate_finds_is_a_page() -> None:
    """If a topic got worse in scores judged by the gate, the page names it and shades its documents."""
    random = np.random.default_rng(0)
    documents, units = 20, 30
    place = np.repeat(np.arange(documents, dtype=np.int32), units)
    loss = random.exponential(3, documents * units).astype(np.float32)
    worse = loss + np.where(place % 2 == 0, 0.8, 0).astype(np.float32)
    rest = {
        "document": place,
        "position": np.tile(np.arange(units, dtype=np.int32), documents),
        "token": random.integers(0, 99, documents * units).astype(np.int32),
        "size": np.ones(documents * units, np.int32),
        "correct": loss < 1,
        "confidence": np.exp(-loss),
    }
    texts = [
        DocumentText(f"d{n}", ("odd", "even")[n % 2 == 0], [f" w{u}" for u in range(units)]) for n in range(documents)
    ]
    before, after = Scores(loss=loss, **rest), Scores(loss=worse, **rest)
    result = assess(
        before,
        after,
        measure="perplexity",
        margin=0.01,
        margin_nats=math.log(1.01),
        alpha=0.01,
        power=0.95,
        rounding=1e-4,
        documents=texts,
    )
    assert result.answer is Answer.REGRESSION
    source = document_page_of(result)
    page = Page(source)
    assert page.problems == []
    assert "topic even" in page.words.partition("How large")[0]
    assert f"{result.before:.5g} → {result.after:.5g}" in page.words
    assert source.count('class="worse-2" title=') == units * len(result.worst)
