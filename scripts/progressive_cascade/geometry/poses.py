# SPDX-License-Identifier: Apache-2.0
"""Projection matrices that can be differentiated: poses recovered, calibrated or jittered by gradients.

:class:`~progressive_cascade.ConeBeam` says where source and detector should have stood. These functions say where a
pixel falls when they stood elsewhere, or the patient moved between two exposures, as tensors that carry gradients to
every number of the pose. What they return goes into :func:`progressive_cascade.projector.project` as its matrices.

Points, axes and units are those of :mod:`.beam`: RAS mm, degrees, pixel centres at integers.
Use float64 for poses: a focal length of 1800 mm over 0.2 mm pixels leaves float32 about a thousandth of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from progressive_cascade.geometry.beam import ConeBeam

# sin(a)/a and (1 - cos(a))/a^2 as series in a^2, whose derivatives exist at zero, where every pose search begins. Below
# _SMALL the first term left out is less than 2e-16.
_SMALL = 0.1
_SINE_SERIES = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800)
_COSINE_SERIES = (1 / 2, -1 / 24, 1 / 720, -1 / 40320, 1 / 3628800, -1 / 479001600)


class Pose(NamedTuple):
    """Where the source and the detector of each view stand.

    Args:
        source: (..., 3), RAS [mm].
        detector_center: (..., 3), RAS [mm].
        rotation: (..., 3, 3); its rows are the unit vectors along increasing columns, along increasing rows, and from
            the source's side straight through the detector.
    """

    source: Tensor
    detector_center: Tensor
    rotation: Tensor


def rotation_matrices(vector: Tensor) -> Tensor:
    """Rotations about the direction of a vector, by its length; smooth everywhere, at zero too.

    ``R = I + sin(a)/a K + (1 - cos(a))/a^2 K^2`` with ``K`` the cross product with the vector and ``a`` its length in
    radians (Rodrigues). The turn is right-handed: ``(0, 0, 90)`` takes +x to +y.

    Args:
        vector: (..., 3), axis in RAS times angle [degrees].

    Returns:
        (..., 3, 3) matrices that act on columns (x, y, z).

    Raises:
        ValueError: if the last axis does not have length 3.
    """
    _check_last("vector", vector, (3,))
    radians = torch.deg2rad(vector)
    x, y, z = radians.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    squared = (radians * radians).sum(-1)
    small = squared < _SMALL
    # The branch not taken must stay finite, or its gradient would spoil the other's.
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(small, _series(squared, _SINE_SERIES), angle.sin() / angle)
    cosine = torch.where(small, _series(squared, _COSINE_SERIES), (1 - angle.cos()) / angle**2)
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return identity + sine[..., None, None] * cross + cosine[..., None, None] * (cross @ cross)


def pose_matrices(
    source: Tensor,
    detector_center: Tensor,
    rotation: Tensor,
    *,
    pixel_spacing: Tensor | Sequence[float],
    detector_shape: tuple[int, int],
) -> Tensor:
    """World to pixel matrices of any source and any flat detector: ``(column w, row w, w) = P (x, y, z, 1)``.

    With ``d`` the distance of the source from the detector's plane and ``(c, r)`` the detector's centre seen from the
    foot of the perpendicular, ``P = K [R | -R source]`` where ``K`` scales by ``d`` over the pitch and puts the centre
    ``(columns - 1) / 2 - c / pitch`` to the middle of the image. Differentiable in every tensor; leading axes
    broadcast.

    Args:
        source: (..., 3), RAS [mm].
        detector_center: (..., 3), RAS [mm].
        rotation: (..., 3, 3) as in :class:`Pose`; orthonormal, with the source on the negative side of its third row.
        pixel_spacing: pitch (row, column) [mm], a pair or (..., 2).
        detector_shape: pixels (rows, columns).

    Returns:
        (..., 3, 4); w is the depth from the source along the detector's normal [mm].

    Raises:
        ValueError: if a shape is wrong.
    """
    _check_last("source", source, (3,))
    _check_last("detector_center", detector_center, (3,))
    _check_last("rotation", rotation, (3, 3))
    pitch = _as(pixel_spacing, source)
    _check_last("pixel_spacing", pitch, (2,))
    rows, cols = detector_shape
    right, down, depth = (rotation @ (detector_center - source)[..., None]).squeeze(-1).unbind(-1)
    row_pitch, col_pitch = pitch.unbind(-1)
    zero, one = torch.zeros_like(depth * row_pitch), torch.ones_like(depth * row_pitch)
    intrinsic = torch.stack(
        [
            *(depth / col_pitch, zero, (cols - 1) / 2 - right / col_pitch),
            *(zero, depth / row_pitch, (rows - 1) / 2 - down / row_pitch),
            *(zero, zero, one),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))
    shift = -rotation @ source[..., None]
    extrinsic = torch.cat([rotation.expand(*shift.shape[:-2], 3, 3), shift], dim=-1)
    return intrinsic @ extrinsic


def beam_pose(
    beam: ConeBeam,
    *,
    source_to_isocenter: Tensor | float | None = None,
    source_to_detector: Tensor | float | None = None,
) -> Pose:
    """The pose of every view of a geometry, with other distances where they are given.

    The isocenter stays where it is; source and detector move along the central ray.

    Args:
        beam: the geometry.
        source_to_isocenter: distance in place of the beam's, a number or (..., view) [mm].
        source_to_detector: distance in place of the beam's, a number or (..., view) [mm].

    Returns:
        Tensors with the view as last leading axis, on the device and in the precision of the distances (else float64
        on the CPU).
    """
    like = _like(source_to_isocenter, source_to_detector)
    sources, centers, rotations = (_as(array, like) for array in beam.poses())
    along = rotations[:, 2]
    nearer = farther = torch.zeros((), dtype=like.dtype, device=like.device)
    if source_to_isocenter is not None:
        nearer = beam.source_to_isocenter - _as(source_to_isocenter, like)
    if source_to_detector is not None:
        farther = _as(source_to_detector, like) - beam.source_to_detector
    return Pose(
        sources + nearer[..., None] * along,
        centers + (nearer + farther)[..., None] * along,
        rotations,
    )


def move_patient(
    matrices: Tensor, rotation: Tensor, translation: Tensor, *, center: Sequence[float] | Tensor = (0.0, 0.0, 0.0)
) -> Tensor:
    """The matrices of a patient who moved rigidly before the exposure: ``x -> R (x - center) + center + translation``.

    Args:
        matrices: (..., 3, 4), RAS mm to pixels.
        rotation: (..., 3), axis times angle as for :func:`rotation_matrices` [degrees].
        translation: (..., 3), RAS [mm].
        center: the point the patient turns about, RAS [mm].

    Returns:
        (..., 3, 4) that map points of the patient as he stood before; leading axes broadcast.

    Raises:
        ValueError: if a shape is wrong.
    """
    _check_last("matrices", matrices, (3, 4))
    _check_last("translation", translation, (3,))
    turn = rotation_matrices(rotation)
    pivot = _as(center, matrices)
    shift = pivot + translation - (turn @ pivot[..., None]).squeeze(-1)
    linear = matrices[..., :3] @ turn
    offset = matrices[..., :3] @ shift[..., None] + matrices[..., 3:]
    return torch.cat([linear.expand(*offset.shape[:-2], 3, 3), offset], dim=-1)


def perturbed_matrices(
    beam: ConeBeam,
    *,
    rotation: Tensor | None = None,
    translation: Tensor | None = None,
    source_shift: Tensor | None = None,
    detector_shift: Tensor | None = None,
    source_to_isocenter: Tensor | float | None = None,
    source_to_detector: Tensor | float | None = None,
    pixel_spacing: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """The matrices of a geometry that was not quite met; with nothing given, the beam's own.

    The patient's motion and the misalignment of the apparatus each have their arguments, because they are told apart
    only by more than one view: one view cannot tell a turned patient from a turned C-arm.

    Args:
        beam: the geometry as it was meant.
        rotation: the patient's turn about the isocenter, (3,) for all views or (..., view, 3), axis times angle
            [degrees].
        translation: the patient's shift, (3,) or (..., view, 3), RAS [mm].
        source_shift: the source's displacement along the view's own axes (columns, rows, central ray), (3,) or
            (..., view, 3) [mm].
        detector_shift: the detector's displacement, likewise [mm].
        source_to_isocenter: distance in place of the beam's, a number or (..., view) [mm].
        source_to_detector: distance in place of the beam's, a number or (..., view) [mm].
        pixel_spacing: pitch (row, column) in place of the beam's, a pair or (..., view, 2) [mm].

    Returns:
        (..., view, 3, 4), differentiable in every tensor given.

    Raises:
        ValueError: if a shape is wrong.

    Example:
        >>> turn = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        >>> perturbed_matrices(ConeBeam(), rotation=turn).shape
        torch.Size([2, 3, 4])
    """
    given = (rotation, translation, source_shift, detector_shift, source_to_isocenter, source_to_detector)
    like = _like(*given, pixel_spacing)
    met = beam_pose(beam, source_to_isocenter=source_to_isocenter, source_to_detector=source_to_detector)
    source, center, axes = _misalign(Pose(*(tensor.to(like) for tensor in met)), source_shift, detector_shift)
    pitch = _as(beam.pixel_spacing if pixel_spacing is None else pixel_spacing, like)
    matrices = pose_matrices(source, center, axes, pixel_spacing=pitch, detector_shape=beam.detector_shape)
    if rotation is None and translation is None:
        return matrices
    turn, shift = (_as((0.0, 0.0, 0.0) if value is None else value, like) for value in (rotation, translation))
    return move_patient(matrices, turn, shift, center=beam.isocenter)


def _misalign(pose: Pose, source_shift: Tensor | None, detector_shift: Tensor | None) -> Pose:
    """The pose with source and detector displaced along the views' own axes."""
    source, center, axes = pose
    if source_shift is not None:
        source = source + _in_world("source_shift", source_shift, axes)
    if detector_shift is not None:
        center = center + _in_world("detector_shift", detector_shift, axes)
    return Pose(source, center, axes)


def _series(squared: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The polynomial with these coefficients, lowest first (Horner)."""
    total = torch.full_like(squared, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * squared + coefficient
    return total


def _in_world(name: str, shift: Tensor, axes: Tensor) -> Tensor:
    """A displacement along a view's own axes as one in RAS."""
    _check_last(name, shift, (3,))
    return (axes.mT @ shift.to(axes)[..., None]).squeeze(-1)


def _like(*values: object) -> Tensor:
    """An empty tensor of the device and the widest precision among the tensors given; float64 on the CPU for none."""
    tensors = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    if not tensors:
        return torch.empty(0, dtype=torch.float64)
    widest = max((tensor.dtype for tensor in tensors), key=lambda dtype: torch.finfo(dtype).bits)
    return torch.empty(0, dtype=widest, device=tensors[0].device)


def _as(value: Any, like: Tensor) -> Tensor:
    """A number, sequence, array or tensor in another's precision, on its device; plain numbers never pass float32."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _check_last(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape[-len(shape) :]) != shape:
        expected = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name} must have shape (..., {expected}), got {tuple(value.shape)}")
