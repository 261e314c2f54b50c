"""Which packages cause which change of an upgrade, on the terminal, in Markdown and as JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmrepro.environments.attribute import Attribution, Cause, Swapped
from mlmrepro.record import STAGES
from mlmrepro.report import markdown
from mlmrepro.report.console import say, standard_output
from mlmrepro.report.words import and_more, clean, count, pairs_line

__all__ = ["attribution_content", "attribution_markdown", "print_attribution"]

Versions = Mapping[str, tuple[str, str]]  # old and new, of each package that differs

_NAMED = 3  # values in a row of the table
_LISTED = 5  # of each kind of remark


def print_attribution(found: Attribution, versions: Versions, console: Console | None = None) -> None:
    """Print the table of stages and packages, and what the search could not say."""
    console = console or standard_output()
    console.print()
    say(console, _headline(found), bold="Causes: ")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("stage", "values", "caused by"):
        table.add_column(title, overflow="fold", justify="right" if title == "values" else "left")
    table.add_column("such as", overflow="fold")
    for stage, packages, names in _rows(found):
        table.add_row(
            stage, str(len(names)), Text(_packages(packages, found, versions)), Text(clean(_such(stage, names)))
        )
    if found.explained:
        console.print()
        console.print(table)
    remarks = list(_remarks(found))
    if remarks:
        console.print()
    for remark in remarks:
        say(console, remark, indent=2)
    console.print()
    say(console, _next(found, versions), bold="Next: ")


def attribution_markdown(found: Attribution, versions: Versions) -> str:
    """Return the same as Markdown."""
    page = markdown.Page(markdown.PR_LIMIT)
    page.add(f"### Causes\n\n{markdown.sentence(_headline(found))}")
    rows = [
        [
            stage,
            str(len(names)),
            markdown.prose(_packages(packages, found, versions)),
            markdown.prose(_such(stage, names)),
        ]
        for stage, packages, names in _rows(found)
    ]
    if rows:
        page.add(markdown.table(["stage", "values", "caused by", "such as"], rows))
    page.add("\n".join(f"- {markdown.prose(remark)}" for remark in _remarks(found)))
    page.add(f"**Next:** {markdown.sentence(_next(found, versions))}")
    return str(page)


def attribution_content(found: Attribution, versions: Versions) -> dict[str, Any]:
    """Return plain JSON values."""
    return {
        "complete": found.complete,
        "stopped": found.stopped,
        "packages": {name: list(pair) for name, pair in versions.items()},
        "changes": [
            {
                "name": each.name,
                "causes": [
                    {
                        "packages": list(cause.packages),
                        "swapped_with_them": list(cause.along),
                        "require_each_other": cause.inseparable,
                        "smaller_sets_not_measured": [sorted(smaller) for smaller in cause.unresolved],
                    }
                    for cause in each.causes
                ],
                "complete": each.complete,
                "among": list(each.among),
                "note": each.note,
            }
            for each in found.explained
        ],
        "hidden": {name: [sorted(each) for each in sets] for name, sets in sorted(found.hidden.items())},
        "measured": [
            {"swapped": sorted(swapped), "values_changed": len(each.changed), "problem": each.problem}
            for swapped, each in found.measured.items()
        ],
    }


def _headline(found: Attribution) -> str:
    measured = count(len(found.measured), "mixture") + " of both sides measured"
    if not found.explained and not found.stopped:
        return f"there is no change to explain; {measured}."
    known = sum(bool(each.causes) for each in found.explained)
    text = f"{known} of {count(len(found.explained), 'changed value')} explained; {measured}."
    return text + (f" The search ended early: {clean(found.stopped)}." if found.stopped else "")


def _rows(found: Attribution) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    table = found.table()
    for stage in sorted(table, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES)):
        for packages, names in sorted(table[stage].items(), key=lambda item: -len(item[1])):
            yield stage, packages, names


def _packages(packages: tuple[str, ...], found: Attribution, versions: Versions) -> str:
    if not packages:
        return "not known"
    inseparable = any(c.inseparable for each in found.explained for c in each.causes if c.packages == packages)
    shown = [pairs_line({name: versions.get(name, ("", ""))}) for name in packages]
    if len(shown) == 1:
        return shown[0]
    return " and ".join(shown) + (", which require each other" if inseparable else ", only together")


def _such(stage: str, names: list[str]) -> str:
    short = [name.removeprefix(f"{stage}.") for name in names]
    return ", ".join([*short[:_NAMED], *and_more(short[_NAMED:], "value")])


def _remarks(found: Attribution) -> Iterator[str]:
    """Yield what the table does not show: who came along, what was not measured, what is hidden or left open."""
    causes = {cause for each in found.explained for cause in each.causes}
    for cause in sorted(causes, key=lambda cause: cause.packages):
        yield from _about(cause, found)
    left = dict.fromkeys((each.among, each.note) for each in found.explained if not each.causes)
    for among, note in list(left)[:_LISTED]:
        names = [each.name for each in found.explained if (each.among, each.note) == (among, note)]
        where = f"the cause is among {_listed(among)} ({clean(note)})" if among else clean(note)
        yield f"{_listed(names)}: {where}"
    unsure = dict.fromkeys(each.note for each in found.explained if each.causes and not each.complete)
    for note in list(unsure)[:_LISTED]:
        yield f"whether other packages make the same changes is not known: {clean(note)}"
    for swapped, problem in list(found.failed.items())[:_LISTED]:
        yield f"not measured: the old side with {_set(swapped, found)} of the new one: {clean(problem)}"
    more = len(found.failed) - _LISTED
    if more > 0:
        yield f"not measured either: {count(more, 'other mixture')}; --json lists them"
    hidden: dict[tuple[Swapped, ...], list[str]] = {}
    for name, sets in sorted(found.hidden.items()):
        hidden.setdefault(sets, []).append(name)
    for sets, names in list(hidden.items())[:_LISTED]:
        yield f"not in the whole upgrade, but with {_set(sets[0], found)} of the new side alone: {_listed(names)}"


def _about(cause: Cause, found: Attribution) -> Iterator[str]:
    who = " and ".join(cause.packages)
    if cause.along:
        also = "cannot be swapped without" if len(cause.packages) == 1 else "cannot be swapped together without"
        yield f"{who} {also} {_listed(cause.along)}, so these were swapped too"
    if cause.unresolved:
        smaller = "; ".join(_set(each, found) for each in cause.unresolved[:_LISTED])
        yield f"{who}: smaller sets might make the same changes, but could not be measured: {smaller}"


def _set(swapped: Swapped, found: Attribution) -> str:
    """Return the packages in the order of the search."""
    return _listed(name for name in found.packages if name in swapped)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _LISTED
    return ", ".join(map(clean, names[:_LISTED])) + (f" and {more} more" if more > 0 else "")


def _next(found: Attribution, versions: Versions) -> str:
    if found.stopped:
        return "run the same command again, with a larger --budget. What was measured is kept."
    causes = {cause for each in found.explained for cause in each.causes}
    if not causes:
        return "nothing to do."
    names = dict.fromkeys(name for cause in sorted(causes, key=lambda each: each.packages) for name in cause.packages)
    pins = " ".join(f"{name}=={versions[name][0]}" for name in names)
    if found.complete:
        return f"to keep the old behaviour, upgrade all but {pins}. Without them, each change was seen to be gone."
    return f"to keep the old behaviour, try the upgrade with {pins}."
