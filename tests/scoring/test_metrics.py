"""The `evaluate` modules: what they compute, and that they load and take input as any metric does."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mlmrepro.config import EMBEDDED
from mlmrepro.errors import UserError
from mlmrepro.scoring.metrics import MASKED_PERPLEXITY, PSEUDO_PERPLEXITY
from mlmrepro.scoring.metrics.texts import masked_perplexity, pseudo_perplexity
from mlmrepro.scoring.plan import token_plan
from mlmrepro.scoring.scorer import Scorer

TEXTS = ["water is wet", "the moon turns around the unseen earth", "ice", "the moon turns around the unseen earth"]
BOTH = {MASKED_PERPLEXITY: masked_perplexity, PSEUDO_PERPLEXITY: pseudo_perplexity}
Metric = Any


def _roberta(folder: Path) -> None:
    whole = AutoTokenizer.from_pretrained(EMBEDDED / "checkpoint")
    # Of the same kind, with 300 tokens instead of 16,000: each call loads it. "unseen" stays several of them.
    tokenizer = whole.train_new_from_iterator([text.replace("unseen", "") for text in TEXTS], 300, show_progress=False)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        initializer_range=0.5,  # wide enough that two tokens have two losses
    )
    tokenizer.save_pretrained(folder)
    RobertaForMaskedLM(config).save_pretrained(folder)


def _bert(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(TEXTS).split(), "un", "##seen", "##s"]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys(word for word in words if word != "unseen"))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=40, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        initializer_range=0.5,
    )
    BertForMaskedLM(config).save_pretrained(folder)


@pytest.fixture(scope="module", params=[_roberta, _bert], ids=["roberta", "bert"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random model of a few parameters."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(5)
    request.param(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _caches_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader copies a script and the texts to the user's cache; a test leaves nothing there.

    Texts have a folder for each test: where a computation failed, evaluate's lock would hold up the next for a second.
    """
    modules = str(tmp_path_factory.getbasetemp() / "modules")
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", modules)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "metrics"))


@pytest.fixture(params=BOTH, ids=[Path(folder).name for folder in BOTH])
def folder(request: pytest.FixtureRequest) -> str:
    return request.param


def _by_hand(checkpoint: str, later: bool) -> list[float]:
    """Return each text's pseudo-log-likelihood, one token after the other, with the library alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModelForMaskedLM.from_pretrained(checkpoint)
    model.eval()
    totals = []
    for text in TEXTS:
        encoding = tokenizer(text, return_tensors="pt")
        ids, words = encoding["input_ids"][0], encoding.word_ids()
        scored = [n for n, word in enumerate(words) if word is not None]
        masked = ids.repeat(len(scored), 1)
        for row, n in zip(masked, scored, strict=True):
            row[[m for m in scored if m == n or (later and m > n and words[m] == words[n])]] = tokenizer.mask_token_id
        with torch.no_grad():
            logprobs = model(input_ids=masked).logits.log_softmax(-1)
        totals.append(sum(float(logprobs[row, n, ids[n]]) for row, n in enumerate(scored)))
    return totals


@pytest.mark.parametrize("within_word", [False, True])
def test_pseudo_log_likelihoods_are_those_of_the_papers(checkpoint: str, within_word: bool) -> None:
    """Masking one token after the other by hand, with or without the rest of its word, gives the same sums."""
    results = pseudo_perplexity(TEXTS, checkpoint, within_word=within_word)
    by_hand = _by_hand(checkpoint, within_word)
    assert results["pseudo_log_likelihoods"] == pytest.approx(by_hand, abs=1e-4)
    other = _by_hand(checkpoint, not within_word)
    assert results["pseudo_log_likelihoods"][1] != pytest.approx(other[1], abs=1e-2)  # "unseen" is several tokens
    mean = -sum(by_hand) / sum(results["token_counts"])
    assert results["pseudo_perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)


def test_masked_perplexity_is_that_of_the_scorer(checkpoint: str) -> None:
    """The module weighs each token the same, and its parts are the texts of the scorer's documents."""
    scorer = Scorer.load(checkpoint, device="cpu")
    encoded = scorer.encode(TEXTS)
    scores = scorer.score(token_plan(TEXTS, encoded, rate=0.3, seed=2), encoded)
    results = masked_perplexity(TEXTS, checkpoint, mlm_probability=0.3, seed=2)
    assert results["perplexity"] == scores.perplexity
    assert results["token_counts"] == [int((scores.document == n).sum()) for n in range(len(TEXTS))]
    assert sum(results["token_counts"]) == sum(len(document) for document in encoded)  # each token once
    losses = [scores.loss[scores.document == n].mean(dtype=float) for n in range(len(TEXTS))]
    assert results["perplexities"] == pytest.approx(np.exp(losses), rel=1e-6)
    assert results["perplexity"] != masked_perplexity(TEXTS, checkpoint, mlm_probability=0.3, seed=3)["perplexity"]


