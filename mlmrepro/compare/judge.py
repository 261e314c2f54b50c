"""Judge each observation: compare what was expected with what was obtained, and give a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from mlmrepro.compare.bounds import breaches
from mlmrepro.compare.declare import Known, known_breach
from mlmrepro.compare.golden import Entry, Variant, read_golden, versions_of
from mlmrepro.compare.own_tests import expected_tests, is_declared, is_unmeasured
from mlmrepro.compare.tolerance import Tolerance, default_tolerance
from mlmrepro.compare.values import ABSENT, Difference, differences
from mlmrepro.errors import UserError
from mlmrepro.record import ALL_STAGES, STAGES, TESTS, Lane, Observation, Part, RunRecord, current, observer, part

__all__ = [
    "Expectations",
    "Finding",
    "Verdict",
    "agree",
    "asked",
    "better_direction",
    "broken_bounds",
    "judge",
    "judge_bounds",
    "judge_record",
    "not_asked",
    "worst",
]


class Verdict(str, Enum):
    """What a comparison says, best first."""

    IDENTICAL = "identical"
    WITHIN_NOISE = "within noise"
    EXPECTED = "expected change"
    IMPROVEMENT = "improvement"
    INCONCLUSIVE = "inconclusive"
    UNMEASURED = "unmeasured"
    REGRESSION = "REGRESSION"

    @property
    def fails(self) -> bool:
        """Return whether a gate fails; what was not measured never passes."""
        return self in (Verdict.INCONCLUSIVE, Verdict.UNMEASURED, Verdict.REGRESSION)

    @property
    def is_change(self) -> bool:
        """Return whether there is something to report."""
        return self not in (Verdict.IDENTICAL, Verdict.WITHIN_NOISE)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the gravest verdict, UNMEASURED if there are none."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.UNMEASURED)


@dataclass(frozen=True)
class Finding:
    """The verdict on one observation, and its grounds."""

    stage: str
    name: str
    verdict: Verdict
    differences: tuple[Difference, ...] = ()
    variant: Variant | None = None  # the declared one that matched
    better: str = ""
    quantity: str = ""  # what its floats measure
    bound: bool = False  # it breaks a bound within its record, so no earlier stage is the cause

    @property
    def part(self) -> Part:
        """Return where in its stage it was observed."""
        return part(self.name)

    @property
    def observer(self) -> str:
        """Return the observation that it belongs to, "" on the guide's own path."""
        return observer(self.name)

    @property
    def reason(self) -> str:
        """Return the declared cause, "" if it is not declared."""
        return self.variant.reason if self.variant and self.verdict is Verdict.EXPECTED else ""

    @property
    def link(self) -> str:
        """Return where the declared cause is documented."""
        return self.variant.link if self.variant and self.verdict is Verdict.EXPECTED else ""


class Expectations:
    """What is expected, by stage and name: from a golden directory, or from another record."""

    def __init__(
        self,
        entries: Mapping[str, Mapping[str, Entry]],
        versions: Mapping[str, str | None],
        config: Mapping[str, Any] | None = None,
        record: RunRecord | None = None,
        broken: Mapping[str, Any] | None = None,
    ) -> None:
        self.entries = entries
        self.versions = versions  # those of the golden, or of the record
        self.config = config or {}  # its settings, if known
        self.record = record  # the record, None for goldens
        self.broken = dict(broken or {})  # values outside their bounds when the checkpoint was adopted, by `stage.name`

    def accepts(self, name: str, value: Any) -> bool:
        """Return whether a value outside its bound is like the one at adoption: the same, or within a factor of 2.

        Differences that are rounding, such as those between two passes, vary that much between kernels.
        """
        before = self.broken.get(name)
        if before == value:
            return before is not None
        sides = (before, value)
        if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in sides):
            return False
        return before * value > 0 and 0.5 <= value / before <= 2

    @classmethod
    def from_goldens(cls, directory: Path) -> Expectations:
        """Read every stage's golden; raises UserError if the directory has none."""
        found = {stage: directory / f"{stage}.json" for stage in STAGES if (directory / f"{stage}.json").is_file()}
        if not found:
            raise UserError(
                f"{directory} is not a folder of goldens: it has no {STAGES[0]}.json",
                remedy="give a folder with goldens by stage, such as golden/embedded, or a record",
            )
        goldens = {stage: read_golden(path) for stage, path in found.items()}
        first, *others = goldens
        for stage in others:
            if goldens[stage].versions != goldens[first].versions:
                raise UserError(
                    f"{found[first]} and {found[stage]} were made with different versions",
                    remedy="make all goldens of a folder together, with --golden-update",
                )
        header = goldens[first].provenance
        entries = {stage: {new: e for n, e in g.entries.items() if (new := current(n))} for stage, g in goldens.items()}
        return cls(entries, goldens[first].versions, header.get("config"), broken=header.get("broken"))

    def with_tests(self, records: Iterable[RunRecord]) -> Expectations:
        """Return these and the goldens of the tests that the records were asked for; raises UserError for bad ones."""
        entries = {**self.entries, TESTS: expected_tests(records)}
        return Expectations(entries, self.versions, self.config, self.record, self.broken)

    @classmethod
    def from_record(cls, record: RunRecord) -> Expectations:
        """Take a record as the expectation, with the measured tolerance of each quantity."""
        entries: dict[str, dict[str, Entry]] = {}
        for observation in record:
            if observation.compared:
                entries.setdefault(observation.stage, {})[observation.name] = _entry(observation)
        return cls(entries, versions_of(record.provenance), record.config, record)


