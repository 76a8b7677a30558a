# SPDX-License-Identifier: Apache-2.0
"""Laws of the perceptual loss; the weights are random ones the tests make."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch

from progressive_cascade.losses import VGGPerceptualLoss
from progressive_cascade.losses import perceptual as perceptual_module
from progressive_cascade.losses.perceptual import VGG16Trunk
from progressive_cascade.phantom import Phantom

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random half-precision VGG16 weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pt"
    torch.save({name: value.half() for name, value in VGG16Trunk().state_dict().items()}, path)
    return path


def _volumes(size: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, 1, 1, size, size, size, generator=generator)
    return first, second


def test_trunk_taps_are_relu1_2_relu2_2_relu3_3() -> None:
    """Features have VGG16's channels at full, half and quarter size, after the activation."""
    features = VGG16Trunk()(torch.rand(1, 1, 16, 24))
    assert [tuple(feature.shape) for feature in features] == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6)]
    assert all((feature >= 0).all() for feature in features)
    assert sum(value.numel() for value in VGG16Trunk().state_dict().values()) == 1_735_488


def test_perceptual_of_equal_volumes_is_zero(weights: Path) -> None:
    """Nothing is lost on the truth itself, more on another volume."""
    loss = VGGPerceptualLoss(weights, num_slices=2)
    prediction, target = _volumes()
    assert loss(target, target).item() == 0
    assert loss(prediction, target).item() > 0


def test_perceptual_is_relative_per_layer(tmp_path: Path, weights: Path) -> None:
    """Scaling a layer's features leaves its term alone: the layers' say does not depend on the weights' size."""
    state = torch.load(weights, weights_only=True)
    last = max((name for name in state if name.endswith("weight")), key=lambda name: int(name.split(".")[0]))
    for name in (last, last.replace("weight", "bias")):
        state[name] = state[name] * 8
    torch.save(state, tmp_path / "scaled.pt")
    losses = [VGGPerceptualLoss(path, num_slices=1, seed=3) for path in (weights, tmp_path / "scaled.pt")]
    first, second = (loss(*_volumes()).item() for loss in losses)
    assert first == pytest.approx(second, rel=1e-4)


def test_perceptual_same_seed_draws_the_same_slices(weights: Path) -> None:
    """The loss's own generator repeats; without one, the global seed decides."""
    volumes = _volumes()
    first, second = (VGGPerceptualLoss(weights, num_slices=1, seed=5) for _ in range(2))
    values = [first(*volumes).item() for _ in range(4)]
    assert values == [second(*volumes).item() for _ in range(4)]
    assert len(set(values)) > 1
    unseeded = VGGPerceptualLoss(weights, num_slices=1)
    torch.manual_seed(7)
    drawn = unseeded(*volumes).item()
    torch.manual_seed(7)
    assert unseeded(*volumes).item() == drawn


def test_perceptual_looks_at_all_three_planes(weights: Path) -> None:
    """With every slice drawn, a volume and its permutations score the same."""
    loss = VGGPerceptualLoss(weights, num_slices=8)
    prediction, target = _volumes(8)
    for axes in ((0, 1, 3, 4, 2), (0, 1, 4, 2, 3)):
        permuted = loss(prediction.permute(axes), target.permute(axes))
        # A slice's transpose meets other kernels: equal sets of planes agree on random weights to a few per cent only.
        assert permuted.item() == pytest.approx(loss(prediction, target).item(), rel=0.05)
    step = torch.zeros(1, 1, 8, 8, 8)
    step[..., 4:] = 1
    assert loss(step, torch.zeros_like(step)).item() > 0


def test_perceptual_trunk_is_frozen_and_outside_state_dicts(weights: Path) -> None:
    """No parameter, no entry of a state dict; `.to` and `.train` reach the trunk all the same."""
    loss = VGGPerceptualLoss(weights)
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    loss.train().double()
    assert loss.trunk[0].weight.dtype == torch.float64


