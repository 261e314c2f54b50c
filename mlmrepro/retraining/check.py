"""Make a baseline of the old checkpoint, and check the new one against it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlmrepro.errors import UserError
from mlmrepro.gate.assess import DocumentText, assess
from mlmrepro.gate.probes import probe_change
from mlmrepro.gate.result import CheckResult, Prediction, ProbeChange
from mlmrepro.provenance import collect
from mlmrepro.retraining.baseline import Baseline, ProbeRows, first_difference
from mlmrepro.retraining.settings import Settings
from mlmrepro.scores import Scores
from mlmrepro.scoring.documents import Document, Text
from mlmrepro.scoring.encode import Encoded, unmasked, words_of
from mlmrepro.scoring.filling import Probe, fill
from mlmrepro.scoring.plan import MASK_RATE, Plan, rows, token_plan, word_plan
from mlmrepro.scoring.scorer import BATCH_TOKENS, FORMATS, ROUNDING, Scorer

__all__ = ["Progress", "check", "check_checkpoint", "make_baseline"]

_ENOUGH = 0.99  # share of the baseline's words that a changed tokenizer must score, and decode unchanged


class Progress(Protocol):
    """Shows the progress."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units of `what` are scored."""


def _silent(what: str, done: int, total: int) -> None:
    pass


def make_baseline(
    scorer: Scorer,
    text: Text,
    *,
    checkpoint: str,
    rate: float = MASK_RATE,
    seed: int = 0,
    random_passes: int | None = None,
    probes: Sequence[Probe] = (),
    progress: Progress = _silent,
) -> Baseline:
    """Score the old checkpoint on the text: each token masked once, and each word once, for a changed tokenizer.

    With `random_passes` each pass draws tokens with probability `rate`, as the guide does, instead of complementary
    passes. Raises UserError for a text of one document, or losses that are NaN or infinite.
    """
    if len(text.documents) < 2:
        raise UserError(
            f"the text {text.source} is a single document, which does not show what holds for others",
            remedy="give at least two, better a few hundred (in .txt a blank line ends a document)",
        )
    texts = [document.text for document in text.documents]
    encoded = scorer.encode(texts)
    plan = token_plan(texts, encoded, rate=rate, seed=seed, random_passes=random_passes)
    tokens = scorer.score(plan, encoded, progress=_named(progress, "tokens"))
    if len(np.unique(plan.document)) < 2:
        raise UserError(
            f"only one document of the text {text.source} holds tokens that can be masked",
            remedy="give text that the tokenizer knows",
        )
    words, draws = _word_scores(scorer, texts, encoded, rate, seed, progress)
    for scores in (tokens, words):
        if broken := int((~np.isfinite(scores.loss)).sum()):
            raise UserError(
                f"{broken} of {len(scores)} losses of the checkpoint {checkpoint!r} are NaN or infinite",
                remedy="use another checkpoint; such a baseline would hide every regression",
            )
    lines = [probe.prompt for probe in probes]
    filled_in = (
        ProbeRows(probe.prompt, probe.expected, filled)
        for probe, filled in zip(probes, _filled(scorer, lines), strict=True)
    )
    return Baseline(
        documents=text.documents,
        ids=tuple(document.ids for document in encoded),
        tokens=tokens,
        token_draws=plan.draw,
        words=words,
        word_draws=draws,
        probes=tuple(filled_in),
        settings={
            "mask_rate": rate,
            "seed": seed,
            "masks": "complementary" if random_passes is None else f"random, {random_passes} passes",
            "max_length": scorer.encoder.max_length,
            "mask_token": scorer.mask_id,
            "around": [scorer.encoder.prefix, scorer.encoder.suffix],
            "windows": _windows(encoded),
            "words_kept": _words_kept(scorer, texts, encoded),
            "dtype": scorer.dtype,
            "tokens_per_byte": sum(map(len, encoded)) / sum(len(word) for t in texts for word in _bytes_of_words(t)),
        },
        about={
            "checkpoint": checkpoint,
            **scorer.about,
            "rounded": {name: scorer.rounded(name) for name in FORMATS},
            "unused": [dataclasses.asdict(each) for each in scorer.unused],
            "text": text.source,
            "text_column": text.column,
            "notes": [*text.notes, *unmasked(encoded), *_left_unmasked(plan, encoded), *_no_words(words)],
            "documents": len(texts),
            "tokens": len(tokens),
            "words": len(words),
            "perplexity": tokens.perplexity,
            "bits_per_byte": words.bits_per_byte if len(words) else None,
            **_where(),
        },
    )


