"""Check a checkpoint against the laws: each law is measured and timed on its own, and gets a verdict."""

from __future__ import annotations

import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlmrepro import loading
from mlmrepro.compare.golden import holds
from mlmrepro.errors import UserError, first_line
from mlmrepro.laws.law import Law, NotApplicable, all_laws
from mlmrepro.laws.result import LawResult, LawVerdict, Measured
from mlmrepro.laws.subject import Subject
from mlmrepro.provenance import package_versions
from mlmrepro.scoring.documents import read_text

__all__ = ["choose", "run_law", "run_laws", "sample"]

_TEXTS, _WORDS = 8, 60  # enough for ragged batches, few enough for a CPU
_FEWEST_TEXTS, _FEWEST_WORDS = 4, 6


@dataclass(frozen=True)
class Known:
    """A value that some versions are known to give and that breaks a law."""

    law: str
    what: str
    value: Any
    when: tuple[str, ...]
    reason: str
    link: str
    atol: float = 0.0
    models: tuple[str, ...] = ()

    def excuses(self, name: str, measured: Measured, model_type: str, versions: Mapping[str, str | None]) -> bool:
        """Return whether this number of this law is the value declared for these versions."""
        if (name, measured.what) != (self.law, self.what) or (self.models and model_type not in self.models):
            return False
        if isinstance(self.value, (int, float)) and isinstance(measured.value, (int, float)):
            near = abs(measured.value - self.value) <= self.atol
        else:
            near = measured.value == self.value
        return near and all(holds(text, versions) for text in self.when)


@cache
def known_breaches() -> tuple[Known, ...]:
    """Return the breaches that known.toml declares."""
    content = tomllib.loads((Path(__file__).parent / "known.toml").read_text(encoding="utf-8"))
    groups = content["groups"]

    def declared(row: dict[str, Any]) -> Known:
        models = tuple(model for name in row.get("models", ()) for model in groups.get(name, (name,)))
        return Known(**{**row, "when": tuple(row["when"]), "models": models})

    return tuple(declared(row) for row in content["known"])


def choose(names: Sequence[str]) -> list[Law]:
    """Return the laws with these names or in these groups, by default all; raises UserError for an unknown name."""
    laws = all_laws()
    known = {each.name for each in laws} | {each.group for each in laws}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no law or group {unknown[0]!r}", remedy=f"use one of: {', '.join(sorted(known))}")
    return [each for each in laws if not names or each.name in names or each.group in names]


def sample(source: str, *, column: str | None = None, skip: int = 0) -> tuple[str, ...]:
    """Return the beginnings of some documents as `scoring.documents.read_text` reads them, without the first `skip`."""
    return sample_and_notes(source, column=column, skip=skip)[0]


def sample_and_notes(
    source: str, *, column: str | None = None, skip: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the same as `sample`, and notes on how the source was read, such as which column holds the text."""
    text = read_text(source, column=column, limit=skip + 4 * _TEXTS)
    begun = (" ".join(document.text.split()[:_WORDS]) for document in text.documents[skip:])
    return tuple(each for each in begun if len(each.split()) >= _FEWEST_WORDS)[:_TEXTS], text.notes


def run_laws(
    checkpoint: str,
    texts: Sequence[str],
    *,
    laws: Sequence[Law] | None = None,
    seed: int = 0,
    progress: Callable[[Law], None] = lambda law: None,
) -> list[LawResult]:
    """Measure each law on the checkpoint and some texts; the result of a law that cannot be measured says why.

    `seed` is used by laws that draw random inputs. The random generators and torch's threads are restored afterwards.
    Raises UserError for too little text, or if no law can be measured on the checkpoint.
    """
    if len(texts) < _FEWEST_TEXTS:
        raise UserError(
            f"the laws need at least {_FEWEST_TEXTS} texts of at least {_FEWEST_WORDS} words, but got {len(texts)}",
            remedy="pass a larger file to --text, or leave --text out",
        )
    loading.inspect(checkpoint)
    with tempfile.TemporaryDirectory(prefix="mlmrepro-laws-") as folder:
        subject = Subject(checkpoint, tuple(texts), Path(folder), seed)
        results = []
        for each in laws if laws is not None else all_laws():
            progress(each)
            results.append(run_law(each, subject))
    if results and all(result.verdict is LawVerdict.UNMEASURED for result in results):
        raise UserError(f"no law could be measured: {results[0].problem}", remedy="fix this first")
    return results


def run_law(law: Law, subject: Subject, *, versions: Mapping[str, str | None] | None = None) -> LawResult:
    """Measure and judge one law; an exception in the law is recorded in its result, not raised."""
    started = time.perf_counter()
    measured: list[Measured] = []
    problem, verdict = "", None
    with _undisturbed():
        try:
            measured.extend(law.check(subject))
        except NotApplicable as reason:
            problem, verdict = str(reason), LawVerdict.NOT_APPLICABLE
        except UserError as error:
            problem, verdict = str(error), LawVerdict.UNMEASURED
        except Exception as error:  # an error that the libraries must not raise breaks the law too
            problem, verdict = f"raises {type(error).__name__}: {first_line(error)}", LawVerdict.BROKEN
    broken = [each for each in measured if not each.holds]
    reasons: list[Known] = []
    if broken and verdict in (None, LawVerdict.NOT_APPLICABLE):
        found = [_excuse(law.name, each, subject, versions or package_versions()) for each in broken]
        reasons = [each for each in found if each is not None]
        verdict = LawVerdict.KNOWN if len(reasons) == len(broken) else LawVerdict.BROKEN
    elif verdict is None:
        verdict = LawVerdict.HOLDS if any(each.bounded for each in measured) else LawVerdict.UNMEASURED
        problem = "" if verdict is LawVerdict.HOLDS else "it measured nothing"
    excused = reasons if verdict is LawVerdict.KNOWN else []
    return LawResult(
        law.name,
        law.group,
        law.stage,
        law.claim,
        law.source,
        law.cause,
        verdict,
        tuple(measured),
        problem,
        " ".join(dict.fromkeys(each.reason for each in excused)),
        " ".join(dict.fromkeys(each.link for each in excused)),
        round(time.perf_counter() - started, 3),
    )


def _excuse(name: str, measured: Measured, subject: Subject, versions: Mapping[str, str | None]) -> Known | None:
    return next((k for k in known_breaches() if k.excuses(name, measured, subject.model_type, versions)), None)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore the global generators, torch's threads and gradient mode afterwards; silence the libraries' warnings."""
    import torch
    from transformers.utils import logging

    from mlmrepro.guide.observe import preserved_generators

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with preserved_generators(), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