def _entry(observation: Observation) -> Entry:
    tolerance = None
    if observation.lane is not Lane.EXACT:
        own = observation.tolerance
        tolerance = Tolerance(**own) if own else default_tolerance(observation.quantity)
    return Entry(observation.lane, (Variant(observation.value),), tolerance, better_direction(observation))


def agree(reference: Observation, other: Observation) -> bool:
    """Return whether two observations of one value agree: both within their bound, or equal in the value's lane."""
    if reference.lane is Lane.BOUND or other.lane is Lane.BOUND:
        kept = (reference.bound.holds(reference.value), other.bound.holds(other.value))
        # Two breaches of one bound are two changes if they differ by more than noise.
        near = not differences(Lane.APPROXIMATE, reference.value, other.value, default_tolerance("ratio"))
        return kept[0] == kept[1] and (kept[0] or near)
    return not judge(reference.stage, reference.name, _entry(reference), other.value, {}).verdict.is_change


def better_direction(observation: Observation) -> str:
    """Return "lower" for the losses and perplexities of the run's own evaluation, "" for all else."""
    figure = observation.quantity in ("nats", "perplexity") and observation.lane is not Lane.EXACT
    return "lower" if figure and observation.stage == "evaluation" and observation.part is Part.FLOW else ""


def judge(stage: str, name: str, entry: Entry, obtained: Any, versions: Mapping[str, str | None]) -> Finding:
    """Judge one obtained value against the variant that holds for `versions`."""
    matching = entry.matching(versions)
    if len(matching) != 1:
        what = "no variant holds" if not matching else f"{len(matching)} variants hold"
        note = f"{what} for these versions: {', '.join(' and '.join(v.when) for v in entry.variants)}"
        return Finding(stage, name, Verdict.UNMEASURED, (Difference("", ABSENT, obtained, note),))
    variant = matching[0]
    if obtained is ABSENT:
        return Finding(stage, name, Verdict.UNMEASURED, (Difference("", variant.value, ABSENT),), variant)
    found = tuple(differences(entry.lane, variant.value, obtained, entry.tolerance))
    if found:
        return Finding(stage, name, _word(entry, found), found, None, entry.better)
    same = not differences(Lane.EXACT, variant.value, obtained)
    return Finding(stage, name, Verdict.IDENTICAL if same else Verdict.WITHIN_NOISE, (), variant)


def _word(entry: Entry, found: tuple[Difference, ...]) -> Verdict:
    """A change is a regression unless every difference is in the better direction."""
    sizes = [difference.size for difference in found]
    wanted = {"lower": -1, "higher": 1}.get(entry.better)
    if wanted is not None and all(s is not None and math.isfinite(s) and s * wanted > 0 for s in sizes):
        return Verdict.IMPROVEMENT
    return Verdict.REGRESSION


