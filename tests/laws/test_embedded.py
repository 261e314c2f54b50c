"""All laws on the checkpoint that the package ships: they hold, and they leave the process alone."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mlmrepro.config import EMBEDDED
from mlmrepro.laws.law import GROUPS, all_laws
from mlmrepro.laws.result import LawResult, LawVerdict
from mlmrepro.laws.run import run_laws, sample

from . import held


@pytest.fixture(scope="module")
def results() -> list[LawResult]:
    torch.set_num_threads(2)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = run_laws(str(EMBEDDED / "checkpoint"), sample("embedded"))
    assert torch.equal(torch.get_rng_state(), before[0]), "a law drew from torch's generator"
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:], "a law drew from a generator"
    assert torch.get_num_threads() == 2
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_the_laws_hold(group: str, results: list[LawResult]) -> None:
    """Each law of the group is measured and holds, or is broken as is declared for these versions, with a link."""
    own = [result for result in results if result.group == group]
    assert {result.name: held.broken(result) for result in own if result.verdict.fails} == {}
    assert {result.name for result in own} == set(held.names(group))
    assert all(result.link for result in own if result.verdict is LawVerdict.KNOWN)
    assert any(result.verdict is LawVerdict.HOLDS for result in own)


def test_a_checkpoint_of_which_a_layer_is_not_read_breaks_one(tmp_path: Path) -> None:
    """The tests above can fail: a law names what it measured and the likely cause."""
    folder = shutil.copytree(EMBEDDED / "checkpoint", tmp_path / "copy")
    held.edit_json(folder / "config.json", num_hidden_layers=1)
    laws = [law for law in all_laws() if law.name == "stored_weights"]
    (result,) = run_laws(str(folder), sample("embedded"), laws=laws)
    assert result.verdict is LawVerdict.BROKEN
    assert "encoder.layer" in held.broken(result)
    assert result.cause
