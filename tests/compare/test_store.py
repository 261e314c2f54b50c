"""The goldens of a directory: two-sided, never content with something absent, and whole whatever happens."""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from mlmrepro import provenance
from mlmrepro.compare.golden import Entry, Golden, Variant, read_golden, versions_of, write_golden
from mlmrepro.compare.store import GoldenMismatch, GoldenStore, Obtained, Update, file_key
from mlmrepro.compare.tolerance import Tolerance
from mlmrepro.compare.values import differences
from mlmrepro.errors import UserError
from mlmrepro.record import Lane

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.sampled_from(["", "a", "NaN", "\u2028"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))
NATS = Tolerance("nats", atol=0.1, reason="test")
TOLERANCES = {Lane.EXACT: None, Lane.APPROXIMATE: NATS, Lane.RANKING: NATS, Lane.STATISTICAL: NATS}
LANES = st.sampled_from(list(TOLERANCES))
MADE_WITH = {"packages": {"transformers": "4.41.2"}, "python": "3.11.7", "platform": {"system": "Linux"}}
LINK = "https://x/1"
ROWS = [{"token": 7, "score": 0.5}, {"token": 8, "score": 0.2}]


@pytest.fixture(autouse=True, scope="module")
def _known_versions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "collect", lambda: copy.deepcopy(MADE_WITH))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "golden"


def make_store(folder: Path, update: Update = "", transformers: str = "4.41.2") -> GoldenStore:
    store = GoldenStore(folder, update)
    store.versions = versions_of({"packages": {"transformers": transformers}, "python": "3.11.7"})
    return store


def expect(folder: Path, name: str, value: Any, lane: Lane = Lane.EXACT, file: str = "f", **fields: Any) -> None:
    """Put one entry into a golden; a tuple of variants is one entry with them."""
    path = folder / f"{file}.json"
    golden = read_golden(path) if path.exists() else Golden(dict(MADE_WITH))
    variants = value if isinstance(value, tuple) else (Variant(value),)
    golden.entries[name] = Entry(lane, variants, TOLERANCES[lane], **fields)
    write_golden(path, golden)


def expected(folder: Path, name: str, file: str = "f") -> Any:
    (variant,) = read_golden(folder / f"{file}.json").entries[name].variants
    return variant.value


def by_version(old: Any, new: Any) -> tuple[Variant, Variant]:
    return (
        Variant(old, ("transformers<5",), "the default changed", LINK),
        Variant(new, ("transformers>=5",), "the default changed", LINK),
    )


def message(store: GoldenStore, value: Any, lane: Lane = Lane.EXACT, **fields: Any) -> str:
    """Return what a check that has to fail says."""
    with pytest.raises(GoldenMismatch) as error:
        store.check("f", "x", value, lane, **{"tolerance": TOLERANCES[lane]} | fields)
    return str(error.value)


@given(VALUES, LANES)
def test_what_was_written_is_met_by_an_equal_value(value: Any, lane: Lane) -> None:
    """A first check fails and writes, a second one with an equal value passes, in every lane."""
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(GoldenMismatch, match="there was no golden; this one was written"):
            make_store(Path(folder)).check("f", "x", value, lane, TOLERANCES[lane])
        before = (Path(folder) / "f.json").read_bytes()
        for update in ("", "new", "all"):
            make_store(Path(folder), update).check("f", "x", copy.deepcopy(value), lane, TOLERANCES[lane])
            assert (Path(folder) / "f.json").read_bytes() == before


@given(VALUES, VALUES, LANES)
def test_a_check_passes_where_nothing_differs_and_only_there(wanted: Any, value: Any, lane: Lane) -> None:
    """Without an update and with "new", a check agrees with `differences`, and no existing entry changes."""
    agrees = not differences(lane, wanted, value, NATS)
    with tempfile.TemporaryDirectory() as folder:
        expect(Path(folder), "x", wanted, lane)
        before = (Path(folder) / "f.json").read_bytes()
        for update in ("", "new"):
            found = make_store(Path(folder), update).problems("f.json", [Obtained("x", value, lane, TOLERANCES[lane])])
            assert (found == []) == agrees
            assert (Path(folder) / "f.json").read_bytes() == before


