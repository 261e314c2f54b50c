"""The promises of the statistics: the committed simulation keeps them, and running it again gives the same."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.gate import simulation
from tests.gate.simulation import FIRST, LIMITS, SCENARIOS, SEEDS, SeedScenario

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
    for scenario in (*SCENARIOS, *LIMITS, *SEEDS):
        assert {c["trials"] for c in ROWS[scenario.name]["claims"]} == {scenario.trials}
    exact = {name for name in BY_NAME if claim(ROWS[name], "covered")["promised"].startswith("exactly")}
    families = ("independent", "correlated 0.05", "correlated 0.3")
    assert exact == {s.name for s in SCENARIOS if s.family in families and s.documents >= 80}
    assert exact == {s.name for s in BY_NAME.values() if s.exact}


RERUN = [
    "correlated 0.3, 12 documents of unequal length",
    "tokens skewed down, 12 documents of equal length",
    "huge changes both ways, 80 documents of unequal length",
    "long documents change more, 12 documents of unequal length",
    "Student's t, 2.5 degrees, 8 documents of unequal length",
    "tokens skewed up, 5 documents of unequal length",
    "correlated 0.05, 12 documents of one half the text length",
    "correlated 0.05, 12 documents of very unequal length",
]


@pytest.mark.parametrize("name", RERUN)
def test_a_rerun_counts_the_same(name: str) -> None:
    """The first trials, run again, give the counts that are stored: the file is no hope, it is what happens."""
    counts, _ = simulation.run(BY_NAME[name], FIRST)
    assert dict(counts) == ROWS[name]["first"]


@pytest.mark.parametrize("scenario", [s for s in SEEDS if s.before == 3], ids=lambda scenario: scenario.name)
def test_a_rerun_with_seeds_counts_the_same(scenario: SeedScenario) -> None:
    """The same of the permutation test."""
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
    assert (tmp_path / "new" / "out.json").read_text(encoding="utf-8") == json.dumps(written, indent=1) + "\n"
    monkeypatch.setattr("mlmrepro.gate.paired._degrees", lambda share: 1e6)
    assert simulation.main([str(tmp_path / "out.json")]) == 1


DRAWS: dict[str, simulation.Draw] = {
    "independent": simulation.independent,
    "normal": partial(simulation.correlated, share=0.9),
    "long": partial(simulation.correlated, share=0.9, effect="long"),
    "skewed documents": partial(simulation.correlated, share=0.9, effect="+exponential"),
    "documents skewed down": partial(simulation.correlated, share=0.9, effect="-exponential"),
    "very skewed documents": partial(simulation.correlated, share=0.9, effect="lognormal"),
    "rare documents": partial(simulation.correlated, share=0.9, effect="rare"),
    "heavy tails": partial(simulation.student, degrees=8.0),
    "skewed tokens": partial(simulation.lognormal, sign=1.0),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_has_mean_0_and_variance_1(name: str) -> None:
    """Each kind of change is drawn around the truth that the counts suppose, and in the unit of SPREAD."""
    drawn = DRAWS[name](np.random.default_rng(0), np.full(100_000, 3))
    assert drawn.shape == (300_000,)
    # 6 standard errors of the mean of 100,000 documents; 4 of the variance, with a kurtosis of 20, of lognormals 110.
    assert abs(drawn.mean()) < 6 * math.sqrt(1 / 100_000)
    assert drawn.var() == pytest.approx(1, abs=4 * math.sqrt((110 if "skewed" in name else 20) / 100_000))


@pytest.mark.parametrize("effect", ["exponential", "lognormal", "rare"])
def test_a_tail_lies_on_the_side_that_its_sign_says(effect: str) -> None:
    """The same draws turned round: "-" is the side where documents change for the better all at once."""
    up, down, plain = (
        simulation.correlated(np.random.default_rng(0), np.full(2000, 3), 0.9, f"{sign}{effect}")
        for sign in ("+", "-", "")
    )
    assert stats.skew(up) > 1
    assert stats.skew(down) < -1
    assert (up == plain).all()


def test_documents_that_change_together_share_their_part_of_the_variance() -> None:
    """Among tokens of one document the correlation is the share, and between documents none."""
    drawn = simulation.correlated(np.random.default_rng(0), np.full(20_000, 2), 0.3).reshape(-1, 2)
    # 4 standard errors of a correlation of 20,000 pairs.
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(0.3, abs=4 / math.sqrt(20_000))
    assert np.corrcoef(drawn[1:, 0], drawn[:-1, 1])[0, 1] == pytest.approx(0, abs=4 / math.sqrt(20_000))


TRIALS = 15
Program = tuple[list[str], dict[str, Any]]
FEW = (
    SCENARIOS[0],
    BY_NAME["independent, 80 documents of unequal length"],
    BY_NAME["correlated 0.3, 80 documents of unequal length"],
)
RUNS = (SeedScenario(3, 3, "normal", trials=TRIALS), SeedScenario(2, 2, "normal", trials=TRIALS))


@pytest.fixture(scope="module")
def program() -> Program:
    """Return the lines and the results of three texts, one limit and two sets of seeds, with few trials each."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "SCENARIOS", FEW)
        patch.setattr(simulation, "LIMITS", (LIMITS[0],))
        patch.setattr(simulation, "SEEDS", RUNS)
        patch.setattr(simulation, "FIRST", 5)
        patch.setattr(simulation.Scenario, "trials", property(lambda scenario: TRIALS))
        return lines, simulation.simulate(lines.append)


