"""How fast each part is, next to what people use instead, side by side in one process.

    tox run -e benchmarks                                   # all, minutes
    tox run -e benchmarks -- --tiny                         # that they work, seconds

Nothing here asserts a time. A claim is a ratio of two ways that ran in turns, and holds in full size only.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments, pipeline

from mlmrepro.compare.drift import Outcome, compare_with
from mlmrepro.compare.judge import Expectations
from mlmrepro.config import EMBEDDED, GuideConfig, golden_directory, resolve
from mlmrepro.guide import blocks, train
from mlmrepro.guide.collate import data_collator
from mlmrepro.guide.prepare import prepare
from mlmrepro.loading import load_tokenizer
from mlmrepro.observations.adopt import store_subject
from mlmrepro.observations.golden_run import adopt
from mlmrepro.observations.observe import observe_all, sample
from mlmrepro.record import RunRecord
from mlmrepro.report.comparison import comparison_document
from mlmrepro.report.markdown import document_markdown
from mlmrepro.scoring.documents import read_text
from mlmrepro.scoring.filling import fill
from mlmrepro.scoring.plan import one_by_one, token_plan
from mlmrepro.scoring.scorer import Scorer

from .conftest import Measure
from .physical import distilroberta, forward_flops

CHECKPOINT = str(EMBEDDED / "checkpoint")
RECORDS = Path(__file__).parents[2] / "golden" / "matrix"
LENGTH, ROWS = GuideConfig.block_size, GuideConfig.batch_size

Columns = dict[str, list[list[int]]]


def chained(examples: Columns, block_size: int) -> Columns:
    """Return the blocks as transformers' run_mlm.py makes them: by itertools.chain, and without a short block."""
    joined = {k: list(itertools.chain(*examples[k])) for k in examples}
    total = len(joined[next(iter(examples))]) // block_size * block_size
    return {k: [t[i : i + block_size] for i in range(0, total, block_size)] for k, t in joined.items()}


# Each way of a step; one that is added here is measured next to the guide's.
BLOCKS: dict[str, Callable[[Columns, int], Columns]] = {"guide": blocks.group_texts, "chain": chained}


def loop(model: Any, batches: list[Any], collator: Any) -> None:
    """Train as the guide's Trainer does by default, in a loop without it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=GuideConfig.learning_rate)
    model.train()
    for rows in batches:
        optimizer.zero_grad()
        model(**collator(rows)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def with_trainer(model: Any, batches: list[Any], collator: Any, *, output: Path) -> None:
    """Train as the guide does, one epoch, without evaluating and saving."""
    changes = {"num_train_epochs": 1.0, "eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
    guide = dataclasses.replace(GuideConfig(), disable_tqdm=True, logging_steps=10**6, **changes)
    arguments = train.training_arguments(guide, output, push_to_hub=False)
    rows = [row for batch in batches for row in batch]
    train.trainer(model, arguments, {"train": rows, "test": rows}, collator).train()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.set_num_threads(2)
    return Scorer.load(CHECKPOINT, device="cpu", max_length=LENGTH)


@pytest.fixture
def texts(tiny: bool) -> list[str]:
    return [document.text for document in read_text("embedded", limit=3 if tiny else 60).documents]


def random_batches(count: int, vocabulary: int, length: int = LENGTH) -> list[list[dict[str, list[int]]]]:
    ids = np.random.default_rng(0).integers(5, vocabulary, (count, ROWS, length))
    return [[{"input_ids": row.tolist(), "attention_mask": [1] * length} for row in rows] for rows in ids]


@pytest.mark.parametrize("way", BLOCKS)
@pytest.mark.benchmark(group="prepare")
def test_blocks_of_one_batch(way: str, measure: Measure, tiny: bool) -> None:
    """The rows of one call, 1,000 by default, are cut into blocks, which are the same in every way."""
    lengths = np.random.default_rng(0).integers(50, 350, 20 if tiny else GuideConfig.map_batch_size)
    columns = {"input_ids": [list(range(n)) for n in lengths], "attention_mask": [[1] * n for n in lengths]}
    peers = {"guide": lambda: BLOCKS["guide"](columns, LENGTH)} if way != "guide" else {}
    tokens = int(lengths.sum())
    found = measure(lambda: BLOCKS[way](columns, LENGTH), tokens=tokens, moved=4 * tokens * 8, peers=peers)
    assert found == blocks.group_texts(columns, LENGTH)


@pytest.mark.benchmark(group="prepare")
def test_preparation(measure: Measure, tiny: bool, folder: Any) -> None:
    """From the file to blocks, with a fresh cache each time and the guide's processes (one in the tiny size)."""
    changes = [("num_proc", 1, "tiny"), ("split", "train_asks[:16]", "tiny")] if tiny else []
    config = resolve("embedded", output_dir=folder(), changes=changes)
    made = measure(lambda: prepare(config, folder()), rounds=3, warm=not tiny)
    measure.tell(tokens=sum(len(row) for split in made.tokenized.values() for row in split["input_ids"]))


