"""Mutation testing: the committed results hold, and what makes and checks them is right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlmrepro
from mlmrepro.errors import UserError
from tests.faults import mutation_results
from tests.faults.mutation_results import (
    LEAST_SCORE,
    ROOMS,
    Mutant,
    digests,
    main,
    mutants,
    plain_functions,
    prepare,
    problems,
    remeasure,
    sample,
    stale,
    summary,
    untried,
    write,
)

ROOT = Path(__file__).parents[2]
PACKAGE = Path(mlmrepro.__file__).parent
MODULES = [path.relative_to(PACKAGE).as_posix() for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
COMMITTED = json.loads((ROOT / "golden" / "faults" / "mutation.json").read_text(encoding="utf-8"))
# Written since the tables were measured; tests/faults/test_stale.py holds the list.
NEW = {
    module
    for module in json.loads((ROOT / "golden" / "faults" / "stale.json").read_text(encoding="utf-8"))["mutation"]
    if module not in COMMITTED["code"]
}


def test_the_committed_results_hold() -> None:
    """Every module of the three rooms was tested or is to be, each score is high enough, each survivor explained."""
    assert problems(COMMITTED, set(MODULES) - NEW) == []
    assert set(COMMITTED["rooms"]) == set(ROOMS)
    assert all(room["score"] >= LEAST_SCORE for room in COMMITTED["rooms"].values())


def test_changed_functions_are_named_with_the_command_that_measures_them(tmp_path: Path) -> None:
    """Another body, a new function and one that is gone are told; words, layout and other functions are not."""
    room = tmp_path / "compare"
    room.mkdir()
    source = (
        "def kept(a):\n    return a\n\nclass Thing:\n    def size(self):\n        return 3\n\ndef gone():\n    pass\n"
    )
    (room / "values.py").write_text(source)
    content = {"code": digests(tmp_path)}
    assert set(content["code"]["compare/values.py"]) == {"kept", "Thing.size", "gone"}
    assert stale(content, digests(tmp_path)) == {}
    (room / "values.py").write_text(source.replace("def kept(a):", 'def kept(a: int) -> int:\n    """Say it."""'))
    assert stale(content, digests(tmp_path)) == {}
    (room / "values.py").write_text(source.replace("return 3", "return 4").replace("gone", "new"))
    changed = stale(content, digests(tmp_path))
    assert {name: set(functions) for name, functions in changed.items()} == {
        "compare/values.py": {"Thing.size", "new", "gone"}
    }
    assert list(remeasure(changed))[-1] == "tox run -e mutation -- 'mlmrepro.compare.values.*'"


FOUND = [
    *(Mutant("compare/values.py", "size", f"return {n}", f"return {n + 1}", "killed") for n in range(18)),
    Mutant("compare/values.py", "size", "a = 1", "a = None", "timeout"),
    Mutant("compare/judge.py", "worst", "a < b", "a <= b", "survived"),
    Mutant("gate/judge.py", "answer", "a < b", "a <= b", "killed"),
    Mutant("scoring/plan.py", "keys", "a < b", "a <= b", "killed"),
]
NAMES = ["compare/values.py", "compare/judge.py", "gate/judge.py", "scoring/plan.py"]
REASONS = {("compare/judge.py: worst", "a < b", "a <= b"): {"kind": "equivalent", "why": "they are never equal"}}


def doctored(change: Callable[[dict[str, Any]], Any]) -> list[str]:
    content = copy.deepcopy(json.loads(json.dumps(summary(FOUND, NAMES, REASONS))))
    change(content)
    return problems(content, NAMES)


def test_sound_results_have_no_problem() -> None:
    """Counts, scores and reasons that fit are accepted; a change that ran out of time is a detected one."""
    assert doctored(lambda content: None) == []
    assert summary(FOUND, NAMES, REASONS)["rooms"]["compare"]["score"] == 0.95


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["rooms"]["gate"]["modules"].clear(), "gate/judge.py was not tested"),
        (lambda c: c["rooms"].pop("scoring"), "scoring/plan.py was not tested"),
        (lambda c: c["rooms"]["gate"]["modules"].update({"gate/old.py": {}}), "gate/old.py is no module any more"),
        (lambda c: c["rooms"]["compare"].update(killed=19), "do not sum up to its 20 mutants"),
        (lambda c: c["rooms"]["compare"].update(killed=17, survived=2), "the counts of its modules do not sum up"),
        (lambda c: c["rooms"]["compare"].update(survived=3), "3 of 20 mutants survived, more than is allowed"),
        (lambda c: c["survivors"].clear(), "1 mutants survived, 0 are listed"),
        (lambda c: c["survivors"][0].update(why=" "), "nobody says why this survives: a <= b"),
        (lambda c: c["survivors"][0].update(kind="unlucky"), "nobody says why this survives: a <= b"),
    ],
)
def test_doctored_results_are_found(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    """A module that is missing, counts that do not fit, a low score and a survivor without a reason are each told."""
    assert any(said in line for line in doctored(change))


DECORATED = '''
@dataclass
class Thing:
    @property
    def size(self) -> int:
        """Return the size."""
        return 3

    @classmethod
    def of(cls, size: int) -> Thing:
        return cls()


@lru_cache(maxsize=4)
def product(a: int, *, b: int) -> int:
    return a * b
'''


def test_decorated_functions_are_made_plain_and_do_the_same() -> None:
    """A property and a cached function call a plain twin that can be changed; what mutmut changes anyway stays."""
    source = plain_functions(f"from dataclasses import dataclass\nfrom functools import lru_cache\n{DECORATED}")
    assert "def _plain_size(self) -> int:" in source
    assert "return self._plain_size()" in source
    assert "return _plain_product(a, b=b)" in source
    assert "_plain_of" not in source
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(f"from __future__ import annotations\n{source}", "decorated", "exec"), names)
    assert names["Thing"]().size == names["Thing"]()._plain_size() == 3
    assert names["Thing"].size.__doc__ == "Return the size."
    assert names["product"](2, b=4) == names["_plain_product"](2, b=4) == 8
    assert plain_functions("x = 1\n") == "x = 1\n"


def test_a_copy_is_made_once(tmp_path: Path) -> None:
    """A copy has the tests, plain functions in the rooms, and fresh results: a folder that holds some is refused."""
    folder = tmp_path / "copy"
    assert main(["prepare", str(ROOT), str(folder)]) == 0
    for path in ("tests/compare/test_values.py", "golden/gate/simulation.json", "pyproject.toml"):
        assert (folder / path).is_file()
    copied = (folder / "mlmrepro" / "compare" / "values.py").read_text(encoding="utf-8")
    assert copied == plain_functions((PACKAGE / "compare" / "values.py").read_text(encoding="utf-8"))
    assert "_plain_size" in copied
    assert "Phase.generate" in (folder / "conftest.py").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="is not empty"):
        prepare(ROOT, folder)


def worked(folder: Path, codes: dict[int, int | None]) -> Path:
    """Write what mutmut leaves behind of one function with several changes."""
    package = folder / "mutants" / "mlmrepro" / "compare"
    package.mkdir(parents=True)
    name = "xǁThingǁ_plain_size__mutmut_{}".format
    lines, spans = [], {}
    for which, body in (("orig", "return 3"), *((n, f"return {n + 3}") for n in codes)):
        spans[name(which)] = [len(lines) + 1, len(lines) + 2]
        lines += [f"    def {name(which)}(self):", f"        {body}"]
    (package / "values.py").write_text("\n".join(lines), encoding="utf-8")
    (package / "values.py.spans").write_text(json.dumps({"spans": spans}))
    keys = {f"mlmrepro.compare.values.{name(n)}": code for n, code in codes.items()}
    (package / "values.py.meta").write_text(json.dumps({"exit_code_by_key": keys}))
    return folder


def test_the_results_of_the_tool_are_read(tmp_path: Path) -> None:
    """Each change is told with its function, its lines before and after, and its outcome; no test is no detection."""
    found = list(mutants(worked(tmp_path, {1: 1, 2: 0, 3: 33, 4: -24, 5: 3})))
    assert {(m.module, m.function, m.before) for m in found} == {("compare/values.py", "Thing.size", "return 3")}
    assert [(m.after, m.outcome) for m in found] == [
        ("return 4", "killed"),
        ("return 5", "survived"),
        ("return 6", "survived"),
        ("return 7", "timeout"),
        ("return 8", "killed"),
    ]


def test_a_run_that_was_broken_off_gives_no_results(tmp_path: Path) -> None:
    """A change that was not tried, or whose tests were interrupted, is no survivor and no detected one."""
    with pytest.raises(UserError, match="was not tried"):
        list(mutants(worked(tmp_path / "off", {1: 1, 2: None})))
    with pytest.raises(UserError, match="ended with exit code 2"):
        list(mutants(worked(tmp_path / "interrupted", {1: 1, 2: 2})))


def test_a_sample_is_the_same_every_time_and_grows() -> None:
    """A share of each module's changes, drawn by its name: a larger one holds the smaller ones, 1 holds all."""
    names = [f"change {n}" for n in range(200)]
    tenth, half = sample(names, 0.1, "values.py"), sample(reversed(names), 0.5, "values.py")
    assert (len(tenth), len(half), sample(names, 1.0, "values.py")) == (20, 100, set(names))
    assert tenth < half
    assert sample(names, 0.5, "judge.py") != half


