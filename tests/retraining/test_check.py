"""A check: the right word for checkpoints whose quality is known, and a reason for each that cannot be judged."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mlmrepro.errors import UserError
from mlmrepro.gate.result import Answer, CheckResult
from mlmrepro.retraining.baseline import Baseline
from mlmrepro.retraining.check import check, check_checkpoint, make_baseline
from mlmrepro.retraining.settings import Settings
from mlmrepro.scoring.documents import Document, Text
from mlmrepro.scoring.filling import Probe
from mlmrepro.scoring.scorer import Scorer

Maker = Callable[..., str]


@pytest.fixture(scope="module")
def baseline(checkpoint: Maker, text: Text) -> Baseline:
    probes = [Probe("Water is made of <mask>.", "water"), Probe("The <mask> is far.")]
    return make_baseline(Scorer.load(checkpoint(0.8)), text, checkpoint="old", probes=probes)


@pytest.fixture(scope="module")
def worse(checkpoint: Maker, baseline: Baseline) -> CheckResult:
    return check(Scorer.load(checkpoint(0.7)), baseline)


@pytest.mark.parametrize(
    ("knowledge", "answer"),
    [
        (0.9, Answer.BETTER),
        (0.8, Answer.SAME),
        (0.797, Answer.SAME),
        (0.7, Answer.REGRESSION),
    ],
)
def test_the_answer_is_the_true_one(checkpoint: Maker, baseline: Baseline, knowledge: float, answer: Answer) -> None:
    """A head that knows more is better, one that knows less is worse, beyond the margin or within."""
    result = check(Scorer.load(checkpoint(knowledge)), baseline)
    assert result.answer is answer
    assert result.measure == "perplexity"
    assert result.paired is not None
    assert math.log(result.after / result.before) == pytest.approx(result.paired.difference, abs=1e-6)
    assert (result.paired.difference > 0) == (knowledge < 0.8)


def test_a_margin_that_the_interval_holds_is_inconclusive(
    checkpoint: Maker, baseline: Baseline, worse: CheckResult
) -> None:
    """With the margin at the very difference there is no answer, and the advice says what would give one."""
    assert worse.paired is not None
    result = check(Scorer.load(checkpoint(0.7)), baseline, Settings(margin=math.expm1(worse.paired.difference)))
    assert result.answer is Answer.INCONCLUSIVE
    assert result.exit_code == 3
    assert "would not decide" in result.advice


@pytest.mark.parametrize("batch_tokens", [200, 4096, 100_000])
def test_the_same_checkpoint_has_exactly_no_difference(
    checkpoint: Maker, baseline: Baseline, batch_tokens: int
) -> None:
    """Whatever the batches: the answer is the same, and the difference 0, not nearly 0."""
    result = check(Scorer.load(checkpoint(0.8), batch_tokens=batch_tokens), baseline)
    assert result.paired is not None
    assert (result.answer, result.paired.difference, result.paired.low, result.paired.high) == (Answer.SAME, 0, 0, 0)
    assert result.largest_change < 1e-5
    assert [probe.rank_biased_overlap for probe in result.probes] == pytest.approx([1, 1])


def test_both_checkpoints_are_named(checkpoint: Maker, baseline: Baseline, tmp_path: Path) -> None:
    """The result says which weights, packages and masks it speaks of, and can be written as JSON."""
    baseline.write(tmp_path / "b")
    content = check_checkpoint(checkpoint(0.9), tmp_path / "b", name="new").to_dict()
    json.dumps(content, allow_nan=False)
    old, new = content["provenance"]["baseline"], content["provenance"]["candidate"]
    assert (old["checkpoint"], new["checkpoint"]) == ("old", "new")
    assert old["weights"] != new["weights"]
    assert old["settings"]["mask_rate"] == 0.15
    assert "torch" in new["packages"]


def test_worst_documents_hold_their_whole_text(worse: CheckResult, text: Text) -> None:
    """The tokens of a document that got worse, joined, are its text."""
    whole = {document.name: document.text for document in text.documents}
    assert worse.worst
    for document in worse.worst:
        shown = "".join(token.text for token in document.tokens)
        assert shown in whole[document.name]
        assert shown == whole[document.name] or len(document.tokens) == 400


def test_losses_that_are_no_numbers_are_a_regression(checkpoint: Maker, baseline: Baseline) -> None:
    """Finite weights whose product overflows give NaN: a regression, never skipped."""
    result = check(Scorer.load(checkpoint(0.8, weight=3e38)), baseline)
    assert result.answer is Answer.REGRESSION
    assert 0 < result.not_finite <= len(baseline.tokens)
    assert math.isnan(result.after)


def test_no_baseline_is_made_of_losses_that_are_no_numbers(checkpoint: Maker, text: Text) -> None:
    """A baseline of NaN would hide every regression."""
    with pytest.raises(UserError, match="are NaN or infinite"):
        make_baseline(Scorer.load(checkpoint(0.8, weight=3e38)), text, checkpoint="old")


def test_weights_that_are_no_numbers_are_refused(checkpoint: Maker, tmp_path: Path) -> None:
    """A NaN in one weight is named with its tensor, in either command."""
    folder = tmp_path / "nan"
    shutil.copytree(checkpoint(), folder)
    weights = load_file(folder / "model.safetensors")
    weights["roberta.encoder.layer.0.output.dense.weight"][0, 0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or infinite: roberta\.encoder\.layer\.0\.output\.dense\.weight"):
        Scorer.load(str(folder))


def test_one_document_is_refused(checkpoint: Maker) -> None:
    """What one document shows may hold for no other."""
    text = Text("mine.txt", (Document("1", "The sea is salt and deep and wide."),))
    with pytest.raises(UserError, match=r"mine\.txt is a single document"):
        make_baseline(Scorer.load(checkpoint()), text, checkpoint="old")


def test_a_shorter_model_needs_a_shorter_baseline(checkpoint: Maker, baseline: Baseline) -> None:
    """Windows that the candidate cannot read are no equal masks: the remedy names the length."""
    with pytest.raises(UserError, match="windows of 128 tokens, but this checkpoint reads 62") as error:
        check(Scorer.load(checkpoint(0.8, positions=64)), baseline)
    assert "--max-length 62" in error.value.remedy


def test_a_number_format_is_noted(checkpoint: Maker, baseline: Baseline) -> None:
    """bfloat16 beside a float32 baseline is said, and its rounding is no change."""
    result = check(Scorer.load(checkpoint(0.8), dtype="bfloat16"), baseline)
    assert "this checkpoint in bfloat16" in " ".join(result.notes)
    assert result.answer is Answer.SAME


@pytest.mark.parametrize(("old", "new", "answer"), [(0.0, 1.0, Answer.BETTER), (0.8, -1.0, Answer.REGRESSION)])
def test_a_changed_tokenizer_is_compared_by_words(
    checkpoint: Maker, text: Text, old: float, new: float, answer: Answer
) -> None:
    """Other tokens: the same words are masked, losses are in bits a byte, and a note says so."""
    baseline = make_baseline(Scorer.load(checkpoint(old)), text, checkpoint="old")
    result = check(Scorer.load(checkpoint(new, other=True)), baseline)
    assert result.measure == "bits per byte"
    assert result.answer is answer
    assert "the tokenizer changed" in " ".join(result.notes)
    assert result.before == pytest.approx(baseline.words.bits_per_byte, rel=0.01)
    # One per cent of the perplexity of a token of the baseline's, spread over that token's bytes.
    assert result.margin_nats == pytest.approx(math.log(1.01) * baseline.settings["tokens_per_byte"])
    assert 0.1 < baseline.settings["tokens_per_byte"] < 1


def _words_only(vocabulary: dict[str, int], **normalizer: Any) -> Any:
    """Return a tokenizer that knows these words, and no others."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<mask>": 1, **vocabulary}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, value in normalizer.items():
        setattr(words, name, value)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", mask_token="<mask>")
    tokenizer.model_max_length = 128
    return tokenizer


