"""The `guide` profile: the command as a user runs it, against a double of the hub on the loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest

from mlmrepro.config import EMBEDDED, OURS
from mlmrepro.record import RunRecord

from .hub_double import HubDouble

MODEL = "distilbert/distilroberta-base"
SUCCESSOR = "dany0407/eli5_category"
# Small enough for seconds; each is a deviation that the record has to name.
SMALL = {"split": "train[:40]", "num_train_epochs": 1.0, "num_proc": 1}


class Run(NamedTuple):
    hub: HubDouble
    output_dir: Path
    process: subprocess.CompletedProcess[str]


def reproduce(endpoint: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``mlmrepro reproduce --profile guide`` in a process of its own, with nothing of this process's caches."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # The suite is offline; what the user's own shell says about the hub must not reach the run either.
        if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "DATASETS_"))
    }
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": "hf_double",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **variables,
    }
    command = [sys.executable, "-m", "mlmrepro", "reproduce", "--profile", "guide", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One small run of the whole guide, with the push."""
    folder = tmp_path_factory.mktemp("guide")
    with (EMBEDDED / "data" / "askscience.jsonl").open(encoding="utf-8") as rows:
        files: dict[str, bytes | str] = {"README.md": "# eli5_category\n", "train.jsonl": "".join(islice(rows, 50))}
    settings = [f"--set={name}={value}" for name, value in {**SMALL, "push_to_hub": "true"}.items()]
    with HubDouble(models={MODEL: EMBEDDED / "checkpoint"}, datasets={SUCCESSOR: files}) as hub:
        process = reproduce(hub.endpoint, folder, "--eli5-category", "--output-dir", "run", *settings)
        assert process.returncode == 0, process.stderr
    return Run(hub, folder / "run", process)


def test_model_and_data_come_from_the_hub_and_the_record_names_both(run: Run) -> None:
    """The run reads the files of both repositories, and its record holds their hub names."""
    read = {request.path for request in run.hub.requests if request.method == "GET" and "/resolve/" in request.path}
    assert any(path.startswith(f"/{MODEL}/") and path.endswith("/model.safetensors") for path in read)
    assert any(path.startswith(f"/datasets/{SUCCESSOR}/") and path.endswith("/train.jsonl") for path in read)
    record = RunRecord.read(run.output_dir / "record.json")
    assert (record.config["guide"]["checkpoint"], record.config["guide"]["dataset"]) == (MODEL, SUCCESSOR)
    assert record["dataset.train_rows"] + record["dataset.test_rows"] == 40
    assert record["fill_mask.pipeline"]


def test_every_deviation_from_the_guide_is_an_override_with_its_reason(run: Run) -> None:
    """The record lists what differs from the guide and nothing else: publishing as the guide does is no deviation."""
    overrides = {o["name"]: o for o in RunRecord.read(run.output_dir / "record.json").config["overrides"]}
    assert set(overrides) == {"dataset", *SMALL, *(name for name, _, _ in OURS)}
    assert (overrides["dataset"]["guide"], overrides["dataset"]["value"]) == ("eli5", SUCCESSOR)
    assert overrides["dataset"]["reason"].startswith("--eli5-category")
    assert {name: overrides[name]["value"] for name in SMALL} == SMALL
    assert all(o["reason"] for o in overrides.values())


def test_the_push_publishes_a_whole_model(run: Run) -> None:
    """Weights, configuration and tokenizer arrive under the guide's name for it, as they lie in the run's folder."""
    assert set(run.hub.pushed) == {f"{run.hub.user}/my_awesome_eli5_mlm_model"}
    pushed = run.hub.pushed[f"{run.hub.user}/my_awesome_eli5_mlm_model"]
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert pushed[name] == (run.output_dir / "model" / name).read_bytes()
    assert not any(path.startswith("checkpoint-") for path in pushed)


def test_the_double_knew_every_question(run: Run) -> None:
    """No request was refused but those for files that a repository may lack."""
    refused = [r for r in run.hub.requests if r.status >= 400 and "/resolve/" not in r.path and "/tree/" not in r.path]
    assert refused == []


def test_without_a_hub_one_line_names_the_data_set_and_the_offline_profile(tmp_path: Path) -> None:
    """Exit code 2, one line on standard error, and no folder left behind."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound but not listening: nobody else can take the port
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        process = reproduce(endpoint, tmp_path, "--eli5-category", "--output-dir", "run")
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert SUCCESSOR in line
    assert endpoint in line
    assert "--profile embedded, which works offline" in line
    assert not (tmp_path / "run").exists()


def test_a_script_data_set_is_not_run_and_the_successor_is_named(tmp_path: Path) -> None:
    """`eli5` is code on the hub: it is refused, whatever the library's own default, with --eli5-category as remedy."""
    script = "import os\nimport pathlib\n\npathlib.Path(os.environ['MARKER']).touch()\n"
    with HubDouble(datasets={"eli5": {"eli5.py": script}}) as hub:
        process = reproduce(hub.endpoint, tmp_path, "--output-dir", "run", MARKER=str(tmp_path / "marker"))
    assert not (tmp_path / "marker").exists(), "the data set's script was run"
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert "'eli5'" in line
    assert "use --eli5-category" in line
    assert not (tmp_path / "run").exists()
