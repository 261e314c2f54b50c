"""The document of a check: whether and where a checkpoint got worse."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from mlmrepro.gate.probes import ranked
from mlmrepro.gate.result import Accuracy, Answer, CheckResult, DocumentChange, Prediction, ProbeChange, TokenChange
from mlmrepro.report import check_plots
from mlmrepro.report import document as doc
from mlmrepro.report.check_words import (
    HEADLINE,
    VERDICT,
    Scale,
    changed_probes,
    ended,
    facts,
    level,
    origins,
    points,
    probe_line,
    rank,
    said,
    share,
    slice_name,
    unused_line,
)
from mlmrepro.report.words import clean, count, number

__all__ = ["STEPS", "check_document"]

STEPS = (0.1, 0.5, 1.0, 2.0)  # nats; fixed, so that shades mean the same on every page
_BRIEF = 3  # probes shown on the terminal, the most changed ones
_DOCUMENTS = 10
_TOKENS = 1000  # shown per document
_LISTED = 12  # tokens per document in the list of losses
_PROBES = 50
_OPEN = 6  # probes shown unfolded
_ROWS = 10  # per probe
_LEVELS = {Answer.REGRESSION: "error", Answer.INCONCLUSIVE: "warning"}  # passing answers need no annotation


def check_document(result: CheckResult, checkpoint: str = "") -> doc.Document:
    """Return the answer and its reason, the numbers, where the model changed, and what to do next."""
    headline = HEADLINE[result.answer]
    found: list[tuple[str, doc.Line]] = list(facts(result))
    found += [("not used", doc.sentence(unused_line(unused))) for unused in result.unused]
    found += [("note", doc.sentence(note)) for note in result.notes]
    alert = f"{said(result)} {ended(result.advice) if result.advice else ''}".rstrip()
    lines = [f"{name}: {clean(doc.plain(line))}" for name, line in found]
    lines += [f"next: {clean(result.advice)}"] if result.advice else []
    return doc.Document(
        VERDICT[result.answer],
        headline,
        lead=doc.sentence(said(result)),
        facts=found,
        blocks=list(_blocks(result)),
        next_step=doc.sentence(result.advice),
        subject="Is the new checkpoint worse?",
        suites=[doc.Suite(checkpoint, [_case(result, f"{headline}. {said(result)}", lines)])],
        alerts=[
            doc.Alert(level, f"mlmrepro check: {headline}", alert)
            for answer, level in _LEVELS.items()
            if answer is result.answer
        ],
    )


def _case(result: CheckResult, message: str, lines: Sequence[str]) -> doc.Case:
    """Return a test case; one that passes lists unused files and any difference that a number format explains."""
    if result.exit_code:
        return doc.Case("check", "failure", message, "\n".join(lines))
    return doc.Case("check", text="\n".join([message, *lines]) if result.unused or result.rounded else "")


def _blocks(result: CheckResult) -> Iterator[doc.Section]:
    figures = {figure.name: doc.Figure(figure) for figure in check_plots.drawings(result)}
    if "interval" in figures:
        note = (
            "Both checkpoints are scored on the same masks of the same text. The interval treats documents, not "
            "tokens, as independent."
        )
        yield doc.Section("How large the difference is", [figures["interval"]], "difference", note, shown=doc.In.PAGE)
    if result.slices:
        yield doc.Section("Slices", [_slices(result)], shown=doc.In.MARKDOWN, fold=doc.In.MARKDOWN)
    if "forest" in figures:
        note = (
            "The same comparison for each topic and each token frequency. A slice is marked “worse” or “better” only "
            "if the change is significant after Holm's correction for the number of slices. The intervals are not "
            "corrected."
        )
        yield doc.Section("Where the model changed", [figures["forest"]], "slices", note, shown=doc.In.PAGE)
    changed = changed_probes(result)
    if changed:
        items = [doc.Item(probe_line(probe), name=clean(probe.prompt)) for probe in changed]
        shown = doc.In.TERMINAL | doc.In.MARKDOWN
        yield doc.Section(
            "Probes that changed", [doc.Items(items, "prompt", _BRIEF)], shown=shown, fold=doc.In.MARKDOWN
        )
    if result.worst:
        yield from _worst(result)
    if result.probes:
        rest = [probe for probe in result.probes if probe not in changed]
        yield _probes([*changed, *rest], by_text=not Scale(result.measure).relative)
    if result.accuracy:
        note = "For information only: the answer depends only on the loss."
        table = _accuracy(result.accuracy)
        yield doc.Section("Accuracy and calibration at masked positions", [table], "accuracy", note, shown=doc.In.PAGE)
    yield from _origins(result)


def _slices(result: CheckResult) -> doc.Table:
    scale = Scale(result.measure)
    rows: list[list[doc.Line]] = [
        [
            slice_name(part),
            doc.Strong(part.answer),
            scale.signed(part.paired.difference),
            scale.interval(part.paired),
            number(part.adjusted, 2),
        ]
        for part in sorted(result.slices, key=lambda part: not part.answer)  # those that changed first
    ]
    return doc.Table(["slice", "answer", "change", f"{level(result.slices[0].paired)} interval", "p (Holm)"], rows)


def _worst(result: CheckResult) -> Iterator[doc.Section]:
    scale = Scale(result.measure)
    rows: list[list[doc.Line]] = [[doc.Code(d.name), d.topic, scale.signed(d.difference)] for d in result.worst]
    table = doc.Table(["document", "topic", "change"], rows)
    yield doc.Section("Documents that got worse", [table], shown=doc.In.MARKDOWN, fold=doc.In.MARKDOWN)
    documents = [_document(document, scale) for document in result.worst[:_DOCUMENTS]]
    present = {css for document in documents for block in document.blocks for css in _shades(block)}
    legend = doc.Passage((), [(css, meaning) for css, meaning in _legend() if css in present])
    note = (
        f"Each {'token' if scale.relative else 'word'} is shaded by the change of its loss when masked. A solid "
        "underline means worse, a dotted one better. Hover to see both losses."
    )
    title = "The documents that got worse the most"
    yield doc.Section(title, [legend, *documents], "documents", note, shown=doc.In.PAGE)


def _shades(block: doc.Block) -> set[str]:
    return {css for css, _, _ in block.words} if isinstance(block, doc.Passage) else set()


def _document(document: DocumentChange, scale: Scale) -> doc.Section:
    tokens = [token for token in document.tokens if token.text]  # the later bytes of a character have no text
    gap = "" if scale.relative else " "  # words lack the spaces between them
    blocks: list[doc.Block] = [doc.Passage([_shade(token, gap) for token in tokens[:_TOKENS]])]
    if len(tokens) > _TOKENS:
        blocks.append(doc.Text(f"and {len(tokens) - _TOKENS} more"))
    masked = [token for token in tokens if token.before is not None and token.after is not None]
    listed = sorted(masked, key=lambda token: -_size(token))[:_LISTED]
    if listed:
        rows: list[list[doc.Line]] = [[doc.Code(token.text), _change(token)] for token in listed]
        blocks.append(
            doc.Section(count(len(listed), "largest change"), [doc.Table(["token", "loss"], rows)], fold=doc.In.PAGE)
        )
    about = (
        f"{document.topic}  {'perplexity' if scale.relative else 'bits per byte'} {scale.signed(document.difference)}"
    )
    return doc.Section((doc.Strong(document.name), " ", about), blocks)


def _size(token: TokenChange) -> float:
    size = abs((token.after or 0.0) - (token.before or 0.0))
    return size if math.isfinite(size) else math.inf


def _shade(token: TokenChange, gap: str) -> tuple[str, str, str]:
    """Return how a token is shown: its class, its text, and its losses."""
    if token.before is None or token.after is None:
        return "plain", token.text + gap, ""
    step = bisect_right(STEPS, _size(token))
    side = "better" if token.after < token.before else "worse"  # NaN is worse
    return f"{side}-{step}" if step else "calm", token.text + gap, _change(token)


def _change(token: TokenChange) -> str:
    """Format both losses of a token and their difference."""
    if token.before is None or token.after is None:
        return "not masked"
    return f"{token.before:.2f} → {token.after:.2f} nats ({token.after - token.before:+.2f})"


def _legend() -> list[tuple[str, str]]:
    """Return (CSS class, meaning) of the shades, from much better to much worse."""
    ends = [f"{low:g} to {high:g}" for low, high in pairwise(STEPS)] + [f"{STEPS[-1]:g} or more"]
    steps = list(enumerate(ends, start=1))
    scale = [(f"better-{n}", f"better by {end} nats") for n, end in reversed(steps)]
    scale += [("calm", f"changed by less than {STEPS[0]:g} nats")]
    scale += [(f"worse-{n}", f"worse by {end} nats") for n, end in steps]
    return [*scale, ("plain", "not masked")]


def _probes(probes: Sequence[ProbeChange], *, by_text: bool) -> doc.Section:
    parts = [_probe(probe, by_text) for probe in probes[:_PROBES]]
    blocks: list[doc.Block] = list(parts[:_OPEN])
    if parts[_OPEN:]:
        blocks.append(doc.Section(count(len(parts) - _OPEN, "more prompt"), parts[_OPEN:], fold=doc.In.PAGE))
    if len(probes) > _PROBES:
        blocks.append(doc.Text(f"and {count(len(probes) - _PROBES, 'prompt')} that changed less"))
    note = (
        "The prompts that changed most come first. Predictions are listed best first, with their probabilities. “now” "
        "and “was” give the rank on the other side; “gone” and “new” mark words that the other side does not list. ✓ "
        "marks the right answer."
    )
    return doc.Section("How the checkpoints fill the prompts", blocks, "probes", note, shown=doc.In.PAGE)


def _probe(probe: ProbeChange, by_text: bool) -> doc.Section:
    """Return a prompt with both rankings next to each other."""
    places = [_places(side, by_text) for side in (probe.before, probe.after)]
    before = [_cell(p, probe, places[0], places[1], by_text, ("now", "gone")) for p in probe.before[:_ROWS]]
    after = [_cell(p, probe, places[1], places[0], by_text, ("was", "new")) for p in probe.after[:_ROWS]]
    depth = max(len(before), len(after))
    columns = [[*cells, *[""] * (depth - len(cells))] for cells in (before, after)]
    kept = max(len(probe.before), len(probe.after))
    common = ", ".join(f"top {k}: {100 * part:.3g} %" for k, part in probe.overlap.items() if k <= kept)
    note = f"rank-biased overlap {number(probe.rank_biased_overlap, 3)}"
    note += f"; common to both: {common}" if common else ""
    if probe.expected:
        ranks = f"{rank(probe.rank_before, probe.before)} → {rank(probe.rank_after, probe.after)}"
        note += f"; right answer {probe.expected}: {ranks}"
    rows: list[list[doc.Line]] = [[str(n), *cells] for n, cells in enumerate(zip(*columns, strict=True), start=1)]
    return doc.Section(probe.prompt, [doc.Table(["", "before", "after"], rows)], note=note)


def _places(predictions: Sequence[Prediction], by_text: bool) -> dict[object, int]:
    """Map each token to its rank; tied tokens share the best of their ranks."""
    places: dict[object, int] = {}
    for group in ranked(predictions, by_text=by_text):
        first = len(places) + 1
        places |= dict.fromkeys(group, first)
    return places


def _cell(
    prediction: Prediction,
    probe: ProbeChange,
    here: dict[object, int],
    there: dict[object, int],
    by_text: bool,
    words: tuple[str, str],
) -> doc.Line:
    """Return a prediction, its place on the other side if that is another, and its probability."""
    text = prediction.text.strip()
    item: object = text if by_text else prediction.token
    other = there.get(item)
    moved = words[1] if other is None else "" if other == here[item] else f"{words[0]} {other}"
    right = bool(probe.expected) and text == probe.expected.strip()
    tags = [*([doc.Tag(moved)] if moved else []), *([doc.Tag("right answer", good=True)] if right else [])]
    spaced = [span for tag in tags for span in (" ", tag)]
    return (doc.Strong(text), *spaced, " ", doc.Share(prediction.probability, number(prediction.probability, 3)))


def _accuracy(accuracy: Accuracy) -> doc.Table:
    paired = accuracy.paired
    interval = f"{level(paired)} interval {points(paired.low)} to {points(paired.high)}"
    errors = (
        ("calibration error", accuracy.calibration_before, accuracy.calibration_after),
        ("Brier score", accuracy.brier_before, accuracy.brier_after),
    )
    rows = [
        [
            "correct predictions (higher is better)",
            share(accuracy.before),
            share(accuracy.after),
            f"{points(paired.difference)} points, {interval}",
        ],
        *(
            [f"{name} (lower is better)", number(a, 3), number(b, 3), f"{b - a:+.2g}" if b != a else "0"]
            for name, a, b in errors
        ),
    ]
    return doc.Table(["measure", "before", "after", "change"], rows)


def _origins(result: CheckResult) -> Iterator[doc.Section]:
    """Yield where both checkpoints come from: the differences, and folded what is the same."""
    rows = origins(result)

    def table(differing: bool) -> list[doc.Block]:
        cells: list[list[doc.Line]] = [
            [row.name, doc.Code(row.before), doc.Code(row.after)] for row in rows if row.differs is differing
        ]
        return [doc.Table(["fact", "baseline", "candidate"], cells)] if cells else []

    same = sum(not row.differs for row in rows)
    title = f"{count(same, 'fact')} {'is' if same == 1 else 'are'} the same for both"
    blocks = [*table(True), *([doc.Section(title, table(False), fold=doc.In.PAGE)] if same else [])]
    if rows:
        note = "Differences between the two checkpoints first."
        shown = doc.In.MARKDOWN | doc.In.PAGE
        yield doc.Section(
            "Where the two checkpoints come from", blocks, "origin", note, shown=shown, fold=doc.In.MARKDOWN
        )
    else:
        blocks = [doc.Text("Their origin was not recorded.")]
        yield doc.Section("Where the two checkpoints come from", blocks, "origin", shown=doc.In.PAGE)
