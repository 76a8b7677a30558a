# SPDX-License-Identifier: Apache-2.0
"""Settings nobody can have meant are refused in one line before anything is built, also by MONAI's own command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from progressive_cascade.errors import UserError
from progressive_cascade.training.handlers import NamedHandlers
from progressive_cascade.training.settings import RULES, check_kinds, check_settings, check_value, own_expressions
from progressive_cascade.training.stages import STAGES, stage_config
from progressive_cascade.training.unknown import find_unknown
from tests.support.processes import Child, type_monai

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
WORKFLOWS = ("stage1", "stage2", "stage3", "train", "evaluate", "inference")


def _load(name: str) -> dict[str, Any]:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def _check(name: str, overrides: dict[str, Any], *overlays: str) -> None:
    """Runs the check of a config as MONAI runs it: as the first component of what the workflow does."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{file}.json") for file in (name, *overlays)])
    parser.update(overrides)
    (check,) = [item for item in parser.get("run") if "check_settings" in str(item)]
    assert check == parser.get("run")[0]
    parser.parse(reset=True)
    parser.get_parsed_content("run#0")


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _cause(error: BaseException) -> str:
    return str(_root(error))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_shipped_settings_pass(name: str) -> None:
    """Every shipped config is fine as it stands, alone and with the overlays for training."""
    _check(name, {})
    if name.startswith(("stage", "train")):
        _check(name, {}, "multi_gpu", "presets/low_memory")
    if name != "evaluate":
        _check(name, {}, "presets/attention")


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("stage1", {"no_such_key": 3}, "key 'no_such_key' must exist in the config"),
        ("stage1", {"epohcs": 3}, r"key 'epohcs' must exist in the config; did you mean epochs"),
        ("stage2", {"train#trainer#max_epohcs": 3}, r"'train#trainer#max_epohcs' must.*did you mean max_epochs\?"),
        ("stage2", {"validate#datalaoder": 3}, r"did you mean dataloader\?"),
        ("stage1", {"loss_weights#l3": 1}, r"key 'loss_weights#l3' must exist"),
        ("inference", {"roi_sise": 3}, r"did you mean roi_size\?"),
        ("evaluate", {"secton": "test"}, "did you mean section"),
        ("stage1", {"batch_size": "two"}, 'batch_size must be a whole number of at least 1, got "two"'),
        ("stage1", {"batch_size": True}, "batch_size must be a whole number of at least 1, got true"),
        ("stage1", {"dataset_dir": 7}, "dataset_dir must be a folder's name or empty, got 7"),
        ("stage1", {"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ("stage1", {"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ("stage1", {"learning_rate": -1}, "learning_rate must be a number above 0, got -1"),
        ("stage1", {"learning_rate": float("nan")}, "learning_rate must be a number above 0, got NaN"),
        ("stage3", {"window": 100}, "window must be a multiple of 8 voxels or null, got 100"),
        ("stage2", {"window": 256}, "window must be at most the stage's grid of 128 voxels, got 256"),
        ("stage3", {"simulation_grid": 128}, "simulation_grid must be a multiple of the stage's grid of 256"),
        ("stage1", {"geometry": "chest"}, 'geometry must be a geometry .*, got "chest"'),
        ("stage1", {"loss_weights#l1": -1}, "loss_weights must be an object of numbers of at least 0"),
        ("stage1", {"epochs": "$1 / 0"}, r"epochs must be a value or an expression, got \"\$1 / 0\""),
        ("stage1", {"train#trainer#max_epochs": "$1 / 0"}, r"train#trainer#max_epochs must .*: division by zero"),
        ("stage1", {"device": "abc"}, 'device must be a device of this machine, got "abc"'),
        ("stage1", {"grid": 0}, "grid must be a divisor of 256, got 0"),
        ("stage1", {"stage": True}, "stage must be 1, 2 or 3, got true"),
        ("stage3", {"unet_channels": [[4, 8]]}, "unet_channels must hold a list for each of 3 stages"),
        ("stage1", {"loss_weights#l1": float("inf")}, "loss_weights must be an object of numbers of at least 0"),
        ("stage1", {"train#named_handlers#mlflow": {"_target_": "MLFlowHandler"}}, "got mlflow: pip install mlflow"),
        ("stage1", {"num_phantoms": 0}, "num_phantoms must be at least 1 where there is no dataset_dir"),
        ("stage1", {"dataset_dir": "no/where"}, "dataset_dir must be a folder written by `prepare`, got no/where"),
        ("evaluate", {"dataset_dir": "no/where"}, "dataset_dir must be a folder written by `prepare`, got no/where"),
        ("inference", {"refine_steps": 1001}, "refine_steps must be a whole number from 0 to 1000, got 1001"),
        ("evaluate", {"section": "tset"}, "section must be one of training, validation, test"),
        ("inference", {"overlap": 1}, r"overlap must be a number in \[0, 1\), got 1"),
    ],
)
def test_wrong_settings_are_named(
    name: str, overrides: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key, condition and value in one line."""
    monkeypatch.setattr("progressive_cascade.training.settings.find_spec", lambda name: None)  # no MLflow here
    with pytest.raises((UserError, RuntimeError)) as error:
        _check(name, overrides)
    assert re.search(words, _cause(error.value)), _cause(error.value)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_key_takes_what_it_cannot_mean(name: str) -> None:
    """Every key: no setting is an object of nothing known, no component a number, and expressions are looked at."""
    config, free = _load(name), {"_desc_", "imports", "initialize", "run", "training", "evaluating"}
    for key in set(config) - free:
        with pytest.raises(UserError, match=rf"^{key} must be "):
            check_value(key, {"no": "thing"}, RULES[key]) if key in RULES else check_kinds({key: -1.5}, [config])
        assert list(own_expressions({**config, key: "$1 / 0"}, [config])) == [key]
    assert list(own_expressions(config, [config])) == []


@pytest.mark.parametrize(
    "overrides",
    [
        {"optimizer#amsgrad": True},
        {"my_rate": 0.1, "learning_rate": "@my_rate"},
        {"train#named_handlers#mine": {"_target_": "StatsHandler"}},
        {"train#named_handlers#progress#_disabled_": True},
        {"train#trainer#max_epochs": 5},
        {"_note_": "anything"},
        {"optimizer": {"_target_": "torch.optim.SGD", "params": [], "momentum": 0.9}},
    ],
)
def test_what_means_something_passes(overrides: dict[str, Any]) -> None:
    """Arguments of a component, what is referred to, handlers by new names, notes."""
    _check("stage1", overrides)


def test_overlays_own_misspelt_keys_are_found() -> None:
    """Wherever a key came from, the merged config is what is looked at."""
    config = {**_load("stage1"), "presett": 1}
    assert find_unknown(config, [_load("train"), _load("multi_gpu")]) is not None
    assert find_unknown(_load("stage1"), [_load("train"), _load("multi_gpu")]) is None


def test_every_rule_is_about_a_setting() -> None:
    """No rule for a key that no config has, and every plain number or flag of a training config has its rule."""
    keys = {key for name in WORKFLOWS for key in _load(name)}
    assert set(RULES) <= keys
    plain = {key for key, value in _load("train").items() if isinstance(value, (bool, int, float))}
    assert plain <= set(RULES)


def test_a_check_without_a_workflow_checks_nothing() -> None:
    """Called by itself it has no config to look at."""
    assert check_settings("train") is None
    with pytest.raises(UserError, match="epochs must be a whole number of at least 1, got null"):
        check_value("epochs", None, RULES["epochs"])


def test_handlers_are_attached_by_name_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the dictionary's order; those of the first process on that one alone."""
    attached: list[str] = []

    class Probe:
        def __init__(self, name: str) -> None:
            self.name = name

        def attach(self, engine: Any) -> None:
            attached.append(self.name)

    handlers = NamedHandlers({name: Probe(name) for name in ("clip", "log", "save")}, first_process=["log"])
    for rank in (0, 1):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        handlers.attach(None)  # type: ignore[arg-type]
    assert attached == ["clip", "log", "save", "clip", "save"]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_configs_come_from_train_json(stage: int) -> None:
    """`python -m progressive_cascade.training.stages` wrote the file that is there."""
    assert stage_config(_load("train"), stage) == _load(f"stage{stage}")
    assert list(stage_config(_load("train"), stage)) == list(_load(f"stage{stage}"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_is_addressed_by_its_position(name: str) -> None:
    """Handlers have names: no reference ends in a number, none cuts a list."""
    text = json.dumps([_load(name), _load("multi_gpu")])
    assert re.findall(r"@[\w#:]*(?:#|::)\d+", text) == []
    assert re.findall(r"handlers\[", text) == []


TRAINING = ["training", "--config_file", "configs/stage3.json"]
# By the name of a test, what is typed after `python -m monai.bundle run`, and what the one line says.
TYPED = {
    "batch_size": ([*TRAINING, "--batch_size", "two"], 'batch_size must be a whole number .* got "two"'),
    "epochs": ([*TRAINING, "--epochs", "0"], "epochs must be a whole number of at least 1, got 0"),
    "learning_rate": ([*TRAINING, "--learning_rate", "-1"], "learning_rate must be a number above 0, got -1"),
    "window": ([*TRAINING, "--window", "100"], "window must be a multiple of 8 voxels or null, got 100"),
    "flag": ([*TRAINING, "--mirror_cts", "true"], r"mirror_cts must be true or false \(True or False .* got \"true\""),
    "seed": ([*TRAINING, "--seed", "abc"], 'seed must be a whole number of at least 0, got "abc"'),
    "failing seed": ([*TRAINING, "--seed", "$1/0"], r"seed must be a value or an expression, got .*division by zero"),
    "failing network": ([*TRAINING, "--network", "$1/0"], r"network must be .*, got .*division by zero"),
    "no device": ([*TRAINING, "--device", "abc"], 'device must be a device of this machine, got "abc"'),
    "dataset": ([*TRAINING, "--dataset_dir", "nowhere"], "dataset_dir must be a folder .* got nowhere"),
    "unknown": ([*TRAINING, "--epohcs", "3"], r"key 'epohcs' must exist in the config; did you mean epochs"),
    "evaluate": (["--config_file", "configs/evaluate.json", "--seed", "1.5"], "seed must be a whole number .* got 1.5"),
    "inference": (
        ["--config_file", "configs/inference.json", "--roi_sise", "64"],
        r"key 'roi_sise' must .* roi_size\?",
    ),
}


@pytest.mark.parametrize("name", TYPED)
def test_every_wrong_setting_is_one_line(name: str, tmp_path: Path) -> None:
    """The reason is the one line of error, without a traceback, and the exit code is 1."""
    arguments, words = TYPED[name]
    child = Child(tmp_path / "log", type_monai, "run", *arguments)
    _check_told(child.wait(), child.text(), words)


def test_monais_own_command_says_it_in_one_line() -> None:
    """`python -m monai.bundle run`, as it is typed."""
    arguments, words = TYPED["batch_size"]
    command = [sys.executable, "-m", "monai.bundle", "run", *arguments]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)
    _check_told(done.returncode, done.stderr, words)


def _check_told(code: int, stderr: str, words: str) -> None:
    assert code == 1
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(words, errors[0]), stderr[-500:]