@pytest.mark.benchmark(group="mask")
def test_masking(measure: Measure, tiny: bool) -> None:
    """The guide's collator on batches of eight blocks; ids are read, ids and labels written, of 8 bytes each."""
    tokenizer = load_tokenizer(CHECKPOINT)
    collator = data_collator(tokenizer, mlm_probability=GuideConfig.mlm_probability, pad_token=GuideConfig.pad_token)
    batches = random_batches(2 if tiny else 50, len(tokenizer))
    tokens = ROWS * LENGTH * len(batches)
    measure(lambda: [collator(batch) for batch in batches], tokens=tokens, moved=3 * 8 * tokens)


# Next to the guide's Trainer; each must make the same steps.
TRAINING: dict[str, Callable[[Any, list[Any], Any], None]] = {"loop": loop}


@pytest.mark.parametrize("way", ["guide", *TRAINING])
@pytest.mark.benchmark(group="train step")
def test_training_of_two_steps(way: str, measure: Measure, tiny: bool, folder: Any) -> None:
    """Two steps at DistilRoBERTa's size on random ids, eight blocks each, in float32."""
    model, length = distilroberta(tiny=tiny), 16 if tiny else LENGTH
    batches = random_batches(2, model.config.vocab_size, length)
    tokenizer = load_tokenizer(CHECKPOINT)
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.15, random_replace_prob=0)
    guide = partial(with_trainer, model, batches, collator, output=folder())
    run = guide if way == "guide" else lambda: TRAINING[way](model, batches, collator)
    flops = 3 * 2 * forward_flops(model.config, ROWS, length)
    peers = {} if way == "guide" else {"guide": guide}
    measure(run, tokens=2 * ROWS * length, flops=flops, peers=peers, rounds=3)


@pytest.mark.benchmark(group="evaluate")
def test_evaluation(measure: Measure, tiny: bool, scorer: Scorer, texts: list[str], folder: Any) -> None:
    """One pass over 15 % of the tokens is at least 1.6 times as fast as `Trainer.evaluate` on the same rows."""
    encoded = scorer.encode(texts)
    rows = [
        {"input_ids": scorer.encoder.with_special_tokens(document.ids[start:stop])}
        for document in encoded
        for start, stop in document.windows
    ]
    arguments = TrainingArguments(
        output_dir=str(folder()), per_device_eval_batch_size=ROWS, report_to="none", disable_tqdm=True, use_cpu=True
    )
    collator = DataCollatorForLanguageModeling(tokenizer=scorer.tokenizer, mlm_probability=0.15)
    trainer = Trainer(model=scorer.model, args=arguments, eval_dataset=rows, data_collator=collator)
    plan = token_plan(texts, encoded, random_passes=1)
    tokens, predicted = sum(map(len, encoded)), len(plan)
    flops = sum(forward_flops(scorer.model.config, 1, len(row["input_ids"]), predicted=0) for row in rows)
    flops += forward_flops(scorer.model.config, 0, 0, predicted=predicted)
    measure(lambda: scorer.score(plan, encoded), tokens=tokens, flops=flops, peers={"trainer": trainer.evaluate})
    measure.claims(times_as_fast_as_trainer=1.6)


def by_hand(scorer: Scorer, encoded: Any) -> list[float]:
    """Score as Salazar et al. describe it: each text once for each of its tokens, logits at every position."""
    found = []
    for document in encoded:
        row = torch.tensor(scorer.encoder.with_special_tokens(document.ids))
        inner = torch.arange(1, len(row) - 1)
        ids = row.repeat(len(inner), 1)
        ids[torch.arange(len(inner)), inner] = scorer.mask_id
        with torch.no_grad():
            logits = scorer.model(input_ids=ids).logits[torch.arange(len(inner)), inner]
        found.append(float(torch.nn.functional.cross_entropy(logits, row[inner], reduction="sum")))
    return found


def sentences_of(texts: list[str], scorer: Scorer) -> list[str]:
    """Return the first sentence of each text: the embedded model reads 128 tokens, and minicons cuts nothing."""
    found = [text.split(". ")[0][:250] for text in texts]
    return [each for each in found if len(scorer.tokenizer(each)["input_ids"]) > 3][:24]


