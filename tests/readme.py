"""The README's examples: ``python -m tests.readme`` runs its commands and writes their output into it.

A block ``console`` holds commands after "$ " and, below a command, its output; a last line "…" means that more follows.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlmrepro.config import EMBEDDED
from mlmrepro.files import atomic_write

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = 150  # answers of the embedded data, as the user's text
MORE = "…"
_NUMBER = r"\d+(?:\.\d+)?"


def examples(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of the README's console blocks with the lines of output shown below it."""
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            yield command, shown


def prepare(folder: Path) -> None:
    """Write the files that the README's commands read: goldens, two records, two checkpoints, a text."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(ROOT / "golden", folder / "golden")
    for name, versions in (("before", "t4.57.6-d4.4.2"), ("today", "t5.0.0-d4.5.0")):
        shutil.copy(ROOT / "golden" / "matrix" / f"{versions}.json", folder / f"{name}.json")
    for name in ("old-model", "new-model", "my-model"):
        shutil.copytree(EMBEDDED / "checkpoint", folder / name)
    # The new model is the old one with noise in its last layer: worse, but not by much.
    weights = load_file(folder / "new-model" / "model.safetensors")
    torch.manual_seed(0)
    for name in [name for name in sorted(weights) if ".layer.3." in name and name.endswith("dense.weight")]:
        weights[name] = weights[name] + 0.3 * weights[name].float().std() * torch.randn(weights[name].shape)
    save_file(weights, folder / "new-model" / "model.safetensors", metadata={"format": "pt"})
    rows = (json.loads(line) for line in (EMBEDDED / "data" / "askscience.jsonl").open(encoding="utf-8"))
    texts = [text for row in rows for text in row["answers"]["text"]][:DOCUMENTS]
    (folder / "eval.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def run(command: str, folder: Path) -> tuple[int, str]:
    """Run one command in a folder, 100 columns wide; return its exit code and its standard output."""
    hidden = ("GITHUB_", "MLMREPRO_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=folder,
        env={**environment, "COLUMNS": "100", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 2:
        raise RuntimeError(f"{command}: {done.stderr}")
    return done.returncode, done.stdout


def lines_of(printed: str) -> list[str]:
    """Return the lines of a command's standard output, as the README shows them."""
    return [line.rstrip() for line in printed.strip("\n").splitlines()]


def outputs(text: str, folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Run the commands with shown output, and what they need; yield (command, shown lines, lines of today)."""
    prepare(folder)
    for command, shown in examples(text):
        if shown:
            yield command, shown, lines_of(run(command, folder)[1])
        elif command.startswith("mlmrepro baseline"):
            run(command, folder)


def numbers(line: str) -> list[float]:
    """Return the numbers of a line."""
    return [float(number) for number in re.findall(_NUMBER, line)]


def words(line: str) -> str:
    """Return a line without its numbers and its layout."""
    return " ".join(re.sub(_NUMBER, "#", line).split())


def refresh() -> None:
    """Write today's output into the README; a block that ends with "…" keeps its number of lines."""
    text = README.read_text(encoding="utf-8")
    refreshed = text
    with tempfile.TemporaryDirectory() as folder:
        for command, shown, lines in outputs(text, Path(folder)):
            if shown[-1] == MORE:
                lines = [*lines[: max(len(shown) - 1, 1)], MORE]
            old, new = ("\n".join((f"$ {command}", *each)) for each in (shown, lines))
            refreshed = refreshed.replace(old, new, 1)
    atomic_write(README, refreshed)


if __name__ == "__main__":
    refresh()
