# SPDX-License-Identifier: Apache-2.0
"""Laws of the bundle's configs: they resolve, overlay only what exists, differ only where they should, and run."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import monai
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import run

from progressive_cascade import __version__
from progressive_cascade.errors import UserError
from progressive_cascade.export.configs import read_configs, to_text
from tests.support.tiny import TINY

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
WORKFLOWS = ("stage1", "stage2", "stage3", "train", "evaluate", "inference")
OVERLAYS = ("multi_gpu", "presets/fast", "presets/low_memory", "presets/max_quality")
# What may differ between stages 1, 2 and 3, see training/stages.py.
STAGE_KEYS = {
    "_desc_",
    "log_dir",
    "predecessor",
    "stage",
    "epochs",
    "batch_size",
    "learning_rate",
    "simulation_grid",
    "window",
    "loss_weights",
}


def _load(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def _targets(node: object) -> set[str]:
    if isinstance(node, dict):
        own = {node["_target_"]} if "_target_" in node else set()
        return own.union(*(_targets(value) for value in node.values()))
    return set().union(*map(_targets, node)) if isinstance(node, list) else set()


@pytest.mark.parametrize("name", WORKFLOWS + OVERLAYS)
def test_every_target_resolves(name):
    """Each `_target_` is a MONAI component or importable by its dotted name."""
    parser = ConfigParser({})
    for target in _targets(_load(name)):
        if "." in target:
            module, attribute = target.rsplit(".", 1)
            assert hasattr(importlib.import_module(module), attribute), target
        else:
            assert parser.locator.get_component_module_name(target), target


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3", "train"])
def test_overlays_change_only_what_exists(overlay, stage):
    """A key of an overlay stands in what it overlays, or is added on purpose (samplers, finalize)."""
    added = {
        "validate#sampler",
        "validate#dataloader#sampler",
        "finalize",
        "_desc_",
    }
    config = _load(stage)
    for key in set(_load(overlay)) - added:
        node = config
        for part in key.split("#"):
            assert isinstance(node, dict) and part in node, f"{overlay}: {key} is not in {stage}.json"
            node = node[part]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_device_may_be_a_word(name):
    """`--device cpu` on MONAI's command line gives a text; every expression about the device understands it."""
    parser = ConfigParser(_load(name))
    parser["device"], parser["network_def"] = (
        "cpu",
        {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    )
    parser["imports"] = ["$import torch"]
    about = [ID for ID, value in _leaves(_load(name)) if "@device" in str(value)]
    assert about and all(parser.get_parsed_content(ID) is not None for ID in about)


def _leaves(node: object, path: str = "") -> list[tuple[str, object]]:
    """Every value below a config's node with its id."""
    if not isinstance(node, (dict, list)):
        return [(path, node)]
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return [leaf for key, value in items for leaf in _leaves(value, f"{path}#{key}" if path else str(key))]


def test_stages_differ_only_where_the_table_says():
    """One recipe, three settings."""
    first = _load("stage1")
    for other in (_load("stage2"), _load("stage3")):
        assert set(first) == set(other)
        different = {key for key in first if first[key] != other[key]}
        assert different - STAGE_KEYS == {"validate"}
    train, third = _load("train"), _load("stage3")
    assert {key for key in third if third[key] != train[key]} == {"_desc_"}


def test_best_checkpoint_is_named_after_its_stage():
    """The one thing in `validate` that differs between stages."""
    validates = []
    for stage in (1, 2, 3):
        text = json.dumps(_load(f"stage{stage}")["validate"])
        assert f"stage{stage}_best.pt" in text
        validates.append(text.replace(f"stage{stage}_best", "stage_best"))
    assert len(set(validates)) == 1


@pytest.mark.parametrize("name", (*WORKFLOWS, *OVERLAYS, "metadata"))
def test_configs_are_formatted_and_hold_no_absolute_path(name):
    """Indented by 4, keys in their own order, nothing of one machine."""
    text = (CONFIGS / f"{name}.json").read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n"
    assert '"/' not in text


def _resolved(root: Path, files: list[str], monkeypatch: pytest.MonkeyPatch) -> dict:
    """What MONAI makes of config files, from inside the bundle's folder."""
    monkeypatch.chdir(root)
    parser = ConfigParser()
    parser.read_config([f"configs/{file}" for file in files])
    parser.resolve_macro_and_relative_ids()
    # MONAI reads # and :: as the same separator, and writes :: everywhere but inside a macro's content.
    return json.loads(json.dumps(parser.get()).replace("#", "::"))


def test_macro_and_overlay_mean_the_same_after_export(monkeypatch, tmp_path):
    """A stage that copies blocks from another file stands alone when it is exported, and takes the same overlays."""
    source, exported = tmp_path / "source", tmp_path / "exported"
    shutil.copytree(CONFIGS, source / "configs")
    second = _load("stage2")
    second["train"]["handlers"] = "%configs/stage1.json::train::handlers"
    second["validate"]["dataset"] = "%configs/stage1.json#validate#dataset"
    (source / "configs" / "stage2.json").write_text(to_text(second), encoding="utf-8")
    for name, config in read_configs(source).items():
        path = exported / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_text(config), encoding="utf-8")
    assert "%" not in (exported / "configs" / "stage2.json").read_text(encoding="utf-8")
    for overlays in ([], ["presets/fast.json"], ["multi_gpu.json", "presets/low_memory.json"]):
        files = ["stage2.json", *overlays]
        assert _resolved(source, files, monkeypatch) == _resolved(exported, files, monkeypatch)
        assert _resolved(exported, files, monkeypatch) == _resolved(BUNDLE, files, monkeypatch)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "must hold every key once, got a twice"),
        ('{"a": {"b": 1, "b": 2}}', "must hold every key once, got b twice"),
        ('{"a": "/home/somebody/data"}', "must hold no absolute path"),
        ('{"a": "C:\\\\data"}', "must hold no absolute path"),
        ('{"a": "%configs/none.json::a"}', "none.json must exist"),
        ('{"a": "%configs/train.json::nothing"}', "must name something that exists"),
        ('{"a": "%b", "b": "%c", "c": 1}', "a macro must not lead to another macro"),
        ("[1]", "must hold a JSON object"),
        ("{", "must be JSON"),
    ],
)
def test_a_config_nobody_else_could_use_is_refused(tmp_path, text, words):
    """Before it is exported, with its name."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "odd.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_configs(tmp_path)


def test_metadata_version_is_the_packages():
    """The version stands once; the changelog knows it."""
    metadata = _load("metadata")
    assert metadata["version"] == __version__
    assert __version__ in metadata["changelog"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("stage1", "train"), ("stage2", "train"), ("stage3", "train"), ("train", "train"), ("inference", "infer")],
)
def test_workflows_have_the_properties_monai_asks_for(name, kind, monkeypatch, tmp_path):
    """check_properties() == [] for every workflow of a kind that MONAI defines."""
    monkeypatch.chdir(BUNDLE)
    for view in ("pa", "lateral"):
        (tmp_path / f"{view}.nii.gz").touch()
    tiny_infer = {key: value for key, value in TINY.items() if key in _load("inference")}
    overrides = (
        {**tiny_infer, "dataset_dir": str(tmp_path)}
        if kind == "infer"
        else {**TINY, "cache_dir": str(tmp_path), "log_dir": str(tmp_path), "window": None}
    )
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / f"{name}.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type=kind,
        **overrides,
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_all_stages_train_an_epoch_and_chain(monkeypatch, tmp_path):
    """Stage 2 starts from stage 1's best checkpoint, stage 3 from stage 2's; each writes its own."""
    monkeypatch.chdir(BUNDLE)
    paths = {"ckpt_dir": str(tmp_path / "models"), "cache_dir": str(tmp_path / "cache")}
    for stage in (1, 2, 3):
        settings = {**TINY, **paths, "log_dir": str(tmp_path / f"logs{stage}"), "grid": 8 << (stage - 1)}
        if stage > 1:
            settings["window"] = 16
        # VGG and gradients need more voxels than a miniature has; SSIM needs 11.
        settings["loss_weights"] = {"l1": 1.0, "reprojection": 0.05 if stage == 3 else 0.0}
        run(run_id="training", config_file=f"configs/stage{stage}.json", **settings)
        state = torch.load(tmp_path / "models" / f"stage{stage}_best.pt", weights_only=True)
        assert any(name.startswith(f"stages.{stage - 1}.") for name in state)
    first = torch.load(tmp_path / "models" / "stage1_best.pt", weights_only=True)
    third = torch.load(tmp_path / "models" / "stage3_best.pt", weights_only=True)
    assert all(torch.equal(first[name], third[name]) for name in first)


def test_the_average_is_shipped_and_a_run_resumes_with_it(monkeypatch, tmp_path):
    """Best is the average in half precision, last keeps average and network, and a resumed run goes on from both."""
    monkeypatch.chdir(BUNDLE)
    paths = {"ckpt_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "log_dir": str(tmp_path)}
    settings = {**TINY, **paths, "grid": 8, "loss_weights": {"l1": 1.0}, "num_phantoms": 2, "epoch_size": 3}
    run(run_id="training", config_file="configs/stage1.json", **settings)
    last = torch.load(tmp_path / "checkpoints" / "step_00000003.pt", weights_only=True)
    best = torch.load(tmp_path / "stage1_best.pt", weights_only=True)
    average = last["average"]["network"]
    assert last["average"]["steps"] == 3
    assert all(torch.equal(best[name], value.to(best[name].dtype)) for name, value in average.items())
    assert any(not torch.equal(last["network"][name], value) for name, value in average.items())
    longer = {**settings, "epochs": 2, "resume": True, "force_resume": True}
    run(run_id="training", config_file="configs/stage1.json", **longer)
    again = torch.load(tmp_path / "checkpoints" / "step_00000006.pt", weights_only=True)
    assert (again["epoch"], again["average"]["steps"]) == (2, 6)


def test_component_store_knows_the_networks_and_losses():
    """Networks, losses and the DRR operator are MONAI components by name."""
    from progressive_cascade.components import LOSSES, NETWORKS, OPERATORS

    assert "ProgressiveCascade" in NETWORKS and "CascadeLoss" in LOSSES and "DRR" in OPERATORS
    assert NETWORKS["ProgressiveCascade"].__name__ == "ProgressiveCascade"
    assert monai.__version__