def check_checkpoint(
    checkpoint: str,
    folder: Path,
    settings: Settings | None = None,
    *,
    name: str = "",
    device: str = "auto",
    dtype: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = _silent,
) -> CheckResult:
    """Check a checkpoint, a folder or hub name, against the baseline in `folder`; the report calls it `name`.

    Raises UserError for a baseline or a checkpoint that cannot be used.
    """
    baseline = Baseline.read(folder)
    wanted = baseline.settings
    scorer = Scorer.load(
        checkpoint,
        device=device,
        dtype=dtype or wanted["dtype"],
        max_length=wanted["max_length"],
        batch_tokens=batch_tokens,
    )
    return check(scorer, baseline, settings, checkpoint=name or checkpoint, progress=progress)


def check(
    scorer: Scorer,
    baseline: Baseline,
    settings: Settings | None = None,
    *,
    checkpoint: str = "in memory",
    progress: Progress = _silent,
) -> CheckResult:
    """Score the new checkpoint on the baseline's masks and say whether it is worse.

    If its tokenizer gives other tokens than the baseline's, whole words are compared, in bits per byte. Raises
    UserError if the two cannot be compared.
    """
    settings = settings or Settings()
    texts = [document.text for document in baseline.documents]
    encoded = scorer.encode(texts)
    notes = list(baseline.about["notes"])
    other = _other_tokens(scorer, baseline, encoded)
    read_otherwise = _other_windows(scorer, baseline, encoded)
    if other:
        notes.append(other)
        before, after = _same_words(scorer, baseline, encoded, notes, progress)
        units = [words_of(text) for text in texts]
        measure, scale = "bits per byte", float(baseline.settings["tokens_per_byte"])
    else:
        notes += read_otherwise
        before, after = baseline.tokens, _same_tokens(scorer, baseline, encoded, progress)
        units, measure, scale = _token_texts(texts, encoded), "perplexity", 1.0
    if scorer.dtype != baseline.settings["dtype"]:
        notes.append(f"the baseline was scored in {baseline.settings['dtype']}, this checkpoint in {scorer.dtype}")
    candidate = {"checkpoint": checkpoint, **scorer.about, **_where()}
    notes += _moved(baseline.about, candidate)
    return assess(
        before,
        after,
        measure=measure,
        margin=settings.margin,
        margin_nats=settings.margin_nats * scale,
        alpha=settings.alpha,
        power=settings.power,
        # bfloat16's rounding is too large to call losses equal by: it would hide a change of every token.
        rounding=ROUNDING["float32"] if {scorer.dtype, baseline.settings["dtype"]} == {"float32"} else 0.0,
        documents=_shown(baseline.documents, units),
        probes=_probe_changes(scorer, baseline, by_text=bool(other)),
        notes=notes,
        rounded=None if other or read_otherwise else baseline.rounding(scorer.rounded, scorer.dtype),
        unused=[*scorer.unused, *baseline.unused],
        provenance={"baseline": {**baseline.about, "settings": baseline.settings}, "candidate": candidate},
    )


def _other_tokens(scorer: Scorer, baseline: Baseline, encoded: Sequence[Encoded]) -> str:
    """Return what differs between the two tokenizers on this text, "" if nothing does."""
    first = first_difference(baseline.ids, [document.ids for document in encoded])
    if first is not None:
        name = baseline.documents[first].name
        return f"the tokenizer changed (first seen in document {name}): words are compared, in bits per byte"
    if scorer.mask_id != baseline.settings["mask_token"]:
        return "the mask token has another id: words are compared, in bits per byte"
    return ""


