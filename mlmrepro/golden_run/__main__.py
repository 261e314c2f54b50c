"""``python -m mlmrepro.golden_run FOLDER`` stores the golden run's inputs: FOLDER is ``golden/embedded/inputs``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from mlmrepro.config import EMBEDDED
from mlmrepro.golden_run.beside.probe import Bench
from mlmrepro.golden_run.beside.saved import write_checkpoint
from mlmrepro.golden_run.run import store_inputs
from mlmrepro.provenance import package_versions


def main(target: Path) -> None:
    """Store all inputs, and a checkpoint as the installed version of transformers writes it, unless it is there."""
    store_inputs(target)
    checkpoint = target / "checkpoints" / str(package_versions()["transformers"])
    if not checkpoint.is_dir():
        checkpoint.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
            written = Path(folder) / "checkpoint"
            write_checkpoint(Bench(EMBEDDED / "checkpoint", target, Path(folder)), written)
            shutil.move(written, checkpoint)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
