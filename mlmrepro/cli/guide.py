"""Commands that run the guide: reproduce, fill-mask."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from mlmrepro.cli.output import Json, print_json

__all__ = ["fill_mask", "offline_unless", "reproduce", "say_unused"]

RUNS = Path("mlmrepro-runs")


def reproduce(
    profile: Annotated[
        str, typer.Option(help="embedded (offline) or guide (model and data from the hub).")
    ] = "embedded",
    eli5_category: Annotated[
        bool, typer.Option("--eli5-category", help="Use the successor of the eli5 data set, from the hub.")
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="A new folder for the run (default: mlmrepro-runs/PROFILE-N).")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random (default: 42).")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the guide; repeatable.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; results repeat exactly only for the same number.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed run from its last epoch.")] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Use what gives the same numbers, within rounding, in less time.")
    ] = False,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="--fast in bfloat16: losses differ by up to 1 %.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the whole guide: load, split, tokenise, group, mask, train, evaluate, fill the mask.

    Example: mlmrepro reproduce --set block_size=64 --output-dir run-64
    """
    from mlmrepro.config import SUCCESSOR, parse_setting, resolve

    changes = list(SUCCESSOR) if eli5_category else []
    changes += [(*parse_setting(text), "--set") for text in settings or []]
    if seed is not None:
        changes.append(("seed", seed, "--seed"))
    way = "bfloat16" if bfloat16 else "float32" if fast else ""
    config = resolve(profile, output_dir=output_dir or RUNS, changes=changes, threads=threads, resume=resume, fast=way)
    if output_dir is None:
        config = dataclasses.replace(config, output_dir=_run_folder(profile, resume))
    offline_unless(config.needs_hub)
    say_unused(config.checkpoint)

    from mlmrepro.guide.run import run
    from mlmrepro.report.progress import RunDisplay
    from mlmrepro.report.summary import run_document
    from mlmrepro.report.terminal import print_document

    try:
        with RunDisplay(quiet=as_json) as display:
            record = run(config, display)
    finally:
        if output_dir is None:
            with suppress(OSError):  # raised unless empty: a refused run leaves no folder behind
                RUNS.rmdir()
    if as_json:
        print_json(record.to_dict())
    else:
        print_document(run_document(record))
        print(f"\ncheckpoint  {config.output_dir / 'model'}\nrecord      {config.output_dir / 'record.json'}")
    if not math.isfinite(record["evaluation.perplexity"]):
        print(f"mlmrepro: the training diverged: eval_loss is {record['evaluation.eval_loss']}", file=sys.stderr)
        raise typer.Exit(1)


def fill_mask(
    prompt: Annotated[str, typer.Argument(help="A sentence with one <mask>.")],
    checkpoint: Annotated[
        str, typer.Option(help="A folder or hub name of a masked language model (default: the embedded one).")
    ] = "embedded",
    top_k: Annotated[int, typer.Option(min=1, help="Predictions shown.")] = 5,
    as_json: Json = False,
) -> None:
    """Fill the mask of a sentence, with the pipeline and by hand.

    Example: mlmrepro fill-mask "Water is made of hydrogen and <mask>."
    """
    from mlmrepro.config import EMBEDDED

    path = str(EMBEDDED / "checkpoint") if checkpoint == "embedded" else checkpoint
    offline_unless(not Path(path).is_dir())
    say_unused(path)

    from mlmrepro import loading
    from mlmrepro.guide import fill_mask as steps
    from mlmrepro.guide import versions
    from mlmrepro.report.summary import filled
    from mlmrepro.report.terminal import print_blocks, standard_output

    versions.set_up()
    tokenizer = loading.load_tokenizer(path)
    limit = loading.max_block_size(path, tokenizer.model_max_length)
    own_prompt = steps.check_prompt(tokenizer, prompt, limit)
    steps.check_top_k(len(tokenizer), top_k)
    model = loading.load_model(path)
    # If PEFT is installed, the pipeline itself would apply an adapter stored next to the weights.
    has_adapter = (Path(path) / "adapter_config.json").is_file()
    parts = {"model": model, "tokenizer": tokenizer} if has_adapter else {}
    rows = {
        "pipeline": steps.with_pipeline(path, own_prompt, top_k, **parts),
        "by_hand": steps.by_hand(model, tokenizer, own_prompt, top_k),
    }
    if as_json:
        print_json({"checkpoint": checkpoint, "prompt": own_prompt, **rows})
    else:
        print_blocks([filled(rows["pipeline"], rows["by_hand"])], standard_output())


def _run_folder(profile: str, resume: bool) -> Path:
    """Return the next free folder for a run, or the newest one to resume."""
    numbers = [int(p.name.rsplit("-", 1)[1]) for p in RUNS.glob(f"{profile}-*") if p.name.rsplit("-", 1)[1].isdigit()]
    newest = max(numbers, default=0)
    return RUNS / f"{profile}-{max(newest, 1) if resume else newest + 1}"


def say_unused(checkpoint: str) -> None:
    """Print on standard error what is in a checkpoint's folder but not used.

    Raises UserError, before any library is imported, for a folder that is refused.
    """
    from mlmrepro.loading import inspect

    if found := inspect(checkpoint):
        from mlmrepro.report.check_words import unused_line

        for unused in found:
            print(f"mlmrepro: {unused_line(unused)}", file=sys.stderr)


def offline_unless(hub: bool) -> None:
    """Keep the libraries from calling the hub unless it is needed; must run before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids a warning for each forked map process
    if not hub:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ[name] = "1"
