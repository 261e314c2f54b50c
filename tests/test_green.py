"""What keeps this suite green on any machine: no test asserts an absolute time, none is skipped for what it found."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlmrepro

from .installed import has, needs

HERE = Path(__file__).parent
BENCHMARKS = {"benchmarks"}  # times are what these measure
FILES = sorted(path for path in HERE.rglob("*.py") if path.parent.name not in BENCHMARKS and path != Path(__file__))

CLOCK = re.compile(r"(time|monotonic|perf_counter|process_time|thread_time)(_ns)?|times|getrusage|cpu_times|timeit")
MEASURED = re.compile(r"\w*(seconds|elapsed|duration)\w*")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
SHORTEST_WAIT = 60  # seconds: what waits longer than this fails only where something hangs


def name_of(node: ast.AST) -> str:
    """Return the last part of a name, ``monotonic`` of ``time.monotonic``, or a key that is looked up."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
    return ""


def reads_clock(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Call) and CLOCK.fullmatch(name_of(n.func)) for n in ast.walk(node))


def timed_names(tree: ast.AST) -> set[str]:
    """Return the names that hold a time or, as functions, give one; by name alone, wherever they stand."""
    found: set[str] = set()
    size = -1
    while size < len(found):
        size = len(found)
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=targets, value=value) if is_time(value, found):
                    found |= {name for target in targets for n in ast.walk(target) if (name := name_of(n))}
                case (
                    ast.AnnAssign(target=target, value=ast.expr() as value)
                    | ast.NamedExpr(target=target, value=value)
                    | ast.AugAssign(target=target, value=value)
                ) if is_time(value, found):
                    found.add(name_of(target))
                case ast.Call(func=ast.Attribute(value=kept, attr="append" | "add"), args=[value]) if is_time(
                    value, found
                ):
                    found.add(name_of(kept))
                case ast.Return(value=ast.expr() as value) if is_time(value, found):
                    found |= {f.name for f in ast.walk(tree) if isinstance(f, FUNCTION) and node in ast.walk(f)}
    return found


