"""The README: every command in it runs, and every file it points to exists."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
from pathlib import Path

import pytest

from mlmrepro import cli
from mlmrepro.config import EMBEDDED
from mlmrepro.environments.spec import catalogue
from mlmrepro.record import RunRecord

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
]

# Few rows and one epoch: what is tested is the command, not the result.
SMALL = ["--set", "split=train_asks[:20]", "--set", "num_train_epochs=1", "--set", "num_proc=1"]

# What takes minutes or hours, or needs a change to declare, is only parsed here; other tests run it.
EXTRA = {"reproduce": SMALL, "laws": ["--only", "steps"]}
EXTRA |= {name: [] for name in ("fill-mask", "compare", "report", "baseline", "check", "score", "lint")}
EXTRA |= {name: ["--help"] for name in ("record", "matrix", "expect", "retrain")}


def _main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    return int(exit_.value.code or 0)


def test_every_mlmrepro_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the README, in its order, in one folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(ROOT / "golden", tmp_path / "golden")
    for name in ("before", "today"):  # what `record` writes; test_goldens runs it
        shutil.copy(ROOT / "golden" / "matrix" / "t5.23.0-d5.2.0.json", tmp_path / f"{name}.json")
    for name in ("old-model", "new-model", "my-model"):
        shutil.copytree(EMBEDDED / "checkpoint", tmp_path / name)
    lines = [f"The sea is salt, and the sky above it is blue, on day {n} of the voyage." for n in range(6)]
    (tmp_path / "eval.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    commands = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("mlmrepro ")]
    assert {arguments[0] for arguments in commands} == EXTRA.keys()
    for arguments in commands:
        assert _main([*arguments, *EXTRA[arguments[0]]]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out
    assert RunRecord.read(tmp_path / "run-1" / "record.json")["loss.steps"] > 0


def test_every_tox_environment_it_names_exists() -> None:
    """`tox run -e NAME` is only written of environments that tox.ini has."""
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    known = {section.removeprefix("testenv:") for section in tox.sections()}
    known |= {name.strip() for name in re.split(r"[,\n]", tox["tox"]["env_list"])}
    named = {name for names in re.findall(r"tox run -e ([\w.,-]+)", README) for name in names.split(",")}
    records = {name for name in named if name.startswith("record-")}
    catalogued = {f"record-{environment.name}" for environment in catalogue().pairs}
    assert records
    assert records <= catalogued
    assert (
        {"reproduce", "tests", "matrix", "report", "benchmarks", "third-party", "simulation"}
        <= named - records
        <= known
    )


def test_every_file_it_points_to_exists() -> None:
    """Relative links lead to files of the repository."""
    links = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert links
    assert [target for target in links if not (ROOT / target).is_file()] == []


def test_help_has_an_example_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help has an example, and says what is taken where an option is left out."""
    for command in EXTRA:
        assert _main([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"Example: mlmrepro {command}" in out
        assert "default: " in out
    assert _main(["reproduce", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: mlmrepro-runs/PROFILE-N)" in words
    assert "Usage: mlmrepro reproduce" in words