@pytest.mark.parametrize("peer", ["by_hand", "minicons"])
@pytest.mark.benchmark(group="pseudo-log-likelihood")
def test_pseudo_log_likelihood(peer: str, measure: Measure, scorer: Scorer, texts: list[str]) -> None:
    """Each token masked alone: the same sums as the peer's, and at least 1.7 times as fast."""
    sentences = sentences_of(texts, scorer)
    encoded = scorer.encode(sentences)
    other: Callable[[], Any] = partial(by_hand, scorer, encoded)
    if peer == "minicons":
        if find_spec("minicons") is None:
            pytest.skip("minicons is not installed: tox run -e third-party runs this")
        from minicons.scorer import MaskedLMScorer

        theirs = MaskedLMScorer(CHECKPOINT, "cpu")

        def other() -> list[float]:
            # minicons 0.3.39 would call batch_encode_plus, which transformers 5 has no more.
            taken = theirs.tokenizer(sentences, padding="longest", return_attention_mask=True)
            return [-sum(row) for row in theirs.compute_stats(theirs.prepare_text(taken, PLL_metric="original"))]

    plan = one_by_one(encoded)
    tokens = sum(map(len, encoded))
    flops = sum(len(d) * forward_flops(scorer.model.config, 1, len(d) + 2, predicted=1) for d in encoded)
    scores = measure(lambda: scorer.score(plan, encoded), tokens=tokens, flops=flops, peers={peer: other})
    assert np.bincount(scores.document, scores.loss) == pytest.approx(other(), abs=1e-2)
    measure.claims(**{f"times_as_fast_as_{peer}": 1.7})


@pytest.mark.benchmark(group="fill-mask")
def test_filling_of_prompts(measure: Measure, tiny: bool, scorer: Scorer) -> None:
    """256 prompts, three tokens each, with the same best tokens as the pipeline's."""
    words = read_text("embedded").documents[0].text.split()[:16]
    prompts = [" ".join([*words[:n], "<mask>", *words[n + 1 :]]) for n in range(1, 15)]
    prompts = (prompts * 19)[: 4 if tiny else 256]
    filler = pipeline("fill-mask", model=scorer.model, tokenizer=scorer.tokenizer, device="cpu")
    tokens = sum(len(ids) for ids in scorer.tokenizer(prompts)["input_ids"])
    found = measure(
        lambda: fill(scorer, prompts, 3), tokens=tokens, peers={"pipeline": lambda: filler(prompts, top_k=3)}, rounds=3
    )
    theirs = [[row["token"] for row in rows] for rows in filler(prompts, top_k=3)]
    assert [[token for token, *_ in rows] for rows in found] == theirs


@pytest.mark.benchmark(group="adopt")
def test_sampling_of_a_subject(measure: Measure, folder: Any) -> None:
    """What `adopt` does before it measures: read the text, sample it, hash the weights, write the files."""

    def run() -> None:
        target = folder()
        store_subject(CHECKPOINT, "embedded", target, home=target)

    measure(run)


@pytest.mark.usefixtures("large")
@pytest.mark.benchmark(group="adopt")
def test_adopting(measure: Measure, folder: Any) -> None:
    """The goldens of a checkpoint: a short training, each stage isolated, and all observations."""
    measure(lambda: adopt(CHECKPOINT, "embedded", folder() / "goldens"), rounds=1, warm=False)


@pytest.mark.usefixtures("large")
@pytest.mark.benchmark(group="adopt")
def test_observations_with_bounds(measure: Measure) -> None:
    """All that `mlmrepro laws` observes; the JSON file has the seconds of each."""
    texts = sample("embedded")[0]
    results = measure(lambda: observe_all(CHECKPOINT, texts), rounds=1, warm=False)
    measure.benchmark.extra_info["longest_seconds"] = max(result.seconds for result in results)


@pytest.mark.benchmark(group="compare")
def test_comparison_with_goldens(measure: Measure) -> None:
    """A record is read, compared with the goldens, and written as Markdown."""

    def run() -> str:
        outcome = Outcome("newest", RunRecord.read(RECORDS / "t5.23.0-d5.2.0.json"))
        compared = compare_with(Expectations.from_goldens(golden_directory()), "goldens", outcome, None)
        return document_markdown(comparison_document([compared]))

    assert "identical" in measure(run)


@pytest.mark.parametrize("command", ["import", "help", "compare"])
@pytest.mark.benchmark(group="start-up")
def test_start_up(command: str, tmp_path: Path, measure: Measure, tiny: bool) -> None:
    """How long a person waits for `import mlmrepro`, `--help` and `compare`, next to a bare Python."""
    record = str(RECORDS / "t5.23.0-d5.2.0.json")
    arguments = {
        "import": ["-c", "import mlmrepro"],
        "help": ["-m", "mlmrepro", "--help"],
        "compare": ["-m", "mlmrepro", "compare", record, record],
    }
    start = partial(subprocess.run, cwd=tmp_path, capture_output=True, check=True)
    bare = partial(start, [sys.executable, "-c", ""])
    measure(partial(start, [sys.executable, *arguments[command]]), peers={"bare_python": bare}, warm=not tiny)
