"""Prompts: the predictions are those of the library's own pipeline, and files of them are read with care."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import pipeline

from mlmrepro.errors import UserError
from mlmrepro.scoring.filling import KEPT, Probe, fill, read_probes
from mlmrepro.scoring.scorer import Scorer

from . import tiny

PROMPTS = ["the <mask> turns around the earth", "<mask> is cold and wet.", "unseen <mask>"]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny.bert(), tiny.word_piece(), max_length=20)


def test_predictions_are_those_of_the_pipeline(scorer: Scorer) -> None:
    """Tokens, their order and their probabilities equal those of transformers' fill-mask."""
    model = tiny.bert().eval()
    library = pipeline("fill-mask", model=model, tokenizer=tiny.word_piece(), device="cpu", top_k=7)
    for prompt, filled in zip(PROMPTS, fill(scorer, PROMPTS, top_k=7), strict=True):
        wanted = library(prompt.replace("<mask>", "[MASK]"))
        assert [token for token, _, _ in filled] == [row["token"] for row in wanted]
        assert [text for _, text, _ in filled] == [row["token_str"] for row in wanted]
        assert [p for _, _, p in filled] == pytest.approx([row["score"] for row in wanted], rel=1e-4)


def test_predictions_are_sorted_and_as_many_as_there_are(scorer: Scorer) -> None:
    """Best first; a vocabulary smaller than what is asked for is given whole, and its probabilities sum to one."""
    for filled in fill(scorer, PROMPTS):
        probabilities = [probability for _, _, probability in filled]
        assert len(filled) == min(KEPT, len(scorer.tokenizer)) == len(scorer.tokenizer)
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
    assert [row[:3] for row in fill(scorer, PROMPTS)] == fill(scorer, PROMPTS, top_k=3)


def test_no_more_tokens_are_given_than_the_tokenizer_has() -> None:
    """A model whose vocabulary was rounded up has more scores than there are tokens."""
    tokenizer = tiny.word_piece()
    scorer = Scorer(tiny.bert(vocab_size=len(tokenizer) + 5), tokenizer, max_length=20)
    assert [len(filled) for filled in fill(scorer, PROMPTS[:1])] == [len(tokenizer)]


def test_filling_leaves_a_training_as_it_was() -> None:
    """Dropout is off while filling, and on again afterwards."""
    model = tiny.bert(hidden_dropout_prob=0.5).train()
    scorer = Scorer(model, tiny.word_piece(), max_length=20)
    state = torch.get_rng_state()
    assert fill(scorer, PROMPTS) == fill(scorer, PROMPTS)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("the sea " * 20 + "<mask>", "has 43 tokens, but the limit is 20.*shorten it"),
        ("the <mask> and the [MASK]", "does not have exactly one mask token"),
        ("the sea", "'the sea' does not have exactly one mask token. Remedy: write <mask> exactly once."),
    ],
)
def test_prompts_that_cannot_be_filled_are_named(scorer: Scorer, prompt: str, problem: str) -> None:
    """A prompt that is too long or has not one mask says so."""
    with pytest.raises(UserError, match=problem):
        fill(scorer, [PROMPTS[0], prompt])


def test_a_prompt_may_be_as_long_as_the_model_reads(scorer: Scorer) -> None:
    """Its last token still fits, special tokens included; one more does not."""
    (filled,) = fill(scorer, ["ice " * 17 + "<mask>"], top_k=1)
    assert len(filled) == 1
    with pytest.raises(UserError, match=r"has 21 tokens, but the limit is 20\. Remedy: shorten it\."):
        fill(scorer, ["ice " * 18 + "<mask>"])


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def test_prompts_are_read_one_a_line(tmp_path: Path) -> None:
    """Blank lines and a byte order mark are no prompts; JSON lines may hold what is expected."""
    plain = _file(tmp_path, "p.txt", "\ufeffa <mask> b\r\n\n  <mask> c  \n")
    assert read_probes(plain) == [Probe("a <mask> b"), Probe("<mask> c")]
    rows = (
        '{"prompt": "a <mask>\u2028b", "expected": "x"}\n{"prompt": "<mask>", "expected": null}\n{"prompt": "<mask>!"}'
    )
    assert read_probes(_file(tmp_path, "p.jsonl", rows)) == [
        Probe("a <mask>\u2028b", "x"),
        Probe("<mask>"),
        Probe("<mask>!"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.txt", "", r"p\.txt is empty.*one prompt with <mask> per line"),
        ("p.txt", "a <mask>\n\nno mask here", r"p\.txt, line 3 holds no <mask>.*exactly once"),
        ("p.txt", "<mask> and <mask>", r"line 1 holds 2 <mask>"),
        ("p.txt", b"\xff\xfe<", r"p\.txt cannot be read: 'utf-8' codec.*UTF-8"),
        ("p.jsonl", '{"prompt": "<mask>"}\n{"prompt": "<ma', r"p\.jsonl, line 2 is not a prompt.*expected"),
        ("p.jsonl", '{"text": "<mask>"}', r"line 1 is not a prompt: KeyError: 'prompt'"),
        ("p.jsonl", '["<mask>"]', r"line 1 is not a prompt: TypeError"),
        ("p.jsonl", '{"prompt": 5}', r"line 1 is not a prompt: TypeError: prompt and expected must be strings\."),
        ("p.jsonl", '{"prompt": "<mask>", "expected": ["a"]}', r"line 1 is not a prompt.*must be strings"),
        ("p.jsonl", '{"prompt": "<mask> \\ud800"}', r"line 1 is not a prompt.*surrogates"),
        ("p.jsonl", '{"prompt": "no mask"}', r"line 1 holds no <mask>"),
    ],
)
def test_bad_files_of_prompts_are_named(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    """The error names the file, the line and what to write."""
    with pytest.raises(UserError, match=problem) as error:
        read_probes(_file(tmp_path, name, content))
    assert error.value.remedy in {
        "give a text file in UTF-8",
        "write <mask> exactly once per line",
        "write one prompt with <mask> per line",
        'write {"prompt": "... <mask> ...", "expected": "..."}',
    }


def test_a_missing_file_of_prompts_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        read_probes(tmp_path / "none.txt")
