"""gate and attribute on the command line: exit codes, formats, what is kept, and what is said aloud."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from mlmrepro import cli
from mlmrepro.compare.golden import Variant
from mlmrepro.environments import matrix, upgrade
from mlmrepro.environments.attribute import Attribution, Cause, Explained
from mlmrepro.environments.make import Unmade
from mlmrepro.environments.releases import Release
from mlmrepro.environments.spec import Environment
from mlmrepro.environments.upgrade import Installed
from mlmrepro.errors import UserError

from .report.records import LINK, golden, record
from .test_architecture import HEAVY, loaded_by

# Stands for `mlmrepro record`: what it writes depends on the versions of the environment, as planted says.
RECORDER = """
import json, pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
world = next(each / "world" for each in output.parents if (each / "world").is_dir())
versions = json.loads((world / f"{output.stem}.versions").read_text())
content = json.loads((world / "record.json").read_text())
content["provenance"]["packages"].update(versions)
for value, packages, changed, *since in json.loads((world / "planted.json").read_text()):
    if all(float(versions[name]) >= (since or [2.0])[0] for name in packages):
        stage, _, name = value.partition(".")
        content["stages"][stage][name]["value"] = changed
with (world / "calls").open("a") as calls:
    calls.write(output.stem + "\\n")
output.write_text(json.dumps(content))
"""
NAMES = ("transformers", "datasets", "torch", "numpy", "pandas", "scipy")
TOP_K = "fill_mask.off_path.default_top_k"


class World:
    """A folder in which environments cost nothing, and which says what their versions change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "world"
        self.folder.mkdir()
        (self.folder / "calls").touch()
        self.releases = ["1.0", "2.0"]  # of each package
        self.unmade: dict[str, str] = {}  # why environments cannot be made, by name
        record().write(self.folder / "record.json")
        golden(folder / "goldens", record())
        for side in "12":
            (folder / f"{side}.lock").write_text("".join(f"{name}=={side}.0\n" for name in NAMES))
        self.plant()

    def plant(self, *changes: tuple[Any, ...]) -> None:
        (self.folder / "planted.json").write_text(json.dumps(changes))

    def make(self, environment: Environment, *_: object, **__: object) -> Path:
        if environment.name in self.unmade:
            log = self.folder / "pip.log"
            log.write_text("all that pip said")
            raise Unmade(self.unmade[environment.name], log)
        exact = map(Requirement, (*environment.packages, *environment.pins))
        versions = {each.name: str(each.specifier)[2:] or "1.0" for each in exact}
        (self.folder / f"{environment.name}.versions").write_text(json.dumps(versions))
        return Path(sys.executable)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().split()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two lock files, goldens, and environments that are made in no time."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    made = World(tmp_path)
    monkeypatch.setattr(matrix, "make_environment", made.make)
    # Of an environment, its interpreter is all that is needed to list it: here, the file with its versions.
    monkeypatch.setattr(upgrade, "make_environment", lambda each, *_: made.folder / f"{each.name}.versions")
    monkeypatch.setattr(
        upgrade, "installed_in", lambda path: {n: Installed(v) for n, v in json.loads(path.read_text()).items()}
    )
    monkeypatch.setattr(upgrade, "RECORD", ("-c", RECORDER))
    monkeypatch.setattr(upgrade, "releases", lambda *_: ([Release(Version(each)) for each in made.releases], ""))
    return made


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--goldens", "goldens", "--directory", "runs"])
    return int(exit_.value.code or 0)


GATE = ("gate", "--from", "1.lock", "--to", "2.lock")


def test_gate_exits_with_0_if_nothing_changed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Both records are taken and compared, and a budget is not spent on a green gate."""
    assert run(*GATE, "--budget", "10") == 0
    out = capsys.readouterr().out
    assert "1.lock → 2.lock" in out
    assert "Nothing changed" in out
    assert "Causes" not in out
    assert world.calls() == ["from", "to"]


def test_gate_exits_with_1_for_a_regression_and_says_what_to_do(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a budget it names the command that finds the packages; a second run takes no record again."""
    world.plant((TOP_K, ["transformers"], 6))
    assert run(*GATE) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "REGRESSION" in out
    assert "off_path.default_top_k 5 → 6" in out
    assert "mlmrepro attribute 1.lock 2.lock" in out
    assert run(*GATE) == 1
    assert world.calls() == ["from", "to"]