@given(VALUES, VALUES, LANES)
def test_update_all_replaces_what_holds_here(wanted: Any, value: Any, lane: Lane) -> None:
    """The obtained value is expected afterwards, where it was; other variants, reasons, links and entries stay."""
    with tempfile.TemporaryDirectory() as folder:
        expect(Path(folder), "x", by_version(wanted, "other"), lane)
        expect(Path(folder), "y", wanted)
        make_store(Path(folder), "all").check("f", "x", value, lane, TOLERANCES[lane])
        entries = read_golden(Path(folder) / "f.json").entries
        assert json.dumps([v.value for v in entries["x"].variants]) == json.dumps([value, "other"])
        assert [(v.when, v.reason, v.link) for v in entries["x"].variants] == [
            (v.when, v.reason, v.link) for v in by_version(0, 0)
        ]
        assert entries["y"] == Entry(Lane.EXACT, (Variant(wanted),))
        make_store(Path(folder)).check("f", "x", value, lane, TOLERANCES[lane])


@pytest.mark.parametrize("update", ["", "new", "all"])
def test_an_absent_entry_is_written_and_fails_unless_asked_for(folder: Path, update: Update) -> None:
    """An entry or a file that is not there never passes by itself; the header says what it was made with."""
    expect(folder, "y", 1)
    for file in ("f", "other"):
        store = make_store(folder, update)
        if update:
            store.check(file, "x", [1], Lane.EXACT)
        else:
            with pytest.raises(GoldenMismatch, match=rf"{file}\.json: 'x': there was no golden.*\n.*\[1\]"):
                store.check(file, "x", [1], Lane.EXACT)
        assert expected(folder, "x", file) == [1]
        assert read_golden(folder / f"{file}.json").provenance == MADE_WITH
        assert store.used == {(f"{file}.json", "x")}
    assert expected(folder, "y") == 1


@pytest.mark.parametrize("update", ["", "new", "all"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, [1.0, {"a": -math.inf}]])
def test_what_is_not_finite_is_never_written(folder: Path, bad: Any, update: Update) -> None:
    """NaN and infinity fail, absent or expected otherwise, and leave every golden as it was."""
    assert "not written" in message(make_store(folder, update), bad, Lane.APPROXIMATE)
    assert not folder.exists()
    expect(folder, "x", 1.0, Lane.APPROXIMATE)
    assert "REGRESSION" in message(make_store(folder, update), bad, Lane.APPROXIMATE)
    assert expected(folder, "x") == 1.0


def test_a_ranking_that_never_agrees_is_not_written(folder: Path) -> None:
    """A token named twice could not be met by itself again."""
    assert "not written" in message(make_store(folder, "new"), [ROWS[0], ROWS[0]], Lane.RANKING)


def test_values_are_taken_as_json_gives_them_back(folder: Path) -> None:
    """Tuples are lists and keys are text; what JSON cannot hold is an error that names the entry."""
    store = make_store(folder, "new")
    store.check("f", "x", {1: (2, (3,))}, Lane.EXACT)
    store.check("f", "x", {"1": [2, [3]]}, Lane.EXACT)
    store.check("f", "x", {1: (2, (3,))}, Lane.EXACT)
    for bad in (Decimal(1), {1}, "\ud800"):
        with pytest.raises(TypeError, match="'y': a golden can hold only JSON values"):
            store.check("f", "y", bad, Lane.EXACT)


def test_two_values_under_one_name_are_no_update(folder: Path) -> None:
    """What a run has written itself is compared: the second of two values that differ fails, also under "all"."""
    for update in ("all", "new"):
        store = make_store(folder, update)
        store.check("f", "x", 1, Lane.EXACT)
        assert "REGRESSION" in message(store, 2)
        store.check("f", "x", 1, Lane.EXACT)
        assert store.problems(f"{update}.json", [Obtained("x", 1, Lane.EXACT)] * 2) == []


def test_a_mismatch_says_all_there_is_to_know(folder: Path) -> None:
    """File, entry, both values, each difference, tolerance, variant with reason and link, command and question."""
    expect(folder, "x", by_version([1.0, 2.0], None), Lane.APPROXIMATE)
    text = message(make_store(folder), [1.5, 2.0], Lane.APPROXIMATE)
    assert text.splitlines() == [
        f"{folder}/f.json: 'x': REGRESSION",
        "  obtained: [1.5, 2.0]",
        "  expected: [1.0, 2.0]",
        "  [0]: expected 1.0, obtained 1.5 (differs by +0.5)",
        "  tolerance: 0.1 (nats): test",
        f"  holds here: the variant for transformers<5, [1.0, 2.0]: the default changed ({LINK})",
        "",
        "Is this a regression? If not, update the golden:",
        "    pytest ... --golden-update",
        "or, if only some versions change it, declare it for these (see the variants of a golden).",
    ]


