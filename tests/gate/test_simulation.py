"""The promises of the statistics: the committed simulation keeps them, and running it again gives the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlmrepro.gate import simulation
from mlmrepro.gate.simulation import FIRST, LIMITS, SCENARIOS, SEEDS, SeedScenario

RESULTS = Path(__file__).parents[2] / "golden/gate/simulation.json"
FOUND: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
ROWS = {row["name"]: row for part in ("scenarios", "seeds", "limits") for row in FOUND[part]}
BY_NAME = {scenario.name: scenario for scenario in (*SCENARIOS, *LIMITS)}


def claim(row: dict[str, Any], what: str) -> dict[str, Any]:
    (found,) = [c for c in row["claims"] if c["what"] == what]
    return found


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_promises_hold(scenario: simulation.Scenario) -> None:
    """False alarms and assurances at most alpha, coverage at least 98 %, power 95 %, in 2,000 trials or more."""
    row = ROWS[scenario.name]
    assert [c["what"] for c in row["claims"] if not c["holds"]] == []
    assert {c["what"] for c in row["claims"]} == {*simulation._FALSE, "covered", "seen"}
    assert all(c["trials"] >= 2000 for c in row["claims"])


def test_the_promises_hold_for_all_together() -> None:
    """Over all trials of all scenarios the bounds are narrow, and no rate of false claims is above alpha itself."""
    rows = FOUND["together"]["claims"]
    assert all(c["holds"] for c in rows)
    assert all(c["rate"] <= FOUND["alpha"] for c in rows if c["promised"].startswith("at most"))
    assert claim(FOUND["together"], "covered")["rate"] >= 1 - 2 * FOUND["alpha"]
    assert claim(FOUND["together"], "seen")["rate"] >= FOUND["power"]
    assert all(c["high"] - c["low"] < 0.005 for c in rows)


@pytest.mark.parametrize("scenario", SEEDS, ids=lambda scenario: scenario.name)
def test_the_promises_of_seeds_hold(scenario: SeedScenario) -> None:
    """The permutation test keeps its alpha of 0.05 and its power, with normal and with skewed losses."""
    row = ROWS[scenario.name]
    assert [c["what"] for c in row["claims"] if not c["holds"]] == []
    assert all(c["trials"] >= 2000 for c in row["claims"])


@pytest.mark.parametrize("name", [s.name for s in SEEDS if (s.before, s.after) in ((2, 2), (1, 5))])
def test_too_few_seeds_never_conclude(name: str) -> None:
    """Two against two, and one against five, gave no answer in any trial."""
    assert [c["count"] for c in ROWS[name]["claims"]] == [0, 0, 0, 0]


def test_the_results_are_of_this_code() -> None:
    """The file names every scenario, and the constants it was made with."""
    made = (FOUND["seed"], FOUND["alpha"], FOUND["power"], FOUND["margin_nats"], FOUND["spread_nats"])
    assert made == (
        *(simulation.SEED, simulation.ALPHA, simulation.POWER),
        *(simulation.MARGIN, simulation.SPREAD),
    )
    assert [row["name"] for row in FOUND["scenarios"]] == [scenario.name for scenario in SCENARIOS]
    assert [row["name"] for row in FOUND["limits"]] == [scenario.name for scenario in LIMITS]
    assert [row["name"] for row in FOUND["seeds"]] == [scenario.name for scenario in SEEDS]


RERUN = [
    "correlated 0.3, 12 documents of unequal length",
    "tokens skewed down, 12 documents of equal length",
    "huge changes both ways, 80 documents of unequal length",
]


@pytest.mark.parametrize("name", RERUN)
def test_a_rerun_counts_the_same(name: str) -> None:
    """The first trials, run again, give the counts that are stored: the file is no hope, it is what happens."""
    counts, _ = simulation.run(BY_NAME[name], FIRST)
    assert dict(counts) == ROWS[name]["first"]


def test_a_rerun_with_seeds_counts_the_same() -> None:
    """The same of the permutation test."""
    scenario = next(s for s in SEEDS if s.name == "3 against 3 seeds, skewed")
    assert dict(simulation.run_seeds(scenario, FIRST)) == ROWS[scenario.name]["first"]


def test_tokens_taken_as_independent_are_convicted() -> None:
    """The wrong method, which ignores documents, fails where they correlate: the check above can fail."""
    wrong = FOUND["wrong_methods"]
    assert wrong
    for row in wrong:
        assert not claim(row, "regression at the margin")["holds"]
        assert not claim(row, "covered")["holds"]
    counts, _ = simulation.run(BY_NAME["correlated 0.3, 80 documents of unequal length"], 50, naive=True)
    (covered,) = [c for c in simulation._claims(counts, 50, 0.01, 1e-4) if c["what"] == "covered"]
    assert not covered["holds"]
    assert covered["rate"] < 0.6


def test_normal_quantiles_are_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of Student's t and its widening, they give false alarms far above alpha with five documents."""
    monkeypatch.setattr("mlmrepro.gate.paired._degrees", lambda share: 1e6)
    monkeypatch.setattr("mlmrepro.gate.paired._widening", lambda skewness, level: 1.0)
    scenario = BY_NAME["independent, 5 documents of equal length"]
    counts, _ = simulation.run(scenario, 600)
    broken = [c["what"] for c in simulation._claims(counts, 600, 0.01, 1e-5) if not c["holds"]]
    assert "regression at the margin" in broken
    assert "covered" in broken


