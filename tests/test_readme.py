"""The README: every command in it runs, and every file it points to exists."""

from __future__ import annotations

import configparser
import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mlmrepro import cli
from mlmrepro.record import RunRecord

from . import readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = [ROOT / "mlmrepro" / room / "README.md" for room in ("gate", "guide", "observations", "report")]
COMMANDS = [command for command, _ in readme.examples(README)]
COMMANDS += [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
]
# The READMEs of the rooms: an indented line that starts with a command.
COMMANDS += [
    line.strip()
    for path in ROOMS
    for line in path.read_text(encoding="utf-8").splitlines()
    if line.lstrip() != line and line.lstrip().startswith("mlmrepro ")
]

# Few rows and one epoch: what is tested is the command, not the result.
SMALL = ["--set", "split=train_asks[:20]", "--set", "num_train_epochs=1", "--set", "num_proc=1"]

# What takes minutes or hours, or needs a change to declare, is only parsed here; other tests run it.
EXTRA = {"reproduce": SMALL, "laws": ["--only", "steps"]}
EXTRA |= {name: [] for name in ("fill-mask", "compare", "report", "baseline", "check", "lint")} | {
    "score": ["--limit", "4"]
}
EXTRA |= {name: ["--help"] for name in ("record", "adopt", "matrix", "expect", "retrain")}


def _main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    return int(exit_.value.code or 0)


class Ran(NamedTuple):
    folder: Path
    codes: dict[str, int]  # of each command, as it is written
    printed: dict[str, str]  # on standard output


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run the commands of the README once, in its order and in one folder.

    Those whose output it shows, and the baseline that one of them needs, have a process of their own, as for a reader.
    """
    folder = tmp_path_factory.mktemp("reader")
    readme.prepare(folder)
    shown = {command for command, lines in readme.examples(README) if lines}
    done = Ran(folder, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            patch.delenv(name, raising=False)
        for command in dict.fromkeys(COMMANDS):
            program, *arguments = shlex.split(command)
            if command in shown or command.startswith("mlmrepro baseline"):
                done.codes[command], done.printed[command] = readme.run(command, folder)
            elif program == "mlmrepro":
                out = io.StringIO()
                with redirect_stdout(out):
                    done.codes[command] = _main([*arguments, *EXTRA[arguments[0]]])
                done.printed[command] = out.getvalue()
    return done


def test_every_mlmrepro_command_runs(ran: Ran) -> None:
    """Each command of the README ends as a reader expects and prints something; none is left out."""
    assert {shlex.split(command)[1] for command in ran.codes} == EXTRA.keys()
    # The README's new model is a worse one.
    assert ran.codes == {command: int(shlex.split(command)[1] == "check") for command in ran.codes}
    assert all(ran.printed.values())
    assert RunRecord.read(ran.folder / "run-1" / "record.json")["loss.steps"] > 0


def differences(shown: list[str], obtained: list[str]) -> list[str]:
    """Return the shown lines that a command does not print: other words, or numbers more than 1 % off."""
    more = shown[-1:] == [readme.MORE]
    found = [] if more or len(shown) == len(obtained) else [f"{len(shown)} lines are shown, {len(obtained)} printed"]
    for old, new in zip(shown[:-1] if more else shown, [*obtained, *[""] * len(shown)], strict=False):
        # Equal words have equally many numbers.
        if readme.words(old) != readme.words(new) or not np.allclose(
            readme.numbers(old), readme.numbers(new), rtol=0.01, atol=0.011
        ):
            found.append(f"{old!r} is shown, {new!r} printed")
    return found


def test_the_output_that_it_shows_is_the_real_one(ran: Ran) -> None:
    """Below a command stands what it prints: `python -m tests.readme` writes it."""
    shown = {command: lines for command, lines in readme.examples(README) if lines}
    found = {command: differences(lines, readme.lines_of(ran.printed[command])) for command, lines in shown.items()}
    assert len(found) == 3
    assert {command: lines for command, lines in found.items() if lines} == {}


@pytest.mark.quick
def test_output_that_is_not_the_shown_one_is_a_difference() -> None:
    """Other words, a number far off, a line too few or too many."""
    shown = ["same: 10.00 and 3", "two"]
    assert differences(shown, ["same:  10.05 and 3", "two"]) == []
    assert differences(shown, ["same: 10.50 and 3", "two"])
    assert differences(shown, ["REGRESSION: 10.00 and 3", "two"])
    assert differences(shown, ["same: 10.00 and 3"])
    assert differences(shown, ["same: 10.00 and 3", "two", "three"])
    assert differences(["same: 10.00 and 3", readme.MORE], ["same: 10.00 and 3", "two"]) == []


@pytest.mark.quick
def test_it_is_short() -> None:
    """A newcomer reads it in two minutes: at most 120 lines, and lines of at most 125 characters outside of tables."""
    lines = README.splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 125 and "|" not in line] == []


def test_every_tox_environment_it_names_exists() -> None:
    """`tox run -e NAME` is only written of environments that tox.ini has."""
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    known = {section.removeprefix("testenv:") for section in tox.sections()}
    known |= {name.strip() for name in re.split(r"[,\n]", tox["tox"]["env_list"])}
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "CONTRIBUTING.md", *ROOMS))
    named = {name for names in re.findall(r"tox run -e ([\w.,-]+)", README + text) for name in names.split(",")}
    assert {"reproduce", "tests", "matrix", "tests-oldest"} <= named <= known


def test_every_file_it_points_to_exists() -> None:
    """Relative links of the READMEs lead to files of the repository."""
    pages = [ROOT / "README.md", ROOT / "golden" / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *ROOMS]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        links = [target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
        assert links or page in ROOMS
        assert [target for target in links if target and not (page.parent / target).exists()] == []


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
