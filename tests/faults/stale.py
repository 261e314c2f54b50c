"""Which rows of the two tables measured code that has been rewritten since: golden/faults/stale.json names them.

``python -m tests.faults.stale`` writes that file and prints what measures the rows again. A test holds the file
against the code of today: no row outlives its code unnoticed, and a rewrite does not wait for hours of measuring.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mlmrepro.errors import UserError
from mlmrepro.files import atomic_write
from tests.faults import digests, mutation_results
from tests.faults.result import BenchResult

__all__ = ["main", "stale_rows"]


def stale_rows(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return what differs, by row of detection.json, and the functions that do, by module of mutation.json.

    Raises UserError where one of the two cannot be read in `folder`.
    """
    path = folder / "mutation.json"
    try:
        mutation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", remedy="give the folder of both tables") from error
    sources = digests.Sources()
    return {
        "detection": digests.stale(BenchResult.read(folder / "detection.json"), sources),
        "mutation": mutation_results.stale(mutation, mutation_results.digests(sources.package)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Write stale.json, and print what measures its rows again."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.stale", description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("golden/faults"), help="where the tables are")
    folder = parser.parse_args(arguments).folder
    found = stale_rows(folder)
    atomic_write(folder / "stale.json", json.dumps(found, indent=1) + "\n")
    for line in (*digests.remeasure(found["detection"]), *mutation_results.remeasure(found["mutation"])):
        print(line)


if __name__ == "__main__":
    main()
