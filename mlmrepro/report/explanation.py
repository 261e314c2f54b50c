"""What is known of a value: where it is observed, what each record has, and what releases are declared to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby, pairwise
from typing import Any

from mlmrepro.compare.changes import json_value
from mlmrepro.compare.declare import known_breaches
from mlmrepro.compare.drift import Outcome
from mlmrepro.compare.golden import Variant
from mlmrepro.compare.judge import Expectations, Verdict, judge_record
from mlmrepro.errors import UserError
from mlmrepro.record import Part, observer, part
from mlmrepro.report import document as doc
from mlmrepro.report.words import and_more, clean, count

__all__ = ["Explanation", "explain", "explanation_content", "explanation_document"]

_WIDTH = 100  # characters of a value
_NAMED = 4  # types of models in a line
_PLACES = {Part.FLOW: "on the guide's path", Part.ISOLATED: "on a stored input", Part.OFF_PATH: "off the guide's path"}

Sources = Mapping[str, tuple[str, str]]  # of an observation such as `loss.accumulation`: its claim, its file and line


@dataclass(frozen=True)
class Explanation:
    """What is known of one value: `name` is ``stage.name``, `lane` says how it is compared, or its bound."""

    name: str
    claim: str
    source: str
    lane: str
    declared: tuple[tuple[Variant, tuple[str, ...]], ...]  # with the types of models; () means all
    obtained: tuple[tuple[tuple[str, ...], Any, Verdict], ...]  # records in a row that have the same value

    @property
    def undeclared(self) -> tuple[str, str] | None:
        """Return two records in a row of which one has an undeclared value, None if all are declared."""
        pairs = ((a[-1], b[0]) for (a, _, old), (b, _, new) in pairwise(self.obtained) if old.fails != new.fails)
        return next(pairs, None)


def explain(
    text: str, expectations: Expectations, outcomes: Sequence[Outcome], sources: Sources
) -> tuple[Explanation, ...]:
    """Return what is known of each value of this name, pattern or end of a name.

    Raises UserError, with the nearest names, if there is none.
    """
    records = [(outcome.name, outcome.record) for outcome in outcomes if outcome.record is not None]
    observed = {f"{o.stage}.{o.name}": o for _, record in records for o in record}
    entries = {f"{stage}.{name}": e for stage, named in expectations.entries.items() for name, e in named.items()}
    known: dict[str, list[tuple[Variant, tuple[str, ...]]]] = {}
    for each in known_breaches():
        known.setdefault(each.name.replace(".", ".off_path.", 1), []).append((each.variant, each.models))
    chosen = _matching(text, [*entries, *observed, *known])
    obtained: dict[str, list[tuple[str, Any, Verdict]]] = {key: [] for key in chosen}
    for at, record in records:
        verdicts = {f"{f.stage}.{f.name}": f.verdict for f in judge_record(expectations, record)}
        for seen in record:
            if (key := f"{seen.stage}.{seen.name}") in obtained:
                obtained[key].append((at, seen.value, verdicts.get(key, Verdict.IDENTICAL)))
    found = []
    for key in chosen:
        stage, _, name = key.partition(".")
        claim, source = sources.get(f"{stage}.{observer(name)}", ("", ""))
        entry, o = entries.get(key), observed.get(key)
        lane = f"held to {o.bound}" if o and o.bound else f"lane {entry.lane.value}" if entry else ""
        claim = " ".join(filter(None, [claim, f"Here: {o.title}." if o and o.title else ""]))
        declared = (*((variant, ()) for variant in (entry.variants if entry else ())), *known.get(key, ()))
        groups = [list(group) for _, group in groupby(obtained[key], lambda row: (repr(row[1]), row[2].fails))]
        rows = tuple((tuple(row[0] for row in group), *group[-1][1:]) for group in groups)
        found.append(Explanation(key, claim, source, lane, declared, rows))
    return tuple(found)


def _matching(text: str, names: Iterable[str]) -> list[str]:
    """Return the names that are this one, match it as a pattern, end in it, or are values of this observation."""
    short = {name: name.replace(".off_path.", ".") for name in names}
    for test in (
        lambda name: text in (name, short[name]),
        lambda name: fnmatchcase(name, text),
        lambda name: name.endswith(f".{text}"),
        lambda name: f".{text}." in f".{short[name]}",
    ):
        if chosen := [name for name in short if test(name)]:
            return chosen
    ends = {key: name for name in short for key in (name, short[name], short[name].partition(".")[2])}
    near = list(dict.fromkeys(ends[each] for each in difflib.get_close_matches(text, ends, n=9, cutoff=0.5)))
    advice = f"did you mean {' or '.join(near[:3])}?" if near else "copy a name from a report; * matches any characters"
    raise UserError(f"no golden, record or declaration has the name {text!r}", remedy=advice)


def explanation_document(found: Sequence[Explanation]) -> doc.Document:
    """Return the document: for each value where it is observed, what the records have, and what is declared."""
    undeclared = [each for each in found if each.undeclared]
    declared = sum(any(variant.reason for variant, _ in each.declared) for each in found)
    next_step: doc.Line = ""
    if undeclared:
        before, after = undeclared[0].undeclared or ("", "")
        watch = f"`mlmrepro bisect PACKAGE OLD NEW --watch {undeclared[0].name}`"
        text = f"it changed between {before} and {after}: find the release with {watch}"
        next_step = doc.sentence(f"{text}, or declare it with `mlmrepro expect`.")
    if len(found) > 1:
        headline = f"{count(len(found), 'value')}: {declared} declared to change, {len(undeclared)} changed undeclared"
    else:
        said = "an undeclared change" if undeclared else "declared changes" if declared else "no known change"
        headline = f"{found[0].name} has {said}"
    return doc.Document(None, headline, blocks=[_section(each) for each in found], next_step=next_step)


def _section(each: Explanation) -> doc.Section:
    stage, _, name = each.name.partition(".")
    where = ", ".join(filter(None, [f"Stage {stage}", _PLACES[part(name)], each.lane, each.source]))
    blocks: list[doc.Block] = [doc.Text(text) for text in (each.claim, f"{where}.") if text]
    rows: list[list[doc.Line]] = [
        [_span(names), _shown(value), doc.Mark(verdict)] for names, value, verdict in each.obtained
    ]
    blocks += [doc.Table(["records", "value", "against the goldens"], rows)] if rows else []
    for (reason, link), group in groupby(each.declared, lambda row: (row[0].reason, row[0].link)):
        rows = [[_when(variant, models), _shown(variant.value)] for variant, models in group]
        why: list[doc.Span] = [f"Declared: {reason} ", doc.Link(link)] if link else ["The golden:"]
        blocks += [doc.Text(tuple(why)), doc.Table(["versions", "value"], rows)]
    return doc.Section(each.name, blocks, name=each.name)


def _when(variant: Variant, models: tuple[str, ...]) -> str:
    named = ", ".join([*models[:_NAMED], *and_more(models[_NAMED:], "model")])
    return (" and ".join(variant.when) or "all versions") + (f", {named}" if named else "")


def _span(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"


def _shown(content: Any) -> str:
    text = f"{content:.6g}" if isinstance(content, float) else clean(repr(content))
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def explanation_content(found: Sequence[Explanation]) -> list[dict[str, Any]]:
    """Return plain JSON values."""
    return [
        {
            **{"name": each.name, "claim": each.claim, "source": each.source, "lane": each.lane},
            "obtained": [
                {"records": list(names), "value": json_value(value), "verdict": verdict.value}
                for names, value, verdict in each.obtained
            ],
            "declared": [
                {"when": list(v.when), "models": list(models), "value": json_value(v.value)}
                | {"reason": v.reason, "link": v.link}
                for v, models in each.declared
            ],
            "undeclared": list(each.undeclared or ()),
        }
        for each in found
    ]