def test_a_tokenizer_that_loses_text_is_refused(checkpoint: Maker, baseline: Baseline) -> None:
    """Every word read as one and the same is easily predicted: bits per byte would call that better."""
    from tokenizers import Regex, normalizers

    lossy = _words_only({"the": 2}, normalizer=normalizers.Replace(Regex(r"\S+"), "the"))
    with pytest.raises(UserError, match="bits per byte would reward it for what it throws away"):
        check(Scorer(Scorer.load(checkpoint()).model, lossy), baseline)


def test_words_unknown_to_a_new_tokenizer_do_not_vanish(checkpoint: Maker, baseline: Baseline, text: Text) -> None:
    """A tokenizer that knows all words but the long ones is refused: the hard ones would be left out."""
    words = dict.fromkeys(word for document in text.documents for word in document.text.split() if len(word) < 8)
    few = _words_only({word: n for n, word in enumerate(words, start=2)})
    scorer = Scorer.load(checkpoint())
    scorer.model.resize_token_embeddings(len(few))
    blind = Baseline(**(vars(baseline) | {"settings": baseline.settings | {"words_kept": 0.0}}))
    with pytest.raises(UserError, match="the others hold tokens unknown to it"):
        check(Scorer(scorer.model, few), blind)


def test_other_surroundings_are_noted(checkpoint: Maker, baseline: Baseline) -> None:
    """Special tokens, windows, libraries or device that differ from the baseline's are said: they are no weights."""
    for setting, value, note in (("around", [[9], []], "other special tokens"), ("windows", "x", "other windows")):
        moved = Baseline(**(vars(baseline) | {"settings": baseline.settings | {setting: value}}))
        assert note in " ".join(check(Scorer.load(checkpoint(0.8)), moved).notes)
    packages = baseline.about["packages"] | {"transformers": "4.0"}
    moved = Baseline(**(vars(baseline) | {"about": baseline.about | {"packages": packages}}))
    assert "transformers 4.0 → " in " ".join(check(Scorer.load(checkpoint(0.8)), moved).notes)
    assert "differ" not in " ".join(check(Scorer.load(checkpoint(0.8)), baseline).notes)