def test_a_mismatch_is_short(folder: Path) -> None:
    """Of many differences the first are shown and the rest counted; a long value is cut."""
    expect(folder, "x", list(range(1000)))
    lines = message(make_store(folder), list(range(1, 1001))).splitlines()
    assert lines[12:14] == ["  [9]: expected 9, obtained 10 (differs by +1)", "  and 990 more differences"]
    assert max(map(len, lines)) < 500
    assert "characters)" in lines[1]


@pytest.mark.parametrize(("ours", "said"), [("4", "no variant holds"), ("5.1", "2 variants hold")])
@pytest.mark.parametrize("update", ["", "new", "all"])
def test_one_variant_must_hold(folder: Path, ours: str, said: str, update: Update) -> None:
    """Where none holds, or two do, a check fails under every update, changes nothing, and shows all or both."""
    rows = (Variant(1, ("transformers>4", "python>=3"), "why", LINK), Variant(1, ("transformers>=5",), "so", LINK))
    expect(folder, "x", rows)
    text = message(make_store(folder, update, transformers=ours), 1)
    assert said in text
    holds = "does not hold" if ours == "4" else "holds"
    assert f"  {holds} here: the variant for transformers>4 and python>=3, 1: why ({LINK})" in text
    assert f"  {holds} here: the variant for transformers>=5, 1: so ({LINK})" in text
    assert read_golden(folder / "f.json").entries["x"].variants == rows


def test_the_tolerance_of_the_golden_holds_where_the_call_gives_none(folder: Path) -> None:
    """The golden's own tolerance decides, in both directions, and an update keeps it."""
    expect(folder, "x", 1.0, Lane.APPROXIMATE)
    for quantity in ("", "nats"):
        store = make_store(folder)
        assert store.problems("f.json", [Obtained("x", 1.09, Lane.APPROXIMATE, quantity=quantity)]) == []
        assert store.problems("f.json", [Obtained("x", 1.11, Lane.APPROXIMATE, quantity=quantity)])
    make_store(folder, "all").check("f", "x", 2.0, Lane.APPROXIMATE)
    assert read_golden(folder / "f.json").entries["x"] == Entry(Lane.APPROXIMATE, (Variant(2.0),), NATS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tolerance": Tolerance("nats", atol=0.2, reason="test")}, "the test has 0.2 (nats)"),
        ({"tolerance": Tolerance("nats", 0.1, 0.1, "test")}, "the test has 0.1 + 0.1 of the expected value (nats)"),
        ({"tolerance": Tolerance("norm", 0.1, reason="test")}, "the test has 0.1 (norm)"),
        ({"tolerance": None, "quantity": "norm"}, "the test has 1e-05 of the expected value (norm)"),
        ({"lane": Lane.EXACT, "tolerance": None}, "uses the approximate lane, the test uses the exact lane"),
        ({"lane": Lane.STATISTICAL}, "uses the approximate lane, the test uses the statistical lane"),
    ],
)
def test_changed_terms_are_a_change(folder: Path, changed: dict[str, Any], said: str) -> None:
    """Another lane or tolerance than the golden's fails though the value is equal; an update takes the call's."""
    expect(folder, "x", 1.0, Lane.APPROXIMATE, better="lower")
    call = Obtained(**{"name": "x", "value": 1.0, "lane": Lane.APPROXIMATE, "tolerance": NATS} | changed)
    (problem,) = make_store(folder).problems("f.json", [call])
    assert said in problem
    assert make_store(folder, "all").problems("f.json", [call]) == []
    assert make_store(folder).problems("f.json", [call]) == []
    entry = read_golden(folder / "f.json").entries["x"]
    assert (entry.lane, entry.better) == (call.lane, "lower")


def test_another_reason_is_no_change(folder: Path) -> None:
    """The same numbers for a reason in other words are the same tolerance."""
    expect(folder, "x", 1.0, Lane.APPROXIMATE)
    make_store(folder).check("f", "x", 1.0, Lane.APPROXIMATE, Tolerance("nats", 0.1, reason="measured again"))


def test_an_improvement_fails_and_is_called_so(folder: Path) -> None:
    """Two-sided: a golden that is no longer reached from above would hide the way back."""
    expect(folder, "x", 3.0, Lane.STATISTICAL, better="lower")
    assert "'x': improvement" in message(make_store(folder), 2.0, Lane.STATISTICAL)
    assert "'x': REGRESSION" in message(make_store(folder), 4.0, Lane.STATISTICAL)


