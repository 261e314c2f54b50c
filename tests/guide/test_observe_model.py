"""The digest of the weights as loaded."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForMaskedLM

from mlmrepro.guide.observe import observe_model
from mlmrepro.record import RunRecord


def weights(model: BertForMaskedLM) -> str:
    made = RunRecord({}, {})
    observe_model(made, model)
    return str(made["model.weights"])


def test_the_digest_is_of_the_weights_and_not_of_the_order_of_modules() -> None:
    """A release that registers the head first lists the tied embedding under its name; another weight differs."""
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=9, **size))
    before, names = weights(model), [name for name, _ in model.named_parameters()]
    model._modules["bert"] = model._modules.pop("bert")  # registered last
    assert "cls.predictions.decoder.weight" in dict(model.named_parameters())
    assert "cls.predictions.decoder.weight" not in names
    assert weights(model) == before
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    assert weights(model) != before
