"""The bench: it sees what is planted, stays quiet where nothing is, and says what it could not run."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from mlmrepro.config import EMBEDDED
from mlmrepro.errors import UserError
from tests.faults import bench, worker
from tests.faults.bench import choose, run_bench
from tests.faults.conditions import Conditions, all_controls
from tests.faults.digests import Sources, stale
from tests.faults.fault import all_faults
from tests.faults.result import Alarm, BenchResult, CaseResult, Score
from tests.faults.worker import Job, Outcome

from ..waiting import until


def case(name: str, stage: str, *alarms: tuple[str, str], **fields: object) -> CaseResult:
    made = CaseResult(name, stage, "serious", "A story.", "masks", tuple(Alarm(*a, "x") for a in alarms))
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def test_the_golden_names_the_stage_unless_a_law_without_a_model_is_broken_before() -> None:
    """Goldens run each stage on its stored input, so they go first; else the earliest stage of the laws."""
    both = case("x", "loss", ("law", "model"), ("golden", "loss"), ("golden", "evaluation"))
    assert (both.named, both.placed, both.layers) == ("loss", True, ("golden", "law"))
    early = case("x", "input_ids", ("law", "input_ids"), ("law", "model"), ("golden", "fill_mask"))
    assert early.named == "input_ids"
    assert case("x", "model", ("law", "loss"), ("property", "model")).named == "model"
    assert case("x", "model", ("statistics", "model")).named == "model"
    unmeasured = Alarm("law", "input_ids", "x", measured=False)
    unloaded = dataclasses.replace(case("x", "model"), alarms=(unmeasured, Alarm("golden", "model", "x")))
    assert unloaded.named == "model"
    assert dataclasses.replace(unloaded, alarms=(unmeasured,)).named == "input_ids"
    # An off-path probe of a later stage runs through the earlier ones.
    off_path = dataclasses.replace(
        case("x", "model"), alarms=(Alarm("golden", "fill_mask", "x", off_path=True), Alarm("law", "model", "x"))
    )
    assert off_path.named == "model"
    assert dataclasses.replace(off_path, alarms=off_path.alarms[:1]).named == "fill_mask"
    missed = case("x", "model")
    assert (missed.named, missed.detected, missed.placed) == ("", False, False)


def test_a_score_passes_only_with_every_fault_and_nearly_every_stage() -> None:
    """One missed fault fails; of those detected five in a hundred may be named elsewhere."""
    assert Score(100, 100, 95).passes
    assert not Score(100, 100, 94).passes
    assert not Score(100, 99, 99).passes


def test_what_fails_the_bench() -> None:
    """A missed fault, a false alarm, or a case that could not be run; nothing run is no pass either."""
    seen, quiet = case("a", "model", ("law", "model")), case("c", "", part="seeds")
    good = BenchResult({}, [seen, quiet])
    assert good.passes
    assert not BenchResult({}).passes
    for bad in (
        case("b", "loss"),
        case("d", "", ("law", "model"), part="seeds"),
        case("e", "loss", ("law", "loss"), problem="its process ended with -11"),
    ):
        assert not BenchResult({}, [*good.cases, bad]).passes


def test_a_missed_fault_that_was_invented_later_fails_and_a_misplaced_one_does_not() -> None:
    """The second score is told apart, and what nobody sees is no pass either."""
    good = case("a", "model", ("law", "model"))
    assert BenchResult({}, [good, case("late", "model", ("law", "loss"), part="later")]).passes
    assert not BenchResult({}, [good, case("late", "model", part="later")]).passes


def test_rows_of_a_newer_run_take_the_place_of_older_ones() -> None:
    """One table needs the same versions of the libraries; rows keep the digests and the commit of their own run."""
    told = {"packages": {"torch": "2", "mlmrepro": None}, "python": "3.11", "laws": ["kept", "gone"]}
    told |= {"backfilled": {"commit": "0d28", "why": "they had none"}}
    old = [dataclasses.replace(case(name, "model"), commit="0d28", code={"fault": "1"}) for name in "abc"]
    table = BenchResult(told, [*old, case("no fault any more", "model")])
    names = ["c", "a", "b"]
    newer = {"packages": {"torch": "2", "mlmrepro": "0.1.0"}, "python": "3.11", "laws": ["kept", "new"]}
    fresh = dataclasses.replace(old[0], commit="b3e8", code={"fault": "2"})
    made = table.updated(BenchResult(newer, [fresh]), names)
    assert [c.name for c in made.cases] == names
    assert [(c.commit, c.code["fault"]) for c in made.cases] == [("0d28", "1"), ("b3e8", "2"), ("0d28", "1")]
    assert made.provenance == newer | {"backfilled": told["backfilled"]}
    all_new = [dataclasses.replace(each, commit="b3e8") for each in old]
    assert made.updated(BenchResult(newer, all_new), names).provenance == newer
    for other in ({"packages": {"torch": "3"}}, {"python": "3.12"}):
        with pytest.raises(UserError, match=f"made with other {next(iter(other))}"):
            table.updated(BenchResult(newer | other, []), names)


def test_sizes_for_the_curve_and_later_faults_are_scored_apart() -> None:
    """A size that is not required may be missed; what was invented later has a score of its own."""
    small = case("rate_0.149", "masked_batches", required=False, family="rate", size=0.149)
    large = case("rate_0.12", "masked_batches", ("law", "masked_batches"), family="rate", size=0.12)
    late = case("late", "model", part="later")
    result = BenchResult({}, [small, large, late])
    assert result.faults == [large]
    assert result.later == [late]
    assert result.families() == {"rate": [small, large]}
    assert result.by_layer([small, large])["law"] == (1, 1)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Reading gives what was written; anything else is refused with the file's name."""
    result = BenchResult({"python": "3.11"}, [case("a", "model", ("law", "model"), family="f", size=0.5)])
    path = tmp_path / "detection.json"
    result.write(path)
    assert BenchResult.read(path) == result
    path.write_text('{"schema": 1, "provenance": {}, "cases": [{"name": "a"}]}')
    with pytest.raises(UserError, match=r"detection\.json is no result of the fault bench"):
        BenchResult.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        BenchResult.read(tmp_path / "absent.json")


