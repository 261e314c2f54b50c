"""Whether the statistics keep their promises: ``python -m tests.gate.simulation golden/gate/simulation.json``.

Texts of known true difference are drawn and judged. Counted are false alarms and false assurances, how often the
interval covers the truth, and how often a difference as small as promised is seen. Beside the promises stand their
limits, where no small sample of documents can be enough, and two wrong methods, which must be seen to fail.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.stats import binomtest

from mlmrepro.files import atomic_write
from mlmrepro.gate.judge import answer
from mlmrepro.gate.paired import paired
from mlmrepro.gate.result import Answer
from mlmrepro.gate.seeds import compare_seeds
from mlmrepro.provenance import collect

__all__ = ["SCENARIOS", "SEEDS", "Scenario", "SeedScenario", "main", "run", "run_seeds", "simulate"]

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, NDArray[np.int64]], Floats]

SEED = 20240607
ALPHA, POWER = 0.01, 0.95
MARGIN = math.log(1.01)
SPREAD = 0.3  # nats, standard deviation of a token's change; 0.05 to 0.5 were measured on the embedded model
FIRST = 100  # trials whose counts are stored apart, for a quick rerun
ERROR = 0.01  # chance that any of all claims fails though every promise holds (Bonferroni)
LIMIT_ERROR = 0.025  # the same of a single claim about the limits: there, doubt counts against the statistics


def independent(rng: np.random.Generator, lengths: NDArray[np.int64]) -> Floats:
    """Tokens that change independently of each other; as all draws, of shape (lengths.sum(),), mean 0, variance 1."""
    return rng.normal(size=lengths.sum())


def correlated(rng: np.random.Generator, lengths: NDArray[np.int64], share: float, effect: str = "normal") -> Floats:
    """Tokens of a document that change together: this share of the variance is the document's (ICC).

    The document's effect is normal; "long" makes it proportional to the document's length; "exponential" and
    "lognormal" are skewed, "rare" is nothing in 19 of 20 documents. "+" and "-" before them say to which side.
    """
    sign = -1.0 if effect.startswith("-") else 1.0
    name, size = effect.lstrip("+-"), len(lengths)
    if name == "exponential":
        documents: NDArray = rng.exponential(size=size) - 1
    elif name == "lognormal":
        documents = (np.exp(rng.normal(size=size)) - math.exp(0.5)) / math.sqrt(math.exp(2) - math.exp(1))
    elif name == "rare":
        documents = ((rng.random(size) < 0.05) - 0.05) / math.sqrt(0.05 * 0.95)
    else:
        documents = rng.normal(size=size) * (lengths / lengths.mean() if name == "long" else 1)
    tokens = rng.normal(size=lengths.sum())
    return math.sqrt(1 - share) * tokens + math.sqrt(share) * sign * np.repeat(documents, lengths)


def student(rng: np.random.Generator, lengths: NDArray[np.int64], degrees: float) -> Floats:
    """Tokens with heavy tails."""
    return rng.standard_t(degrees, lengths.sum()) / math.sqrt(degrees / (degrees - 2))


def lognormal(rng: np.random.Generator, lengths: NDArray[np.int64], sign: float) -> Floats:
    """Skewed tokens: a few change much to one side (skewness 6.2), the others a little to the other."""
    return sign * (np.exp(rng.normal(size=lengths.sum())) - math.exp(0.5)) / math.sqrt(math.exp(2) - math.exp(1))


def huge(rng: np.random.Generator, lengths: NDArray[np.int64]) -> Floats:
    """One document in 20 in which every token changes by 10 standard deviations, up or down."""
    signs = rng.choice([-1.0, 1.0], len(lengths)) * (rng.random(len(lengths)) < 0.05)
    return rng.normal(size=lengths.sum()) + 10 * np.repeat(signs, lengths)


@dataclass(frozen=True)
class Scenario:
    """A kind of text: how its tokens change, how many documents it has, and how unequal their lengths are."""

    family: str
    draw: Draw
    documents: int
    lengths: str = "unequal"
    middle: int = 90  # tokens of a middling document

    @property
    def name(self) -> str:
        """What it is called in the results, and what its random numbers depend on."""
        return f"{self.family}, {self.documents} documents of {self.lengths} length"

    @property
    def trials(self) -> int:
        """More where they are cheap."""
        return 10_000 if self.documents <= 20 else 4_000 if self.documents <= 80 else 2_000

    @property
    def exact(self) -> bool:
        """Whether the interval must not cover more often than stated either: many documents, normal tokens."""
        return self.documents >= 80 and self.family in ("independent", *_CORRELATED)

    def text(self, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
        """Draw the changes of a text's tokens, true mean 0, and the lengths of its documents."""
        spread = {"equal": 0.0, "very unequal": 1.2}.get(self.lengths, 0.7)
        lengths = np.rint(self.middle * np.exp(spread * rng.normal(size=self.documents))).astype(np.int64).clip(5)
        if self.lengths == "one half the text":
            lengths[0] = lengths[1:].sum()
        return SPREAD * self.draw(rng, lengths), lengths


