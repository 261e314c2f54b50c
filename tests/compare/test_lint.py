"""Committed goldens, records and tables are sound and can be made again; what cannot is named, a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlmrepro import cli
from mlmrepro.compare.golden import Entry, Golden, Variant, write_golden
from mlmrepro.compare.lint import kind_of, lint, lint_all
from mlmrepro.errors import UserError
from mlmrepro.record import Lane, RunRecord

ROOT = Path(__file__).parents[2]
COMMITTED = [
    path
    for path in sorted((ROOT / "golden").rglob("*.json"))
    if "inputs" not in path.parts and path.name != "stale.json"  # a list, which nothing measured
]
ORIGIN = {
    **{
        "packages": {"mlmrepro": "0.1.0", "transformers": "5.23.0"},
        "python": "3.11.7",
        "platform": {"system": "Linux"},
    },
    **{"commit": {"id": "0123456789abcdef", "dirty": False}, "source": "ab" * 32, "config": {"profile": "embedded"}},
}
CHANGES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"packages": {"mlmrepro": None}}, ["it does not name the version of mlmrepro that made it"]),
    ({"source": ""}, ["it has no digest of the source that made it"]),
    ({"commit": None}, ["it does not name the commit that made it"]),
    (
        {"commit": {"id": "0123456789abcdef", "dirty": True}},
        ["it was made with uncommitted changes on top of 0123456"],
    ),
    ({"commit": {"id": "0123456789abcdef"}}, ["it was made with uncommitted changes on top of 0123456"]),
]


def golden(path: Path, origin: dict[str, Any]) -> Path:
    write_golden(path, Golden(origin, {"steps": Entry(Lane.EXACT, (Variant(3),))}))
    return path


def record(path: Path, origin: dict[str, Any]) -> Path:
    RunRecord(origin, {}).write(path)
    return path


def table(path: Path, origin: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"provenance": origin, "scenarios": []}))
    return path


@pytest.mark.parametrize("path", COMMITTED, ids=[str(p.relative_to(ROOT / "golden")) for p in COMMITTED])
def test_what_is_committed_can_be_made_again(path: Path) -> None:
    """Each golden, record and table is sound, and of a clean commit, a version and a source that it names."""
    assert kind_of(path)
    assert lint(path) == []


@pytest.mark.parametrize("make", [golden, record, table])
@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_what_cannot_be_made_again_is_refused(
    make: Any, change: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    """No version, no source, no commit, or uncommitted changes: one line each, in all three kinds of files."""
    path = make(tmp_path / "loss.json", ORIGIN | change)
    assert lint(path) == [f"{path}: {line}" for line in said]


def test_a_table_without_any_origin_is_refused(tmp_path: Path) -> None:
    """Version, source and commit are all missing where there is no provenance at all."""
    path = tmp_path / "mutation.json"
    path.write_text('{"rooms": {}}')
    assert len(lint(path)) == 3


@pytest.mark.parametrize(
    ("commit", "said"),
    [("0123", ""), ("", "names no commit"), ("0123-dirty", "was measured with uncommitted changes (0123-dirty)")],
)
def test_each_row_of_the_detection_table_names_its_commit(commit: str, said: str, tmp_path: Path) -> None:
    """Rows are measured apart, so one that was measured with uncommitted changes is found in a clean table."""
    path = tmp_path / "detection.json"
    path.write_text(json.dumps({"provenance": ORIGIN, "cases": [{"name": "a", "commit": commit}]}))
    assert lint(path) == ([f"{path}: the row 'a' {said}"] if said else [])
    path.write_text(json.dumps({"provenance": ORIGIN, "cases": [1]}))
    assert lint(path) == [f"{path}: its row 1 is not an object"]


def test_goldens_of_somebodys_own_tests_need_no_commit_of_ours(tmp_path: Path) -> None:
    """They come from their code: versions, Python and platform are asked for, as before."""
    own = {name: ORIGIN[name] for name in ("packages", "python", "platform")}
    assert lint(golden(tmp_path / "test_mine.json", own)) == []
    assert lint(golden(tmp_path / "test_mine.json", own | {"python": ""})) != []


def test_the_command_says_what_it_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mlmrepro lint` prints a line for each problem, exits with 1 then, and counts what it checked."""
    folder = tmp_path / "golden"
    (folder / "matrix").mkdir(parents=True)
    golden(folder / "loss.json", ORIGIN)
    record(folder / "matrix" / "t5.json", ORIGIN)
    (folder / "config.json").write_text("{}")

    def run(*arguments: Path) -> tuple[Any, list[str]]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["lint", *map(str, arguments)])
        out, err = capsys.readouterr()
        return exit_.value.code, (out + err).splitlines()

    counted = "1 golden, 1 record: {}; not checked: 1 other JSON".format
    assert run(folder) == (0, [counted("nothing is wrong")])
    bad = golden(folder / "loss.json", ORIGIN | {"commit": None})
    assert run(folder) == (1, [f"{bad}: it does not name the commit that made it", counted("1 problem")])
    for damaged in ("{", "[" * 100_000):
        bad.write_text(damaged)
        code, lines = run(bad)
        assert code == 1
        assert "is not a golden" in lines[0]
    (code, lines), (other, more) = run(tmp_path / "absent"), run(folder / "config.json")
    assert (code, other) == (2, 2)
    assert "does not exist" in lines[0]
    assert "holds no golden, record or table" in more[0]


def test_a_folder_of_other_files_is_no_pass(tmp_path: Path) -> None:
    """Where nothing can be checked, that is an error."""
    with pytest.raises(UserError, match="holds no golden"):
        lint_all([tmp_path])