def judge_record(expectations: Expectations, record: RunRecord, declared: Expectations | None = None) -> list[Finding]:
    """Judge every observation of either side, in the order of the stages.

    Observations that the record was not asked for are left out. A value that breaks its bound, on either side, is a
    regression, unless known.toml declares it for these versions; a perplexity that is not exp(loss) always is.
    A value that a golden declares for these versions, other than for its own, is an expected change. Between two
    records, a difference is an expected change if `declared`, a golden directory, declares the values of both sides.
    """
    versions = versions_of(record.provenance)
    obtained = {(o.stage, o.name): o.value for o in record if o.compared}
    findings = []
    for stage in ALL_STAGES:
        entries = expectations.entries.get(stage, {})
        for name, entry in entries.items():
            if not asked(record, stage, name):
                continue
            value = obtained.pop((stage, name), ABSENT)
            finding = judge(stage, name, entry, value, versions)
            finding = _declared(finding, entry, value, expectations.versions, versions, declared)
            findings.append(replace(finding, quantity=entry.tolerance.quantity) if entry.tolerance else finding)
    findings += [
        Finding(stage, name, Verdict.UNMEASURED, (Difference("", ABSENT, value, "nothing to compare it with"),))
        for (stage, name), value in obtained.items()
        if expectations.record is None or asked(expectations.record, stage, name)
    ]
    findings = [
        *_consistent(findings, expectations, record),
        *judge_bounds(expectations, record, declared or expectations),
    ]
    return sorted(findings, key=lambda finding: ALL_STAGES.index(finding.stage))


def asked(record: RunRecord, stage: str, name: str) -> bool:
    """Return whether a record was asked for the observation of an off-path value; all other values always are.

    For a test's value, whether its test ran there, or just obtained this value.
    """
    if stage == TESTS:
        return not {f"{stage}.{observer(name)}::", f"{stage}.{name}"}.isdisjoint(record.asked or ())
    if part(name) is not Part.OFF_PATH or record.asked is None:
        return True
    return f"{stage}.{observer(name)}" in record.asked


def not_asked(expectations: Expectations, record: RunRecord) -> tuple[str, ...]:
    """Return the expected observations that a record was not asked for, such as ``loss.accumulation``."""
    expected = list(expectations.record.asked or ()) if expectations.record else []
    for stage, entries in expectations.entries.items():
        expected += [f"{stage}.{observer(name)}" for name in entries if not asked(record, stage, name)]
    return tuple(dict.fromkeys(key for key in expected if record.asked is not None and key not in record.asked))


def _judge_outcome(o: Observation, before: Observation | None) -> Finding:
    """Judge what a test came to; one that fails is a regression, one that failed before an improvement."""
    expected = str(o.bound.equals if before is None else before.value)
    found = (Difference("", expected, o.value),)
    if is_unmeasured(o.value):
        return Finding(o.stage, o.name, Verdict.UNMEASURED, found, bound=True)
    if not (is_declared(o.value) or o.bound.holds(o.value)):
        return Finding(o.stage, o.name, Verdict.REGRESSION, found, bound=True)
    if (is_declared(o.value) or is_declared(expected)) and o.value != expected:
        return Finding(o.stage, o.name, Verdict.EXPECTED, found, Variant(o.value, (), "The test itself says so."))
    mended = not (is_declared(expected) or o.bound.holds(expected))
    return Finding(o.stage, o.name, Verdict.IMPROVEMENT if mended else Verdict.IDENTICAL, found if mended else ())


def broken_bounds(record: RunRecord) -> list[Finding]:
    """Return the findings of values outside their bounds, but for those that known.toml declares."""
    findings = judge_bounds(Expectations({}, versions_of(record.provenance)), record)
    return [finding for finding in findings if finding.verdict.fails]


