"""Digests of the code that a row of a table measured, so that a row cannot outlive it unnoticed.

A digest is made of source text, never of imported code: it can be made of another commit's files as well. It covers a
definition and, within the rooms of `_FOLLOWED`, the definitions that it names, wherever they lie. Docstrings, comments,
layout, annotations, and the source and likely cause of an observation are no part of it, nor is `_SHARED`, what every
row has in common: a change there would make the whole table stale each time.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tests.faults.conditions import all_controls
from tests.faults.result import BenchResult, CaseResult

__all__ = ["Sources", "code_of", "functions", "remeasure", "stale"]

_FOLLOWED = ("observations", "tests")
_SHARED = (
    *("observations.observation", "observations.result", "observations.subject", "observations.inputs"),
    *("tests.faults.case", "tests.faults.fault"),
)
_LENGTH = 12  # hexadecimal digits of a digest: 48 bits

# What notes the goldens' values on the guide's own path; training, evaluation and filling are noted by the guide's run.
_OBSERVERS = {
    "dataset": ("observe_split",),
    "flatten": ("observe_flatten",),
    "input_ids": ("observe_input_ids",),
    "blocks": ("observe_blocks",),
    "masked_batches": ("observe_batches",),
    "model": ("observe_model", "observe_forward"),
}
# What decides that a checkpoint got worse.
_STATISTICS = ("gate.judge", "gate.paired", "scoring.losses")


@dataclass
class _Module:
    """The definitions at the top of one module, and what each imported name stands for."""

    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)  # (module, name in it, "" for the module itself)


class Sources:
    """The modules of the package, and of the tests beside it, as text: what digests are made of."""

    def __init__(self, package: Path | None = None) -> None:
        self.package = package or Path(__file__).resolve().parents[2] / "mlmrepro"
        self._modules: dict[str, _Module | None] = {}
        self.digest = cache(self._reached)
        self.whole = cache(self._whole)

    def _reached(self, module: str, *names: str) -> str:
        """Return the digest of definitions of a module, such as ``"laws.masking"``; "" where one is not there."""
        reached: dict[tuple[str, str], str] = {}
        for name in names:
            if not self._reach(module, name, reached):
                return ""
        return _digest(sorted({(name, digest) for (_, name), digest in reached.items()}))

    def _whole(self, module: str) -> str:
        """Return the digest of a module's own definitions, "" where there is no such module."""
        read = self._module(module)
        return _digest(sorted((n, _own(node)) for n, node in read.definitions.items())) if read else ""

    @cached_property
    def laws(self) -> dict[str, str]:
        """The digest of each observation with bounds, by its name."""
        return {name: self.digest(module, name) for (_, name, bounds), module in self._observers.items() if bounds}

    def observer(self, stage: str, name: str) -> str:
        """Return the digest of one observation of a stage, "" where there is none of that name."""
        module = next((m for (s, n, _), m in self._observers.items() if (s, n) == (stage, name)), "")
        return self.digest(module, name) if module else ""

    @cached_property
    def _observers(self) -> dict[tuple[str, str, bool], str]:
        """The module of each observation, by its stage, its name, and whether it has bounds."""
        found = {}
        for path in sorted((self.package / "observations").glob("*.py")):
            name = f"observations.{path.stem}"
            module = self._module(name)
            for each in module.definitions.values() if module else ():
                for decorator in each.decorator_list if isinstance(each, ast.FunctionDef) else ():
                    if isinstance(decorator, ast.Call) and _called(decorator) == "observation":
                        bounds = any(one.arg == "bounds" for one in decorator.keywords)
                        found[ast.literal_eval(decorator.args[0]), each.name, bounds] = name
        return found

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            root = self.package.parent if name.startswith("tests.") else self.package
            path = root / Path(*name.split("."))
            path = path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")
            self._modules[name] = _read(path.read_text(encoding="utf-8")) if path.is_file() else None
        return self._modules[name]

    def _reach(self, module: str, name: str, reached: dict[tuple[str, str], str]) -> bool:
        """Add a definition and all that it names; tell whether it is there."""
        if (module, name) in reached:
            return True
        read = self._module(module)
        if read is None or name not in read.definitions:
            return False
        node = read.definitions[name]
        reached[module, name] = _own(node)
        own = dict(read.imports)
        for each in ast.walk(node):
            if isinstance(each, ast.ImportFrom):
                own |= _imported(each)
        for each in ast.walk(node):
            if isinstance(each, ast.Name):
                if each.id in own:
                    self._follow(*own[each.id], reached)
                else:
                    self._reach(module, each.id, reached)
            elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id in own:
                target, inner = own[each.value.id]
                self._follow(f"{target}.{inner}" if inner else target, each.attr, reached)
        return True

    def _follow(self, module: str, name: str, reached: dict[tuple[str, str], str]) -> None:
        if module.split(".")[0] in _FOLLOWED and module not in _SHARED and name:
            self._reach(module, name, reached)


