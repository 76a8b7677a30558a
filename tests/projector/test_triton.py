# SPDX-License-Identifier: Apache-2.0
"""Laws of the fused kernels, by Triton's interpreter where there is no CUDA device, and compiled where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, backproject, line_integrals, volume_affine
from progressive_cascade.errors import UserError
from progressive_cascade.projector import backends, project, transpose_project
from tests.support.ellipsoid import chords_of_ellipsoid, voxelize_ellipsoid

triton_backend = pytest.importorskip("progressive_cascade.projector.triton_backend", reason="triton is not installed")

pytestmark = pytest.mark.cuda
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = (8, 7, 6)
ALIGNED = ConeBeam(700, 1020, (12, 10), (8.0, 9.0))
OBLIQUE = ConeBeam(700, 1020, (12, 10), (8.0, 9.0), views=("lao30_cranial15", "rao45"))
# A wide fan at 45 degrees, whose rays have different main axes, and a detector that stands in the volume.
MIXED = ConeBeam(130, 260, (9, 11), (18.0, 18.0), views=("lao45_cranial30",))
CUT = ConeBeam(700, 705, (12, 10), (5.0, 5.0), views=("pa", "lao30"))
TURNED = np.array([[0, 0, -7.0, 20], [5.0, 0.5, 0, -18], [0, -6.0, 0.4, 16], [0, 0, 0, 1]])
POSES = {
    "aligned": (ALIGNED, volume_affine(SHAPE, 6.0)),
    "oblique": (OBLIQUE, volume_affine(SHAPE, 6.0)),
    "turned": (ALIGNED, TURNED),
    "mixed": (MIXED, volume_affine(SHAPE, 9.0)),
    "cut": (CUT, volume_affine(SHAPE, 6.0)),
}


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time by program, not by voxel."""
    if DEVICE == "cpu":
        monkeypatch.setattr(triton_backend, "PIXEL_TILE", (16, 16))
        monkeypatch.setattr(triton_backend, "VOXEL_TILE", (8, 8, 8))


def _rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(DEVICE)


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.cpu() - theirs.cpu()).norm() / theirs.norm())


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_both_directions_equal_the_rays_of_torch(pose, dtype, tolerance):
    """Joseph's sums and their transpose are those of the reference, and <A x, y> = <x, Aᵀ y>."""
    beam, affine = POSES[pose]
    x = _rand(1, 1, *SHAPE, dtype=dtype)
    p = line_integrals(x, beam, affine=affine, backend="triton")
    y = _rand(*p.shape, seed=1, dtype=dtype)
    back = backproject(y, beam, shape=SHAPE, affine=affine, backend="triton")
    assert p.dtype == back.dtype == dtype
    reference = {"affine": affine, "method": "ray", "backend": "torch"}
    assert _relative(p, line_integrals(x.cpu(), beam, **reference)) < tolerance
    assert _relative(back, backproject(y.cpu(), beam, shape=SHAPE, **reference)) < tolerance
    left, right = (p * y).double().sum(), (x * back).double().sum()
    assert abs(left - right) / left < tolerance


def test_small_tiles_give_the_same_sums(monkeypatch):
    """Neither direction depends on how detector and volume are cut up, nor on a volume's strides."""
    beam, affine = ConeBeam(700, 1020, (12, 10), (8.0, 9.0), views=("lao30",)), volume_affine(SHAPE, 6.0)
    x = _rand(1, 1, 6, 7, 8).permute(0, 1, 4, 3, 2)
    y = _rand(1, 1, 12, 10, seed=1)
    options = {"affine": affine, "backend": "triton"}
    p = line_integrals(x.contiguous(), beam, **options)
    back = backproject(y, beam, shape=SHAPE, **options)
    monkeypatch.setattr(triton_backend, "PIXEL_TILE", (8, 8))
    monkeypatch.setattr(triton_backend, "VOXEL_TILE", (4, 4, 8))
    torch.testing.assert_close(line_integrals(x, beam, **options), p, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(backproject(y, beam, shape=SHAPE, **options), back, rtol=1e-5, atol=1e-6)


def test_a_batch_of_geometries_equals_single_calls():
    """Every sample has its own matrices and affine."""
    beams = [ALIGNED, ConeBeam(600, 1000, (12, 10), (9.0, 10.0))]
    affines = np.stack([volume_affine(SHAPE, 6.0), volume_affine(SHAPE, 5.0, (4.0, 3.0, -5.0))])
    x = _rand(2, 1, *SHAPE)
    together = line_integrals(x, beams, affine=affines, backend="triton")
    for n in range(2):
        alone = line_integrals(x[n : n + 1], beams[n], affine=affines[n], backend="triton")
        assert torch.equal(together[n : n + 1], alone)


def test_derivatives_are_the_transpose_and_the_forward_again():
    """The gradient of |A x|² is 2 Aᵀ A x, and the gradient of <that, v> is 2 Aᵀ A v, in float64."""
    beam, affine = POSES["oblique"]
    options = {"affine": affine, "method": "ray"}
    x, v = (_rand(1, 1, *SHAPE, seed=seed, dtype=torch.float64) for seed in (0, 1))
    x.requires_grad_()
    loss = (line_integrals(x, beam, **options, backend="triton") ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * v).sum(), x)
    for ours, of in ((gradient.detach(), x.detach()), (second, v)):
        p = line_integrals(of.cpu(), beam, **options, backend="torch")
        assert _relative(ours, 2 * backproject(p, beam, shape=SHAPE, **options, backend="torch")) < 1e-12