def test_there_are_a_hundred_clean_controls() -> None:
    """Runs and records of other versions together; each run has a name and conditions of its own."""
    controls = all_controls()
    assert len({c.name for c in controls}) == len(controls)
    assert len({c.conditions for c in controls}) == len(controls)
    assert {c.kind for c in controls} == {"seeds", "threads", "processes", "directories", "environment"}
    assert len(controls) + len(list(bench._version_controls())) >= 100


def test_no_version_raises_an_alarm() -> None:
    """Every change in the committed records of other versions is declared."""
    controls = list(bench._version_controls())
    assert len(controls) >= 10
    assert [control.name for control in controls if control.detected] == []


def test_cases_are_chosen_by_name_stage_part_or_kind() -> None:
    """Patterns name faults, controls or versions; what fits nothing is refused."""
    faults, controls, versions = choose(["masked_batches", "seeds-*"])
    assert {fault.stage for fault in faults} == {"masked_batches"}
    assert {control.kind for control in controls} == {"seeds"}
    assert not versions
    assert choose(["versions"]) == ([], [], True)
    assert [len(each) for each in choose([])[:2]] == [len(all_faults()), len(all_controls())]
    with pytest.raises(UserError, match="no fault or control is named by 'gremlin'"):
        choose(["gremlin"])


