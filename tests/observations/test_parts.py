"""The parts of a golden run's record: stored inputs and isolated stages; one that fails costs no other its values."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from transformers.utils import logging

from mlmrepro.compare.changes import Comparison
from mlmrepro.compare.judge import Expectations, judge_record
from mlmrepro.config import EMBEDDED, golden_directory
from mlmrepro.errors import UserError
from mlmrepro.guide import blocks
from mlmrepro.observations import golden_run, isolated, trainer
from mlmrepro.observations.inputs import check_inputs, load_rows, load_tensors
from mlmrepro.observations.small_training import Rows
from mlmrepro.observations.subject import Subject
from mlmrepro.observations.toy import Toy
from mlmrepro.record import RunRecord

INPUTS = golden_directory() / "inputs"


def test_the_stored_inputs_are_what_the_run_gives(tmp_path: Path) -> None:
    """Storing the inputs again gives the same rows and masks, and logits that differ by rounding only."""
    golden_run.store_inputs(tmp_path)
    arrows = sorted(path.name for path in INPUTS.glob("*.arrow"))
    assert len(arrows) == 4
    for name in arrows:
        assert load_rows(tmp_path / name).to_list() == load_rows(INPUTS / name).to_list()
    for name in ("batches", "fill_mask"):
        new, old = (load_tensors(folder / f"{name}.safetensors") for folder in (tmp_path, INPUTS))
        assert new.keys() == old.keys()
        assert all(torch.allclose(new[key], old[key], rtol=0, atol=1e-3) for key in old)


@pytest.mark.parametrize("name", ["blocks.arrow", "batches.safetensors", "checkpoints"])
def test_a_missing_input_is_bad_input(tmp_path: Path, name: str) -> None:
    """A stage that cannot be run in isolation is not left out in silence: the missing file is named."""
    shutil.copytree(INPUTS, tmp_path / "inputs")
    gone = tmp_path / "inputs" / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=name):
        check_inputs(tmp_path / "inputs")


def test_an_isolated_stage_that_raises_is_recorded_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it raised stands in the record, the comparison fails at that stage, and no other stage lacks its values."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such column\nmore")

    monkeypatch.setattr(blocks, "group", broken)
    record = RunRecord({}, {})
    config = golden_run.golden_config(tmp_path)
    chosen = {name: isolated.ISOLATED[name] for name in ("input_ids", "blocks", "masked_batches")}
    monkeypatch.setattr(isolated, "ISOLATED", chosen)
    isolated.observe_isolated(record, config, INPUTS, tmp_path)
    assert record["blocks.isolated.outcome"] == "raises RuntimeError: no such column"
    assert record["masked_batches.isolated.counts"]["tokens"] > 0
    expected = Expectations.from_goldens(golden_directory())
    wanted = {
        stage: {name: entry for name, entry in expected.entries[stage].items() if name.startswith("isolated.")}
        for stage in chosen
    }
    comparison = Comparison(judge_record(Expectations(wanted, expected.versions), record))
    assert [change.stage for change in comparison.changes] == ["blocks"]
    assert comparison.exit_code == 1


def test_the_verbosity_of_the_libraries_decides_no_value(tmp_path: Path) -> None:
    """TRANSFORMERS_VERBOSITY=error, as many jobs set it, switches Trainer's progress bars off and is no change."""

    def defaults(name: str) -> dict[str, Any]:
        subject = Subject(str(EMBEDDED / "checkpoint"), (), tmp_path / name)
        return {each.slug: each.value for each in trainer.argument_values.look(subject)}

    before = defaults("before")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        assert TrainingArguments(output_dir=str(tmp_path)).disable_tqdm
        assert defaults("after") == before
        assert logging.get_verbosity() == logging.ERROR
    finally:
        logging.set_verbosity(verbosity)


@pytest.mark.quick
def test_the_toy_model_depends_on_nothing_but_its_sizes() -> None:
    """Two of them are equal, its loss is finite and falls when it is trained, and its rows know who was asked."""
    first, second = Toy(50), Toy(50)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    ids = torch.arange(24).reshape(2, 12)
    rows = Rows({"input_ids": ids, "labels": ids})
    losses = []
    optimizer = torch.optim.SGD(first.parameters(), lr=0.5)
    for _ in range(5):
        loss = first(rows[0]["input_ids"][None], labels=rows[0]["labels"][None])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert rows.asked == [0] * 10
