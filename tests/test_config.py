"""The guide's literals, the profiles' overrides and the settings of the command line."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

import mlmrepro
from mlmrepro.config import DEFAULT, PROFILES, GuideConfig, parse_setting, resolve
from mlmrepro.errors import UserError

pytestmark = pytest.mark.quick

# As they stand in the guide's code blocks.
LITERALS = {
    "dataset": "eli5",
    "split": "train_asks[:5000]",
    "test_size": 0.2,
    "checkpoint": "distilbert/distilroberta-base",
    "text_column": "answers.text",
    "separator": " ",
    "num_proc": 4,
    "block_size": 128,
    "pad_token": "eos_token",
    "mlm_probability": 0.15,
    "eval_strategy": "epoch",
    "learning_rate": 2e-5,
    "num_train_epochs": 3,
    "weight_decay": 0.01,
    "push_to_hub": True,
    "hub_model": "my_awesome_eli5_mlm_model",
    "inference_model": "stevhliu/my_awesome_eli5_mlm_model",
    "prompt": "The Milky Way is a <mask> galaxy.",
    "top_k": 3,
}


PACKAGE = Path(mlmrepro.__file__).parent
# Chances of something else that happen to be the same number.
COINCIDENCES = {"observations/steps.py": ["if rng.random() < 0.15:"]}


def holders(source: str, values: set[Any]) -> list[str]:
    """Return the lines of a module that hold one of these values as a literal."""
    lines = source.splitlines()
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [lines[node.lineno - 1].strip() for node in found if type(node.value) is not int and node.value in values]


@pytest.mark.parametrize("name", ["mlm_probability", "prompt", "inference_model", "split", "hub_model"])
def test_no_other_module_holds_a_value_of_the_guide(name: str) -> None:
    """Those that need the mask rate or the prompt take them from the configuration, so nothing can drift from it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        lines = holders(path.read_text(encoding="utf-8"), {LITERALS[name]})
        if file != "config.py" and lines != COINCIDENCES.get(file, []) and lines:
            found[file] = lines
    assert found == {}


def test_a_value_of_the_guide_elsewhere_is_seen() -> None:
    """The check above can fail: a default, a constant, an argument; a sentence that names the value is none."""
    source = '''"""Masks 0.15 of the tokens."""\nRATE = 0.15\ndef f(p=0.15): return g(0.2, p=.15)  # 0.15\n'''
    assert len(holders(source, {LITERALS["mlm_probability"]})) == 3


def test_every_literal_of_the_guide_is_its_default() -> None:
    """GuideConfig holds the guide's values, and every other field says that it is a library's default."""
    fields = {field.name: field for field in dataclasses.fields(GuideConfig)}
    assert {name: fields[name].default for name in LITERALS} == LITERALS
    assert {name for name, field in fields.items() if field.metadata["place"] == DEFAULT} == set(fields) - set(LITERALS)
    assert all(field.metadata["reason"] for field in fields.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_every_deviation_of_a_profile_is_a_listed_override(profile: str, tmp_path: Path) -> None:
    """What differs from the guide is in the overrides with a reason, and nothing else differs."""
    config = resolve(profile, output_dir=tmp_path)
    guide = GuideConfig()
    differing = {
        field.name
        for field in dataclasses.fields(guide)
        if getattr(guide, field.name) != getattr(config.guide, field.name)
    }
    assert {override.name for override in config.overrides} == differing
    assert all(override.reason for override in config.overrides)


def test_the_last_change_wins_and_a_return_to_the_guide_is_no_override(tmp_path: Path) -> None:
    """`--set` stands above the profile, and a value equal to the guide's is not listed."""
    changes = [("seed", 1, "--set"), ("push_to_hub", True, "--set"), ("seed", 2, "--seed")]
    config = resolve("guide", output_dir=tmp_path, changes=changes)
    listed = {override.name: override.value for override in config.overrides}
    assert listed["seed"] == config.guide.seed == 2
    assert "push_to_hub" not in listed


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("block_size=64", ("block_size", 64)),
        ("learning_rate=1e-4", ("learning_rate", 1e-4)),
        ("push_to_hub=True", ("push_to_hub", True)),
        ("seed=none", ("seed", None)),
        ("prompt=a = <mask>", ("prompt", "a = <mask>")),
    ],
)
def test_a_setting_takes_the_type_of_its_field(text: str, parsed: tuple[str, Any]) -> None:
    """`--set name=value` gives a value of the field's own type."""
    assert parse_setting(text) == parsed


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("block_size", "not of the form"),
        ("blocksize=64", "names no setting"),
        ("block_size=big", "not a whole number"),
        ("test_size=x", "not a number"),
        ("push_to_hub=maybe", "not true or false"),
    ],
)
def test_a_setting_that_cannot_be_read_is_bad_input(text: str, problem: str) -> None:
    """An unknown name or a value of another type is refused with what is expected."""
    with pytest.raises(UserError, match=problem):
        parse_setting(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_size", 0),
        ("mlm_probability", 0.0),
        ("mlm_probability", 1.0),
        ("mlm_probability", float("nan")),
        ("test_size", 1.5),
        ("num_proc", 0),
        ("batch_size", 0),
        ("top_k", 0),
        ("num_train_epochs", 0.0),
        ("learning_rate", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
        ("pad_token", "none"),
        ("eval_strategy", "sometimes"),
    ],
)
def test_a_value_outside_its_domain_is_bad_input(name: str, value: Any, tmp_path: Path) -> None:
    """Each value is checked before anything is loaded, and the message names the field."""
    with pytest.raises(UserError, match=f"^{name} is"):
        resolve(output_dir=tmp_path, changes=[(name, value, "test")])


def test_an_unknown_profile_is_bad_input(tmp_path: Path) -> None:
    """The message names the profiles that there are."""
    with pytest.raises(UserError, match="embedded, guide"):
        resolve("gide", output_dir=tmp_path)