@cache  # by the text: tests make digests of a dozen copies that differ in one file
def _read(text: str) -> _Module:
    module = _Module()
    for node in _Stripper().visit(ast.parse(text)).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            module.definitions[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            module.definitions |= dict.fromkeys((name for name in names if name != "__all__"), node)
        elif isinstance(node, ast.ImportFrom):
            module.imports |= _imported(node)
    return module


@cache  # by the node's identity
def _own(node: ast.stmt) -> str:
    """Return the digest of a definition alone."""
    return _digest(_dumped(node))


def _imported(node: ast.ImportFrom) -> dict[str, tuple[str, str]]:
    package, _, module = (node.module or "").partition(".")
    if package == "tests":
        module = str(node.module)
    elif package != "mlmrepro":
        return {}
    return {
        alias.asname or alias.name: (f"{module}.{alias.name}".lstrip("."), "") if not module else (module, alias.name)
        for alias in node.names
    }


def _called(decorator: ast.expr) -> str:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(function, ast.Constant):  # as _Stripper leaves it
        return str(function.value)
    return function.id if isinstance(function, ast.Name) else ""


class _Stripper(ast.NodeTransformer):
    """Takes out what does not decide a result."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._strip(node)
        node.returns = None
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        for each in every:
            if each is not None:
                each.annotation = None
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._strip(node)
        return self.generic_visit(node)

    def _strip(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        # Stage and severity of a fault stand in its row; a size more makes no other size stale.
        kept = [each for each in node.decorator_list if _called(each) not in ("fault", "graded")]
        for each in kept:
            if isinstance(each, ast.Call) and _called(each) == "observation":
                bounds = [ast.keyword("bounds", ast.Constant(True)) for one in each.keywords if one.arg == "cause"]
                each.keywords = [one for one in each.keywords if one.arg not in ("source", "cause")] + bounds
        # The name of what registers is not followed: it would bring in the whole registry.
        for each in kept:
            if isinstance(each, ast.Call) and _called(each) == "observation":
                each.func = ast.Constant(_called(each))
        node.decorator_list = kept


def _dumped(node: Any) -> Any:
    """Return a syntax tree as plain values: no positions, and no empty fields, which differ between Pythons."""
    if isinstance(node, ast.AST):
        fields = [(name, _dumped(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *(pair for pair in fields if pair[0] not in ("kind", "type_comment"))]
    return [_dumped(each) for each in node] if isinstance(node, list) else repr(node)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:_LENGTH]


def code_of(case: CaseResult, sources: Sources) -> dict[str, str]:
    """Return what a row measured, with a digest each: a fault and what saw it, or a control and all that did not.

    A digest is "" where the code is not there any more. The records of other versions are held against the goldens
    again by a test, whenever it runs, and have none.
    """
    if case.part == "versions":
        return {}
    if case.is_control:
        conditions = {control.name: control.conditions for control in all_controls()}
        held = asdict(conditions[case.name]) if case.name in conditions else {}
        return {
            "conditions": _digest(held) if held else "",
            "laws": _digest(sorted(sources.laws.items())),
            "statistics": _statistics(sources),
        }
    found = {"fault": sources.digest(f"tests.faults.catalogue.{case.part}", case.family or case.name)}
    for alarm in case.alarms:
        if alarm.layer in ("law", "property"):
            name = alarm.what.split(":")[0]
            found[f"law {name}"] = sources.laws.get(name, "")
        elif alarm.layer == "statistics":
            found["statistics"] = _statistics(sources)
        elif not alarm.what.startswith("raises "):
            found |= _golden_code(alarm.stage, alarm.what.split(", "), sources)
    return found


def _statistics(sources: Sources) -> str:
    return _digest([sources.whole(module) for module in _STATISTICS])


def _golden_code(stage: str, names: Sequence[str], sources: Sources) -> dict[str, str]:
    """Return the digests of what noted these values of a stage."""
    found = {}
    for name in names:
        if off_path := re.match(r"off_path\.([^.]+)\.", name):
            found[f"observation {off_path[1]}"] = sources.observer(stage, off_path[1])
        elif name.startswith("isolated."):
            found[f"isolated {stage}"] = sources.digest("observations.isolated", f"_{stage}")
        elif stage in _OBSERVERS:
            found[f"path {stage}"] = sources.digest("guide.observe", *_OBSERVERS[stage])
    return found


def stale(result: BenchResult, sources: Sources | None = None) -> dict[str, list[str]]:
    """Return, for each row whose code differs from today's, what of it does, such as ``law selection_rate``."""
    sources = sources or Sources()
    found = {}
    for case in result.cases:
        now = code_of(case, sources)
        if changed := [name for name in {**now, **case.code} if not now.get(name) or now[name] != case.code.get(name)]:
            found[case.name] = changed
    return found


def remeasure(changed: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield a line for each row to measure again, and the command that does so."""
    for name, parts in changed.items():
        yield f"{name} has to be measured again: {', '.join(parts)}"
    if changed:
        names = " ".join(changed)
        yield f"python -m tests.faults {names} --output golden/faults   (or: python -m tests.faults stale --output ...)"


def functions(sources: Sources, module: str) -> dict[str, str]:
    """Return the digest of each function and method of one module, such as ``"compare.values"``, by itself."""
    read = sources._module(module)
    found: dict[str, str] = {}
    for name, node in (read.definitions if read else {}).items():
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            found |= {f"{name}.{each.name}": _digest(_dumped(each)) for each in methods}
        elif isinstance(node, ast.FunctionDef):
            found[name] = _digest(_dumped(node))
    return found
