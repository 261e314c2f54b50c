"""The tables of a drift page: fill-mask ranks, warnings, and differences between the environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlmrepro.compare.drift import VARIED, Drift, Outcome
from mlmrepro.record import STAGES, RunRecord
from mlmrepro.report.outline import short_names
from mlmrepro.report.series import expected, grouped, measured, observed
from mlmrepro.report.words import clean, number, value

__all__ = ["Rank", "Warned", "environment_table", "ranks", "setting_table", "warnings_table"]

_RANKS = 10  # columns
_OLD = ("DeprecationWarning", "FutureWarning", "PendingDeprecationWarning")  # announce removals in later versions


@dataclass(frozen=True)
class Rank:
    """A predicted token at its rank; `moved` gives its rank in the reference, "" if that is the same."""

    token: str
    score: str
    moved: str


@dataclass(frozen=True)
class Warned:
    """A warning with the stages and environments that gave it."""

    category: str
    message: str
    stages: str
    names: str
    old: bool


def ranks(drift: Drift) -> list[tuple[str, list[Rank]]]:
    """Return the pipeline's predictions, best first, for each group of environments with equal predictions."""
    outcomes = measured(drift)
    reference = expected(drift, "fill_mask", "pipeline")
    places = {row[0]: n for n, row in enumerate(_predictions(reference.content if reference else None), start=1)}
    shown = [(o.name, _predictions(observed(o.record, "fill_mask", "pipeline"))) for o in outcomes]
    groups = grouped((name, rows) for name, rows in shown if rows)
    return [
        (
            short_names(group.names, 3, len(outcomes)),
            [Rank(text, score, _moved(token, n, places)) for n, (token, text, score) in enumerate(group.content, 1)],
        )
        for group in groups
    ]


def _predictions(content: Any) -> list[tuple[str, str, str]]:
    """Return (token, text, score) of each prediction; scores have four digits, so that rounding splits no group."""
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        return []
    return [
        (repr(row.get("token")), clean(row.get("token_str", row.get("token"))), number(row.get("score"), 4))
        for row in content[:_RANKS]
    ]


def _moved(token: str, place: int, places: dict[str, int]) -> str:
    if not places or places.get(token) == place:
        return ""
    return f"was {places[token]}" if token in places else "new"


def warnings_table(drift: Drift) -> list[Warned]:
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
        kind = category if category.endswith("Warning") else "log"
        where = short_names(list(names), 3, len(outcomes))
        rows.append(
            Warned(
                kind, text if kind != "log" else message, ", ".join(stages), where, kind in _OLD or "deprecat" in text
            )
        )
    return sorted(rows, key=lambda row: (not row.old, row.category, row.message))


def environment_table(drift: Drift) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the names of the packages and machine facts that differ, and their values in each environment."""
    outcomes = measured(drift)
    facts = [_facts(outcome) for outcome in outcomes]
    names = list(dict.fromkeys([*VARIED, *(name for fact in facts for name in fact)]))
    differing = [name for name in names if len({repr(fact.get(name)) for fact in facts}) > 1]
    rows = [
        (clean(outcome.name), [clean(fact.get(name) or "absent") for name in differing])
        for outcome, fact in zip(outcomes, facts, strict=True)
    ]
    return differing, rows


def _facts(outcome: Outcome) -> dict[str, Any]:
    provenance = outcome.record.provenance if outcome.record else {}
    facts: dict[str, Any] = dict(outcome.versions)
    for name in ("platform", "device"):
        part = provenance.get(name)
        facts |= {f"{name} {key}": content for key, content in part.items()} if isinstance(part, dict) else {}
    commit = provenance.get("commit")
    return facts | {"cpus": provenance.get("cpus"), "commit": commit.get("id") if isinstance(commit, dict) else None}


def setting_table(record: RunRecord | None) -> list[tuple[str, str]]:
    """Return the settings of a run."""
    config = record.config if record else {}
    guide = config.get("guide", {})
    settings = {"profile": config.get("profile"), "threads": config.get("threads")}
    settings |= guide if isinstance(guide, dict) else {}
    return [(clean(name), value(content, 100)) for name, content in settings.items()]
