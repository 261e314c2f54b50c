"""Raw losses as a table for other tools."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlmrepro.files import atomic_write
from mlmrepro.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["write_losses"]


def write_losses(path: Path, scores: Scores, names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a CSV file with document, position, token id, its text and its loss in nats, one line per masked token."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["document", "position", "token", "text", "loss"])
    columns = (scores.document.tolist(), scores.position.tolist(), scores.token.tolist(), scores.loss.tolist())
    for document, position, token, loss in zip(*columns, strict=True):
        writer.writerow([names[document], position, token, tokenizer.decode([token]), repr(loss)])
    atomic_write(path, out.getvalue())
