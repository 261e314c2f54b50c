"""Nothing that scoring does changes the model that is scored."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BigBirdConfig, BigBirdForMaskedLM, RobertaForMaskedLM

from mlmrepro.errors import UserError
from mlmrepro.retraining.callback import GateCallback
from mlmrepro.retraining.check import make_baseline
from mlmrepro.scoring import shortcuts
from mlmrepro.scoring.filling import fill
from mlmrepro.scoring.plan import token_plan
from mlmrepro.scoring.scorer import Scorer

from ..retraining import tiny
from . import tiny as words

TOKENIZER = tiny.tokenizer()


class Restless(RobertaForMaskedLM):
    """A model that counts, averages and caches in its forward pass, in evaluation too."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("longest", torch.zeros(1), persistent=False)
        self.passes = 0

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        self.seen += input_ids.numel()
        self.longest = torch.tensor([float(input_ids.shape[1])])
        self.passes += 1
        self.cached = input_ids
        self.config.last_length = input_ids.shape[1]
        self.lm_head.layer_norm.eps = 1e-5 * self.passes
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, **others)
        out.logits = out.logits + self.seen / 1e4 * torch.arange(out.logits.shape[-1])
        return out


def restless() -> Restless:
    model = Restless(tiny.model().config)
    model.load_state_dict(tiny.model().state_dict(), strict=False)
    model.roberta.eval()  # a mixture of modes, as frozen layers have it
    model.lm_head.train()
    return model


def left(model: Any) -> dict[str, Any]:
    """Return all that a model holds: weights, buffers, flags, plain attributes, modules and the configuration."""
    return {
        "weights": {name: weight.tolist() for name, weight in model.state_dict().items()},
        "buffers": {name: buffer.tolist() for name, buffer in model.named_buffers()},
        "training": [module.training for module in model.modules()],
        "modules": [(name, type(module).__name__) for name, module in model.named_modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "own": (model.__dict__.get("passes"), [getattr(module, "eps", None) for module in model.modules()]),
        "config": copy.deepcopy(model.config.to_dict()),
    }


def scored(model: Any, tokenizer: Any = TOKENIZER) -> Any:
    texts = [document.text for document in tiny.TEXT.documents]
    scorer = Scorer(model, tokenizer, batch_tokens=100)
    encoded = scorer.encode(texts)
    fill(scorer, [f"a <mask> of {texts[0][:20]}"])
    return scorer.score(token_plan(texts, encoded), encoded)


def test_scoring_leaves_the_model_as_it_was() -> None:
    """After trial batches, shortcuts, filling and scoring all that the model holds is equal."""
    model = restless()
    before = left(model)
    scored(model)
    assert left(model) == before


def test_a_model_that_changes_itself_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the guard every part of it differs, but for weights and modes."""
    import contextlib

    monkeypatch.setattr(shortcuts, "unchanged", lambda model: contextlib.nullcontext())
    model = restless()
    before = left(model)
    scored(model)
    after = left(model)
    assert {name for name in before if before[name] != after[name]} == {
        "weights",
        "buffers",
        "attributes",
        "own",
        "config",
    }


def test_a_score_does_not_depend_on_what_was_scored_before() -> None:
    """Each batch begins with the model as it was given, so that a second scoring gives equal losses."""
    model = restless()
    first, second = scored(model), scored(model)
    assert (first.loss == second.loss).all()


def test_a_check_within_a_training_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """GateCallback, which scores the very model that goes on training."""
    make_baseline(Scorer(tiny.model(), TOKENIZER), tiny.TEXT, checkpoint="old").write(tmp_path / "b")
    model = restless()
    before = left(model)
    state = SimpleNamespace(global_step=1, is_world_process_zero=True, log_history=[])
    gate = GateCallback(tmp_path / "b", tokenizer=TOKENIZER)
    gate.on_evaluate(None, state, SimpleNamespace(should_training_stop=False), model=model, metrics={})  # type: ignore[arg-type]
    assert len(gate.results) == 1
    assert left(model) == before


def test_a_short_row_does_not_turn_sparse_attention_off() -> None:
    """BigBird goes over to full attention at its first short row, for good: the trial batches are such rows."""
    tokenizer = words.word_piece(max_length=256)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BigBirdConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        block_size=4,
        num_random_blocks=1,
        pad_token_id=0,
        **size,
    )
    model = BigBirdForMaskedLM(config)
    before = left(model)
    Scorer(model, tokenizer)
    assert model.bert.attention_type == "block_sparse"
    assert left(model) == before


class Learning(RobertaForMaskedLM):
    """A model that changes its weights in its forward pass."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with torch.no_grad():
            self.lm_head.bias += 1
        return super().forward(*arguments, **named)


def test_a_model_that_changes_its_weights_is_refused() -> None:
    """No two of its scores are of one model."""
    with pytest.raises(UserError, match="Learning changes its weights while it is evaluated"):
        Scorer(Learning(tiny.model().config), TOKENIZER)
