"""Observations in pytest: each one of a checkpoint is a test item, next to the project's own tests.

Imported only if ``--mlm-observe`` is given; the libraries are imported when the first item runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from mlmrepro.pytest_plugin.items import AddedItems, fail, in_words

if TYPE_CHECKING:
    from mlmrepro.compare.judge import Expectations
    from mlmrepro.compare.store import GoldenStore
    from mlmrepro.observations.adopt import Adopted
    from mlmrepro.observations.observation import Observer
    from mlmrepro.observations.result import ObservationResult
    from mlmrepro.observations.subject import Subject

__all__ = ["Checkpoint", "ObservationItem", "ObservationSession", "Observations"]

MARKERS = (
    "mlm_observe: an observation of a checkpoint, collected by --mlm-observe",
    "mlm_slow: an observation that starts worker processes",
)


class ObservationSession(AddedItems):
    """Adds the observations of each checkpoint to the collected tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.project = ""  # the project's own goldens, in words
        given = [name or self._of_project(config) for name in config.getoption("--mlm-observe")]
        self.checkpoints = list(dict.fromkeys(given))
        self.text = config.getoption("--mlm-text")
        if self.text and not self.checkpoints:
            raise pytest.UsageError("--mlm-text needs --mlm-observe DIR, the checkpoint to observe")
        for marker in MARKERS:
            config.addinivalue_line("markers", marker)

    def _of_project(self, config: pytest.Config) -> str:
        """Return the goldens that the project's pyproject.toml names, as a path from the working directory."""
        from mlmrepro.errors import UserError
        from mlmrepro.pyproject import project

        here = config.invocation_params.dir
        try:
            found = project(here)
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        if found is None or found.goldens is None:
            remedy = 'give a folder, or write goldens = "golden/my-model" below [tool.mlmrepro] in pyproject.toml'
            raise pytest.UsageError(f"--mlm-observe names no checkpoint: {remedy}")
        self.project = found.origin
        return os.path.relpath(found.goldens, here)

    def pytest_report_header(self) -> list[str]:
        """Return which goldens are observed if pyproject.toml names them."""
        return [f"goldens: {self.project}"] if self.project else []

    def collector(self, session: pytest.Session) -> Observations:
        """Return the collector of the checkpoints."""
        return Observations.from_parent(session, name="mlm-observe", nodeid="mlm-observe", given=self)


