"""The committed detection table: it is of this catalogue, it passes, and its pages are made of it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import __main__ as command
from tests.faults import digests
from tests.faults.conditions import all_controls
from tests.faults.digests import Sources, code_of, remeasure, stale
from tests.faults.fault import all_faults
from tests.faults.result import BenchResult, CaseResult, Score
from tests.faults.view import faults_markdown

FOLDER = Path(__file__).parents[2] / "golden" / "faults"


@pytest.fixture(scope="module")
def committed() -> BenchResult:
    return BenchResult.read(FOLDER / "detection.json")


def problems(result: BenchResult) -> list[str]:
    """Return what keeps the table from being that of this version."""
    found = []
    wanted = {f.name: (f.stage, f.severity.value, f.part, f.required) for f in all_faults()}
    held = {c.name: (c.stage, c.severity, c.part, c.required) for c in result.cases if not c.is_control}
    found += [f"{name} is not in the table, or another one" for name in wanted if wanted[name] != held.get(name)]
    found += [f"{name} is not in the catalogue" for name in held if name not in wanted]
    runs = {control.name for control in all_controls()}
    runs |= {path.stem for path in (FOLDER.parent / "matrix").glob("*.json")}
    found += [f"the control {name} was not run" for name in sorted(runs - {c.name for c in result.controls})]
    if not result.passes:
        found.append("it does not pass")
    return found


def test_the_table_is_of_this_catalogue_and_passes(committed: BenchResult) -> None:
    """Every fault and control of this version was run; nothing was missed, and nothing raised a false alarm."""
    assert problems(committed) == []


ROOT = Path(digests.__file__).parents[2]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the source of the package and of the faults to change."""
    for part in ("mlmrepro", "tests/faults"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=lambda _, names: _no_source(names))
    return tmp_path / "mlmrepro"


def _no_source(names: list[str]) -> list[str]:
    return [name for name in names if "." in name and not name.endswith(".py")]


@pytest.fixture(scope="module")
def table(committed: BenchResult) -> BenchResult:
    """The committed table as if all of it had been measured today."""
    now = Sources()
    return BenchResult(committed.provenance, [dataclasses.replace(c, code=code_of(c, now)) for c in committed.cases])


def edited(package: Path, file: str, before: str, after: str) -> Sources:
    path = package.parent / file if file.startswith("tests/") else package / file
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")
    return Sources(package)


def seen_by(part: str) -> Callable[[CaseResult], bool]:
    return lambda case: part in case.code


def test_nothing_is_stale_where_nothing_changed(table: BenchResult, copied: Path) -> None:
    """The same source in another folder gives the same digests."""
    assert stale(table, Sources(copied)) == {}


@pytest.mark.parametrize(
    ("file", "before", "after", "part", "concerned"),
    [
        (
            "observations/evaluation.py",
            "range(0, count, 3)",
            "range(0, count, 4)",
            "law eval_loss",
            seen_by("law eval_loss"),
        ),
        (
            "tests/faults/catalogue/data.py",
            "(test, train)",
            "(train, test)",
            "fault",
            lambda c: c.name == "splits_swapped",
        ),
        (
            "tests/faults/catalogue/planting.py",
            "return [change(each) for each in rows] if",
            "return rows if",
            "fault",
            lambda case: case.stage == "fill_mask",
        ),
        ("observations/isolated.py", '"eval_loss", float(', '"eval_loss", 1 + float(', "isolated evaluation", None),
        ("gate/judge.py", "import math", "import math\n\nLIMIT = 3", "statistics", seen_by("statistics")),
    ],
    ids=["a law", "a fault", "a helper of faults", "what notes a stage alone", "the gate"],
)
def test_changed_code_makes_its_rows_stale_and_no_others(
    table: BenchResult,
    copied: Path,
    file: str,
    before: str,
    after: str,
    part: str,
    concerned: Callable[[CaseResult], bool] | None,
) -> None:
    """A row is named where a law, fault, helper or gate that it measured changed; controls go with any law."""
    found = stale(table, edited(copied, file, before, after))
    faults = {name: parts for name, parts in found.items() if name not in {c.name for c in table.controls}}
    assert faults
    assert all(parts == [part] for parts in faults.values())
    expected = {c.name for c in table.cases if not c.is_control and (concerned or seen_by(part))(c)}
    assert set(faults) == expected if file != "tests/faults/catalogue/planting.py" else set(faults) < expected
    runs = {c.name for c in table.controls if c.part != "versions"}
    touched = {"law eval_loss": ["laws"], "statistics": ["statistics"]}.get(part)
    assert {name: found[name] for name in runs & set(found)} == (dict.fromkeys(runs, touched) if touched else {})
    lines = list(remeasure(found))
    assert len(lines) == len(found) + 1
    assert lines[-1].startswith(f"python -m tests.faults {next(iter(found))} ")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("eval_loss is the mean of the batch losses", "It is the mean of all batches' losses"),
        ("eval_loss is averaged over batches or tokens, or a", "A loss is averaged over batches or tokens, or some"),
        ("def eval_loss(subject: Subject) -> Iterator[Value]:", "def eval_loss(subject):  # an observation\n"),
    ],
    ids=["docstring", "cause", "annotation, comment and layout"],
)
def test_other_words_and_another_layout_make_nothing_stale(
    table: BenchResult, copied: Path, before: str, after: str
) -> None:
    """Docstrings, what a law says of its cause, annotations, comments and layout decide no result."""
    assert stale(table, edited(copied, "observations/evaluation.py", before, after)) == {}


