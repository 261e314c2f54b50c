"""What a fault is planted in: the guide's steps and the libraries, wrapped from outside, and a copied checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlmrepro import loading
from mlmrepro.config import EMBEDDED

__all__ = ["Case"]


class Case:
    """One process in which something is broken, or nothing.

    `checkpoint` is the candidate: what the golden run starts from, what the laws are held against and what the gate
    checks. It is the embedded one until a fault edits it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = EMBEDDED / "checkpoint"

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Put `value` in place of an attribute of a module or class, which must be there."""
        getattr(owner, name)
        setattr(owner, name, value)

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put `make(original)` in place of a function or method."""
        self.set(owner, name, make(getattr(owner, name)))

    def after(self, owner: Any, name: str, change: Callable[[Any], Any]) -> None:
        """Let a function or method give `change(its result)`."""
        self.wrap(owner, name, lambda original: lambda *args, **kwargs: change(original(*args, **kwargs)))

    def edit_checkpoint(self, edit: Callable[[Path], None]) -> None:
        """Let `edit` change files of the candidate's checkpoint, of which this is a copy."""
        if self.checkpoint == EMBEDDED / "checkpoint":
            self.checkpoint = Path(shutil.copytree(self.checkpoint, self.folder / "checkpoint"))
            for name in ("load_tokenizer", "load_model", "max_block_size"):
                self.wrap(loading, name, self._redirected)
        edit(self.checkpoint)

    def _redirected(self, original: Any) -> Any:
        embedded = str(EMBEDDED / "checkpoint")

        def redirected(checkpoint: str, *args: Any, **kwargs: Any) -> Any:
            return original(str(self.checkpoint) if checkpoint == embedded else checkpoint, *args, **kwargs)

        return redirected

    def edit_weights(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Let `edit` change the candidate's tensors, by their names in model.safetensors."""
        from safetensors.torch import load_file, save_file

        def rewrite(folder: Path) -> None:
            tensors = load_file(folder / "model.safetensors")
            edit(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

        self.edit_checkpoint(rewrite)

    def edit_json(self, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
        """Let `edit` change one JSON file of the candidate, such as config.json or tokenizer.json."""

        def rewrite(folder: Path) -> None:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            edit(content)
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

        self.edit_checkpoint(rewrite)
