"""The values of other versions in the goldens are those of the committed matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlmrepro.compare.golden import read_golden
from mlmrepro.record import STAGES, RunRecord

from . import variants

RECORDS = [RunRecord.read(path) for path in sorted((variants.GOLDENS.parent / "matrix").glob("t*.json"))]


@pytest.mark.parametrize("stage", STAGES)
def test_every_variant_has_the_value_of_the_matrix(stage: str) -> None:
    """No variant holds a value that the record of such a version does not have."""
    assert list(variants.renewed(read_golden(variants.GOLDENS / f"{stage}.json"), stage, RECORDS)) == []


def test_a_value_of_another_checkpoint_is_replaced() -> None:
    """A variant with another value gets that of the record, and is named with its versions."""
    golden = read_golden(variants.GOLDENS / "model.json")
    entry = golden.entries["isolated.reloaded_loss"]
    first, second, third = entry.variants
    golden.entries["isolated.reloaded_loss"] = replace(entry, variants=(first, replace(second, value=1.0), third))
    assert list(variants.renewed(golden, "model", RECORDS)) == [
        "model.isolated.reloaded_loss (transformers>=4.43 and transformers<4.51)"
    ]
    assert golden.entries["isolated.reloaded_loss"].variants[1].value == pytest.approx(second.value)
