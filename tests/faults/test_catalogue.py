"""The catalogue: what it holds, and that a fault is planted where it says and nowhere else."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mlmrepro import loading
from mlmrepro.config import EMBEDDED
from mlmrepro.guide import blocks
from mlmrepro.record import STAGES
from tests.faults.case import Case
from tests.faults.catalogue import planting, tokens
from tests.faults.fault import Fault, Severity, all_faults, fault, graded

pytestmark = pytest.mark.quick

CHECKPOINT = EMBEDDED / "checkpoint"


@pytest.fixture(scope="module")
def catalogue() -> list[Fault]:
    return all_faults()


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A case whose patches are taken back when the test is done."""
    for name in ("load_tokenizer", "load_model", "max_block_size"):
        monkeypatch.setattr(loading, name, getattr(loading, name))
    monkeypatch.setattr(blocks, "group_texts", blocks.group_texts)
    return Case(tmp_path)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def test_every_stage_has_faults_that_must_be_caught(catalogue: list[Fault]) -> None:
    """At least six for each stage, and 95 in all."""
    required = Counter(each.stage for each in catalogue if each.required)
    assert set(required) == set(STAGES)
    assert min(required.values()) >= 6
    assert required.total() >= 95


def test_every_fault_has_a_name_a_story_and_a_severity(catalogue: list[Fault]) -> None:
    """Names are unique, every story is one sentence, and every severity occurs."""
    assert len({each.name for each in catalogue}) == len(catalogue)
    assert {each.severity for each in catalogue} == set(Severity)
    for each in catalogue:
        sentence = each.story.removesuffix(f" ({each.size:g} {each.unit})") if each.family else each.story
        assert re.fullmatch(r"[A-Za-z].*[\w>]\.", sentence), each.name
        assert ". " not in sentence, each.name


def test_every_family_goes_from_below_to_above_what_must_be_caught(catalogue: list[Fault]) -> None:
    """At least nine families of six sizes and more, of which the largest ones are required and the smallest is not."""
    families = {name: list(members) for name, members in groupby(catalogue, key=lambda each: each.family) if name}
    assert len(families) >= 9
    assert sum(map(len, families.values())) == sum(bool(each.family) for each in catalogue)
    for name, members in families.items():
        sizes = [each.size for each in members]
        required = [each.required for each in members]
        assert len(sizes) >= 6, name
        assert sizes == sorted(set(sizes), key=float), name
        assert required == sorted(required), name
        assert (required[0], required[-1]) == (False, True), name


def test_a_fault_needs_a_name_of_its_own_and_a_stage_that_exists() -> None:
    """A second fault of one name, or of a stage that is none, is refused."""

    def merges_lost(case: Case) -> None:
        """A story."""

    def lost_somewhere(case: Case) -> None:
        """A story."""

    all_faults()
    with pytest.raises(ValueError, match="two faults are called merges_lost"):
        fault("input_ids", Severity.FATAL)(merges_lost)
    with pytest.raises(ValueError, match="no stage 'somewhere'"):
        fault("somewhere", Severity.FATAL)(lost_somewhere)


def test_each_size_of_a_graded_fault_is_planted_with_its_own(catalogue: list[Fault], tmp_path: Path) -> None:
    """The sizes of a family do not all plant the last one."""
    seen: list[float] = []

    def some_graded_fault(case: Case, size: float) -> None:
        """A story."""
        seen.append(size)

    some_graded_fault.__module__ = "tests.faults.catalogue.data"
    from tests.faults import fault as registry

    before = dict(registry._FAULTS)
    try:
        graded("model", Severity.SUBTLE, sizes=(1, 2, 3), required=(3,), unit="x")(some_graded_fault)
        planted = [each for each in all_faults() if each.family == "some_graded_fault"]
    finally:
        registry._FAULTS.clear()
        registry._FAULTS.update(before)
    for each in planted:
        each.plant(Case(tmp_path))
    assert seen == [1, 2, 3]


def test_what_is_not_there_cannot_be_replaced(case: Case) -> None:
    """A fault in a function that a release has renamed is an error, not a fault that is never seen."""
    with pytest.raises(AttributeError, match="group_text_s"):
        case.set(blocks, "group_text_s", None)
    with pytest.raises(KeyError, match=r"layer\.9"):
        planting.change_weight(case, "layer.9.", torch.zeros_like)


def test_the_embedded_checkpoint_is_never_touched(case: Case) -> None:
    """An edit goes to a copy, of which there is one for all edits, and only what it names changes."""
    before = digest(CHECKPOINT)
    case.edit_json("config.json", lambda content: content.update(layer_norm_eps=0.5))
    copy = case.checkpoint
    case.edit_weights(lambda tensors: tensors.update({"lm_head.bias": tensors["lm_head.bias"] + 1}))
    assert case.checkpoint == copy != CHECKPOINT
    assert digest(CHECKPOINT) == before

    old, new = (load_file(folder / "model.safetensors") for folder in (CHECKPOINT, copy))
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["lm_head.bias"]
    assert old.keys() == new.keys()
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert json.loads((copy / "config.json").read_text()) == config | {"layer_norm_eps": 0.5}
    same = [p.name for p in CHECKPOINT.iterdir() if p.name not in ("config.json", "model.safetensors")]
    assert all((copy / name).read_bytes() == (CHECKPOINT / name).read_bytes() for name in same)


def test_an_edit_is_read_in_place_of_the_embedded_checkpoint_only(case: Case, tmp_path: Path) -> None:
    """Whoever loads the embedded checkpoint gets the edited one; what a run has saved is read as it is."""
    saved = tmp_path / "saved"
    loading.load_model(str(CHECKPOINT)).save_pretrained(str(saved))
    case.edit_json("config.json", lambda content: content.update(layer_norm_eps=0.5))
    read = [loading.load_model(str(path)).config.layer_norm_eps for path in (CHECKPOINT, case.checkpoint, saved)]
    assert read == [0.5, 0.5, 1e-5]


def test_single_precision_keeps_a_change_that_half_precision_swallows(case: Case) -> None:
    """Graded faults of the weights change them by what they say."""
    planting.change_weights(case, lambda name, weight: weight * (1 + 1e-5))
    old, new = (load_file(folder / "model.safetensors") for folder in (CHECKPOINT, case.checkpoint))
    ratio = torch.cat([(new[name] / old[name].float()).flatten() for name in old])
    assert float((ratio[ratio.isfinite()] - 1 - 1e-5).abs().max()) < 2e-7


@pytest.mark.parametrize("size", [4, 5])
def test_a_cut_of_the_catalogue_differs_from_the_guide_by_its_fault_alone(case: Case, size: int) -> None:
    """Cut at the guide's own places, the catalogue's function gives the guide's blocks."""
    rows = [[list(range(10 * n, 10 * n + length)) for n, length in enumerate((3, 0, 5, count))] for count in range(6)]
    batches = [{"input_ids": each, "attention_mask": each} for each in rows]
    guide = [blocks.group_texts(batch, size) for batch in batches]
    planting.cut_blocks(case, tokens._full)
    assert [blocks.group_texts(batch, size) for batch in batches] == guide
    planting.cut_blocks(case, lambda count, size: tokens._full(count, size - 1))
    assert [blocks.group_texts(batch, size) for batch in batches] != guide
