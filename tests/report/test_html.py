"""The page of a drift: complete, self-contained, safe and readable."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlmrepro.compare.drift import Drift, Outcome
from mlmrepro.compare.golden import Variant
from mlmrepro.record import STAGES
from mlmrepro.report import comparison, plots
from mlmrepro.report.drift import drift_document
from mlmrepro.report.page import TEMPLATES, document_page, write_page
from mlmrepro.report.svg import SERIES

from .records import LINK, drift, golden, record

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
HOSTILE = "<script>alert(1)</script>|\"'[/i]${7*7}{{7*7}}\x00\x1b"


class Page(HTMLParser):
    """A parsed page: its tags, attributes and text, and problems with unbalanced tags."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.problems: list[str] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def drift_page(found: Drift) -> str:
    return document_page(drift_document(found))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drift_page(drift(tmp_path_factory.mktemp("golden")))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_the_page_is_well_formed(page: Page) -> None:
    """Every tag is closed, ids are unique, and each link within the page has a target."""
    assert page.problems == []
    assert [name for name, n in Counter(page.all("id")).items() if n > 1] == []
    inner = {link[1:] for link in page.all("href") if link.startswith("#")}
    assert inner <= set(page.all("id"))
    for names in page.all("aria-labelledby"):
        assert set(names.split()) <= set(page.all("id"))


def test_the_page_fetches_nothing(source: str, page: Page) -> None:
    """There are no scripts and no external images, fonts or styles; the only outgoing links are declared ones."""
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "embed", "video", "audio"} == set()
    assert page.all("src") == []
    outer = {(tag, a["href"]) for tag, a in page.tags if "href" in a and not a["href"].startswith("#")}
    assert outer == {("link", "data:,"), ("a", LINK)}
    assert re.findall(r"url\((?!#)|@import|@font-face", source) == []
    assert "default-src 'none'" in source
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_answer_stands_first(page: Page) -> None:
    """The first lines give the verdict, the number of changes, where they begin, and what to do."""
    start = page.words[:1200]
    for part in (
        "REGRESSION: some changes are unexpected.",
        "3 changes between t4.41 and t5.23: 1 expected, 2 REGRESSION.",
        "first divergence model.attention 'eager' → 'sdpa', at step t4.41 → t4.48",
        "1 fails (unmeasured)",
        "Next: look at loss.step_losses.",
    ):
        assert part in start


def test_the_map_has_every_stage_and_environment(source: str) -> None:
    """Each environment has a row with a word in each stage's cell, or with its problem if it has no record."""
    section = re.search(r'<section id="map">.*?</section>', source, re.DOTALL)
    assert section is not None
    map_page = Page(section[0])
    for name in ("t4.41", "t4.48", "t5.1", "t5.23", "t5.23-d2.19", *STAGES):
        assert name in map_page.words
    assert "t5.1: no record: pip found no wheel (log: logs/t5.1.log)" in map_page.words
    cells = [attributes for tag, attributes in map_page.tags if tag == "td"]
    assert len(cells) == 5 * len(STAGES)
    row = section[0].split("<bdi>t5.23</bdi>")[1].split("</tr>")[0]
    assert "fails" in row
    shown = re.findall(r'class="word">(.*?)<', row)
    assert shown[-4:] == ["expected"] + ["REGRESSION •"] * 3
    assert re.search(r'href="#step-2-1-loss".*href="#step-2-1-loss"', row, re.DOTALL)  # evaluation links to its cause


def test_every_figure_has_a_text_alternative(source: str) -> None:
    """Each drawing has a title, a description and a table of its numbers."""
    drawn = re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', source, re.DOTALL)
    assert len(drawn) == 4
    for svg in drawn:
        assert re.search(r'<title id="[\w-]+">[^<]{10,}</title><desc id="[\w-]+">[^<]{20,}</desc>', svg)
    assert source.count("<summary>numbers</summary>") == 4


def test_figures_take_the_colours_of_the_page(source: str) -> None:
    """Drawings have no colours or fonts of their own, so that dark mode and the reader's fonts apply."""
    for svg in re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', source, re.DOTALL):
        assert re.findall(r"#[0-9a-fA-F]{6}\b|font-family", svg) == []
    assert all(code not in source for code in SERIES)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """Names, tokens, warnings, problems, settings, reasons and links from outside are shown, never interpreted."""
    rows = [{"score": 0.5, "token": 1, "token_str": HOSTILE, "sequence": HOSTILE}]
    other = record("5.23.0", "5.2.0", model__attention=HOSTILE, fill_mask__pipeline=rows, loss__warnings=[HOSTILE])
    other.config["guide"] |= {HOSTILE: HOSTILE, "prompt": HOSTILE}
    declared = {
        "model.attention": (
            Variant("eager", ("transformers<5",), HOSTILE, "javascript:alert(1)"),
            Variant(HOSTILE, ("transformers>=5",), HOSTILE, 'https://x.org/"onload="alert(1)'),
        )
    }
    outcomes = [Outcome("a", record()), Outcome(HOSTILE, other), Outcome("c", None, HOSTILE, HOSTILE)]
    found = Page(drift_page(Drift(outcomes, golden(tmp_path, record(), declared))))
    assert found.problems == []
    assert "script" not in {tag for tag, _ in found.tags}
    assert [link for link in found.all("href") if not link.startswith("#")] == ["data:,"]
    assert "<script>alert(1)</script>" in found.words
    assert "{{7*7}}" in found.words
    assert "\x00" not in found.words
    assert "\x1b" not in found.words


