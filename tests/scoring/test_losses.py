"""Raw losses as a table: a line for each masked token, which other tools read back as it was."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mlmrepro.scores import Scores
from mlmrepro.scoring.losses import write_losses

from . import tiny

pytestmark = pytest.mark.quick


def scores(loss: list[float], token: list[int]) -> Scores:
    units = len(loss)
    return Scores(
        document=np.array([0, 0, 1][:units], np.int32),
        position=np.array([3, 8, 0][:units], np.int32),
        token=np.array(token, np.int32),
        loss=np.array(loss, np.float32),
        size=np.ones(units, np.int32),
        correct=np.ones(units, bool),
        confidence=np.ones(units, np.float32),
    )


def test_each_masked_token_is_a_line(tmp_path: Path) -> None:
    """Document, place, id, text and loss, under these names; a float is read back exactly, a comma is quoted."""
    tokenizer, path = tiny.word_piece(), tmp_path / "below" / "losses.csv"
    comma = tokenizer.convert_tokens_to_ids(",")
    losses = [0.1, 2.5, float("inf")]
    write_losses(path, scores(losses, [7, comma, 9]), ["first, of two", "second"], tokenizer)
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["document", "position", "token", "text", "loss"]
    assert [row[:4] for row in rows[1:]] == [
        ["first, of two", "3", "7", tokenizer.decode([7])],
        ["first, of two", "8", str(comma), ","],
        ["second", "0", "9", tokenizer.decode([9])],
    ]
    assert [np.float32(row[4]) for row in rows[1:]] == [np.float32(loss) for loss in losses]


def test_a_table_of_uneven_columns_is_an_error(tmp_path: Path) -> None:
    """Scores whose columns do not belong together never become a table that looks whole."""
    uneven = scores([0.1, 0.2], [7, 8])
    object.__setattr__(uneven, "loss", uneven.loss[:1])
    with pytest.raises(ValueError, match="zip"):
        write_losses(tmp_path / "losses.csv", uneven, ["a", "b"], tiny.word_piece())
    assert list(tmp_path.iterdir()) == []
