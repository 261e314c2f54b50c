"""What is observed: a checkpoint, some text, and a folder to write to."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmrepro import loading
from mlmrepro.config import IGNORE_INDEX

if TYPE_CHECKING:
    import torch

__all__ = ["Subject"]

ROW_TOKENS = 48  # at most, including special tokens: long enough for ragged rows, short enough for a CPU


@dataclass
class Subject:
    """A checkpoint's tokenizer and model, loaded once, and small batches of the text.

    An observation that modifies the model or the tokenizer must use `fresh_model` or `fresh_tokenizer`. `inputs` is the
    folder of the goldens' stored inputs, None if there are none.
    """

    checkpoint: str
    texts: tuple[str, ...]
    folder: Path
    seed: int = 0
    inputs: Path | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer. Observations share it and must not modify it."""
        return self.fresh_tokenizer()

    @cached_property
    def model(self) -> Any:
        """The checkpoint's model in evaluation mode. Observations share it and must not modify it."""
        return self.fresh_model()

    def fresh_tokenizer(self) -> Any:
        """Load the tokenizer again."""
        return loading.load_tokenizer(self.checkpoint)

    def fresh_model(self) -> Any:
        """Load the model again, in evaluation mode. Unread weights raise no error here: an observation reports them."""
        return loading.load_model(self.checkpoint, refuse_unread=False).eval()

    def file(self, name: str) -> Path | None:
        """Return the local path of a file of the checkpoint, or None if there is no file of this name."""
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(self.checkpoint, name)
        except OSError:
            return None
        return None if found is None else Path(found)

    @cached_property
    def model_type(self) -> str:
        """The model type in config.json, even if the model cannot be loaded; "" if there is none."""
        path = self.file("config.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            return ""
        return str(content.get("model_type", "")) if isinstance(content, dict) else ""

    @cached_property
    def row_limit(self) -> int:
        """The maximum number of tokens in a row, including special tokens."""
        return min(ROW_TOKENS, loading.max_block_size(self.checkpoint, self.tokenizer.model_max_length))

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token ids of the texts, including special tokens, cut to `row_limit`; rows of unequal length, none empty."""
        ids = [self.tokenizer(text, truncation=True, max_length=self.row_limit)["input_ids"] for text in self.texts]
        # Texts are often longer than the limit: shorten every second row, so that batches need padding.
        rows = [row if index % 2 == 0 else row[: max(8, len(row) * 2 // 3)] for index, row in enumerate(ids)]
        return [row for row in rows if len(row) > 4]

    @property
    def pad_id(self) -> int:
        """The id used for padding."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def batch(self, rows: int | slice = 4, *, width: int | None = None) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each (rows, tokens), padded on the right.

        Every sixth ordinary token is masked, starting at another one in each row; its label is the original token.
        """
        import torch

        chosen = self.rows[rows] if isinstance(rows, slice) else self.rows[:rows]
        longest = max(width or 0, *map(len, chosen))
        ids = torch.full((len(chosen), longest), self.pad_id)
        real = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE_INDEX)
        special = set(self.tokenizer.all_special_ids)
        for index, row in enumerate(chosen):
            ids[index, : len(row)] = torch.tensor(row)
            real[index, : len(row)] = 1
            ordinary = [place for place, token in enumerate(row) if token not in special]
            for place in ordinary[self.rows.index(row) % 6 :: 6] or ordinary[:1]:
                labels[index, place] = row[place]
                ids[index, place] = self.tokenizer.mask_token_id
        return {"input_ids": ids, "attention_mask": real, "labels": labels}

    def new_folder(self, name: str) -> Path:
        """Return a new folder inside the scratch folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
