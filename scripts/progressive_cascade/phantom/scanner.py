# SPDX-License-Identifier: Apache-2.0
"""How a scanner shows a patient: the grain of tissues, its sharpness, its slices and its noise.

Grain and noise are Fourier series with a period of about 179 mm that is fixed in the world, so that every voxel grid
shows the same ones, averaged over its voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.phantom.labels import LABELS
from progressive_cascade.phantom.patient import Scanner
from progressive_cascade.phantom.raster import Canvas

_PERIOD, _MODES = 179.2, 128  # mm and modes across: the finest wave is 2.8 mm long
_NOISE_SLICES = 64  # independent ones, which are repeated
_ROLL_OFF = 3  # of the kernel's window
_GRAIN_LENGTH = 20.0  # mm: longer waves are no stronger
_GRAIN_SLOPE = 1.5  # amplitude ~ frequency^-slope
_STREAK = 1.4  # deviations beyond which grain is another tissue: fat in muscle, a septum in fat, a vessel in lung
_SKIN = 4.0  # mm over which noise fades outside the skin: CTs are prepared with air around the patient

# HU per deviation of the grain, and per deviation beyond the streak.
_GRAIN = {
    "fat": (7.0, 45.0),
    "muscle": (7.0, -45.0),
    "breast": (15.0, 0.0),
    "lung_right": (22.0, 110.0),
    "lung_left": (22.0, 110.0),
    "mediastinum": (14.0, 70.0),
    "abdomen": (14.0, -30.0),
    "liver": (4.0, 20.0),
    "stomach": (10.0, 0.0),
    "consolidation": (14.0, -60.0),
    "lesion": (8.0, 0.0),
} | dict.fromkeys(("vertebra", "rib", "sternum", "scapula", "clavicle", "humerus"), (60.0, 0.0))


def acquire(canvas: Canvas, scanner: Scanner, rng: np.random.Generator, *, body: Tensor) -> None:
    """The painted patient as the scanner shows it; labels stay.

    Args:
        canvas: the painted patient; its HU are replaced.
        scanner: what it is seen with.
        rng: of grain and noise.
        body: distance to the skin on the lattice, negative inside [mm].
    """
    grain_rng, noise_rng = rng.spawn(2)
    box = _box(canvas)
    if box is None:
        return
    if scanner.grain:
        _add_grain(canvas, _grain(canvas, grain_rng), scanner.grain, box)
    thick, between = _slices(canvas.coordinates[2], canvas.spacing, scanner)
    blurs = [_blur(canvas.coordinates[axis][box[axis]], canvas.spacing, scanner.blur) for axis in (0, 1)]
    along = (between @ thick).T
    hu = torch.stack([blurs[1] @ plane @ along for plane in canvas.hu[box]])
    canvas.hu[box] = torch.tensordot(blurs[0], hu, dims=1)
    if not scanner.noise:
        return
    level = scanner.noise * (0.55 + 0.006 * (-body).clamp(0.0, 110.0)) * (1 - body / _SKIN).clamp(0.0, 1.0)
    noise = _noise(canvas, noise_rng, scanner.kernel)
    noise = noise[:, :, torch.arange(between.shape[1]) % _NOISE_SLICES] @ between.T
    columns = torch.arange(box[1].start, box[1].stop) % noise.shape[1]
    canvas.add_field(level, lambda x: noise[x % len(noise)][columns], box)


def _box(canvas: Canvas) -> tuple[slice, slice] | None:
    """The part of the slices that the patient takes, with a margin; None where there is no one."""
    ends = []
    for axis in (0, 1):
        seen = canvas.labels.amax(2).amax(1 - axis).nonzero()
        if not len(seen):
            return None
        margin = int(np.ceil(_SKIN / canvas.spacing))
        ends.append(slice(max(int(seen[0]) - margin, 0), min(int(seen[-1]) + 1 + margin, canvas.shape[axis])))
    return ends[0], ends[1]


def _slices(z: np.ndarray, spacing: float, scanner: Scanner) -> tuple[Tensor, Tensor]:
    """Slices of a thickness from voxels (slices, voxels), and voxels from slices, between which lines are drawn."""
    count = round(len(z) * spacing / scanner.interval) + 3
    centers = (np.arange(count) - (count - 1) / 2) * scanner.interval
    low, high = centers[:, None] - scanner.thickness / 2, centers[:, None] + scanner.thickness / 2
    thick = np.minimum(high, z + spacing / 2) - np.maximum(low, z - spacing / 2)
    thick = np.maximum(thick, 0) + 1e-9 * np.exp(-(((centers[:, None] - z) / spacing) ** 2))
    thick[thick.sum(1) == 0] = 1.0  # beyond the ends of the volume nothing reads them
    between = np.zeros((len(z), count))
    for step in (np.arange(4) - 1.5) / 4 * spacing:
        between += np.maximum(1 - np.abs(z[:, None] + step - centers) / scanner.interval, 0)
    return _rows(thick), _rows(between)


def _blur(x: np.ndarray, spacing: float, deviation: float) -> Tensor:
    """A Gaussian of so many mm, from voxels to voxels."""
    edges = torch.from_numpy((x[None] - x[:, None] + spacing / 2) / deviation)
    return _rows((torch.special.ndtr(edges) - torch.special.ndtr(edges - spacing / deviation)).numpy())


def _rows(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy((matrix / matrix.sum(1, keepdims=True)).astype(np.float32))


@dataclass(frozen=True)
class _Axis:
    """One axis of a Fourier series on a grid: frequencies [1/mm], and what each is in the first voxel."""

    count: int  # voxels of a period
    frequencies: np.ndarray
    first: np.ndarray

    @staticmethod
    def make(canvas: Canvas, axis: int, *, half: bool) -> _Axis:
        """Of a canvas; `half` for the axis of which a real field needs only the frequencies from 0."""
        count = round(_PERIOD / canvas.spacing)
        kept = min(count, _MODES) // 2
        f = np.arange(0 if half else -kept, kept) / _PERIOD
        phase = np.exp(2j * np.pi * f * float(canvas.coordinates[axis][0]))
        return _Axis(count, f, phase * np.sinc(f * canvas.spacing))  # averaged over the voxel

    def cut(self, amplitudes: np.ndarray, axis: int) -> np.ndarray:
        """The amplitudes of what this grid can show."""
        low = 0 if self.frequencies[0] == 0 else _MODES // 2 - len(self.frequencies) // 2
        return np.take(amplitudes, np.arange(low, low + len(self.frequencies)), axis)


def _waves(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """White complex amplitudes of unit power, which do not depend on the grid."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