def test_perceptual_gradient_reaches_the_prediction_alone(weights: Path) -> None:
    """The prediction's gradient is finite and not zero; the truth has none."""
    prediction, target = (volume.requires_grad_() for volume in _volumes())
    VGGPerceptualLoss(weights, num_slices=2)(prediction, target).backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None


def test_perceptual_ignores_invalid_voxels(weights: Path) -> None:
    """Errors where `valid` is 0 cost nothing and get no gradient."""
    _, target = _volumes()
    valid = torch.ones_like(target, dtype=torch.uint8)
    valid[:, :, :4] = 0
    prediction = torch.where(valid > 0, target, 1 - target).requires_grad_()
    loss = VGGPerceptualLoss(weights, num_slices=16)
    assert loss(prediction, target, valid=valid).item() == 0
    other, _ = _volumes(seed=1)
    other.requires_grad_()
    loss(other, target, valid=valid).backward()
    assert other.grad is not None and (other.grad[:, :, :4] == 0).all()
    assert loss(other, target, valid=torch.zeros_like(target)).item() == 0


def test_perceptual_takes_crops_of_any_size(weights: Path) -> None:
    """Crops need no power of two and may hold fewer slices than are drawn; below 4 voxels they are refused."""
    loss = VGGPerceptualLoss(weights, num_slices=6)
    crop = torch.rand(1, 1, 5, 7, 11)
    assert torch.isfinite(loss(crop, crop.flip(4), valid=torch.ones_like(crop)))
    with pytest.raises(ValueError, match="at least 4 voxels a side"):
        loss(crop[..., :3], crop[..., :3])


def test_perceptual_is_computed_in_full_precision_under_autocast(weights: Path) -> None:
    """Autocast around the loss does not change it."""
    loss = VGGPerceptualLoss(weights, num_slices=16)
    torch.manual_seed(0)
    outside = loss(*_volumes())
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(*_volumes())
    assert inside.dtype == torch.float32 and inside.item() == outside.item()


@pytest.mark.usefixtures("half_precision")
def test_perceptual_in_half_precision_is_the_same_loss(weights: Path) -> None:
    """A trunk in bfloat16 changes value and gradient by no more than its rounding, 2^-8, accumulates to."""
    results = []
    for amp in (False, True):
        prediction, target = _volumes()
        prediction.requires_grad_()
        value = VGGPerceptualLoss(weights, num_slices=4, seed=0, amp=amp)(prediction, target)
        value.backward()
        assert value.dtype == torch.float32
        results.append((value.item(), prediction.grad))
    assert results[1][0] != results[0][0] and results[1][0] == pytest.approx(results[0][0], rel=0.01)
    assert torch.nn.functional.cosine_similarity(results[0][1].flatten(), results[1][1].flatten(), dim=0) > 0.98


def test_perceptual_names_its_weights(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is named by its file name; "ct" is found in the bundle's models folder."""
    assert VGGPerceptualLoss(weights).weights_name == "random.pt"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "perceptual_ct.pt").write_bytes(weights.read_bytes())
    monkeypatch.setattr(perceptual_module, "bundle_root", lambda: tmp_path)
    assert VGGPerceptualLoss().weights_name == "ct"


