# SPDX-License-Identifier: Apache-2.0
"""Laws of the workflows on a device that is not the CPU: all they use lies on it, and a step hardly ever waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from tests.bundle.test_configs import BUNDLE
from tests.support.exported import export, make_source, make_xrays
from tests.support.second_device import DEVICE, DeviceTensor, second_device
from tests.support.tiny import TINY

ON_DEVICE = f"$torch.device('{DEVICE.type}')"
PRESETS = ("fast", "low_memory", "max_quality", "attention")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the miniature's phantoms are kept between tests."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of a miniature bundle, with weights of all stages."""
    return make_source(tmp_path_factory.mktemp("source"))


def _settings(folder: Path, phantoms: Path, source: Path, name: str) -> dict[str, Any]:
    """A training of one step on the device, with every term of the stage's own loss but for SSIM on 8 voxels."""
    stage = json.loads((BUNDLE / "configs" / f"{name}.json").read_text(encoding="utf-8"))["stage"]
    settings = {
        **TINY,
        "device": ON_DEVICE,
        "grid": 4 << stage,
        **({"window": 16} if stage > 1 else {}),
        **({"predecessor": str(source / "models" / f"stage{stage - 1}_best.pt")} if stage > 1 else {}),
        "ckpt_dir": str(folder / "models"),
        "log_dir": str(folder / "logs"),
        "cache_dir": str(phantoms),
    }
    return {**settings, "loss_weights": {"l1": 1.0, "mse": 1.0}} if stage == 1 else settings


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3", "train"])
def test_training_lies_on_the_device(name, monkeypatch, tmp_path, phantoms, source):
    """A stage's epoch, validation and checkpoint, with the config's own loss, never mix the device with the CPU."""
    monkeypatch.chdir(BUNDLE)
    with second_device(monkeypatch):
        run(run_id="training", config_file=f"configs/{name}.json", **_settings(tmp_path, phantoms, source, name))
    assert list((tmp_path / "models").glob("stage*_best.pt"))


def test_a_training_step_waits_twice(monkeypatch, tmp_path, phantoms, source):
    """Numbers are read once to judge the gradient and once for the log; the projector's plan is its own business."""
    monkeypatch.chdir(BUNDLE)
    settings = _settings(tmp_path, phantoms, source, "stage3")
    per_step: list[list[str]] = []
    for steps in (1, 2):
        with second_device(monkeypatch) as device:
            run(
                run_id="training",
                config_file="configs/stage3.json",
                **{**settings, "epoch_size": steps, "log_dir": str(tmp_path / f"logs{steps}")},
            )
        per_step.append([place for place in device.waits if not place.startswith("projector/")])
    extra = list(per_step[1])
    for place in per_step[0]:
        extra.remove(place)
    assert sorted(extra) == ["training/engine.py:__call__", "training/engine.py:terms"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3", "train"])
def test_presets_leave_everything_on_the_device(name, preset, monkeypatch, tmp_path, phantoms, source):
    """What a preset builds anew lies there, too."""
    files = [f"configs/{name}.json", f"configs/presets/{preset}.json"]
    assert _stay_behind(files, _settings(tmp_path, phantoms, source, name), monkeypatch) == []


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3", "train"])
def test_multi_gpu_overlay_leaves_everything_on_the_device(name, monkeypatch, tmp_path, phantoms, source):
    """Loss and averaged network lie on the process's own device; the network inside the wrapper as well."""
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", _Wrapper)
    files = [f"configs/{name}.json", "configs/multi_gpu.json"]
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 1)
    assert _stay_behind(files, _settings(tmp_path, phantoms, source, name), monkeypatch) == []


class _Wrapper(torch.nn.Module):
    """What DistributedDataParallel is to a config: a module around a module."""

    def __init__(self, module: torch.nn.Module, device_ids: object) -> None:
        super().__init__()
        self.module = module


def _stay_behind(files: list[str], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of parameters and buffers of the components of a training that do not lie on the device."""
    monkeypatch.chdir(BUNDLE)
    parser = ConfigParser()
    parser.read_config(files)
    parser.update({key: value for key, value in settings.items() if key != "unet_channels"})
    with second_device(monkeypatch):
        parts = {name: parser.get_parsed_content(name) for name in ("network", "loss", "train#trainer")}
        parts["averaged"] = parser.get_parsed_content("average").network
    parts |= {"trainer.network": parts["train#trainer"].network, "trainer.loss": parts["train#trainer"].loss_function}
    return [
        f"{part}.{name}"
        for part, module in parts.items()
        if isinstance(module, torch.nn.Module)
        for name, value in [*module.named_parameters(), *module.named_buffers()]
        if not isinstance(value.data, DeviceTensor)
    ]


def _run_bundle(folder: Path, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference of a miniature bundle, on the device."""
    monkeypatch.chdir(folder)
    common = {"device": ON_DEVICE, "checkpoint": str(source / "models" / "model.pt")}
    # A tensor can be of one subclass only, and the last transforms make MONAI's of it: they run on the host.
    save = "$monai.transforms.Compose([monai.transforms.Lambdad('pred', lambda x: x.cpu()), @postprocessing, @save])"
    with second_device(monkeypatch):
        run(
            **{"evaluator#postprocessing": save},
            run_id="run",
            config_file="configs/inference.json",
            dataset_dir=str(make_xrays(output / "xrays")),
            output_dir=str(output / "cts"),
            **common,
        )
    assert list((output / "cts").rglob("*.nii.gz"))


def test_inference_lies_on_the_device(source, monkeypatch, tmp_path):
    """Network and inferer with its solver."""
    _run_bundle(source, source, tmp_path, monkeypatch)


def test_an_exported_bundle_lies_on_the_device(source, monkeypatch, tmp_path, phantoms):
    """Its configs are the same after export: training and inference."""
    folder = export(source, tmp_path / "out", monkeypatch)
    _run_bundle(folder, source, tmp_path, monkeypatch)
    settings = _settings(tmp_path, phantoms, source, "stage3")
    with second_device(monkeypatch):
        run(run_id="training", config_file="configs/train.json", **settings)
    assert (tmp_path / "models" / "stage3_best.pt").is_file()