def test_each_result_is_told_as_it_is_written(program: Program) -> None:
    """A line for each text, for all together, for seeds, limits and the wrong methods: the word, and each rate."""
    lines, found = program
    rows = [*found["scenarios"], found["together"], *found["seeds"], *found["limits"], *found["wrong_methods"]]
    assert [line.split(": ")[1] for line in lines] == [row["name"] for row in rows]
    assert [row["name"] for row in rows] == [
        *(scenario.name for scenario in FEW),
        "all scenarios together",
        "3 against 3 seeds, normal",
        "2 against 2 seeds, normal",
        "documents -exponential, 12 documents of unequal length",
        "correlated 0.3, 80 documents of unequal length",
    ]
    for line, row in zip(lines, rows, strict=True):
        word, _, rates = line.split(": ")
        assert word == ("holds" if all(c["holds"] for c in row["claims"]) else "FAILS")
        assert rates == ", ".join(f"{c['what']} {100 * c['count'] / c['trials']:.2f} %" for c in row["claims"])
    assert lines[-1].startswith("FAILS")
    assert found["holds_from_documents"] == {"-exponential": 12, "-lognormal": None, "-rare": None}


def test_each_result_is_that_of_its_trials(program: Program) -> None:
    """Counts, medians and the first trials are those of `run`; together they are summed; the naive method is apart."""
    _, found = program
    for row, scenario in zip(found["scenarios"], FEW, strict=True):
        counts, figures = simulation.run(scenario, TRIALS)
        assert {c["what"]: c["count"] for c in row["claims"]} == counts
        assert {name: row[name] for name in figures} == figures
        assert row["first"] == simulation.run(scenario, 5)[0]
        assert row["documents"] == scenario.documents
    for together in found["together"]["claims"]:
        alone = [claim(row, together["what"]) for row in found["scenarios"]]
        assert (together["count"], together["trials"]) == (sum(c["count"] for c in alone), 3 * TRIALS)
    (wrong,) = found["wrong_methods"]
    for row, runs in zip(found["seeds"], RUNS, strict=True):
        assert {c["what"]: c["count"] for c in row["claims"]} == {
            name: count for name, count in simulation.run_seeds(runs, TRIALS).items() if name != "concluded"
        }
        assert row["first"] == simulation.run_seeds(runs, 5)
    naive, _ = simulation.run(FEW[2], TRIALS, naive=True)
    assert {c["what"]: c["count"] for c in wrong["claims"]} == naive


