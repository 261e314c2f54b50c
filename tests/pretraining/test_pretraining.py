"""Pretraining: what it reads out of packages, how it starts, and that a killed run ends like an unbroken one."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mlmrepro.errors import UserError

from . import corpus, examination, phases, pretrain
from .cooccurrence import positive_pmi, svd_embeddings

RECIPE = """
seed = 1
[tokenizer]
vocab_size = 400
min_frequency = 2
[model]
num_hidden_layers = 1
hidden_size = 12
num_attention_heads = 2
intermediate_size = 64
dropout = 0.0
block_size = 64
compile = false
[embeddings]
window = 3
smoothing = 0.75
std = 0.06
position_std = 0.04
[optimiser]
learning_rate = 3e-3
warmup_steps = 5
weight_decay = 0.01
betas = [0.9, 0.98]
max_grad_norm = 1.0
final_learning_rate = 1e-5
[evaluation]
every_steps = 10
blocks = 4
[[phase]]
name = "only <mask>"
steps = 60
block_size = 16
batch_size = 16
mlm_probability = 0.2
mask_share = 1.0
random_share = 0.0
[[phase]]
name = "as the guide"
steps = 20
block_size = 32
batch_size = 8
mlm_probability = 0.15
mask_share = 0.8
random_share = 0.1
"""


class Killed(Exception):
    """Stands for a killed process."""


def _work(folder: Path) -> tuple[Path, Path]:
    """Return a working folder with a small corpus of its own, and a recipe."""
    draw = random.Random(0)
    places = re.findall(
        r"\w+", "sea moon star hill lake wind river cave field tower bridge garden harbour forest mill road"
    )
    for name, count in (("train", 400), ("held_out", 60)):
        lines = []
        for _ in range(count):
            a, b = draw.choices(places, k=2)
            text = f"the {a} is near the {b} and the {b} is near the {a}, so we walk from the {a} to the {b}."
            lines.append(json.dumps({"source": "test", "text": text}))
        path = folder / "corpus" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    return folder, recipe


def _pretrain(folder: Path, **options: Any) -> dict[str, Any]:
    work, recipe = _work(folder)
    return pretrain.pretrain(work, recipe_path=recipe, report=lambda _: None, **options)


def test_a_killed_pretraining_resumed_equals_an_unbroken_one(tmp_path: Path) -> None:
    """Killed between two evaluations and started again, it ends with the same weights, and has learnt the corpus."""
    figures = _pretrain(tmp_path / "unbroken")

    def kill(done: int, total: int, loss: float) -> None:
        if done == 50:
            raise Killed

    with pytest.raises(Killed):
        _pretrain(tmp_path / "killed", progress=kill)
    assert not (tmp_path / "killed" / "checkpoint").exists()
    assert _pretrain(tmp_path / "killed") == figures
    one, two = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("unbroken", "killed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert figures["all"]["mask only"]["ratio"] > 1.1
    content = json.loads((tmp_path / "killed" / "checkpoint" / "pretraining.json").read_text())
    assert [point["step"] for point in content["curve"]] == list(range(10, 81, 10))
    assert content["curve"][0]["perplexity"] > content["curve"][5]["perplexity"]


def test_pretraining_continues_from_a_checkpoint(tmp_path: Path) -> None:
    """A run from a checkpoint starts with its weights and tokenizer, and keeps its record."""
    _pretrain(tmp_path / "first")
    start = tmp_path / "first" / "checkpoint"
    work, recipe = _work(tmp_path / "second")
    recipe.write_text(RECIPE.replace("learning_rate = 3e-3", "learning_rate = 1e-9").replace("as the guide", "more"))
    pretrain.pretrain(work, start=start, recipe_path=recipe, report=lambda _: None)
    one, two = (load_file(folder / "model.safetensors") for folder in (start, work / "checkpoint"))
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-3) for name in one)
    assert (work / "checkpoint" / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    content = json.loads((work / "checkpoint" / "pretraining.json").read_text())
    assert content["earlier"]["recipe"] == json.loads((start / "pretraining.json").read_text())["recipe"]
    recipe.write_text(RECIPE.replace("hidden_size = 12", "hidden_size = 16"))
    with pytest.raises(UserError, match=r"\[model\] of the recipe is .* was made with"):
        pretrain.pretrain(tmp_path / "third", start=start, recipe_path=recipe, report=lambda _: None)
    with pytest.raises(UserError, match="was not made by"):
        pretrain.pretrain(tmp_path / "third", start=tmp_path, recipe_path=recipe, report=lambda _: None)
    assert not (tmp_path / "third").exists()


@pytest.mark.quick
def test_words_of_the_same_short_sentence_count() -> None:
    """Of a row with two sentences a mask sees the words of its own one, but no frequent word and no special token."""
    ids = torch.tensor([[0, 7, 8, 9, 2, 0, 7, 6, 5, 2]])
    inputs = ids.clone()
    inputs[0, [2, 7]] = 19  # the mask
    content = torch.ones(20, dtype=torch.bool)
    content[[0, 1, 2, 3, 9, 19]] = False
    words, counts = phases.same_sentence(ids, inputs, torch.tensor([2, 7]), content)
    assert [words[0][counts[0]].tolist(), words[1][counts[1]].tolist()] == [[7], [7, 5]]
    long = torch.arange(20, 80).view(1, 60)
    long[0, 0] = 0
    _, counts = phases.same_sentence(long, long, torch.tensor([5]), torch.ones(100, dtype=torch.bool))
    assert not counts.any()


def test_unlikelihood_pushes_repeated_words_down() -> None:
    """The gradient of a wrong word that the sentence holds is larger than without the penalty, and others are alike."""

    class Head(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    logits = torch.zeros(1, 1, 6, requires_grad=True)
    model: Any = torch.nn.Module()
    model.roberta, model.lm_head = (lambda inputs: (logits,)), Head()
    inputs, position, target = torch.zeros(1, 1, dtype=torch.long), torch.tensor([0]), torch.tensor([1])
    words = torch.tensor([[2, 1, 3]])
    plain = torch.autograd.grad(pretrain._loss(model, inputs, position, target), logits)[0][0, 0]
    counts = torch.tensor([[True, True, False]])
    punished = torch.autograd.grad(pretrain._loss(model, inputs, position, target, (words, counts, 4.0)), logits)[0][
        0, 0
    ]
    assert punished[2] > 3 * plain[2]
    assert punished[1] < plain[1]
    assert punished[3] == pytest.approx(float(punished[4]))


@pytest.mark.quick
def test_files_of_another_recipe_are_refused(tmp_path: Path) -> None:
    """A working folder holds the files of one recipe, so that the exported recipe is the one that was followed."""
    (tmp_path / "settings.json").write_text('{"recipe": {}, "corpus": []}')
    with pytest.raises(UserError, match="another recipe"):
        pretrain.pretrain(tmp_path)
    recipe = tmp_path / "bad.toml"
    recipe.write_text("[[[")
    with pytest.raises(UserError, match="is no TOML"):
        pretrain.pretrain(tmp_path / "other", recipe_path=recipe)


@pytest.mark.quick
def test_sentences_stand_alone() -> None:
    """A phase with sentences reads each whole sentence once, and neither headings nor scraps."""
    texts = [
        "The river is near the old mill. Two. It turns the heavy wheel day and night!\nHeading of a chapter",
        "The river is near the old mill.",
    ]
    assert set(pretrain._sentences(iter(texts))) == {
        "The river is near the old mill.",
        "It turns the heavy wheel day and night!",
    }


@pytest.mark.quick
def test_the_examination_has_two_halves_of_answerable_questions() -> None:
    """Each half has 36 different sentences with one mask, and no answer stands in its sentence."""
    halves = {half: examination.read_questions(half) for half in ("open", "sealed")}
    assert {half: len(questions) for half, questions in halves.items()} == {"open": 36, "sealed": 36}
    questions = [question for half in halves.values() for question in half]
    assert len({question.sentence for question in questions}) == 72
    for question in questions:
        assert question.sentence.count(examination.MASK) == 1
        assert not any(examination.repeats(answer, question.sentence) for answer in question.accepted)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("answer", "expected"), [(" Galaxy", True), ("spiral", False), ("way", True), ("mask", False), ("gal", False)]
)
def test_a_repeated_word_is_a_whole_word_of_the_sentence(answer: str, expected: bool) -> None:
    """Case and blanks do not hide a repetition, and part of a word is none."""
    assert examination.repeats(answer, "The Milky Way is a <mask> galaxy.") is expected


def test_a_model_that_repeats_the_sentence_fails_the_examination(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The figures tell a model that knows the answers from one that repeats a word of the sentence."""
    questions = examination.read_questions("open")
    for found, figures in (
        ([["x", *q.accepted] for q in questions], (0.0, 1.0, 0.0)),
        ([[*q.accepted, "x"] for q in questions], (1.0, 1.0, 0.0)),
        ([[q.sentence.split()[0], "x"] for q in questions], (0.0, 0.0, 1.0)),
    ):
        monkeypatch.setattr(examination, "answers", lambda *_, found=found: found)
        figure = examination.examine(None, None, "open")
        assert (figure["accuracy_at_1"], figure["accuracy_at_5"], figure["repeated_words"]) == figures


