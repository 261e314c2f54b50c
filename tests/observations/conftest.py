"""What laws are held against in most of these tests; nobody may change it."""

from __future__ import annotations

import pytest

from mlmrepro.observations.subject import Subject

from . import held


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The embedded checkpoint, with text of its kind."""
    return held.subject(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A random RoBERTa, wide enough that every token matters to every other."""
    return held.small(tmp_path_factory.mktemp("small"))