def test_words_of_the_same_checkpoint_are_equal(checkpoint: Maker, baseline: Baseline) -> None:
    """Scored by words, the baseline's own checkpoint has no difference: the mask token's id alone was changed."""
    moved = Baseline(**(vars(baseline) | {"settings": baseline.settings | {"mask_token": -1}}))
    result = check(Scorer.load(checkpoint(0.8)), moved)
    assert result.measure == "bits per byte"
    assert result.paired is not None
    assert (result.answer, result.paired.difference) == (Answer.SAME, 0)
    assert result.before == result.after == baseline.words.bits_per_byte


def test_text_without_spaces_has_tokens_but_no_words(checkpoint: Maker) -> None:
    """A protein or Japanese is one long word: it is compared by tokens, and a changed tokenizer is refused."""
    lines = ["日本語の文章です。" * 3, "海は塩辛い。" * 4, "MKTAYIAKQR" * 3]
    text = Text("mine", tuple(Document(str(n), line) for n, line in enumerate(lines)))
    made = make_baseline(Scorer.load(checkpoint(0.8)), text, checkpoint="old")
    assert "a changed tokenizer cannot be compared" in made.about["notes"][-1]
    assert check(Scorer.load(checkpoint(0.8)), made).answer is Answer.SAME
    with pytest.raises(UserError, match="has no words to compare"):
        check(Scorer.load(checkpoint(0.8)), Baseline(**(vars(made) | {"settings": made.settings | {"mask_token": -1}})))


def test_a_random_plan_is_stored_and_followed(checkpoint: Maker, text: Text) -> None:
    """Drawn as the guide draws, with a seed: about 15 % of the tokens a pass, and the check uses the same ones."""
    made = make_baseline(Scorer.load(checkpoint(0.8)), text, checkpoint="old", seed=7, random_passes=2)
    assert "without --random-passes every one is scored" in made.about["notes"][-1]
    assert 0.25 < len(made.tokens) / sum(map(len, made.ids)) < 0.35
    assert check(Scorer.load(checkpoint(0.7)), made).answer is Answer.REGRESSION
    assert check(Scorer.load(checkpoint(0.8)), made).largest_change < 1e-5
