"""The document of a run of the guide."""

from __future__ import annotations

import math
from typing import Any

from mlmrepro.record import STAGES, RunRecord
from mlmrepro.report import document as doc
from mlmrepro.report.progress import ACTIONS

__all__ = ["filled", "run_document"]

_DATA = (
    ("rows", "dataset.{}_rows"),
    ("tokens", "input_ids.{}_tokens"),
    ("blocks", "blocks.{}_blocks"),
    ("tokens dropped as remainders", "blocks.{}_remainder"),
)


def run_document(record: RunRecord) -> doc.Document:
    """Return the results of a run, and its overrides of the guide."""
    config, guide = record.config, record.config["guide"]
    packages = record.provenance["packages"]
    about = [f"{name} {packages[name]}" for name in ("transformers", "datasets", "torch")]
    pair = record["evaluation.same_masks_perplexity"]
    counts = record["masked_batches.counts"]
    shares = " / ".join(f"{counts[kind] / max(counts['selected'], 1):.1%}" for kind in ("mask", "random", "unchanged"))
    data = [[label, *(f"{record[key.format(part)]:,}" for part in ("train", "test"))] for label, key in _DATA]
    data += [
        ["tokens selected", f"{record['masked_batches.rate']:.2%}", ""],
        ["<mask> / random / unchanged", shares, ""],
    ]
    seconds = [record[f"{stage}.seconds"] for stage in STAGES]
    times = [[ACTIONS[stage], f"{second:.1f}"] for stage, second in zip(STAGES, seconds, strict=True)]
    overrides = [[o["name"], str(o["guide"]), str(o["value"]), o["reason"]] for o in config["overrides"]]
    fast = [[switch, state] for switch, state in record["model.fast"].items()] if config.get("fast") else []
    predictions = filled(record["fill_mask.pipeline"], record["fill_mask.by_hand"])
    return doc.Document(
        None,
        f"Perplexity {_figure(pair['before'])} before fine-tuning, {_figure(pair['after'])} after, on the same masks",
        facts=[
            ("profile", ", ".join([config["profile"], *about])),
            ("device", f"{record.provenance['device']['type']}, {config['threads']} threads"),
            ("perplexity", f"{_figure(record['evaluation.perplexity'])}, evaluated as in the guide (fresh masks)"),
        ],
        blocks=[
            doc.Section("Data", [doc.Table(["", "train", "test"], data, numeric=True)]),
            doc.Section(guide["prompt"], [predictions]),
            doc.Section("Overrides of the guide", [doc.Table(["name", "guide", "this run", "reason"], overrides)]),
            *([doc.Section("Switches of --fast", [doc.Table(["switch", "state"], fast)])] if fast else []),
            doc.Section("Time", [doc.Table(["stage", "seconds"], [*times, ["total", f"{sum(seconds):.1f}"]])]),
        ],
    )


def filled(pipeline: list[dict[str, Any]], by_hand: list[dict[str, Any]]) -> doc.Table:
    """Return the predictions of the pipeline and of the manual computation next to each other."""
    rows = [
        [str(rank), *(text for side in both for text in (side["sequence"], f"{side['score']:.4f}"))]
        for rank, both in enumerate(zip(pipeline, by_hand, strict=True), start=1)
    ]
    return doc.Table(["", "pipeline", "score", "by hand", "score"], rows)


def _figure(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else str(value)
