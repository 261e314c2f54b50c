"""What is installed: the only reason for which a test may be skipped."""

from __future__ import annotations

import shutil
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

# The first release with a model type; all others are in the oldest transformers that is supported.
MODEL_TYPES = {"modernbert": "transformers>=4.48"}


def has(requirement: str) -> bool:
    """Whether the installed version is one of these, such as ``transformers>=4.56``."""
    asked = Requirement(requirement)
    return asked.specifier.contains(version(asked.name), prereleases=True)


def needs(requirement: str, why: str) -> pytest.MarkDecorator:
    """Skip where another version is installed, saying why and what would run the test."""
    return pytest.mark.skipif(not has(requirement), reason=f"{why}; runs with {requirement}")


def needs_program(name: str, where: str) -> pytest.MarkDecorator:
    """Skip where a program is not on PATH, saying what installs it."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not on PATH; {where} installs it")


def needs_model_type(kind: str) -> None:
    """Skip where the installed transformers is older than this model type."""
    requirement = MODEL_TYPES.get(kind, "transformers")
    if not has(requirement):
        pytest.skip(f"{kind} is newer than the installed version; runs with {requirement}")
