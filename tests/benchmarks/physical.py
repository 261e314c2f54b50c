"""What the machine can do at most, and what a piece of work needs: both decide how much of the limit is used."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import RobertaConfig, RobertaForMaskedLM

MIB = 2**20


class Budget:
    """A time that a script may take."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether nothing more should be begun."""
        return time.monotonic() > self.end


def seconds(run: Callable[[], Any], device: str = "cpu") -> float:
    """Return how long a call takes; on a GPU between two CUDA events, so that queued work counts."""
    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def best(run: Callable[[], Any], device: str = "cpu", *, times: int = 5) -> float:
    """Return the shortest of some runs after one for warming up: the peak is what is never exceeded."""
    run()
    return min(seconds(run, device) for _ in range(times))


def gemm_peak(dtype: torch.dtype, device: str = "cpu", *, size: int = 1024) -> float:
    """Return the greatest FLOP/s of a product of square matrices."""
    first, second = (torch.randn(size, size, dtype=torch.float32).to(device, dtype) for _ in range(2))
    out = torch.empty_like(first)
    return 2 * size**3 / best(lambda: torch.mm(first, second, out=out), device)


def copy_peak(device: str = "cpu", *, mebibytes: int = 64) -> float:
    """Return the greatest bytes/s of a copy; each byte is read and written."""
    source = torch.ones(mebibytes * MIB // 4, device=device)
    target = torch.empty_like(source)
    return 2 * mebibytes * MIB / best(lambda: target.copy_(source), device)


def forward_flops(config: Any, rows: int, length: int, *, predicted: int | None = None) -> float:
    """Return the FLOPs of the matrix products of a forward pass of a BERT or RoBERTa.

    `predicted` positions go through the language-model head, by default all. A training step needs three times this.
    """
    tokens, wide, inner = rows * length, config.hidden_size, config.intermediate_size
    layer = 2 * tokens * (4 * wide**2 + 2 * wide * inner) + 4 * rows * length**2 * wide
    head = 2 * (tokens if predicted is None else predicted) * (wide**2 + wide * config.vocab_size)
    return float(config.num_hidden_layers * layer + head)


def distilroberta(*, tiny: bool = False, seed: int = 0) -> RobertaForMaskedLM:
    """Return a model of DistilRoBERTa's shape, 82 million parameters, with seeded random weights; or a tiny one."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    large = {"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 3072}
    vocabulary = {"vocab_size": 16_000 if tiny else 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(seed)
    return RobertaForMaskedLM(RobertaConfig(**vocabulary, **special, **(small if tiny else large)))


def peak_mib(run: Callable[[], Any], device: str = "cpu") -> float | None:
    """Return by how many MiB the memory rises while a call runs: this process's, without the processes it starts.

    None where the operating system does not tell (Linux resets the greatest resident size on request).
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed before would be used again, and no rise be seen
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0])
