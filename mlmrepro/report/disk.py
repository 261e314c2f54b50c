"""The documents of the environments on the disk: which there are, and which were removed."""

from __future__ import annotations

from datetime import datetime

from mlmrepro.environments.disk import Disk, Made, Pruned
from mlmrepro.report import document as doc
from mlmrepro.report.words import and_more, count

__all__ = ["disk_document", "pruned_document"]

_NAMED = 12


def disk_document(disk: Disk, bound: float) -> doc.Document:
    """Return a table of the environments, the last used one first, and what they take together."""
    rows: list[list[doc.Line]] = [
        [
            doc.Short(each.home.name, each.home.name.rpartition("-")[0]),
            ", ".join(f"{name} {version}" for name, version in sorted(each.versions.items())),
            _size(each.own),
            _size(each.shared),
            _last_used(each),
        ]
        for each in reversed(disk.environments)
    ]
    return doc.Document(
        None,
        f"{count(len(rows), 'environment')} on the disk: {_size(disk.total)}",
        facts=[("folder", str(disk.folder)), ("bound", doc.sentence(f"{_size(bound)}, `max-disk`"))],
        blocks=[doc.Table(("environment", "holds", "own", "shared", "last used"), rows)] if rows else [],
        next_step=doc.sentence("`mlmrepro environments prune` removes some." if rows else "nothing to do."),
    )


def pruned_document(done: Pruned, *, dry: bool) -> doc.Document:
    """Return what was removed, or would be, and what it frees."""
    groups = {"environments": done.environments, "packages": done.packages}
    named = {name: [home.name for home in homes] for name, homes in groups.items() if homes}
    return doc.Document(
        None,
        f"{count(len(done.environments), 'environment')} {'would be ' if dry else ''}removed: "
        f"{_size(done.freed)} {'would be ' if dry else ''}freed, {_size(done.left)} left",
        facts=[
            (name, ", ".join([*homes[:_NAMED], *and_more(homes[_NAMED:], name.removesuffix("s"))]))
            for name, homes in named.items()
        ],
    )


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _last_used(made: Made) -> str:
    if made.busy:
        return "in use"
    return datetime.fromtimestamp(made.used).date().isoformat() if made.used else "not finished"