def test_the_limits_are_told() -> None:
    """Where documents have a tail to one side, few cannot be enough: how many are is measured, and few do fail."""
    assert set(FOUND["holds_from_documents"]) == set(simulation._TAILS)
    for tail, least in FOUND["holds_from_documents"].items():
        rows = [row for row in FOUND["limits"] if row["name"].startswith(f"documents {tail},")]
        alarms = {row["documents"]: claim(row, "regression at the margin") for row in rows}
        assert not alarms[min(alarms)]["holds"]
        assert all(alarms[n]["holds"] for n in alarms if n >= least)


def test_bounds_are_clopper_and_pearsons() -> None:
    """A rate just inside its bound holds and one far outside does not, whichever side was promised."""

    def holds(count: int, alpha: float, *, exact: bool = False) -> dict[str, bool]:
        counts = simulation.Counter({"regression at 0": count, "covered": 2000 - 2 * count})
        return {c["what"]: c["holds"] for c in simulation._claims(counts, 2000, alpha, 0.001, exact=exact)}

    assert holds(25, 0.01) == {"regression at 0": True, "covered": True}
    assert holds(60, 0.01) == {"regression at 0": False, "covered": False}
    assert holds(0, 0.01) == {"regression at 0": True, "covered": True}
    assert holds(0, 0.01, exact=True) == {"regression at 0": True, "covered": False}


def test_the_program_writes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with few trials it writes the whole structure, and exits with 1 where a promise is broken."""
    monkeypatch.setattr(simulation, "SCENARIOS", SCENARIOS[:2])
    monkeypatch.setattr(simulation, "LIMITS", LIMITS[:1])
    monkeypatch.setattr(simulation, "SEEDS", (SeedScenario(3, 3, "normal", trials=20),))
    monkeypatch.setattr(simulation, "FIRST", 5)
    monkeypatch.setattr(simulation.Scenario, "trials", property(lambda scenario: 50))
    assert simulation.main([str(tmp_path / "new" / "out.json")]) == 0
    written = json.loads((tmp_path / "new" / "out.json").read_text(encoding="utf-8"))
    assert written.keys() == FOUND.keys()
    monkeypatch.setattr("mlmrepro.gate.paired._degrees", lambda share: 1e6)
    assert simulation.main([str(tmp_path / "out.json")]) == 1
