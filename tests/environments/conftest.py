"""A package index of hand-made wheels, so that environments are made in seconds and without a network."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mlmrepro.environments.spec import catalogue


def make_wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> None:
    """Write a wheel that holds one module with its version."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    files = {
        f"{name.replace('-', '_')}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, content)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what every environment needs, and two generations of a pair that do not mix."""
    folder = tmp_path_factory.mktemp("wheels")
    held = {Requirement(pin).name: pin.partition("==")[2] for pin in catalogue().held}
    for need in catalogue().needs:
        name, _, version = need.partition("==")
        make_wheel(folder, name, version or held[name])
    for version, hub in (("1.0", "<1"), ("2.0", ">=1")):
        make_wheel(folder, "transformers", version, [f"huggingface_hub{hub}"])
        make_wheel(folder, "datasets", version, [f"huggingface_hub{hub}"])
    for version in ("0.5", "1.5"):
        make_wheel(folder, "huggingface_hub", version)
    return folder


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pip finds these wheels and nothing else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels
