"""Take the values of other versions anew: ``python -m tests.reproduction.variants golden/matrix``.

A new embedded checkpoint changes values that differ between releases. `tox run -e goldens` replaces those of the
installed versions; this replaces the others by what the records of a matrix hold.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mlmrepro.compare.golden import Golden, read_golden, versions_of, write_golden
from mlmrepro.compare.values import differences
from mlmrepro.record import STAGES, RunRecord

GOLDENS = Path(__file__).parents[2] / "golden" / "embedded"


def renewed(golden: Golden, stage: str, records: Sequence[RunRecord]) -> Iterator[str]:
    """Replace each variant's value by that of a record whose versions it holds for; yield the name of each new one."""
    for name, entry in golden.entries.items():
        if len(entry.variants) == 1:
            continue
        variants = []
        for variant in entry.variants:
            record = next((r for r in records if variant in entry.matching(versions_of(r.provenance))), None)
            found = record and record.stages.get(stage, {}).get(name)
            if found and differences(entry.lane, variant.value, found.value, entry.tolerance):
                variant = replace(variant, value=found.value)
                yield f"{stage}.{name} ({' and '.join(variant.when)})"
            variants.append(variant)
        golden.entries[name] = replace(entry, variants=tuple(variants))


def main(folder: Path) -> None:
    """Renew all goldens from the records of a folder, and print what was new."""
    records = [RunRecord.read(path) for path in sorted(folder.glob("t*.json"))]
    for stage in STAGES:
        path = GOLDENS / f"{stage}.json"
        golden = read_golden(path)
        if new := list(renewed(golden, stage, records)):
            write_golden(path, golden)
            print("\n".join(new))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
