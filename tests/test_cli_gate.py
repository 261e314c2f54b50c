"""The commands baseline, check and score: what they print, their exit codes, and a clear line for bad input."""

from __future__ import annotations

import csv
import html
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mlmrepro import cli
from mlmrepro.config import EMBEDDED

CHECKPOINT = str(EMBEDDED / "checkpoint")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty folder; return (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(list(arguments))
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of the embedded model over four short documents."""
    folder = tmp_path_factory.mktemp("baseline")
    topics = ["sea", "sky"]
    texts = [
        "The sea is salt because rivers carry it there.",
        "The sky is blue because air scatters blue light more than red.",
        "Water boils at a lower temperature on a mountain.",
        "The Moon moves around the Earth in a month.",
    ]
    rows = [json.dumps({"text": text, "topic": topics[n % 2]}) + "\n" for n, text in enumerate(texts)]
    (folder / "eval.jsonl").write_text("".join(rows))
    (folder / "prompts.txt").write_text("The Moon moves around the <mask>.\n")
    files = ["--text", str(folder / "eval.jsonl"), "--prompts", str(folder / "prompts.txt")]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["baseline", CHECKPOINT, *files, "--topic-column", "topic", "-o", str(folder / "b")])
    assert not exit_.value.code
    return folder / "b"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model with noise on its head: clearly worse."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("damaged") / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / "model.safetensors")
    noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    weights["lm_head.dense.weight"] += 0.25 * noise
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_the_same_checkpoint_is_the_same(run: Run, made: Path) -> None:
    """Exit code 0, and the word stands first."""
    code, out, _ = run("check", CHECKPOINT, "--baseline", str(made))
    assert code == 0
    assert out.split()[:2] == ["=", "same:"]


def test_a_worse_one_is_a_regression_everywhere(
    run: Run, made: Path, damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1; the terminal, JUnit, the page, GitHub's annotation and its summary all say so."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    files = ["--html", "check.html", "--junit", "check.xml"]
    code, out, _ = run("check", damaged, "--baseline", str(made), *files)
    assert code == 1
    assert "REGRESSION" in out
    assert "\n::error" in out
    assert "REGRESSION" in (tmp_path / "summary.md").read_text()
    assert "REGRESSION" in (tmp_path / "check.html").read_text()
    assert ElementTree.parse(tmp_path / "check.xml").getroot().find(".//failure") is not None


def test_json_and_markdown_are_all_there_is(run: Run, made: Path, damaged: str) -> None:
    """Nothing else on standard output, and the numbers in full."""
    code, out, _ = run("check", damaged, "--baseline", str(made), "--json")
    content = json.loads(out)
    assert (code, content["answer"]) == (1, "REGRESSION")
    assert content["paired"]["difference"] == pytest.approx(math.log(content["after"] / content["before"]), abs=1e-6)
    assert {part["name"] for part in content["slices"]} & {"sea", "sky", "once"} is not None
    code, out, _ = run("check", damaged, "--baseline", str(made), "--markdown")
    assert code == 1
    assert out.startswith("#") or out.startswith("**") or "REGRESSION" in out.splitlines()[0]


def test_too_little_text_is_inconclusive(run: Run, made: Path, damaged: str) -> None:
    """Four documents cannot decide with one false alarm in a million: exit code 3, and how much text would."""
    code, out, _ = run("check", damaged, "--baseline", str(made), "--alpha", "0.000001")
    assert (code, "inconclusive" in out) == (3, True)
    assert "would decide" in " ".join(out.split())


def test_the_margin_of_pyproject_holds(run: Run, made: Path, damaged: str, tmp_path: Path) -> None:
    """[tool.mlmrepro] is read from the folder or above it; the command line comes first."""
    (tmp_path / "pyproject.toml").write_text("[tool.mlmrepro]\nmargin = 0.5\n")
    _, out, _ = run("check", damaged, "--baseline", str(made), "--json")
    assert json.loads(out)["margin"] == 0.5
    _, out, _ = run("check", damaged, "--baseline", str(made), "--json", "--margin", "0.02")
    assert json.loads(out)["margin"] == 0.02
    (tmp_path / "pyproject.toml").write_text("[tool.mlmrepro]\nmargn = 0.5\n")
    code, _, err = run("check", damaged, "--baseline", str(made))
    assert code == 2
    assert "no setting 'margn'" in err


def test_score_prints_and_writes_raw_losses(run: Run, tmp_path: Path) -> None:
    """Each method has its figure, and the losses of the file add up to it."""
    (tmp_path / "a.txt").write_text("The sea is salt.\n\nThe sky is extraordinarily blue.\n")
    figures = {}
    for method in ("masked", "pseudo", "within-word"):
        code, out, _ = run("score", "embedded", "--text", "a.txt", "--method", method, "--json", "-o", f"{method}.csv")
        assert code == 0
        figures[method] = json.loads(out)
        with open(f"{method}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == figures[method]["tokens"]
        assert -sum(float(row["loss"]) for row in rows) == pytest.approx(figures[method]["log_likelihood"], abs=1e-4)
        assert {row["document"] for row in rows} == {"1", "3"}
    assert figures["pseudo"]["pseudo_perplexity"] < figures["within-word"]["pseudo_perplexity"]
    assert "perplexity" in figures["masked"]
    code, out, _ = run("score", "embedded", "--text", "a.txt")
    assert "perplexity: " in out


def test_the_column_that_was_taken_is_named_wherever_a_result_is_shown(run: Run, tmp_path: Path) -> None:
    """Nobody named the column: the terminal, JSON, Markdown and the page do, and the baseline holds it."""
    texts = [None, "The sea is salt because rivers carry it there.", "Water boils at a lower temperature up here."]
    rows = [{"url": f"https://example.org/{n}", "body": text} for n, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = ["the text of a.jsonl is in its column 'body'", "1 row with null in 'body' left out of a.jsonl"]
    code, out, _ = run("score", "embedded", "--text", "a.jsonl")
    assert code == 0
    assert set(notes) <= set(out.splitlines())
    _, out, _ = run("score", "embedded", "--text", "a.jsonl", "--json")
    assert {name: json.loads(out)[name] for name in ("text", "text_column", "notes")} == {
        "text": "a.jsonl", "text_column": "body", "notes": notes,
    }  # fmt: skip
    code, out, _ = run("baseline", "embedded", "--text", "a.jsonl", "-o", "b")
    assert code == 0
    assert set(notes) <= set(out.splitlines())
    assert json.loads((tmp_path / "b" / "baseline.json").read_text())["about"]["text_column"] == "body"
    _, out, _ = run("baseline", "embedded", "--text", "a.jsonl", "-o", "b", "--overwrite", "--json")
    assert (json.loads(out)["text_column"], json.loads(out)["notes"]) == ("body", notes)
    _, out, _ = run("check", "embedded", "--baseline", "b", "--html", "b.html")
    pages = [out, (tmp_path / "b.html").read_text()]
    pages += [run("check", "embedded", "--baseline", "b", form)[1] for form in ("--json", "--markdown")]
    for page in pages:
        assert "the text of a.jsonl is in its column" in " ".join(html.unescape(page).split()).replace(
            "The text", "the text"
        )
    assert json.loads(pages[2])["provenance"]["baseline"]["text_column"] == "body"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["baseline", "embedded", "--text", "absent.txt", "-o", "b"], "absent.txt does not exist"),
        (["baseline", "embedded", "--text", "empty.txt", "-o", "b"], "empty.txt is empty"),
        (["baseline", "embedded", "--text", "one.txt", "-o", "b"], "is a single document"),
        (["baseline", "embedded", "--text", "a.pdf", "-o", "b"], "has an unknown format"),
        (["baseline", "embedded", "--text", "two.txt", "-o", "b", "--mask-rate", "0"], "mask rate is 0"),
        (["baseline", "embedded", "--text", "two.txt", "-o", "used"], "something other than a baseline"),
        (["baseline", "embedded", "--text", "two.txt", "-o", "/proc/x/b"], "No such file"),
        (["baseline", "embedded", "--text", "special.txt", "-o", "b"], "only one document"),
        (["baseline", "embedded", "--text", "deep.jsonl", "-o", "b"], "line 1 is not a JSON object"),
        (["baseline", "embedded", "--text", "two.txt", "-o", "b", "--text-column", "x"], "two.txt is not a table"),
        (
            ["baseline", "embedded", "--text", "two.jsonl", "-o", "b"],
            "it has left (str: 'The sea is salt.'); right (str",
        ),
        (["score", "embedded", "--text", "two.jsonl"], "it has left (str: 'The sea is salt.'); right (str: 'The sky"),
        (["score", "embedded", "--text", "no_header.csv"], "first line of no_header.csv may not be a header"),
        (["baseline", "embedded", "--text", "two.txt", "-o", "b", "--prompts", "two.txt"], "holds no <mask>"),
        (["baseline", "embedded", "--text", "two.txt", "-o", "b", "--device", "cuda:7"], "cannot be moved to"),
        (["baseline", "./absent", "--text", "two.txt", "-o", "b"], "./absent does not exist"),
        (["check", "embedded", "--baseline", "absent"], "the baseline absent does not exist"),
        (["check", "embedded", "--baseline", "used"], "used holds no baseline"),
        (["check", "embedded", "--baseline", "used", "--margin", "-1"], "margin is -1"),
        (["check", "embedded", "--baseline", "used", "--alpha", "0.7"], "alpha is 0.7"),
        (["check", "embedded", "--baseline", "used", "--html", "used/x.html"], "would overwrite the input used"),
        (["check", "embedded", "--baseline", "used", "--junit", "used"], "would overwrite"),
        (["check", "embedded", "--baseline", "used", "--html", "."], "Is a directory"),
        (["score", "embedded", "--text", "absent.txt"], "absent.txt does not exist"),
        (["score", "embedded", "--text", "two.txt", "-o", "./two.txt"], "would overwrite"),
    ],
)
def test_bad_input_is_one_line(run: Run, tmp_path: Path, arguments: list[str], problem: str) -> None:
    """Exit code 2, the file or field and a remedy in one line, and nothing written."""
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "one.txt").write_text("The sea is salt.\n")
    (tmp_path / "two.txt").write_text("The sea is salt.\nThe sky is blue.\n")
    (tmp_path / "two.jsonl").write_text('{"left": "The sea is salt.", "right": "The sky is blue."}\n')
    (tmp_path / "no_header.csv").write_text("The sea is salt.\nThe sky is blue.\n")
    (tmp_path / "special.txt").write_text("The sea is salt.\n\n<mask><s>\n")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("mlmrepro: error")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert problem in lines[0]
    assert "Remedy: " in lines[0]
    assert sorted(tmp_path.rglob("*")) == before
