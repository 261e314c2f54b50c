"""What all items share that are not tests in a file: where they are collected, and how they fail."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NoReturn

import pytest

__all__ = ["AddedItems", "fail", "in_words"]

_WIDTH = 100  # of a failure's message: a worker of pytest-xdist has no terminal to ask


class AddedItems:
    """A plugin that puts a collector after the tests that the arguments name, even if they name none."""

    def collector(self, session: pytest.Session) -> pytest.Collector:
        """Return the collector of the added items."""
        raise NotImplementedError

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Add the collector to those of the session."""
        report = yield
        if isinstance(collector, pytest.Session) and report.passed:
            report.result = [*(report.result or ()), self.collector(collector)]
        return report


def in_words(show: Callable[[Any, Any], None], result: Any) -> str:
    """Return what `show` prints of a result on a rich console, without colours."""
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    show(result, Console(file=text, width=_WIDTH, markup=False, color_system=None))
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def fail(message: str) -> NoReturn:
    """Fail an item with a message and no traceback."""
    raise pytest.fail.Exception(message, pytrace=False) from None
