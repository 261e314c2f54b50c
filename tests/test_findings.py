"""The page of findings: made of what the suite checks, and up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlmrepro.compare.golden import Variant, read_golden
from mlmrepro.record import STAGES

from . import findings

GOLDENS = [read_golden(findings.ROOT / "golden" / "embedded" / f"{stage}.json") for stage in STAGES]


@pytest.mark.quick
def test_the_page_is_up_to_date() -> None:
    """golden/FINDINGS.md is what `python -m tests.findings` writes."""
    assert findings.PAGE.read_text(encoding="utf-8") == findings.page()


@pytest.mark.quick
def test_a_changed_declaration_changes_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The page is made of the declarations, so that one that is missing is missed."""
    written = findings.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(findings, "known_breaches", lambda: ())
    assert findings.page() != written


@pytest.mark.quick
def test_every_change_of_a_golden_has_a_row() -> None:
    """Each value that differs between releases is in the table, with a link."""
    page = findings.page()
    names = [name for golden in GOLDENS for name, entry in golden.entries.items() if len(entry.variants) > 1]
    assert len(names) > 100
    assert [name for name in names if f"`{name}`" not in page] == []
    links = [variant.link for golden in GOLDENS for e in golden.entries.values() for variant in e.variants[1:]]
    assert all(link.startswith("https://") and link in page for link in links)


@pytest.mark.quick
def test_a_variant_without_a_first_release_is_refused() -> None:
    """A table of releases needs one."""
    with pytest.raises(ValueError, match="no first release"):
        findings._first(Variant(1, ("transformers<5",)))


def unconfirmed(bisections: str, page: str) -> list[str]:
    """Return the bisected changes for which the page names another release, or none."""
    found = re.findall(r"(?m)^- \*\*(\S+\.\S+)\*\*: .*, (\w+) (\d+\.\d+)\.\S+ \(", bisections)
    assert len(found) >= 8
    rows = [row for row in page.splitlines() if row.startswith("| ")]
    return [
        name
        for name, package, minor in found
        if not any(
            row.startswith(f"| {package} {minor} | {name.partition('.')[0]} |") and f"`{name.partition('.')[2]}`" in row
            for row in rows
        )
    ]


@pytest.mark.quick
def test_bisected_changes_agree_with_the_page() -> None:
    """golden/BISECTIONS.md names the release of each change as the declarations do; a wrong one is noticed."""
    bisections = (findings.ROOT / "golden" / "BISECTIONS.md").read_text(encoding="utf-8")
    page = findings.PAGE.read_text(encoding="utf-8")
    assert unconfirmed(bisections, page) == []
    moved = bisections.replace("transformers 4.48.0 (", "transformers 4.47.1 (")
    assert unconfirmed(moved, page) == ["model.off_path.old_names.without_format_metadata_loss"]