class Observations(pytest.Collector):
    """Collects the checkpoints; it has a name but no file."""

    def __init__(self, *, given: ObservationSession, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.given = given

    def collect(self) -> Iterator[pytest.Collector]:
        """Iterate over the checkpoints."""
        for name in self.given.checkpoints:
            yield Checkpoint.from_parent(self, name=name, text=self.given.text or "embedded")


class Checkpoint(pytest.Collector):
    """Collects the observations of one checkpoint, and holds it for them."""

    def __init__(self, *, text: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.text = text

    def collect(self) -> Iterator[pytest.Item]:
        """Iterate over the observations: those with bounds, and for a checkpoint with goldens all of them."""
        from mlmrepro.errors import UserError
        from mlmrepro.observations.registry import all_observers, bounded_observers

        try:
            observers = bounded_observers() if self.goldens is None else all_observers()
        except UserError as error:
            raise self.CollectError(str(error)) from None
        for observer in observers:
            yield ObservationItem.from_parent(self, name=observer.key, observer=observer)

    @cached_property
    def adopted(self) -> Adopted | None:
        """The checkpoint that `mlmrepro adopt` made these goldens of, None if the name is that of a checkpoint."""
        from mlmrepro.observations.adopt import read_subject

        return read_subject(self.config.invocation_params.dir / self.name)

    @cached_property
    def folder(self) -> Path | None:
        """The folder of the goldens: those shipped for the embedded checkpoint, or adopted ones."""
        from mlmrepro.config import golden_directory

        if self.name == "embedded":
            return golden_directory()
        return None if self.adopted is None else self.adopted.folder

    @cached_property
    def goldens(self) -> Expectations | None:
        """The goldens of the checkpoint, None if there are none."""
        from mlmrepro.compare.judge import Expectations

        return None if self.folder is None else Expectations.from_goldens(self.folder)

    @cached_property
    def store(self) -> GoldenStore:
        """The files of these goldens."""
        from mlmrepro.compare.store import GoldenStore

        assert self.folder is not None
        return GoldenStore(self.folder, self.config.getoption("--golden-update"))

    @cached_property
    def subject(self) -> Subject:
        """The checkpoint, loaded when the first observation needs it; raises UserError for bad input."""
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the bounds are for the CPU
        from mlmrepro import loading
        from mlmrepro.config import EMBEDDED, GuideConfig
        from mlmrepro.observations.adopt import DATA
        from mlmrepro.observations.observe import sample
        from mlmrepro.observations.subject import Subject

        here, column = self.config.invocation_params.dir, None
        path = EMBEDDED / "checkpoint" if self.name == "embedded" else here / self.name
        place = str(path) if path.is_dir() else self.name  # a name that is not a folder is a hub name
        text = here / self.text
        source = str(text) if text.exists() else self.text
        if self.adopted:
            self.adopted.check()
            place, source = self.adopted.checkpoint, str(self.adopted.folder / "inputs" / DATA)
            column = GuideConfig.text_column
        loading.inspect(place)
        texts, _ = sample(source, column=column)
        folder = TemporaryDirectory(prefix="mlmrepro-")
        self.session.config.add_cleanup(folder.cleanup)
        return Subject(place, texts, Path(folder.name), inputs=self.folder and self.folder / "inputs")


class ObservationItem(pytest.Item):
    """Makes one observation; a broken bound or a value other than its golden fails, a declared change is an xfail."""

    def __init__(self, *, observer: Observer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observer = observer
        self.add_marker("mlm_observe")
        if observer.slow:
            self.add_marker("mlm_slow")
        self.extra_keyword_matches |= {observer.group, observer.stage, observer.name}

    @property
    def checkpoint(self) -> Checkpoint:
        """The collector that holds the checkpoint."""
        assert isinstance(self.parent, Checkpoint)
        return self.parent

    def setup(self) -> None:
        """Load the checkpoint, so that bad input is an error of the test."""
        from mlmrepro.errors import UserError

        try:
            _ = self.checkpoint.subject
        except UserError as error:
            fail(str(error))

    def runtest(self) -> None:
        """Observe, and judge bounds and goldens."""
        from mlmrepro.observations.observe import observe, silenced
        from mlmrepro.observations.result import BoundVerdict
        from mlmrepro.report.document import Items
        from mlmrepro.report.laws import result_item
        from mlmrepro.report.terminal import print_blocks

        with silenced():
            result = observe(self.observer, self.checkpoint.subject)
        goldens = self.checkpoint.goldens
        accepted = goldens is not None and self._accepted(goldens, result)
        if self.observer.has_bounds and result.verdict.fails and not accepted:
            fail(in_words(print_blocks, [Items([result_item(result)])]))
        compared = [] if goldens is None else list(self._against(goldens, result))
        if differing := [line for line, declared in compared if not declared]:
            fail("\n".join([result.claim, *differing]))
        if result.verdict is BoundVerdict.NOT_APPLICABLE and not result.values:
            pytest.skip(f"not applicable: {result.problem}")
        reasons = [f"{result.known} {result.link}"] if result.known else []
        reasons += ["outside its bound since the checkpoint was adopted"] if accepted else []
        reasons += dict.fromkeys(declared for _, declared in compared)
        if reasons:
            pytest.xfail("; ".join(reasons))

    def reportinfo(self) -> tuple[os.PathLike[str], None, str]:
        """Return the headline of a failure: what was observed, without a line number."""
        return self.path, None, f"{self.name} of {self.checkpoint.name}"

    def _accepted(self, goldens: Expectations, result: ObservationResult) -> bool:
        """Return whether all that is outside its bound was so when the checkpoint was adopted."""
        prefix = f"{result.stage}.off_path.{result.name}"
        broken = {f"{prefix}.{each.slug}": each.value for each in result.broken}
        if result.outcome:
            broken[f"{prefix}.outcome"] = result.outcome
        return bool(broken) and all(goldens.accepts(name, value) for name, value in broken.items())

    def _against(self, goldens: Expectations, result: ObservationResult) -> Iterator[tuple[str, str]]:
        """Yield a line for each value that is not that of the golden's own versions, and the declared reason if any.

        With ``--golden-update``, values are written to the goldens as those of the `golden` fixture are.
        """
        from mlmrepro.compare.store import Obtained
        from mlmrepro.record import Lane

        store, key, prefix = self.checkpoint.store, f"{result.stage}.json", f"off_path.{result.name}."
        found = [
            Obtained(f"{prefix}{each.slug}", each.value, each.lane, quantity=each.quantity)
            for each in result.values
            if each.lane.compared
        ]
        if result.outcome and not self.observer.has_bounds:
            found.append(Obtained(f"{prefix}outcome", result.outcome, Lane.EXACT))
        known = {name for name in goldens.entries.get(result.stage, {}) if name.startswith(prefix)}
        missing = [each for each in found if each.name not in known and not store.update]
        for each in missing:
            yield f"{each.name}: there is no golden; --golden-update=new writes it", ""
        for problem in store.problems(key, [each for each in found if each not in missing]):
            yield problem, ""
        gone = sorted(known - {each.name for each in found})
        if store.update == "all":
            store.remove([(key, name) for name in gone])
        else:
            yield from ((f"{name}: expected, not obtained", "") for name in gone)
        for declared in store.declared:
            if declared.file == key and declared.name.startswith(prefix):
                yield declared.name, f"{declared.reason} {declared.link}"