def test_what_is_left_out_of_a_sample_is_told_with_an_interval(tmp_path: Path) -> None:
    """Scores are of what was tried, between Wilson's bounds; what was not tried need not have been, and is counted."""
    folder = worked(tmp_path, {n: (None, 0, 1, 1, 1)[n % 5] for n in range(1, 201)})
    tried = sample(
        [f"mlmrepro.compare.values.xǁThingǁ_plain_size__mutmut_{n}" for n in range(1, 201)], 0.5, "values.py"
    )
    with pytest.raises(UserError, match="was not tried"):
        list(mutants(folder, 0.5))
    meta = folder / "mutants" / "mlmrepro" / "compare" / "values.py.meta"
    codes = json.loads(meta.read_text())["exit_code_by_key"]
    codes = {key: 1 if key in tried and code is None else code for key, code in codes.items()}
    meta.write_text(json.dumps({"exit_code_by_key": codes}))
    room = summary(mutants(folder, 0.5), NAMES, {})["rooms"]["compare"]
    survived = sum(codes[key] == 0 for key in tried)
    assert (room["mutants"], room["left out"], room["survived"]) == (200, 100, survived)
    assert room["score"] == 1 - survived / 100
    assert room["interval"][0] < room["score"] < room["interval"][1]
    assert "interval" not in summary(FOUND, NAMES, REASONS)["rooms"]["compare"]
    whole = worked(tmp_path / "whole", dict.fromkeys(range(1, 21), 1))
    assert [mutant.outcome for mutant in mutants(whole, 0.5)] == ["killed"] * 20


