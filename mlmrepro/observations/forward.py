"""Forward passes for the observations, and how much rounding may change results that are equal in exact arithmetic."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from mlmrepro.observations.observation import NotApplicable, value
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

if TYPE_CHECKING:
    import torch

__all__ = [
    "agreeing",
    "another",
    "apart",
    "even",
    "exact_losses",
    "hides_padding",
    "in_float32",
    "last_digits",
    "logits_of",
    "longest",
    "losses_agreeing",
    "moving",
    "ordinary",
    "readable",
    "takes",
]

UNIT = 2.0**-24  # the unit roundoff of float32
# The rounding error of a float32 pass is about as large as the effect of changing every weight by a relative UNIT
# (backward error analysis: Higham 2002, section 3.1). Passes that are equal in exact arithmetic differed by at most 8
# times that effect, measured on the embedded checkpoint, a RoBERTa of DistilRoBERTa's size and 18 random architectures
# (weights of 0.02 to 0.4; with weights of 0.8: 19 times), under transformers 4.41 and 5.23. The tests plant errors of a
# thousandth of the logits, which is 11 times the bound.
ROUNDINGS = 64
# Largest allowed bound, relative to the largest logit: half the unit roundoff of float16. A model that computes in
# half precision reacts to small changes in jumps, which must not be mistaken for high sensitivity.
MOST = 2.0**-12
REASON = f"rounding: at most {ROUNDINGS} times what changing every weight by 2^-24 does to the logits of this model"
BEYOND_REASON = "more than rounding can do"

# These architectures see padding by design, so a row's predictions depend on the other rows of its batch.
SEE_PADDING = {
    "convbert": "its convolutions reach over padding",
    "fnet": "its Fourier transforms mix padding in",
    "funnel": "it pools neighbours, padding among them",
    "mobilebert": "its embeddings take in both neighbours, padding among them",
    "nystromformer": "its landmarks are means over tokens, padding among them",
}
_sensitivities: WeakKeyDictionary[Any, float] = WeakKeyDictionary()


def in_float32(subject: Subject) -> Any:
    """Return the model in float32, as the bounds assume, and in evaluation mode; a copy if it has another dtype."""
    import torch

    model = subject.model.eval()  # a broken library may have left it in training mode
    return model if model.dtype == torch.float32 else copy.deepcopy(model).float()


def hides_padding(subject: Subject) -> Any:
    """Return the model in float32; raises NotApplicable if an attention mask cannot hide tokens from it."""
    model = in_float32(subject)
    if reason := SEE_PADDING.get(model.config.model_type):
        raise NotApplicable(reason)
    if not takes(model, "attention_mask"):
        raise NotApplicable("it takes no attention mask")
    return model


def takes(model: Any, name: str) -> bool:
    """Return whether the model's forward takes this argument, or is wrapped in a function that takes any argument."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or "input_ids" not in parameters


def readable(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a batch that the model takes: some models have no attention mask."""
    return {name: tensor for name, tensor in batch.items() if takes(model, name)}


def logits_of(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the logits (rows, tokens, vocabulary) of token ids (rows, tokens), without gradients."""
    import torch

    masks = {} if attention_mask is None else readable(model, {"attention_mask": attention_mask})
    with torch.no_grad():
        return model(input_ids=input_ids, **masks).logits


def exact_losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return -ln p (positions,) in float64 for logits (positions, vocabulary) and tokens (positions,)."""
    exact = logits.double()
    return exact.logsumexp(dim=-1) - exact.gather(-1, tokens[:, None])[:, 0]


def even(subject: Subject, rows: int = 4) -> dict[str, torch.Tensor]:
    """Return `subject.batch` with all rows cut to the length of the shortest one, so that none is padded."""
    batch = subject.batch(rows)
    shortest = int(batch["attention_mask"].sum(dim=1).min())
    return {name: tensor[:, :shortest] for name, tensor in batch.items()}


def ordinary(subject: Subject, row: list[int]) -> list[int]:
    """Return the positions in a row that hold no special token."""
    special = set(subject.tokenizer.all_special_ids)
    return [place for place, token in enumerate(row) if token not in special]


def longest(subject: Subject) -> tuple[torch.Tensor, list[int]]:
    """Return the ids (1, tokens) of the longest row, and the positions of its ordinary tokens.

    Raises NotApplicable if it has fewer than two different ordinary tokens.
    """
    import torch

    row = max(subject.rows, key=len)
    places = ordinary(subject, row)
    if len({row[place] for place in places}) < 2:
        raise NotApplicable("the longest row of the text has no two different tokens")
    return torch.tensor([row]), places


def another(ids: torch.Tensor, places: list[int], place: int) -> torch.Tensor:
    """Return the ids (1, tokens) with the token at `place` replaced by a different one from `places`."""
    changed = ids.clone()
    changed[0, place] = next(token for token in ids[0, places].tolist() if token != int(ids[0, place]))
    return changed


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the largest absolute difference; NaN if either tensor contains NaN."""
    return float((left.double() - right.double()).abs().max())


def last_digits(subject: Subject, logits: torch.Tensor) -> float:
    """Return how much two float32 logits may differ if they are equal in exact arithmetic."""
    return max(min(ROUNDINGS * _sensitivity(subject), MOST * float(logits.abs().max())), UNIT)


def _sensitivity(subject: Subject) -> float:
    """Return how far the logits of a row move, in float64, if every weight changes by a relative UNIT at most.

    All rows of a matrix change by the same factors, as if the input of the layer were rounded.
    """
    import torch

    if subject.model not in _sensitivities:
        exact = copy.deepcopy(subject.model).double()
        batch = subject.batch(1)
        ids, real = batch["input_ids"], batch["attention_mask"]
        generator = torch.Generator().manual_seed(0)
        try:
            before = logits_of(exact, ids, real)
            with torch.no_grad():
                for weight in exact.parameters():
                    weight *= 1 + UNIT * (2 * torch.rand(weight.shape[-1:], generator=generator).double() - 1)
            _sensitivities[subject.model] = apart(logits_of(exact, ids, real), before)
        except RuntimeError:  # it computes in float32 only: the limit MOST applies
            _sensitivities[subject.model] = math.inf
    return _sensitivities[subject.model]


def agreeing(slug: str, title: str, subject: Subject, left: torch.Tensor, right: torch.Tensor) -> Value:
    """Return the largest difference between logits that may differ only by rounding."""
    bound = last_digits(subject, right)
    return value(slug, apart(left, right), title, at_most=bound, unit="of a logit", reason=REASON)


def losses_agreeing(slug: str, title: str, subject: Subject, left: float, right: float, logits: torch.Tensor) -> Value:
    """Return the difference between two losses that may differ only by rounding, by at most twice that of a logit."""
    bound = 2 * last_digits(subject, logits)
    return value(slug, abs(left - right), title, at_most=bound, unit="nats", reason=f"twice that of a logit; {REASON}")


def moving(slug: str, title: str, subject: Subject, left: torch.Tensor, right: torch.Tensor) -> Value:
    """Return the largest difference between logits that must differ by more than rounding."""
    bound = last_digits(subject, right)
    return value(slug, apart(left, right), title, at_least=bound, unit="of a logit", reason=BEYOND_REASON)
