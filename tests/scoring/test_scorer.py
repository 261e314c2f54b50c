"""Scores against a model that is run on one row at a time, and what scoring leaves as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from mlmrepro.errors import UserError
from mlmrepro.scores import Scores
from mlmrepro.scoring import shortcuts
from mlmrepro.scoring.encode import Encoded, words_of
from mlmrepro.scoring.plan import Plan, one_by_one, token_plan, word_plan
from mlmrepro.scoring.scorer import ROUNDING, Scorer

from . import tiny

EQUAL = 1e-5  # nats; float32 is 3e-6 from float64 here, and another token's loss 1e-2 or more


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """A random model that reads at most 20 tokens at once, so that the longest text is cut into windows."""
    return Scorer(tiny.bert(), tiny.word_piece(), max_length=20)


@pytest.fixture(scope="module")
def encoded(scorer: Scorer) -> list[Encoded]:
    return scorer.encode(tiny.TEXTS)


def _by_hand(
    scorer: Scorer, encoded: Sequence[Encoded], hidden: Sequence[tuple[int, Sequence[int]]]
) -> list[list[tuple[float, bool, float]]]:
    """Return (loss, correct, confidence) of each hidden position of a document, its window read alone."""
    found = []
    model = copy.deepcopy(scorer.model).double()
    for n, places in hidden:
        start, stop = next((a, b) for a, b in encoded[n].windows if a <= places[0] < b)
        row = [2, *encoded[n].ids[start:stop].tolist(), 3]  # [CLS] ... [SEP]
        masked = [place - start + 1 for place in places]
        table = tiny.log_probabilities(model, row, masked, mask_id=4)
        found.append([(-table[m, row[m]], table[m].argmax() == row[m], np.exp(table[m].max())) for m in masked])
    return found


def _tokens_by_hand(scorer: Scorer, encoded: Sequence[Encoded], plan: Plan) -> list[tuple[float, bool, float]]:
    """Return the same for each unit of a plan of tokens, all that its pass masks in its window being hidden."""
    places = list(zip(plan.document.tolist(), plan.position.tolist(), plan.draw.tolist(), strict=True))
    hidden = []
    for n, place, draw in places:
        start, stop = next((a, b) for a, b in encoded[n].windows if a <= place < b)
        others = [p for d, p, r in places if (d, r) == (n, draw) and start <= p < stop and p != place]
        hidden.append((n, [place, *others]))
    return [rows[0] for rows in _by_hand(scorer, encoded, hidden)]


def _furthest(scores: Scores, by_hand: Sequence[tuple[float, bool, float]]) -> float:
    """Return by how much losses or confidences differ at most; infinity where `correct` differs."""
    loss, correct, confidence = (np.array(column) for column in zip(*by_hand, strict=True))
    if scores.correct.tolist() != correct.tolist():
        return float("inf")
    return float(max(np.abs(scores.loss - loss).max(), np.abs(scores.confidence - confidence).max()))


@pytest.mark.parametrize("random_passes", [None, 2])
@pytest.mark.parametrize("batch_tokens", [1, 50, 4096])
def test_scores_of_a_plan_are_those_of_rows_one_by_one(
    scorer: Scorer, encoded: list[Encoded], batch_tokens: int, random_passes: int | None
) -> None:
    """Loss, correctness and confidence equal those of a float64 pass of each row alone, in any batch size."""
    plan = token_plan(tiny.TEXTS, encoded, rate=0.3, random_passes=random_passes)
    assert len(encoded[2].windows) > 1
    scores = Scorer(scorer.model, scorer.tokenizer, max_length=20, batch_tokens=batch_tokens).score(plan, encoded)
    assert _furthest(scores, _tokens_by_hand(scorer, encoded, plan)) < EQUAL
    assert 0 < scores.correct.sum() < len(scores)


def test_scores_do_not_depend_on_the_batch_size(scorer: Scorer, encoded: list[Encoded]) -> None:
    """Alone, in batches of some rows and all together, a token's loss is the same to 1e-5 nats."""
    plan = token_plan(tiny.TEXTS, encoded)
    sizes = [Scorer(scorer.model, scorer.tokenizer, max_length=20, batch_tokens=size) for size in (1, 50, 100, 4096)]
    assert np.ptp([one.score(plan, encoded).loss for one in sizes], axis=0).max() <= EQUAL


