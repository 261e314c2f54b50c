"""Small, complete records and goldens made by hand, which tests can change."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mlmrepro.compare.drift import Drift, Outcome
from mlmrepro.compare.golden import Entry, Golden, Variant, write_golden
from mlmrepro.compare.tolerance import default_tolerance
from mlmrepro.record import STAGES, Lane, RunRecord

LINK = "https://example.org/notes"

_E, _A, _R, _S, _I = Lane.EXACT, Lane.APPROXIMATE, Lane.RANKING, Lane.STATISTICAL, Lane.INFO
_ROWS = [{"score": 0.6 - n / 5, "token": n, "token_str": f" word{n}", "sequence": f"A word{n}."} for n in range(3)]
_VALUES: list[tuple[str, Lane, Any]] = [
    ("dataset.train_rows", _E, 32),
    ("flatten.columns", _E, {"text": "string"}),
    ("input_ids.train_tokens", _E, 5504),
    ("blocks.train_blocks", _E, 43),
    ("masked_batches.counts", _E, {"tokens": 5504, "selected": 796, "mask": 639, "random": 82, "unchanged": 75}),
    ("masked_batches.draw", _E, "f407f2cd33f2a6ea"),
    ("masked_batches.isolated.draw", _E, "f407f2cd33f2a6ea"),
    ("model.attention", _E, "eager"),
    ("model.eval_loss", _A, 4.05),
    ("loss.step_losses", _A, [4.5 + n / 10 for n in range(6)]),
    ("loss.isolated.first_step", _A, 4.5),
    ("evaluation.perplexity", _S, 40.4),
    ("evaluation.same_masks_perplexity", _S, {"before": 57.6, "after": 56.7}),
    ("fill_mask.pipeline", _R, _ROWS),
    ("fill_mask.off_path.default_top_k", _E, 5),
]


def record(transformers: str = "4.41.2", datasets: str = "2.19.2", **changes: Any) -> RunRecord:
    """Return a record of these versions; `stage__name=value` changes a value, and None removes it."""
    packages = {"transformers": transformers, "datasets": datasets, "torch": "2.13.0", "evaluate": None}
    made = RunRecord(
        {"packages": packages, "python": "3.11.7", "platform": {"system": "Linux"}, "device": {"type": "cpu"}},
        {"profile": "embedded", "threads": 2, "guide": {"seed": 42, "mlm_probability": 0.15, "prompt": "A <mask>."}},
    )
    changed = {name.replace("__", ".", 1): value for name, value in changes.items()}
    for stage in STAGES:
        for key, lane, value in _VALUES:
            if key.startswith(f"{stage}."):
                value = changed.pop(key, value)
                if value is not None:
                    made.observe(stage, key.split(".", 1)[1], copy.deepcopy(value), lane)
        made.observe(stage, "seconds", 1.5, Lane.INFO)
    for key, value in changed.items():
        stage, name = key.split(".", 1)
        made.observe(stage, name, value, Lane.INFO if name == "warnings" else Lane.EXACT)
    return made


def golden(directory: Path, of: RunRecord, variants: dict[str, tuple[Variant, ...]] | None = None) -> Path:
    """Write goldens that expect a record, or the given variants."""
    entries: dict[str, Golden] = {}
    for o in of:
        if o.lane is not Lane.INFO:
            expected = (variants or {}).get(f"{o.stage}.{o.name}", (Variant(o.value),))
            tolerance = None if o.lane is Lane.EXACT else default_tolerance(o.quantity)
            stage = entries.setdefault(o.stage, Golden(of.provenance | {"config": of.config}))
            stage.entries[o.name] = Entry(o.lane, expected, tolerance)
    for stage, content in entries.items():
        write_golden(directory / f"{stage}.json", content)
    return directory


def attention() -> dict[str, tuple[Variant, ...]]:
    """Declare that the attention kernel changes with transformers 4.48."""
    return {
        "model.attention": (
            Variant("eager", ("transformers<4.48",), "SDPA is the default", LINK),
            Variant("sdpa", ("transformers>=4.48",), "SDPA is the default", LINK),
        )
    }


def drift(directory: Path) -> Drift:
    """Return a drift with a declared change, regressions on and off the path, a variation and a failed environment."""
    later = {"model__attention": "sdpa"}
    broken = later | {
        "loss__step_losses": [4.6 + n / 10 for n in range(6)],
        "loss__isolated.first_step": 4.6,
        "evaluation__perplexity": 41.0,
    }
    broken["fill_mask__off_path.default_top_k"] = 3
    outcomes = [
        Outcome("t4.41", record("4.41.2", "2.19.2")),
        Outcome("t4.48", record("4.48.0", "3.1.0", **later, loss__warnings=["FutureWarning: `x` goes away"])),
        Outcome("t5.1", None, "pip found no wheel", "logs/t5.1.log"),
        Outcome("t5.23", record("5.23.0", "5.2.0", **broken)),
        Outcome("t5.23-d2.19", record("5.23.0", "2.19.2", **broken)),
    ]
    return Drift(outcomes, golden(directory, outcomes[0].record or record(), attention()))
