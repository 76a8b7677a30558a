# SPDX-License-Identifier: Apache-2.0
"""Laws of the projector: physics against analytic truth, linearity, transpose, gradients, orientation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, backproject, line_integrals, volume_affine
from progressive_cascade.projector import DRR, aligned_axes, backends, project_aligned, transpose_aligned
from tests.support.ellipsoid import chords_of_ellipsoid, voxelize_ellipsoid

SMALL = ConeBeam(source_to_isocenter=700, source_to_detector=1020, detector_shape=(24, 20), pixel_spacing=(4.0, 5.0))


def test_line_integrals_match_an_analytic_ellipsoid(device):
    """The error against exact ray-ellipsoid chords is that of the voxels: 3 % at 5.6 mm, half at half the size."""
    beam = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))
    radii, center = np.array([110.0, 70.0, 90.0]), np.array([12.0, -7.0, 20.0])
    truth = chords_of_ellipsoid(beam, radii, center)
    errors = []
    for size in (32, 64):
        mu = voxelize_ellipsoid((size, size, size), 358.4 / size, radii, center).to(device)
        p = line_integrals(mu, beam, affine=volume_affine((size, size, size), 358.4 / size))[0].cpu().numpy()
        errors.append(np.linalg.norm(p - truth) / np.linalg.norm(truth))
    assert errors[1] < 0.03
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_central_ray_through_a_cube_is_mu_times_length(dtype, device):
    """A uniform cube of 64 mm and 0.02 / mm casts 1.28 in the middle of every view."""
    mu = torch.full((1, 1, 32, 32, 32), 0.02, dtype=dtype, device=device)
    beam = ConeBeam(detector_shape=(65, 65), views=("pa", "ap", "left_lateral", "right_lateral"))
    p = line_integrals(mu, beam, affine=volume_affine((32, 32, 32), 2.0))
    torch.testing.assert_close(p[0, :, 32, 32], torch.full((4,), 1.28, dtype=dtype, device=device))


def test_air_casts_nothing_and_missing_rays_are_zero(device):
    """Rays beside the volume give exactly 0, and finite gradients."""
    mu = torch.full((1, 1, 8, 8, 8), 0.02, device=device, requires_grad=True)
    p = line_integrals(mu, ConeBeam(), affine=volume_affine((8, 8, 8), 2.0))
    assert p[0, 0, 0, 0] == 0
    p.sum().backward()
    assert mu.grad is not None and torch.isfinite(mu.grad).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_backproject_is_the_transpose(dtype, tolerance, device):
    """<A x, y> = <x, Aᵀ y> on an anisotropic volume with flipped and permuted axes."""
    generator = torch.Generator().manual_seed(0)
    affine = np.array([[0, 0, -3.0, 20], [2.0, 0, 0, -15], [0, -4.0, 0, 30], [0, 0, 0, 1]])
    x = torch.rand(2, 1, 12, 14, 10, generator=generator, dtype=dtype).to(device)
    y = torch.rand(2, 2, 24, 20, generator=generator, dtype=dtype).to(device)
    forward = (line_integrals(x, SMALL, affine=affine) * y).double().sum()
    adjoint = (backproject(y, SMALL, shape=(12, 14, 10), affine=affine) * x).double().sum()
    assert abs(forward - adjoint) / abs(forward) < tolerance


def test_line_integrals_do_not_depend_on_how_the_volume_is_stored(device):
    """Permuting and flipping the array with its affine leaves the radiographs alone."""
    x = torch.rand(1, 1, 8, 10, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    affine = volume_affine((8, 10, 12), 3.0)
    flipped = affine.copy()
    flipped[:3, 3] += affine[:3, 0] * 7
    flipped[:3, 0] *= -1
    permuted = flipped[:, [2, 0, 1, 3]]
    ours = line_integrals(x, SMALL, affine=affine)
    theirs = line_integrals(x.flip(2).permute(0, 1, 4, 2, 3), SMALL, affine=permuted)
    torch.testing.assert_close(theirs, ours)


def test_gradients_are_exact_to_the_second_order(device):
    """gradcheck and gradgradcheck of A and Aᵀ in float64."""
    beam = ConeBeam(700, 1020, (6, 5), (12.0, 14.0))
    affine = volume_affine((4, 3, 5), 9.0)
    x = torch.rand(1, 1, 4, 3, 5, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.rand(1, 2, 6, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: line_integrals(v, beam, affine=affine), x)
    assert torch.autograd.gradgradcheck(lambda v: line_integrals(v, beam, affine=affine) ** 2, x)
    assert torch.autograd.gradcheck(lambda p: backproject(p, beam, shape=(4, 3, 5), affine=affine), y)


def test_a_batch_equals_single_calls_bit_for_bit(device):
    """Different volumes and affines in one batch do not touch each other."""
    x = torch.rand(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2)).to(device)
    affines = np.stack([volume_affine((8, 8, 8), 4.0, (shift, 0, 0)) for shift in (0.0, 3.0, 9.0)])
    together = line_integrals(x, SMALL, affine=affines)
    for index in range(3):
        alone = line_integrals(x[index : index + 1], SMALL, affine=affines[index])
        assert torch.equal(together[index : index + 1], alone)


def test_autocast_leaves_the_projection_in_float32(device):
    """Geometry in half precision would cost pixels."""
    x = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3)).to(device)
    affine = volume_affine((8, 8, 8), 4.0)
    expected = line_integrals(x, SMALL, affine=affine)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(line_integrals(x, SMALL, affine=affine), expected)


def test_a_marker_on_the_patients_left_is_on_the_right_of_pa(device):
    """PA is shown as read: the patient's right on the image's left; lateral: the front on the left."""
    mu = torch.zeros(1, 1, 16, 16, 16, device=device)
    mu[0, 0, 2, 13, 13] = 0.02  # left (low x), anterior (high y), cranial (high z)
    p = line_integrals(mu, ConeBeam(), affine=volume_affine((16, 16, 16), 20.0))[0]
    pa, lateral = (divmod(int(view.argmax()), 512) for view in p)
    assert pa[1] > 256 and pa[0] < 256
    assert lateral[1] < 256 and lateral[0] < 256


def test_drr_module_projects_hu(device):
    """Water through DRR is its mu times the length."""
    from progressive_cascade.attenuation import water_attenuation

    drr = DRR({"source_to_isocenter": 1500, "source_to_detector": 1800, "detector_shape": [33, 33]})
    p = drr(torch.zeros(1, 1, 16, 16, 16, device=device), volume_affine((16, 16, 16), 4.0))
    assert float(p[0, 0, 16, 16]) == pytest.approx(64 * water_attenuation(), rel=1e-5)


@pytest.mark.parametrize(
    ("mu", "affine", "error", "words"),
    [
        (torch.zeros(1, 8, 8, 8), np.eye(4), ValueError, r"mu must have shape \(b, 1, x, y, z\)"),
        (torch.zeros(1, 1, 8, 8, 8, dtype=torch.int16), np.eye(4), TypeError, "mu must be a floating-point"),
        (torch.zeros(1, 1, 8, 8, 8), np.eye(3), ValueError, "affine must have shape"),
        (torch.zeros(1, 1, 8, 8, 8), np.diag([1.0, 0, 1, 1]), ValueError, "affine must be finite and invertible"),
        (torch.zeros(1, 1, 8, 8, 8), volume_affine((8, 8, 8), 400.0), ValueError, "source must lie outside"),
        (torch.zeros(1, 1, 8, 8, 8), volume_affine((8, 8, 8), 4.0, (0, 0, 900)), ValueError, "rays that miss it"),
        (torch.zeros(1, 1, 8, 8, 8), volume_affine((8, 8, 8), 4.0, (0, -900, 0)), ValueError, "behind the source"),
    ],
)
def test_bad_input_is_named(mu, affine, error, words, device):
    """One error that names the argument."""
    with pytest.raises(error, match=words):
        line_integrals(mu.to(device), SMALL, affine=affine)


def test_a_voxel_that_is_not_finite_is_named_on_the_host_and_shows_on_a_device(device):
    """On a GPU a look at the result would wait for all that is queued; the voxel's shadow is not finite either."""
    mu, affine = torch.zeros(1, 1, 8, 8, 8, device=device), volume_affine((8, 8, 8), 4.0)
    mu[0, 0, 4, 3, 2] = torch.nan
    if device == "cpu":
        with pytest.raises(ValueError, match=r"mu must be finite, got nan at \[0, 0, 4, 3, 2\]"):
            line_integrals(mu, SMALL, affine=affine)
    else:
        assert torch.isnan(line_integrals(mu, SMALL, affine=affine)).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "siddon"}, "weights must be one of"),
        ({"method": "voxel"}, "method must be one of"),
        ({"backend": "cuda"}, "backend must be one of"),
        ({"weights": "distance", "method": "ray"}, "method must be 'auto' or 'separable'"),
    ],
)
def test_unknown_options_are_named(options, words):
    """One error that names the option."""
    with pytest.raises(ValueError, match=words):
        line_integrals(torch.zeros(1, 1, 8, 8, 8), SMALL, affine=volume_affine((8, 8, 8), 4.0), **options)