def test_scores_name_their_units(scorer: Scorer, encoded: list[Encoded]) -> None:
    """Each row holds its document, its position, the id of the token that stands there, and counts as one."""
    plan = token_plan(tiny.TEXTS, encoded)
    scores = scorer.score(plan, encoded)
    assert (np.stack([scores.document, scores.position]) == np.stack([plan.document, plan.position])).all()
    ids = [int(encoded[n].ids[place]) for n, place in zip(plan.document, plan.position, strict=True)]
    assert scores.token.tolist() == ids
    assert scores.size.tolist() == [1] * len(plan)
    assert scores.mean_loss == pytest.approx(scores.loss.mean(), rel=1e-6)


def test_pseudo_log_likelihoods_are_those_of_each_token_alone(scorer: Scorer, encoded: list[Encoded]) -> None:
    """Salazar et al. 2020: one mask a row."""
    plan = one_by_one(encoded)
    assert _furthest(scorer.score(plan, encoded), _tokens_by_hand(scorer, encoded, plan)) < EQUAL


def test_within_a_word_later_pieces_are_hidden(scorer: Scorer) -> None:
    """Kauf and Ivanova 2023: the loss of a first piece is higher or lower than with the rest of its word in sight."""
    texts = ["the unseen earth", "turning seas"]
    encoded = scorer.encode(texts)
    assert encoded[0].pieces.tolist() == [0, 1, 1, 2]
    hidden = [(0, [0]), (0, [1, 2]), (0, [2]), (0, [3]), (1, [0, 1]), (1, [1]), (1, [2, 3]), (1, [3])]
    by_hand = [rows[0] for rows in _by_hand(scorer, encoded, hidden)]
    plan = one_by_one(encoded)
    within = scorer.score(plan, encoded, within_word=True)
    assert _furthest(within, by_hand) < EQUAL
    assert _furthest(scorer.score(plan, encoded), by_hand) > 100 * EQUAL


def test_a_word_is_the_sum_of_its_tokens(encoded: list[Encoded]) -> None:
    """The loss of a word is the sum of its tokens', all masked; it is right where all are; confidences multiply."""
    counts = [len(words_of(text)) for text in tiny.TEXTS]
    plan = word_plan(tiny.TEXTS, counts, rate=0.3)
    scorer = Scorer(tiny.bert(seed=3), tiny.word_piece(), max_length=20)  # predicts the end of some words, but not all
    scores = scorer.score(plan, encoded)
    draws = {
        (d, p): r for d, p, r in zip(plan.document.tolist(), plan.position.tolist(), plan.draw.tolist(), strict=True)
    }
    left = list(zip(scores.document.tolist(), scores.position.tolist(), strict=True))
    by_hand, half_right = [], 0
    for n, word in left:
        document = encoded[n]
        own = np.flatnonzero(document.words == word).tolist()
        start, stop = next((a, b) for a, b in document.windows if a <= own[0] < b)
        inside = [w for w in set(document.words[start:stop].tolist()) if (n, w) in left]
        others = [w for w in inside if w != word and draws[n, w] == draws[n, word]]
        hidden = [*own, *np.flatnonzero(np.isin(document.words, others)).tolist()]
        rows = _by_hand(scorer, encoded, [(n, hidden)])[0][: len(own)]
        losses, right, confidences = zip(*rows, strict=True)
        half_right += right[-1] and not all(right)
        by_hand.append((sum(losses), all(right), float(np.prod(confidences))))
    assert _furthest(scores, by_hand) < EQUAL
    assert half_right > 0
    assert (scores.token == -1).all()
    unknown = {(2, n) for n, word in enumerate(words_of(tiny.TEXTS[2])) if "zyx" in word or "MASK" in word}
    assert set(draws) - set(left) >= unknown