def judge_bounds(
    expectations: Expectations, record: RunRecord, declared: Expectations | None = None
) -> Iterator[Finding]:
    """Judge every value with a bound, of the record and of the one that it is compared with.

    A value outside its bound is no change if the goldens `declared` accept it, as that of an adopted checkpoint. If the
    reference has values with bounds of an observation, and the record, which was asked for it, has none, they are
    unmeasured.
    """
    accepting = declared or expectations
    own = {(o.stage, o.observer) for o in record if o.lane is Lane.BOUND}
    reference = {(o.stage, o.name): o for o in expectations.record or () if o.lane is Lane.BOUND}
    for o in record:
        if o.lane is Lane.BOUND:
            before = reference.pop((o.stage, o.name), None)
            if o.stage == TESTS:
                yield _judge_outcome(o, before)
            elif not o.bound.holds(o.value) and accepting.accepts(f"{o.stage}.{o.name}", o.value):
                yield Finding(o.stage, o.name, Verdict.IDENTICAL)
            else:
                yield _judge_bound(o, record, expectations, before)
    for (stage, name), o in reference.items():
        if not asked(record, stage, name):
            continue
        if not o.bound.holds(o.value):
            if (
                expectations.record
                and _known(o, expectations.record) is None
                and not accepting.accepts(f"{stage}.{name}", o.value)
            ):
                difference = Difference("", str(o.bound), o.value, f"in the reference: {o.bound.reason}".rstrip(": "))
                yield Finding(stage, name, Verdict.REGRESSION, (difference,), bound=True)
        elif o.observer and (stage, o.observer) not in own:
            yield Finding(stage, name, Verdict.UNMEASURED, (Difference("", o.value, ABSENT),))


def _judge_bound(o: Observation, record: RunRecord, expectations: Expectations, before: Observation | None) -> Finding:
    sides = [("", o, record)]
    if before is not None and expectations.record is not None:
        sides.append(("in the reference: ", before, expectations.record))
    broken = [
        Difference("", str(each.bound), each.value, f"{side}{each.bound.reason}".rstrip(": "))
        for side, each, whose in sides
        if not each.bound.holds(each.value) and _known(each, whose) is None
    ]
    if broken:
        return Finding(o.stage, o.name, Verdict.REGRESSION, tuple(broken), bound=True)
    known = None if o.bound.holds(o.value) else _known(o, record)
    if known is None or (before is not None and not before.bound.holds(before.value)):
        return Finding(o.stage, o.name, Verdict.IDENTICAL)
    if expectations.record is None and known.applies(_model_type(record), expectations.versions):
        return Finding(o.stage, o.name, Verdict.IDENTICAL)
    difference = Difference("", str(o.bound), o.value, o.bound.reason)
    return Finding(o.stage, o.name, Verdict.EXPECTED, (difference,), known.variant)


def _known(o: Observation, record: RunRecord) -> Known | None:
    name = f"{o.stage}.{o.name.removeprefix('off_path.')}"
    return known_breach(name, o.value, _model_type(record), versions_of(record.provenance))


def _model_type(record: RunRecord) -> str:
    return str(record.config.get("model_type", ""))


def _consistent(findings: list[Finding], expectations: Expectations, record: RunRecord) -> list[Finding]:
    """Replace the finding of each perplexity that is not exp(loss), on either side, with a regression."""
    expected = {}
    for stage, entries in expectations.entries.items():
        for name, entry in entries.items():
            matching = entry.matching(expectations.versions)
            if len(matching) == 1:
                expected[stage, name] = matching[0].value
    broken: dict[tuple[str, str], list[Difference]] = {}
    for side, values in (("", {(o.stage, o.name): o.value for o in record}), ("in the reference: ", expected)):
        for breach in breaches(values):
            difference = replace(breach.difference, note=f"{side}{breach.difference.note}")
            broken.setdefault((breach.stage, breach.name), []).append(difference)
    kept = [finding for finding in findings if (finding.stage, finding.name) not in broken]
    return kept + [
        Finding(stage, name, Verdict.REGRESSION, tuple(found), bound=True) for (stage, name), found in broken.items()
    ]


def _declared(
    finding: Finding,
    entry: Entry,
    value: Any,
    from_versions: Mapping[str, str | None],
    to_versions: Mapping[str, str | None],
    declared: Expectations | None,
) -> Finding:
    """Return the finding as an expected change if two declared variants account for it."""
    known = entry if declared is None else declared.entries.get(finding.stage, {}).get(finding.name)
    if known is None or value is ABSENT:
        return finding
    before, after = known.matching(from_versions), known.matching(to_versions)
    if len(before) != 1 or len(after) != 1 or before == after:
        return finding
    reference = before[0].value if declared is None else entry.variants[0].value
    pairs = ((before[0].value, reference), (after[0].value, value))
    if any(differences(known.lane, expected, got, known.tolerance) for expected, got in pairs):
        return finding
    changed = tuple(differences(known.lane, reference, value, known.tolerance))
    if not changed:
        return finding
    return Finding(finding.stage, finding.name, Verdict.EXPECTED, changed, after[0], known.better)
