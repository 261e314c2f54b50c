"""``python -m mlmrepro.observations FOLDER`` stores the goldens' inputs: FOLDER is ``golden/embedded/inputs``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from mlmrepro.observations.golden_run import store_inputs
from mlmrepro.observations.saved import write_checkpoint
from mlmrepro.provenance import package_versions


def main(target: Path) -> None:
    """Store all inputs, and a checkpoint as the installed version of transformers writes it, unless it is there."""
    store_inputs(target)
    checkpoint = target / "checkpoints" / str(package_versions()["transformers"])
    if not checkpoint.is_dir():
        checkpoint.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
            written = Path(folder) / "checkpoint"
            write_checkpoint(written)
            shutil.move(written, checkpoint)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
