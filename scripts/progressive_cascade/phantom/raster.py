# SPDX-License-Identifier: Apache-2.0
"""Turn shapes given in millimetres into voxels whose edges are anti-aliased over one voxel.

Smooth shapes are signed distance fields on a coarse lattice that is fixed in the world, so that every voxel grid shows
the same patient; cubic interpolation by dense products brings them to the voxels. Long thin shapes are capsules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LATTICE_STEP = 5.0
"""Distance of lattice points [mm]: a surface of radius R bends by step²/(8R) over it, about 0.1 mm."""

_SLAB = 16  # x slices painted at once: the scratch arrays stay in the processor's cache


@dataclass(frozen=True)
class Layer:
    """One coat of paint on a signed distance field.

    Args:
        value: HU, or a field of HU on the lattice.
        label: anatomy label of voxels that are mostly inside.
        offset: moves the surface inwards [mm]; a later layer must lie within the earlier ones.
        opacity: share of the old HU that is replaced; labels are kept where it is below one half.
    """

    value: float | Tensor
    label: int
    offset: float = 0.0
    opacity: float = 1.0


class Lattice:
    """The fixed points, LATTICE_STEP apart, on which smooth fields are evaluated."""

    def __init__(self, shape: Sequence[int], spacing: float) -> None:
        self.axes: list[Tensor] = []
        self.offsets: list[int] = []
        for count in shape:
            half = int(np.ceil(count * spacing / 2 / LATTICE_STEP)) + 2
            self.offsets.append(half)
            self.axes.append(torch.arange(-half, half + 1, dtype=torch.float32) * LATTICE_STEP)

    def points(self) -> tuple[Tensor, Tensor, Tensor]:
        """World coordinates of the lattice [mm], to be broadcast."""
        x, y, z = self.axes
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def distance(self, level: Tensor) -> Tensor:
        """Signed distance [mm], to first order, to the zero level of any smooth function: f / |grad f|."""
        gradients = torch.gradient(level, spacing=LATTICE_STEP)
        norm = torch.sqrt(gradients[0] ** 2 + gradients[1] ** 2 + gradients[2] ** 2)
        return level / norm.clamp_min(1e-4)

    def noise(self, rng: np.random.Generator, *, passes: int = 1, period: int = 40) -> Tensor:
        """Random field of unit variance that depends on the seed alone.

        Args:
            rng: source of randomness.
            passes: times it is smoothed; its details are about 5 * sqrt(passes) mm wide.
            period: lattice points after which it repeats.
        """
        tile = torch.from_numpy(rng.standard_normal((period, period, period), dtype=np.float32))
        for axis in [0, 1, 2] * passes:
            tile = 0.5 * tile + 0.25 * (tile.roll(1, axis) + tile.roll(-1, axis))
        tile = tile / tile.std()
        indices = [
            (torch.arange(len(axis)) - offset) % period for axis, offset in zip(self.axes, self.offsets, strict=True)
        ]
        return tile[indices[0]][:, indices[1]][:, :, indices[2]]

    def value_at(self, field: Tensor, points: np.ndarray) -> np.ndarray:
        """Trilinear value of a field (x, y, z) at world points (n, 3) [mm]."""
        scaled = torch.from_numpy(np.asarray(points, dtype=np.float32)) / LATTICE_STEP + torch.tensor(self.offsets)
        limits = torch.tensor(field.shape) - 1.001
        scaled = torch.minimum(scaled.clamp_min(0.0), limits)
        low = scaled.long()
        part = scaled - low
        total = torch.zeros(len(scaled))
        for corner in range(8):
            bits = torch.tensor([(corner >> axis) & 1 for axis in range(3)])
            weight = torch.where(bits.bool(), part, 1 - part).prod(1)
            index = low + bits
            total += weight * field[index[:, 0], index[:, 1], index[:, 2]]
        return total.numpy()


def _interpolation_matrix(coordinates: np.ndarray, spacing: float, *, offset: int, count: int) -> Tensor:
    """Catmull-Rom interpolation from the lattice, averaged over each voxel's width: (voxels, lattice points)."""
    matrix = np.zeros((len(coordinates), count), dtype=np.float32)
    rows = np.arange(len(coordinates))
    steps = (np.arange(4) - 1.5) / 4 * spacing
    for step in steps:
        position = (coordinates + step) / LATTICE_STEP + offset
        low = np.floor(position).astype(int)
        t = position - low
        weights = (
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        )
        for shift, weight in enumerate(weights):
            matrix[rows, low + shift - 1] += weight / len(steps)
    return torch.from_numpy(matrix)


