"""The rooms: who may import whom, and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mlmrepro

PACKAGE = Path(mlmrepro.__file__).parent
LIBRARIES = {"torch", "transformers", "datasets", "tokenizers", "accelerate", "evaluate"}
# All that takes a part of a second to import: these, what they need, and what draws figures and fills pages.
HEAVY = LIBRARIES | {"numpy", "scipy", "pandas", "pyarrow", "matplotlib", "safetensors", "jinja2", "requests", "httpx"}

# What each room may import of the package; a room that is not named here fails.
MAY_IMPORT: dict[str, set[str]] = {
    "credentials": set(),
    "errors": {"credentials"},
    "files": set(),
    "pyproject": {"errors"},
    "config": {"errors"},
    "provenance": {"errors"},
    "record": {"errors", "files", "provenance"},
    "compare": {"errors", "files", "record", "provenance"},
    # Of observations and environments what they hand over.
    "report": {"checkpoint_folder", "errors", "files", "record", "compare", "gate", "observations", "environments"},
    "environments": {"credentials", "errors", "files", "record", "compare"},
    "checkpoint_folder": {"errors"},
    "loading": {"checkpoint_folder", "errors"},
    "scores": set(),
    "guide": {"config", "errors", "files", "loading", "provenance", "record", "scoring"},
    "scoring": {"checkpoint_folder", "config", "errors", "files", "loading", "scores"},
    "gate": {"checkpoint_folder", "errors", "files", "provenance", "record", "scores"},
    "retraining": {
        "checkpoint_folder",
        "config",
        "errors",
        "files",
        "gate",
        "guide",
        "loading",
        "provenance",
        "record",
        "scores",
        "scoring",
    },
    "observations": {
        *("checkpoint_folder", "compare", "config", "errors", "files", "guide", "loading", "provenance", "record"),
        "scoring",
    },
    "cli": {
        *("config", "errors", "guide", "report", "record", "compare", "environments"),
        *("checkpoint_folder", "credentials", "files", "loading", "gate", "retraining", "scoring", "observations"),
        "pyproject",
    },
    "pytest_plugin": {
        *("compare", "config", "errors", "gate", "loading", "observations", "pyproject", "record", "report"),
        *("provenance", "retraining"),
    },
    "__init__": {"config", "errors", "guide", "record", "retraining", "scoring"},
    "__main__": {"cli"},
}
TORCH_FREE = {
    "checkpoint_folder",
    "credentials",
    "errors",
    "files",
    "pyproject",
    "config",
    "provenance",
    "record",
    "scores",
    "compare",
    "gate",
    "report",
    "environments",
}
TORCH_FREE |= {"pytest_plugin"}


def imports(source: str) -> tuple[set[str], set[str]]:
    """Return (rooms of the package, heavy libraries) that a module's source imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "mlmrepro":
                names |= {f"mlmrepro.{alias.name}" for alias in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("mlmrepro.")}
    return rooms, {name.split(".")[0] for name in names} & LIBRARIES


def problems(room: str, source: str) -> list[str]:
    """Return what a module imports against the rules of its room."""
    rooms, heavy = imports(source)
    found = [f"{room} imports {other}" for other in sorted(rooms - MAY_IMPORT[room] - {room})]
    if room in TORCH_FREE:
        found += [f"{room} imports {name}" for name in sorted(heavy)]
    return found


# Of a room that runs things, what it hands over: plain values that need none of the libraries.
RESULTS = {"mlmrepro.observations.result"}


def beyond_results(source: str) -> list[str]:
    """Return the modules of observations that a report imports besides their results."""
    modules = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    return sorted(m for m in modules if m.startswith("mlmrepro.observations") and m not in RESULTS)


