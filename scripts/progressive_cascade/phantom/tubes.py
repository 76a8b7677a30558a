# SPDX-License-Identifier: Apache-2.0
"""Chains of capsules with round or elliptic cross-section: ribs, vessels, airways, leads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom.patient import Pose
from progressive_cascade.phantom.raster import Canvas

_MAX_EVALUATIONS = 1_000_000  # voxel-capsule pairs at once: bounds the scratch memory
_MIN_RADIUS = 0.6  # of a voxel: thinner tubes are drawn this wide and as much fainter, so that their mass is kept


@dataclass(frozen=True)
class Tubes:
    """n straight capsules.

    Args:
        start: (n, 3) world [mm].
        end: (n, 3) world [mm].
        thickness: (n,) radius along the short axis [mm].
        width: (n,) radius along the long axis [mm].
        axis: (n, 3) directions of the long axis.
    """

    start: np.ndarray
    end: np.ndarray
    thickness: np.ndarray
    width: np.ndarray
    axis: np.ndarray

    def shrunk(self, wall: float) -> Tubes:
        """The tubes within a wall of so many mm; tubes that are all wall are dropped."""
        keep = self.thickness > wall + 0.05
        return Tubes(
            self.start[keep], self.end[keep], self.thickness[keep] - wall, self.width[keep] - wall, self.axis[keep]
        )

    def placed(self, pose: Pose) -> Tubes:
        """The tubes of a patient in the world."""
        return replace(
            self, start=pose.to_world(self.start), end=pose.to_world(self.end), axis=self.axis @ pose.rotation.T
        )

    def grown(self, wall: float) -> Tubes:
        """The tubes with a coat of so many mm."""
        return replace(self, thickness=self.thickness + wall, width=self.width + wall)


def join(parts: Sequence[Tubes]) -> Tubes:
    """All tubes of all parts."""
    names = ("start", "end", "thickness", "width", "axis")
    return Tubes(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def resample(points: np.ndarray, step: float) -> np.ndarray:
    """Smooth (Catmull-Rom) curve through control points (k, 3), sampled about every `step` mm: (n, 3)."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    pieces = []
    for i in range(len(points) - 1):
        p0, p1, p2, p3 = padded[i : i + 4]
        count = max(1, int(np.ceil(np.linalg.norm(p2 - p1) / step)))
        t = (np.arange(count) / count)[:, None]
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate([*pieces, points[-1:]])


def tube(
    points: np.ndarray,
    thickness: float | np.ndarray,
    width: float | np.ndarray | None = None,
    *,
    axis: Sequence[float] = (0.0, 0.0, 1.0),
    step: float = 4.0,
) -> Tubes:
    """A smooth tube through control points (k, 3) [mm]; radii are numbers or one per control point [mm]."""
    points = np.asarray(points, dtype=float)
    curve = resample(points, step)
    position = np.linspace(0.0, 1.0, len(curve) - 1)

    def along(radius: float | np.ndarray) -> np.ndarray:
        values = np.broadcast_to(np.asarray(radius, dtype=float), (len(points),))
        return np.interp(position, np.linspace(0.0, 1.0, len(points)), values)

    start, end = curve[:-1], curve[1:]
    direction = end - start
    direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)
    across = np.asarray(axis, dtype=float) - (direction @ np.asarray(axis, dtype=float))[:, None] * direction
    across = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)
    radii = along(thickness)
    return Tubes(start, end, radii, radii if width is None else along(width), across)