def is_time(node: ast.AST, timed: set[str]) -> bool:
    """Whether a time is in an expression; a time over a time is a ratio."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        parts = [is_time(node.left, timed), is_time(node.right, timed)]
        return any(parts) and not all(parts)
    if isinstance(node, ast.Call) and CLOCK.fullmatch(name_of(node.func)):
        return True
    name = name_of(node)
    return name in timed or bool(MEASURED.fullmatch(name)) or any(is_time(n, timed) for n in ast.iter_child_nodes(node))


def asserted_times(source: str) -> Iterator[str]:
    """Return each comparison of a time with something that is none, and each wait that is short.

    Two times may be compared, as a ratio, and a loop may wait for a moment; not so a moment that is asserted.
    """
    tree = ast.parse(source)
    timed = timed_names(tree)
    waiting = {id(n) for loop in ast.walk(tree) if isinstance(loop, ast.While) for n in ast.walk(loop.test)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and id(node) not in waiting and isinstance(node.ops[0], ORDER):
            sides = [side for side in (node.left, *node.comparators) if ast.unparse(side) != "0"]
            if reads_clock(node) or 0 < sum(is_time(side, timed) for side in sides) < len(sides):
                yield ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg == "timeout" and isinstance(node.value, ast.Constant):
            if node.value.value is not None and node.value.value < SHORTEST_WAIT:
                yield f"timeout={node.value.value}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            try:  # what a test gives another process to run
                yield from asserted_times(node.value)
            except SyntaxError:
                continue


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(HERE)) for path in FILES])
def test_no_test_asserts_an_absolute_time(path: Path) -> None:
    """Times belong in benchmarks: a test lists what is loaded, counts what is called, or compares two times."""
    if path.name != "waiting.py":
        assert list(asserted_times(path.read_text(encoding="utf-8"))) == []


PLANTED = {
    "a clock": "import time\nstart = time.monotonic()\nwork()\nassert time.monotonic() - start < 5",
    "processor time": "def cost():\n    before = os.times()\n    run()\n    return os.times()[0] - before[0]\n"
    "def test_x():\n    assert min(cost() for _ in range(3)) < 0.3",
    "by way of a list": "taken = []\nfor _ in range(3):\n    a = perf_counter()\n    taken.append(perf_counter() - a)\n"
    "assert min(taken) <= LIMIT",
    "what the product measured": "assert sum(result.seconds for result in results) < ALL",
    "a key": "assert state['seconds'] < 10",
    "a failure by hand": "start = time.time()\nwork()\nif time.time() - start > 5:\n    pytest.fail('slow')",
    "a deadline": "limit = time.monotonic() + 10\nwhile any(alive):\n    assert time.monotonic() < limit",
    "a short wait": "process.communicate(timeout=5)",
    "in another process": "CODE = '''\nimport time\nassert time.process_time() < 1\n'''",
}
ALLOWED = {
    "a ratio": "def seconds(n):\n    start = time.thread_time()\n    work(n)\n    return time.thread_time() - start\n"
    "assert seconds(2000) < 100 * seconds(20)\nratio = seconds(1) / seconds(2)\nassert ratio < 3",
    "a random moment": "moment = time.monotonic() + 0.1\nwhile time.monotonic() < moment:\n    assert is_whole()",
    "a sign": "assert record['seconds'] >= 0",
    "a long wait": "process.wait(timeout=300)",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_an_asserted_time_is_seen(kind: str) -> None:
    """The test above can fail, whatever clock is read and however the time reaches the comparison."""
    assert len(list(asserted_times(PLANTED[kind]))) == 1


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_holds_on_any_machine_is_allowed(kind: str) -> None:
    """Ratios, waiting and signs say nothing about how fast a machine is."""
    assert list(asserted_times(ALLOWED[kind])) == []


# Where a test may be skipped, and for what: a version, or a package that is missing.
SKIPPING = {"installed.py", "third_party/conftest.py"}


def skips(source: str) -> list[str]:
    """Return what skips in a module, but for what `installed` says of versions."""
    names = {"skip", "skipif", "importorskip", "skipTest", "SkipTest"}
    return [ast.unparse(n) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and n.attr in names]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(HERE)) for path in FILES])
def test_no_test_is_skipped_for_what_it_found(path: Path) -> None:
    """A test that skips where what it watches goes blind checks nothing: only `installed` skips, by version alone."""
    if str(path.relative_to(HERE)) not in SKIPPING:
        assert skips(path.read_text(encoding="utf-8")) == []


def test_a_skip_is_seen() -> None:
    """The test above can fail; and a skip by version is one that `installed` makes."""
    assert skips("if result.holds:\n    pytest.skip('before or after the breach')") == ["pytest.skip"]
    assert skips("@pytest.mark.skipif(not model.fast, reason='x')\ndef test_x(): ...") == ["pytest.mark.skipif"]
    assert has("pytest>=8")
    assert not has("pytest>=8,<8")
    assert needs("pytest>=8", "x").args == (False,)
    assert needs("pytest<8", "older").kwargs["reason"] == "older; runs with pytest<8"


def quick_modules() -> list[Path]:
    return [path for path in FILES if is_quick(path.read_text(encoding="utf-8"))]


def is_quick(source: str) -> bool:
    """Whether a module or one of its tests is marked as quick."""
    marks = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and n.attr == "quick")
    return any(ast.unparse(mark) == "pytest.mark.quick" for mark in marks)


def test_every_room_has_a_quick_test() -> None:
    """`pytest -m quick` runs something of each folder of tests, and of each folder of the package."""
    folders = {path.parent.relative_to(HERE) for path in FILES if path.name.startswith("test_")}
    quick = quick_modules()
    assert folders - {path.parent.relative_to(HERE) for path in quick} == {Path("third_party")}
    sources = "".join(path.read_text(encoding="utf-8") for path in quick)
    rooms = {path.parent.name for path in Path(mlmrepro.__file__).parent.glob("*/__init__.py")}
    assert {room for room in rooms if not re.search(rf"from mlmrepro(\.| import .*\b){room}\b", sources)} == set()


def test_a_quick_module_is_told_from_another() -> None:
    """By its mark, on the module or on one test; a word in a text is no mark."""
    assert is_quick("pytestmark = pytest.mark.quick")
    assert is_quick("@pytest.mark.quick\ndef test_x(): ...")
    assert not is_quick("'pytest.mark.quick'\nquick = mark.slow")