def test_a_diverging_pretraining_stops(tmp_path: Path) -> None:
    """A loss that is no number ends the run with the remedy, and exports nothing."""
    work, recipe = _work(tmp_path)
    recipe.write_text(RECIPE.replace("learning_rate = 3e-3", "learning_rate = 1e30"))
    with pytest.raises(UserError, match=r"lower .* learning_rate"):
        pretrain.pretrain(work, recipe_path=recipe, report=lambda _: None)
    assert not (work / "checkpoint").exists()


@pytest.mark.quick
def test_corruption_follows_its_phase() -> None:
    """Selection and shares are those of the phase, and special ids are never selected."""
    phase = phases.Phase("test", 1, 100, 1, 0.2, 0.8, 0.1)
    ids = torch.arange(100).repeat(2000, 1)
    inputs, labels = phases.corrupt(ids, phase, 101, torch.Generator().manual_seed(0))
    selected = labels != -100
    assert not selected[:, :4].any()
    assert torch.equal(labels[selected], ids[selected])
    assert torch.equal(inputs[~selected], ids[~selected])
    assert float(selected[:, 4:].float().mean()) == pytest.approx(0.2, abs=0.005)
    assert float((inputs[selected] == 100).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float((inputs[selected] == labels[selected]).float().mean()) == pytest.approx(0.1 + 0.1 / 96, abs=0.01)


@pytest.mark.quick
def test_positive_pmi_is_that_of_the_definition() -> None:
    """On a short sequence the matrix equals the definition, written out."""
    tokens = np.array([0, 1, 2, 0, 1, 0, 2], dtype=np.uint16)
    counts = np.zeros((3, 3))
    for i, left in enumerate(tokens):
        for distance in (1, 2):
            if i + distance < len(tokens):
                counts[left, tokens[i + distance]] += 1 / distance
    counts += counts.T
    word = counts.sum(axis=1)
    context = word**0.75
    with np.errstate(divide="ignore"):
        pmi = np.log(counts * context.sum() / np.outer(word, context))
    matrix = positive_pmi(tokens, 3, window=2, smoothing=0.75).toarray()
    np.testing.assert_allclose(matrix, np.maximum(pmi, 0), atol=1e-12)


def test_embeddings_have_the_stated_size() -> None:
    """Standard deviation as asked for, small distinct rows for words that never occurred, equal for equal seeds."""
    tokens = np.random.default_rng(0).integers(0, 40, 5000).astype(np.uint16)
    matrix = positive_pmi(tokens, 50, window=3, smoothing=0.75)
    vectors = svd_embeddings(matrix, 8, std=0.06, seed=1)
    assert vectors.shape == (50, 8)
    assert vectors[:40].std() == pytest.approx(0.06, rel=0.05)
    assert 0 < vectors[40:].std() < 0.02
    assert np.array_equal(vectors, svd_embeddings(matrix, 8, std=0.06, seed=1))


@pytest.mark.parametrize(
    ("format_", "text", "expected"),
    [
        ("plain", "One paragraph\nof two lines.\n\nAnother.", [["One paragraph of two lines.", "Another."]]),
        (
            "markup",
            "<html><p>Of <b>bold</b> words.</p><ul><li>An item</li></ul></html>",
            [["Of bold words.", "An item"]],
        ),
        ("markup", "<?xml version='1.0'?><chapter><para>In &kstars; it is.</para></chapter>", [["In kstars it is."]]),
        (
            "wordnet",
            '  licence\n0 14 n 02 galaxy 0 star_system 1 000 | a system of stars; "a galaxy of ours"  ',
            [["Galaxy: a system of stars. It is also called star system. A galaxy of ours."]],
        ),
        (
            "summaries",
            '{"Sun": {"title": "Sun", "extract": "The Sun is a star.\\nIt is hot."}}',
            [["The Sun is a star.", "It is hot."]],
        ),
        (
            "mediawiki",
            "<page><text>'''Air''' is a [[gas mixture|gas]].{{cite}}&lt;ref&gt;x&lt;/ref&gt;</text></page>",
            [["Air is a gas."]],
        ),
        (
            "factbook",
            '{"Land": {"Area": {"total": {"text": "1 sq km"}}, "Coast": {"text": "<b>Low</b> sand.<br>Cliffs."}}}',
            [["1 sq km", "Low sand.", "Cliffs."]],
        ),
        (
            "recipes",
            '{"Cookbook:Tea": {"title": "Tea", "steps": ["Boil water.", "Pour it."]}}',
            [["Tea. Boil water. Pour it."]],
        ),
        ("fortunes", "One saying.\n%\nAnother\nsaying.", [["One saying."], ["Another saying."]]),
        (
            "gcide",
            'Galaxy \\Gal"axy\\, n.\n   1. The {Milky Way}.\n      [1913 Webster]\n',
            [["Galaxy: The Milky Way."]],
        ),
        (
            "dictionary",
            "atom\n\n   A {small} thing.\n\nbit\n\n   A digit.",
            [["atom", "A small thing."], ["bit", "A digit."]],
        ),
    ],
)
def test_a_reader_gives_plain_paragraphs(format_: str, text: str, expected: list[list[str]]) -> None:
    """Each format of the corpus is reduced to documents of plain paragraphs."""
    assert [[p for p in paragraphs if p] for paragraphs in corpus._READERS[format_](text)] == expected


def test_the_corpus_list_states_every_licence() -> None:
    """Each package has a version, a licence and a known format, and stands in the list once."""
    sources = corpus.read_sources()
    assert all(s.version and s.licence and s.format in corpus._READERS for s in sources)
    assert len({s.package for s in sources}) == len(sources)


def test_the_held_out_part_is_a_hundredth_chosen_by_content() -> None:
    """About 1 % of the documents are held out, the same ones every time."""
    chosen = [text for text in map(str, range(20_000)) if corpus.is_held_out(text)]
    assert len(chosen) == pytest.approx(200, abs=5 * math.sqrt(200))
    assert all(map(corpus.is_held_out, chosen))