def paint_tubes(
    canvas: Canvas,
    tubes: Tubes,
    *,
    value: float,
    label: int,
    shell: float | None = None,
    add: bool = False,
    within: tuple[int, int] | None = None,
) -> None:
    """Paint tubes that are given in the world.

    Args:
        canvas: the grid.
        tubes: what to draw.
        value: HU.
        label: anatomy label.
        shell: HU of the coat around the tubes that they take the place of, None where they replace whatever is there.
        add: sum what several tubes put into a voxel (for thin trees, whose mass this keeps) instead of the largest.
        within: first and last label that may be painted over; all where None.
    """
    if len(tubes.start) == 0:
        return
    h = canvas.spacing
    reach = np.maximum(tubes.width, _MIN_RADIUS * h)[:, None] + 2 * h
    low = (np.minimum(tubes.start, tubes.end) - reach).min(0)
    high = (np.maximum(tubes.start, tubes.end) + reach).max(0)
    box = canvas.box(low, high)
    if box is None:
        return
    coverage = torch.zeros([part.stop - part.start for part in box])
    extent = np.abs(tubes.end - tubes.start).max(1) + 2 * reach[:, 0] - 3 * h
    edge = np.ceil(extent / h).astype(int) + 1
    edge = np.where(edge > 8, (edge + 3) // 4 * 4, edge)
    for size in np.unique(edge):
        members = np.flatnonzero(edge == size)
        for chunk in np.array_split(members, int(np.ceil(len(members) * size**3 / _MAX_EVALUATIONS))):
            _scatter(coverage, canvas, tubes, box=box, chunk=chunk, size=int(size), add=add)
    canvas.paint_coverage(box, coverage.clamp_(max=1.0), value=value, label=label, shell=shell, within=within)


def _scatter(
    coverage: Tensor, canvas: Canvas, tubes: Tubes, *, box: list[slice], chunk: np.ndarray, size: int, add: bool
) -> None:
    """Add one chunk of tubes, each within a cube of `size` voxels, to the coverage of a box."""
    h = canvas.spacing
    start, end, axis = (
        torch.from_numpy(np.asarray(a[chunk], dtype=np.float32)) for a in (tubes.start, tubes.end, tubes.axis)
    )
    center = 0.5 * (start + end)
    origin = torch.tensor([float(c[part.start]) for c, part in zip(canvas.coordinates, box, strict=True)])
    first = torch.round((center - origin) / h - (size - 1) / 2).long()
    index = first[:, None, :] + torch.arange(size)[None, :, None]  # (n, size, axis)
    inside = (index >= 0) & (index < torch.tensor(coverage.shape))
    local = (index * h + origin) - start[:, None, :]
    length = torch.linalg.vector_norm(end - start, dim=1).clamp_min(1e-6)
    tangent = (end - start) / length[:, None]

    def dot(vector: Tensor) -> Tensor:
        x, y, z = (local[:, :, a] * vector[:, None, a] for a in range(3))
        return x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :]

    square = local**2
    square = square[:, :, None, None, 0] + square[:, None, :, None, 1] + square[:, None, None, :, 2]
    along = dot(tangent)
    share = _cross_section(square, along, dot(axis), tubes=tubes, chunk=chunk, h=h, length=length, add=add)
    valid = inside[:, :, None, None, 0] & inside[:, None, :, None, 1] & inside[:, None, None, :, 2] & (share > 0)
    _, ny, nz = coverage.shape
    flat = index[:, :, None, None, 0] * (ny * nz) + index[:, None, :, None, 1] * nz + index[:, None, None, :, 2]
    target = coverage.view(-1)
    if add:
        target.index_add_(0, flat[valid], share[valid])
    else:
        target.scatter_reduce_(0, flat[valid], share[valid], reduce="amax")


def _cross_section(
    square: Tensor,
    along: Tensor,
    across: Tensor,
    *,
    tubes: Tubes,
    chunk: np.ndarray,
    h: float,
    length: Tensor,
    add: bool,
) -> Tensor:
    """Share of each voxel inside its capsule, from the squared distance to the start and the parts along two axes."""
    shape = (-1, 1, 1, 1)
    radii = [torch.from_numpy(np.asarray(r[chunk], dtype=np.float32)) for r in (tubes.thickness, tubes.width)]
    # An edge softened over h adds h²/12 to the square of the radius; take it off, so that the section's area is kept.
    wide_enough = [r.clamp_min(_MIN_RADIUS * h) for r in radii]
    opacity = (radii[0] * radii[1] / (wide_enough[0] * wide_enough[1])).view(shape)
    a, b = (torch.sqrt(r**2 - h * h / 12).view(shape) for r in wide_enough)
    span = length.view(shape)
    if add:
        radial = (square - along**2).clamp_min_(0.0)
    else:
        nearest = along.clamp(min=0.0).minimum(span)
        radial = (square - along**2 + (along - nearest) ** 2).clamp_min_(0.0)
    if bool((radii[0] == radii[1]).all()):
        distance = radial.sqrt_() - a
    else:
        wide = across**2
        narrow = (radial - wide).clamp_min_(0.0)
        level = torch.sqrt(narrow / a**2 + wide / b**2)
        slope = torch.sqrt(narrow / a**4 + wide / b**4)
        distance = level * (level - 1) / slope.clamp_min(1e-6)
    share = (0.5 - distance / h).clamp_(0.0, 1.0) * opacity
    if add:  # the pieces of a tube share out the voxels between them
        share = share * ((0.5 + along / h).clamp(0.0, 1.0) - (0.5 + (along - span) / h).clamp(0.0, 1.0))
    return share
