# SPDX-License-Identifier: Apache-2.0
"""Laws of the networks: shapes, geometry, gradients, freezing, residual starts, scripting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam
from progressive_cascade.geometry import GeometryRange
from progressive_cascade.networks import ProgressiveCascade, lift, voxel_axes
from progressive_cascade.networks.blocks import ChannelNorm, channels_to_space, space_to_channels
from progressive_cascade.networks.cascade import upsample
from progressive_cascade.networks.lifting import pixel_rays
from tests.conftest import SMALL


def _image(batch: int = 1) -> torch.Tensor:
    return 4 * torch.rand(batch, 2, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("stage", "grid"), [(1, 16), (2, 32), (3, 64)])
def test_cascade_returns_a_volume_in_the_unit_range(small_cascade, stage, grid):
    """(b, 2, s, s) to (b, 1, g, g, g) in [0, 1], the grid doubling with every stage."""
    with torch.no_grad():
        out = small_cascade(stage=stage)(_image(2))
    assert out.shape == (2, 1, grid, grid, grid)
    assert out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1 + 1e-6


def test_every_parameter_of_a_trained_stage_gets_a_gradient(small_cascade):
    """No dead weights; zero-initialised layers hide what lies before them, so they are filled first."""
    for stage in (1, 2, 3):
        network = small_cascade(stage=stage, freeze_earlier=True)
        torch.manual_seed(1)
        for parameter in network.parameters():
            if parameter.requires_grad and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        (network(_image()) ** 2).mean().backward()
        dead = [
            name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
        ]
        assert dead == []


def test_earlier_stages_are_frozen(small_cascade):
    """Only the last stage learns, and the frozen ones stay in eval mode."""
    network = small_cascade(stage=3, freeze_earlier=True).train()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("stages.2.") for name in trained)
    frozen = [network.xray, network.stages[0], network.stages[1]]
    assert network.stages[2].training and not any(part.training for part in frozen)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_fresh_stage_equals_the_upsampled_earlier_one(small_cascade, stage):
    """Its last layer starts at zero; with the closing consistency step off, nothing changes."""
    earlier, fresh = small_cascade(stage=stage - 1), small_cascade(stage=stage)
    fresh.load_state_dict(earlier.state_dict(), strict=False)
    uncalibrated = torch.zeros(1)
    with torch.no_grad():
        expected = upsample(earlier(_image(), calibrated=uncalibrated))
        torch.testing.assert_close(fresh(_image(), calibrated=uncalibrated), expected)


def test_a_window_equals_its_part_of_the_whole(small_cascade):
    """A window as large as the volume is the whole pass; outside a smaller one the earlier stage remains."""
    network = small_cascade(stage=2)
    torch.nn.init.normal_(network.stages[-1].unet.out.weight, std=0.05)
    uncalibrated = torch.zeros(1)
    with torch.no_grad():
        whole = network(_image(), calibrated=uncalibrated)
        windowed = network(_image(), calibrated=uncalibrated, window=[0, 0, 0, 32, 32, 32])
        part = network(_image(), calibrated=uncalibrated, window=[8, 0, 16, 16, 16, 16])
        prior, _ = network.prepare_stage(_image(), calibrated=uncalibrated)
    torch.testing.assert_close(windowed, whole)
    inside = torch.zeros_like(part, dtype=torch.bool)
    inside[:, :, 8:24, 0:16, 16:32] = True
    assert torch.equal(part[~inside], prior[~inside])
    assert not torch.allclose(part[inside], prior[inside])


@pytest.mark.parametrize("calibrated", [0.0, 1.0])
@pytest.mark.parametrize("window", [None, [0, 0, 0, 16, 16, 16]])
def test_no_voxel_falls_below_vacuum(small_cascade, calibrated, window):
    """-1000 HU is the least in every sample and window; air that sinks where it does not count ruins the others."""
    network = small_cascade(stage=2)
    torch.nn.init.constant_(network.stages[-1].unet.out.bias, -100.0)
    with torch.no_grad():
        out = network(_image(), calibrated=torch.tensor([calibrated]), window=window)
    assert out.min().item() == pytest.approx(24 / 2048)


def test_lifting_samples_each_voxel_at_its_projection():
    """A map that holds its own column number gives every voxel the column its centre projects to."""
    beam = ConeBeam()
    columns = torch.arange(512.0).expand(1, 2, 1, 512, 512).contiguous()
    axes = voxel_axes([4, 0, 8], [3, 4, 5], 11.2, 358.4, columns)
    lifted = lift(columns, torch.as_tensor(beam.projection_matrices())[None].float(), axes, 512)
    for index in ((0, 0, 0), (2, 3, 4)):
        point = torch.tensor([float(axes[axis][index[axis]]) for axis in range(3)] + [1.0]).double()
        projected = torch.as_tensor(beam.projection_matrices()) @ point
        expected = (projected[:, 0] / projected[:, 2]).float()
        torch.testing.assert_close(lifted[0, :, index[0], index[1], index[2]], expected, atol=1e-3, rtol=0)


def test_rays_are_the_lines_that_points_project_along():
    """x × direction = moment for every point that projects to a patch's centre, the direction away from the source."""
    right, left = ConeBeam(views=("right_lateral",)), ConeBeam(views=("left_lateral",))
    drawn = GeometryRange((800.0, 1900.0), (330.0, 430.0), turn=8.0, offset=20.0, opposite=True)
    geometries = [beam.projection_matrices() for beam in (ConeBeam(1000, 1300), ConeBeam(views=("ap",)), right)]
    geometries += [drawn.draw(ConeBeam(), np.random.default_rng(seed)) for seed in range(4)]
    for matrices in map(torch.as_tensor, geometries):
        rays = pixel_rays(matrices[None].float(), 8, 512, 100.0)[0].double().reshape(len(matrices), 8, 8, 6)
        for matrix, found in zip(matrices, rays, strict=True):
            point = 50 * torch.rand(3, generator=torch.Generator().manual_seed(0)).double()
            seen = matrix @ torch.cat((point, torch.ones(1)))
            u, v = ((seen[:2] / seen[2] + 0.5) / 64 - 0.5).tolist()
            near = [found[row, col] for row in (int(v), int(v) + 1) for col in (int(u), int(u) + 1)]
            weights = [(row) * (col) for row in (1 - v % 1, v % 1) for col in (1 - u % 1, u % 1)]
            ray = sum(weight * each for weight, each in zip(weights, near, strict=True))
            torch.testing.assert_close(torch.linalg.cross(point / 100, ray[:3]), ray[3:], atol=2e-3, rtol=0)
            assert ray[:3] @ matrix[2, :3] > 0
    opposite = [
        pixel_rays(torch.as_tensor(b.projection_matrices())[None].float(), 8, 512, 100.0) for b in (left, right)
    ]
    assert (opposite[0][..., :3] * opposite[1][..., :3]).sum(-1).max() < -0.9