def _same_tokens(scorer: Scorer, baseline: Baseline, encoded: Sequence[Encoded], progress: Progress) -> Scores:
    wanted = baseline.settings["max_length"]
    if scorer.encoder.max_length != wanted:
        raise UserError(
            f"the baseline has windows of {wanted} tokens, but this checkpoint reads {scorer.encoder.max_length}",
            remedy=f"make the baseline with --max-length {min(wanted, scorer.encoder.max_length)}",
        )
    plan = Plan("token", baseline.tokens.document, baseline.tokens.position, baseline.token_draws)
    return scorer.score(plan, encoded, progress=_named(progress, "tokens"))


def _same_words(
    scorer: Scorer, baseline: Baseline, encoded: Sequence[Encoded], notes: list[str], progress: Progress
) -> tuple[Scores, Scores]:
    old = baseline.words
    if not len(old):
        raise UserError(
            "the tokenizer changed, and the baseline has no words to compare: its text has none between spaces",
            remedy="make the baseline with the new tokenizer, or compare by other means",
        )
    texts = [document.text for document in baseline.documents]
    kept_now, kept_then = _words_kept(scorer, texts, encoded), baseline.settings["words_kept"]
    if kept_now < kept_then - (1 - _ENOUGH):
        raise UserError(
            f"the changed tokenizer keeps {kept_now:.1%} of the words unchanged, the baseline's "
            f"{kept_then:.1%}: bits per byte would reward it for what it throws away",
            remedy="make the baseline from text that both keep, such as lower-cased text without accents",
        )
    plan = Plan("word", old.document, old.position, baseline.word_draws)
    new = scorer.score(plan, encoded, progress=_named(progress, "words"))
    before, after = (_numbered(scores.document, scores.position) for scores in (old, new))
    _, kept, _ = np.intersect1d(before, after, assume_unique=True, return_indices=True)
    if len(kept) < _ENOUGH * len(old):
        raise UserError(
            f"the changed tokenizer can score {len(kept)} of the baseline's {len(old)} words: the others hold tokens "
            "unknown to it, or do not fit into a window",
            remedy="make the baseline from text that both tokenizers know",
        )
    if len(kept) < len(old):
        notes.append(f"{len(old) - len(kept)} of {len(old)} words left out: the new tokenizer cannot score them")
    shared = _taken(old, kept)
    return shared, dataclasses.replace(new, size=shared.size)


def _word_scores(
    scorer: Scorer, texts: Sequence[str], encoded: Sequence[Encoded], rate: float, seed: int, progress: Progress
) -> tuple[Scores, NDArray[np.int32]]:
    words = [_bytes_of_words(text) for text in texts]
    plan = word_plan(texts, [len(document) for document in words], rate=rate, seed=seed)
    if next(rows(plan, encoded), None) is None:  # a protein, or a script without spaces, is one long word
        return Scores.empty(), np.array([], dtype=np.int32)
    scores = scorer.score(plan, encoded, progress=_named(progress, "words"))
    sizes = [len(words[n][position]) for n, position in zip(scores.document, scores.position, strict=True)]
    draw = {place: d for place, d in zip(zip(plan.document, plan.position, strict=True), plan.draw, strict=True)}
    draws = [draw[place] for place in zip(scores.document, scores.position, strict=True)]
    return dataclasses.replace(scores, size=np.array(sizes, dtype=np.int32)), np.array(draws, dtype=np.int32)