def test_loading_gives_the_same_as_the_function(folder: str, checkpoint: str) -> None:
    """A module that evaluate.load made computes what the function does."""
    results = evaluate.load(folder).compute(predictions=TEXTS, model_id=checkpoint, device="cpu", max_length=20)
    assert results == BOTH[folder](TEXTS, checkpoint, device="cpu", max_length=20)


def test_a_window_is_no_longer_than_the_model_reads(folder: str, checkpoint: str) -> None:
    """A larger `max_length` than the model's is the model's; a smaller one cuts a text, and so changes its value."""
    whole = BOTH[folder](TEXTS, checkpoint)
    assert BOTH[folder](TEXTS, checkpoint, max_length=1000) == whole
    cut = BOTH[folder](TEXTS, checkpoint, max_length=6)
    assert cut != whole
    assert cut["token_counts"] == whole["token_counts"]


def test_batches_give_the_same_as_all_at_once(folder: str, checkpoint: str) -> None:
    """Texts may come one by one or in batches, and the model may read any number of them at once."""
    at_once = BOTH[folder](TEXTS, checkpoint)
    metric = evaluate.load(folder)
    metric.add_batch(predictions=TEXTS[:1])
    metric.add_batch(predictions=TEXTS[1:])
    assert metric.compute(model_id=checkpoint) == at_once
    for text in TEXTS:
        metric.add(prediction=text)
    assert metric.compute(model_id=checkpoint) == at_once
    singly = BOTH[folder](TEXTS, checkpoint, batch_size=1, max_length=30)
    for name, values in at_once.items():
        assert singly[name] == pytest.approx(values, rel=1e-5)
        if isinstance(values, list):
            assert values[1] == pytest.approx(values[3], rel=1e-5)  # the same text


def test_what_a_metric_does_not_take_is_refused(folder: str) -> None:
    """An input that it does not have is not ignored: evaluate itself names it."""
    with pytest.raises(ValueError, match=r"Bad inputs for evaluation module: \['weights'\]"):
        evaluate.load(folder).add_batch(predictions=TEXTS, weights=[1.0] * len(TEXTS))


def test_a_text_without_any_token_to_mask_is_named(folder: str, checkpoint: str) -> None:
    """A text of special tokens alone has no perplexity, and the message says which text it is."""
    mask = AutoTokenizer.from_pretrained(checkpoint).mask_token
    with pytest.raises(UserError) as error:
        BOTH[folder](["water", mask], checkpoint)
    assert error.value.problem == "prediction 1 has no token that can be masked"
    assert error.value.remedy == "leave out texts of which the tokenizer knows no word"


