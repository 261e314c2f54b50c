"""A golden file: read as it was written, refused when it is damaged, and clear about which versions expect what."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro.compare.golden import Entry, Golden, Variant, holds, lint, read_golden, versions_of, write_golden
from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.errors import UserError
from mlmrepro.record import Lane

PROVENANCE = {
    "packages": {"transformers": "5.1.0", "huggingface-hub": "1.2", "evaluate": None, "typing_extensions": "4.15"},
    "python": "3.11.7",
    "platform": {"system": "Linux"},
}
VERSIONS = versions_of(PROVENANCE)

# Words that JSON readers may take for numbers are text here: a tokenizer may well give them.
TEXT = st.text(max_size=4) | st.sampled_from(["NaN", "Infinity", "-Infinity", "é\n\u2028"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
AMOUNTS = st.floats(0, 1)
TOLERANCES = st.builds(Tolerance, st.just("nats"), AMOUNTS, AMOUNTS, st.just("why"))
RANGES = st.sampled_from(["transformers<4.48", "transformers>=4.48", "python>=3.11", "torch==2.6.*", "numpy!=2.0"])
WORDS = st.text(min_size=1, max_size=3)
VARIANTS = st.builds(Variant, VALUES, st.lists(RANGES, min_size=1, max_size=2).map(tuple), WORDS, WORDS)
MANY = st.lists(VARIANTS, min_size=1, max_size=3).map(tuple) | VALUES.map(lambda value: (Variant(value),))
ENTRIES = st.builds(Entry, st.just(Lane.EXACT), MANY) | st.builds(
    Entry,
    st.sampled_from([Lane.APPROXIMATE, Lane.RANKING, Lane.STATISTICAL]),
    MANY,
    TOLERANCES,
    st.sampled_from(["", "lower", "higher"]),
)


def written(path: Path, **entries: Any) -> Path:
    """Write a file as it would be by hand: nothing of it is checked."""
    path.write_text(json.dumps({"schema": 2, "provenance": PROVENANCE, "expected": entries}))
    return path


def variants(*whens: str, **fields: Any) -> dict[str, Any]:
    rows = [{"when": [when], "value": when, "reason": "why", "link": "https://x"} | fields for when in whens]
    return {"lane": "exact", "variants": rows}


@given(st.dictionaries(TEXT, ENTRIES, max_size=3))
def test_a_golden_is_read_as_it_was_written(entries: dict[str, Entry]) -> None:
    """Writing and reading keeps lanes, values, tolerances, variants and provenance, and gives strict JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "below" / "x.json"
        write_golden(path, Golden(PROVENANCE, entries))
        assert read_golden(path) == Golden(PROVENANCE, entries)
        json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
        assert [file.name for file in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"schema": 2}', '{"schema": 2, "provenance": {}, "expected": [1]}', "\x00"]
)
def test_a_damaged_file_is_bad_input(tmp_path: Path, content: str) -> None:
    """A truncated or foreign file is refused with its path and a remedy."""
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"x\.json is not a golden: .*Remedy: restore it"):
        read_golden(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """No prefix of a golden reads as one."""
    path = tmp_path / "x.json"
    write_golden(path, Golden(PROVENANCE, {"steps": Entry(Lane.EXACT, (Variant(18),))}))
    content = path.read_text().rstrip()
    for length in range(len(content)):
        path.write_text(content[:length])
        with pytest.raises(UserError, match="not a golden"):
            read_golden(path)


def test_an_absent_file_and_another_schema_are_bad_input(tmp_path: Path) -> None:
    """A file that is not there, or of another version of this package, is refused with its path."""
    path = tmp_path / "x.json"
    with pytest.raises(UserError) as error:
        read_golden(path)
    assert error.value.problem == f"the golden {path} cannot be read: No such file or directory"
    assert error.value.remedy == "check the path, or run the tests once"
    path.write_text('{"schema": 1}')
    with pytest.raises(UserError) as error:
        read_golden(path)
    assert error.value.problem == f"the golden {path} has schema 1, but this version reads schema 2"
    assert error.value.remedy == "make it again with --golden-update"


TOLERANCE = {"quantity": "nats", "atol": 0.1, "rtol": 0, "reason": "why"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"lane": "exact"}, "ValueError: either value or variants is needed"),
        ({"lane": "exact", "value": 1, "variants": []}, "either value or variants"),
        ({"lane": "exact", "variants": []}, "nothing is expected"),
        ({"lane": "exact", "value": 1, "valeu": 2}, "unknown fields.*valeu"),
        ({"lane": "roughly", "value": 1}, "roughly"),
        ({"lane": "info", "value": 1}, "cannot be expected"),
        ({"value": 1}, "lane"),
        ({"lane": "approximate", "value": 1}, "needs a tolerance"),
        ({"lane": "ranking", "value": []}, "needs a tolerance"),
        ({"lane": "approximate", "value": 1, "tolerance": TOLERANCE | {"reason": ""}}, "a quantity and a reason"),
        ({"lane": "approximate", "value": 1, "tolerance": TOLERANCE | {"atol": -1}}, "not a finite number"),
        ({"lane": "approximate", "value": 1, "tolerance": TOLERANCE | {"extra": 1}}, "extra"),
        ({"lane": "exact", "value": 1, "better": "faster"}, "faster"),
        (variants("transformers"), "names no version"),
        (variants("transformers >> 5"), "not a version range"),
        (variants("transformers<5", "transformers>=5", reason=""), "a reason and a link"),
        (variants("transformers<5", "transformers>=5", link=""), "a reason and a link"),
        (variants("transformers<5", "transformers>=5", when=[]), "`when`"),
        ("exact", "unknown fields"),
        ({"lane": "exact", "value": math.nan}, "not finite"),
        ({"lane": "exact", "value": [{"a": -math.inf}]}, "not finite"),
    ],
)
def test_a_damaged_entry_is_bad_input_and_named(tmp_path: Path, entry: Any, said: str) -> None:
    """An entry that expects nothing clear is refused, with its name and its file."""
    path = written(tmp_path / "x.json", steps={"lane": "exact", "value": 1}, **{"eval loss": entry})
    with pytest.raises(UserError, match=said) as error:
        read_golden(path)
    assert "'eval loss'" in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, [1, {"a": -math.inf}], (math.nan,)])
