"""The parts of a golden run's record: stored inputs, stages alone, probes; one that fails costs no other its values."""

from __future__ import annotations

import random
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
from mlmrepro.golden_run import alone, run
from mlmrepro.golden_run.beside import probe, training
from mlmrepro.golden_run.inputs import check_inputs, load_rows, load_tensors
from mlmrepro.golden_run.toy import Rows, Toy
from mlmrepro.guide import blocks
from mlmrepro.record import Lane, RunRecord

INPUTS = golden_directory() / "inputs"


def test_the_stored_inputs_are_what_the_run_gives(tmp_path: Path) -> None:
    """Storing the inputs again gives the same rows and masks, and logits that differ by rounding only."""
    run.store_inputs(tmp_path)
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
    """A stage that cannot be run alone is not left out in silence: the missing file is named."""
    shutil.copytree(INPUTS, tmp_path / "inputs")
    gone = tmp_path / "inputs" / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=name):
        check_inputs(tmp_path / "inputs")


def test_a_stage_that_raises_alone_is_written_down_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it raised stands in the record, the comparison fails at that stage, and no other stage lacks its values."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such column\nmore")

    monkeypatch.setattr(blocks, "group", broken)
    record = RunRecord({}, {})
    guide = run.golden_config(tmp_path).guide
    chosen = {name: alone.STAGES_ALONE[name] for name in ("input_ids", "blocks", "masked_batches")}
    monkeypatch.setattr(alone, "STAGES_ALONE", chosen)
    alone.observe_alone(record, guide, INPUTS, tmp_path)
    assert record["blocks.alone.outcome"] == "raises RuntimeError: no such column"
    assert record["masked_batches.alone.counts"]["tokens"] > 0
    expected = Expectations.from_goldens(golden_directory())
    wanted = {
        stage: {name: entry for name, entry in expected.entries[stage].items() if name.startswith("alone.")}
        for stage in chosen
    }
    comparison = Comparison(judge_record(Expectations(wanted, expected.versions), record))
    assert [change.stage for change in comparison.changes] == ["blocks"]
    assert comparison.exit_code == 1


def test_a_probe_that_raises_is_written_down_and_draws_nothing(tmp_path: Path) -> None:
    """Its error's class is its outcome, the probe after it runs, and the generators are as they were."""

    def raises(bench: probe.Bench) -> Any:
        torch.rand(3)
        random.random()
        raise KeyError("x")

    def looks(bench: probe.Bench) -> Any:
        return {"count": 3, "loss": probe.measure(lambda: 1.5, "nats"), "gone": probe.measure(lambda: {}["x"], "nats")}

    probes = [probe.Probe("model", "a", raises), probe.Probe("model", "b", looks)]
    record = RunRecord({}, {})
    before = torch.get_rng_state(), random.getstate()
    probe.observe_probes(record, probe.Bench(EMBEDDED / "checkpoint", INPUTS, tmp_path), probes)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert record["model.beside.a.outcome"] == "raises KeyError"
    assert record["model.beside.b.count"] == 3
    assert record["model.beside.b.gone"] == "raises KeyError"
    lanes = {o.name: (o.lane, o.quantity) for o in record}
    assert lanes["beside.b.gone"] == lanes["beside.b.loss"] == (Lane.APPROXIMATE, "nats")


def test_the_verbosity_of_the_libraries_decides_no_value(tmp_path: Path) -> None:
    """TRANSFORMERS_VERBOSITY=error, as many jobs set it, switches Trainer's progress bars off and is no change."""

    def defaults(name: str) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        return dict(training.argument_defaults(probe.Bench(EMBEDDED / "checkpoint", INPUTS, folder)))

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