def test_a_module_says_what_it_is(folder: str) -> None:
    """Name, kind, description, citation, inputs and results are documented where evaluate shows them."""
    metric = evaluate.load(folder, module_type="metric")
    function = BOTH[folder]
    assert metric.name == function.__name__ == Path(folder).name
    assert {name: feature.dtype for name, feature in metric.features.items()} == {"predictions": "string"}
    assert "@inproceedings" in metric.citation
    assert all(url in metric.citation for url in metric.info.reference_urls)
    arguments = [name for name in function.__kwdefaults__ or {}]
    for name in ["predictions", "model_id", *arguments]:
        assert re.search(rf"^    {name} \(", metric.inputs_description, flags=re.MULTILINE), name
    for name, default in (function.__kwdefaults__ or {}).items():
        told = rf"^    {name} \(\w+\):[^:]*efaults to {default}\.$"
        assert default is None or re.search(told, metric.inputs_description, flags=re.MULTILINE), name
    assert metric.inputs_description in metric.compute.__doc__
    assert metric.description in type(metric).__doc__


def test_every_result_is_documented(folder: str, checkpoint: str) -> None:
    """What compute returns stands in the module's description of its results and in its card."""
    returns = evaluate.load(folder).inputs_description.partition("Returns:")[2].partition("Examples:")[0]
    card = (Path(folder) / "README.md").read_text(encoding="utf-8")
    results = BOTH[folder](TEXTS, checkpoint)
    assert re.findall(r"^    (\w+) \(", returns, flags=re.MULTILINE) == list(results)
    assert all(f"**{name}**" in card for name in results)


def test_the_card_runs(folder: str, checkpoint: str) -> None:
    """The program in a module's card runs as it stands, with another checkpoint."""
    card = (Path(folder) / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(program.replace("distilbert/distilroberta-base", checkpoint), names)
    assert len(names["results"]["token_counts"]) == 2


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda metric, folder: metric.compute(predictions=[], model_id=folder), "there are no predictions"),
        (lambda metric, folder: metric.compute(predictions=["water", " "], model_id=folder), "prediction 1 is empty"),
        (lambda metric, folder: metric.compute(predictions="water", model_id=folder), "^predictions is one string"),
        (lambda metric, folder: metric.add_batch(predictions="water"), "^predictions is one string"),
        (
            lambda metric, folder: metric.compute(predictions=["water"], model_id=folder, batch_size=0),
            "batch_size is 0",
        ),
        (
            lambda metric, folder: metric.compute(predictions=["water"], model_id=folder, max_length=3),
            "max_length is 3, too short",
        ),
        (lambda metric, folder: metric.compute(predictions=["water"], model_id=folder + "/no"), "does not exist"),
    ],
)
def test_bad_input_is_refused(folder: str, checkpoint: str, call: Callable[[Metric, str], Any], problem: str) -> None:
    """What cannot be scored is said, never left out of a mean."""
    with pytest.raises(UserError, match=problem) as error:
        call(evaluate.load(folder), checkpoint)
    assert error.value.remedy in REMEDIES


REMEDIES = {
    "give the path of a folder",
    "give 1 or more",
    "give a larger one",
    "give a list of texts",
    "give one text or more",
    "leave empty texts out",
}


@pytest.mark.parametrize(("device", "place"), [(None, "auto"), ("", "auto"), ("gpu", "cuda"), ("cpu", "cpu")])
def test_a_model_is_loaded_as_it_was_asked_for(
    folder: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch, device: str | None, place: str
) -> None:
    """The device by the names of evaluate; batches of 16 sequences of 512 tokens where nothing is said."""
    asked: list[dict[str, Any]] = []
    load = Scorer.load

    def watched(model: str, **arguments: Any) -> Scorer:
        asked.append(arguments)
        return load(model, **arguments | {"device": "cpu"})

    monkeypatch.setattr(Scorer, "load", watched)
    BOTH[folder](TEXTS, Path(checkpoint), device=device)
    BOTH[folder](TEXTS, checkpoint, batch_size=3, max_length=20)
    assert asked == [
        {"device": place, "max_length": 512, "batch_tokens": 16 * 512},
        {"device": "auto", "max_length": 20, "batch_tokens": 60},
    ]
