# SPDX-License-Identifier: Apache-2.0
"""Laws of the workflows on a device that is not the CPU: all they use lies on it, and a step hardly ever waits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from progressive_cascade import ConeBeam, backproject, line_integrals, volume_affine
from progressive_cascade.consistency import DataConsistency
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.losses.reprojection import ReprojectionLoss
from progressive_cascade.physics import Exposure
from progressive_cascade.physics.simulate import expose
from progressive_cascade.projector import operator
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


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
def test_training_lies_on_the_device(name, monkeypatch, tmp_path, phantoms, source):
    """A stage's epoch, validation and checkpoint, with the config's own loss, never mix the device with the CPU."""
    monkeypatch.chdir(BUNDLE)
    with second_device(monkeypatch):
        run(run_id="training", config_file=f"configs/{name}.json", **_settings(tmp_path, phantoms, source, name))
    assert list((tmp_path / "models").glob("stage*_best.pt"))


class _Fused:
    """The operator of the fused kernels on the second device: it takes geometry where it lies, and never waits."""

    def __init__(self, matrices: torch.Tensor, affines: torch.Tensor, *shapes: Any) -> None:
        self.shape, self.detector_shape = shapes[:2]
        options = ("joseph", "auto", "torch")
        self.plain = operator._Operator(_host(matrices), _host(affines), shapes[0], shapes[1], shapes[2], options)

    def project(self, mu: torch.Tensor) -> torch.Tensor:
        return DeviceTensor(self.plain.project(_host(mu)))

    def backproject(self, projections: torch.Tensor) -> torch.Tensor:
        return DeviceTensor(self.plain.backproject(_host(projections)))


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.host if isinstance(tensor, DeviceTensor) else tensor


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second device has fused kernels, as CUDA has."""

    def choose(device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
        suits = device.type == DEVICE.type and dtype == torch.float32
        return SimpleNamespace(FusedOperator=_Fused) if suits else None

    monkeypatch.setattr(operator, "choose_fused", choose)


def test_a_training_step_waits_twice(monkeypatch, tmp_path, phantoms, source, fused):
    """Numbers are read once to judge the gradient and once for the log; the projector's callers do not look."""
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
        per_step.append(list(device.waits))
    extra = list(per_step[1])
    for place in per_step[0]:
        extra.remove(place)
    assert sorted(extra) == ["training/engine.py:terms", "training/handlers.py:__call__"]


BEAMS = [ConeBeam(700, 1020, (16, 16), (9.0, 9.0)), ConeBeam(650, 1000, (16, 16), (9.0, 9.0), isocenter=(3.0, -2, 4))]
AFFINE = volume_affine((8, 8, 8), 10.0)


def _solve(volume: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    layer = DataConsistency(8, 10.0, num_iterations=2).to(DEVICE)
    image = torch.ones(2, 2, 16, 16, device=DEVICE)
    return layer(volume, image, matrices, torch.ones(2, device=DEVICE), torch.ones_like(image)).sum()


def _reproject(volume: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    image, affine = torch.ones(2, 2, 16, 16, device=DEVICE), torch.as_tensor(AFFINE, device=DEVICE).expand(2, 4, 4)
    known = torch.tensor([True, False], device=DEVICE)
    return ReprojectionLoss()(volume, image, matrices=matrices, affine=affine, calibrated=known)


def _expose(volume: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    exposure = Exposure("120kV", photons=1e4, scatter=0.5, electronic_noise=3.0)
    return expose(1000 * volume - 1000, BEAMS, affine=AFFINE, exposure=exposure, differentiable=True).sum()


def _there_and_back(volume: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    affine = torch.as_tensor(AFFINE, device=DEVICE)
    p = line_integrals(volume, BEAMS, affine=affine)
    return backproject(p, BEAMS, shape=(8, 8, 8), affine=affine).sum()


@pytest.mark.parametrize("call", [_solve, _reproject, _expose, _there_and_back])
def test_the_projectors_callers_do_not_wait(call, monkeypatch, fused):
    """A batch of geometries, forwards and backwards: no number is read, nothing is copied to the host."""
    matrices = torch.stack([torch.from_numpy(beam.projection_matrices()) for beam in BEAMS]).float()
    with second_device(monkeypatch) as device:
        volume = torch.full((2, 1, 8, 8, 8), 0.5).to(DEVICE).requires_grad_()
        call(volume, matrices.to(DEVICE)).backward()
        assert volume.grad is not None and device.waits == []


def test_a_reconstruction_waits_for_the_noise_alone(monkeypatch, fused, small_cascade):
    """Once a case, for the number from which λ is made, however many steps of the solver there are."""
    network = small_cascade().eval()
    with second_device(monkeypatch) as device, torch.no_grad():
        network.to(DEVICE)
        image = torch.rand(1, 2, 128, 128, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        CascadeInferer(None)(image, network)
        assert device.waits == ["inference/inferers.py:_solve"]


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

    def __init__(self, module: torch.nn.Module, device_ids: object, find_unused_parameters: bool) -> None:
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


def test_evaluation_lies_on_the_device(source, monkeypatch, tmp_path):
    """Network, simulation, inferer, metrics and report of evaluate.json."""
    monkeypatch.chdir(source)
    # Refinement differentiates within inference mode, which the stand-in for a device cannot follow.
    settings = {
        "refine_steps": 0,
        "num_phantoms": 1,
        "preprocessing#transforms#0#spatial_size": 32,
        "report#mean": "$@training_mean(num_phantoms=1, grid=32)",
        "pictures": False,
        "output_dir": str(tmp_path),
    }
    with second_device(monkeypatch):
        run(run_id="run", config_file="configs/evaluate.json", device=ON_DEVICE, **settings)
    assert (tmp_path / "evaluation_metrics.json").is_file()


def test_an_exported_bundle_lies_on_the_device(source, monkeypatch, tmp_path, phantoms):
    """Inference, its network and inferer with their solver; training by train.json, which is the third stage."""
    folder = export(source, tmp_path / "out", monkeypatch)
    _run_bundle(folder, source, tmp_path, monkeypatch)
    settings = _settings(tmp_path, phantoms, source, "stage3")
    with second_device(monkeypatch):
        run(run_id="training", config_file="configs/train.json", **settings)
    assert (tmp_path / "models" / "stage3_best.pt").is_file()
