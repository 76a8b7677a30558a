# SPDX-License-Identifier: Apache-2.0
"""Laws of the projector for any pose: truth, transpose, backends that agree, gradients for the pose, no NaN."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, backproject, line_integrals, volume_affine
from progressive_cascade.geometry.poses import perturbed_matrices
from progressive_cascade.projector import project, transpose_project
from progressive_cascade.projector.plan import plan_view
from tests.support.ellipsoid import chords_of_ellipsoid, voxelize_ellipsoid

OBLIQUE = ConeBeam(700, 1020, (24, 20), (6.0, 7.0), views=("lao30_cranial15", "rao45", "caudal20"))
RADII, CENTER = np.array([110.0, 70.0, 90.0]), np.array([12.0, -7.0, 20.0])
MODES = (
    {"method": "auto"},
    {"method": "auto", "backend": "torch"},
    {"method": "auto", "weights": "distance"},
    {"method": "ray"},
    {"method": "ray", "backend": "torch"},
)


def _turned(shape: tuple[int, int, int]) -> np.ndarray:
    """An oblique, anisotropic, flipped affine about the origin."""
    angle = math.radians(20)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0.1], [0.1, 0.05, -1]])
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(turn)[0] @ np.diag([5.0, 7.0, 6.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def _error(p: torch.Tensor, truth: np.ndarray) -> float:
    return float(np.linalg.norm(p.cpu().numpy() - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_oblique_views_match_an_analytic_ellipsoid(mode, device):
    """The error is that of the voxels, and falls with them."""
    beam = ConeBeam(700, 1020, (64, 64), (9.0, 9.0), views=("lao30_cranial15", "lao45", "cranial60"))
    truth = chords_of_ellipsoid(beam, RADII, CENTER)
    errors = []
    for size in (32, 64):
        mu = voxelize_ellipsoid((size, size, size), 358.4 / size, RADII, CENTER).float().to(device)
        p = line_integrals(mu, beam, affine=volume_affine((size, size, size), 358.4 / size), **mode)
        errors.append(_error(p[0], truth))
    assert errors[1] < 0.03
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize(
    "beam",
    [
        # The source stands in the volume's slab along the beam, beside it.
        ConeBeam(250, 700, (48, 48), (20.0, 20.0), views=("lao45",)),
        # Corner rays run steeper than the slices allow.
        ConeBeam(400, 500, (48, 48), (40.0, 40.0), views=("pa",)),
        # 45° and a wide fan: rays of one view have different main axes.
        ConeBeam(500, 800, (48, 48), (24.0, 24.0), views=("lao45_cranial30",)),
    ],
    ids=("slab", "steep", "mixed"),
)
def test_poses_that_slices_cannot_do_fall_back_to_rays_and_stay_right(beam, device):
    """The guard trips by itself, and the error is still that of the voxels."""
    radii, center = np.array([60.0, 50.0, 55.0]), np.array([5.0, -7.0, 10.0])
    size, affine = 64, volume_affine((64, 64, 64), 2.5)
    mu = voxelize_ellipsoid((size, size, size), 2.5, radii, center).float().to(device)
    p = line_integrals(mu, beam, affine=affine)
    assert _error(p[0], chords_of_ellipsoid(beam, radii, center)) < 0.04
    plan = plan_view(beam.projection_matrices()[0], affine, shape=(64, 64, 64), detector_shape=beam.detector_shape)
    if plan is None:
        with pytest.raises(ValueError, match="method must be 'ray' or 'auto'"):
            line_integrals(mu, beam, affine=affine, method="separable")


def test_a_detector_in_the_volume_ends_the_rays(device):
    """A cube of 160 mm with the detector 40 mm behind its middle casts mu times 120 mm."""
    mu = torch.full((1, 1, 80, 80, 80), 0.02, device=device)
    beam = ConeBeam(1000, 1040, (5, 5), (1.0, 1.0))
    p = line_integrals(mu, beam, affine=volume_affine((80, 80, 80), 2.0))
    torch.testing.assert_close(p[0, :, 2, 2], torch.full((2,), 0.02 * 120.0, device=device))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_backproject_is_the_transpose_for_any_pose(mode, dtype, tolerance, device):
    """<A x, y> = <x, Aᵀ y> on an oblique, anisotropic, flipped volume."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 12, 14, 10, generator=generator, dtype=dtype).to(device)
    y = torch.rand(2, 3, 24, 20, generator=generator, dtype=dtype).to(device)
    affine = _turned((12, 14, 10))
    forward = (line_integrals(x, OBLIQUE, affine=affine, **mode).double() * y).sum()
    adjoint = (backproject(y, OBLIQUE, shape=(12, 14, 10), affine=affine, **mode).double() * x).sum()
    assert abs(forward - adjoint) / abs(forward) < tolerance


