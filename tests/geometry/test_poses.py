# SPDX-License-Identifier: Apache-2.0
"""Laws of the differentiable poses: they agree with ConeBeam, with each other, and with their own derivatives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from progressive_cascade import ConeBeam, volume_affine
from progressive_cascade.geometry import PRESETS
from progressive_cascade.geometry.poses import (
    beam_pose,
    move_patient,
    perturbed_matrices,
    pose_matrices,
    rotation_matrices,
)
from progressive_cascade.projector import project

VIEWS = ("pa", "ap", "left_lateral", "right_lateral", "lao30", "rao45.5_cranial20")
BEAM = ConeBeam(700, 1020, (40, 30), (2.0, 3.0), VIEWS, (10.0, -20.0, 300.0), (11.0, -23.0), 33.0)


def _expected(beam: ConeBeam) -> Tensor:
    return torch.as_tensor(beam.projection_matrices())


def _assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-12 of the largest number in each row of a matrix."""
    scale = theirs.abs().amax(dim=-1, keepdim=True)
    torch.testing.assert_close(ours / scale, (theirs / scale).expand_as(ours), rtol=0, atol=1e-12)


def _pixels(matrices: Tensor, points: Tensor) -> Tensor:
    """(..., view, 3, 4) and points (p, 3) to (..., view, p, 2): columns and rows."""
    homogeneous = torch.cat([points, torch.ones_like(points[:, :1])], dim=-1)
    projected = homogeneous @ matrices.mT
    return projected[..., :2] / projected[..., 2:]


