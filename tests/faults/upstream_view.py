"""The table of upstream's real bugs, and what catches each: of a record its golden, of an injection what saw it."""

from __future__ import annotations

from collections.abc import Sequence

from mlmrepro.report.document import sentence
from mlmrepro.report.markdown import inline
from tests.faults.result import BenchResult, CaseResult
from tests.faults.upstream import Bug

__all__ = ["caught_by", "upstream_markdown"]


def caught_by(bug: Bug, result: BenchResult) -> str:
    """Return what catches a bug, "" where nothing is known to."""
    if bug.evidence == "record":
        return f"golden `{bug.caught_by}`" if bug.caught_by else ""
    case = next((case for case in result.cases if case.name == f"upstream_{bug.id}"), None)
    return "; ".join(_alarms(case)) if case else ""


def _alarms(case: CaseResult) -> list[str]:
    """Return each layer with what it objected to: a law by its name, another by the stage."""
    found: dict[str, list[str]] = {}
    for alarm in case.alarms:
        what = alarm.what.split(":")[0] if alarm.layer in ("law", "property") else alarm.stage
        found.setdefault(alarm.layer, []).append(f"`{what}`")
    return [f"{layer} {', '.join(dict.fromkeys(names[:4]))}" for layer, names in found.items()]


def upstream_markdown(bugs: Sequence[Bug], result: BenchResult) -> str:
    """Return the table, with each bug's link, versions, and what catches it."""
    rows = [
        (
            f"[{inline(bug.package)}]({bug.link})",
            inline(f"{bug.affected}{f'; fixed: {bug.fixed}' if bug.fixed else '; open'}"),
            inline(sentence(" ".join(filter(None, (bug.symptom, bug.measured and f"Measured: {bug.measured}"))))),
            bug.stage,
            bug.evidence,
            caught_by(bug, result) or f"nothing: {inline(sentence(bug.why))}",
        )
        for bug in bugs
    ]
    head = ("package", "versions", "what a user sees", "stage", "shown by", "caught by")
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### Upstream's bugs, and what catches each\n\n{table}\n"
