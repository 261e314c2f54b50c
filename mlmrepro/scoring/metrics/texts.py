"""What the `evaluate` modules compute: the perplexity of each text, and of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlmrepro.errors import UserError
from mlmrepro.scores import Scores
from mlmrepro.scoring.plan import MASK_RATE, one_by_one, token_plan
from mlmrepro.scoring.scorer import MAX_LENGTH, Scorer

__all__ = ["Texts", "masked_perplexity", "pseudo_perplexity"]


class Texts:
    """Refuses a single string as predictions; mixed into a module, before ``evaluate.Metric``."""

    def add_batch(self, *, predictions: Any = None, **inputs: Any) -> None:
        """Add a batch of texts."""
        if isinstance(predictions, str):  # evaluate would score each of its characters
            raise UserError("predictions is one string", remedy="give a list of texts")
        super().add_batch(predictions=predictions, **inputs)  # type: ignore[misc]


def masked_perplexity(
    predictions: Sequence[str],
    model_id: str,
    *,
    batch_size: int = 16,
    device: str | None = None,
    max_length: int = MAX_LENGTH,
    mlm_probability: float = MASK_RATE,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the perplexity of masked tokens, each masked once among ceil(1/`mlm_probability`) passes.

    "perplexity" is of all tokens, "perplexities" and "token_counts" are lists with an entry for each text. `batch_size`
    counts sequences of `max_length` and does not change the result; `device` None takes a GPU if there is one. A window
    has `max_length` tokens, or fewer if the model's limit is lower.

    Raises UserError for texts or a checkpoint that cannot be scored.
    """
    scorer = _scorer(predictions, model_id, batch_size, device, max_length)
    encoded = scorer.encode(predictions)
    scores = scorer.score(token_plan(predictions, encoded, rate=mlm_probability, seed=seed), encoded)
    loss, count = _by_text(scores, len(predictions))
    return {
        "perplexity": scores.perplexity,
        "perplexities": _exp(loss / count).tolist(),
        "token_counts": count.tolist(),
    }


def pseudo_perplexity(
    predictions: Sequence[str],
    model_id: str,
    *,
    batch_size: int = 16,
    device: str | None = None,
    max_length: int = MAX_LENGTH,
    within_word: bool = False,
) -> dict[str, Any]:
    """Return the pseudo-perplexity: each token is masked alone, and all others are visible (Salazar et al. 2020).

    "pseudo_perplexity" is of all tokens; "pseudo_perplexities", "pseudo_log_likelihoods" (natural logarithm, summed)
    and "token_counts" are lists with an entry for each text. With `within_word` the later tokens of the same word are
    masked too (Kauf and Ivanova 2023). Batch, device and window are those of `masked_perplexity`.

    Raises UserError for texts or a checkpoint that cannot be scored.
    """
    scorer = _scorer(predictions, model_id, batch_size, device, max_length)
    encoded = scorer.encode(predictions)
    scores = scorer.score(one_by_one(encoded), encoded, within_word=within_word)
    loss, count = _by_text(scores, len(predictions))
    return {
        "pseudo_perplexity": scores.perplexity,
        "pseudo_perplexities": _exp(loss / count).tolist(),
        "pseudo_log_likelihoods": (-loss).tolist(),
        "token_counts": count.tolist(),
    }


def _scorer(predictions: Sequence[str], model_id: str, batch_size: int, device: str | None, max_length: int) -> Scorer:
    if not predictions:
        raise UserError("there are no predictions", remedy="give one text or more")
    for n, text in enumerate(predictions):
        if not text.strip():
            raise UserError(f"prediction {n} is empty", remedy="leave empty texts out")
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value < 1:
            raise UserError(f"{name} is {value}", remedy="give 1 or more")
    place = {None: "auto", "gpu": "cuda"}.get(device, device) or "auto"
    return Scorer.load(str(model_id), device=place, max_length=max_length, batch_tokens=batch_size * max_length)


def _by_text(scores: Scores, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (nats, number of scored tokens) of each text; shape (texts,)."""
    count = np.bincount(scores.document, minlength=texts)
    if not count.all():
        raise UserError(
            f"prediction {int(np.argmin(count > 0))} has no token that can be masked",
            remedy="leave out texts of which the tokenizer knows no word",
        )
    return np.bincount(scores.document, weights=scores.loss, minlength=texts), count


def _exp(mean_loss: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite if a float cannot hold it, as in Scores.perplexity
        return np.exp(mean_loss)