def test_gate_goes_on_to_the_packages(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """With a budget, the comparison comes first and then the causes, with the pins that keep the old behaviour."""
    world.plant((TOP_K, ["numpy", "scipy"], 6), ("dataset.train_rows", ["transformers"], 31))
    assert run(*GATE, "--budget", "10") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.index("REGRESSION") < out.index("Causes: 2 of 2 changed values explained")
    assert "transformers 1.0 → 2.0" in out
    assert "numpy 1.0 → 2.0 and" in out
    assert "only together" in out
    assert "upgrade all but numpy==1.0 scipy==1.0 transformers==1.0" in out


def test_gate_goes_on_to_the_release(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A change of a single package is followed to the release; one of two packages is not, and needs no environment."""
    world.releases = ["1.0", *(f"1.{number}" for number in range(1, 10)), "2.0"]
    world.plant((TOP_K, ["numpy", "scipy"], 6), ("dataset.train_rows", ["transformers"], 31, 1.6))
    assert run(*GATE, "--budget", "10", "--html", "gate.html") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.index("Causes: 2 of 2 changed values explained") < out.index("Releases: 1 change followed")
    assert "dataset.train_rows transformers 1.5 1.6" in out
    assert "Releases: 1 change followed" in Path("gate.html").read_text()
    releases = [call for call in world.calls() if call.startswith("transformers-")]
    assert len(set(releases)) <= 4, "as many as halving takes"
    assert sorted(set(releases)) != sorted(releases), "what decides is measured twice"
    calls = world.calls()
    assert run(*GATE, "--budget", "0.00001", "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["releases"]["changes"][0]["first_after"] == "1.6", "what is kept costs nothing"
    assert world.calls() == calls


def test_a_budget_may_end_before_the_release(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages are still named, and the result says what was not searched."""
    world.releases = ["1.0", "1.5", "2.0"]
    world.plant((TOP_K, ["torch"], 6))
    locks = upgrade.lock_of("1.lock"), upgrade.lock_of("2.lock")
    gate = upgrade.Upgrade(locks, Path("runs"), goldens=Path("goldens"), cache=Path("cache"))
    gate.take()
    found = Attribution(("torch",), [Explained(TOP_K, (Cause(("torch",)),))])
    gate.measure(frozenset({"torch"}))
    behind = upgrade.releases_behind(gate, found, 0.0)
    assert (behind.found, len(behind.notes)) == ([], 1)
    assert "the budget is used up" in behind.notes[0]
    (searched,) = (each for _, each in upgrade.releases_behind(gate, found, 60.0).found)
    assert str(searched.after.version) == "2.0"
    only_together = Attribution(("torch", "numpy"), [Explained(TOP_K, (Cause(("torch", "numpy")),))])
    assert upgrade.releases_behind(gate, only_together, 60.0) == upgrade.Behind()
    inseparable = Attribution(("torch", "numpy"), [Explained(TOP_K, (Cause(("torch", "numpy"), inseparable=True),))])
    ((package, searched),) = upgrade.releases_behind(gate, inseparable, 60.0).found
    assert (package, str(searched.after.version)) == ("torch", "2.0")

    def unlisted(*_: object) -> None:
        raise UserError("the releases of torch cannot be listed: no network", remedy="none")

    monkeypatch.setattr(upgrade, "releases", unlisted)
    assert upgrade.releases_behind(gate, found, 60.0).notes == ["the releases of torch cannot be listed: no network"]


def test_the_environment_of_a_release(world: World) -> None:
    """It is the old side with the release; what must go with it keeps its version, or takes the new, or is free."""
    gate = upgrade.Upgrade(
        (upgrade.lock_of("1.lock"), upgrade.lock_of("2.lock")), Path("runs"), goldens=Path("goldens")
    )
    for side in gate.sides:
        world.make(side)
    cause = Cause(("transformers",), ("numpy",))
    made = [
        gate.with_release(cause, "transformers", Version("1.5"), {}, free)
        for free in ((), ("datasets",), ("datasets", "numpy", "pandas", "pyarrow"))
    ]
    assert [each.name for each in made] == [f"transformers-1.5{each}" for each in ("", "-with-numpy", "-free")]
    assert all("transformers==1.5" in each.requirements for each in made)
    assert all("datasets==1.0" in each.requirements for each in made)
    numpy = [[each for each in (*env.requirements, *env.pins) if each.startswith("numpy")] for env in made]
    assert numpy == [["numpy==1.0"], ["numpy==2.0"], []]
    assert made[2].free == ("numpy", "pandas", "pyarrow")
    ends = [gate.with_release(cause, "transformers", Version(each), {}, ()) for each in ("1.0", "2.0")]
    assert ends[0] == gate.sides[0]
    assert {"transformers==2.0", "datasets==1.0"} == set(ends[1].requirements[:2])


def test_a_declared_change_passes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """What the goldens declare for the new versions is expected, as in `compare`."""
    world.plant((TOP_K, ["transformers"], 6))
    variants = (Variant(5, ("transformers<2.0",), "More.", LINK), Variant(6, ("transformers>=2.0",), "More.", LINK))
    golden(Path("goldens"), record("1.0", "1.0"), {TOP_K: variants})
    assert run(*GATE) == 0
    assert "Every change is expected" in capsys.readouterr().out


def test_json_holds_all(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The comparison of `compare`, the notes, and the attribution; nothing else is on standard output."""
    world.plant((TOP_K, ["numpy", "scipy"], 6))
    Path("1.lock").write_text(Path("1.lock").read_text() + "attrs>=20\n")
    assert run(*GATE, "--budget", "10", "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"] == "REGRESSION"
    assert "1.lock: attrs not used: not pinned to one exact version" in content["notes"]
    (change,) = content["attribution"]["changes"]
    assert change["name"] == TOP_K
    assert [cause["packages"] for cause in change["causes"]] == [["numpy", "scipy"]]
    assert content["attribution"]["packages"]["numpy"] == ["1.0", "2.0"]
    assert content["attribution"]["complete"]


def test_other_formats(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Markdown has the causes, and the page and the JUnit file are written where asked."""
    world.plant((TOP_K, ["pandas"], 6))
    assert run(*GATE, "--budget", "10", "--markdown", "--html", "gate.html", "--junit", "gate.xml") == 1
    out = capsys.readouterr().out
    assert "Causes: 1 of 1 changed value explained" in out
    assert "pandas 1.0 → 2.0" in out
    assert "default_top_k" in Path("gate.html").read_text()
    assert 'failures="1"' in Path("gate.xml").read_text()


def test_on_github_there_is_a_summary(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step summary has the comparison and the causes."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    world.plant((TOP_K, ["pandas"], 6))
    assert run(*GATE, "--budget", "10") == 1
    summary = Path("summary.md").read_text()
    assert "REGRESSION" in summary
    assert "Causes: 1 of 1 changed value explained" in summary


def test_an_upgrade_that_cannot_be_installed_is_red(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason and the log are printed, also as JSON and JUnit; no search is begun."""
    world.unmade["to"] = "No matching distribution found for torch==2.0"
    assert run(*GATE, "--budget", "10", "--junit", "gate.xml") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "2.lock: no record: No matching distribution found for torch==2.0 (log: " in out
    assert 'errors="1"' in Path("gate.xml").read_text()
    assert run(*GATE, "--json") == 1
    assert json.loads(capsys.readouterr().out)["problem"] == "No matching distribution found for torch==2.0"


@pytest.mark.parametrize(
    ("side", "problem"),
    [
        ("from", "No matching distribution found for torch==1.0"),
        ("to", "No matching distribution found for torch==2.0 (the package index could not be reached)"),
    ],
)
def test_without_a_reference_or_a_network_there_is_no_answer(
    world: World, capsys: pytest.CaptureFixture[str], side: str, problem: str
) -> None:
    """Exit code 2 with the reason: an index that does not answer says nothing about the upgrade."""
    world.unmade[side] = problem
    assert run(*GATE) == 2
    err = capsys.readouterr().err
    assert f"{'1' if side == 'from' else '2'}.lock cannot be measured: {problem}" in err
    assert "Remedy: " in err


def test_without_a_network_what_is_stored_still_answers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A stored gate is judged again; a search ends at the first environment that it cannot make, and says why."""
    world.plant((TOP_K, ["scipy"], 6))
    assert run(*GATE) == 1
    unreached = "No matching distribution found (the package index could not be reached)"
    world.unmade |= dict.fromkeys(["only-transformers"], unreached)
    capsys.readouterr()
    assert run("attribute", "1.lock", "2.lock") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "The search ended early: No matching distribution found (the package index could not be reached)" in out
    assert f"{TOP_K}: the cause is among transformers, datasets, torch, numpy, pandas" in out
    world.unmade.clear()
    assert run("attribute", "1.lock", "2.lock") == 0


def test_attribute_continues_from_what_is_stored(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without time measures nothing and exits with 1; the next one finds the cause; a third needs no time."""
    world.plant((TOP_K, ["numpy", "scipy"], 6))
    assert run("attribute", "1.lock", "2.lock", "--budget", "0") == 1
    assert "the budget of 0 minutes is used up" in " ".join(capsys.readouterr().out.split())
    assert run("attribute", "1.lock", "2.lock", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["changes"][0]["causes"][0]["packages"] == ["numpy", "scipy"]
    calls = world.calls()
    assert len(calls) == len(set(calls))
    assert run("attribute", "1.lock", "2.lock", "--budget", "0", "--markdown") == 0
    assert "numpy 1.0 → 2.0" in capsys.readouterr().out
    assert world.calls() == calls


def test_attribute_says_what_could_not_be_measured(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Mixtures that cannot be made are listed with the reason, and are not taken for quiet ones."""
    world.plant((TOP_K, ["transformers"], 6))
    world.unmade["without-transformers"] = "pip found a conflict"
    assert run("attribute", "1.lock", "2.lock") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "not known: the new side without transformers cannot be measured: pip found a conflict" in out
    assert "not measured: the old side with datasets, torch, numpy, pandas, scipy of the new one" in out
    assert "try the upgrade with transformers==1.0" in out


def test_a_change_that_is_hidden_in_the_whole(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """What one package changes alone and another takes back is told apart from the upgrade's changes."""
    world.plant(
        ("dataset.train_rows", ["transformers"], 31),
        ("dataset.train_rows", ["transformers", "datasets"], 32),
        (TOP_K, ["transformers"], 6),
    )
    assert run("attribute", "1.lock", "2.lock") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "not in the whole upgrade, but with transformers of the new side alone: dataset.train_rows" in out


def test_packages_that_require_each_other(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """They are not said to break only together: which of them it is cannot be told."""
    world.plant((TOP_K, ["numpy"], 6))
    both = {"numpy": {"scipy"}, "scipy": {"numpy"}}
    asked: list[str] = []
    monkeypatch.setattr(upgrade, "required_with", lambda name, *_: asked.append(name) or both.get(name, set()))
    assert run("attribute", "1.lock", "2.lock") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "require each other" in out
    assert "only together" not in out
    assert len(asked) == len(set(asked)), "requirements are read once for each package"


def test_nothing_to_explain(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """An upgrade without changes costs both records and no more."""
    assert run("attribute", "1.lock", "2.lock") == 0
    assert "there is no change to explain" in capsys.readouterr().out
    assert world.calls() == ["from", "to"]


@pytest.mark.parametrize("arguments", [GATE, ("attribute", "1.lock", "2.lock")])
def test_bad_locks_are_one_line(world: World, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """A lock without transformers, or one that contradicts itself, names file and remedy and exits with 2."""
    for text, said in (("numpy==2.0\n", "2.lock: no transformers"), ("a==1\na==2\n", "2.lock:2: a is pinned to 2")):
        Path("2.lock").write_text(text)
        assert run(*arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"mlmrepro: error: {said}")
        assert "Remedy: " in err
        assert err.count("\n") == 1
    assert world.calls() == []


def test_a_bound_that_the_old_side_breaks_is_not_of_the_upgrade(world: World) -> None:
    """A finding that the old record gives against itself is no change to explain."""
    record(evaluation__eval_loss=1.0).write(world.folder / "record.json")  # its perplexity is not exp(1)
    world.plant((TOP_K, ["transformers"], 6))
    locks = upgrade.lock_of("1.lock"), upgrade.lock_of("2.lock")
    found = upgrade.Upgrade(locks, Path("runs"), goldens=Path("goldens"), cache=Path("cache"))
    comparison = found.compare(found.take())
    assert found.standing == {"evaluation.perplexity"}
    assert "evaluation.perplexity" in upgrade.changed_values(comparison)
    assert found.wanted(comparison, only_failing=True) == [TOP_K]


def test_gate_needs_no_heavy_library(world: World) -> None:
    """Reading locks and comparing what is stored load neither torch nor transformers."""
    code, loaded = loaded_by("-m", "mlmrepro", "gate", "--from", "1.lock", "--to", "none", directory=Path())
    assert code == 2
    assert loaded & HEAVY == set()
