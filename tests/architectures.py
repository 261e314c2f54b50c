"""What adopted checkpoints of other architectures found: ``python -m tests.architectures FOLDER`` writes the file.

FOLDER/reruns/NAME-*.json are records of the versions that the goldens are of, FOLDER/runs/NAME/ENVIRONMENT.json those
of older ones, both by `mlmrepro record --goldens FOLDER/golden/NAME`. tests/observations/architectures.py makes the
checkpoints. The goldens are derived from a record again, by the code of today. golden/README.md has the commands.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlmrepro.compare.changes import Comparison
from mlmrepro.compare.judge import Expectations, Finding, judge_record
from mlmrepro.files import atomic_write
from mlmrepro.observations.adopt import write_goldens
from mlmrepro.record import RunRecord

FILE = Path(__file__).parents[1] / "golden" / "architectures.json"
LONGEST = 60  # characters of a value
# Why a value changed, each looked at in the libraries; patterns of ``ARCHITECTURE stage.name``, the first that matches.
TOKENIZER = "transformers 5 builds this class's normalizer and pre-tokenizer itself, and ignores tokenizer.json's."
KNOWN = "Declared of the embedded checkpoint, but this checkpoint's value is another one: "
CAUSES = {
    "* input_ids.off_path.classes.*": f"{KNOWN}slow tokenizers were removed, and the classes have other names.",
    "* input_ids.off_path.saved_files.class": f"{KNOWN}the classes of tokenizers have other names.",
    "* input_ids.off_path.saved_files.config_keys": f"{KNOWN}tokenizer_config.json holds other keys.",
    "* input_ids.off_path.saved_files.names": f"{KNOWN}save_pretrained writes tokenizer.json and its config only.",
    "* input_ids.off_path.special_tokens.added_by_build": f"{KNOWN}build_inputs_with_special_tokens is gone.",
    "* input_ids.off_path.calls_of_old.*": "prepare_for_model of PreTrainedTokenizerFast added no special tokens.",
    "* input_ids.off_path.decoding.cleaned_up": f"{KNOWN}clean_up_tokenization_spaces=True is ignored.",
    "* masked_batches.off_path.numpy_batches.draw": f"{KNOWN}the 80/10/10 shares are computed otherwise since 4.49.",
    "* masked_batches.off_path.whole_words.*": f"{KNOWN}DataCollatorForWholeWordMask raises since 5.0.",
    "* loss.isolated.learning_rates": f"{KNOWN}the rate is read before the scheduler's step since 4.51.",
    "modernbert *.*columns": "PreTrainedTokenizerFast gave token_type_ids, its successor TokenizersBackend does not.",
    "electra *.*columns": "5.0 loads ELECTRA's tokenizer with a generic class, which gives no token_type_ids.",
    "electra model.*attention": "ELECTRA has SDPA attention, and takes it by default.",
    "distilbert input_ids.off_path.every_set_of_files*": "Without tokenizer_config.json, 5.0 gives 12 texts other ids.",
    "* loss.step_losses": "Follows from other ids, in a stage that also changed on its stored input.",
    "deberta-v2 *": TOKENIZER,
    "xlm-roberta *": TOKENIZER,
}


def measured(folder: Path) -> dict[str, Any]:
    """Return what was measured; raises KeyError for a change whose cause nobody has looked at."""
    models: dict[str, Any] = {}
    rows: dict[tuple[str, ...], dict[str, Any]] = defaultdict(lambda: {"models": [], "names": []})
    made: dict[str, Any] = {}
    for path in sorted((folder / "runs").iterdir()):
        reruns = [RunRecord.read(each) for each in sorted((folder / "reruns").glob(f"{path.name}-*.json"))]
        with tempfile.TemporaryDirectory() as place:
            write_goldens(next(each for each in reruns if each.config["threads"] == 2), Path(place))
            goldens = Expectations.from_goldens(Path(place))
        alarms = sum(any(f.verdict.is_change for f in judge_record(goldens, each)) for each in reruns)
        threads = [each.config["threads"] for each in reruns]
        models[path.name] = {"reruns": {str(n): threads.count(n) for n in sorted(set(threads))}, "false alarms": alarms}
        found = {}
        for file in sorted(path.glob("t*.json"), key=lambda p: [int(n) for n in p.stem[1:].split("-")[0].split(".")]):
            record = RunRecord.read(file)
            made = record.provenance
            comparison = Comparison(judge_record(goldens, record))
            found[str(made["packages"]["transformers"])] = dict(_undeclared(comparison))
            tally = comparison.findings
            models[path.name][file.stem] = {
                "declared": sum(f.verdict.value == "expected change" for f in tally),
                "undeclared": sum(f.verdict.fails for f in tally),
                "values": len(tally),
            }
        versions = [*found, str(goldens.versions["transformers"])]
        for name in dict.fromkeys(name for each in found.values() for name in each):
            last = [version for version in found if name in found[version]][-1]
            cause = next((why for pattern, why in CAUSES.items() if fnmatchcase(f"{path.name} {name}", pattern)), None)
            if cause is None:
                raise KeyError(f"{path.name} {name}")
            step = last, versions[versions.index(last) + 1]
            row = rows[(*step, cause)]
            row["models"] += [path.name] * (path.name not in row["models"])
            row["names"] += [name] * (name not in row["names"])
            row.setdefault("value", found[last][name])
    changes = [
        {"last": last, "first": first, "cause": cause, **row} for (last, first, cause), row in sorted(rows.items())
    ]
    origin = {name: made[name] for name in ("commit", "source", "python", "platform")}
    newest = dict(goldens.versions)
    return {
        "made by": __doc__.partition("\n")[0],
        "provenance": origin | {"packages": newest},
        "adopted": models,
    } | {"changes": changes}


def _undeclared(comparison: Comparison) -> Iterator[tuple[str, list[str]]]:
    """Yield each value that changed by itself and undeclared, with the old value and the golden's."""
    for change in comparison.changes:
        for finding in change.findings if change.verdict.fails else ():
            if finding.verdict.fails and f"{finding.stage}.{finding.name}" != "model.weights":
                yield f"{finding.stage}.{finding.name}", [_value(finding, "obtained"), _value(finding, "expected")]


def _value(finding: Finding, side: str) -> str:
    text = str(getattr(finding.differences[0], side))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def page() -> str:
    """Return the section of golden/FINDINGS.md."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    lines = [
        "| checkpoint | reruns with 1, 2, 3 threads | false alarms | undeclared of all values, by environment |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in content["adopted"].items():
        environments = {each: facts for each, facts in row.items() if isinstance(facts, dict) and "values" in facts}
        counts = ", ".join(f"{each}: {f['undeclared']} of {f['values']}" for each, f in environments.items())
        lines.append(f"| {name} | {' + '.join(map(str, row['reruns'].values()))} | {row['false alarms']} | {counts} |")
    lines += ["", "| between | checkpoints | values | before → after | why |", "| --- | --- | --- | --- | --- |"]
    for row in content["changes"]:
        names = "<br>".join(f"`{name}`" for name in row["names"])
        before, after = (f"`{value.replace('|', chr(92) + '|')}`" for value in row["value"])
        where = f"{row['last']} and {row['first']}"
        lines.append(f"| {where} | {', '.join(row['models'])} | {names} | {before} → {after} | {row['cause']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    atomic_write(FILE, json.dumps(measured(Path(sys.argv[1])), indent=1, ensure_ascii=False) + "\n")
    print(FILE)