def test_scores_do_not_depend_on_other_documents_or_their_order(scorer: Scorer, encoded: list[Encoded]) -> None:
    """A document has the same losses first, last and alone."""
    order = [3, 1, 0, 2]
    plan = token_plan(tiny.TEXTS, encoded)
    before = scorer.score(plan, encoded)
    turned = [encoded[n] for n in order]
    after = scorer.score(token_plan([tiny.TEXTS[n] for n in order], turned), turned)
    for place, n in enumerate(order):
        alone = scorer.score(token_plan([tiny.TEXTS[n]], [encoded[n]]), [encoded[n]])
        together = before.loss[before.document == n]
        assert np.abs(after.loss[after.document == place] - together).max() < EQUAL
        assert np.abs(alone.loss - together).max() < EQUAL


def test_the_same_model_scored_twice_differs_by_nothing(scorer: Scorer, encoded: list[Encoded]) -> None:
    """Two runs are equal to the last bit."""
    plan = token_plan(tiny.TEXTS, encoded)
    assert (scorer.score(plan, encoded).loss == scorer.score(plan, encoded).loss).all()


def test_a_text_cut_into_windows_is_scored_window_by_window(scorer: Scorer, encoded: list[Encoded]) -> None:
    """A window knows nothing of its neighbour: alone, as a document of its own, it has the same losses."""
    plan = one_by_one(encoded[2:3])
    whole = scorer.score(plan, encoded[2:3])
    (_, stop), *_ = encoded[2].windows
    text = tiny.TEXTS[2][: int(encoded[2].ends[stop - 1])]
    first = scorer.encode([text])
    assert first[0].windows == ((0, stop),)
    part = scorer.score(one_by_one(first), first)
    assert np.abs(whole.loss[whole.position < stop] - part.loss).max() < EQUAL