def test_perceptual_reads_torchvision_state_dicts(weights: Path, tmp_path: Path) -> None:
    """Prefix, deeper layers and classifier of a full VGG16 do not disturb."""
    state = torch.load(weights, weights_only=True)
    full = {f"features.{name}": value for name, value in state.items()}
    torch.save(
        {**full, "features.17.weight": torch.zeros(1), "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg.pt"
    )
    losses = [VGGPerceptualLoss(path, num_slices=1, seed=0)(*_volumes()) for path in (weights, tmp_path / "vgg.pt")]
    assert losses[0].item() == losses[1].item()


def test_perceptual_refuses_wrong_files(weights: Path, tmp_path: Path) -> None:
    """Missing, foreign, too short and misshapen files are refused by name."""
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "shape.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("shape.pt", "list.pt", "text.pt"):
        with pytest.raises(ValueError, match=name):
            VGGPerceptualLoss(tmp_path / name)
    with pytest.raises(ValueError, match=r"random\.pt"):
        VGGPerceptualLoss(weights, depth="relu4_3")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        VGGPerceptualLoss(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="depth must be one of"):
        VGGPerceptualLoss(weights, depth="relu9_9")
    with pytest.raises(ValueError, match="num_slices must be at least 1"):
        VGGPerceptualLoss(weights, num_slices=0)


def test_perceptual_imagenet_without_torchvision_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package and the alternative."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match=r'torchvision.*weights="ct"'):
        VGGPerceptualLoss("imagenet")


def test_shipped_weights_see_blur_grow() -> None:
    """The bundle's weights fit the trunk, and the more tissues are blurred, the further they are from the truth."""
    generator = torch.Generator().manual_seed(0)
    tissues = torch.tensor([-1000.0, -800.0, -100.0, 40.0, 300.0])[
        torch.randint(5, (1, 1, 4, 4, 4), generator=generator)
    ]
    target = torch.nn.functional.interpolate((tissues + 1024) / 2048, (32, 32, 32))
    path = _REPOSITORY / "bundle" / "models" / "perceptual_ct.pt"
    distances = []
    for width in (1, 3, 5, 9):
        blurred = torch.nn.functional.avg_pool3d(target, width, 1, width // 2, count_include_pad=False)
        distances.append(VGGPerceptualLoss(path, num_slices=2, seed=0)(blurred, target).item())
    assert distances[0] == 0
    assert distances == sorted(distances) and distances[1] > 0.05


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The training of the weights, as a module."""
    return importlib.import_module("progressive_cascade.training.perceptual")


def _write_ct(path: Path, hu: np.ndarray) -> Path:
    """A CT whose first axis runs to the left and whose voxels measure 4 x 2 x 2 mm."""
    nib.save(nib.Nifti1Image(hu.astype(np.int16), np.diag([-4.0, 2.0, 2.0, 1.0])), path)
    return path


def test_training_names_tissues_of_a_ct_by_hu(script: ModuleType, tmp_path: Path) -> None:
    """Each slab of one tissue gets its class, in RAS and on isotropic voxels; HU between tissues are not scored."""
    values = np.repeat([-1000, -700, -350, -100, 40, 400], 8)
    case = script.load_ct(_write_ct(tmp_path / "ct.nii.gz", np.tile(values[:, None, None], (1, 24, 20))), 2.0)
    assert case.hu.shape == case.classes.shape == (96, 24, 20)
    middles = case.classes[8::16, 12, 10].flip(0)  # the file's first axis ran to the left
    assert middles.tolist() == [0, 1, 255, 2, 3, 4]


def test_training_writes_weights_that_the_loss_reads(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment of training leaves a half-precision state dict of the trunk, and says how accurate it is."""
    rng = np.random.default_rng(0)

    def crude_phantom(seed: int, *, shape: tuple[int, int, int], spacing: float) -> Phantom:
        labels = np.random.default_rng(seed).integers(0, 3, shape, dtype=np.uint8)
        return Phantom(hu=1000 * labels.astype(np.int16) - 1000, labels=labels, affine=np.diag([*[spacing] * 3, 1.0]))

    monkeypatch.setattr(script, "generate_phantom", crude_phantom)
    ct = str(_write_ct(tmp_path / "ct.nii.gz", rng.choice([-1000, -700, 40, 400], (12, 24, 24))))
    output = tmp_path / "models" / "trained.pt"
    options = ["--phantoms", "1", "--phantom-size", "24", "--steps", "2", "--size", "16", "--batch", "2"]
    script.main([*options, "--ct", ct, "--validation-ct", ct, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "held-out phantom: pixel_accuracy" in printed and "held-out ct: pixel_accuracy" in printed
    state = torch.load(output, weights_only=True)
    assert all(value.dtype == torch.float16 for value in state.values())
    assert VGGPerceptualLoss(output).weights_name == "trained.pt"
    assert [path.name for path in output.parent.iterdir()] == ["trained.pt"]
