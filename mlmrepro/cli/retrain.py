"""The command that fine-tunes a recipe with several seeds: retrain."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlmrepro.cli.guide import offline_unless, say_unused
from mlmrepro.cli.output import Json, Markdown, Output
from mlmrepro.errors import UserError

if TYPE_CHECKING:
    from mlmrepro.gate.seeds import SeedComparison
    from mlmrepro.report.document import Document
    from mlmrepro.retraining.runs import Retraining

__all__ = ["retrain"]


def retrain(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the results; seeds already in it are kept.")
    ],
    seeds: Annotated[
        str, typer.Option(metavar="N|LIST", help="How many seeds (5: 42 to 46), or which ones (1,2,3).")
    ] = "5",
    against: Annotated[
        Path | None, typer.Option(help="Results of another recipe (its --output) to compare with.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="embedded (offline) or guide (model and data from the hub).")
    ] = "embedded",
    eli5_category: Annotated[
        bool, typer.Option("--eli5-category", help="Use the successor of the eli5 data set, from the hub.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the recipe; seed is the split's seed."),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; results repeat exactly only for the same number.")] = 2,
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep each model, in seed-N/.")] = False,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Fine-tune the guide's recipe with several seeds and keep every value, to tell a worse recipe from a bad seed.

    With --against: exit code 0 for better and same, 1 for a REGRESSION, 3 for inconclusive, by a permutation test at
    5 %. Without: 0, or 1 if a training diverged. To continue a killed run, give the same command again.
    Example: mlmrepro retrain --output runs/new --against runs/old --set learning_rate=1e-5
    """
    from mlmrepro.config import SUCCESSOR, parse_setting, resolve
    from mlmrepro.retraining.recipe import OURS, parse_seeds
    from mlmrepro.retraining.recipe import retrain as train

    changes = list(SUCCESSOR) if eli5_category else []
    given = [(*parse_setting(text), "--set") for text in settings or []]
    config = resolve(profile, output_dir=output, changes=[*changes, *OURS, *given], threads=threads)
    offline_unless(config.needs_hub)
    say_unused(config.checkpoint)

    from mlmrepro.report.progress import StageDisplay
    from mlmrepro.retraining.runs import Retraining, compare
    from mlmrepro.retraining.settings import Settings

    strictness = Settings.find()
    if against is not None and against.resolve() == output.resolve():
        raise UserError(
            "--against and --output are the same folder", remedy="give --against the folder of another recipe"
        )
    before = None if against is None else (str(against), Retraining.read(against))
    chosen = parse_seeds(seeds, config.guide.seed or 0)
    shown = Output(as_json, markdown)
    with StageDisplay(quiet=shown.quiet) as display:
        result = train(config, chosen, against=before, save_models=save_models, progress=display)
    comparison = compare(before[1], result, strictness, before[0]) if before else None
    diverged = [run.seed for run in result.seeds if not math.isfinite(run.loss)]
    document = _document(result, before, comparison, diverged, output / "retraining.json")
    shown.write(document, _content(result, before, comparison))
    if diverged:
        print(f"mlmrepro: the training diverged with seed {', '.join(map(str, diverged))}", file=sys.stderr)
    raise typer.Exit(comparison.answer.exit_code if comparison else int(bool(diverged)))


_HEAD = ("seed", "loss (nats)", "perplexity", "eval_loss", "train loss", "seconds")


def _rows(result: Retraining) -> Iterator[tuple[str, ...]]:
    from mlmrepro.guide.evaluate import perplexity

    yield "start", f"{result.start.loss:.6f}", f"{perplexity(result.start.loss):.3f}", "", "", ""
    for run in result.seeds:
        figures = (f"{run.loss:.6f}", f"{perplexity(run.loss):.3f}", f"{run.eval_loss:.6f}", f"{run.train_loss:.4f}")
        yield str(run.seed), *figures, f"{run.seconds:.1f}"


def _figures(result: Retraining) -> dict[str, Any]:
    """Return a summary of the losses in nats, shown next to the raw values."""
    losses = result.losses
    return {
        "seeds": len(losses),
        "mean": sum(losses) / len(losses),
        "deviation": statistics.stdev(losses) if len(losses) > 1 and all(map(math.isfinite, losses)) else None,
        "lowest": min(losses),
        "highest": max(losses),
    }


def _summary(result: Retraining) -> str:
    figures = _figures(result)
    spread = "" if figures["deviation"] is None else f", standard deviation {figures['deviation']:.3g}"
    between = f"range {figures['lowest']:.6f} to {figures['highest']:.6f}"
    text = f"{sum(result.held_out.tokens):,} masked tokens of {len(result.held_out.documents):,} held-out documents"
    return f"mean loss {figures['mean']:.6f} nats{spread}, {between}; {text}, the same for all seeds"


def _content(result: Retraining, before: Any, comparison: SeedComparison | None) -> dict[str, Any]:
    from mlmrepro.record import plain

    content: dict[str, Any] = {"retraining": result.to_dict(), "figures": plain(_figures(result))}
    if comparison is not None:
        pairs = before[1].differences(result)
        content |= {"against": before[0], "differing_settings": plain(pairs), "comparison": comparison.to_dict()}
    return content


def _document(
    result: Retraining, before: Any, comparison: SeedComparison | None, diverged: list[int], path: Path
) -> Document:
    """Return the comparison with the other recipe, if there is one, and the values of each seed."""
    from mlmrepro.compare.judge import Verdict
    from mlmrepro.report.document import Document, Section, Table
    from mlmrepro.report.seeds import seeds_document
    from mlmrepro.report.words import count, pairs_line

    document = Document(Verdict.REGRESSION if diverged else None, f"Retraining: {count(len(result.seeds), 'seed')}")
    facts = [("retrained", _summary(result)), ("values", f"all are in {path}")]
    if comparison is not None:
        document = seeds_document(comparison)
        pairs = before[1].differences(result)
        facts.insert(0, ("settings", pairs_line(pairs, len(pairs)) if pairs else "the same except for the seeds"))
    section = Section("Each seed", [Table(_HEAD, list(_rows(result)), numeric=True)])
    return dataclasses.replace(document, facts=[*document.facts, *facts], blocks=[*document.blocks, section])