def test_equal_drifts_give_equal_bytes(source: str, tmp_path: Path) -> None:
    """The page is the same in another process with another hash seed, so it can be stored and compared."""
    script = (
        "import sys; from pathlib import Path; from tests.report.records import drift\n"
        "from mlmrepro.report.drift import drift_document; from mlmrepro.report.page import write_page\n"
        "write_page(drift_document(drift(Path(sys.argv[1]))), Path(sys.argv[2]))"
    )
    paths = os.pathsep.join([*sys.path, str(Path(__file__).resolve().parents[2])])  # the tests' folder is last
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", script, str(tmp_path / "golden"), str(tmp_path / "drift.html")]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "drift.html").read_text(encoding="utf-8") == source


@pytest.mark.parametrize("outcomes", [[], [Outcome("a", None, "boom")]])
def test_no_record_at_all_is_still_a_page(outcomes: list[Outcome], tmp_path: Path) -> None:
    """If every environment failed, there is a page that says so."""
    write_page(drift_document(Drift(outcomes)), tmp_path / "drift.html")
    found = Page((tmp_path / "drift.html").read_text(encoding="utf-8"))
    assert found.problems == []
    assert "Nothing was measured: there is no record." in found.words
    assert all(outcome.problem in found.words for outcome in outcomes)


def test_one_record_is_a_page() -> None:
    """One record without goldens gives figures, but no changes."""
    found = Page(drift_page(Drift([Outcome("a", record())])))
    assert found.problems == []
    assert "there is nothing to compare it with" in found.words
    assert "changes" not in found.all("id")


def test_records_without_stages_and_numbers() -> None:
    """Missing stages, NaN losses and values of the wrong kind leave gaps, not errors."""
    empty = record("5.0.0", "4.0.0")
    empty.stages = {"dataset": empty.stages["dataset"]}
    odd = record(
        "5.23.0",
        "5.2.0",
        loss__step_losses=[math.nan, math.inf, "x", 4.5],
        evaluation__perplexity=math.inf,
        masked_batches__counts={"tokens": 0, "selected": 3},
        fill_mask__pipeline="none",
        evaluation__same_masks_perplexity=[],
    )
    found = Page(drift_page(Drift([Outcome("a", record()), Outcome("b", empty), Outcome("c", odd)])))
    assert found.problems == []
    assert "3 of the losses are not finite" in found.words
    assert "none not measured on one side" in found.words


def test_long_lists_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value with thousands of differences is listed up to a limit, and the rest is counted."""
    monkeypatch.setattr(plots, "drawings", lambda _: [])
    many = [float(n) for n in range(5000)]
    found = Page(
        drift_page(
            Drift([Outcome("a", record(loss__step_losses=many)), Outcome("b", record(loss__step_losses=many[::-1]))])
        )
    )
    assert f"and {5000 - comparison._DIFFERENCES} more" in found.words
    assert len(found.words) < 40_000


def luminance(colour: str) -> float:
    """Return the relative luminance of ``#rrggbb`` as WCAG 2 defines it."""
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def palettes() -> dict[str, dict[str, str]]:
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    roots = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    return dict(zip(("light", "dark"), roots, strict=True))


TEXT = [(ink, ground) for ink in ("ink", "muted", "link", "bad-text") for ground in ("page", "surface")]
TEXT += [(f"{name}-ink", name) for name in ("same", "noise", "expected", "better", "unsure", "none", "bad")]
TEXT += [("muted", "none"), ("expected-ink", "page"), ("better-ink", "page"), ("unsure-ink", "page")]
TEXT += [("surface", f"c{n}") for n in range(1, 7)]  # the names inside the bars


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_can_be_told_apart(mode: str) -> None:
    """Text has a contrast of at least 4.5 to 1 (WCAG AA), lines of figures 3 to 1, in light and dark mode."""
    colours = palettes()[mode]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    low = {pair: contrast(*(colours[name] for name in pair)) for pair in TEXT}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}
    assert all(contrast(colours[f"c{n}"], colours["surface"]) >= 3 for n in range(1, 7))


def test_both_modes_name_the_same_colours() -> None:
    """Both modes define the same colours, and every colour in use is defined."""
    light, dark = palettes().values()
    assert set(light) == set(dark)
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    used = set(re.findall(r"var\(--([\w-]+)\)", style))
    assert used - {"accent", "accent-ink"} <= set(light)
