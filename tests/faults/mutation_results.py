"""Mutation testing of our own comparing, gating and scoring: what of that code the tests would miss if it were wrong.

``tox run -e mutation`` has mutmut change the three rooms, one small thing at a time, and runs the tests that reach each
change. Here are the step before, which makes a copy that mutmut can change wholly, and the step after, which writes
golden/faults/mutation.json.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write
from mlmrepro.provenance import collect
from tests.faults.digests import Sources, functions

__all__ = [
    "KINDS",
    "LEAST_SCORE",
    "ROOMS",
    "Mutant",
    "digests",
    "main",
    "mutants",
    "plain_functions",
    "prepare",
    "problems",
    "remeasure",
    "sample",
    "stale",
    "untried",
]

ROOMS = ("compare", "gate", "scoring")
LEAST_SCORE = 0.90

KINDS = {
    "equivalent": "the code does the same with the change, for every input",
    "needless": "the changed part only makes the code faster or clearer: without it the result is the same",
    "wording": "only the words of a message, or of another text for people, are others",
    "out of reach": "telling the difference takes a machine, a locale or a state that the tests do not have",
    "accepted": "a test could tell, and is not worth its cost; says why",
}

_POLICY = (
    "Every change that mutmut makes counts, those of messages too, and none is taken out of the score. A change that "
    "runs out of time is detected, one that no test reaches is not. Left alone are what mutmut never changes "
    "(constants and other statements of modules and classes, annotations, calls of len and isinstance), "
    "__tracebackhide__, and the two files that evaluate copies and loads by itself. Decorated functions, which mutmut "
    "passes over, are changed: their bodies are moved into plain ones before. Hypothesis gives 30 examples, where no "
    "number is set, and does not shrink them."
)

_COPIED = ("mlmrepro", "tests", "golden", "conftest.py", "pyproject.toml", "tox.ini", "README.md", "LICENSE")
# Its writers are processes of their own, in which nothing is changed, and waiting for them takes most of the time.
_LEFT_OUT = ("tests/compare/test_store_processes.py",)
_MARK = "_plain_"
# `evaluate` copies the code object of this one, and so would lose what mutmut wraps around it.
_COPIED_AWAY = ("add_batch",)
# A failing example is enough here, and a third of the examples: to shrink it, and to try all, takes most of the time.
# And a loop that a change keeps from ending must not take all memory.
_CONFTEST = """
import resource

from hypothesis import Phase

