"""Sizes, the limits of this machine, and how a benchmark is measured next to its peers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mlmrepro.guide.observe import preserved_generators
from mlmrepro.observations.observe import silenced

from . import physical
from .ratios import broken, ratio

PEAKS = ("gemm_peak_gigaflops_per_second", "copy_peak_gigabytes_per_second")  # in extra_info, of this very run


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks of mlmrepro")
    group.addoption(
        "--tiny", action="store_true", help="sizes of seconds: shows that the benchmarks work, nothing else"
    )
    group.addoption("--no-peers", action="store_true", help="do not measure the other ways next to each benchmark")


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--tiny"))


@pytest.fixture
def large(tiny: bool) -> None:
    """For what has no tiny size."""
    if tiny:
        pytest.skip("takes a minute: tox run -e benchmarks without --tiny runs this")


@pytest.fixture(autouse=True)
def steady() -> Iterator[None]:
    """Two threads, no warnings of the libraries, and the generators as they were."""
    torch.set_num_threads(2)
    with silenced(), preserved_generators():
        yield


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What a product of matrices and a copy reached in this very run."""

    flops_per_second: float
    bytes_per_second: float


@pytest.fixture(scope="session")
def peaks(request: pytest.FixtureRequest) -> Peaks:
    torch.set_num_threads(2)
    small = request.config.getoption("--tiny")
    return Peaks(
        physical.gemm_peak(torch.float32, size=256 if small else 1024),
        physical.copy_peak(mebibytes=8 if small else 256),
    )


@dataclasses.dataclass
class Measure:
    """Measures a piece of work, and its peers before each of its rounds, so that all see the same machine.

    What it needs is given as `tokens`, `flops` and `moved` bytes. The JSON file then holds `tokens_per_second`,
    `peak_memory_mib`, `share_of_gemm_peak` or `share_of_copy_peak`, and `times_as_fast_as_NAME` for each peer.
    """

    benchmark: Any
    peaks: Peaks
    tiny: bool
    with_peers: bool

    def __call__(
        self,
        run: Callable[[], Any],
        *,
        tokens: int = 0,
        flops: float = 0.0,
        moved: float = 0.0,
        peers: Mapping[str, Callable[[], Any]] | None = None,
        rounds: int = 5,
        warm: bool = True,
    ) -> Any:
        """Return what the work returns."""
        rounds = 1 if self.tiny else rounds
        peers = peers if peers and self.with_peers else {}
        taken: dict[str, list[float]] = {name: [] for name in peers}

        def setup() -> None:
            for name, peer in peers.items():
                taken[name].append(physical.seconds(peer))

        if warm and not self.tiny:
            run()
            for peer in peers.values():
                peer()
        result = self.benchmark.pedantic(run, setup=setup if peers else None, rounds=rounds)
        if self.benchmark.stats is None:  # --benchmark-disable, or with xdist
            return result
        own, info = self.benchmark.stats.stats.data, self.benchmark.extra_info
        self.tell(tokens=tokens, flops=flops, moved=moved)
        info |= {f"times_as_fast_as_{name}": ratio(times[-len(own) :], own) for name, times in taken.items()}
        if warm and (peak := physical.peak_mib(run)) is not None:
            info["peak_memory_mib"] = peak
        return result

    def tell(self, *, tokens: int = 0, flops: float = 0.0, moved: float = 0.0) -> None:
        """Add what the time of the work means."""
        if self.benchmark.stats is not None:
            info, typical = self.benchmark.extra_info, self.benchmark.stats.stats.median
            info |= {"tokens": tokens, "tokens_per_second": tokens / typical} if tokens else {}
            info |= {"share_of_gemm_peak": flops / typical / self.peaks.flops_per_second} if flops else {}
            info |= {"share_of_copy_peak": moved / typical / self.peaks.bytes_per_second} if moved else {}

    def claims(self, **least: float) -> None:
        """Hold the ratios to what is claimed, where they were measured and in full size."""
        if not self.tiny and self.with_peers and self.benchmark.stats is not None:
            assert broken(self.benchmark.extra_info, least) == {}


@pytest.fixture
def measure(benchmark: Any, peaks: Peaks, tiny: bool, request: pytest.FixtureRequest) -> Measure:
    found = (peaks.flops_per_second / 1e9, peaks.bytes_per_second / 1e9)
    benchmark.extra_info |= dict(zip(PEAKS, found, strict=True))
    return Measure(benchmark, peaks, tiny, not request.config.getoption("--no-peers"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what pytest-benchmark's table does not: ratios, tokens, memory, and shares of the limit."""
    session = getattr(config, "_benchmarksession", None)
    for each in session.benchmarks if session else ():
        shown = {name: value for name, value in each.extra_info.items() if name not in PEAKS}
        about = ", ".join(f"{name} {value:,.4g}" for name, value in shown.items())
        terminalreporter.write_line(f"{each.group}: {each.name}: {about}")
    if session and session.benchmarks:
        info = session.benchmarks[0].extra_info
        terminalreporter.write_line(
            "limits: " + ", ".join(f"{name} {info[name]:,.4g}" for name in PEAKS if name in info)
        )


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], Path]:
    """Return a function that gives a fresh folder at each call."""
    numbers = iter(range(10**6))
    return lambda: tmp_path / str(next(numbers))