@pytest.mark.parametrize(("method", "weights"), [("auto", "joseph"), ("auto", "distance"), ("ray", "joseph")])
def test_backends_agree(method, weights):
    """numba and torch give the same projections and the same transpose, aligned and oblique."""
    generator = torch.Generator().manual_seed(1)
    beam = ConeBeam(700, 1020, (24, 20), (6.0, 7.0), views=("pa", "lao30_cranial15", "right_lateral"))
    affine = volume_affine((12, 14, 10), 8.0)
    x, y = torch.rand(1, 1, 12, 14, 10, generator=generator), torch.rand(1, 3, 24, 20, generator=generator)
    options = {"affine": affine, "method": method, "weights": weights}
    ours, theirs = (line_integrals(x, beam, backend=backend, **options) for backend in ("numba", "torch"))
    assert (ours - theirs).norm() / theirs.norm() < 1e-6
    ours, theirs = (
        backproject(y, beam, shape=(12, 14, 10), backend=backend, **options) for backend in ("numba", "torch")
    )
    assert (ours - theirs).norm() / theirs.norm() < 1e-6


def test_results_do_not_depend_on_the_number_of_threads():
    """Work is shared by what is written: one thread and two give the same bits."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.rand(1, 1, 16, 16, 16, generator=generator), torch.rand(1, 3, 24, 20, generator=generator)
    affine, threads, results = volume_affine((16, 16, 16), 6.0), torch.get_num_threads(), {1: [], 3: []}
    try:
        for count, found in results.items():
            torch.set_num_threads(count)
            for mode in MODES[::3]:
                found.append(line_integrals(x, OBLIQUE, affine=affine, **mode))
                found.append(backproject(y, OBLIQUE, shape=(16, 16, 16), affine=affine, **mode))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(results[1], results[3], strict=True))


def test_a_batch_of_poses_equals_single_calls_bit_for_bit(device):
    """Four volumes, four geometries, aligned, oblique and by rays, forwards and back."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(4, 1, 8, 8, 8, generator=generator).to(device)
    y = torch.rand(4, 2, 24, 20, generator=generator).to(device)
    views = (("pa", "left_lateral"), ("lao30", "rao45"), ("cranial20", "ap"), ("lao45_caudal30", "lao45"))
    distances = (700.0, 800.0, 900.0, 60.0)
    beams = [
        ConeBeam(near, near + 320, (24, 20), (6.0, 7.0), views=names)
        for near, names in zip(distances, views, strict=True)
    ]
    affines = np.stack([volume_affine((8, 8, 8), 4.0, (shift, 0, 0)) for shift in (0.0, 3.0, 9.0, 1.0)])
    together = line_integrals(x, beams, affine=affines)
    back = backproject(y, beams, shape=(8, 8, 8), affine=affines)
    for i in range(4):
        assert torch.equal(together[i : i + 1], line_integrals(x[i : i + 1], beams[i], affine=affines[i]))
        alone = backproject(y[i : i + 1], beams[i], shape=(8, 8, 8), affine=affines[i])
        assert torch.equal(back[i : i + 1], alone)


