"""Faults of the data: how it is loaded, split and flattened, and which rows of it are evaluated."""

from __future__ import annotations

import html
import os
import random
import re
from collections.abc import Callable
from typing import Any

from datasets import Dataset, Value, concatenate_datasets
from torch.utils.data import ConcatDataset, RandomSampler, Subset
from transformers import Trainer

from mlmrepro.guide import dataset
from tests.faults.case import Case
from tests.faults.catalogue.planting import change_answers, change_parts, choose_rows
from tests.faults.fault import Severity, fault, graded

__all__: list[str] = []


def _each_answer(case: Case, change: Callable[[str], str]) -> None:
    change_answers(case, lambda texts: [change(text) for text in texts])


# dataset


@fault("dataset", Severity.SERIOUS)
def split_unseeded(case: Case) -> None:
    """A script draws its split from the operating system's entropy, so that no two runs hold out the same rows."""
    entropy = int.from_bytes(os.urandom(4), "big")
    case.set(dataset, "split", lambda rows, test_size: rows.train_test_split(test_size=test_size, seed=entropy))


@fault("dataset", Severity.SUBTLE)
def split_with_a_seed_of_its_own(case: Case) -> None:
    """A user gives train_test_split a seed, which draws other rows than the global generator does."""
    case.set(dataset, "split", lambda rows, test_size: rows.train_test_split(test_size=test_size, seed=0))


@fault("dataset", Severity.SERIOUS)
def split_not_shuffled(case: Case) -> None:
    """A user switches shuffling off, so that the last rows of the file are the test rows."""
    case.set(dataset, "split", lambda rows, test_size: rows.train_test_split(test_size=test_size, shuffle=False))


@fault("dataset", Severity.SUBTLE)
def a_quarter_held_out(case: Case) -> None:
    """Another library's default of a quarter of the rows is taken for the test split."""
    case.wrap(dataset, "split", lambda original: lambda rows, test_size: original(rows, 0.25))


@fault("dataset", Severity.FATAL)
def held_out_rows_leak_into_training(case: Case) -> None:
    """A script trains on all rows after it has set some of them aside."""
    change_parts(case, lambda train, test: (concatenate_datasets([train, test]), test))


@fault("dataset", Severity.SERIOUS)
def one_training_row_leaks_into_test(case: Case) -> None:
    """A refactoring of the split takes one row too many into the test rows."""
    change_parts(case, lambda train, test: (train, concatenate_datasets([test, train.select([0])])))


@fault("dataset", Severity.FATAL)
def splits_swapped(case: Case) -> None:
    """A user unpacks the split in the wrong order and trains on the small part."""
    change_parts(case, lambda train, test: (test, train))


@fault("dataset", Severity.SUBTLE)
def last_row_dropped(case: Case) -> None:
    """A slice whose end is meant to be included stops one row early."""
    choose_rows(case, lambda count: list(range(count - 1)))


@fault("dataset", Severity.SERIOUS)
def rows_doubled(case: Case) -> None:
    """An upload lists the same shard twice, so that every row is loaded twice and half of the test rows are known."""
    choose_rows(case, lambda count: [*range(count), *range(count)])


@fault("dataset", Severity.SUBTLE)
def rows_sorted(case: Case) -> None:
    """A new revision of the data set comes sorted by its identifiers."""
    case.after(dataset, "load", lambda rows: rows.sort("q_id"))


@fault("dataset", Severity.SUBTLE)
def last_rows_for_the_first(case: Case) -> None:
    """A user reads the slice from the end of the file."""

    def make(original: Any) -> Any:
        return lambda name, split, *args: original(name, re.sub(r"\[:(\d+)\]", r"[-\1:]", split), *args)

    case.wrap(dataset, "load", make)


@fault("dataset", Severity.SERIOUS)
def questions_without_text_filtered(case: Case) -> None:
    """A cleaning step throws out every question whose own text is empty."""
    case.after(dataset, "load", lambda rows: rows.filter(lambda row: bool(row["selftext"])))


@graded("dataset", Severity.SERIOUS, sizes=(0.001, 0.01, 0.05, 0.1, 0.2, 0.5), required=(0.2, 0.5), unit="of the rows")
def rows_lost(case: Case, share: float) -> None:
    """A download that is cut off now and then loses some of the rows."""
    # Evenly, so that it hangs on no draw: of the golden run's 12 rows and the 40 of a law.
    choose_rows(case, lambda count: [row for row in range(count) if int((row + 1) * share) == int(row * share)])


# flatten


@fault("flatten", Severity.SERIOUS)
def only_the_first_answer_flattened(case: Case) -> None:
    """A release that reads a sequence of structures as one structure keeps the first answer of each question."""
    change_answers(case, lambda texts: texts[:1])


@fault("flatten", Severity.SUBTLE)
def answers_in_other_order(case: Case) -> None:
    """A release gives the elements of a nested list back in reverse."""
    change_answers(case, lambda texts: texts[::-1])


@fault("flatten", Severity.SERIOUS)
def text_lower_cased(case: Case) -> None:
    """A preparation step that was written for an uncased model lower-cases the text."""
    _each_answer(case, str.lower)


@fault("flatten", Severity.SUBTLE)
def newlines_lost(case: Case) -> None:
    """A cleaning step puts a space in place of every line break."""
    _each_answer(case, lambda text: text.replace("\n", " "))


@fault("flatten", Severity.SUBTLE)
def text_stripped_of_marks(case: Case) -> None:
    """A conversion through ASCII drops every letter and sign outside it."""
    _each_answer(case, lambda text: text.encode("ascii", "ignore").decode())


