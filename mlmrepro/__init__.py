"""Run the Hugging Face guide "Masked language modeling" exactly, and write down everything it did.

Importing this package imports neither torch nor transformers; `run` does, when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlmrepro.config import GuideConfig, RunConfig, resolve
    from mlmrepro.errors import UserError
    from mlmrepro.guide.run import run
    from mlmrepro.record import Lane, Observation, RunRecord
    from mlmrepro.retraining.callback import GateCallback
    from mlmrepro.retraining.check import check_checkpoint
    from mlmrepro.scoring.scorer import Scorer

__all__ = [
    "GateCallback",
    "GuideConfig",
    "Lane",
    "Observation",
    "RunConfig",
    "RunRecord",
    "Scorer",
    "UserError",
    "check_checkpoint",
    "resolve",
    "run",
]

__version__ = "0.1.0"

_HOMES = {
    "GateCallback": "mlmrepro.retraining.callback",
    "GuideConfig": "mlmrepro.config",
    "Lane": "mlmrepro.record",
    "Observation": "mlmrepro.record",
    "RunConfig": "mlmrepro.config",
    "RunRecord": "mlmrepro.record",
    "Scorer": "mlmrepro.scoring.scorer",
    "UserError": "mlmrepro.errors",
    "check_checkpoint": "mlmrepro.retraining.check",
    "resolve": "mlmrepro.config",
    "run": "mlmrepro.guide.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
