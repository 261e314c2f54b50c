"""Retraining variance: what a seed decides, what is kept, and when two recipes may be compared."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock
from typer.testing import CliRunner, Result

from mlmrepro.cli.retrain import retrain as command
from mlmrepro.config import EMBEDDED, RunConfig, parse_setting, resolve
from mlmrepro.errors import UserError
from mlmrepro.gate.result import Answer
from mlmrepro.guide.run import run as reproduce
from mlmrepro.retraining import recipe
from mlmrepro.retraining.recipe import OURS, parse_seeds, retrain
from mlmrepro.retraining.runs import FILE, Retraining, SeedRun, check_comparable, compare
from mlmrepro.retraining.settings import Settings
from mlmrepro.scoring.scorer import Scorer

TINY = ("num_train_epochs=1", "block_size=32", "num_proc=1", "learning_rate=0.01")


@pytest.fixture(scope="module")
def settings(checkpoint: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a recipe of half a second: a model that knows nothing, and the first words of some embedded answers."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    with open(EMBEDDED / "data" / "askscience.jsonl", encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(20)]
    for row in rows:
        row["answers"]["text"] = [answer[:150] for answer in row["answers"]["text"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [*TINY, f"checkpoint={checkpoint(0.0, positions=66)}", f"dataset={path}"]


@pytest.fixture(scope="module")
def made(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Return a folder in which seeds 42 and 43 were trained by the command, with their models, and its output."""
    folder = tmp_path_factory.mktemp("runs") / "old"
    result = _invoke(folder, settings, "--seeds", "2", "--save-models", "--json")
    assert result.exit_code == 0, result.stderr
    return folder, result


@pytest.fixture
def old(made: tuple[Path, Result], tmp_path: Path) -> Path:
    """Return a copy of that folder, to change."""
    return Path(shutil.copytree(made[0], tmp_path / "old"))


def _invoke(folder: Path, settings: list[str], *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command)
    given = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(app, ["--output", str(folder), "--threads", "1", *given, *arguments])


def _config(folder: Path, settings: list[str]) -> RunConfig:
    changes = [*OURS, *((*parse_setting(setting), "--set") for setting in settings)]
    return resolve(output_dir=folder, changes=changes, threads=1)


def _values(runs: tuple[SeedRun, ...]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(dataclasses.replace(run, seconds=0.0)) for run in runs]


def _with_losses(retraining: Retraining, *losses: float) -> Retraining:
    first = retraining.seeds[0]
    runs = tuple(dataclasses.replace(first, seed=n, loss=loss) for n, loss in enumerate(losses))
    return dataclasses.replace(retraining, seeds=runs)


class _KilledIn:
    """A progress during whose seed the process is killed."""

    def __init__(self, seed: int = -1) -> None:
        self.seed = seed
        self.stages: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def step(self, done: int, total: int, loss: float) -> None:
        if self.stages[-1].startswith(f"seed {self.seed} "):
            raise KeyboardInterrupt


def test_a_seed_gives_the_same_values_in_any_order_and_after_a_kill(
    made: tuple[Path, Result], settings: list[str], tmp_path: Path
) -> None:
    """Seed 43 alone equals 43 after 42 to the last bit, a killed command goes on with 42, and the two differ."""
    config = _config(tmp_path / "new", settings)
    with pytest.raises(KeyboardInterrupt):
        retrain(config, (43, 42), progress=_KilledIn(42))
    assert [path.name for path in config.output_dir.iterdir()] == [FILE]
    wanted = _values(Retraining.read(made[0]).seeds)
    assert _values(Retraining.read(config.output_dir).seeds) == wanted[1:]
    watched = _KilledIn()
    assert _values(retrain(config, (43, 42), progress=watched).seeds) == wanted
    assert [stage for stage in watched.stages if stage.startswith("seed")] == ["seed 42 (2 of 2)"]
    assert wanted[0]["loss"] != wanted[1]["loss"]
    assert wanted[0]["eval_loss"] != wanted[1]["eval_loss"]
    with pytest.raises(UserError, match=r"seed 43 in .* its model was not saved"):
        retrain(config, (43,), save_models=True)