@fault("flatten", Severity.SERIOUS)
def text_read_as_latin(case: Case) -> None:
    """A file in UTF-8 is read as if it were in Latin-1."""
    _each_answer(case, lambda text: text.encode().decode("latin-1"))


@fault("flatten", Severity.SUBTLE)
def text_escaped_as_html(case: Case) -> None:
    """A dump that was made for web pages keeps its character references in the text."""
    _each_answer(case, html.escape)


@fault("flatten", Severity.SERIOUS)
def text_cut_at_a_limit(case: Case) -> None:
    """An export through a spreadsheet cuts every cell after 255 characters."""
    _each_answer(case, lambda text: text[:255])


@fault("flatten", Severity.SUBTLE)
def nested_field_lost(case: Case) -> None:
    """A reader that keeps declared columns only drops the scores of the answers."""
    case.after(dataset, "flatten", lambda flat: flat.remove_columns("answers.score"))


@fault("flatten", Severity.FATAL)
def names_joined_by_underscores(case: Case) -> None:
    """A release joins the names of nested columns by an underscore in place of the dot."""

    def renamed(flat: Any) -> Any:
        return flat.rename_columns({name: name.replace(".", "_") for name in flat["train"].column_names})

    case.after(dataset, "flatten", renamed)


@fault("flatten", Severity.SUBTLE)
def columns_in_other_order(case: Case) -> None:
    """A release sorts the columns by name when it flattens them."""
    case.after(dataset, "flatten", lambda flat: flat.select_columns(sorted(flat["train"].column_names)))


@fault("flatten", Severity.SUBTLE)
def empty_text_becomes_null(case: Case) -> None:
    """A round trip through a data frame turns empty strings into missing values."""
    case.after(dataset, "flatten", lambda flat: flat.map(lambda row: {"selftext": row["selftext"] or None}))


@fault("flatten", Severity.SUBTLE)
def numbers_become_text(case: Case) -> None:
    """A round trip through CSV leaves the scores as strings."""
    case.after(dataset, "flatten", lambda flat: flat.cast_column("answers.score", [Value("string")]))


@fault("flatten", Severity.SERIOUS)
def rows_shuffled_while_flattening(case: Case) -> None:
    """A release flattens in parallel and gives the rows back as they are done."""
    case.after(dataset, "flatten", lambda flat: flat.shuffle(seed=0))


@graded(
    "flatten",
    Severity.SUBTLE,
    sizes=(1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1),
    required=(1e-3, 0.01, 0.1),
    unit="of the characters",
)
def characters_lost(case: Case, share: float) -> None:
    """A filter for control characters takes some ordinary ones away too."""

    def thinned(text: str) -> str:
        draw = random.Random(text)
        return "".join(character for character in text if draw.random() >= share)

    _each_answer(case, thinned)


# evaluation: what is evaluated


def _evaluated_rows(case: Case, change: Any) -> None:
    """Let `change(Trainer, its rows)` be the rows that are evaluated."""

    def make(original: Any) -> Any:
        def get_eval_dataloader(self: Any, eval_dataset: Any = None) -> Any:
            return original(self, change(self, self.eval_dataset if eval_dataset is None else eval_dataset))

        return get_eval_dataloader

    case.wrap(Trainer, "get_eval_dataloader", make)


def _part(rows: Any, stop: int) -> Any:
    return rows.select(range(stop)) if isinstance(rows, Dataset) else Subset(rows, range(stop))


@fault("evaluation", Severity.FATAL)
def training_rows_evaluated(case: Case) -> None:
    """A script evaluates on the rows that the model has just been trained on."""
    _evaluated_rows(case, lambda trainer, rows: trainer.train_dataset)


@fault("evaluation", Severity.SUBTLE)
def evaluated_rows_doubled(case: Case) -> None:
    """A sampler for several devices repeats the rows to make them even."""

    def doubled(trainer: Any, rows: Any) -> Any:
        return concatenate_datasets([rows, rows]) if isinstance(rows, Dataset) else ConcatDataset([rows, rows])

    _evaluated_rows(case, doubled)


@fault("evaluation", Severity.SUBTLE)
def last_evaluated_batch_dropped(case: Case) -> None:
    """An option that is meant for training drops the last, smaller batch of the evaluation too."""

    def whole(trainer: Any, rows: Any) -> Any:
        size = trainer.args.eval_batch_size
        return _part(rows, len(rows) // size * size or len(rows))

    _evaluated_rows(case, whole)


@fault("evaluation", Severity.SERIOUS)
def half_of_the_rows_evaluated(case: Case) -> None:
    """A limit that was set to try a script out is still in it."""
    _evaluated_rows(case, lambda trainer, rows: _part(rows, (len(rows) + 1) // 2))


@fault("evaluation", Severity.SUBTLE)
def evaluated_in_random_order(case: Case) -> None:
    """A release shuffles the rows of the evaluation."""
    case.set(Trainer, "_get_eval_sampler", lambda self, rows: RandomSampler(rows))


@fault("evaluation", Severity.SERIOUS)
def evaluated_at_another_rate(case: Case) -> None:
    """A script has a collator of its own for the evaluation, with twice the masks."""

    def make(original: Any) -> Any:
        def get_eval_dataloader(self: Any, *args: Any) -> Any:
            collator = self.data_collator
            rate = getattr(collator, "mlm_probability", None)
            if rate is None:
                return original(self, *args)
            self.data_collator = type(collator)(tokenizer=collator.tokenizer, mlm_probability=2 * rate)
            try:
                return original(self, *args)
            finally:
                self.data_collator = collator

        return get_eval_dataloader

    case.wrap(Trainer, "get_eval_dataloader", make)
