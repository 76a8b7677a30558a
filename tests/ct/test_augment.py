# SPDX-License-Identifier: Apache-2.0
"""Augmentation stays anatomical: seeded, bounded, never mirrored, and not valid beyond the cube."""

from __future__ import annotations

import pytest
import torch

from progressive_cascade.ct.augment import RandAnatomyd
from progressive_cascade.training.transforms import LoadCased


@pytest.fixture(scope="module")
def case() -> dict[str, torch.Tensor]:
    item = LoadCased(64)({"seed": 0})
    return {"label": item["label"], "valid": item["valid"]}


def _augment(item: dict[str, torch.Tensor], seed: int = 0, **options: float) -> dict[str, torch.Tensor]:
    still = {
        "max_scale": 0.0, "max_shift_mm": 0.0, "max_rotation_deg": 0.0,
        "max_warp_mm": 0.0, "hu_shift": 0.0, "bone_scale": 0.0, "max_blur_mm": 0.0,
    }  # fmt: skip
    transform = RandAnatomyd(prob=1.0, **{**still, **options})
    transform.set_random_state(seed)
    return transform(item)


def test_augmentation_without_amplitude_is_the_identity(case: dict[str, torch.Tensor]) -> None:
    """Up to the rounding of the interpolation."""
    out = _augment(case)
    assert out["label"].dtype == torch.float32
    assert out["valid"].dtype == torch.uint8
    torch.testing.assert_close(out["label"], case["label"].float(), atol=0.5, rtol=0)
    assert torch.equal(out["valid"], case["valid"])


def test_augmentation_with_probability_zero_only_converts(case: dict[str, torch.Tensor]) -> None:
    """The item keeps its values."""
    out = RandAnatomyd(prob=0.0)(case)
    assert torch.equal(out["label"], case["label"].float())


def test_augmentation_is_seeded_and_leaves_its_input_alone(case: dict[str, torch.Tensor]) -> None:
    """Same seed, same patient; another seed, another one."""
    before = case["label"].clone()
    transform = RandAnatomyd(prob=1.0)
    results = []
    for seed in (1, 1, 2):
        transform.set_random_state(seed)
        results.append(transform(case)["label"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(case["label"], before)
    floats = {**case, "label": before.float()}
    transform(floats)
    assert torch.equal(floats["label"], before.float())


def test_augmentation_shifts_by_at_most_what_was_asked() -> None:
    """A ball's centre moves within the range, the same for CT and mask, and the ball stays a ball."""
    index = (torch.stack(torch.meshgrid(*[torch.arange(64.0)] * 3, indexing="ij")) - 31.5) * 5.6
    ball = (index.norm(dim=0) < 60)[None]
    item = {"label": torch.where(ball, 40, -1024).short(), "valid": ball.to(torch.uint8)}
    centers = []
    for seed in range(4):
        out = _augment(item, seed, max_shift_mm=20.0)
        for volume in (out["label"] > -500, out["valid"] > 0):
            centers.append(torch.stack([axis[volume[0]].mean() for axis in index]))
            assert abs(int(volume.sum()) / int(ball.sum()) - 1) < 0.05
    shifts = torch.stack(centers)
    assert 5 < shifts.abs().max() < 21
    torch.testing.assert_close(shifts[::2], shifts[1::2], atol=2.0, rtol=0)


def test_augmentation_never_mirrors(case: dict[str, torch.Tensor]) -> None:
    """A mark on the right stays on the right, one in front in front, one on top on top."""
    for axis in range(3):
        mark = torch.zeros(1, 64, 64, 64, dtype=torch.uint8)
        mark.narrow(axis + 1, 40, 16).fill_(1)
        for seed in range(3):
            transform = RandAnatomyd(prob=1.0)
            transform.set_random_state(seed)
            out = transform({"label": case["label"], "valid": mark})["valid"][0].float()
            weights = out.sum(dim=[a for a in range(3) if a != axis])
            assert float((weights * torch.arange(64)).sum() / weights.sum()) > 36


def test_augmentation_changes_density_but_not_air(case: dict[str, torch.Tensor]) -> None:
    """Water moves by up to the given HU, air stays, bone is scaled."""
    uniform = {key: torch.zeros(1, 64, 64, 64, dtype=torch.int16) for key in ("label", "valid")}
    levels = torch.tensor([-1000, 0, 1000], dtype=torch.int16)
    uniform["label"][0, 0, 0, :3] = levels
    shifted = _augment(uniform, hu_shift=20.0)["label"][0, 0, 0, :3]
    assert abs(float(shifted[0]) + 1000) < 0.1
    assert 0 < abs(float(shifted[1])) <= 20
    bone = _augment(uniform, bone_scale=0.1)["label"][0, 0, 0, :3]
    assert abs(float(bone[1])) < 0.1
    assert 0 < abs(float(bone[2]) - 1000) <= 85


@pytest.mark.parametrize("size", [64, 128])
def test_another_kernel_blurs_the_slices_alone(size: int) -> None:
    """An impulse keeps its sum and its place, gets the variance of the drawn width within the slice, none across."""
    impulse = {"label": torch.full((1, size, size, size), -1000.0), "valid": torch.ones(1, size, size, size)}
    impulse["label"][0, 30, 20, 25] = 500.0
    transform = RandAnatomyd(
        prob=1.0, max_scale=0, max_shift_mm=0, max_rotation_deg=0, max_warp_mm=0, hu_shift=0, bone_scale=0, blur_prob=1
    )
    widths = []
    for seed in range(3):
        transform.set_random_state(seed)
        mass = (transform(impulse)["label"][0].double() + 1000) / 1500
        axes = [mass.sum(dim=[a for a in range(3) if a != axis]) for axis in range(3)]
        index = torch.arange(size).double()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-2)
        for profile, place in zip(axes, (30, 20, 25), strict=True):
            assert float((profile * index).sum() / profile.sum()) == pytest.approx(place, abs=1e-2)
        variance = [
            float((profile * (index - place) ** 2).sum()) * (358.4 / size) ** 2
            for profile, place in zip(axes, (30, 20, 25), strict=True)
        ]
        assert variance[0] == pytest.approx(variance[1], abs=1e-2) and abs(variance[2]) < 0.05
        widths.append(variance[0] ** 0.5)
    assert max(widths) <= 1.25 and max(widths) - min(widths) > 0.1


def test_only_part_of_the_cases_is_blurred(case: dict[str, torch.Tensor]) -> None:
    """As many as asked; blur smooths texture."""
    sharp = _augment(case)["label"]
    changed = [not torch.equal(_augment(case, seed, max_blur_mm=1.2)["label"], sharp) for seed in range(20)]
    assert 1 <= sum(changed) <= 12
    blurred = _augment(case, max_blur_mm=3.0, blur_prob=1.0)["label"]
    assert blurred.diff(dim=1).abs().mean() < sharp.diff(dim=1).abs().mean()


def test_the_body_goes_on_beyond_the_cube_but_is_not_valid() -> None:
    """A shrunk patient has no flat end along z; what was never scanned is marked."""
    column = torch.full((1, 64, 64, 64), -1024, dtype=torch.int16)
    column[:, 20:44, 20:44] = 40
    item = {"label": column, "valid": torch.ones(1, 64, 64, 64, dtype=torch.uint8)}
    outs = [_augment(item, seed, max_scale=0.4) for seed in range(6)]
    shrunk = [out for out in outs if not bool(out["valid"].all())]
    assert shrunk
    for out in shrunk:
        torch.testing.assert_close(out["label"][0, 32, 32], torch.full((64,), 40.0), atol=0.5, rtol=0)
        assert out["label"].min() >= -1024