class Canvas:
    """A voxel grid that shapes are painted on.

    Args:
        shape: voxels (x, y, z).
        spacing: voxel size [mm].
        background: HU everywhere before the first shape.
    """

    def __init__(self, shape: Sequence[int], spacing: float, background: float = -1000.0) -> None:
        self.shape = tuple(shape)
        self.spacing = spacing
        self.lattice = Lattice(shape, spacing)
        self.hu = torch.full(self.shape, background)
        self.labels = torch.zeros(self.shape, dtype=torch.uint8)
        self.coordinates = [(np.arange(count) - (count - 1) / 2) * spacing for count in shape]
        self._matrices = [
            _interpolation_matrix(c, spacing, offset=offset, count=len(axis))
            for c, offset, axis in zip(self.coordinates, self.lattice.offsets, self.lattice.axes, strict=True)
        ]

    def box(self, low: Sequence[float], high: Sequence[float]) -> list[slice] | None:
        """Slices of the voxels whose centres lie between two world corners [mm], None where there are none."""
        box = []
        for axis in range(3):
            first, last = np.searchsorted(self.coordinates[axis], (low[axis], high[axis]))
            if first >= last:
                return None
            box.append(slice(int(first), int(last)))
        return box

    def paint_field(self, distance: Tensor, layers: Sequence[Layer]) -> None:
        """Paint the layers, outer first, inside a signed distance field on the lattice (negative inside) [mm]."""
        near = distance < LATTICE_STEP + self.spacing
        if not near.any():
            return
        low, high = [], []
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            hit = near.any(others[1]).any(others[0]).nonzero()
            low.append(float(self.lattice.axes[axis][hit[0]]) - LATTICE_STEP)
            high.append(float(self.lattice.axes[axis][hit[-1]]) + LATTICE_STEP)
        box = self.box(low, high)
        if box is None:
            return
        sample_distance = self._sampler(distance, box)
        samplers = [self._sampler(layer.value, box) if isinstance(layer.value, Tensor) else None for layer in layers]
        for start in range(box[0].start, box[0].stop, _SLAB):
            rows = slice(start, min(start + _SLAB, box[0].stop))
            sampled = sample_distance(rows)
            shell = None
            for layer, sampler in zip(layers, samplers, strict=True):
                value = layer.value if sampler is None else sampler(rows)
                self._cover((rows, box[1], box[2]), sampled, layer, value=value, shell=shell)
                shell = value

    def _sampler(self, field: Tensor, box: Sequence[slice]) -> Callable[[slice], Tensor]:
        """Function from x slices to the field's values on the voxels of those slices of the box."""
        parts = [matrix[part] for matrix, part in zip(self._matrices[1:], box[1:], strict=True)]
        used = [part.abs().sum(0).nonzero() for part in parts]
        spans = [slice(int(u[0]), int(u[-1]) + 1) for u in used]
        my, mz = (part[:, span] for part, span in zip(parts, spans, strict=True))
        inner = field[:, spans[0], spans[1]]
        plane = torch.matmul(my, inner)  # (lattice x, voxels y, lattice z)

        def sample(rows: slice) -> Tensor:
            slab = torch.tensordot(self._matrices[0][rows], plane, dims=1)
            return torch.matmul(slab, mz.T)

        return sample

    def _cover(
        self,
        box: Sequence[slice],
        distance: Tensor,
        layer: Layer,
        *,
        value: float | Tensor,
        shell: float | Tensor | None,
    ) -> None:
        """Paint one layer; `shell` is the HU of the layer around it, None for the outermost."""
        coverage = (distance + (layer.offset - 0.5 * self.spacing)).mul_(-1 / self.spacing).clamp_(0.0, 1.0)
        region = self.hu[box[0], box[1], box[2]]
        # A voxel that both surfaces cut holds some of the background, the shell and the core: the core takes the
        # place of shell only.
        change = (value - region) if shell is None else (value - shell)
        region.add_(coverage * change if layer.opacity == 1.0 else coverage * change * layer.opacity)
        if layer.opacity >= 0.5:
            self.labels[box[0], box[1], box[2]].masked_fill_(coverage > 0.5, layer.label)

    def paint_sheet(self, distance: Tensor, thickness: float, *, value: float, label: int) -> None:
        """Paint a thin sheet about the zero level of a distance field, over one label, to the share of each voxel.

        Args:
            distance: signed, on the lattice [mm].
            thickness: of the sheet [mm]; its mass is kept on every grid.
            value: HU.
            label: of the anatomy that it runs through, which stays.
        """
        box = [slice(0, count) for count in self.shape]
        sample, h = self._sampler(distance, box), self.spacing
        for start in range(0, self.shape[0], _SLAB):
            rows = slice(start, min(start + _SLAB, self.shape[0]))
            middle = sample(rows) / h
            half = 0.5 * thickness / h
            share = (half - middle + 0.5).clamp_(0.0, 1.0).sub_((0.5 - half - middle).clamp_(0.0, 1.0))
            share.masked_fill_(self.labels[rows] != label, 0.0)
            self.hu[rows].add_(share.mul_(value - self.hu[rows]))

    def add_field(self, field: Tensor, times: Callable[[int], Tensor], box: tuple[slice, slice]) -> None:
        """Add a field on the lattice, times voxels (y, z) that are given for each x slice of a box, to the HU."""
        sample = self._sampler(field, [*box, slice(0, self.shape[2])])
        for x in range(self.shape[0])[box[0]]:
            self.hu[x, box[1]].add_(sample(slice(x, x + 1))[0].mul_(times(x)))

    def paint_local(
        self,
        center: Sequence[float],
        radius: float,
        *,
        distance: Callable[[Tensor, Tensor, Tensor], Tensor],
        layers: Sequence[Layer],
    ) -> None:
        """Paint a small shape, evaluated at the voxels themselves.

        Args:
            center: of the cube that holds the shape, world [mm].
            radius: half the cube's width [mm].
            distance: signed distance [mm] from broadcastable world x, y, z [mm].
            layers: coats of paint, outer first; values are numbers.
        """
        reach = radius + self.spacing
        box = self.box([c - reach for c in center], [c + reach for c in center])
        if box is None:
            return
        x, y, z = (torch.from_numpy(self.coordinates[a][box[a]].astype(np.float32)) for a in range(3))
        sampled = distance(x[:, None, None], y[None, :, None], z[None, None, :])
        shell = None
        for layer in layers:
            self._cover(box, sampled, layer, value=layer.value, shell=shell)
            shell = layer.value

    def paint_coverage(
        self,
        box: Sequence[slice],
        coverage: Tensor,
        *,
        value: float,
        label: int,
        shell: float | None = None,
        within: tuple[int, int] | None = None,
    ) -> None:
        """Paint a box of voxels, each to the share of it that is covered.

        Args:
            box: slices of the voxels.
            coverage: their shares in [0, 1]; its memory is used up.
            value: HU.
            label: anatomy label.
            shell: HU of the coat around it that it takes the place of, None where it replaces whatever is there.
            within: first and last label that may be painted over; all where None.
        """
        region, labels = self.hu[box[0], box[1], box[2]], self.labels[box[0], box[1], box[2]]
        for start in range(0, len(coverage), _SLAB):
            part = coverage[start : start + _SLAB]
            tissue = labels[start : start + _SLAB]
            if within is not None:
                part.masked_fill_((tissue < within[0]) | (tissue > within[1]), 0.0)
            tissue.masked_fill_(part > 0.5, label)
            rows = region[start : start + _SLAB]
            rows.add_(part.mul_(value - (rows if shell is None else shell)))