def test_a_head_at_the_wrong_positions_would_be_seen(
    scorer: Scorer, encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the head one position too far left the comparison fails; a new scorer notices, and takes no shortcut."""
    plan = token_plan(tiny.TEXTS, encoded)
    by_hand = _tokens_by_hand(scorer, encoded, plan)
    taken, left = shortcuts.taken, torch.tensor([[0], [1]])
    monkeypatch.setattr(shortcuts, "taken", lambda output, at: taken(output, (at - left).clamp(min=0)))
    assert _furthest(scorer.score(plan, encoded), by_hand) > 1
    careful = Scorer(scorer.model, scorer.tokenizer, max_length=20)
    assert not careful.prunes_head
    assert careful.about["head"] == "all positions"
    assert _furthest(careful.score(plan, encoded), by_hand) < EQUAL


def test_a_forgotten_padding_mask_would_be_seen(
    scorer: Scorer, encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where padding counts as text the comparison fails; a new scorer notices, and puts no row beside a longer one."""
    plan = token_plan(tiny.TEXTS, encoded)
    by_hand = _tokens_by_hand(scorer, encoded, plan)
    padded = Scorer.padded
    monkeypatch.setattr(
        Scorer, "padded", lambda self, ids: (padded(self, ids)[0], torch.ones_like(padded(self, ids)[0]))
    )
    assert _furthest(scorer.score(plan, encoded), by_hand) > 1e-2
    monkeypatch.undo()
    monkeypatch.setattr(scorer.model, "forward", lambda input_ids: type(scorer.model).forward(scorer.model, input_ids))
    careful = Scorer(scorer.model, scorer.tokenizer, max_length=20)
    assert not careful.forward.pads
    assert _furthest(careful.score(plan, encoded), by_hand) < EQUAL


class Blurred(BertForMaskedLM):
    """A head that sees the neighbour of each position, as no head of the library does."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.cls.register_forward_pre_hook(lambda head, given: given[0] + given[0].roll(1, dims=1))


def test_a_head_that_sees_neighbours_is_run_on_all_positions(encoded: list[Encoded]) -> None:
    """What masked positions alone would change is measured, so that no architecture is scored wrongly."""
    model = Blurred(tiny.bert().config)
    model.load_state_dict(tiny.bert().state_dict())
    scorer = Scorer(model, tiny.word_piece(), max_length=20)
    assert not scorer.prunes_head
    plan = token_plan(tiny.TEXTS[1:2], encoded[1:2])
    assert _furthest(scorer.score(plan, encoded[1:2]), _tokens_by_hand(scorer, encoded[1:2], plan)) < EQUAL


def _state(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "modes": [module.training for module in model.modules()],
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "weights": [p.sum().item() for p in model.parameters()],
        "gradient mode": torch.is_grad_enabled(),
    }


def test_a_training_goes_on_as_if_nothing_had_been_scored(encoded: list[Encoded]) -> None:
    """Random generators, each module's mode, gradients, hooks and weights are what they were; dropout was off."""
    model = tiny.bert(hidden_dropout_prob=0.5)
    model.train()
    model.bert.embeddings.eval()  # a part that is frozen
    model.cls.requires_grad_(False)
    before = _state(model)
    scorer = Scorer(model, tiny.word_piece(), max_length=20)
    plan = token_plan(tiny.TEXTS, encoded)
    first = scorer.score(plan, encoded)
    assert _state(model) == before
    assert (scorer.score(plan, encoded).loss == first.loss).all()
    model.eval()
    assert _state(model) != before


def test_a_failure_leaves_no_trace_in_the_model(encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may run out in the middle: hooks and modes are put back."""
    model = tiny.bert()
    scorer = Scorer(model, tiny.word_piece(), max_length=20)
    model.train()
    before = _state(model)

    def fails(*given: Any, **named: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.cls, "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        scorer.score(token_plan(tiny.TEXTS, encoded), encoded)
    assert _state(model) == before


def test_losses_that_are_no_numbers_stay(encoded: list[Encoded]) -> None:
    """A model that cannot read one token gives NaN in the rows that show it, and there only: none is skipped."""
    model = tiny.bert(tie_word_embeddings=False)
    plan = token_plan(tiny.TEXTS, encoded)
    before = Scorer(model, tiny.word_piece(), max_length=20).score(plan, encoded)
    ice = tiny.word_piece().convert_tokens_to_ids("ice")
    with torch.no_grad():
        model.get_input_embeddings().weight[ice] = float("nan")
    scores = Scorer(model, tiny.word_piece(), max_length=20).score(plan, encoded)
    assert len(scores) == len(plan)
    broken = np.isnan(scores.loss)
    own = scores.token == ice
    hiding = dict(zip(plan.document[own].tolist(), plan.draw[own].tolist(), strict=True))
    assert set(hiding) == {1, 3}
    shown = [int(n) in hiding and draw != hiding[int(n)] for n, draw in zip(plan.document, plan.draw, strict=True)]
    assert broken.tolist() == shown
    assert np.abs(scores.loss[~broken] - before.loss[~broken]).max() < EQUAL
    assert np.isnan(scores.mean_loss)


def test_bfloat16_is_near_float32(scorer: Scorer, encoded: list[Encoded]) -> None:
    """Half the digits give nearly the same mean; single losses differ by more than float32 allows."""
    plan = token_plan(tiny.TEXTS, encoded)
    half = Scorer(tiny.bert().to(torch.bfloat16), tiny.word_piece(), max_length=20)
    assert (half.dtype, half.rounding) == ("bfloat16", ROUNDING["bfloat16"])
    wide, narrow = scorer.score(plan, encoded), half.score(plan, encoded)
    assert abs(wide.mean_loss - narrow.mean_loss) < ROUNDING["bfloat16"]
    assert np.abs(wide.loss - narrow.loss).max() > ROUNDING["float32"]
    assert half.prunes_head
    assert Scorer(tiny.bert().double(), tiny.word_piece()).rounding == ROUNDING["bfloat16"]  # what is not known


def test_progress_ends_with_all_units(scorer: Scorer, encoded: list[Encoded]) -> None:
    """The bar moves forward only and fills."""
    plan = token_plan(tiny.TEXTS, encoded)
    told: list[tuple[int, int]] = []
    Scorer(scorer.model, scorer.tokenizer, max_length=20, batch_tokens=1).score(
        plan, encoded, progress=lambda done, total: told.append((done, total))
    )
    assert told == sorted(told)
    assert told[-1] == (len(plan), len(plan))


def test_the_record_names_the_weights() -> None:
    """One changed weight gives another digest, and the same weights the same."""
    model = tiny.bert()
    names = [Scorer(m, tiny.word_piece()).about["weights"] for m in (model, tiny.bert(), tiny.bert(seed=1))]
    assert names[0] == names[1] != names[2]
    assert len(names[0]) == 16
    with torch.no_grad():
        model.cls.predictions.bias[3] += 1e-6
    assert Scorer(model, tiny.word_piece()).about["weights"] != names[0]


def test_batches_are_bounded_by_tokens_and_logits(
    scorer: Scorer, encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch holds more tokens, padding included, or more logits than memory is meant for, unless it is one row."""
    shapes: list[tuple[int, int, int]] = []
    forward = type(scorer.forward).__call__

    def watched(self: Any, input_ids: torch.Tensor, mask: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        shapes.append((*input_ids.shape, at.shape[1]))
        return forward(self, input_ids, mask, at)

    monkeypatch.setattr(type(scorer.forward), "__call__", watched)
    plan = token_plan(tiny.TEXTS, encoded)
    Scorer(scorer.model, scorer.tokenizer, max_length=20, batch_tokens=64).score(plan, encoded)
    assert max(rows * length for rows, length, _ in shapes) <= 64
    assert min((rows + 1) * length for rows, length, _ in shapes[:-1]) > 64  # and not one row less than would fit
    longest = max(length for _, length, _ in shapes)
    shapes.clear()
    Scorer(scorer.model, scorer.tokenizer, max_length=20, batch_tokens=2 * longest).score(plan, encoded)
    assert shapes[0][:2] == (2, longest)  # what fits exactly fits
    shapes.clear()
    monkeypatch.setattr("mlmrepro.scoring.scorer._LOGITS", 5 * scorer.model.config.vocab_size)
    scorer.score(plan, encoded)
    assert max(positions for *_, positions in shapes) == 5
    monkeypatch.setattr("mlmrepro.scoring.scorer._LOGITS", 45 * scorer.model.config.vocab_size)
    for at_masked, most in ((True, 4096), (False, 45)):  # a head on all positions gives logits for padding too
        monkeypatch.setattr(scorer.forward, "cut", scorer.forward.cut if at_masked else None)
        shapes.clear()
        scorer.score(plan, encoded)
        assert (max(rows * length for rows, length, _ in shapes) > 45) is at_masked
        assert max(rows * length for rows, length, _ in shapes) <= most


def test_a_text_of_which_no_word_can_be_scored_is_refused(scorer: Scorer) -> None:
    """Words that are unknown to the tokenizer have no loss."""
    encoded = scorer.encode(["zyx"])
    with pytest.raises(UserError) as error:
        scorer.score(word_plan(["zyx"], [1]), encoded)
    assert error.value.problem == "no word of the text can be scored"
    assert error.value.remedy == "give longer documents, in the language that the tokenizer was made for"
