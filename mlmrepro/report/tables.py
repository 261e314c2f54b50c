"""The tables of a drift page: fill-mask ranks, warnings, and differences between the environments."""

from __future__ import annotations

from typing import Any

from mlmrepro.compare.drift import VARIED, Drift, Outcome
from mlmrepro.record import STAGES, RunRecord
from mlmrepro.report import document as doc
from mlmrepro.report.outline import short_names
from mlmrepro.report.series import expected, grouped, measured, observed
from mlmrepro.report.words import clean, number, value

__all__ = ["environments", "ranks", "settings", "warned"]

_RANKS = 10  # columns
_WARNINGS = 100
_OLD = ("DeprecationWarning", "FutureWarning", "PendingDeprecationWarning")  # announce removals in later versions


def ranks(drift: Drift) -> doc.Section | None:
    """Return the pipeline's predictions, best first, for each group of environments with equal predictions."""
    outcomes = measured(drift)
    reference = expected(drift, "fill_mask", "pipeline")
    places = {row[0]: n for n, row in enumerate(_predictions(reference.content if reference else None), start=1)}
    shown = [(o.name, _predictions(observed(o.record, "fill_mask", "pipeline"))) for o in outcomes]
    groups = grouped((name, rows) for name, rows in shown if rows)
    if not groups:
        return None
    rows: list[list[doc.Line]] = [
        [
            short_names(group.names, 3, len(outcomes)),
            *(
                (doc.Strong(text), f" {score}", *_moved(token, n, places))
                for n, (token, text, score) in enumerate(group.content, 1)
            ),
        ]
        for group in groups
    ]
    first = next((outcome.record for outcome in drift.outcomes if outcome.record is not None), None)
    prompt = first.config.get("guide", {}).get("prompt", "") if first else ""
    note = (
        f"The pipeline's predictions{f' for “{prompt}”' if prompt else ''}, best first, with their probabilities. "
        "“was” gives a token's rank in the reference; “new” marks tokens that the reference does not list."
    )
    table = doc.Table(["environments", *(f"rank {n}" for n in range(1, max(map(len, rows))))], rows)
    return doc.Section("How the mask was filled", [table], "filled-mask", note, shown=doc.In.PAGE)


def _predictions(content: Any) -> list[tuple[str, str, str]]:
    """Return (token, text, score) of each prediction; scores have four digits, so that rounding splits no group."""
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        return []
    return [
        (repr(row.get("token")), clean(row.get("token_str", row.get("token"))), number(row.get("score"), 4))
        for row in content[:_RANKS]
    ]


def _moved(token: str, place: int, places: dict[str, int]) -> tuple[doc.Span, ...]:
    if not places or places.get(token) == place:
        return ()
    return (" ", doc.Tag(f"was {places[token]}" if token in places else "new"))


def warned(drift: Drift) -> doc.Section | None:
    """Return the warnings of the libraries, deprecations first; equal messages share a row."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    outcomes = measured(drift)
    for outcome in outcomes:
        for stage, name in ((stage, name) for stage in STAGES for name in ("warnings", "off_path.warnings")):
            messages = observed(outcome.record, stage, name)
            for message in messages if isinstance(messages, list) else []:
                stages, names = found.setdefault(clean(message), ({}, {}))
                stages[stage], names[outcome.name] = None, None
    rows = []
    for message, (stages, names) in found.items():
        category, _, text = message.partition(": ")
        # The prefix of a log line is the name of the logger, such as transformers.trainer.
        kind, text = (category, text) if category.endswith("Warning") else ("log", message)
        old = kind in _OLD or "deprecat" in text
        rows.append((not old, kind, text, ", ".join(stages), short_names(list(names), 3, len(outcomes))))
    if not rows:
        return None
    cells: list[list[doc.Line]] = [[doc.Short(kind, kind), *rest] for _, kind, *rest in sorted(rows)[:_WARNINGS]]
    note = "Deprecations come first, because they announce future changes. Warnings are shown, but never compared."
    table = doc.Table(["kind", "message", "stages", "environments"], cells)
    return doc.Section("Warnings from the libraries", [table], "warnings", note, shown=doc.In.PAGE)


def environments(drift: Drift) -> doc.Section | None:
    """Return the package versions and machine facts that differ; what differs from the row above is emphasised."""
    outcomes = measured(drift)
    facts = [_facts(outcome) for outcome in outcomes]
    names = list(dict.fromkeys([*VARIED, *(name for fact in facts for name in fact)]))
    differing = [name for name in names if len({repr(fact.get(name)) for fact in facts}) > 1]
    if not differing:
        return None
    rows: list[list[doc.Line]] = []
    for n, (outcome, fact) in enumerate(zip(outcomes, facts, strict=True)):
        above = facts[max(n - 1, 0)]
        words = {name: str(fact.get(name) or "absent") for name in differing}
        cells: list[doc.Line] = [
            doc.Strong(word) if fact.get(name) != above.get(name) else word for name, word in words.items()
        ]
        rows.append([outcome.name, *cells])
    note = "Only versions and machine details that differ. Bold values differ from the row above."
    table = doc.Table(["environment", *differing], rows)
    return doc.Section("How the environments differ", [table], "environments", note, shown=doc.In.PAGE)


def _facts(outcome: Outcome) -> dict[str, Any]:
    provenance = outcome.record.provenance if outcome.record else {}
    facts: dict[str, Any] = dict(outcome.versions)
    for name in ("platform", "device"):
        part = provenance.get(name)
        facts |= {f"{name} {key}": content for key, content in part.items()} if isinstance(part, dict) else {}
    commit = provenance.get("commit")
    return facts | {"cpus": provenance.get("cpus"), "commit": commit.get("id") if isinstance(commit, dict) else None}


def settings(record: RunRecord) -> list[tuple[str, str]]:
    """Return the settings of a run."""
    config = record.config
    guide = config.get("guide", {})
    found = {"profile": config.get("profile"), "threads": config.get("threads")}
    found |= guide if isinstance(guide, dict) else {}
    return [(clean(name), value(content, 100)) for name, content in found.items()]
