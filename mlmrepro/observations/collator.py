"""The collator: its numpy form, whole words, padding, arguments, and which tokens may be selected and inserted."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from mlmrepro.config import IGNORE_INDEX, TRAINER_SEED
from mlmrepro.guide.observe import digest
from mlmrepro.observations.observation import attempt, observation, seeded, values
from mlmrepro.observations.result import Value
from mlmrepro.observations.subject import Subject

__all__ = ["arguments", "numpy_batches", "own_seed", "padding", "random_tokens", "special_positions", "whole_words"]

TEXT = "The Milky Way is a spiral galaxy, and the Sun is one of its many unremarkable stars."


def _rows(subject: Subject, count: int = 4) -> list[dict[str, Any]]:
    return [{"input_ids": list(subject.tokenizer(TEXT)["input_ids"])} for _ in range(count)]


def _collator(subject: Subject, **options: Any) -> Any:
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer=subject.tokenizer, **options)


def _content(batch: Any) -> str:
    return digest([batch[name].tolist() for name in ("input_ids", "labels")])


@observation("masked_batches")
def numpy_batches(subject: Subject) -> Iterator[Value]:
    """The numpy form: its draw under one seed, its types, and whether a second draw differs."""
    with seeded(TRAINER_SEED):
        collator = _collator(subject, return_tensors="np")
        batch = collator(_rows(subject))
        second = collator(_rows(subject))
    yield from values(
        {
            "draw": _content(batch),
            "types": {name: str(batch[name].dtype) for name in ("input_ids", "labels")},
            "selected": int((batch["labels"] != IGNORE_INDEX).sum()),
            "second_draw_differs": _content(batch) != _content(second),
        }
    )


@observation("masked_batches")
def random_tokens(subject: Subject) -> Iterator[Value]:
    """With 99 % of the tokens selected: how many get a random one, how many of these are special, and the draw."""
    with seeded(TRAINER_SEED):
        batch = _collator(subject, mlm_probability=0.99)(_rows(subject, 200))
    ids, labels = batch["input_ids"], batch["labels"]
    chosen = labels != IGNORE_INDEX
    drawn = ids[chosen & (ids != subject.tokenizer.mask_token_id) & (ids != labels)]
    yield from values(
        {
            "random": int(drawn.numel()),
            "special_among_random": int(sum(int((drawn == i).sum()) for i in subject.tokenizer.all_special_ids)),
            "draw": _content(batch),
        }
    )


@observation("masked_batches")
def whole_words(subject: Subject) -> Iterator[Value]:
    """The whole-word collator on this tokenizer: outcome, and what is selected."""

    def look(framework: str) -> Any:
        from transformers import DataCollatorForWholeWordMask  # type: ignore[attr-defined]

        with seeded(TRAINER_SEED):
            collator = DataCollatorForWholeWordMask(tokenizer=subject.tokenizer, return_tensors=framework)
            batch = collator(_rows(subject))
        return [int((batch["labels"] != IGNORE_INDEX).sum()), _content(batch)]

    yield from values({"torch": attempt(lambda: look("pt")), "numpy": attempt(lambda: look("np"))})


@observation("masked_batches")
def padding(subject: Subject) -> Iterator[Value]:
    """Shapes and labels of rows of unequal length, also padded to a multiple of 8."""
    rows = _rows(subject, 2)
    rows[1] = {"input_ids": rows[1]["input_ids"][:5]}
    with seeded(TRAINER_SEED):
        batch = _collator(subject, pad_to_multiple_of=8)(rows)
        lists = attempt(lambda: list(_collator(subject)([row["input_ids"] for row in rows])["input_ids"].shape))
    yield from values(
        {
            "shape": list(batch["input_ids"].shape),
            "selected_pads": int((batch["labels"][1, 5:] != IGNORE_INDEX).sum()),
            "keys": sorted(batch.keys()),
            "of_lists": lists,
        }
    )


@observation("masked_batches")
def special_positions(subject: Subject) -> Iterator[Value]:
    """Whether the draw is the same with a special-tokens mask in the rows as with one that the collator makes."""
    rows = _rows(subject)
    given = [
        row | {"special_tokens_mask": subject.tokenizer.get_special_tokens_mask(row["input_ids"], None, True)}
        for row in rows
    ]
    draws = []
    for batch in (rows, given):
        with seeded(TRAINER_SEED):
            draws.append(_content(_collator(subject)(batch)))
    yield from values({"same_draw": draws[0] == draws[1]})


@observation("masked_batches")
def arguments(subject: Subject) -> Iterator[Value]:
    """The collator's arguments and their defaults."""
    from transformers import DataCollatorForLanguageModeling

    known = inspect.signature(DataCollatorForLanguageModeling).parameters
    names = (
        "mlm",
        "mlm_probability",
        "mask_replace_prob",
        "random_replace_prob",
        "whole_word_mask",
        "seed",
        "tf_experimental_compile",
    )
    yield from values({name: repr(known[name].default) if name in known else "absent" for name in names})


@observation("masked_batches")
def own_seed(subject: Subject) -> Iterator[Value]:
    """Whether the collator takes a seed of its own, and whether it then leaves the global generator alone."""
    import torch

    def look() -> Any:
        collator = _collator(subject, seed=7)
        before = torch.get_rng_state()
        batch = collator(_rows(subject))
        return [_content(batch), bool(torch.equal(before, torch.get_rng_state()))]

    yield from values({"draw": attempt(look)})