def test_a_seed_is_the_run_of_the_guide_with_that_seed(
    made: tuple[Path, Result], settings: list[str], tmp_path: Path
) -> None:
    """Seed 42 ends with the very evaluation loss of `reproduce`, whose seed that is."""
    record = reproduce(_config(tmp_path / "run", settings))
    run = Retraining.read(made[0]).seeds[0]
    assert run.seed == 42
    assert run.eval_loss == record["evaluation.eval_loss"]
    assert run.train_loss == pytest.approx(sum(record["loss.step_losses"]) / record["loss.steps"], rel=1e-12)


def test_every_raw_value_is_kept(made: tuple[Path, Result], settings: list[str], tmp_path: Path) -> None:
    """The documents' losses add up to the mean, which the saved model has again; `--json` is what the file holds."""
    folder, printed = made
    content = json.loads(printed.stdout)
    result = Retraining.read(folder)
    assert content["retraining"] == result.to_dict()
    assert content["figures"]["mean"] == pytest.approx(sum(result.losses) / 2, rel=1e-15)
    assert content["figures"]["deviation"] == pytest.approx(abs(result.losses[0] - result.losses[1]) / math.sqrt(2))
    (tmp_path / "work").mkdir()
    prepared = recipe._Recipe(_config(tmp_path / "run", settings), tmp_path / "work")
    assert prepared.begun.start == result.start
    assert len(result.held_out.documents) == len(result.held_out.tokens) == len(prepared.texts) == 4
    for run in result.seeds:
        assert sum(run.document_losses) / sum(result.held_out.tokens) == pytest.approx(run.loss, rel=1e-12)
        assert run.loss < result.start.loss
        saved = Scorer.load(str(folder / f"seed-{run.seed}"), device="cpu")
        assert saved.score(prepared.plan, prepared.encoded).mean_loss == pytest.approx(run.loss, abs=1e-6)


def test_a_finished_folder_trains_nothing_again(made: tuple[Path, Result], settings: list[str]) -> None:
    """The same command only reads: the file stays as it is, and the table shows both seeds."""
    before = (made[0] / FILE).stat()
    result = _invoke(made[0], settings, "--seeds", "42,43")
    assert result.exit_code == 0
    assert (made[0] / FILE).stat() == before
    assert "\n42 " in result.stdout
    assert "\n43 " in result.stdout
    assert "standard deviation" in result.stdout