def test_what_is_not_finite_is_never_written(tmp_path: Path, bad: Any) -> None:
    """NaN and the infinities agree with nothing, so no golden holds them, in no variant; the old file stays."""
    path = tmp_path / "x.json"
    write_golden(path, Golden(PROVENANCE, {"steps": Entry(Lane.EXACT, (Variant(18),))}))
    before = path.read_bytes()
    rows = tuple(Variant(value, (when,), "why", "link") for value, when in ((1, "python<3"), (bad, "python>=3")))
    for several in ((Variant(bad),), rows):
        with pytest.raises(UserError) as error:
            write_golden(path, Golden(PROVENANCE, {"loss": Entry(Lane.EXACT, several)}))
        assert error.value.problem == f"the value of 'loss' is not finite, in the golden {path}"
        assert error.value.remedy == "fix what produces NaN or infinity: a golden cannot hold it"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("transformers>=5.0", True),
        ("transformers<5", False),
        ("transformers>=5,<5.1", False),
        ("transformers~=5.0", True),
        ("Transformers==5.1.*", True),
        ("python>=3.11", True),
        ("python<3.11", False),
        ("huggingface_hub>=1", True),
        ("typing-extensions>=4", True),
        ("evaluate>=0", False),  # not installed
        ("accelerate!=1", False),  # not known
    ],
)
def test_a_range_holds_for_the_versions_in_it(requirement: str, expected: bool) -> None:
    """Packages by any spelling, and python; an absent package fulfils no range."""
    assert holds(requirement, VERSIONS) is expected


def test_a_release_candidate_lies_in_a_range() -> None:
    """A candidate counts as its release, so that exactly one of two ranges holds; what is no version as the lowest."""
    assert holds("transformers>=5.0", {"transformers": "5.1.0rc1"})
    assert holds("transformers>=5.0", {"transformers": "5.0.0rc1"})
    assert not holds("transformers<5.0", {"transformers": "5.0.0.dev0"})
    assert not holds("transformers>=5.0", {"transformers": "a branch"})


