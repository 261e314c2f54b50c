"""The embedded data set: ELI5's schema, enough prose, no templates, and real in its mess."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from datasets import load_dataset

from mlmrepro.config import EMBEDDED, GuideConfig

pytestmark = pytest.mark.quick

PATH = EMBEDDED / "data" / "askscience.jsonl"

# The example that the guide prints, field by field.
SCHEMA: dict[str, Any] = {
    "q_id": str,
    "title": str,
    "selftext": str,
    "document": str,
    "subreddit": str,
    "answers": {"a_id": list, "score": list, "text": list},
    "title_urls": {"url": list},
    "selftext_urls": {"url": list},
    "answers_urls": {"url": list},
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


def texts(rows: Iterable[dict[str, Any]]) -> list[str]:
    return [text for row in rows for text in (row["title"], row["selftext"], *row["answers"]["text"])]


def repeated_share(passages: Iterable[str], length: int = 8) -> float:
    """Return the share of word sequences of this length that occur more than once."""
    counts: Counter[tuple[str, ...]] = Counter()
    for passage in passages:
        words = re.findall(r"\w+", passage.lower())
        counts.update(zip(*(words[start:] for start in range(length)), strict=False))
    total = sum(counts.values())
    assert total, "no sequence was counted"
    return sum(count for count in counts.values() if count > 1) / total


def test_rows_have_eli5s_schema(rows: list[dict[str, Any]]) -> None:
    """Every row has exactly the fields and types of the guide's example."""
    for row in rows:
        assert list(row) == list(SCHEMA)
        for name, kind in SCHEMA.items():
            if isinstance(kind, dict):
                assert {key: type(value) for key, value in row[name].items()} == kind
            else:
                assert type(row[name]) is kind
        answers = row["answers"]
        assert len(answers["a_id"]) == len(answers["score"]) == len(answers["text"])
        assert all(type(score) is int for score in answers["score"])


def test_the_library_reads_the_same_schema(tmp_path: Any) -> None:
    """Loaded as the guide loads it, the columns have ELI5's Arrow types."""
    files = {"train_asks": str(PATH)}
    loaded = load_dataset("json", data_files=files, split="train_asks[:5000]", cache_dir=str(tmp_path))
    types = {f.name: re.sub("element: ", "item: ", str(f.type)) for f in loaded.flatten().features.arrow_schema}
    assert types["answers.text"] == types["answers.a_id"] == "list<item: string>"
    assert types["title_urls.url"] == types["selftext_urls.url"] == types["answers_urls.url"] == "list<item: string>"
    assert types["answers.score"] in ("list<item: int64>", "list<item: int32>")
    assert {types[name] for name in ("q_id", "title", "selftext", "document", "subreddit")} == {"string"}


def test_there_is_enough_of_it(rows: list[dict[str, Any]]) -> None:
    """At least 300 questions with 1 to 4 answers each and 45,000 words; no identifier twice."""
    assert len(rows) >= 300
    assert {len(row["answers"]["text"]) for row in rows} == {1, 2, 3, 4}
    assert sum(len(text.split()) for text in texts(rows)) >= 45_000
    for ids in ([row["q_id"] for row in rows], [i for row in rows for i in row["answers"]["a_id"]]):
        assert len(set(ids)) == len(ids)


def test_it_is_as_messy_as_real_data(rows: list[dict[str, Any]]) -> None:
    """Short replies, URL marks, newlines, units, formulae, Unicode, empty self texts and one empty answer occur."""
    answers = [text for row in rows for text in row["answers"]["text"]]
    assert sum(not text for text in answers) == 1
    assert sum(0 < len(text.split()) <= 15 for text in answers) >= 20
    assert sum("\n" in text for text in answers) >= 50
    assert sum(not row["selftext"] for row in rows) >= 50
    assert sum("_URL_" in text for text in texts(rows)) >= 20
    for pattern in (r"\d (km|m|°C|kg|Hz|nm)\b", r"[₀-₉²³⁰-⁹]", r"[=×≈]", r"[éöüñ“”–]"):
        assert sum(bool(re.search(pattern, text)) for text in texts(rows)) >= 10, pattern
    for row in rows:
        marks = {name: len(set(re.findall(r"_URL_\d", row[name]))) for name in ("title", "selftext")}
        assert {name: len(row[f"{name}_urls"]["url"]) for name in marks} == marks


def test_it_is_not_made_of_templates(rows: list[dict[str, Any]]) -> None:
    """Under 1 % of its 8-word sequences occur twice."""
    assert repeated_share(texts(rows)) < 0.01


def test_templates_would_be_seen(rows: list[dict[str, Any]]) -> None:
    """The same measure rejects prose in which every fifth passage opens with one stock phrase."""
    opening = "That is a great question and the short answer to it is that "
    stock = [opening + text if number % 5 == 0 else text for number, text in enumerate(texts(rows))]
    assert repeated_share(stock) > 0.01


def test_the_prompt_is_not_answered_in_it(rows: list[dict[str, Any]]) -> None:
    """The sentence that the guide fills does not stand in the text that the model is fine-tuned on."""
    beginning = GuideConfig().prompt.split("<mask>")[0].strip().lower()
    assert not [text for text in texts(rows) if beginning in text.lower()]
