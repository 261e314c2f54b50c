"""What a check of the embedded model can see: half a per cent of perplexity."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from mlmrepro.config import EMBEDDED
from mlmrepro.gate.paired import paired
from mlmrepro.gate.result import Answer
from mlmrepro.retraining.check import check, make_baseline
from mlmrepro.scores import Scores
from mlmrepro.scoring.documents import read_text
from mlmrepro.scoring.scorer import Scorer

PLANTED = math.log(1.005)  # nats a token
NOISE = 0.0255  # standard deviations of each matrix; it costs about half a per cent of perplexity
ALPHA, POWER = 0.01, 0.95
TEXTS = 2_000  # drawn with replacement from the real one


class Keeping(Scorer):
    """Keeps what it measured last."""

    def score(self, *arguments: Any, **named: Any) -> Scores:
        self.scores = super().score(*arguments, **named)
        return self.scores


def with_noise(amount: float) -> Keeping:
    """Return the embedded model with seeded noise on every matrix."""
    scorer = Keeping.load(str(EMBEDDED / "checkpoint"))
    assert isinstance(scorer, Keeping)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in scorer.model.parameters():
            if weight.dim() > 1:
                weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * amount)
    return scorer


@pytest.fixture(scope="module")
def baseline() -> Any:
    torch.set_num_threads(2)
    return make_baseline(
        Scorer.load(str(EMBEDDED / "checkpoint")), read_text("embedded", limit=200), checkpoint="embedded"
    )


def by_document(before: Scores, after: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return (sum of differences, tokens) of each document."""
    return np.bincount(before.document, weights=after.loss - before.loss), np.bincount(before.document)


def share(claims: Any, sums: np.ndarray, sizes: np.ndarray) -> int:
    """Return how many of the drawn texts make the claim."""
    generator = np.random.default_rng(20)
    drawn = (generator.integers(len(sums), size=len(sums)) for _ in range(TEXTS))
    return sum(claims(paired(sums[d], sizes[d], alpha=ALPHA, power=POWER, units=1)) for d in drawn)


def test_half_a_per_cent_is_seen(baseline: Any, record_property: Any) -> None:
    """A planted change of 0.5 % is seen in 95 % of texts like this one, in at most 1 % where there is none."""
    candidate = with_noise(NOISE)
    started = time.perf_counter()
    result = check(candidate, baseline)
    seconds = time.perf_counter() - started
    assert result.paired is not None
    planted = math.expm1(result.paired.difference)
    assert 0.003 < planted < 0.007
    assert result.paired.smallest_effect < PLANTED
    assert result.paired.low > 0

    sums, sizes = by_document(baseline.tokens, candidate.scores)
    seen = share(lambda p: p.low > 0, sums * (PLANTED / result.paired.difference), sizes)
    none = sums - sizes * (sums.sum() / sizes.sum())
    alarms = share(lambda p: p.low > 0, none, sizes)
    for name, value in (("planted", planted), ("seconds", seconds), ("seen", seen), ("alarms", alarms)):
        record_property(name, value)
    print(f"\nplanted {planted:.3%}, seen in {seen} of {TEXTS}, false alarms {alarms}, check in {seconds:.1f} s")
    assert binomtest(seen, TEXTS, POWER, alternative="less").pvalue > 0.001
    assert binomtest(alarms, TEXTS, ALPHA, alternative="greater").pvalue > 0.001


def test_the_same_checkpoint_has_no_difference(baseline: Any) -> None:
    """Loaded again, and in batches of another size, its difference is exactly 0."""
    result = check(Scorer.load(str(EMBEDDED / "checkpoint"), batch_tokens=1500), baseline)
    assert result.paired is not None
    assert (result.answer, result.paired.difference, result.paired.high) == (Answer.SAME, 0, 0)
