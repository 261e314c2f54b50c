"""explain on the command line: what is known of a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlmrepro import cli

from .report.records import LINK, attention, golden, record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Goldens that declare the attention kernel, and records of which the last has another loss, too."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    later = {"model__attention": "sdpa"}
    (tmp_path / "golden/matrix").mkdir(parents=True)
    record("4.41.2").write(tmp_path / "golden/matrix/a.json")
    record("4.48.3", **later).write(tmp_path / "golden/matrix/b.json")
    record("5.0.0", **later, loss__step_losses=[9.0] * 6).write(tmp_path / "golden/matrix/c.json")
    golden(tmp_path / "goldens", record("4.41.2"), attention())
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["explain", *arguments])
    return int(exit_.value.code or 0)


def explained(capsys: pytest.CaptureFixture[str], name: str, *options: str) -> list[dict[str, Any]]:
    assert run(name, "--json", *options) == 0
    return json.loads(capsys.readouterr().out)


def test_a_declared_change(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The values by version, with the verdict of each, and the declaration with its reason and link."""
    (known,) = explained(capsys, "model.attention", "--goldens", "goldens")
    assert [(row["records"], row["value"], row["verdict"]) for row in known["obtained"]] == [
        (["a"], "eager", "identical"),
        (["b", "c"], "sdpa", "expected change"),
    ]
    assert [(row["when"], row["value"], row["link"]) for row in known["declared"]] == [
        (["transformers<4.48"], "eager", LINK),
        (["transformers>=4.48"], "sdpa", LINK),
    ]
    assert known["undeclared"] == []
    assert run("model.attention", "--markdown", "--goldens", "goldens") == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("model.attention has declared changes", "SDPA is the default", LINK))


def test_an_undeclared_change_leads_to_its_release(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two neighbouring records are named, with the command that finds the release between them."""
    (known,) = explained(capsys, "loss.step_losses", "--goldens", "goldens")
    assert known["undeclared"] == ["b", "c"]
    assert run("loss.step_losses", "--markdown", "--goldens", "goldens") == 0
    shown = capsys.readouterr().out
    assert "loss.step_losses has an undeclared change" in shown
    assert "it changed between b and c" in shown
    assert "mlmrepro bisect PACKAGE OLD NEW --watch loss.step_losses" in shown


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("loss.learning_rates", []),
        ("loss.isolated.learning_rates", ["loss.isolated.learning_rates"]),
        ("learning_rates", ["loss.isolated.learning_rates"]),
        ("masked_batches.own_seed.draw", ["masked_batches.off_path.own_seed.draw"]),
        ("model.*.unknown_dtype", []),
        ("model.off_path.config_defaults.num_*", ["model.off_path.config_defaults.num_beams"]),
        ("stored_weights", ["model.off_path.stored_weights.changed_weights"]),
    ],
)
def test_names(folder: Path, capsys: pytest.CaptureFixture[str], text: str, found: list[str]) -> None:
    """A value is named in full, without off_path, by the end of its name, by a pattern, or by its observation."""
    assert run(text, "--json", "--records", "golden/matrix") == (0 if found else 2)
    printed = capsys.readouterr()
    if found:
        assert [each["name"] for each in json.loads(printed.out)] == found
    else:
        assert f"has the name '{text}'" in printed.err


def test_an_unknown_name_gets_the_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line."""
    assert run("model.atention", "--goldens", "goldens") == 2
    assert "did you mean model.attention" in capsys.readouterr().err
    assert run("xyzzy", "--goldens", "goldens") == 2
    assert "copy a name from a report" in capsys.readouterr().err


def test_a_known_breach(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What known.toml declares is found by its name, with versions and models, and with the observation's claim."""
    known = explained(capsys, "model.stored_weights.changed_weights")[0]
    assert known["source"].startswith("mlmrepro/observations/checkpoint.py:")
    assert known["claim"].startswith("The model's weights are loaded exactly")
    albert = next(each for each in known["declared"] if each["models"] == ["albert"])
    assert albert["value"] == "predictions.bias"
    assert "transformers<4.51" in albert["when"]
