"""Observations of the embedded checkpoint; ``pytest --mlm-observe embedded`` makes all of them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import torch

from mlmrepro.config import EMBEDDED
from mlmrepro.observations.observe import observe_all, sample
from mlmrepro.observations.registry import choose
from mlmrepro.observations.result import BoundVerdict

from . import held

CHECKPOINT = str(EMBEDDED / "checkpoint")


def test_observing_draws_from_no_generator() -> None:
    """What draws random inputs or trains leaves the global generators and the number of threads as they were."""
    torch.set_num_threads(2)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    results = observe_all(CHECKPOINT, sample("embedded")[0], observers=choose(["masking", "steps", "evaluation"]))
    assert {result.name: held.broken(result) for result in results if result.verdict.fails} == {}
    assert len(results) >= 15
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert torch.get_num_threads() == 2


def test_a_layer_that_is_not_read_breaks_a_bound(tmp_path: Path) -> None:
    """The result names what was measured and the likely cause."""
    folder = shutil.copytree(EMBEDDED / "checkpoint", tmp_path / "copy")
    held.edit_json(folder / "config.json", num_hidden_layers=1)
    (result,) = observe_all(str(folder), sample("embedded")[0], observers=choose(["stored_weights"]))
    assert result.verdict is BoundVerdict.BROKEN
    assert "encoder.layer" in held.broken(result)
    assert result.cause