def test_a_folder_of_other_settings_is_refused(old: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting, the version or the weights that differ are named, and nothing is trained or written."""
    before = (old / FILE).read_bytes()
    with pytest.raises(UserError, match=r"other settings: learning_rate 0\.01, now 0\.02, threads 1, now 2"):
        retrain(dataclasses.replace(_config(old, [*settings, "learning_rate=0.02"]), threads=2), (42,))
    start = dataclasses.replace(Retraining.read(old).start, weights="others")
    monkeypatch.setattr(recipe._Recipe, "_begun", _begun_with(recipe._Recipe._begun, start=start))
    with pytest.raises(UserError, match=r"weights before training '\w+', now 'others'"):
        retrain(_config(old, settings), (42, 44))
    versions = recipe.provenance.package_versions() | {"torch": "1.0"}
    monkeypatch.setattr(recipe.provenance, "package_versions", lambda: versions)
    with pytest.raises(UserError, match=r"torch '.*', now '1\.0'"):
        retrain(_config(old, settings), (42,))
    assert (old / FILE).read_bytes() == before


def _begun_with(begun: Callable[..., Retraining], **changes: Any) -> Callable[..., Retraining]:
    return lambda *arguments: dataclasses.replace(begun(*arguments), **changes)


def test_another_text_is_refused_before_anything_is_trained(
    made: tuple[Path, Result], settings: list[str], tmp_path: Path
) -> None:
    """Another split has another text: the message says where, no seed is trained, and no folder is left."""
    config, watched = _config(tmp_path / "new", [*settings, "seed=7"]), _KilledIn()
    with pytest.raises(
        UserError, match=r"old was scored on a different text: the first difference is in held-out docum"
    ):
        retrain(config, (7,), against=("old", Retraining.read(made[0])), progress=watched)
    assert len(watched.stages) == 1
    assert not config.output_dir.exists()


def test_what_cannot_be_compared_says_why(made: tuple[Path, Result]) -> None:
    """Fewer documents, other tokens, other masks, no seed, and a diverged seed before are refused by name."""
    old = Retraining.read(made[0])
    check_comparable(old, old, "old")

    def held_out(**changes: Any) -> Retraining:
        return dataclasses.replace(old, held_out=dataclasses.replace(old.held_out, **changes))

    for other, problem in (
        (held_out(documents=old.held_out.documents[1:]), "3 held-out documents, now 4"),
        (held_out(ids="other"), "the tokenizer of the checkpoint changed"),
        (held_out(plan=old.held_out.plan | {"mask_token": 7}), "the tokenizer of the checkpoint changed"),
        (held_out(plan=old.held_out.plan | {"mask_rate": 0.4}), "different masks: mask_rate 0.4, now 0.15"),
        (_with_losses(old), "old has no finished seed"),
        (_with_losses(old, 2.0, math.nan), "seed 1 of old diverged: its loss is nan"),
    ):
        with pytest.raises(UserError, match=problem):
            compare(other, old, Settings(), "old")


def test_a_worse_recipe_is_told_from_an_unlucky_seed(made: tuple[Path, Result]) -> None:
    """Four against four: worse by more than all seeds differ is a REGRESSION, one unlucky seed is none."""
    old = _with_losses(Retraining.read(made[0]), 2.000, 2.001, 2.002, 2.003)
    answers = {
        Answer.REGRESSION: (2.030, 2.031, 2.032, 2.033),
        Answer.SAME: (2.000, 2.001, 2.002, 2.004),
        Answer.INCONCLUSIVE: (2.000, 2.001, 2.002, 2.053),
        Answer.BETTER: (1.900, 1.901, 1.902, 1.903),
    }
    for answer, losses in answers.items():
        assert compare(old, _with_losses(old, *losses), Settings(), "old").answer is answer
    two = compare(_with_losses(old, 2.0, 2.1), _with_losses(old, 9.0, 9.1), Settings(), "old")
    assert two.answer is Answer.INCONCLUSIVE


@pytest.mark.parametrize(("losses", "code"), [((9.0, 9.0, 9.0), 0), ((1.0, 1.1, 1.2), 1), ((9.0, 9.0), 3)])
def test_the_answer_is_the_exit_code(
    old: Path, settings: list[str], tmp_path: Path, losses: tuple[float, ...], code: int
) -> None:
    """`--against` prints the settings that differ and the answer, and exits with 0, 1 or 3."""
    after = Retraining.read(old)
    runs = [dataclasses.replace(after.seeds[0], seed=n, loss=2.0 + n / 1000) for n in range(42, 42 + len(losses))]
    dataclasses.replace(after, seeds=tuple(runs)).write(old)
    other = _with_losses(after, *losses)
    slower = after.config | {"guide": after.config["guide"] | {"learning_rate": 0.5}}
    dataclasses.replace(other, config=slower).write(tmp_path / "before")
    arguments = ("--seeds", str(len(losses)), "--against", str(tmp_path / "before"))
    shown = _invoke(old, settings, *arguments)
    assert shown.exit_code == code, shown.stderr
    assert "learning_rate 0.5 → 0.01" in shown.stdout
    content = json.loads(_invoke(old, settings, *arguments, "--json").stdout)
    assert content["differing_settings"] == {"learning_rate": [0.5, 0.01]}
    assert Answer(content["comparison"]["answer"]).exit_code == code
    page = _invoke(old, settings, *arguments, "--markdown").stdout
    assert page.startswith("### ")
    assert "| 42 | 2.042000 |" in page


def test_a_diverged_training_is_kept_and_is_a_regression(
    made: tuple[Path, Result], settings: list[str], tmp_path: Path
) -> None:
    """A loss that is no number stays in the file as a word, and one such seed is enough."""
    folder = tmp_path / "new"
    result = _invoke(folder, [*settings, "learning_rate=1e30"], "--seeds", "1", "--against", str(made[0]), "--json")
    assert result.exit_code == 1, result.stderr
    content = json.loads(result.stdout)
    assert content["comparison"]["answer"] == "REGRESSION"
    assert content["retraining"]["seeds"][0]["loss"] in ("NaN", "Infinity")
    assert "diverged with seed 42" in result.stderr
    assert not math.isfinite(Retraining.read(folder).seeds[0].loss)
    assert _invoke(folder, [*settings, "learning_rate=1e30"], "--seeds", "1").exit_code == 1


@pytest.mark.parametrize(
    ("text", "seeds"), [("5", (42, 43, 44, 45, 46)), ("1, 2,3", (1, 2, 3)), ("43,", (43,)), ("1", (42,))]
)
def test_seeds_are_counted_or_listed(text: str, seeds: tuple[int, ...]) -> None:
    """A number says how many from the recipe's own on; a comma makes it a list, also of one."""
    assert parse_seeds(text, 42) == seeds


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0", "not a valid number of seeds"),
        ("-1", "not a valid number of seeds"),
        (str(2**32), "not a valid number of seeds"),
        ("", "names no seed"),
        (",", "names no seed"),
        ("many", "neither a number nor a list"),
        ("1,2,1", "holds 1 twice"),
        ("1,-2", "holds -2"),
        (f"1,{2**32}", "which is not a valid seed"),
    ],
)
def test_what_are_no_seeds_is_refused(text: str, problem: str) -> None:
    """None, negative, repeated, too large, and words: each message says which."""
    with pytest.raises(UserError, match=problem):
        parse_seeds(text, 42)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("push_to_hub=true", "push_to_hub is True"),
        ("save_strategy=epoch", "save_strategy is 'epoch'"),
        ("seed=none", "hold out a different text"),
        ("block_size=65", "takes at most 64 tokens"),
        ("text_column=nothing", "no column 'nothing'"),
    ],
)
def test_a_bad_setting_leaves_nothing(settings: list[str], tmp_path: Path, setting: str, problem: str) -> None:
    """The message names the setting, and the output folder is not left behind."""
    with pytest.raises(UserError, match=problem):
        retrain(_config(tmp_path / "new", [*settings, setting]), (1,))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_taken_is_refused(old: Path, settings: list[str], tmp_path: Path) -> None:
    """A file, a folder of something else, and a folder at which another process works are left as they are."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        retrain(_config(tmp_path / "file", settings), (1,))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no retraining"):
        retrain(_config(tmp_path / "folder", settings), (1,))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine"]
    for left in (old, tmp_path / "killed early"):  # what a killed process leaves is no obstacle
        (left / recipe._WORK / "cache").mkdir(parents=True)
        with recipe._claimed(left) as work:
            assert not (work / "cache").exists()
        assert not work.exists()
    (old / recipe._WORK).mkdir()
    with (
        FileLock(old / recipe._WORK / "lock"),
        pytest.raises(UserError, match="another retraining is running"),
    ):
        retrain(_config(old, settings), (1,))
    retrain(_config(old, settings), (42,))


def test_a_file_that_cannot_be_trusted_is_refused(old: Path, tmp_path: Path) -> None:
    """Absent, truncated, edited, of another schema or no JSON at all: each says what it is."""
    with pytest.raises(UserError, match="does not exist"):
        Retraining.read(tmp_path / "absent")
    with pytest.raises(UserError, match=f"holds no {FILE}"):
        Retraining.read(tmp_path)
    whole = (old / FILE).read_text()
    content = json.loads(whole)
    for text, problem in (
        (whole[: len(whole) // 2], "truncated, damaged or edited"),
        (whole.replace('"seed": 43', '"seed": 44'), "its checksum differs"),
        (json.dumps(content | {"schema": 9}), "has schema 9, but this version reads schema 1"),
        (json.dumps({name: value for name, value in content.items() if name != "checksum"}), "checksum"),
        ("[]", "damaged"),
        ("", "damaged"),
    ):
        (old / FILE).write_text(text)
        with pytest.raises(UserError, match=problem):
            Retraining.read(old)


def test_one_folder_is_not_compared_with_itself(old: Path, settings: list[str]) -> None:
    """`--against` the output itself would always say same."""
    result = _invoke(old, settings, "--seeds", "2", "--against", str(old))
    assert isinstance(result.exception, UserError)
    assert "are the same folder" in result.exception.problem