def test_the_variant_is_chosen_by_the_versions(tmp_path: Path) -> None:
    """Of several variants those hold whose every range does; without ranges it is always the one."""
    path = written(
        tmp_path / "x.json",
        attention=variants("transformers<4.48", "transformers>=4.48"),
        gap=variants("transformers<4", "transformers>=6"),
        overlap=variants("transformers>=4", "python>=3.11"),
        both=variants("transformers<4.48", when=["transformers>=5", "python<3.11"]),
        plain={"lane": "exact", "value": "always"},
    )
    entries = read_golden(path).entries
    assert {name: [v.value for v in entry.matching(VERSIONS)] for name, entry in entries.items()} == {
        "attention": ["transformers>=4.48"],
        "gap": [],
        "overlap": ["transformers>=4", "python>=3.11"],
        "both": [],
        "plain": ["always"],
    }
    assert [v.value for v in entries["attention"].matching({"transformers": "4.41.2"})] == ["transformers<4.48"]


def test_lint_accepts_a_sound_golden(tmp_path: Path) -> None:
    """Exactly one variant for the versions it was made with, links that are addresses, and a whole header."""
    entries = {
        "plain": {"lane": "exact", "value": 1},
        "bound": variants("python<3.11", "python>=3.11"),
        "above": variants("python<=3.10", "python>3.10", link="http://x"),
        "family": variants("transformers<5", "transformers==5.*", "transformers>=6"),
        "family and the rest": variants("python==3.*", "python!=3.*"),
    }
    assert lint(written(tmp_path / "x.json", **entries)) == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (variants("python<3.11", "python<3"), "0 variants hold"),
        (variants("python>=3.11", "python>=3"), "2 variants hold"),
        (variants("python<3", "python<3", "python>=3"), "2 variants hold for python 0"),
        (variants("python<3.9", "python>=3.10"), "0 variants hold for python 3.9, not one"),
        (variants("python<=3.10", "python>=3.11"), "0 variants hold for python 3.10.0.1, not one"),
        (variants("python<3,>=3", "python<3", "python>=3"), "no version satisfies python<3,>=3"),
        (variants("python>=3.11", "python<3.11", link="see the notes"), "'see the notes' is not an address"),
    ],
)
def test_lint_finds_a_planted_problem(tmp_path: Path, entry: Any, said: str) -> None:
    """Each problem is one line, with the file and the entry."""
    path = written(tmp_path / "x.json", sound={"lane": "exact", "value": 1}, planted=entry)
    lines = lint(path)
    assert any(said in line for line in lines)
    assert all(line.startswith(f"{path}: 'planted': ") for line in lines)


def test_lint_wants_a_header_and_an_entry(tmp_path: Path) -> None:
    """A golden without versions, or without anything expected, is named."""
    path = tmp_path / "x.json"
    path.write_text('{"schema": 2, "provenance": {"python": "3.11.7"}, "expected": {}}')
    assert [line.removeprefix(f"{path}: ") for line in lint(path)] == [
        "its provenance lacks 'packages'",
        "its provenance lacks 'platform'",
        "it expects nothing",
    ]


def test_lint_tells_every_problem(tmp_path: Path) -> None:
    """What is wrong with the header, the versions, the ranges and the links stands together, a line each."""
    uneven = {"lane": "exact", "variants": []}
    rows = [(["python<3", "torch<2"], "a"), (["python>=3", "torch>=2", "torch<1"], "see the notes")]
    uneven["variants"] = [{"when": when, "value": 1, "reason": "why", "link": link} for when, link in rows]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"schema": 2, "provenance": PROVENANCE | {"platform": {}}, "expected": {"e": uneven}}))
    lines = [line.removeprefix(f"{path}: ") for line in lint(path)]
    assert lines[:3] == [
        "its provenance lacks 'platform'",
        "'e': 0 variants hold for the versions that it was made with, not one",
        "'e': 0 variants hold for python 0 and torch 2, not one",
    ]
    assert lines[-3:] == [
        "'e': no version satisfies python>=3 and torch>=2 and torch<1",
        "'e': the link 'a' is not an address",
        "'e': the link 'see the notes' is not an address",
    ]


def test_a_golden_is_laid_out_to_be_read_and_compared_line_by_line(tmp_path: Path) -> None:
    """One value a line with one space for each level, letters as they are, and no more fields than are needed."""
    path = tmp_path / "x.json"
    write_golden(path, Golden({"python": "3.11.7"}, {"größe": Entry(Lane.EXACT, (Variant("é"),))}))
    assert path.read_text(encoding="utf-8").splitlines() == [
        "{",
        ' "schema": 2,',
        ' "provenance": {',
        '  "python": "3.11.7"',
        " },",
        ' "expected": {',
        '  "größe": {',
        '   "lane": "exact",',
        '   "value": "é"',
        "  }",
        " }",
        "}",
    ]