@pytest.mark.parametrize("mode", [{"method": "auto"}, {"method": "ray"}, {"backend": "torch"}], ids=str)
def test_volume_gradients_are_exact_to_the_second_order_and_forwards(mode, device):
    """gradcheck, gradgradcheck and forward mode of an oblique A and Aᵀ in float64."""
    beam = ConeBeam(700, 1020, (5, 4), (16.0, 20.0), views=("lao30_cranial15",))
    affine = volume_affine((4, 3, 5), 9.0)
    x = torch.rand(1, 1, 4, 3, 5, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.rand(1, 1, 5, 4, dtype=torch.float64, device=device, requires_grad=True)
    forward = lambda v: line_integrals(v, beam, affine=affine, **mode)  # noqa: E731
    assert torch.autograd.gradcheck(forward, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda v: forward(v) ** 2, x)
    assert torch.autograd.gradcheck(lambda p: backproject(p, beam, shape=(4, 3, 5), affine=affine, **mode), y)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_pose_and_intrinsics_have_exact_gradients(backend):
    """gradcheck for rotation, translation, source, detector, distances and pixel spacing, and for the volume."""
    generator = torch.Generator().manual_seed(4)
    beam = ConeBeam(300, 500, (4, 3), (30.0, 40.0), views=("pa", "lao30_cranial15"))
    affines = torch.from_numpy(volume_affine((4, 3, 5), 20.0))[None]
    mu = torch.rand(1, 1, 4, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)

    def move(*, scale: float) -> torch.Tensor:
        shifts = scale * torch.rand(2, 3, generator=generator, dtype=torch.float64)
        return shifts.requires_grad_()

    near = torch.tensor(301.0, dtype=torch.float64, requires_grad=True)
    far = torch.tensor(503.0, dtype=torch.float64, requires_grad=True)
    names = ("rotation", "translation", "source_shift", "detector_shift", "source_to_isocenter", "source_to_detector")
    pose = (move(scale=2.0), move(scale=3.0), move(scale=3.0), move(scale=3.0), near, far)

    def forward(volume: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        matrices = perturbed_matrices(beam, **dict(zip(names, values, strict=True)))[None]
        return project(volume, matrices, affines, beam.detector_shape, backend=backend)

    assert torch.autograd.gradcheck(forward, (mu, *pose), eps=1e-6, atol=1e-5)


def test_gradients_for_the_pose_go_through_a_gradient_for_the_volume():
    """A loss on d p / d mu has a gradient for mu through rays that need one for the pose."""
    beam = ConeBeam(300, 500, (4, 3), (30.0, 40.0), views=("pa",))
    affines = torch.from_numpy(volume_affine((4, 4, 4), 14.0))[None]
    matrices = torch.from_numpy(beam.projection_matrices())[None].requires_grad_()
    mu = torch.rand(1, 1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda volume: project(volume, matrices, affines, beam.detector_shape).square(), mu
    )


def test_random_geometries_never_give_a_nan(device):
    """Whatever the pose, finite volumes give finite projections and gradients; rays that miss give exactly 0."""
    rng = np.random.default_rng(6)
    seen = 0
    for _ in range(60):
        near = rng.uniform(30, 800)
        beam = ConeBeam(
            near,
            near + rng.uniform(1, 600),
            (9, 11),
            tuple(10 ** rng.uniform(-1, 2, 2)),
            views=(f"lao{rng.uniform(0, 180):.0f}_cranial{rng.uniform(0, 89):.0f}",),
            detector_offset=tuple(rng.uniform(-50, 50, 2)),
            detector_rotation=rng.uniform(-180, 180),
        )
        affine = volume_affine((6, 7, 5), 10.0, tuple(rng.uniform(-40, 40, 3))) @ np.diag(
            [*rng.choice([-1, 1], 3) * rng.uniform(0.2, 2, 3), 1]
        )
        mu = torch.rand(1, 1, 6, 7, 5, device=device, requires_grad=True)
        missed = _misses(beam, affine, (6, 7, 5))
        for mode in MODES:
            try:
                p = line_integrals(mu, beam, affine=affine, **mode)
            except ValueError as error:
                assert "source must lie outside" in str(error) or "must look at the volume" in str(error)
                continue
            seen += 1
            (gradient,) = torch.autograd.grad(p.sum(), mu)
            assert torch.isfinite(p).all() and torch.isfinite(gradient).all()
            assert (p[0, 0].detach().cpu().numpy()[missed] == 0).all()
    assert seen > 100


def _misses(beam: ConeBeam, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels (rows, cols) of the first view whose ray, sampled densely, never comes within a voxel of the volume."""
    matrix = beam.projection_matrices()[0]
    source = -np.linalg.solve(matrix[:, :3], matrix[:, 3])
    col, row = np.meshgrid(np.arange(beam.detector_shape[1]), np.arange(beam.detector_shape[0]))
    pixels = np.stack([col, row, np.zeros_like(col), np.ones_like(col)], -1) @ beam.detector_affine(0).T
    points = source + np.linspace(0, 1, 4000)[:, None, None, None] * (pixels[..., :3] - source)
    voxels = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return ~((voxels > -1.1) & (voxels < np.array(shape) + 0.1)).all(axis=-1).any(axis=0)


def test_a_source_on_the_axis_of_a_voxel_plane_gives_finite_pose_gradients(device):
    """Rays that run exactly along slices and through voxel centres divide by nothing that is zero."""
    beam = ConeBeam(500, 800, (5, 5), (10.0, 10.0), views=("pa", "left_lateral"))
    mu = torch.rand(1, 1, 5, 5, 5, device=device)
    matrices = torch.from_numpy(beam.projection_matrices())[None].requires_grad_()
    affines = torch.from_numpy(volume_affine((5, 5, 5), 10.0))[None]
    project(mu, matrices, affines, (5, 5)).sum().backward()
    assert matrices.grad is not None and torch.isfinite(matrices.grad).all()


def test_transpose_of_transpose_is_the_operator():
    """The derivative of Aᵀ y with respect to y, applied to v, is A v."""
    generator = torch.Generator().manual_seed(7)
    matrices = torch.from_numpy(OBLIQUE.projection_matrices())[None]
    affines = torch.from_numpy(volume_affine((6, 6, 6), 9.0))[None]
    y = torch.rand(1, 3, 24, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    v = torch.rand(1, 1, 6, 6, 6, generator=generator, dtype=torch.float64)
    (transpose_project(y, matrices, affines, (6, 6, 6)) * v).sum().backward()
    torch.testing.assert_close(y.grad, project(v, matrices, affines, (24, 20)))


def test_flipped_and_permuted_storage_does_not_change_oblique_views():
    """The volume's axes in any order and direction give the same radiographs, to the resampling's precision."""
    mu = voxelize_ellipsoid((24, 24, 24), 15.0, RADII, CENTER).float()
    affine = volume_affine((24, 24, 24), 15.0)
    expected = line_integrals(mu, OBLIQUE, affine=affine)
    for order in itertools.permutations(range(3)):
        stored = mu.permute(0, 1, *(axis + 2 for axis in order)).contiguous()
        p = line_integrals(stored, OBLIQUE, affine=affine[:, [*order, 3]])
        torch.testing.assert_close(p, expected, atol=1e-5, rtol=1e-5)


def test_a_second_derivative_for_the_pose_is_refused():
    """It would silently be zero: interpolation is linear in the pose between voxels."""
    beam = ConeBeam(300, 500, (4, 3), (30.0, 40.0), views=("pa",))
    affines = torch.from_numpy(volume_affine((4, 4, 4), 14.0))[None]
    matrices = torch.from_numpy(beam.projection_matrices())[None].requires_grad_()
    p = project(torch.rand(1, 1, 4, 4, 4, dtype=torch.float64), matrices, affines, beam.detector_shape)
    (gradient,) = torch.autograd.grad(p.square().sum(), matrices, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.square().sum().backward()
