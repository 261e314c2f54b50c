"""How fast scoring is beside what people use, side by side in one process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from mlmrepro.config import EMBEDDED
from mlmrepro.observations.observe import observe_all, sample
from mlmrepro.scoring.documents import read_text
from mlmrepro.scoring.plan import token_plan
from mlmrepro.scoring.scorer import Scorer

ROUNDS = 5


def alternating(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """Return how many times as long the first takes: the median of ratios of runs that follow each other."""
    first(), second()
    ratios = []
    for _ in range(ROUNDS):
        times = []
        for call in (first, second):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def test_evaluation_beside_trainer(tmp_path: Path, benchmark: Any) -> None:
    """Scoring one pass of 15 % of the tokens is at least 1.6 times as fast as `Trainer.evaluate` on the same rows."""
    torch.set_num_threads(2)
    scorer = Scorer.load(str(EMBEDDED / "checkpoint"), max_length=128)
    texts = [document.text for document in read_text("embedded", limit=60).documents]
    encoded = scorer.encode(texts)
    rows = [
        {"input_ids": scorer.encoder.with_special_tokens(document.ids[start:stop])}
        for document in encoded
        for start, stop in document.windows
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=8, report_to="none", disable_tqdm=True, use_cpu=True
    )
    collator = DataCollatorForLanguageModeling(tokenizer=scorer.tokenizer, mlm_probability=0.15)
    trainer = Trainer(model=scorer.model, args=arguments, eval_dataset=rows, data_collator=collator)
    plan = token_plan(texts, encoded, random_passes=1)
    assert 0.13 < len(plan) / sum(map(len, encoded)) < 0.17

    ratio = alternating(trainer.evaluate, lambda: scorer.score(plan, encoded))
    benchmark.extra_info["times_as_fast_as_trainer"] = ratio
    benchmark.pedantic(lambda: scorer.score(plan, encoded), rounds=1)
    print(f"\n{ratio:.2f} times as fast as Trainer.evaluate")
    assert ratio >= 1.6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run tox -e benchmarks on one")
def test_bfloat16_on_a_gpu(benchmark: Any) -> None:
    """On a GPU bfloat16 is faster than float32, and its mean loss within rounding of it."""
    texts = [document.text for document in read_text("embedded").documents]
    full, half = (Scorer.load(str(EMBEDDED / "checkpoint"), dtype=dtype) for dtype in ("float32", "bfloat16"))
    encoded = full.encode(texts)
    plan = token_plan(texts, encoded)
    ratio = alternating(lambda: full.score(plan, encoded), lambda: half.score(plan, encoded))
    benchmark.extra_info["times_as_fast_as_float32"] = ratio
    scores = benchmark.pedantic(lambda: half.score(plan, encoded), rounds=1)
    assert abs(scores.mean_loss - full.score(plan, encoded).mean_loss) < 0.01


def test_all_laws(benchmark: Any) -> None:
    """The laws of the embedded checkpoint take a minute at most on two cores, and each ten seconds."""
    torch.set_num_threads(2)
    results = benchmark.pedantic(lambda: observe_all(str(EMBEDDED / "checkpoint"), sample("embedded")[0]), rounds=1)
    seconds = {result.name: result.seconds for result in results}
    benchmark.extra_info["seconds"] = seconds
    print(f"\n{sum(seconds.values()):.1f} s, the longest {max(seconds.values()):.1f} s")
    assert sum(seconds.values()) < 60
    assert max(seconds.values()) < 10


@pytest.mark.parametrize("arguments", [["-c", "import mlmrepro"], ["-m", "mlmrepro", "--help"]], ids=["import", "help"])
def test_import_and_help(arguments: list[str], tmp_path: Path, benchmark: Any) -> None:
    """How long a person waits for `import mlmrepro` and `mlmrepro --help`: about 0.2 s, nothing is asserted."""
    command = [sys.executable, *arguments]
    benchmark.pedantic(lambda: subprocess.run(command, cwd=tmp_path, capture_output=True, check=True), rounds=5)