def test_geometries_of_a_batch_must_agree_in_shape():
    """Another detector or another number of beams than volumes is refused."""
    mu, affine = torch.zeros(2, 1, 8, 8, 8), volume_affine((8, 8, 8), 4.0)
    with pytest.raises(ValueError, match="one for each of the 2 volumes, got 1"):
        line_integrals(mu, [SMALL], affine=affine)
    with pytest.raises(ValueError, match="one detector_shape per batch"):
        line_integrals(mu, [SMALL, ConeBeam()], affine=affine)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0)])
def test_drr_refuses_a_volume_without_air(low, high):
    """A normalised volume is no CT."""
    hu = torch.linspace(low, high, 512).reshape(1, 1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"hu must be CT numbers \[HU\]"):
        DRR(SMALL)(hu, volume_affine((8, 8, 8), 4.0))


def test_distance_driven_weights_keep_the_volumes_mass(device):
    """Every pixel's weights over a slice it lies in sum to one: a uniform cube casts mu times its length."""
    mu = torch.full((1, 1, 32, 32, 32), 0.02, dtype=torch.float64, device=device)
    for size, pixel in ((65, 1.0), (9, 7.0)):
        beam = ConeBeam(detector_shape=(size, size), pixel_spacing=(pixel, pixel))
        p = line_integrals(mu, beam, affine=volume_affine((32, 32, 32), 2.0), weights="distance")
        expected = torch.full((2,), 1.28, dtype=torch.float64, device=device)
        torch.testing.assert_close(p[0, :, size // 2, size // 2], expected)


def test_aligned_programs_agree_with_the_operator():
    """TorchScript of the form for exporters equals A and its transpose."""
    generator = torch.Generator().manual_seed(5)
    beam = ConeBeam(700, 1020, (24, 20), (4.0, 5.0), views=("pa", "left_lateral", "ap", "right_lateral"))
    affine = volume_affine((8, 10, 12), 5.0)
    x, y = torch.rand(2, 1, 8, 10, 12, generator=generator), torch.rand(2, 4, 24, 20, generator=generator)
    matrices = torch.from_numpy(beam.projection_matrices()).expand(2, -1, -1, -1)
    affines, axes = torch.from_numpy(affine).expand(2, -1, -1), aligned_axes(beam)
    forward = torch.jit.script(project_aligned)(x, matrices, affines, (24, 20), axes)
    adjoint = torch.jit.script(transpose_aligned)(y, matrices, affines, (8, 10, 12), axes)
    torch.testing.assert_close(forward, line_integrals(x, beam, affine=affine))
    torch.testing.assert_close(adjoint, backproject(y, beam, shape=(8, 10, 12), affine=affine))
    assert aligned_axes(ConeBeam()) == [1, 2, 0, 0, 2, 1]
    with pytest.raises(ValueError, match="got 'lao30'"):
        aligned_axes(ConeBeam(views=("lao30",)))


def test_without_numba_torch_projects_and_numba_is_named(monkeypatch):
    """Where numba is missing the same call goes on in torch; asked for by name, the error says what to install."""
    generator = torch.Generator().manual_seed(8)
    x, affine = torch.rand(1, 1, 8, 8, 8, generator=generator), volume_affine((8, 8, 8), 4.0)
    expected = line_integrals(x, SMALL, affine=affine, backend="torch")
    monkeypatch.setattr(backends, "_compiled", lambda: None)
    assert torch.equal(line_integrals(x, SMALL, affine=affine), expected)
    with pytest.raises(ValueError, match="pip install numba"):
        line_integrals(x, SMALL, affine=affine, backend="numba")
