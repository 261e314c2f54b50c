"""compare, report and expect on the command line: exit codes, formats, errors and imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlmrepro import cli
from mlmrepro.compare.golden import read_golden
from mlmrepro.record import RunRecord, write_unfinished

from .report.records import golden, record
from .test_architecture import HEAVY, loaded_by


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an old record, an equal one, a changed one, and goldens of the old one."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    record().write(tmp_path / "old.json")
    record().write(tmp_path / "same.json")
    record("5.0.0", loss__step_losses=[9.0] * 6).write(tmp_path / "new.json")
    golden(tmp_path / "goldens", record())
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(arguments))
    return int(exit_.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("old.json", "same.json"), 0),
        (("old.json", "new.json"), 1),
        (("old.json", "same.json", "new.json"), 1),
        (("goldens", "same.json"), 0),
        (("goldens", "new.json"), 1),
        (("old.json", "absent.json"), 2),
        (("absent", "old.json"), 2),
        (("goldens", "goldens"), 2),
    ],
)
def test_compare_exits_with_0_1_or_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int
) -> None:
    """0 if nothing changed, 1 for a regression in any record, 2 and one line for bad input."""
    assert run("compare", *arguments) == code
    captured = capsys.readouterr()
    if code == 2:
        assert captured.out == ""
        assert captured.err.startswith("mlmrepro: error: ")
        assert "Remedy: " in captured.err
        assert captured.err.count("\n") == 1
    else:
        assert captured.out


def test_compare_takes_the_folder_of_a_run(folder: Path) -> None:
    """A folder with a record.json can be given instead of the record."""
    record().write(folder / "run" / "record.json")
    assert run("compare", "run", "same.json") == 0


def test_json_and_markdown_say_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is JSON only and names the first divergence; Markdown names it, too."""
    assert run("compare", "old.json", "new.json", "--json") == 1
    (content,) = json.loads(capsys.readouterr().out)
    assert (content["verdict"], content["first_divergence"]) == ("REGRESSION", "loss.step_losses")
    assert [change["stage"] for change in content["changes"]] == ["loss"]
    assert run("compare", "old.json", "new.json", "--markdown") == 1
    assert "losses" in capsys.readouterr().out


def test_on_github_there_are_annotations_and_a_summary(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cause is a workflow command, on standard error if JSON is printed; the summary is written."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
    assert run("compare", "old.json", "new.json", "--junit", "junit.xml") == 1
    assert "::error title=new.json%3A loss%3A REGRESSION::" in capsys.readouterr().out
    assert "REGRESSION" in (folder / "summary.md").read_text()
    assert "<failure" in (folder / "junit.xml").read_text()
    assert run("compare", "old.json", "new.json", "--json") == 1
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "::error" in captured.err


def test_report_joins_a_folder_and_keeps_what_failed_as_a_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page is written; an unfinished run and a truncated record have rows, and the exit code is 1."""
    matrix = folder / "records"
    record().write(matrix / "a.json")
    assert run("report", "records", "--goldens", "goldens") == 0
    assert "<html" in (matrix / "report.html").read_text()
    write_unfinished(matrix / "b.json", "RuntimeError: boom")
    (matrix / "c.json").write_text('{"stages": ')
    capsys.readouterr()
    assert run("report", "records", "--goldens", "goldens", "--json", "--html", "page.html") == 1
    content = json.loads(capsys.readouterr().out)
    problems = {row["name"]: row["problem"] for row in content["environments"]}
    assert "RuntimeError: boom" in problems["b"]
    assert problems["c"]
    assert "boom" in (folder / "page.html").read_text()


@pytest.mark.parametrize("arguments", [("absent",), (".", "--goldens", "absent"), (".", "--goldens", "records")])
def test_report_of_nothing_is_bad_input(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """A missing folder and a folder without goldens give one line and exit code 2."""
    assert run("report", *arguments) == 2
    assert "Remedy: " in capsys.readouterr().err


def test_expect_declares_a_change_and_the_comparison_then_passes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure becomes an expected change with its reason; the old record still passes."""
    assert run("compare", "goldens", "new.json") == 1
    declaration = ["expect", "loss.step_*", "--when", "transformers>=5.0", "--from", "new.json"]
    declaration += ["--reason", "another optimiser", "--link", "https://example.org", "--goldens", "goldens"]
    assert run(*declaration) == 0
    capsys.readouterr()
    assert run("compare", "goldens", "new.json") == 0
    out = capsys.readouterr().out
    assert "expected change" in out
    assert "another optimiser" in out
    assert run("compare", "goldens", "same.json") == 0
    assert run(*declaration) == 2  # it is expected already
    assert len(read_golden(folder / "goldens" / "loss.json").entries["step_losses"].variants) == 2


@pytest.mark.parametrize(
    ("name", "when", "problem"),
    [
        ("loss.nothing", "transformers>=5.0", "nothing"),
        ("nostage.x", "transformers>=5.0", "cannot be read"),
        ("loss.step_losses", "transformers<5.0", "does not hold"),
        ("loss.steps*", "5.0", "both have"),
    ],
)
def test_a_wrong_declaration_changes_no_golden(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, when: str, problem: str
) -> None:
    """A wrong name or range gives one line and exit code 2, and the goldens do not change."""
    before = {path: path.read_bytes() for path in (folder / "goldens").iterdir()}
    arguments = ["--from", "new.json", "--reason", "r", "--link", "https://example.org", "--goldens", "goldens"]
    assert run("expect", name, "--when", when, *arguments) == 2
    assert problem in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (folder / "goldens").iterdir()}