def _leaf(*values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("beam", [BEAM, *PRESETS.values()], ids=["posed", *PRESETS])
def test_unperturbed_matrices_are_the_beams(beam):
    """Without a perturbation, and with one of zero, the matrices are ConeBeam's own."""
    zero = torch.zeros(len(beam.views), 3, dtype=torch.float64)
    _assert_same(perturbed_matrices(beam), _expected(beam))
    moved = perturbed_matrices(beam, rotation=zero, translation=zero, source_shift=zero, detector_shift=zero)
    _assert_same(moved, _expected(beam))


@pytest.mark.parametrize(
    "change",
    [
        {"source_to_isocenter": 650.0},
        {"source_to_detector": 1100.0},
        {"source_to_isocenter": 800.0, "source_to_detector": 900.0},
        {"pixel_spacing": (1.5, 2.5)},
    ],
)
def test_changed_fields_agree_with_a_changed_beam(change):
    """Other distances or another pitch give what a ConeBeam of these gives."""
    _assert_same(perturbed_matrices(BEAM, **change), _expected(replace(BEAM, **change)))


def test_detector_shift_is_the_detector_offset():
    """Shifting the detector along its columns and rows is the beam's (row, column) offset, along its axes."""
    shift = torch.tensor([4.0, -7.0, 0.0], dtype=torch.float64)
    other = replace(BEAM, detector_offset=(11.0 - 7.0, -23.0 + 4.0))
    _assert_same(perturbed_matrices(BEAM, detector_shift=shift), _expected(other))


def test_shift_along_the_axis_is_another_distance():
    """Source back and detector away along the central ray are the two distances."""
    back, away = torch.tensor([0.0, 0.0, -50.0]).double(), torch.tensor([0.0, 0.0, 30.0]).double()
    other = replace(BEAM, source_to_isocenter=750.0, source_to_detector=1100.0)
    _assert_same(perturbed_matrices(BEAM, source_shift=back, detector_shift=away), _expected(other))


@pytest.mark.parametrize("angle", [-120.0, -30.0, 5.0, 90.0])
def test_turned_patient_is_the_opposite_view(angle):
    """A patient turned to the right under a PA beam looks as from a C-arm turned to the left."""
    pa = ConeBeam(views=("pa",), isocenter=(1.0, 2.0, 3.0))
    name = f"lao{angle:g}" if angle > 0 else f"rao{-angle:g}"
    turned = perturbed_matrices(pa, rotation=torch.tensor([[0.0, 0.0, -angle]]).double())
    _assert_same(turned, _expected(replace(pa, views=(name,))))


def test_tilted_patient_is_the_opposite_cranial_angle():
    """The same about the left-right axis: +x is the axis that takes the PA's central ray to the head."""
    pa = ConeBeam(views=("pa",), isocenter=(1.0, 2.0, 3.0))
    tilted = perturbed_matrices(pa, rotation=torch.tensor([-20.0, 0.0, 0.0]).double())
    _assert_same(tilted, _expected(replace(pa, views=("cranial20",))))


def test_shifted_patient_is_the_opposite_isocenter():
    """A patient 5 mm higher looks as from an apparatus 5 mm lower; each view may have its own shift."""
    shift = torch.tensor([3.0, -4.0, 5.0], dtype=torch.float64)
    other = replace(BEAM, isocenter=(7.0, -16.0, 295.0))
    _assert_same(perturbed_matrices(BEAM, translation=shift), _expected(other))
    shifts = torch.zeros(len(VIEWS), 3, dtype=torch.float64)
    shifts[2] = shift
    matrices = perturbed_matrices(BEAM, translation=shifts)
    _assert_same(matrices[2], _expected(other)[2])
    _assert_same(matrices[3], _expected(BEAM)[3])


def test_moved_patient_is_where_his_points_went():
    """Projecting a point as it stood through the moved matrices is projecting it where it went."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, dtype=torch.float64, generator=generator) * 50
    center = torch.tensor(BEAM.isocenter, dtype=torch.float64)
    vector, shift = torch.tensor([8.0, -3.0, 20.0]).double(), torch.tensor([5.0, 0.0, -9.0]).double()
    went = (points - center) @ rotation_matrices(vector).mT + center + shift
    moved = move_patient(_expected(BEAM), vector, shift, center=BEAM.isocenter)
    torch.testing.assert_close(_pixels(moved, points), _pixels(_expected(BEAM), went), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_magnification_is_detector_over_source_distance(shift):
    """Away from the source by ``shift``, a millimetre covers source_to_detector / (source_to_isocenter + shift)."""
    beam = ConeBeam(1000, 1500, views=("lao30",))
    along, across = torch.tensor([-0.5, 3**0.5 / 2, 0.0]).double(), torch.tensor([[0, 0, 0], [0, 0, 1]]).double()
    pixels = _pixels(perturbed_matrices(beam, translation=shift * along), across)[0]
    size = (pixels[0] - pixels[1])[1] * beam.pixel_spacing[0]
    assert size.item() == pytest.approx(1500 / (1000 + shift))


def test_rotation_matrices_are_matrix_exponentials():
    """Small, large and zero rotation vectors give the exponential of their cross product: proper rotations."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    vectors = torch.cat([vectors * torch.logspace(-6, 2, 50).double()[:, None], torch.zeros(1, 3).double()])
    x, y, z = torch.deg2rad(vectors).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    turns = rotation_matrices(vectors)
    torch.testing.assert_close(turns, torch.linalg.matrix_exp(cross), rtol=0, atol=1e-13)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).double().expand(51, 3, 3), rtol=0, atol=1e-14)
    right_handed = rotation_matrices(torch.tensor([0.0, 0.0, 90.0]).double()) @ torch.tensor([1.0, 0.0, 0.0]).double()
    torch.testing.assert_close(right_handed, torch.tensor([0.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("size", [0.0, 1e-5, 17.0, 19.0, 200.0])
def test_rotation_gradient_is_exact(size):
    """First and second derivatives hold at zero, beside the change of formula, and far from it."""
    vector = _leaf([0.6 * size, 0.0, -0.8 * size])
    assert torch.autograd.gradcheck(rotation_matrices, vector, atol=1e-9)
    assert torch.autograd.gradgradcheck(rotation_matrices, vector, atol=1e-8)


def test_pose_gradient_is_exact():
    """Source, detector, its orientation and the pitch all carry derivatives, first and second."""
    pose = beam_pose(replace(BEAM, views=("pa", "lao30")))
    leaves = [tensor.clone().requires_grad_() for tensor in (*pose, torch.tensor([[2.0, 3.0]] * 2).double())]
    points = torch.tensor([[30.0, 10.0, 250.0], [-20.0, 40.0, 350.0]], dtype=torch.float64)

    def pixels(source: Tensor, center: Tensor, rotation: Tensor, pitch: Tensor) -> Tensor:
        return _pixels(pose_matrices(source, center, rotation, pixel_spacing=pitch, detector_shape=(40, 30)), points)

    assert torch.autograd.gradcheck(pixels, leaves)
    assert torch.autograd.gradgradcheck(pixels, leaves)


def test_perturbation_gradient_is_exact():
    """Every perturbation carries derivatives at zero, where a search begins."""
    beam = replace(BEAM, views=("pa", "left_lateral"))
    zeros = [_leaf([0.0] * 3, [0.0] * 3) for _ in range(4)]
    distances = [_leaf(700.0, 690.0), _leaf(1020.0, 1030.0), _leaf([2.0, 3.0], [2.1, 3.1])]
    points = torch.tensor([[30.0, 10.0, 250.0], [-20.0, 40.0, 350.0]], dtype=torch.float64)

    def pixels(*values: Tensor) -> Tensor:
        matrices = perturbed_matrices(
            beam,
            rotation=values[0],
            translation=values[1],
            source_shift=values[2],
            detector_shift=values[3],
            source_to_isocenter=values[4],
            source_to_detector=values[5],
            pixel_spacing=values[6],
        )
        return _pixels(matrices, points)

    assert torch.autograd.gradcheck(pixels, [*zeros, *distances])


def test_leading_axes_broadcast():
    """A batch of motions over the views gives a batch of matrices, each as if computed alone."""
    generator = torch.Generator().manual_seed(2)
    rotation = torch.randn(4, 1, 3, dtype=torch.float64, generator=generator) * 5
    translation = torch.randn(len(VIEWS), 3, dtype=torch.float64, generator=generator) * 5
    distance = torch.tensor([[1000.0], [1010.0], [1020.0], [1030.0]], dtype=torch.float64)
    batch = perturbed_matrices(BEAM, rotation=rotation, translation=translation, source_to_detector=distance)
    assert batch.shape == (4, len(VIEWS), 3, 4)
    alone = perturbed_matrices(BEAM, rotation=rotation[2], translation=translation, source_to_detector=1020.0)
    _assert_same(batch[2], alone)
    lone_turn = perturbed_matrices(BEAM, rotation=rotation[0, 0], translation=rotation)
    assert lone_turn.shape == (4, len(VIEWS), 3, 4)


def test_precision_follows_the_tensors():
    """Float32 perturbations give float32 matrices, numbers alone float64."""
    assert perturbed_matrices(BEAM, translation=torch.zeros(3)).dtype == torch.float32
    assert perturbed_matrices(BEAM, source_to_detector=1000.0).dtype == torch.float64


def test_landmarks_recover_motion_and_distances():
    """From where 12 markers fall in two views, least squares finds the patient's motion and both distances."""
    generator = torch.Generator().manual_seed(3)
    beam = ConeBeam(1500, 1800, views=("pa", "left_lateral"))
    markers = torch.rand(12, 3, dtype=torch.float64, generator=generator) * 300 - 150
    true_turn = torch.tensor([[0.0, 0.0, 0.0], [3.0, -2.0, 4.0]], dtype=torch.float64)
    true_shift = torch.tensor([[0.0, 0.0, 0.0], [6.0, -8.0, 5.0]], dtype=torch.float64)
    measured = _pixels(
        perturbed_matrices(
            beam, rotation=true_turn, translation=true_shift, source_to_isocenter=1480.0, source_to_detector=1812.0
        ),
        markers,
    )
    turn, shift, scale = torch.zeros(3).double(), torch.zeros(3).double(), torch.ones(2).double()
    parameters = [tensor.requires_grad_() for tensor in (turn, shift, scale)]
    optimizer = torch.optim.LBFGS(parameters, lr=1.0, max_iter=100, line_search_fn="strong_wolfe", tolerance_change=0)

    def guess() -> Tensor:
        still = torch.zeros(3, dtype=torch.float64)
        return perturbed_matrices(
            beam,
            rotation=torch.stack([still, turn]),
            translation=torch.stack([still, shift]),
            source_to_isocenter=1500 * scale[0],
            source_to_detector=1800 * scale[1],
        )

    def step() -> float:
        optimizer.zero_grad()
        loss = (_pixels(guess(), markers) - measured).square().mean()
        loss.backward()
        return loss.item()

    optimizer.step(step)  # type: ignore[arg-type]
    torch.testing.assert_close(turn.detach(), true_turn[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(shift.detach(), true_shift[1], rtol=0, atol=1e-2)
    torch.testing.assert_close(
        (scale * torch.tensor([1500.0, 1800.0])).detach(), torch.tensor([1480.0, 1812.0]).double(), rtol=0, atol=0.1
    )


def test_radiographs_recover_the_motion_between_two_exposures():
    """Gradients through the projector bring the patient of the second exposure back from 6 mm and 3 degrees away."""
    generator = torch.Generator().manual_seed(4)
    beam = ConeBeam(detector_shape=(32, 32), pixel_spacing=(13.44, 13.44))
    affine = torch.as_tensor(volume_affine((16, 16, 16), 22.4))
    points = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"), dim=-1)
    centers = torch.rand(8, 3, generator=generator) * 9 + 3
    mu = 0.01 * sum((-(points - center).square().sum(-1) / 8).exp() for center in centers)[None, None]
    still = torch.zeros(1, 3, dtype=torch.float64)
    true_motion = torch.tensor([[2.0, -1.0, 2.0], [4.0, -3.0, 3.0]], dtype=torch.float64)

    def radiographs(motion: Tensor) -> Tensor:
        turn, shift = (torch.cat([still, row[None]]) for row in motion)
        matrices = perturbed_matrices(beam, rotation=turn, translation=shift)
        return project(mu, matrices[None], affine[None], beam.detector_shape, method="ray")

    measured = radiographs(true_motion)
    motion = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([motion], max_iter=40, line_search_fn="strong_wolfe", tolerance_change=0)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = 1e6 * (radiographs(motion) - measured).square().mean()
        loss.backward()
        return loss

    optimizer.step(step)  # type: ignore[arg-type]
    torch.testing.assert_close(motion.detach(), true_motion, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rotation_matrices(torch.zeros(4)), "vector must have shape .*3.*got .4"),
        (lambda: perturbed_matrices(BEAM, translation=torch.zeros(6, 2)), "translation must have shape"),
        (lambda: perturbed_matrices(BEAM, source_shift=torch.zeros(6, 2)), "source_shift must have shape"),
        (lambda: perturbed_matrices(BEAM, pixel_spacing=(1.0,)), "pixel_spacing must have shape"),
        (lambda: move_patient(torch.zeros(4, 4), torch.zeros(3), torch.zeros(3)), "matrices must have shape"),
        (
            lambda: pose_matrices(
                torch.zeros(3), torch.ones(3), torch.ones(3), pixel_spacing=(1.0, 1.0), detector_shape=(4, 4)
            ),
            "rotation must have shape .*3, 3",
        ),
    ],
)
def test_wrong_shapes_are_named(call, words):
    """A wrong shape is told with the argument's name."""
    with pytest.raises(ValueError, match=words):
        call()