_FEW, _ALL = (5, 8, 12), (5, 8, 12, 80, 395)
_CORRELATED: dict[str, Draw] = {
    "correlated 0.05": partial(correlated, share=0.05),
    "correlated 0.3": partial(correlated, share=0.3),
}
_SKEWED: dict[str, Draw] = {
    "tokens skewed up": partial(lognormal, sign=1.0),
    "tokens skewed down": partial(lognormal, sign=-1.0),
}
SCENARIOS = (
    *(Scenario("independent", independent, n) for n in (2, 3, *_ALL)),
    *(Scenario("independent", independent, n, "equal") for n in (5, 80)),
    *(Scenario(name, draw, n) for name, draw in _CORRELATED.items() for n in _ALL),
    *(Scenario(name, draw, 12, how) for name, draw in _CORRELATED.items() for how in ("equal", "one half the text")),
    *(Scenario(name, draw, 12, "very unequal") for name, draw in _CORRELATED.items()),
    *(Scenario("long documents change more", partial(correlated, share=0.1, effect="long"), n) for n in (12, 80)),
    *(Scenario("Student's t, 2.5 degrees", partial(student, degrees=2.5), n) for n in _ALL),
    *(Scenario("Student's t, 3 degrees", partial(student, degrees=3.0), n) for n in (8, 80)),
    *(Scenario("huge changes both ways", huge, n) for n in _ALL),
    *(Scenario(name, draw, n) for name, draw in _SKEWED.items() for n in _ALL),
    *(Scenario(name, draw, 12, "equal") for name, draw in _SKEWED.items()),
)
# A tail of documents to one side: 20 documents cannot show what 1 in 20 is like. Down is the side of false alarms.
_TAILS = ("-exponential", "-lognormal", "-rare")
LIMITS = tuple(
    Scenario(f"documents {tail}", partial(correlated, share=0.1, effect=tail), n, middle=20)
    for tail in _TAILS
    for n in (12, 40, 80, 200, 395, 1000, 3000)
)


