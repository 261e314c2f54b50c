"""The wording of a check, shared by the terminal, Markdown and the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlmrepro.checkpoint_folder import Unused, few
from mlmrepro.compare.judge import Verdict
from mlmrepro.gate.result import Accuracy, Answer, CheckResult, Paired, Prediction, ProbeChange, SliceChange
from mlmrepro.report.svg import label
from mlmrepro.report.words import and_more, clean, count, number, value

__all__ = [
    "HEADLINE",
    "VERDICT",
    "Origin",
    "Scale",
    "changed_probes",
    "ended",
    "facts",
    "level",
    "origins",
    "points",
    "probe_line",
    "rank",
    "said",
    "share",
    "slice_name",
    "unchanged",
    "unused_line",
]

VERDICT = {  # gives an answer its symbol and colour
    Answer.BETTER: Verdict.IMPROVEMENT,
    Answer.SAME: Verdict.IDENTICAL,
    Answer.REGRESSION: Verdict.REGRESSION,
    Answer.INCONCLUSIVE: Verdict.INCONCLUSIVE,
}
HEADLINE = {
    Answer.BETTER: "better: the new checkpoint is better",
    Answer.SAME: "same: the new checkpoint is not worse than the margin allows",
    Answer.REGRESSION: "REGRESSION: the new checkpoint is worse",
    Answer.INCONCLUSIVE: "inconclusive: this text does not show whether the new checkpoint is worse",
}
_NAMED = 4  # slices named in a line
_PROMPT = 56  # characters of a prompt shown in a line
_EQUAL = 1 - 1e-9  # rank-biased overlap of equal rankings, allowing for rounding


@dataclass(frozen=True)
class Scale:
    """How a difference of mean losses is shown: as a relative change in perplexity, or in bits per byte."""

    measure: str

    @property
    def relative(self) -> bool:
        """Whether differences are shown in per cent."""
        return self.measure == "perplexity"

    @property
    def unit(self) -> str:
        """The unit after a number."""
        return " %" if self.relative else ""

    @property
    def units(self) -> str:
        """The noun for the units that are counted."""
        return "masked token" if self.relative else "masked word"

    def of(self, nats: float) -> float:
        """Convert nats to per cent of perplexity, or to bits."""
        if not self.relative:
            return nats / math.log(2)
        try:
            return 100 * math.expm1(nats)
        except OverflowError:
            return math.inf

    def signed(self, nats: float) -> str:
        """Format a difference with its sign, such as ``+3.10 %``."""
        return f"{_signed(self.of(nats))}{self.unit}"

    def size(self, nats: float) -> str:
        """Format a size without a sign, such as the margin ``1 %``."""
        return f"{self.of(nats):.3g}{self.unit}"

    def interval(self, paired: Paired) -> str:
        """Format the interval, such as ``+2.41 to +3.80 %``."""
        return f"{_signed(self.of(paired.low))} to {_signed(self.of(paired.high))}{self.unit}"


def _signed(figure: float) -> str:
    """Format with two decimals, with two significant digits below 0.1, and with no decimals from 1000."""
    if figure == 0 or not math.isfinite(figure):
        return number(figure)
    size = abs(figure)
    return f"{figure:+,.0f}" if size >= 1000 else f"{figure:+.2f}" if size >= 0.1 else f"{figure:+.2g}"


def level(paired: Paired) -> str:
    """Return the confidence level of the interval, such as ``98 %``."""
    return f"{100 * (1 - 2 * paired.alpha):.4g} %"


def share(figure: float) -> str:
    """Format a share in per cent."""
    return f"{100 * figure:.1f} %" if math.isfinite(figure) else number(figure)


def points(figure: float) -> str:
    """Format a difference of shares in percentage points, without the unit."""
    return _signed(100 * figure)


def ended(text: str) -> str:
    """Return a sentence on one line, ending with a full stop."""
    return f"{clean(text).rstrip('.')}."


def said(result: CheckResult) -> str:
    """Return the reason on one line; say so if the checkpoints differ only by a number format."""
    sentence = ended(result.reason)
    rounded = result.rounded
    if rounded is None:
        return sentence
    weights = {
        "candidate": f"The candidate's weights are the baseline's rounded to {rounded.format}",
        "baseline": f"The baseline's weights are the candidate's rounded to {rounded.format}",
        "evaluation": f"Both checkpoints have the same weights, and one of them was scored in {rounded.format}",
    }[rounded.side]
    if result.paired is None or unchanged(result):
        return f"{sentence} {weights}."
    change = Scale(result.measure).signed(result.paired.difference)
    return f"{sentence} {weights}, so the difference of {change} is only rounding."


_UNUSED = {
    "adapter": "the adapter is not applied: {names}. Only {used} is read. If the adapter is not merged into it yet, "
    "merge it (with PEFT: merge_and_unload, then save_pretrained) and give the merged folder",
    "format": "the model is read from {used}. Weights in other formats are not read or compared: {names}",
    "weights": "the model is read from {used}. Other weight files are not read: {names}",
    "pickle": "the model is read from {used}. Pickles are never read: {names}",
    "code": "Python code is not run: {names}",
    "class": "config.json names the class {names}, which transformers does not have. {used} is used instead",
    "head": "weights of other heads are ignored: {names}",
    "folder": "the model is read from {used}. Subfolders with weights are not read: {names}",
}


def unused_line(unused: Unused) -> str:
    """Return one line about files in a checkpoint's folder that do not affect the result."""
    line = _UNUSED[unused.kind].format(names=few(unused.names), used=unused.used)
    return clean(f"in the folder of the {unused.side}: {line}" if unused.side else line)


