"""Shortcuts that do not change a model's result: tested on each model, not assumed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlmrepro.errors import UserError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Forward", "cuts", "still", "taken", "unchanged"]

# Names of the last module of an encoder in which positions see each other, with its residual connection: in BERT and
# its successors, and in DistilBERT. What follows it, usually a feed-forward layer, treats each position separately.
_LAST_TO_MIX = ("attention", "sa_layer_norm")


class Forward:
    """Computes a model's logits at some positions, with the shortcuts that were found not to change them.

    `cut` is the module after which only those positions are computed: the last attention, else the whole encoder (only
    the head is cut), else None. `pads` says whether a row may share a batch with a longer one: padding changes the
    result of convolutions (ConvBERT), Fourier layers (FNet) and others that do not mask it everywhere.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        even: tuple[torch.Tensor, torch.Tensor],
        ragged: tuple[torch.Tensor, torch.Tensor],
        *,
        rounding: float,
    ) -> None:
        """Try the shortcuts on two batches, each input_ids and attention_mask of shape (2, length).

        The rows of `even` are of one length, the second of `ragged` is padded. Two results are equal if their
        logits differ by at most `rounding`. Raises UserError if the model does not give logits for each token.
        """
        self.model = model
        self.rounding = rounding
        self.cut: torch.nn.Module | None = None
        self._masks_padding = "attention_mask" in inspect.signature(model.forward).parameters
        with still(model):
            self.cut = self._found_cut(*even, full=self._tried(*even))
            self.pads = self._padding_is_harmless(*ragged)

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the logits, (positions, vocabulary), of the positions `at`: (2, positions) of row and column."""
        if self.cut is None:
            return self._logits(input_ids, attention_mask)[at[0], at[1]]
        return self._cut_logits(self.cut, input_ids, attention_mask, at)

    def _logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        masks = {"attention_mask": attention_mask} if self._masks_padding else {}
        with unchanged(self.model):
            return self.model(input_ids=input_ids, **masks).logits

    def _cut_logits(
        self, module: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        hook = module.register_forward_hook(lambda module, given, output: taken(output, at))
        try:
            return self._logits(input_ids, attention_mask)[0]
        finally:
            hook.remove()

    def _tried(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        name = type(self.model).__name__
        remedy = "give a checkpoint of a masked language model"
        try:
            logits = self._logits(input_ids, attention_mask)
        except Exception as error:  # an architecture made for other input may raise anything
            raise UserError(f"{name} cannot read a row of tokens: {first_line(error)}", remedy=remedy) from error
        if logits.dim() != 3 or logits.shape[:2] != input_ids.shape:
            raise UserError(f"{name} does not score every token at every position", remedy=remedy)
        return logits

    def _found_cut(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, full: torch.Tensor
    ) -> torch.nn.Module | None:
        import torch

        # More positions than a row has, and out of order: a head that counts or looks at neighbours gets them wrong.
        at = torch.ones_like(input_ids).nonzero().flip(0).T
        for module in cuts(self.model):
            try:
                logits = self._cut_logits(module, input_ids, attention_mask, at)
            except Exception:  # an unknown architecture may fail with fewer positions
                continue
            if self._equal(logits, full[at[0], at[1]]):
                return module
        return None

    def _padding_is_harmless(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> bool:
        short = int(attention_mask[1].sum())
        alone = self._logits(input_ids[1:, :short], attention_mask[1:, :short])
        return self._equal(self._logits(input_ids, attention_mask)[1:, :short], alone)

    def _equal(self, left: torch.Tensor, right: torch.Tensor) -> bool:
        import torch

        if left.shape != right.shape:
            return False
        last_digits = 8 * torch.finfo(left.dtype).eps  # large logits are rounded more
        return torch.allclose(left.float(), right.float(), rtol=last_digits, atol=self.rounding, equal_nan=True)


@contextmanager
def still(model: PreTrainedModel) -> Iterator[None]:
    """Put the model into evaluation mode, without gradients; afterwards every module has its own mode again."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():  # no inference_mode: a cache made there would break a later training step
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Undo what a forward pass changes: attributes, modules, buffers and the configuration are restored.

    So each pass starts from the model as given, whatever was scored before. A short row switches BigBird's sparse
    attention to full attention for good; other models count, average or cache in their buffers. Raises UserError if a
    pass changes the weights themselves, of which no copy is kept.
    """
    import torch

    owners = [*model.modules(), model.config]
    kept = [(vars(owner), dict(vars(owner))) for owner in owners]
    for module in model.modules():
        kept += [(content, dict(content)) for content in (module._buffers, module._modules, module._parameters)]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers() if not buffer.is_inference()]
    weights = [(weight, weight._version) for weight in model.parameters() if not weight.is_inference()]
    try:
        yield
    finally:
        for content, before in kept:
            for name in content.keys() - before.keys():
                del content[name]
            content.update(before)
        with torch.no_grad():
            for buffer, version, copy in buffers:
                if buffer._version != version:
                    buffer.copy_(copy)
    if any(weight._version != version for weight, version in weights):
        raise UserError(
            f"{type(model).__name__} changes its weights while it is evaluated, so no two scores are of the same model",
            remedy="fix its forward pass; until then it cannot be scored",
        )


def cuts(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the modules after which positions may be independent: the last attention if it has a name, the encoder."""
    encoder: torch.nn.Module = model.base_model
    mixers = [module for name, module in encoder.named_modules() if name.rpartition(".")[2] in _LAST_TO_MIX]
    return [*mixers[-1:], encoder]


def taken(output: Any, at: torch.Tensor) -> Any:
    """Return a module's output as if there were only the positions `at`, (2, positions), in one row."""
    import torch

    if isinstance(output, torch.Tensor):
        return output[at[0], at[1]].unsqueeze(0)
    hidden = output[0][at[0], at[1]].unsqueeze(0)
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return type(output)(last_hidden_state=hidden)