def _field(amplitudes: np.ndarray, axes: Sequence[_Axis], gain: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """One period of noise of unit variance with a radial spectrum: the voxels of a Fourier series.

    Args:
        amplitudes: of the finest grid, frequencies ascending, those of the last axis from 0; more axes may follow.
        axes: of the grid.
        gain: amplitude of a frequency [1/mm].
    """
    finest = [np.arange(-_MODES // 2, _MODES // 2)] * (len(axes) - 1) + [np.arange(_MODES // 2)]
    level = np.sqrt(2 * np.sum(gain(_radius([f / _PERIOD for f in finest])) ** 2))
    weights = gain(_radius([axis.frequencies for axis in axes])) / level
    for number, axis in enumerate(axes):
        amplitudes = axis.cut(amplitudes, number)
        weights = weights * axis.first.reshape([-1 if n == number else 1 for n in range(len(axes))])
    more = amplitudes.shape[len(axes) :]
    spectrum = torch.zeros([*(axis.count for axis in axes[:-1]), axes[-1].count // 2 + 1, *more], dtype=torch.complex64)
    where = [torch.from_numpy(np.rint(axis.frequencies * _PERIOD).astype(int) % axis.count) for axis in axes]
    shown = amplitudes * weights.astype(np.complex64).reshape(*weights.shape, *([1] * len(more)))
    spectrum[torch.meshgrid(*where, indexing="ij")] = torch.from_numpy(shown)
    return torch.fft.irfftn(spectrum, s=[a.count for a in axes], dim=list(range(len(axes))), norm="forward")


def _radius(frequencies: Sequence[np.ndarray]) -> np.ndarray:
    grids = np.meshgrid(*frequencies, indexing="ij", sparse=True)
    return np.sqrt(sum(f**2 for f in grids))


def _grain(canvas: Canvas, rng: np.random.Generator) -> Tensor:
    """Grain over one period: (n, n, n)."""
    axes = [_Axis.make(canvas, axis, half=axis == 2) for axis in range(3)]
    amplitudes = _waves(rng, (_MODES, _MODES, _MODES // 2))
    return _field(amplitudes, axes, lambda f: (f**2 + _GRAIN_LENGTH**-2) ** (-_GRAIN_SLOPE / 2))


def _noise(canvas: Canvas, rng: np.random.Generator, cutoff: float) -> Tensor:
    """Noise of independent slices over one period: (n, n, slices).

    Filtered back-projection weights a frequency's power by the frequency, its kernel by a window (Riederer, Pelc &
    Chesler 1978, doi 10.1088/0031-9155/23/3/008).
    """
    axes = [_Axis.make(canvas, axis, half=axis == 1) for axis in range(2)]
    amplitudes = _waves(rng, (_MODES, _MODES // 2, _NOISE_SLICES))
    return _field(amplitudes, axes, lambda f: np.sqrt(f) * np.exp(-0.5 * (f / cutoff) ** _ROLL_OFF))


def _add_grain(canvas: Canvas, grain: Tensor, strength: float, box: tuple[slice, slice]) -> None:
    """Every tissue its own grain."""
    table = np.zeros((2, max(LABELS.values()) + 1), dtype=np.float32)
    for name, values in _GRAIN.items():
        table[:, LABELS[name]] = strength * np.array(values)
    ys, zs = (torch.arange(size) % len(grain) for size in canvas.shape[1:])
    for x in range(canvas.shape[0])[box[0]]:
        tile = grain[x % len(grain)][ys[box[1]]][:, zs]
        labels = canvas.labels[x, box[1]].numpy()
        wave, streak = (torch.from_numpy(np.take(row, labels)) for row in table)
        canvas.hu[x, box[1]].add_(wave.mul_(tile)).add_(streak.mul_((tile - _STREAK).clamp_min_(0.0)))