def test_code_that_is_gone_and_rows_without_digests_are_stale(table: BenchResult, copied: Path) -> None:
    """A law that was renamed, and a row that never had a digest, need a new measurement too."""
    found = stale(table, edited(copied, "observations/evaluation.py", "def eval_loss(", "def mean_of_rows("))
    assert {c.name for c in table.faults if "law eval_loss" in c.code} <= set(found)
    bare = dataclasses.replace(table.faults[0], code={})
    assert list(stale(BenchResult(table.provenance, [bare]))) == [bare.name]


def test_the_command_measures_what_is_stale_again(
    table: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stale` names the rows whose code changed, writes them into the table, and then has none left."""
    from tests.faults import bench

    old = table.faults[3]
    changed = dataclasses.replace(old, code={**old.code, "fault": "0" * 12}, seconds=0.0)
    cases = [changed if case is old else case for case in table.cases]
    BenchResult(table.provenance, cases).write(tmp_path / "detection.json")
    asked = []

    def run_bench(faults: list, controls: list, *, versions: bool, jobs: int, progress: object) -> BenchResult:
        asked.append(([fault.name for fault in faults], controls, versions))
        return BenchResult(table.provenance, [dataclasses.replace(old, seconds=7.0)])

    monkeypatch.setattr(bench, "run_bench", run_bench)
    for _ in range(2):
        assert command.measure(["stale"], tmp_path, 1)
    assert asked == [([old.name], [], False)]
    assert "every row measured the code of today" in capsys.readouterr().out
    rows = {case.name: case for case in BenchResult.read(tmp_path / "detection.json").cases}
    assert rows[old.name].seconds == 7.0
    assert len(rows) == len(table.cases)


def test_a_stale_or_failing_table_is_seen(committed: BenchResult) -> None:
    """The check above can fail: a fault left out, one of another stage, one missed, a false alarm."""
    cases = committed.cases

    def changed(*replaced: CaseResult, drop: str = "") -> list[str]:
        by_name = {case.name: case for case in replaced}
        kept = [by_name.get(case.name, case) for case in cases if case.name != drop]
        return problems(BenchResult(committed.provenance, kept))

    fault, control = committed.faults[0], committed.controls[-1]
    assert changed(drop=fault.name) != []
    assert changed(drop=control.name) != []
    assert changed(dataclasses.replace(fault, severity="none")) != []
    assert changed(dataclasses.replace(fault, alarms=())) == ["it does not pass"]
    assert changed(dataclasses.replace(control, alarms=fault.alarms)) == ["it does not pass"]


def test_the_figures_that_were_promised(committed: BenchResult) -> None:
    """At least 80 faults and 100 clean controls, all detected, 95 % at their stage, no alarm; later faults apart."""
    score, later = Score.of(committed.faults), Score.of(committed.later)
    assert score.faults >= 80
    assert score.detected == score.faults
    assert score.placed >= 0.95 * score.faults
    assert len(committed.controls) >= 100
    assert committed.false_alarms == []
    assert later.faults >= 20
    assert all(seen for seen, _ in committed.by_layer([*committed.faults, *committed.later]).values())


def test_the_markdown_is_made_of_the_table(committed: BenchResult) -> None:
    """What is read on the repository's page is what was measured."""
    assert (FOLDER / "detection.md").read_text(encoding="utf-8") == faults_markdown(committed, limit=None)