def test_the_better_side_is_written_as_the_call_gives_it(folder: Path) -> None:
    """A new entry knows from its test which direction is an improvement."""
    make_store(folder, "new").check("f", "x", 3.0, Lane.STATISTICAL, NATS, better="lower")
    assert read_golden(folder / "f.json").entries["x"].better == "lower"
    assert "'x': improvement" in message(make_store(folder), 2.0, Lane.STATISTICAL)


@pytest.mark.parametrize("update", ["", "new", "all"])
def test_a_golden_that_agrees_is_not_written_again(folder: Path, update: Update) -> None:
    """One that was laid out by hand stays as it is, byte for byte, while nothing in it changes."""
    expect(folder, "x", 1)
    path = folder / "f.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=4), encoding="utf-8")
    before = path.read_bytes()
    make_store(folder, update).check("f", "x", 1, Lane.EXACT)
    assert path.read_bytes() == before


def test_each_user_of_a_machine_has_a_lock_of_his_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user's lock cannot be opened by another; a system without numbers of users has a lock too."""
    taken: list[Path] = []

    def taking(path: Path) -> FileLock:
        taken.append(path)
        return FileLock(path)

    monkeypatch.setattr("mlmrepro.compare.store.FileLock", taking)
    for user in (1001, 1002, 1001):
        monkeypatch.setattr(os, "getuid", lambda user=user: user, raising=False)
        make_store(folder, "new").check("f", "x", 1, Lane.EXACT)
    assert taken[0] == taken[2] != taken[1]
    monkeypatch.delattr(os, "getuid")
    make_store(folder).check("f", "x", 1, Lane.EXACT)


def test_a_damaged_golden_stays_unless_all_is_updated(folder: Path) -> None:
    """A file that is no golden is named and left alone; only "all" makes it again."""
    folder.mkdir()
    path = folder / "f.json"
    path.write_text("<<<<<<< ours")
    for update in ("", "new"):
        with pytest.raises(UserError, match=r"f\.json is not a golden"):
            make_store(folder, update).check("f", "x", 1, Lane.EXACT)
        assert path.read_text() == "<<<<<<< ours"
    make_store(folder, "all").check("f", "x", 1, Lane.EXACT)
    assert expected(folder, "x") == 1
    path.write_text("<<<<<<< ours")
    assert make_store(folder, "all").leftover("f.json", set()) == []
    assert not path.exists()


def test_declared_changes_that_hold_here_are_noted(folder: Path) -> None:
    """A variant that did not hold where the golden was made is noted, others and mismatches are not."""
    expect(folder, "x", by_version("eager", "sdpa"))
    expect(folder, "plain", 1)
    old, new, wrong = (make_store(folder, transformers=version) for version in ("4.40", "5.1", "5.1"))
    old.check("f", "x", "eager", Lane.EXACT)
    assert old.declared == set()
    message(wrong, "eager")
    assert wrong.declared == set()
    new.check("f", "x", "sdpa", Lane.EXACT)
    new.check("f", "plain", 1, Lane.EXACT)
    assert list(map(str, new.declared)) == [f"f.json 'x' with transformers>=5: the default changed ({LINK})"]


PARTS = st.text("abAB/\\._~-[]: é", min_size=0, max_size=4) | st.sampled_from(
    ["..", ".", "x" * 99, "x" * 300, "inputs"]
)
KEYS = st.lists(PARTS, min_size=1, max_size=3)


@given(KEYS, KEYS)
def test_two_keys_never_share_a_file(a: list[str], b: list[str]) -> None:
    """Different parts give different files, also where the file system knows no case."""
    for others in (b, [part.swapcase() for part in a], file_key(*a).removesuffix(".json").split("/")):
        assert (file_key(*a).casefold() == file_key(*others).casefold()) == (a == others)


@given(KEYS)
def test_a_key_stays_below_the_directory(parts: list[str]) -> None:
    """Each part is one short plain name that leads nowhere else, and is its own key no second time."""
    names = file_key(*parts).split("/")
    assert len(names) == len(parts)
    assert all(0 < len(name) < 130 and name.isascii() and not name.startswith(".") for name in names)
    assert not set(names[:-1]) & {"inputs", "matrix"}
    key = file_key(*parts)
    assert key == "/".join(parts) + ".json" or file_key(*key.removesuffix(".json").split("/")) != key