settings.register_profile(
    "mutation", settings.get_profile("suite"), max_examples=30, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("mutation")
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
"""
# mutmut tells by test which functions it reaches: what a shared fixture calls would count for the first test alone.
_SHARED, _OWN = '@pytest.fixture(scope="module"', '@pytest.fixture(scope="function"'
_ORIGIN = "origin.json"  # what `prepare` leaves for `write`
_OUTCOMES = ("killed", "timeout", "survived", "left out")
# Exit codes of pytest and mutmut, and signals: a test failed, or the process crashed; all passed, no test was left to
# run or reaches the change; out of time. Others say nothing of the tests.
_KILLED, _SURVIVED, _TIMEOUT = (1, 3, -6, -8, -11), (0, 5, 33), (-24, 24, 36, 152, 255)


@dataclass(frozen=True)
class Mutant:
    """One change of one function, and what the tests said of it."""

    module: str  # "compare/values.py"
    function: str  # "Difference.size"
    before: str  # the lines that it changes
    after: str
    outcome: str  # "killed", "timeout", "survived", or "left out" of the sample


def plain_functions(source: str) -> str:
    """Return a module's source with the body of each decorated function in a plain one beside it, which it calls.

    mutmut changes no function with decorators other than classmethod and staticmethod: no property, for one.
    """
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    found = [(node, False) for node in tree.body] + [(node, True) for each in classes for node in each.body]
    for node, method in sorted(found, key=lambda pair: -pair[0].lineno):
        if isinstance(node, ast.FunctionDef) and _is_passed_over(node):
            start, end = node.lineno - 1, node.end_lineno
            lines[start:end] = [*_delegate(node, lines, method), "\n", *_renamed(lines[start:end])]
    return "".join(lines)


def _is_passed_over(node: ast.FunctionDef) -> bool:
    names = [d.id if isinstance(d, ast.Name) else "" for d in node.decorator_list]
    return node.name in _COPIED_AWAY or (bool(names) and names not in (["classmethod"], ["staticmethod"]))


def _renamed(lines: list[str]) -> list[str]:
    return [lines[0].replace("def ", f"def {_MARK}", 1), *lines[1:]]


def _delegate(node: ast.FunctionDef, lines: list[str], method: bool) -> list[str]:
    """Return the head of a function, with its docstring, and a call of its plain twin in place of its body."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    until = (first.end_lineno or first.lineno) if documented else first.lineno - 1
    names = [each.arg for each in node.args.args]
    given = [*names[method:], *(f"{each.arg}={each.arg}" for each in node.args.kwonlyargs)]
    given += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    owner = f"{names[0]}." if method else ""
    call = f"{' ' * first.col_offset}return {owner}{_MARK}{node.name}({', '.join(given)})\n"
    return [*lines[node.lineno - 1 : until], call]


def prepare(tree: Path, folder: Path) -> None:
    """Copy what the tests need of `tree` into `folder`, with plain functions in the three rooms and fewer examples.

    Raises UserError where the folder holds anything: what mutmut found before would be taken for new.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty", remedy="give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    told = {"provenance": collect(), "code": digests(tree / "mlmrepro")}  # now, before the hours that mutmut takes
    atomic_write(folder / _ORIGIN, json.dumps(told))
    for name in _COPIED:
        if (tree / name).is_dir():
            shutil.copytree(tree / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(tree / name, folder / name)
    with (folder / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write(_CONFTEST)
    for left_out in _LEFT_OUT:
        (folder / left_out).unlink()
    for path in (folder / "tests").rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").replace(_SHARED, _OWN), encoding="utf-8")
    for path in _modules(folder / "mlmrepro"):
        path.write_text(plain_functions(path.read_text(encoding="utf-8")), encoding="utf-8")


def _modules(package: Path) -> list[Path]:
    return sorted(path for room in ROOMS for path in (package / room).rglob("*.py"))


def digests(package: Path) -> dict[str, dict[str, str]]:
    """Return the digest of each function and method of the three rooms, by module."""
    sources = Sources(package)
    names = [path.relative_to(package).as_posix() for path in _modules(package)]
    return {name: functions(sources, name.removesuffix(".py").replace("/", ".")) for name in names}


def stale(content: Mapping[str, Any], code: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Return, by module, the functions that are not those which were measured: changed, new, or gone."""
    found = {}
    for module in {**code, **content["code"]}:
        then, now = content["code"].get(module, {}), code.get(module, {})
        if changed := [name for name in {**now, **then} if now.get(name) != then.get(name)]:
            found[module] = changed
    return found


def remeasure(changed: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield a line for each function to measure again, and the command that measures their modules."""
    for module, names in changed.items():
        yield from (f"{module}: {name} has to be measured again" for name in names)
    if changed:
        patterns = (f"'mlmrepro.{module.removesuffix('.py').replace('/', '.')}.*'" for module in changed)
        yield f"tox run -e mutation -- {' '.join(patterns)}"


def sample(names: Iterable[str], share: float, module: str) -> set[str]:
    """Return a share of the changes of a module, the same in every run: each larger share holds the smaller ones."""
    order = sorted(names)
    random.Random(f"1 {module}").shuffle(order)
    return {name for rank, name in enumerate(order) if rank / len(order) < share}


def mutants(folder: Path, share: float = 1.0) -> Iterator[Mutant]:
    """Iterate over the changes that mutmut made below `folder`; raises UserError where one of the share was not tried.

    A module of which some were not tried gives that share of its changes, drawn by name; any other gives all of them,
    and one of which none was tried, as `untried` names it, gives none.
    """
    package = folder / "mutants" / "mlmrepro"
    for path in _modules(package):
        meta, spans = path.with_name(f"{path.name}.meta"), path.with_name(f"{path.name}.spans")
        if not meta.is_file():
            continue
        codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        if set(codes.values()) == {None}:
            continue
        where = json.loads(spans.read_text(encoding="utf-8"))["spans"]
        lines = path.read_text(encoding="utf-8").split("\n")
        chosen = sample(codes, share, path.name) if None in codes.values() else set(codes)
        for key, code in codes.items():
            if code is None and key in chosen:
                raise UserError(f"{key} was not tried", remedy="run mutmut to its end")
            name = key.rpartition(".")[2]
            original = f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"
            bodies = [_body(lines, where[each], each) for each in (original, name)]
            outcome = _outcome(code) if key in chosen else "left out"
            yield Mutant(path.relative_to(package).as_posix(), _function(name), *_changed(*bodies), outcome)


def untried(folder: Path) -> list[str]:
    """Return the modules of whose changes none was tried: mutmut was given the names of others."""
    package = folder / "mutants" / "mlmrepro"
    metas = {path: path.with_name(f"{path.name}.meta") for path in _modules(package)}
    return [
        path.relative_to(package).as_posix()
        for path, meta in metas.items()
        if meta.is_file() and set(json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].values()) == {None}
    ]


def _function(name: str) -> str:
    """Return ``Difference.size`` of ``xǁDifferenceǁ_plain_size__mutmut_3``."""
    mangled = name.rpartition("__mutmut_")[0]
    parts = mangled.split("ǁ")[1:] or [mangled.removeprefix("x_")]
    return ".".join(part.removeprefix(_MARK) for part in parts)


def _body(lines: list[str], span: list[int], name: str) -> list[str]:
    return [line.replace(name, _function(name).rpartition(".")[2]).strip() for line in lines[span[0] - 1 : span[1]]]


def _changed(before: list[str], after: list[str]) -> tuple[str, str]:
    marked = list(difflib.ndiff(before, after))
    sides = ([line[2:] for line in marked if line.startswith(sign)] for sign in ("- ", "+ "))
    first, second = ("\n".join(side) for side in sides)
    return first, second


def _outcome(code: int) -> str:
    outcomes = {_KILLED: "killed", _SURVIVED: "survived", _TIMEOUT: "timeout"}
    for codes, outcome in outcomes.items():
        if code in codes:
            return outcome
    raise UserError(f"a change ended with exit code {code}", remedy="run mutmut again for it")


def summary(
    found: Iterable[Mutant],
    modules: Iterable[str],
    reasons: Mapping[tuple[str, ...], Mapping[str, str]],
    earlier: Mapping[str, Mapping[str, int]] | None = None,
) -> Any:
    """Return the rooms and survivors of the golden file; `reasons` gives kind and why of a survivor.

    Its keys are where, before and after. `earlier` has the counts of modules that were measured before, not now.
    """
    found = list(found)
    by_module = {name: Counter(m.outcome for m in found if m.module == name) for name in modules}
    by_module |= {name: Counter(counts) for name, counts in (earlier or {}).items()}
    rooms: dict[str, Any] = {}
    for room in ROOMS:
        own = {name: counts for name, counts in by_module.items() if name.startswith(f"{room}/")}
        counts = sum(own.values(), Counter())
        tried = counts.total() - counts["left out"]
        interval = (
            binomtest(tried - counts["survived"], tried).proportion_ci(0.95, method="wilson") if tried else (0, 1)
        )
        rooms[room] = {
            "mutants": counts.total(),
            **{outcome: counts[outcome] for outcome in _OUTCOMES},
            "score": round(1 - counts["survived"] / tried, 4) if tried else 0.0,
            # Where some are left out: Wilson's interval of 95 %, for a share of a population without an end.
            **({"interval": [round(float(end), 4) for end in interval]} if counts["left out"] else {}),
            "modules": own,
        }
    survivors = []
    for mutant in found:
        if mutant.outcome == "survived":
            key = (f"{mutant.module}: {mutant.function}", mutant.before, mutant.after)
            told = reasons.get(key, {})
            row = dict(zip(("where", "before", "after"), key, strict=True))
            survivors.append(row | {"kind": told.get("kind", ""), "why": told.get("why", "")})
    return {
        "policy": _POLICY,
        "kinds": KINDS,
        "rooms": rooms,
        "survivors": survivors,
    }


def problems(content: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """Return what is wrong with the content of the golden file, for the modules that the rooms have, a line each."""
    found = []
    listed = {name for room in content["rooms"].values() for name in room["modules"]}
    found += [f"{name} was not tested" for name in sorted(set(modules) - listed)]
    found += [f"{name} is no module any more" for name in sorted(listed - set(modules))]
    for name, room in content["rooms"].items():
        counted = sum((Counter(each) for each in room["modules"].values()), Counter())
        if counted != Counter({key: room[key] for key in _OUTCOMES if room[key]}):
            found.append(f"{name}: the counts of its modules do not sum up to its own")
        if sum(room[key] for key in _OUTCOMES) != room["mutants"]:
            found.append(f"{name}: the outcomes do not sum up to its {room['mutants']} mutants")
        tried = room["mutants"] - room["left out"]
        if not tried or 1 - room["survived"] / tried < LEAST_SCORE:
            found.append(f"{name}: {room['survived']} of {tried} mutants survived, more than is allowed")
        rows = [row for row in content["survivors"] if row["where"].startswith(f"{name}/")]
        if len(rows) != room["survived"]:
            found.append(f"{name}: {room['survived']} mutants survived, {len(rows)} are listed")
    for row in content["survivors"]:
        if row["kind"] not in KINDS or not row["why"].strip():
            found.append(f"{row['where']}: nobody says why this survives: {row['after']}")
    return found


def write(folder: Path, file: Path, share: float = 1.0) -> list[str]:
    """Write what mutmut found below `folder`, with the reasons that `file` has; return what is wrong with it."""
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"survivors": [], "rooms": {}, "code": {}}
    reasons: dict[tuple[str, ...], Any] = {(row["where"], row["before"], row["after"]): row for row in old["survivors"]}
    package = folder / "mlmrepro"
    modules = [path.relative_to(package).as_posix() for path in _modules(package)]
    measured = {name: counts for room in old["rooms"].values() for name, counts in room["modules"].items()}
    kept = untried(folder)
    if lacking := [name for name in kept if name not in measured]:
        raise UserError(f"{', '.join(lacking)} was not tried", remedy="run mutmut for it too")
    origin = json.loads((folder / _ORIGIN).read_text(encoding="utf-8"))
    found = summary(mutants(folder, share), modules, reasons, {name: measured[name] for name in kept})
    found["survivors"] += [row for row in old["survivors"] if row["where"].partition(":")[0] in kept]
    found["survivors"].sort(key=lambda row: modules.index(row["where"].partition(":")[0]))  # stable: as they were found
    code = {name: digests for name, digests in origin["code"].items() if name not in kept}
    code |= {name: old["code"].get(name, {}) for name in kept}
    backfilled = {"backfilled": old["provenance"]["backfilled"]} if kept and "backfilled" in old["provenance"] else {}
    content = {
        "tool": "mutmut",
        "version": version("mutmut"),
        "provenance": origin["provenance"] | backfilled,
        **found,
        "code": {name: code[name] for name in modules},
    }
    atomic_write(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return problems(content, modules)


def main(arguments: list[str] | None = None) -> int:
    """Prepare a copy or write the results; exit code 1 where a room's score is too low or a survivor has no reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutation_results")
    parser.add_argument("step", choices=("prepare", "write"))
    parser.add_argument("tree", type=Path, help="the repository")
    parser.add_argument("folder", type=Path, help="where mutmut works")
    parser.add_argument("--share", type=float, default=1.0, help="of the changes of a module that was not tried whole")
    given = parser.parse_args(arguments)
    if given.step == "prepare":
        prepare(given.tree, given.folder)
        return 0
    found = write(given.folder, given.tree / "golden" / "faults" / "mutation.json", given.share)
    print("\n".join(found) or "every room's score is high enough, and every survivor has its reason")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