def test_record_makes_only_the_chosen_observations(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--only` takes names, keys and groups; an unknown one is bad input, before the old record is touched."""
    from mlmrepro.observations import golden_run

    asked: list[str] = []

    def taken(*_: Any, observers: Any, **__: Any) -> RunRecord:
        asked.extend(each.key for each in observers)
        return RunRecord({}, {}, asked=dict.fromkeys(asked, ""))

    monkeypatch.setattr(golden_run, "take_record", taken)
    assert run("record", "--output", "new.json", "--only", "accumulation", "--only", "formats") == 0
    assert "loss.accumulation" in asked
    assert "blocks.formats" in asked
    assert set(RunRecord.read(folder / "new.json").asked or ()) == set(asked)
    capsys.readouterr()
    before = (folder / "new.json").read_bytes()
    assert run("record", "--output", "new.json", "--only", "gravity") == 2
    assert "there is no observation or group 'gravity'" in capsys.readouterr().err
    assert (folder / "new.json").read_bytes() == before


def test_record_says_in_its_place_that_it_did_not_finish(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crashed run replaces an old record with the reason, and leaves no partial record."""
    from mlmrepro.observations import golden_run

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setattr(golden_run, "take_record", crash)
    assert run("record", "--output", "old.json") == 2  # 1 would read as a change
    printed = capsys.readouterr().err
    assert "RuntimeError: boom" in printed
    assert "this is a bug in mlmrepro" in printed
    with pytest.raises(Exception, match="did not finish: RuntimeError: boom"):
        RunRecord.read(folder / "old.json")
    assert run("record", "--output", ".") == 2
    assert "is a folder" in capsys.readouterr().err


def test_comparing_needs_no_heavy_library(folder: Path) -> None:
    """`mlmrepro compare` imports none of the slow libraries."""
    code, loaded = loaded_by("-m", "mlmrepro", "compare", "old.json", "new.json", "same.json", directory=folder)
    assert code == 1
    assert loaded & HEAVY == set()


def test_other_settings_are_told_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record with another seed is compared with goldens: the advice is to fix the seed first."""
    other = record(loss__step_losses=[9.0] * 6)
    other.config["guide"]["seed"] = 7
    other.write(folder / "other.json")
    assert run("compare", "goldens", "other.json") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "settings seed 42 → 7" in out
    assert "make the records again with the same settings. They differ in seed" in out


def test_report_names_the_environments_that_are_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A requested environment without a record has a row, and the report fails."""
    record().write(folder / "records" / "t4.41.2-d2.19.2.json")
    arguments = ["report", "records", "--goldens", "goldens", "--envs"]
    assert run(*arguments, "oldest") == 0
    capsys.readouterr()
    assert run(*arguments, "oldest", "--envs", "newest", "--json") == 1
    rows = json.loads(capsys.readouterr().out)["environments"]
    assert [bool(row["problem"]) for row in rows] == [False, True]


def test_a_version_that_is_none_loses_no_page(folder: Path) -> None:
    """A record of a development branch has a row like any other."""
    record("main").write(folder / "records" / "a.json")
    record().write(folder / "records" / "b.json")
    assert run("report", "records", "--goldens", "goldens") == 0
