"""Forward passes for the laws, and how far rounding may part two of them that are equal in exact arithmetic."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from mlmrepro.laws.law import NotApplicable
from mlmrepro.laws.result import Measured
from mlmrepro.laws.subject import Subject

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

UNIT = 2.0**-24  # half a unit in the last place of float32, relative
# The error of a float32 pass is about what a relative change of every weight by UNIT does to the logits (backward
# analysis: Higham 2002, section 3.1). Two passes that are equal in exact arithmetic were at most 8 times that apart:
# the embedded checkpoint, a RoBERTa of DistilRoBERTa's size and 18 random architectures (weights of 0.02 to 0.4; of
# 0.8: 19 times), under transformers 4.41 and 5.23. A thousandth of the logits is 11 times the bound, where tests
# plant it.
ROUNDINGS = 64
# Of the largest logit, half of what half precision rounds off: a model that computes in so few digits answers a small
# change in jumps, which may not pass for its own sensitivity.
MOST = 2.0**-12
REASON = f"rounding: at most {ROUNDINGS} times what changing every weight by 2^-24 does to the logits of this model"
BEYOND_REASON = "more than rounding can do"

# These see padding by their construction, so that a row's predictions depend on the rows beside it.
_SEE_PADDING = {
    "convbert": "its convolutions reach over padding",
    "fnet": "its Fourier transforms mix padding in",
    "funnel": "it pools neighbours, padding among them",
    "mobilebert": "its embeddings take in both neighbours, padding among them",
    "nystromformer": "its landmarks are means over tokens, padding among them",
}
_sensitivities: WeakKeyDictionary[Any, float] = WeakKeyDictionary()


def in_float32(subject: Subject) -> Any:
    """Return the model in float32 and evaluation mode: itself as a rule, else a copy; bounds are those of float32."""
    import torch

    model = subject.model.eval()  # whatever a broken library may have left it in
    return model if model.dtype == torch.float32 else copy.deepcopy(model).float()


def hides_padding(subject: Subject) -> Any:
    """Return the model in float32; raises NotApplicable where it cannot hide tokens from the others."""
    model = in_float32(subject)
    if reason := _SEE_PADDING.get(model.config.model_type):
        raise NotApplicable(reason)
    if not takes(model, "attention_mask"):
        raise NotApplicable("it takes no attention mask")
    return model


def takes(model: Any, name: str) -> bool:
    """Tell whether the model's forward has an argument of this name, or is wrapped in one that takes anything."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or "input_ids" not in parameters


def readable(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what of a batch the model takes: some have no attention mask."""
    return {name: tensor for name, tensor in batch.items() if takes(model, name)}


def logits_of(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return logits, (rows, tokens, vocabulary), of token ids, (rows, tokens), without gradients."""
    import torch

    masks = {} if attention_mask is None else readable(model, {"attention_mask": attention_mask})
    with torch.no_grad():
        return model(input_ids=input_ids, **masks).logits


def exact_losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return -ln p in float64, (positions,), of logits (positions, vocabulary) and tokens (positions,)."""
    exact = logits.double()
    return exact.logsumexp(dim=-1) - exact.gather(-1, tokens[:, None])[:, 0]


def even(subject: Subject, rows: int = 4) -> dict[str, torch.Tensor]:
    """Return a batch of rows of one length: those of `subject.batch`, cut at the shortest, so that none is padded."""
    batch = subject.batch(rows)
    shortest = int(batch["attention_mask"].sum(dim=1).min())
    return {name: tensor[:, :shortest] for name, tensor in batch.items()}


def ordinary(subject: Subject, row: list[int]) -> list[int]:
    """Return where in a row no special token stands."""
    special = set(subject.tokenizer.all_special_ids)
    return [place for place, token in enumerate(row) if token not in special]


def longest(subject: Subject) -> tuple[torch.Tensor, list[int]]:
    """Return the ids, (1, tokens), of the longest row, and where its ordinary tokens stand.

    Raises NotApplicable where these are not two different ones at least.
    """
    import torch

    row = max(subject.rows, key=len)
    places = ordinary(subject, row)
    if len({row[place] for place in places}) < 2:
        raise NotApplicable("the longest row of the text has no two different tokens")
    return torch.tensor([row]), places


def another(ids: torch.Tensor, places: list[int], place: int) -> torch.Tensor:
    """Return the ids, (1, tokens), with another token at `place`: one of those that stand at `places`."""
    changed = ids.clone()
    changed[0, place] = next(token for token in ids[0, places].tolist() if token != int(ids[0, place]))
    return changed


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the largest absolute difference; NaN where either holds one."""
    return float((left.double() - right.double()).abs().max())


def last_digits(subject: Subject, logits: torch.Tensor) -> float:
    """Return by how much two float32 logits may differ that are equal in exact arithmetic."""
    return max(min(ROUNDINGS * _sensitivity(subject), MOST * float(logits.abs().max())), UNIT)


def _sensitivity(subject: Subject) -> float:
    """Return how far the logits of a row move where every weight is changed by up to UNIT, in float64.

    All rows of a matrix are changed alike: as if the numbers that come in were rounded.
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
        except RuntimeError:  # it computes in float32 only: the bound that the logits give is left
            _sensitivities[subject.model] = math.inf
    return _sensitivities[subject.model]


def agreeing(what: str, subject: Subject, left: torch.Tensor, right: torch.Tensor) -> Measured:
    """Return the largest difference of logits that only rounding may part."""
    return Measured(what, apart(left, right), at_most=last_digits(subject, right), unit="of a logit", reason=REASON)


def losses_agreeing(what: str, subject: Subject, left: float, right: float, logits: torch.Tensor) -> Measured:
    """Return the difference of two losses of these logits that only rounding may part: at most two logits'."""
    bound = 2 * last_digits(subject, logits)
    return Measured(what, abs(left - right), at_most=bound, unit="nats", reason=f"twice that of a logit; {REASON}")


def moving(what: str, subject: Subject, left: torch.Tensor, right: torch.Tensor) -> Measured:
    """Return the largest difference of logits, which must be more than rounding can part."""
    bound = last_digits(subject, right)
    return Measured(what, apart(left, right), at_least=bound, unit="of a logit", reason=BEYOND_REASON)
