"""Small, complete check results made by hand, which tests can change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from mlmrepro.gate.probes import probe_change
from mlmrepro.gate.result import (
    Accuracy,
    Answer,
    CheckResult,
    DocumentChange,
    Paired,
    Prediction,
    ProbeChange,
    SliceChange,
    TokenChange,
)

HOSTILE = "<script>alert(1)</script>|\"'[/i] `x` @someone ${7*7}{{7*7}}\x00\x1b[31m\u202e\n# y"
MARGIN = math.log(1.01)


def paired(difference: float = 0.0, error: float = 0.001, units: int = 12_345, documents: int = 321) -> Paired:
    """Return a comparison with a symmetric interval; difference and error in nats."""
    half = 2.33 * error
    return Paired(
        difference, error, documents - 1, difference - half, difference + half, 0.01, 0.95, 4 * error, units, documents
    )


def part(name: str, difference: float, answer: str = "", kind: str = "topic", error: float = 0.01) -> SliceChange:
    """Return a slice; one with an answer has a p-value that stays small after Holm's correction."""
    p = 1e-5 if answer else 0.4
    return SliceChange(kind, name, paired(difference, error, 1200, 40), p, 1e-4 if answer else 1.0, answer)


def predictions(*words: str) -> list[Prediction]:
    """Return predictions, best first; equal words have equal ids."""
    return [Prediction(sum(map(ord, word)), f" {word}", round(0.6 * 0.5**place, 6)) for place, word in enumerate(words)]


def probe(prompt: str, before: str, after: str, expected: str = "", by_text: bool = False) -> ProbeChange:
    """Return a probe from the words of both sides, separated by spaces."""
    return probe_change(prompt, predictions(*before.split()), predictions(*after.split()), expected, by_text=by_text)


PROBES = (
    probe("The sun is a <mask>.", "star ball fire sphere sun", "star ball fire sphere sun", "star"),
    probe("Water boils at a high <mask>.", "temperature pressure heat rate point", "pressure temperature heat rate x"),
    probe("Plants need <mask> to grow.", "water light air soil sun", "time money space room food", "water"),
)
TOKENS = tuple(
    TokenChange(*content)
    for content in (
        ("The",),
        (" cat", 2.0, 2.05),
        (" sat", 1.5, 1.9),
        (" on", 0.3, 1.1),
        (" the", 0.2, 1.7),
        (" mat", 4.0, 7.5),
        (".\n", 1.0, 0.7),
        ("It", 2.0, 1.3),
        (" was", 3.0, 1.5),
        (" warm", 6.0, 2.0),
    )
)
SLICES = (
    part("physics", 0.021, "worse"),
    part("biology", -0.031, "better"),
    part("chemistry", 0.004),
    part("once", 0.052, "worse", "token frequency", 0.008),
    part("2 to 5 times", 0.01, kind="token frequency"),
)
PROVENANCE = {
    "baseline": {
        "checkpoint": "models/old",
        "weights": "a" * 64,
        "packages": {"torch": "2.6.0"},
        "settings": {"p": 0.15},
    },
    "candidate": {
        "checkpoint": "models/new",
        "weights": "b" * 64,
        "packages": {"torch": "2.7.0"},
        "settings": {"p": 0.15},
    },
}


def check(answer: Answer = Answer.REGRESSION, difference: float = 0.0305, **changes: Any) -> CheckResult:
    """Return a complete result; `changes` replace its fields."""
    accuracy = Accuracy(0.381, 0.372, paired(-0.009, 0.002), 0.021, 0.034, 0.19, 0.201)
    made = CheckResult(
        answer=answer,
        reason="The perplexity rose by 3.10 %, and its whole interval lies above the margin of 1 %.",
        advice="Look at the slices and documents that got worse.",
        measure="perplexity",
        before=40.412,
        after=40.412 * math.exp(difference),
        margin=0.01,
        margin_nats=MARGIN,
        paired=paired(difference, 0.0029),
        not_finite=0,
        largest_change=3.5,
        rounding=1e-4,
        accuracy=accuracy,
        slices=SLICES,
        probes=PROBES,
        worst=(DocumentChange("doc-7", "physics", 0.83, TOKENS),),
        notes=("The margin is that of `[tool.mlmrepro]`.",),
        provenance=PROVENANCE,
    )
    return dataclasses.replace(made, **changes)


def bare(answer: Answer = Answer.SAME, **changes: Any) -> CheckResult:
    """Return a result in which only the loss was measured."""
    nothing: dict[str, Sequence[Any]] = {"slices": (), "probes": (), "worst": (), "notes": ()}
    return check(answer, 0.0, **{**nothing, "accuracy": None, "advice": "", "provenance": {}, **changes})


def equal() -> CheckResult:
    """Return the result of comparing a checkpoint with itself."""
    zero = paired(0.0, 0.0)
    same = tuple(dataclasses.replace(s, paired=zero, p_value=1.0, adjusted=1.0, answer="") for s in SLICES)
    reason = "None of 12,345 losses differs."
    return check(
        Answer.SAME, 0.0, reason=reason, paired=zero, largest_change=0.0, slices=same, probes=PROBES[:1], worst=()
    )


def broken(**changes: Any) -> CheckResult:
    """Return the result of a candidate with losses that are not finite."""
    lost = {"after": math.nan, "paired": None, "not_finite": 12, "largest_change": math.nan, "accuracy": None}
    return bare(Answer.REGRESSION, **{**lost, "reason": "12 of 12,345 losses are no finite numbers.", **changes})


def in_words() -> CheckResult:
    """Return a result across tokenizers, in bits per byte."""
    words = tuple(TokenChange(text, 2.0, 2.0 + n) for n, text in enumerate(("Words", "without", "spaces")))
    return check(
        Answer.INCONCLUSIVE,
        0.003,
        measure="bits per byte",
        before=1.032,
        after=1.0363,
        margin_nats=0.0022,
        paired=paired(0.003, 0.001),
        slices=SLICES[:3],
        probes=(probe("A <mask>.", "one two", "one three", by_text=True),),
        worst=(DocumentChange("doc-1", "", 0.2, words),),
        notes=("The tokenizer changed, so words were compared, in bits per byte.",),
    )


def hostile() -> CheckResult:
    """Return a result with hostile text wherever users can supply text."""
    rows = [Prediction(1, HOSTILE, 0.5), Prediction(2, "\u05e9\u05dc\u05d5\u05dd", 0.2)]
    return check(
        reason=HOSTILE,
        advice=HOSTILE,
        notes=(HOSTILE,),
        slices=(part(HOSTILE, 0.05, "worse", HOSTILE), *SLICES),
        probes=(probe_change(HOSTILE, rows, rows[::-1], HOSTILE), *PROBES),
        worst=(DocumentChange(HOSTILE, HOSTILE, 0.5, (TokenChange(HOSTILE, 1.0, 3.0), TokenChange(HOSTILE))),),
        provenance={"baseline": {HOSTILE: HOSTILE}, "candidate": {HOSTILE: {HOSTILE: [HOSTILE]}}, HOSTILE: HOSTILE},
    )