def test_the_error_against_an_ellipsoid_is_that_of_the_voxels():
    """It falls with their size, is that of the rays of torch, and rays that miss give exactly 0."""
    radii, center = np.array([110.0, 70.0, 90.0]), np.array([12.0, -7.0, 20.0])
    beam = ConeBeam(detector_shape=(16, 16), pixel_spacing=(40.0, 40.0), views=("pa", "lao45"))
    truth, errors = chords_of_ellipsoid(beam, radii, center), []
    for size in (10, 20):
        mu = voxelize_ellipsoid((size, size, size), 320.0 / size, radii, center).float().to(DEVICE)
        affine = volume_affine((size, size, size), 320.0 / size)
        p = line_integrals(mu, beam, affine=affine, backend="triton")[0].cpu()
        assert _relative(p, line_integrals(mu.cpu(), beam, affine=affine, method="ray", backend="torch")[0]) < 1e-6
        errors.append(np.linalg.norm(p.numpy() - truth) / np.linalg.norm(truth))
    assert errors[1] < 0.1
    assert errors[1] < errors[0]
    assert (p[:, 0] == 0).all()


def test_an_impossible_pose_is_refused_on_the_host_and_nan_on_the_device(monkeypatch):
    """On a device a look at the matrices would wait for all that is queued."""
    affine = volume_affine(SHAPE, 400.0)
    x = torch.ones(1, 1, *SHAPE, device=DEVICE)
    with pytest.raises(ValueError, match="source must lie outside the volume"):
        line_integrals(x, ALIGNED, affine=affine, backend="triton")
    monkeypatch.setattr(triton_backend.FusedOperator, "_look", lambda self: False)
    matrices = torch.from_numpy(ALIGNED.projection_matrices())[None].to(DEVICE)
    affines = torch.from_numpy(affine)[None].to(DEVICE)
    p = project(x, matrices, affines, (12, 10), backend="triton")
    assert torch.isnan(p).all()
    assert torch.isnan(transpose_project(torch.ones_like(p), matrices, affines, SHAPE, backend="triton")).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "distance"}, "weights must be 'joseph'.*'torch' has"),
        ({"method": "separable"}, "which 'torch' has"),
    ],
)
def test_what_triton_lacks_names_who_has_it(options, words):
    """Distance-driven weights and slices are torch's."""
    with pytest.raises(ValueError, match=words):
        line_integrals(torch.zeros(1, 1, *SHAPE, device=DEVICE), ALIGNED, affine=np.eye(4), backend="triton", **options)


def test_without_triton_or_cuda_the_error_names_what_is_missing(monkeypatch):
    """One line each."""
    call = {"affine": volume_affine(SHAPE, 6.0), "backend": "triton"}
    monkeypatch.setattr(triton_backend, "runs_on", lambda device: False)
    with pytest.raises(ValueError, match="on cpu, got 'triton', which needs a CUDA device"):
        line_integrals(torch.zeros(1, 1, *SHAPE), ALIGNED, **call)
    monkeypatch.setattr(backends, "_fused", lambda: None)
    with pytest.raises(ValueError, match="pip install triton"):
        line_integrals(torch.zeros(1, 1, *SHAPE), ALIGNED, **call)


def test_too_little_memory_is_told_with_sizes_and_a_way_out(monkeypatch):
    """No traceback of the allocator."""

    def fail(self, mu):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(triton_backend.FusedOperator, "project", fail)
    with pytest.raises(UserError, match=r"batch of 1 volumes of \(8, 7, 6\) voxels.*smaller window"):
        mu = torch.zeros(1, 1, *SHAPE, device=DEVICE)
        line_integrals(mu, ALIGNED, affine=volume_affine(SHAPE, 6.0), backend="triton")


def test_kernels_compile_for_an_h100(tmp_path):
    """To machine code, by the compiler that runs where the GPU is; the interpreter takes what the compiler refuses."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.compiled_kernels", "90"],
        cwd=Path(__file__).parents[2],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    compiled = json.loads(run.stdout)
    assert len(compiled) == 6
    assert all(size > 10_000 for _, _, size in compiled)