def test_a_planted_fault_is_seen_and_a_control_is_quiet() -> None:
    """Run for real: a fault of the masks is named at its stage, a clean run under another seed raises nothing."""
    control = next(c for c in all_controls() if c.kind == "directories")
    laws = [law for law in bench.bounded_observers() if law.group == "masking"]
    planted = next(fault for fault in all_faults() if fault.stage == "masked_batches" and fault.required)
    seen: list[str] = []
    result = run_bench([planted], [control], laws=laws, jobs=2, progress=lambda c, done, total: seen.append(c.name))
    fault, clean = result.cases
    assert sorted(seen) == sorted([planted.name, control.name])
    assert fault.placed
    assert not fault.problem
    assert "golden" in fault.layers
    assert (clean.alarms, clean.problem) == ((), "")
    assert result.passes
    assert stale(result) == {}
    assert fault.commit == clean.commit == bench._named(result.provenance["commit"])


def test_an_alarm_holds_no_path_of_this_machine() -> None:
    """The case's folder has another name in each run, and the package lies elsewhere on each machine."""
    moved = worker._placeless(Alarm("law", "model", f"{EMBEDDED}/x, {Path(worker.__file__)} and /a/y"), Path("/a"))
    assert moved.what == "mlmrepro/embedded/x, tests/faults/worker.py and y"


def test_a_row_says_what_it_measured_and_at_which_commit() -> None:
    """A fault with each detector that saw it, a control with its conditions and all laws; dirty commits say so."""
    planted, control = all_faults()[0], all_controls()[0]
    alarms = [Alarm("law", "model", "mean_loss: off 3 (exactly 0)")]
    alarms += [Alarm("golden", "loss", "isolated.row_order, steps")]
    alarms += [
        Alarm("golden", "loss", "off_path.argument_values.optim"),
        Alarm("statistics", "model", "REGRESSION: x"),
    ]
    alarms += [Alarm("golden", "blocks", "raises KeyError: 'ids'")]
    row = bench._filled(bench._blank_fault(planted), Outcome(alarms), Sources(), "0123-dirty")
    assert set(row.code) == {"fault", "law mean_loss", "isolated loss", "observation argument_values", "statistics"}
    clean = bench._filled(bench._blank_control(control), Outcome(), Sources(), "0123")
    assert set(clean.code) == {"conditions", "laws", "statistics"}
    assert all([*row.code.values(), *clean.code.values()])
    assert stale(BenchResult({}, [row, clean])) == {}
    assert (row.commit, clean.commit) == ("0123-dirty", "0123")
    named = [bench._named(commit) for commit in ({"id": "01", "dirty": True}, {"id": "01", "dirty": False}, None)]
    assert named == ["01-dirty", "01", ""]


# Functions that the case's process has to import by name: it does not know the tests.
ENTRIES = """
import os, signal, subprocess, time

def dies(job, pipe):
    os.kill(os.getpid(), signal.SIGKILL)

def hangs(job, pipe):
    os.setpgid(0, 0)
    child = subprocess.Popen(["sleep", "600"])
    (job.folder / "child").write_text(str(child.pid))
    time.sleep(600)
"""


def test_a_case_that_dies_or_hangs_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed, or does not answer, leaves its case unmeasured; what it started ends with it."""
    job = Job("case", tmp_path, tmp_path / "absent", Conditions())
    assert "record.json cannot be read" in bench._in_a_process(job).problem
    (tmp_path / "bench_entries.py").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = importlib.import_module("bench_entries")
    died = bench._in_a_process(job, entries.dies)
    assert died.problem == "its process ended with -9"
    for seconds in (2, 20, 200):  # on a slow machine it may need longer to begin
        assert bench._in_a_process(job, entries.hangs, timeout=seconds).problem == f"no answer in {seconds} s"
        if (tmp_path / "child").exists():
            break
    child = int((tmp_path / "child").read_text())
    until(lambda: not _runs(child))
    blank = bench._blank_fault(all_faults()[0])
    assert not BenchResult({}, [bench._filled(blank, died, Sources(), "")]).passes


def _runs(pid: int) -> bool:
    """Tell a process that is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
