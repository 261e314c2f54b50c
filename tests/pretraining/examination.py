"""A fill-mask examination: sentences with one clear answer, and how often a checkpoint gives it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MASK", "Question", "answers", "examine", "read_questions", "repeats"]

QUESTIONS = Path(__file__).with_name("examination.toml")
MASK = "<mask>"


@dataclass(frozen=True)
class Question:
    """One sentence with one `<mask>`, and the spellings of its answer."""

    sentence: str
    accepted: tuple[str, ...]


def read_questions(half: str, path: Path = QUESTIONS) -> list[Question]:
    """Return the questions of a half, "open" or "sealed"."""
    with path.open("rb") as file:
        return [Question(sentence, tuple(accepted)) for sentence, *accepted in tomllib.load(file)[half]]


def repeats(answer: str, sentence: str) -> bool:
    """Tell whether an answer is a word of the sentence, in any case."""
    return answer.strip().lower() in re.findall(r"\w+", sentence.replace(MASK, " ").lower())


def answers(model: Any, tokenizer: Any, questions: Iterable[Question], top: int = 5) -> list[list[str]]:
    """Return the most probable words for the mask of each question, best first.

    The first one is the most probable token, as the fill-mask pipeline gives it.
    """
    import torch

    model.eval()
    device = next(model.parameters()).device
    found = []
    for question in questions:
        inputs = tokenizer(question.sentence, return_tensors="pt").to(device)
        with torch.no_grad():
            logits = model(**inputs).logits[0][inputs["input_ids"][0] == tokenizer.mask_token_id]
        found.append([tokenizer.decode([token]).strip() for token in logits[0].topk(top).indices.tolist()])
    return found


def examine(model: Any, tokenizer: Any, half: str) -> dict[str, float]:
    """Return the accuracy at 1 and at 5, and the share of first answers that repeat a word of their sentence."""
    questions = read_questions(half)
    found = answers(model, tokenizer, questions)
    count = len(questions)
    return {
        "questions": count,
        "accuracy_at_1": sum(words[0] in q.accepted for q, words in zip(questions, found, strict=True)) / count,
        "accuracy_at_5": sum(
            any(word in q.accepted for word in words) for q, words in zip(questions, found, strict=True)
        )
        / count,
        "repeated_words": sum(repeats(words[0], q.sentence) for q, words in zip(questions, found, strict=True)) / count,
    }