def test_each_claim_is_held_to_its_error(program: Program) -> None:
    """The chance of a false conviction is shared by 7 claims a text, 6 of seeds and 7 together; limits have their own.

    Coverage of many normal documents has to be exact, of few at least as promised.
    """
    _, found = program
    error = simulation.ERROR / (7 * 3 + 6 * 2 + 7)
    rows = [(row, 0.01, error) for row in (*found["scenarios"], found["together"])]
    rows += [(found["seeds"][0], 0.05, error), (found["limits"][0], 0.01, simulation.LIMIT_ERROR)]
    for row, alpha, shared in rows:
        for c in row["claims"]:
            bounds = stats.binomtest(c["count"], c["trials"]).proportion_ci(1 - 2 * shared, method="exact")
            assert (c["low"], c["high"]) == (bounds.low, bounds.high)
        promised = {c["what"]: c["promised"] for c in row["claims"]}
        exact = "exactly" if row["name"] in (FEW[1].name, FEW[2].name) else "at least"
        assert promised["covered"] == f"{exact} {1 - 2 * alpha:g}"
        assert promised["better at 0"] == f"at most {alpha:g}"
        assert promised["seen"] == "at least 0.95"


def test_where_the_limits_end_is_where_all_larger_texts_keep_every_promise() -> None:
    """From the largest text that breaks one, the next is named; power alone breaks none; none where all break."""

    def row(documents: int, **holds: bool) -> dict[str, Any]:
        name = f"tail, {documents} documents"
        return {"name": name, "documents": documents, "claims": [{"what": w, "holds": h} for w, h in holds.items()]}

    rows = [row(12, covered=False), row(40, covered=True), row(80, covered=False), row(200, covered=True, seen=False)]
    assert simulation._holds_from(rows, "tail") == 200
    assert simulation._holds_from(rows[:2], "tail") == 40
    assert simulation._holds_from(rows[1:2], "tail") == 40
    assert simulation._holds_from(rows[:1], "tail") is None
    assert simulation._holds_from(rows, "other") is None


def test_huge_changes_are_of_one_document_in_20_and_both_ways() -> None:
    """Mean 0, and a variance of 1 + 10^2 / 20: in every twentieth document each token moves by 10, up or down."""
    drawn = simulation.huge(np.random.default_rng(0), np.full(100_000, 2)).reshape(-1, 2).mean(axis=1)
    assert drawn.mean() == pytest.approx(0, abs=6 * math.sqrt(6 / 100_000))
    for side in (drawn[drawn > 5], -drawn[drawn < -5]):
        assert len(side) == pytest.approx(2500, abs=6 * 50)
        assert side.mean() == pytest.approx(10, abs=6 / math.sqrt(5000))


def test_the_figures_beside_the_counts_are_what_they_are_called() -> None:
    """Of many normal tokens an interval is as wide as Student's t says, and 95 % of texts see the median effect."""
    scenario = BY_NAME["independent, 80 documents of equal length"]
    _, figures = simulation.run(scenario, 300)
    # Equal documents of 90 normal tokens; of 300 trials a standard deviation is known to 4 %.
    error = simulation.SPREAD / math.sqrt(80 * 90)
    assert figures["width_over_known_error"] == pytest.approx(stats.t.ppf(0.99, 79) / 2.3263, rel=4 * 0.04)
    assert figures["smallest_effect"] == pytest.approx((stats.t.ppf(0.99, 79) + 1.645) * error, rel=0.05)
    assert figures["seen_of_median_effect"] == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / 300))


def test_at_a_margin_of_0_the_two_texts_of_seeds_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there are as many false alarms at 0 as at the margin: about 5 in 100, and they are counted."""
    monkeypatch.setattr(simulation, "MARGIN", 0.0)
    counts = simulation.run_seeds(SeedScenario(3, 3, "normal"), 100)
    assert 1 < counts["regression at 0"] == counts["regression at the margin"] < 15