def run(scenario: Scenario, trials: int, *, naive: bool = False) -> tuple[Counter[str], dict[str, float]]:
    """Return how often each thing happened in the first `trials` of a scenario, and the medians of some figures.

    `naive` takes each token for a document: the wrong method that the correlated scenarios must convict.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(scenario.name.encode())])
    counts: Counter[str] = Counter()
    figures = np.empty((trials, 4))
    for trial in range(trials):
        tokens, lengths = scenario.text(rng)
        units = len(tokens)
        starts = np.cumsum(lengths) - lengths
        sums, sizes = (tokens, np.ones(units)) if naive else (np.add.reduceat(tokens, starts), lengths)
        none = paired(sums, sizes, alpha=ALPHA, power=POWER, units=units)
        just = paired(sums + MARGIN * sizes, sizes, alpha=ALPHA, power=POWER, units=units)
        seen = paired(sums + none.smallest_effect * sizes, sizes, alpha=ALPHA, power=POWER, units=units)
        counts["regression at 0"] += answer(none, MARGIN) is Answer.REGRESSION
        counts["better at 0"] += answer(none, MARGIN) is Answer.BETTER
        counts["worse at 0"] += none.low > 0
        counts["regression at the margin"] += answer(just, MARGIN) is Answer.REGRESSION
        counts["same at the margin"] += answer(just, MARGIN) in (Answer.SAME, Answer.BETTER)
        counts["covered"] += none.low <= 0 <= none.high
        counts["seen"] += seen.low > 0
        figures[trial] = none.low, none.smallest_effect, none.high - none.low, none.difference
    low, effect, width, difference = figures.T
    return counts, {
        "smallest_effect": float(np.median(effect)),
        "width_over_known_error": float(np.median(width) / (2 * 2.3263 * difference.std())),
        "seen_of_median_effect": float(np.mean(low + np.median(effect) > 0)),
    }


@dataclass(frozen=True)
class SeedScenario:
    """Runs of two recipes, with a standard deviation of 0.005 nats between seeds."""

    before: int
    after: int
    shape: str  # "normal", or "skewed": exponential
    trials: int = 2_000

    @property
    def name(self) -> str:
        """What it is called in the results, and what its random numbers depend on."""
        return f"{self.before} against {self.after} seeds, {self.shape}"


SEEDS = tuple(
    SeedScenario(before, after, shape)
    for before, after in ((2, 2), (1, 5), (3, 3), (3, 5), (4, 4), (5, 5))
    for shape in ("normal", "skewed")
)


def run_seeds(scenario: SeedScenario, trials: int) -> Counter[str]:
    """Return how often each thing happened in the first `trials`, at the default alpha of `compare_seeds`."""
    rng = np.random.default_rng([SEED, zlib.crc32(scenario.name.encode())])
    counts: Counter[str] = Counter()
    for _ in range(trials):
        size = scenario.before + scenario.after
        losses = 4 + 0.005 * (rng.normal(size=size) if scenario.shape == "normal" else rng.exponential(size=size) - 1)
        before, after = losses[: scenario.before].tolist(), losses[scenario.before :]
        none = compare_seeds(before, after.tolist(), margin_nats=MARGIN)
        just = compare_seeds(before, (after + MARGIN).tolist(), margin_nats=MARGIN)
        counts["concluded"] += none.answer is not Answer.INCONCLUSIVE or just.answer is not Answer.INCONCLUSIVE
        counts["regression at 0"] += none.answer is Answer.REGRESSION
        counts["better at 0"] += none.answer is Answer.BETTER
        counts["regression at the margin"] += just.answer is Answer.REGRESSION
        counts["same at the margin"] += just.answer in (Answer.SAME, Answer.BETTER)
        if none.low is not None and none.high is not None:
            counts["covered"] += none.low <= 0 <= none.high
        if none.smallest_effect is not None:
            seen = compare_seeds(before, (after + none.smallest_effect).tolist(), margin_nats=MARGIN)
            counts["seen"] += seen.low is not None and seen.low > 0
    return counts


_FALSE = ("regression at 0", "better at 0", "worse at 0", "regression at the margin", "same at the margin")


def _claims(
    counts: Counter[str], trials: int, alpha: float, error: float, *, exact: bool = False
) -> list[dict[str, Any]]:
    """Return each promise with its count, Clopper-Pearson bounds, and whether these leave it standing.

    `error` is the chance that a bound lies on the wrong side of the true rate.
    """
    promised = [(name, "at most", alpha) for name in _FALSE if name in counts]
    promised += [("covered", "exactly" if exact else "at least", 1 - 2 * alpha)] * ("covered" in counts)
    promised += [("seen", "at least", POWER)] * ("seen" in counts)
    rows = []
    for name, kind, bound in promised:
        test = binomtest(counts[name], trials)
        low, high = test.proportion_ci(1 - 2 * error, method="exact")
        holds = (low <= bound or kind == "at least") and (high >= bound or kind == "at most")
        rows.append(
            {"what": name, "promised": f"{kind} {bound:g}", "count": counts[name], "trials": trials}
            | {"rate": counts[name] / trials, "low": float(low), "high": float(high), "holds": bool(holds)}
        )
    return rows


def _measured(scenario: Scenario, error: float, *, naive: bool = False) -> dict[str, Any]:
    counts, figures = run(scenario, scenario.trials, naive=naive)
    rows = _claims(counts, scenario.trials, ALPHA, error, exact=scenario.exact)
    return {"name": scenario.name, "documents": scenario.documents} | figures | {"claims": rows}


def simulate(tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Run everything and return the results as plain JSON values; `tell` is called with a line for each scenario."""
    error = ERROR / (7 * len(SCENARIOS) + 6 * len(SEEDS) + 7)  # the last for all scenarios together
    found: dict[str, Any] = {
        **{"seed": SEED, "numpy": np.__version__, "scipy": scipy.__version__},
        **{"alpha": ALPHA, "power": POWER, "margin_nats": MARGIN, "spread_nats": SPREAD},
        **{"error_over_all_claims": ERROR, "error_of_a_limit": LIMIT_ERROR},
    }

    def told(row: dict[str, Any]) -> dict[str, Any]:
        rates = ", ".join(f"{c['what']} {100 * c['rate']:.2f} %" for c in row["claims"])
        tell(f"{'holds' if all(c['holds'] for c in row['claims']) else 'FAILS'}: {row['name']}: {rates}")
        return row

    found["scenarios"] = [
        told(_measured(scenario, error)) | {"first": dict(run(scenario, FIRST)[0])} for scenario in SCENARIOS
    ]
    found["together"] = told({"name": "all scenarios together", "claims": _together(found["scenarios"], error)})
    found["seeds"] = [
        told({"name": s.name, "claims": _claims(run_seeds(s, s.trials), s.trials, 0.05, error)})
        | {"first": dict(run_seeds(s, FIRST))}
        for s in SEEDS
    ]
    found["limits"] = [told(_measured(scenario, LIMIT_ERROR)) for scenario in LIMITS]
    found["holds_from_documents"] = {tail: _holds_from(found["limits"], f"documents {tail}") for tail in _TAILS}
    found["wrong_methods"] = [
        told(_measured(s, error, naive=True)) for s in SCENARIOS if s.family in _CORRELATED and s.documents == 80
    ]
    return found


def _together(rows: Sequence[dict[str, Any]], error: float) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update({claim["what"]: claim["count"] for claim in row["claims"]})
    return _claims(counts, sum(row["claims"][0]["trials"] for row in rows), ALPHA, error)


def _holds_from(rows: Sequence[dict[str, Any]], family: str) -> int | None:
    """Return from how many documents on every promise but the power holds, None where not even with the most."""
    broken = [
        row["documents"]
        for row in rows
        if row["name"].startswith(family) and not all(c["holds"] for c in row["claims"] if c["what"] != "seen")
    ]
    tried = sorted(row["documents"] for row in rows if row["name"].startswith(family))
    return next((n for n in tried if n > max(broken, default=0)), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the results; exit code 1 where a promise does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.gate.simulation", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="the JSON file to write")
    output = parser.parse_args(arguments).output
    found = {"provenance": collect()} | simulate()
    atomic_write(output, json.dumps(found, indent=1) + "\n")
    rows = [*found["scenarios"], found["together"], *found["seeds"]]
    return int(not all(claim["holds"] for row in rows for claim in row["claims"]))


if __name__ == "__main__":
    raise SystemExit(main())
