"""Commands that judge a checkpoint on a text: baseline, check, score."""

from __future__ import annotations

import math
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mlmrepro.cli.guide import offline_unless
from mlmrepro.cli.output import Html, Json, JUnit, Markdown, Output, print_json
from mlmrepro.config import GuideConfig
from mlmrepro.errors import UserError

__all__ = ["baseline", "check", "check_targets", "prepared", "score"]

Checkpoint = Annotated[str, typer.Argument(help="A folder or hub name of a masked language model, or: embedded.")]
Text = Annotated[
    str,
    typer.Option(
        help="A .txt, .jsonl, .json, .csv, .tsv (also .gz) or .parquet file, a folder of these, a saved data set, or: "
        "embedded."
    ),
]
Column = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of the texts (default: the one that is clearly text).")
]
Topic = Annotated[str | None, typer.Option(help="Column of topics, which the report lists separately (default: none).")]
Split = Annotated[
    str | None, typer.Option(help="Split of a saved data set or a folder (default: test, else validation).")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first N documents (default: all).")]
MaxLength = Annotated[int, typer.Option(min=4, help="Tokens per window; fewer if the model's limit is lower.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda ...")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: torch's own choice).")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens per batch; in float32 the result does not depend on it.")]


class Dtype(str, Enum):
    """Number format of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Method(str, Enum):
    """Which tokens are masked together."""

    masked = "masked"  # every token once, 15 % at a time
    pseudo = "pseudo"  # each token alone
    within_word = "within-word"  # each token with the later ones of its word


def baseline(
    checkpoint: Checkpoint,
    text: Text,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    text_column: Column = None,
    topic_column: Topic = None,
    split: Split = None,
    limit: Limit = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts with <mask>, one per line, or .jsonl with prompt and expected.")
    ] = None,
    mask_rate: Annotated[
        float, typer.Option(help="Share of the tokens masked in each pass.")
    ] = GuideConfig.mlm_probability,
    seed: Annotated[int, typer.Option(help="Seed of the masks.")] = 0,
    random_passes: Annotated[
        int | None,
        typer.Option(min=1, help="Number of passes with random masks (default: mask each token exactly once)."),
    ] = None,
    max_length: MaxLength = 512,
    dtype: Annotated[Dtype, typer.Option(help="Number format; bfloat16 is faster on a GPU.")] = Dtype.float32,
    device: Device = "auto",
    threads: Threads = None,
    batch_tokens: BatchTokens = 4096,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing baseline.")] = False,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on your text, as the baseline that later checkpoints are checked against.

    Example: mlmrepro baseline old-model --text eval.jsonl -o golden/my-model
    """
    from mlmrepro.retraining.baseline import check_target

    check_target(output, overwrite=overwrite)
    path = prepared(checkpoint, threads)
    from mlmrepro.report.check_words import unused_line
    from mlmrepro.report.progress import ScoringDisplay
    from mlmrepro.retraining.check import make_baseline
    from mlmrepro.scoring.documents import read_text
    from mlmrepro.scoring.filling import read_probes
    from mlmrepro.scoring.scorer import Scorer

    documents = read_text(text, column=text_column, topic=topic_column, split=split, limit=limit)
    probes = read_probes(prompts) if prompts else []
    scorer = Scorer.load(path, device=device, dtype=dtype.value, max_length=max_length, batch_tokens=batch_tokens)
    with ScoringDisplay(quiet=as_json) as display:
        made = make_baseline(
            scorer,
            documents,
            checkpoint=checkpoint,
            rate=mask_rate,
            seed=seed,
            random_passes=random_passes,
            probes=probes,
            progress=display,
        )
    made.write(output, overwrite=overwrite)
    figures = {name: made.about[name] for name in ("perplexity", "bits_per_byte", "tokens", "documents")}
    if as_json:
        about = {name: made.about[name] for name in ("text", "text_column", "notes", "unused")}
        print_json(figures | {"baseline": str(output), **about})
        return
    print(
        f"{output}: perplexity {figures['perplexity']:.4f} over {figures['tokens']:,} masked tokens of "
        f"{figures['documents']:,} documents"
        + (f"; {figures['bits_per_byte']:.4f} bits per byte" if figures["bits_per_byte"] is not None else "")
    )
    for note in [*map(unused_line, scorer.unused), *made.about["notes"]]:
        print(note)


def check(
    checkpoint: Checkpoint,
    baseline: Annotated[Path, typer.Option(help="The folder that mlmrepro baseline wrote.")],
    margin: Annotated[
        float | None, typer.Option(help="Relative rise of perplexity that counts as the same (default: 0.01).")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Chance of a wrong answer, at most (default: 0.01).")] = None,
    power: Annotated[
        float | None, typer.Option(help="Power used to state the smallest detectable change (default: 0.95).")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Number format (default: the baseline's).")] = None,
    device: Device = "auto",
    threads: Threads = None,
    batch_tokens: BatchTokens = 4096,
    html: Html = None,
    junit: JUnit = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Check whether a checkpoint is better, the same, or worse than the baseline, on the same masks.

    Exits with 0 for better and same, 1 for a REGRESSION, 3 for inconclusive, 2 for bad input. Margin, alpha and power
    can also be set in the table tool.mlmrepro of pyproject.toml.
    Example: mlmrepro check new-model --baseline golden/my-model --html check.html
    """
    from mlmrepro.retraining.settings import Settings

    settings = Settings.find(margin=margin, alpha=alpha, power=power)
    check_targets(html, junit, beside=[baseline])
    path = prepared(checkpoint, threads)
    from mlmrepro.report.check import check_document
    from mlmrepro.report.progress import ScoringDisplay
    from mlmrepro.retraining.check import check_checkpoint

    output = Output(as_json, markdown, junit, html)
    with ScoringDisplay(quiet=output.quiet) as display:
        result = check_checkpoint(
            path,
            baseline,
            settings,
            name=checkpoint,
            device=device,
            dtype=dtype.value if dtype else None,
            batch_tokens=batch_tokens,
            progress=display,
        )
    output.write(check_document(result, checkpoint), result.to_dict())
    raise typer.Exit(result.exit_code)


def score(
    checkpoint: Checkpoint,
    text: Text,
    method: Annotated[Method, typer.Option(help="Which tokens are masked together.")] = Method.masked,
    text_column: Column = None,
    split: Split = None,
    limit: Limit = None,
    max_length: MaxLength = 512,
    device: Device = "auto",
    threads: Threads = None,
    batch_tokens: BatchTokens = 4096,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the loss of each masked token to this .csv file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a text: masked perplexity or pseudo-perplexity, and with --output the loss of each token.

    Example: mlmrepro score my-model --text eval.txt --method pseudo
    """
    check_targets(output, beside=[Path(text)])
    path = prepared(checkpoint, threads)
    from mlmrepro.record import plain
    from mlmrepro.report.check_words import unused_line
    from mlmrepro.report.progress import ScoringDisplay
    from mlmrepro.scoring.documents import read_text
    from mlmrepro.scoring.encode import unmasked
    from mlmrepro.scoring.losses import write_losses
    from mlmrepro.scoring.plan import one_by_one, token_plan
    from mlmrepro.scoring.scorer import Scorer

    documents = read_text(text, column=text_column, split=split, limit=limit)
    scorer = Scorer.load(path, device=device, max_length=max_length, batch_tokens=batch_tokens)
    texts = [document.text for document in documents.documents]
    encoded = scorer.encode(texts)
    plan = token_plan(texts, encoded) if method is Method.masked else one_by_one(encoded)
    with ScoringDisplay(quiet=as_json) as display:
        scores = scorer.score(
            plan,
            encoded,
            within_word=method is Method.within_word,
            progress=lambda done, total: display("tokens", done, total),
        )
    total = float(scores.loss.sum(dtype="float64"))
    kind = "perplexity" if method is Method.masked else "pseudo_perplexity"
    figures: dict[str, Any] = {kind: scores.perplexity, "log_likelihood": -total}
    figures |= {"tokens": len(scores), "documents": len(texts)}
    notes = [*map(unused_line, scorer.unused), *documents.notes, *unmasked(encoded)]
    if output:
        write_losses(output, scores, [document.name for document in documents.documents], scorer.tokenizer)
    if as_json:
        about = {"text": documents.source, "text_column": documents.column, "notes": notes}
        print_json(plain(figures | about))
    else:
        for name, value in figures.items():
            print(f"{name.replace('_', ' ')}: {value:,.6g}" if isinstance(value, float) else f"{name}: {value:,}")
        for note in notes:
            print(note)
    if not math.isfinite(total):
        print("mlmrepro: some losses of this checkpoint are NaN or infinite", file=sys.stderr)
        raise typer.Exit(1)


def check_targets(*targets: Path | None, beside: list[Path]) -> None:
    """Raise, before anything is scored, if a result cannot be written or would overwrite an input."""
    from mlmrepro.files import check_writable

    for target in filter(None, targets):
        for read in beside:
            if target.resolve().is_relative_to(read.resolve()):
                raise UserError(f"{target} would overwrite the input {read}", remedy="give another file")
        check_writable(target)


def prepared(checkpoint: str, threads: int | None) -> str:
    """Set up the process for scoring and return the checkpoint's folder or hub name."""
    from mlmrepro.config import EMBEDDED

    path = str(EMBEDDED / "checkpoint") if checkpoint == "embedded" else checkpoint
    offline_unless(not Path(path).is_dir())
    try:
        import torch

        from mlmrepro.guide import versions
    except ImportError as error:
        raise UserError(f"{error.name} is not installed", remedy="pip install mlmrepro") from error
    versions.set_up()
    if threads is not None:
        torch.set_num_threads(threads)
    return path
