"""A masked language model of two matrices, in plain torch: it trains and evaluates, and no release changes it."""

from __future__ import annotations

import torch
from torch import nn

from mlmrepro.config import IGNORE_INDEX

__all__ = ["Toy"]


class Toy(nn.Module):
    """Predicts a token from its own embedding and the row's mean; its weights are cosines of their index.

    `input_ids` and `labels` are (rows, tokens); the loss is in nats, averaged over the positions with a label.
    `dropout` changes the result in training mode, but not in evaluation mode.
    """

    def __init__(self, vocab_size: int, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocab_size, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        with torch.no_grad():
            for index, parameter in enumerate((self.embedding.weight, self.head.weight, self.head.bias)):
                wave = torch.cos(torch.arange(parameter.numel(), dtype=torch.float64) * 0.37 + index)
                parameter.copy_((0.3 * wave).reshape(parameter.shape))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return `loss` if labels are given, and `logits` (rows, tokens, vocabulary)."""
        vectors = self.embedding(input_ids)
        logits = self.head(self.dropout(self.norm(vectors + vectors.mean(1, keepdim=True))))
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
        return {"loss": loss, "logits": logits}