def never_training(source: str) -> list[str]:
    """Return where an observation imports the guide's training: bounds hold for any training, not for ours."""
    names = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return sorted(name for name in names if name.startswith("mlmrepro.guide.train"))


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(PACKAGE)) for p in MODULES])
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    """Errors and config come first, then provenance, record, guide; comparing and showing need no torch."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert problems(room, path.read_text(encoding="utf-8")) == []


def test_a_forbidden_import_is_seen() -> None:
    """The rules above can fail: a lazy import of torch, and one of a room to the right."""
    assert problems("compare", "def f():\n    import torch.nn") == ["compare imports torch"]
    assert problems("record", "from mlmrepro.guide.run import run") == ["record imports guide"]
    assert problems("guide", "from mlmrepro import cli") == ["guide imports cli"]


def test_reports_read_results_and_observations_train_by_themselves() -> None:
    """A report imports of observations only their results, and an observation never the guide's own training."""
    reports = [path for path in MODULES if path.parent.name == "report"]
    observing = [path for path in MODULES if path.parent.name == "observations" and path.stem != "isolated"]
    assert reports
    assert observing
    assert [p.name for p in reports if beyond_results(p.read_text(encoding="utf-8"))] == []
    assert [p.name for p in observing if never_training(p.read_text(encoding="utf-8"))] == []
    assert beyond_results("from mlmrepro.observations.observe import observe_all") == ["mlmrepro.observations.observe"]
    assert never_training("from mlmrepro.guide import train") == ["mlmrepro.guide.train"]


def test_no_module_outgrows_its_room() -> None:
    """A file of more than 400 lines is two rooms."""
    assert [p.name for p in MODULES if len(p.read_text(encoding="utf-8").splitlines()) > 400] == []


def graph() -> dict[str, set[str]]:
    """Return the modules that each module of the package imports, also inside functions, but not for types alone."""
    dotted = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES}
    paths = {name.removesuffix(".__init__"): path for path, name in dotted.items()}
    found: dict[str, set[str]] = {}
    for own, path in paths.items():
        imported: set[str] = set()
        for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        found[own] = (imported & paths.keys()) - {own}
    return found


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Iterate over the nodes of a module that can run: not those below ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from executed(child)


def test_no_module_imports_itself_through_others() -> None:
    """There is no import circle, and none is hidden inside a function."""
    imports = graph()
    assert len(imports) == len(MODULES)
    tuple(TopologicalSorter(imports).static_order())
    imports["mlmrepro.errors"].add("mlmrepro.cli")
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(imports).static_order())


@pytest.mark.parametrize("arguments", [["-c", "import mlmrepro"], ["-m", "mlmrepro", "--help"]])
def test_import_and_help_are_light(arguments: list[str], tmp_path: Path) -> None:
    """`import mlmrepro` and `mlmrepro --help` load no heavy library, and of the package no more than parsing needs."""
    code, loaded = loaded_by(*arguments, directory=tmp_path)
    assert code == 0
    assert loaded & HEAVY == set()
    own = {name.split(".")[1] for name in loaded if name.startswith("mlmrepro.")}
    assert own <= {"__main__", "cli", "config", "credentials", "errors", "provenance"}


def loaded_by(*arguments: str, directory: Path) -> tuple[int, set[str]]:
    """Return the exit code of a Python that is started with these arguments, and the modules that it loads."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    listed = [line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert "mlmrepro" in listed
    return done.returncode, {*listed, *(name.split(".")[0] for name in listed)}


def test_a_heavy_import_is_seen(tmp_path: Path) -> None:
    """The two tests that use the list of loaded modules can fail."""
    assert "numpy" in loaded_by("-c", "import mlmrepro, numpy.linalg", directory=tmp_path)[1] & HEAVY


def test_the_package_fits_into_twenty_megabytes() -> None:
    """All that is installed, so the wheel too, is below 20 MB."""
    assert sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.suffix != ".pyc") < 20_000_000


def test_public_names_are_importable() -> None:
    """Every name in `__all__` can be had from the package, and no other."""
    for name in mlmrepro.__all__:
        assert getattr(mlmrepro, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mlmrepro.nothing
