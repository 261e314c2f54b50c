"""The rows to measure again are named: the committed list is that of today's code, and the program writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlmrepro.errors import UserError
from tests.faults import stale
from tests.faults.digests import remeasure
from tests.faults.mutation_results import remeasure as remeasure_functions

FOLDER = Path(__file__).parents[2] / "golden" / "faults"


def test_every_row_that_measured_other_code_is_named() -> None:
    """A row of either table measured the code of today, or stands in the list of those to measure again."""
    named = json.loads((FOLDER / "stale.json").read_text(encoding="utf-8"))
    found = stale.stale_rows(FOLDER)
    lines = [*remeasure(found["detection"]), *remeasure_functions(found["mutation"])]
    assert found == named, "\n".join([*lines, "or name them: python -m tests.faults.stale"])


def test_the_program_names_what_changed_and_how_it_is_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row and a function of another digest come into the file, and out of it where the digest is that of today."""
    for name in ("detection.json", "mutation.json"):
        shutil.copy(FOLDER / name, tmp_path)
    detection = json.loads((tmp_path / "detection.json").read_text(encoding="utf-8"))
    mutation = json.loads((tmp_path / "mutation.json").read_text(encoding="utf-8"))
    row = next(case for case in detection["cases"] if "fault" in case["code"])
    module = "gate/seeds.py"
    function, digest = next(iter(mutation["code"][module].items()))
    row["code"]["fault"], mutation["code"][module][function] = "0" * 12, "0" * 12
    for name, content in (("detection.json", detection), ("mutation.json", mutation)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    stale.main([str(tmp_path)])
    named = json.loads((tmp_path / "stale.json").read_text(encoding="utf-8"))
    assert "fault" in named["detection"][row["name"]]
    assert function in named["mutation"][module]
    said = capsys.readouterr().out
    assert f"{row['name']} has to be measured again: " in said
    assert "tox run -e mutation -- " in said
    assert f"'mlmrepro.{module.removesuffix('.py').replace('/', '.')}.*'" in said
    mutation["code"][module][function] = digest
    (tmp_path / "mutation.json").write_text(json.dumps(mutation), encoding="utf-8")
    assert function not in stale.stale_rows(tmp_path)["mutation"].get(module, [])


def test_a_folder_without_the_tables_is_refused(tmp_path: Path) -> None:
    """The file that is missing is named."""
    with pytest.raises(UserError, match=r"mutation\.json cannot be read"):
        stale.main([str(tmp_path)])
