"""Observe a subject: each observation is made and timed on its own, and its bounds get a verdict."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlmrepro import loading
from mlmrepro.compare.declare import Known, known_breach
from mlmrepro.errors import UserError, first_line
from mlmrepro.guide.observe import captured_warnings, preserved_generators
from mlmrepro.observations.observation import NotApplicable, Observer
from mlmrepro.observations.registry import bounded_observers
from mlmrepro.observations.result import BoundVerdict, ObservationResult, Value
from mlmrepro.observations.subject import Subject
from mlmrepro.provenance import package_versions
from mlmrepro.record import STAGES, Bound, Lane, RunRecord
from mlmrepro.scoring.documents import read_text

__all__ = ["FEWEST_TEXTS", "FEWEST_WORDS", "observe", "observe_all", "observe_into", "sample", "silenced"]

_TEXTS, _WORDS = 8, 60  # enough for ragged batches, few enough for a CPU
FEWEST_TEXTS, FEWEST_WORDS = 4, 6


def sample(source: str, *, column: str | None = None, skip: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the beginnings of some documents, without the first `skip`, and notes on how the source was read.

    Documents are read as by `scoring.documents.read_text`; a note says, for example, which column holds the text.
    Raises UserError if there is too little text.
    """
    text = read_text(source, column=column, limit=skip + 4 * _TEXTS)
    begun = (" ".join(document.text.split()[:_WORDS]) for document in text.documents[skip:])
    texts = tuple(each for each in begun if len(each.split()) >= FEWEST_WORDS)[:_TEXTS]
    if len(texts) < FEWEST_TEXTS:
        raise UserError(
            f"{source} has {len(texts)} texts of at least {FEWEST_WORDS} words, but {FEWEST_TEXTS} are needed",
            remedy="pass a larger file to --text, or leave --text out",
        )
    return texts, text.notes


def observe_all(
    checkpoint: str,
    texts: Sequence[str],
    *,
    observers: Sequence[Observer] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> list[ObservationResult]:
    """Make each observation (default: those with bounds) of a checkpoint and some texts, and judge the bounds.

    The result of an observation that cannot be made says why. `seed` is used by those that draw random inputs. Raises
    UserError if none can be made.
    """
    loading.inspect(checkpoint)
    results = []
    with tempfile.TemporaryDirectory(prefix="mlmrepro-") as folder, silenced():
        subject = Subject(checkpoint, tuple(texts), Path(folder), seed)
        for each in bounded_observers() if observers is None else observers:
            progress(each.name)
            results.append(observe(each, subject))
    if results and all(result.verdict is BoundVerdict.UNMEASURED for result in results):
        raise UserError(f"nothing could be observed: {results[0].problem}", remedy="fix this first")
    return results


def observe(
    observer: Observer, subject: Subject, *, versions: Mapping[str, str | None] | None = None
) -> ObservationResult:
    """Make one observation and judge its bounds; an exception is recorded in the result, not raised.

    The random generators, torch's threads and its gradient mode are restored afterwards.
    """
    started = time.perf_counter()
    found: list[Value] = []
    problem, verdict = "", None
    with _undisturbed():
        try:
            found.extend(observer.look(subject))
        except NotApplicable as reason:
            problem, verdict = str(reason), BoundVerdict.NOT_APPLICABLE
        except UserError as error:
            problem, verdict = str(error), BoundVerdict.UNMEASURED
        except Exception as error:  # an error that the libraries must not raise breaks the bounds too
            problem = f"raises {type(error).__name__}: {first_line(error)}"
            verdict = BoundVerdict.BROKEN if observer.has_bounds else BoundVerdict.UNMEASURED
    if len({each.slug for each in found}) < len(found):
        raise ValueError(f"two values of {observer.key} have the same name")
    broken = [each for each in found if not each.holds]
    reasons: list[Known] = []
    if broken and verdict in (None, BoundVerdict.NOT_APPLICABLE):
        known = [_known(observer, each, subject, versions or package_versions()) for each in broken]
        reasons = [each for each in known if each is not None]
        verdict = BoundVerdict.KNOWN if len(reasons) == len(broken) else BoundVerdict.BROKEN
    elif verdict is None:
        measured = any(each.bound for each in found) or (found and not observer.has_bounds)
        verdict = BoundVerdict.HOLDS if measured else BoundVerdict.UNMEASURED
        problem = "" if measured else "it measured nothing"
    declared = reasons if verdict is BoundVerdict.KNOWN else []
    return ObservationResult(
        observer.name,
        observer.group,
        observer.stage,
        observer.claim,
        observer.source,
        observer.cause,
        verdict,
        tuple(found),
        problem,
        " ".join(dict.fromkeys(each.reason for each in declared)),
        " ".join(dict.fromkeys(each.link for each in declared)),
        round(time.perf_counter() - started, 3),
    )


def _known(observer: Observer, found: Value, subject: Subject, versions: Mapping[str, str | None]) -> Known | None:
    return known_breach(f"{observer.key}.{found.slug}", found.value, subject.model_type, versions)


def observe_into(record: RunRecord, subject: Subject, observers: Sequence[Observer]) -> None:
    """Make observations stage by stage, and add their values to a record under ``off_path.``.

    The record says which observations it was asked for. Of the libraries' warnings only deprecations are kept: an
    observation provokes the others on purpose.
    """
    for stage in STAGES:
        with captured_warnings(record, stage, "off_path.warnings", keep=lambda message: "eprecat" in message):
            for each in observers:
                if each.stage == stage:
                    _note(record, each, observe(each, subject))


def _note(record: RunRecord, observer: Observer, result: ObservationResult) -> None:
    record.asked = {**(record.asked or {}), observer.key: result.problem}
    prefix = f"off_path.{observer.name}"
    for each in result.values:
        record.observe(
            observer.stage, f"{prefix}.{each.slug}", each.value, each.lane, each.quantity, each.bound, each.title
        )
    if result.outcome:
        bound = Bound(equals="observed") if observer.has_bounds else Bound()
        lane = Lane.BOUND if bound else Lane.EXACT
        record.observe(observer.stage, f"{prefix}.outcome", result.outcome, lane, bound=bound, title="outcome")


@contextmanager
def silenced() -> Iterator[None]:
    """Silence the warnings of the libraries."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore the global generators, torch's threads and its gradient and deterministic modes afterwards."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with preserved_generators(), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