def test_tokens_know_the_geometry(small_cascade):
    """The same radiographs from elsewhere give other tokens, whichever the views' embedding is."""
    network = small_cascade(stage=1)
    matrices = network.projection_matrices[None]
    near = torch.as_tensor(ConeBeam(900, 1200, (128, 128), (3.36, 3.36)).projection_matrices())[None].float()
    with torch.no_grad():
        tokens = network.xray(_image(), matrices).tokens
        assert not torch.allclose(network.xray(_image(), near).tokens, tokens, atol=1e-3)
        torch.testing.assert_close(network.xray(_image(), 2 * matrices).tokens, tokens)


def test_channel_norm_knows_one_voxel_at_a_time():
    """Mean 0 and variance 1 over the channels of each voxel; a window is normalised as the whole is."""
    volume = 3 + torch.randn(2, 16, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    out = ChannelNorm(16)(volume)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 4, 5, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(1, correction=0), torch.ones(2, 4, 5, 6), atol=1e-3, rtol=0)
    torch.testing.assert_close(ChannelNorm(16)(volume[..., 1:3]), out[..., 1:3])


def test_space_to_channels_is_inverted():
    """A pure rearrangement."""
    volume = torch.rand(2, 3, 8, 4, 12)
    assert torch.equal(channels_to_space(space_to_channels(volume, 4), 4), volume)


def test_gradient_checkpointing_changes_no_number(small_cascade):
    """Same loss, same gradients, less memory."""
    results = []
    for flag in (False, True):
        network = small_cascade(stage=1, gradient_checkpointing=flag).train()
        out = network(_image())
        out.mean().backward()
        results.append((out.detach(), network.stages[0].unet.enter.weight.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("stage", [1, 3])
def test_cascade_is_scriptable(small_cascade, stage):
    """torch.jit.script of the whole, without tracing, gives the same volume."""
    network = small_cascade(stage=stage).eval()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        torch.testing.assert_close(scripted(_image()), network(_image()), atol=1e-5, rtol=0)


def test_geometry_may_differ_per_sample(small_cascade):
    """Projection matrices given per sample are used: two geometries, two volumes; the default is the buffer."""
    network = small_cascade(stage=1)
    other = ConeBeam(1450, 1800, (128, 128), (3.36, 3.36)).projection_matrices()
    matrices = torch.stack([network.projection_matrices, torch.as_tensor(other).float()])
    with torch.no_grad():
        both = network(_image().expand(2, -1, -1, -1), matrices)
        torch.testing.assert_close(both[:1], network(_image()), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stage": 4}, "stage must be 1, 2 or 3"),
        ({"num_heads": 5}, "num_heads must divide"),
        ({"encoder_channels": (4, 8)}, "encoder_channels must be five"),
        ({"geometry": "nowhere"}, "geometry preset must be one of"),
        ({"geometry": ConeBeam(detector_shape=(100, 100))}, "multiple of 64"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    """Each refused with the condition and the value."""
    with pytest.raises(ValueError, match=words):
        ProgressiveCascade(**{**SMALL, **arguments})


def test_wrong_image_is_refused(small_cascade):
    """A radiograph of another size would be lifted to the wrong place."""
    with pytest.raises(ValueError, match="image must have shape"):
        small_cascade(stage=1)(torch.zeros(1, 2, 64, 64))
