"""The project's own settings: found upwards, refused if wrong, and taken by every command that reads goldens."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlmrepro import cli
from mlmrepro.compare.golden import read_golden
from mlmrepro.errors import UserError
from mlmrepro.pyproject import project

from .plugin.projects import run
from .report.records import golden, record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose pyproject.toml names goldens of an old record, in one of its folders; a new record differs."""
    golden(tmp_path / "golden" / "my-model", record())
    record().write(tmp_path / "records" / "old.json")
    record("5.0.0", loss__step_losses=[9.0] * 6).write(tmp_path / "records" / "new.json")
    (tmp_path / "pyproject.toml").write_text('[tool.mlmrepro]\ngoldens = "golden/my-model"\n', encoding="utf-8")
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path / "src")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mlmrepro(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(arguments))
    return int(exit_.value.code or 0)


def test_the_nearest_file_with_the_table_counts(tmp_path: Path) -> None:
    """A file without the table, or of another project and damaged, is passed by; without any there are no settings."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "golden").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.mlmrepro]\ngoldens = "golden"\n')
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'inner'\n")
    (inner / "pyproject.toml").write_text("not = [TOML\n")
    found = project(inner)
    assert found is not None
    assert found.goldens == tmp_path / "golden"
    (inner / "pyproject.toml").write_text("[tool.mlmrepro]\n")
    found = project(inner)
    assert found is not None
    assert found.goldens is None
    (tmp_path / "pyproject.toml").unlink()
    assert project(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[tool.mlmrepro]\ngolden = "x"', r"tool\.mlmrepro\.golden is not a setting\. Remedy: write goldens"),
        (
            "[tool.mlmrepro]\nthreads = 2",
            r"tool\.mlmrepro\.threads is not a setting\. .* the keys are: goldens",
        ),
        ("[tool.mlmrepro]\ngoldens = 3", r"tool\.mlmrepro\.goldens is 3, not the path"),
        ('[tool.mlmrepro]\ngoldens = ""', r"tool\.mlmrepro\.goldens is '', not the path"),
        ('[tool.mlmrepro]\ngoldens = "none"', r"names 'none', which is not a folder"),
        ('[tool]\nmlmrepro = "x"', r"tool\.mlmrepro is not a table"),
        ('[tool.mlmrepro]\ngoldens = "', r"is not TOML: .*Remedy: "),
    ],
)
def test_a_wrong_setting_names_file_field_and_remedy(tmp_path: Path, content: str, said: str) -> None:
    """An unknown key, a wrong type, an absent folder, and a file that is not TOML."""
    path = tmp_path / "pyproject.toml"
    path.write_text(content + "\n")
    with pytest.raises(UserError, match=said) as caught:
        project(tmp_path)
    assert str(path) in str(caught.value)


def test_commands_take_the_projects_goldens_and_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`report`, `compare` and `expect` use them and say where they are named; --goldens comes first."""
    assert mlmrepro("report", "../records") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"goldens: {folder / 'golden' / 'my-model'} (goldens in [tool.mlmrepro] of ")
    assert "REGRESSION" in captured.out
    golden(folder / "other", record("5.0.0", loss__step_losses=[9.0] * 6))
    assert mlmrepro("report", "../records", "--goldens", "../other") == 1
    assert capsys.readouterr().err == ""
    declaration = ["expect", "loss.step_losses", "--when", "transformers>=5.0", "--from", "../records/new.json"]
    assert mlmrepro(*declaration, "--reason", "why", "--link", "https://example.org") == 0
    assert len(read_golden(folder / "golden" / "my-model" / "loss.json").entries["step_losses"].variants) == 2
    capsys.readouterr()
    assert mlmrepro("compare", "../records/old.json", "../records/new.json") == 0
    captured = capsys.readouterr()
    assert "declared cause: why" in captured.out
    assert captured.err.startswith("goldens: ")


def test_record_and_matrix_take_them_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither begins with other goldens, and a wrong setting stops both before anything is made."""
    from mlmrepro.environments import matrix
    from mlmrepro.observations import golden_run

    used: list[Path] = []

    def stop(*_: object, goldens: Path | None = None, **__: object) -> None:
        used.append(goldens or Path(str(_[0])).parent)
        raise UserError("stopped", remedy="none")

    monkeypatch.setattr(golden_run, "check_subject", stop)
    monkeypatch.setattr(matrix, "run_matrix", stop)
    assert mlmrepro("record") == mlmrepro("matrix", "--envs", "oldest") == 2
    assert used == [folder / "golden" / "my-model"] * 2
    assert capsys.readouterr().err.count("goldens: ") == 2
    (folder / "pyproject.toml").write_text("[tool.mlmrepro]\ngoldens = 1\n")
    assert mlmrepro("record") == mlmrepro("matrix", "--envs", "oldest") == 2
    assert len(used) == 2
    assert capsys.readouterr().err.count("tool.mlmrepro.goldens is 1") == 2


def test_pytest_takes_them_without_a_value(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare --mlm-observe is the project's goldens, named in pytest's header; without the setting it is refused."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    golden(pytester.path / "golden" / "my-model", record())
    (pytester.path / "golden" / "my-model" / "subject.json").write_text(
        '{"schema": 1, "name": "m", "checkpoint": "m", "weights": "", "settings": []}'
    )
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\n[tool.mlmrepro]\ngoldens = "golden/my-model"\n')
    listed = run(pytester, "--collect-only", "--mlm-observe").stdout.str()
    assert "goldens in [tool.mlmrepro] of" in listed
    assert "<Checkpoint golden/my-model>" in listed
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\n")
    refused = run(pytester, "--collect-only", "--mlm-observe")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    assert "--mlm-observe names no checkpoint" in refused.stderr.str()
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\n[tool.mlmrepro]\ngoldens = 3\n")
    assert "tool.mlmrepro.goldens is 3" in run(pytester, "--collect-only", "--mlm-observe").stderr.str()