def test_modules_that_were_not_tried_again_keep_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on some modules joins the results: the others keep counts, survivors and the digests of their own run."""
    monkeypatch.setattr(mutation_results, "version", lambda name: "3.8.1")
    folder, names = worked(tmp_path / "work", {1: 1, 2: 0}), ("compare/values.py", "gate/judge.py")
    for name in names:
        (folder / "mlmrepro" / name).parent.mkdir(parents=True)
        (folder / "mlmrepro" / name).write_text("")
    gate = folder / "mutants" / "mlmrepro" / "gate"
    gate.mkdir()
    (gate / "judge.py").write_text("")
    (gate / "judge.py.meta").write_text('{"exit_code_by_key": {"mlmrepro.gate.judge.x_answer__mutmut_1": null}}')
    assert untried(folder) == ["gate/judge.py"]
    now = {name: {"answer": "2"} for name in names}
    (folder / "origin.json").write_text(json.dumps({"provenance": {"source": "new"}, "code": now}))
    file = tmp_path / "mutation.json"
    with pytest.raises(UserError, match=r"gate/judge\.py was not tried"):
        write(folder, file)

    survivor = {"where": "gate/judge.py: answer", "before": "a", "after": "b", "kind": "equivalent", "why": "x"}
    rooms = {"gate": {"modules": {"gate/judge.py": {"killed": 19, "survived": 1}}}}
    old = {"provenance": {"backfilled": {"commit": "0d28"}}, "rooms": rooms, "survivors": [survivor]}
    file.write_text(json.dumps(old | {"code": {name: {"answer": "1"} for name in names}}))
    write(folder, file)
    made = json.loads(file.read_text())
    assert made["code"] == {"compare/values.py": {"answer": "2"}, "gate/judge.py": {"answer": "1"}}
    assert made["provenance"] == {"source": "new", "backfilled": {"commit": "0d28"}}
    assert made["rooms"]["gate"]["modules"] == rooms["gate"]["modules"]
    assert (made["rooms"]["gate"]["mutants"], made["rooms"]["gate"]["score"]) == (20, 0.95)
    assert made["rooms"]["compare"]["modules"]["compare/values.py"] == {"killed": 1, "survived": 1}
    assert [row["where"] for row in made["survivors"]] == ["compare/values.py: Thing.size", "gate/judge.py: answer"]
    assert made["survivors"][1] == survivor
