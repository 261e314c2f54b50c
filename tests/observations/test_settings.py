"""Settings of the guide's data steps: what each one changes, and that leftovers of another run change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import set_seed

from mlmrepro import loading
from mlmrepro.config import RunConfig
from mlmrepro.guide import blocks, collate, dataset, observe, tokens, versions
from mlmrepro.observations.golden_run import golden_config
from mlmrepro.record import RunRecord

from . import held

Change = tuple[str, str, str]


def data_stages(config: RunConfig) -> RunRecord:
    """Run the stages before the model: a setting of theirs is seen without training."""
    record, guide = RunRecord({}, {}), config.guide
    assert guide.seed is not None
    versions.set_up()
    set_seed(guide.seed)
    split = dataset.split(dataset.load(config.dataset, guide.split, config.output_dir), guide.test_size)
    observe.observe_split(record, split)
    tokenizer = loading.load_tokenizer(config.checkpoint)
    tokenized = tokens.tokenize(
        dataset.flatten(split), tokenizer, column=guide.text_column, separator=guide.separator, num_proc=guide.num_proc
    )
    grouped = blocks.group(
        tokenized, block_size=guide.block_size, num_proc=guide.num_proc, batch_size=guide.map_batch_size
    )
    collator = collate.data_collator(tokenizer, mlm_probability=guide.mlm_probability, pad_token=guide.pad_token)
    observe.observe_input_ids(record, tokenized, tokenizer.all_special_ids)
    observe.observe_blocks(record, tokenized, grouped)
    observe.observe_batches(
        record,
        grouped["train"],
        collator,
        batch_size=guide.batch_size,
        mask_token_id=tokenizer.mask_token_id,
        seed=guide.seed,
    )
    return record


def changed_stages(a: RunRecord, b: RunRecord) -> list[str]:
    """Return the stages in which two records differ."""
    first, second = a.results(), b.results()
    return list(dict.fromkeys(name.split(".")[0] for name in first if first[name] != second[name]))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Change:
    """The setting of a checkpoint with few tokens: what a setting changes does not hang on how many there are."""
    return "checkpoint", str(held.with_few_tokens(tmp_path_factory.mktemp("few"))), "test"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, few: Change) -> RunRecord:
    return data_stages(golden_config(tmp_path_factory.mktemp("original"), few))


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [
        ("separator", "", ["input_ids", "blocks", "masked_batches"]),
        ("block_size", 127, ["blocks", "masked_batches"]),
        ("num_proc", 1, ["blocks", "masked_batches"]),  # each process drops a remainder of its own
        ("mlm_probability", 0.12, ["masked_batches"]),
        ("seed", 7, ["dataset", "input_ids", "blocks", "masked_batches"]),
    ],
)
def test_a_setting_changes_its_stage_and_what_follows(
    original: RunRecord, few: Change, tmp_path: Path, name: str, value: float, changed: list[str]
) -> None:
    """A setting is seen at its own stage, and the stages before it are untouched."""
    assert changed_stages(original, data_stages(golden_config(tmp_path, few, (name, value, "planted")))) == changed


def test_leftovers_of_another_run_do_not_change_the_blocks(original: RunRecord, few: Change, tmp_path: Path) -> None:
    """One process gives the blocks of one process, also where four have just left their files in the same cache."""
    four, one = (golden_config(tmp_path / "shared", few, ("num_proc", number, "test")) for number in (4, 1))
    alone = data_stages(golden_config(tmp_path / "alone", few, ("num_proc", 1, "test")))
    assert data_stages(four).results() == original.results() != alone.results()
    assert data_stages(one).results() == alone.results()