def test_a_plain_key_is_readable() -> None:
    """Lower-case names with parameters stay as they are; others keep what can be read of them."""
    assert file_key("tests", "test_loss", "test_it[0.1-a]") == "tests/test_loss/test_it[0.1-a].json"
    assert file_key("test_It[é/x]").startswith("test_It[__x]~")
    assert file_key("x" * 300).startswith("x" * 100 + "~")
    assert file_key("..Xor").startswith("Xor~")


def test_a_key_is_the_same_in_every_version() -> None:
    """A golden is found by it: another hash, or another length of it, would lose all that were written."""
    assert file_key("It") == "It~555c7b8b3856.json"


@pytest.mark.parametrize("file", ["../outside", "/tmp/outside", "a/../../outside", "..\\outside"])
def test_a_file_outside_is_out_of_reach(folder: Path, file: str) -> None:
    """No name leads out of the directory of the goldens."""
    make_store(folder, "new").check(file, "x", 1, Lane.EXACT)
    (path,) = folder.rglob("*.json")
    assert path.resolve().is_relative_to(folder)
    assert [each.name for each in folder.parent.iterdir()] == ["golden"]


def test_what_no_test_used_is_found_and_removed(folder: Path) -> None:
    """Files and entries that were not used; not what is used, no golden, or stored inputs and records."""
    for file in ("used", "half", "below/old", "inputs/blocks", "matrix/a/b", "below/inputs/x"):
        expect(folder, "x", 1, file=file)
        expect(folder, "y", 1, file=file)
    (folder / "README.md").write_text("words")
    store = make_store(folder)
    for file, name in (("used", "x"), ("used", "y"), ("half", "x")):
        store.check(file, name, 1, Lane.EXACT)
    unused = store.unused(store.used)
    assert unused == [("below/old.json", ""), ("half.json", "y")]
    store.remove(unused)
    assert store.unused(store.used) == []
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "README.md",
        "below/inputs/x.json",
        "half.json",
        "inputs/blocks.json",
        "matrix/a/b.json",
        "used.json",
    ]
    store.remove(store.unused([]))
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "below", "inputs", "matrix"]


def test_what_is_no_golden_is_never_unused(folder: Path) -> None:
    """A baseline or a table beside the goldens is nobody's to delete; a damaged golden is still named."""
    expect(folder, "x", 1)
    (folder / "my-model").mkdir()
    (folder / "my-model" / "baseline.json").write_text('{"schema": 1, "settings": {}}')
    (folder / "damaged.json").write_text('{"expected": ')
    assert make_store(folder).unused([]) == [("damaged.json", ""), ("f.json", "")]


def test_nothing_is_unused_where_there_is_nothing(folder: Path) -> None:
    """A directory that does not exist holds no goldens, and removing what is gone is no error."""
    assert make_store(folder).unused([]) == []
    make_store(folder).remove([("a/b.json", ""), ("a/b.json", "x")])
    assert not folder.exists()


@pytest.mark.parametrize("update", ["", "new", "all"])
def test_what_was_not_obtained_is_left_over(folder: Path, update: Update) -> None:
    """An entry that nobody checked is named, and under "all" forgotten, the empty file with it."""
    expect(folder, "x", 1)
    expect(folder, "y", 1)
    store = make_store(folder, update)
    assert store.leftover("f.json", {"x", "y", "z"}) == store.leftover("absent.json", {"x"}) == []
    for names in ({"x"}, set()):
        left = [] if update == "all" else [n for n in ("x", "y") if n not in names]
        wanted = [f"{folder}/f.json: {name!r}: expected, not obtained" for name in left]
        assert store.leftover("f.json", names) == wanted
    assert list(folder.iterdir()) == ([] if update == "all" else [folder / "f.json"])


def test_one_entry_written_beside_others_leaves_the_header(folder: Path) -> None:
    """The versions in the header are those of all entries: they change only when every entry is written again."""
    path = folder / "f.json"
    expect(folder, "x", 1)
    expect(folder, "y", 2)
    golden = read_golden(path)
    golden.provenance["packages"] = {"transformers": "0.1"}
    write_golden(path, golden)
    make_store(folder, "all").problems("f.json", [Obtained("x", 3, Lane.EXACT)])
    assert read_golden(path).versions["transformers"] == "0.1"
    make_store(folder, "all").problems("f.json", [Obtained(name, 3, Lane.EXACT) for name in ("x", "y")])
    assert read_golden(path).versions["transformers"] != "0.1"