def facts(result: CheckResult) -> Iterator[tuple[str, str]]:
    """Yield (name, line) for everything that was measured, except for what the reason already says."""
    scale, paired = Scale(result.measure), result.paired
    change = f"{number(result.before, 5)} → {number(result.after, 5)}"
    if change not in result.reason:
        yield result.measure, f"{change}{_change(result, scale)}"
    if paired is not None:
        sight = "" if unchanged(result) else f"; {_sight(paired, scale)}"
        yield "evidence", f"{_counts(paired, scale)}{sight}"
    if result.accuracy is not None:
        yield "accuracy", _accuracy(result.accuracy)
    if result.slices:
        yield "slices", _slices(result.slices, scale)
    if result.probes:
        yield "probes", _probes(result)


def _change(result: CheckResult, scale: Scale) -> str:
    paired = result.paired
    if paired is None:
        return ""
    if unchanged(result):
        return ", no difference"
    interval = f"{level(paired)} interval {scale.interval(paired)}"
    return f", {scale.signed(paired.difference)} ({interval}), margin {scale.size(result.margin_nats)}"


def unchanged(result: CheckResult) -> bool:
    """Return whether all losses are equal up to rounding, so that an interval would mean nothing."""
    return result.paired is not None and result.largest_change <= result.rounding


def _counts(paired: Paired, scale: Scale) -> str:
    return f"{count(paired.units, scale.units)} in {count(paired.documents, 'document')}"


def _sight(paired: Paired, scale: Scale) -> str:
    if not math.isfinite(paired.smallest_effect):
        return "too little text to detect a change of any size"
    power = f"power {100 * paired.power:.4g} %"
    return f"the smallest detectable change is {scale.size(paired.smallest_effect)} ({power})"


def _accuracy(accuracy: Accuracy) -> str:
    paired = accuracy.paired
    interval = f"{points(paired.low)} to {points(paired.high)}"
    return (
        f"{share(accuracy.before)} → {share(accuracy.after)} correct, {points(paired.difference)} points "
        f"({level(paired)} interval {interval}); calibration error {number(accuracy.calibration_before, 3)} → "
        f"{number(accuracy.calibration_after, 3)}; Brier {number(accuracy.brier_before, 3)} → "
        f"{number(accuracy.brier_after, 3)}"
    )


def slice_name(part: SliceChange) -> str:
    """Return the kind of a slice and its name."""
    return f"{clean(part.kind)} {label(part.name, 40)}"


def _slices(slices: Sequence[SliceChange], scale: Scale) -> str:
    groups = []
    for answer in ("worse", "better"):
        found = sorted((s for s in slices if s.answer == answer), key=lambda s: -abs(s.paired.difference))
        if found:
            named = [f"{slice_name(s)} {scale.signed(s.paired.difference)}" for s in found[:_NAMED]]
            named += and_more([s.kind for s in found[_NAMED:]], "slice", named=0)
            groups.append(f"{len(found)} of {len(slices)} {answer}: {', '.join(named)}")
    return "; ".join(groups) or f"0 of {count(len(slices), 'slice')} changed"


def changed_probes(result: CheckResult) -> list[ProbeChange]:
    """Return the probes whose ranking changed, the most changed first."""
    changed = [probe for probe in result.probes if probe.rank_biased_overlap < _EQUAL or _another_first(probe)]
    return sorted(changed, key=lambda probe: probe.rank_biased_overlap)


def _another_first(probe: ProbeChange) -> bool:
    return probe.overlap.get(1, 1.0) < 1


def _probes(result: CheckResult) -> str:
    others = sum(_another_first(probe) for probe in result.probes)
    lowest = min(probe.rank_biased_overlap for probe in result.probes)
    changed = f"the top word changed in {others} of {count(len(result.probes), 'prompt')}"
    return f"{changed}; the lowest rank-biased overlap is {number(lowest, 2)}"


def probe_line(probe: ProbeChange) -> str:
    """Describe a probe in one line: the top word before and after, and the ranks of the right answer."""
    first, other = (
        f"{clean(p[0].text)} {number(p[0].probability, 2)}" if p else "–" for p in (probe.before, probe.after)
    )
    line = f"“{label(probe.prompt, _PROMPT)}” {first} → {other}, overlap {number(probe.rank_biased_overlap, 2)}"
    if not probe.expected:
        return line
    ranks = f"{rank(probe.rank_before, probe.before)} → {rank(probe.rank_after, probe.after)}"
    return f"{line}; right answer {label(probe.expected)}: {ranks}"


def rank(place: int | None, kept: Sequence[Prediction]) -> str:
    """Return a rank in words; it is unknown outside the predictions that were kept."""
    return f"not in the top {len(kept)}" if place is None else f"rank {place}"


@dataclass(frozen=True)
class Origin:
    """One fact about the origin of both checkpoints."""

    name: str
    before: str
    after: str

    @property
    def differs(self) -> bool:
        """Whether the checkpoints differ in it."""
        return self.before != self.after


def origins(result: CheckResult) -> list[Origin]:
    """Return the origin of both checkpoints, differences first; nested facts are named by their path."""
    both = dict(result.provenance)
    before, after = (_flat(both.pop(side, {})) for side in ("baseline", "candidate"))
    shared = _flat(both)
    rows = [Origin(clean(name), _fact(before, name), _fact(after, name)) for name in dict.fromkeys([*before, *after])]
    rows += [Origin(clean(name), _fact(shared, name), _fact(shared, name)) for name in shared]
    return sorted(rows, key=lambda row: not row.differs)


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix or "value": content}
    return {
        key: fact for name, part in content.items() for key, fact in _flat(part, f"{prefix} {name}".strip()).items()
    }


def _fact(facts_of: dict[str, Any], name: str) -> str:
    content = facts_of.get(name)
    if content is None:
        return "absent"
    return label(content, 200) if isinstance(content, str) else value(content, 200)
