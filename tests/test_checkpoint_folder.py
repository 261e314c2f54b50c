"""Folders that people have and that are not the plain checkpoint: said, or refused with the cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlmrepro import checkpoint_folder, cli, loading
from mlmrepro.checkpoint_folder import Unused, inspect, sort_unexpected
from mlmrepro.errors import UserError
from mlmrepro.retraining.check import check as check_scorer
from mlmrepro.retraining.check import make_baseline
from mlmrepro.scoring.scorer import Scorer

from .retraining import tiny

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "checkpoint"
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def changed(plain: Path, tmp_path: Path) -> Callable[[Change], Path]:
    def make(change: Change) -> Path:
        folder = shutil.copytree(plain, tmp_path / "checkpoint")
        change(folder)
        return folder

    return make


def renamed(rename: Callable[[str], str]) -> Change:
    return rewritten(lambda weights: {rename(name): tensor for name, tensor in weights.items()})


def rewritten(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def rewrite(folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
        save_file(change(weights), file, metadata={"format": "pt"})

    return rewrite


def configured(name: str = "config.json", **changes: Any) -> Change:
    def configure(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return configure


def adapter(folder: Path) -> None:
    content = {"peft_type": "LORA", "base_model_name_or_path": "roberta-base"}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file({"base_model.model.roberta.lora_A.weight": torch.ones(2, 4)}, folder / "adapter_model.safetensors")


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    configured("tokenizer_config.json", tokenizer_class="RobertaTokenizer")(folder)


def sharded(folder: Path) -> None:
    tiny.model().save_pretrained(folder / "shards", max_shard_size="8KB")
    for path in (folder / "shards").glob("model*"):
        shutil.copy(path, folder)
    shutil.rmtree(folder / "shards")


def shard_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors").unlink()
    next(folder.glob("model-00002-*")).unlink()


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def damaged_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def training_folder(folder: Path) -> None:
    inner = folder / "checkpoint-1"
    inner.mkdir()
    for path in [path for path in folder.iterdir() if path != inner]:
        path.rename(inner / path.name)


def other_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def one_more_layer(weights: dict[str, Any]) -> dict[str, Any]:
    return weights | {k.replace("layer.0.", "layer.1."): v.clone() for k, v in weights.items() if "layer.0." in k}


def one_more_part(weights: dict[str, Any]) -> dict[str, Any]:
    return weights | {"roberta.encoder.layer.0.attention.self.rel_pos_bias": torch.ones(4)}


OWN = {"AutoModelForMaskedLM": "modeling_own.OwnForMaskedLM"}
TOKENIZER = {"AutoTokenizer": ["own.Tokenizer", None]}
WIDE = {"intermediate_size": 32}
REFUSED: dict[str, tuple[Change, str]] = {
    "a layer too many": (rewritten(one_more_layer), r"no place for: roberta\.encoder\.layer\.1\..* and 13 more"),
    "a part that the encoder lacks": (rewritten(one_more_part), r"no place for: .*rel_pos_bias"),
    "a layer too few": (configured(num_hidden_layers=2), r"no weights for roberta\.encoder\.layer\.1\..*num_hidden"),
    "own model": (configured(auto_map=OWN), r"custom code for AutoModelForMaskedLM \(modeling_own\.OwnFor"),
    "own tokenizer": (
        configured("tokenizer_config.json", auto_map=TOKENIZER),
        r"tokenizer_config\.json names custom code",
    ),
    "own tokenizer, in the old form": (
        configured("tokenizer_config.json", auto_map=["own.Tokenizer", None]),
        r"tokenizer_config\.json names custom code for AutoTokenizer \(own\.Tokenizer\)",
    ),
    "compiled": (renamed(lambda name: f"_orig_mod.{name}"), r"all names of the weights .* contain _orig_mod\. "),
    "distributed": (
        renamed(lambda name: f"module.{name}"),
        r"all names .* contain module\. .*load_file\('model\.safetensors'\)",
    ),
    "both": (renamed(lambda name: f"module._orig_mod.{name}"), r"all names .* contain _orig_mod\. and module\. "),
    "a part compiled": (
        renamed(lambda name: name.replace("encoder.", "encoder._orig_mod.")),
        r"16 of \d\d names of the weights .* contain _orig_mod\. ",
    ),
    "no tokenizer": (without_tokenizer, "no tokenizer file in the folder"),
    "no vocabulary": (without_vocabulary, r"no tokenizer file in the folder .*vocab\.json|cannot be loaded"),
    "adapter alone": (adapter_alone, r"holds an adapter \(LORA\) of roberta-base, but no model.*merge_and_unload"),
    "no configuration": (without("config.json"), r"has no config\.json\. Remedy: save the model"),
    "a damaged configuration": (damaged_configuration, r"config\.json is not valid JSON: "),
    "folders of a training": (training_folder, r"Remedy: give one of the folders in it: checkpoint-1"),
    "another name": (other_name, r"only model\.fp16\.safetensors\. Remedy: .* rename it to model\.safetensors"),
    "a pointer": (pointer, r"is a Git LFS pointer.*git lfs pull"),
    "shapes": (
        configured(**WIDE),
        r"0\.intermediate\.dense\.bias is \(16,\) in the file, but \(32,\) by config\.json; .*weight is \(16, 16\)",
    ),
    "a shard missing": (shard_missing, r"names model-00002-of-\d+\.safetensors, which is not in the folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_model_than_its_owner_runs_is_refused(changed: Callable[[Change], Path], name: str) -> None:
    """The error names the folder, the cause and a remedy."""
    change, problem = REFUSED[name]
    folder = changed(change)
    with pytest.raises(UserError, match=problem) as error:
        Scorer.load(str(folder), device="cpu")
    assert str(folder) in error.value.problem
    assert error.value.remedy


def other_format(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    (folder / "optimizer.pt").write_bytes(b"of the training, no weights")
    (folder / "tf_model.h5").write_bytes(b"")


def other_files(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / "modeling_own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    (folder / "checkpoint-5").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-5")


def heads(weights: dict[str, Any]) -> dict[str, Any]:
    return weights | {"classifier.dense.weight": torch.ones(2), "roberta.embeddings.position_ids": torch.ones(2)}


UNUSED: dict[str, tuple[Change, set[str]]] = {
    "adapter": (adapter, {"adapter: adapter_config.json, adapter_model.safetensors"}),
    "formats": (other_format, {"pickle: pytorch_model.bin", "format: tf_model.h5"}),
    "files": (other_files, {"weights: model.fp16.safetensors", "code: modeling_own.py", "folder: checkpoint-5"}),
    "heads": (rewritten(heads), {"head: classifier.dense.weight"}),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_is_not_used_is_said(changed: Callable[[Change], Path], name: str) -> None:
    """The model is scored, and everything without a part in it is named; no code is run."""
    change, expected = UNUSED[name]
    folder = changed(change)
    found = Scorer.load(str(folder), device="cpu").unused
    # Versions differ in whether they report positions, which no trained weight is.
    names = {u.kind: [n for n in u.names if "position_ids" not in n] for u in found}
    assert {f"{kind}: {', '.join(rest)}" for kind, rest in names.items()} == expected
    assert not (folder / "ran").exists()


def test_one_file_goes_before_shards(changed: Callable[[Change], Path]) -> None:
    """Where both lie in a folder, the result says which of them is read, and it is so."""
    folder = changed(sharded)
    rewritten(lambda weights: weights | {"lm_head.bias": weights["lm_head.bias"] + 1})(folder)
    scorer = Scorer.load(str(folder), device="cpu")
    (found,) = scorer.unused
    assert (found.kind, found.used) == ("format", "model.safetensors")
    assert "model.safetensors.index.json" in found.names
    assert len(found.names) > 2
    assert scorer.model.lm_head.bias.min() == 1


def test_nothing_is_said_of_the_plain_folder(plain: Path) -> None:
    """A checkpoint as save_pretrained leaves it has nothing that is not used."""
    assert inspect(plain) == ()
    assert Scorer.load(str(plain), device="cpu").unused == ()


def test_an_adapter_is_never_applied(
    changed: Callable[[Change], Path], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PEFT is installed transformers applies any adapter that it finds: it is given a place without one."""
    from transformers import AutoModelForMaskedLM

    load, seen = AutoModelForMaskedLM.from_pretrained, []

    def spied(place: str, **options: Any) -> Any:
        seen.append({path.name for path in Path(place).iterdir()})
        return load(place, **options)

    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", spied)
    model = loading.load_model(str(changed(adapter)))
    assert not any("adapter" in name for name in seen[0])
    assert {"config.json", "model.safetensors"} <= seen[0]
    same = loading.load_model(str(plain)).state_dict()
    assert all(torch.equal(weight, same[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("bert.encoder.layer.7.output.dense.weight", True),
        ("bert.encoder.layer.0.output.lora_A.weight", True),
        ("cls.predictions.extra.weight", True),
        ("bert.pooler.dense.weight", False),
        ("bert.embeddings.position_ids", False),
        ("bert.encoder.layer.0.attention.rotary_emb.inv_freq", False),
        ("cls.seq_relationship.bias", False),
        ("classifier.weight", False),
    ],
)
def test_an_unread_weight_is_the_models_or_another_heads(name: str, trained: bool) -> None:
    """Another layer, and what lies in the encoder or the head, is the model's; other heads are not."""
    model = ["bert.encoder.layer.0.output.dense.weight", "cls.predictions.bias"]
    assert sort_unexpected([name], model, "bert") == (([name], []) if trained else ([], [name]))


def test_module_is_a_wrapper_at_the_beginning_only() -> None:
    """A model may have a part of that name."""
    assert checkpoint_folder._wrappers("bert.module.weight") == []
    assert checkpoint_folder._wrappers("module.module.bert.weight") == ["module", "module"]


COMMANDS: dict[str, list[str]] = {
    "check": ["check", "FOLDER", "--baseline", "BASELINE"],
    "score": ["score", "FOLDER", "--text", "embedded", "--limit", "2"],
    "baseline": ["baseline", "FOLDER", "--text", "embedded", "--limit", "2", "-o", "base"],
    "laws": ["laws", "FOLDER"],
    "fill-mask": ["fill-mask", "A <mask>.", "--checkpoint", "FOLDER"],
    "retrain": ["retrain", "--output", "runs", "--set", "checkpoint=FOLDER"],
    "reproduce": ["reproduce", "--output-dir", "run", "--set", "checkpoint=FOLDER"],
}


@pytest.fixture(scope="module")
def baseline(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline") / "b"
    make_baseline(Scorer.load(str(plain), device="cpu"), tiny.TEXT, checkpoint="old").write(folder)
    return folder


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_remedy_for_wrapped_names_works(
    changed: Callable[[Change], Path], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code that the error gives makes the checkpoint one that is read, and leaves other names as they are."""
    folder = changed(renamed(lambda name: f"{prefix}{name}"))
    with pytest.raises(UserError) as error:
        checkpoint_folder.inspect(folder)
    monkeypatch.chdir(folder)
    before = list(load_file("model.safetensors"))
    exec(error.value.remedy.partition("strip the names: ")[2], {})
    assert sorted(load_file("model.safetensors")) == sorted(name.removeprefix(prefix) for name in before)
    checkpoint_folder.inspect(folder)


def test_a_damaged_index_beside_a_whole_file_is_no_matter(changed: Callable[[Change], Path]) -> None:
    """What is not read is not judged."""
    folder = changed(rewritten(lambda weights: weights))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["x"]}')
    assert [each.kind for each in checkpoint_folder.inspect(folder)] == ["format"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_looks_through_the_folder(
    changed: Callable[[Change], Path],
    command: str,
    baseline: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each refuses wrapped names with exit code 2, before anything is computed or written."""
    folder = changed(renamed(lambda name: f"module.{name}"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([part.replace("FOLDER", str(folder)).replace("BASELINE", str(baseline)) for part in COMMANDS[command]])
    assert ended.value.code == 2
    assert "all names of the weights" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_other_commands_say_what_is_not_used(
    changed: Callable[[Change], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, so that JSON on standard output stays JSON."""
    folder = changed(adapter)
    from mlmrepro.cli.guide import say_unused

    say_unused(str(folder))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the adapter is not applied: adapter_config.json, adapter_model.safetensors" in printed.err
    assert "merge_and_unload" in printed.err


def test_a_check_says_what_is_not_used(
    changed: Callable[[Change], Path], baseline: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It stays the same model, and its JSON, its page and JUnit say that an adapter is not applied."""
    outputs = ["--html", str(tmp_path / "page.html"), "--junit", str(tmp_path / "junit.xml")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(changed(adapter)), "--baseline", str(baseline), "--json", *outputs])
    result = json.loads(capsys.readouterr().out)
    assert (ended.value.code, result["answer"]) == (0, "same")
    assert [unused["kind"] for unused in result["unused"]] == ["adapter"]
    for name in ("page.html", "junit.xml"):
        assert "the adapter is not applied" in (tmp_path / name).read_text()


def test_a_check_says_what_lay_beside_the_baselines_model(changed: Callable[[Change], Path], tmp_path: Path) -> None:
    """The baseline holds what was not used, and a later check shows it."""
    folder = changed(adapter)
    plain = shutil.copytree(folder, tmp_path / "plain", ignore=shutil.ignore_patterns("adapter*"))
    made = make_baseline(Scorer.load(str(folder), device="cpu"), tiny.TEXT, checkpoint="old")
    assert [unused["kind"] for unused in made.about["unused"]] == ["adapter"]
    result = check_scorer(Scorer.load(str(plain), device="cpu"), made, checkpoint="new")
    assert [(unused.kind, unused.side) for unused in result.unused] == [("adapter", "baseline")]


def test_a_class_that_transformers_lacks_is_said(changed: Callable[[Change], Path]) -> None:
    """A configuration without auto_map may name a class of its owner's code all the same."""
    found: list[Unused] = []
    loading.load_model(str(changed(configured(architectures=["OwnForMaskedLM"]))), unused=found)
    assert [(each.kind, each.names, each.used) for each in found] == [
        ("class", ("OwnForMaskedLM",), "RobertaForMaskedLM")
    ]


def test_kinds_have_a_sentence_each() -> None:
    """Whatever can be found can be said."""
    from mlmrepro.report.check_words import unused_line

    assert unused_line(Unused("code", ("a.py",), "", "baseline")).startswith(
        "in the folder of the baseline: Python code"
    )
    for kind in ("adapter", "format", "weights", "pickle", "code", "class", "head", "folder"):
        assert "a.b" in unused_line(Unused(kind, ("a.b",), "model.safetensors"))
