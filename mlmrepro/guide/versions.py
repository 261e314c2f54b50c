"""What differs between the supported versions of the libraries, and how they are set up for a run."""

from __future__ import annotations

from typing import Any

__all__ = ["allow_generator_state", "never_run_scripts", "set_up", "trainer_takes"]


def allow_generator_state() -> None:
    """Let torch's safe loader read the numpy generator state in Trainer's checkpoints.

    torch 2.6 and later unpickle nothing but tensors unless a type is allowed; transformers 4.41 does not
    allow these four itself, so its Trainer could not resume. They hold numbers and run no code.
    """
    import numpy as np
    import torch

    core = getattr(np, "_core", None) or np.core  # numpy 2 renamed it
    torch.serialization.add_safe_globals(
        [core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]  # type: ignore[list-item]
    )


def never_run_scripts() -> dict[str, bool]:
    """Return the arguments that keep load_dataset from running a data set's loading script.

    datasets before 2.20 runs one unasked, 2.20 to 3.6 ask on the terminal, 4.0 and later have no such option.
    """
    import datasets

    return {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}


def set_up() -> None:
    """Switch off the libraries' progress bars and the reuse of mapped data.

    datasets 5 takes the number of processes, and with it the blocks, from files that an earlier run left.
    """
    import datasets
    from transformers.utils import logging

    datasets.disable_caching()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def trainer_takes(tokenizer: Any) -> dict[str, Any]:
    """Return the argument that makes Trainer save the tokenizer: transformers 4.46 renamed it."""
    import inspect

    from transformers import Trainer

    names = inspect.signature(Trainer.__init__).parameters
    return {"processing_class" if "processing_class" in names else "tokenizer": tokenizer}
