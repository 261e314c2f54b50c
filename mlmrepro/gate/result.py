"""What a check finds: one answer, the numbers behind it, and where the model changed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mlmrepro.checkpoint_folder import Unused
from mlmrepro.record import plain

__all__ = [
    "Accuracy",
    "Answer",
    "CheckResult",
    "DocumentChange",
    "Paired",
    "Prediction",
    "ProbeChange",
    "Rounded",
    "SliceChange",
    "TokenChange",
]


class Answer(str, Enum):
    """The answer about a new checkpoint."""

    BETTER = "better"  # the interval lies below 0
    SAME = "same"  # not worse than the margin allows
    REGRESSION = "REGRESSION"  # worse by more than the margin, or losses are NaN or infinite
    INCONCLUSIVE = "inconclusive"  # the interval contains the margin: more text would decide

    @property
    def exit_code(self) -> int:
        """0 for better and same, 1 for a regression, 3 for inconclusive."""
        return {Answer.REGRESSION: 1, Answer.INCONCLUSIVE: 3}.get(self, 0)


@dataclass(frozen=True)
class Paired:
    """A mean of paired differences, candidate minus baseline (positive is worse), clustered by document.

    `difference`, `standard_error`, `low`, `high` and `smallest_effect` are in the same unit; the caller knows which:
    nats per masked token (``exp(difference) - 1`` is then the change of perplexity), nats per byte, or a share.
    """

    difference: float
    standard_error: float
    degrees: float  # of freedom of Student's t
    low: float  # confidence interval at level 1 - 2 alpha
    high: float
    alpha: float  # of each one-sided claim
    power: float
    smallest_effect: float  # the true difference whose interval excludes 0 with this power
    units: int  # masked tokens or words
    documents: int


@dataclass(frozen=True)
class Accuracy:
    """Predictions at masked positions: how often right, and how far the stated confidence is from that."""

    before: float  # share of units whose most probable token is the true one
    after: float
    paired: Paired  # of the share that is right; positive is better here
    calibration_before: float  # expected calibration error over bins of equal count
    calibration_after: float
    brier_before: float  # mean of (confidence - correct) squared
    brier_after: float


@dataclass(frozen=True)
class SliceChange:
    """One part of the text or of the vocabulary, judged together with the others."""

    kind: str  # "topic" or "token frequency"
    name: str
    paired: Paired
    p_value: float  # two-sided, of no difference
    adjusted: float  # after Holm, over all slices
    answer: str  # "worse", "better" or "" if the adjusted p-value is above alpha


@dataclass(frozen=True)
class Prediction:
    """One row of a filled mask."""

    token: int  # id
    text: str
    probability: float


@dataclass(frozen=True)
class ProbeChange:
    """A prompt of the user, filled by both checkpoints, best first."""

    prompt: str
    before: tuple[Prediction, ...]
    after: tuple[Prediction, ...]
    rank_biased_overlap: float  # 1 for equal rankings, 0 for disjoint ones
    overlap: dict[int, float]  # k -> common share of the top k, respecting ties
    expected: str = ""  # the user's right answer, "" if none was given
    rank_before: int | None = None  # of the right answer, from 1; None if it is not among the stored ones
    rank_after: int | None = None


@dataclass(frozen=True)
class TokenChange:
    """A unit of a document, with both losses in nats; None if it was not masked."""

    text: str
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class DocumentChange:
    """A document that got worse."""

    name: str
    topic: str
    difference: float  # mean, nats per unit of size
    tokens: tuple[TokenChange, ...]


@dataclass(frozen=True)
class Rounded:
    """Two checkpoints that differ only in number format.

    `side` is "candidate" or "baseline", whose weights are the other's rounded to `format`, or "evaluation" if the
    weights are equal and one of the two was scored in `format`.
    """

    side: str
    format: str  # "float16" or "bfloat16"


@dataclass(frozen=True)
class CheckResult:
    """The whole answer."""

    answer: Answer
    reason: str  # one sentence with the numbers
    advice: str  # what would decide, or what to look at; "" if there is nothing to do
    measure: str  # "perplexity" or "bits per byte"
    before: float  # of the baseline, in `measure`
    after: float
    margin: float  # relative, of perplexity: 0.01 is one per cent
    margin_nats: float  # the same in the unit of `paired`
    paired: Paired | None  # None if losses are NaN or infinite
    not_finite: int  # losses of the candidate that are NaN or infinite
    largest_change: float  # of any unit's loss, in nats
    rounding: float  # if no loss changes by more, in nats, nothing counts as changed
    accuracy: Accuracy | None
    slices: tuple[SliceChange, ...]
    probes: tuple[ProbeChange, ...]
    worst: tuple[DocumentChange, ...]
    notes: tuple[str, ...]  # such as: the tokenizer changed, so words were compared
    provenance: dict[str, Any]  # "baseline" and "candidate": checkpoint, weights, packages, settings
    rounded: Rounded | None = None  # if the number format explains the difference; then never better
    unused: tuple[Unused, ...] = ()  # in the candidate's folder, but not used for the scores

    @property
    def exit_code(self) -> int:
        """The exit code of the answer."""
        return self.answer.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a float that JSON cannot hold becomes a string."""
        return plain(dataclasses.asdict(self) | {"answer": self.answer.value})