def _numbered(document: NDArray[np.int32], position: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return one number for each place in the text."""
    return document.astype(np.int64) << 32 | position


def _bytes_of_words(text: str) -> list[bytes]:
    return [word.encode("utf-8", "surrogatepass") for word in words_of(text)]


def _taken(scores: Scores, kept: NDArray[Any]) -> Scores:
    return Scores(**{f.name: getattr(scores, f.name)[kept] for f in dataclasses.fields(Scores)})


def _filled(scorer: Scorer, prompts: Sequence[str]) -> list[tuple[Prediction, ...]]:
    return [tuple(Prediction(*row) for row in rows) for rows in fill(scorer, prompts)]


def _probe_changes(scorer: Scorer, baseline: Baseline, *, by_text: bool) -> list[ProbeChange]:
    filled = _filled(scorer, [probe.prompt for probe in baseline.probes])
    return [
        probe_change(probe.prompt, probe.predictions, rows, probe.expected, by_text=by_text)
        for probe, rows in zip(baseline.probes, filled, strict=True)
    ]


def _token_texts(texts: Sequence[str], encoded: Sequence[Encoded]) -> list[list[str]]:
    """Return the text of each token, with the spaces before it: joined they are the document."""
    return [
        [text[start:stop] for start, stop in pairwise([0, *document.ends.tolist()])]
        for text, document in zip(texts, encoded, strict=True)
    ]


def _shown(documents: Sequence[Document], units: Sequence[Sequence[str]]) -> list[DocumentText]:
    return [DocumentText(d.name, d.topic, words) for d, words in zip(documents, units, strict=True)]


def _where() -> dict[str, Any]:
    """Return where a score was made: what may affect it besides the weights."""
    origin = collect()
    return {name: origin[name] for name in ("packages", "python", "platform")}


def _moved(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a note if the libraries or the device changed: they may affect the scores too."""
    pairs = [(name, before["packages"].get(name), after["packages"].get(name)) for name in ("transformers", "torch")]
    pairs.append(("device", before["device"], after["device"]))
    told = ", ".join(f"{name} {old} → {new}" for name, old, new in pairs if old != new)
    return [f"changed since the baseline: {told}, which may explain a difference"] if told else []


def _other_windows(scorer: Scorer, baseline: Baseline, encoded: Sequence[Encoded]) -> list[str]:
    """Return a note if equal tokens are read in another context."""
    if [scorer.encoder.prefix, scorer.encoder.suffix] != baseline.settings["around"]:
        return [
            "the tokenizer puts other special tokens around a text than the baseline's, which may explain a difference"
        ]
    if _windows(encoded) != baseline.settings["windows"]:
        return ["documents are cut into other windows than the baseline's, which may explain a difference"]
    return []


def _windows(encoded: Sequence[Encoded]) -> str:
    """Return a digest of where documents are cut."""
    return hashlib.sha256(repr([document.windows for document in encoded]).encode()).hexdigest()[:16]


def _words_kept(scorer: Scorer, texts: Sequence[str], encoded: Sequence[Encoded]) -> float:
    """Return the share of words that their decoded tokens give back unchanged, white space aside."""
    total = kept = 0
    for text, document in zip(texts, encoded, strict=True):
        words = words_of(text)
        bounds = np.searchsorted(document.words, np.arange(len(words) + 1))
        decoded = scorer.tokenizer.batch_decode(
            [document.ids[start:stop].tolist() for start, stop in pairwise(bounds)], clean_up_tokenization_spaces=False
        )
        kept += sum("".join(back.split()) == word for back, word in zip(decoded, words, strict=True))
        total += len(words)
    return kept / max(total, 1)


def _left_unmasked(plan: Plan, encoded: Sequence[Encoded]) -> list[str]:
    """Return a note if a random plan leaves tokens out: masking all of them gives more evidence from the same text."""
    masked, total = len(np.unique(_numbered(plan.document, plan.position))), sum(map(len, encoded))
    if masked == total - sum(int((~document.maskable).sum()) for document in encoded):
        return []
    return [f"the random masks score {masked} of {total} tokens; without --random-passes every one is scored"]


def _no_words(words: Scores) -> list[str]:
    return [] if len(words) else ["the text has no words between spaces, so a changed tokenizer cannot be compared"]


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)
