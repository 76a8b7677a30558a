# SPDX-License-Identifier: Apache-2.0
"""A thorax of about 400 ellipsoids: voxels at any grid, and line integrals that are exact.

An ellipsoid is the set |M (x - c)| <= 1. A ray s + t d crosses it along

    chord = 2 |d| sqrt(b² - a (|q|² - 1)) / a,    q = M (s - c),  a = |M d|²,  b = (M d)·q.

Attenuations of overlapping ellipsoids add, so that both the voxels and the line integrals are sums over ellipsoids.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from progressive_cascade import ConeBeam

EXTENT = 358.4
"""Width of the cube that holds the phantom [mm]."""
SUPERSAMPLING = 4
"""Samples per voxel and axis."""

_SOFT_TISSUE = 0.02  # [1/mm], water at about 65 keV
# With ribs as dense as these, Joseph's method errs by 0.0078 at 256³, as it does for the thorax with which projectors
# were compared before: the errors of both can be read side by side.
_RIB = 0.02  # [1/mm], on top of what is around them
# Depth of a slab of voxels looked at together: bounds the working memory at 512³ to some 200 MB.
_SLAB = 16


@dataclass(frozen=True)
class Ellipsoids:
    """Uniform ellipsoids whose attenuations add.

    Args:
        centers: (n, 3), RAS [mm].
        matrices: (n, 3, 3), M of each ellipsoid [1/mm]: |M (x - c)| <= 1 inside.
        mu: (n,), what each ellipsoid adds [1/mm]; negative where it hollows out another one.
    """

    centers: np.ndarray
    matrices: np.ndarray
    mu: np.ndarray

    def digest(self) -> str:
        """Short hash of the values, to name files made from them."""
        content = np.concatenate([self.centers.ravel(), self.matrices.ravel(), self.mu])
        return hashlib.sha256(content.round(9).tobytes()).hexdigest()[:12]


def thorax(seed: int = 0) -> Ellipsoids:
    """Torso, lungs with vessels, heart, spine, ribs and the bones around them, inside a cube of :data:`EXTENT`.

    Args:
        seed: of the small variations in position, direction and size.

    Returns:
        About 400 ellipsoids.
    """
    rng = np.random.default_rng(seed)
    parts = [
        ((0.0, 0.0, 0.0), (160.0, 108.0, 172.0), None, _SOFT_TISSUE),
        ((72.0, 2.0, 12.0), (54.0, 74.0, 112.0), None, -0.015),
        ((-72.0, 2.0, 12.0), (54.0, 74.0, 112.0), None, -0.015),
        ((-18.0, 28.0, -38.0), (52.0, 42.0, 56.0), (-0.6, 0.2, -0.5), 0.004),
        ((8.0, -20.0, 40.0), (13.0, 13.0, 90.0), None, 0.002),  # aorta
        ((0.0, -10.0, 95.0), (8.0, 8.0, 45.0), None, -0.018),  # trachea
        ((0.0, 88.0, 20.0), (16.0, 6.0, 70.0), None, 0.012),  # sternum
        ((55.0, -92.0, 70.0), (32.0, 5.0, 45.0), (1.0, 0.35, 0.0), 0.014),  # scapulae
        ((-55.0, -92.0, 70.0), (32.0, 5.0, 45.0), (1.0, -0.35, 0.0), 0.014),
        ((48.0, 62.0, 118.0), (42.0, 6.0, 6.0), (1.0, -0.3, 0.1), 0.016),  # clavicles
        ((-48.0, 62.0, 118.0), (42.0, 6.0, 6.0), (1.0, 0.3, -0.1), 0.016),
    ]
    parts += _spine(rng) + _ribs(rng) + _vessels(rng)
    centers, matrices, mu = [], [], []
    for center, radii, axis, value in parts:
        rotation = np.eye(3) if axis is None else _frame(np.asarray(axis, dtype=np.float64))
        centers.append(center)
        matrices.append(rotation.T / np.asarray(radii)[:, None])
        mu.append(value)
    return Ellipsoids(np.array(centers, dtype=np.float64), np.array(matrices), np.array(mu))


def _spine(rng: np.random.Generator) -> list[tuple]:
    """Twelve vertebrae: body, canal, three processes."""
    parts = []
    for z in np.linspace(-112.0, 112.0, 12) + rng.uniform(-1, 1, 12):
        parts.append(((0.0, -58.0, z), (19.0, 15.0, 9.5), None, 0.014))
        parts.append(((0.0, -80.0, z - 6), (3.0, 13.0, 6.0), None, 0.016))
        parts.append(((0.0, -70.0, z), (8.0, 7.0, 9.0), None, -0.004))
        for side in (-1, 1):
            parts.append(((side * 22.0, -76.0, z + 2), (14.0, 5.0, 5.0), (side, -0.4, 0.1), 0.016))
    return parts


def _ribs(rng: np.random.Generator) -> list[tuple]:
    """Ten pairs of ribs, each a chain of segments on a tilted ellipse that follows the chest wall."""
    parts = []
    angles = np.linspace(-1.35, 1.15, 13)  # from beside the spine to near the sternum [rad]
    for rib, z in enumerate(np.linspace(122.0, -104.0, 10)):
        width = 128.0 * np.sqrt(1 - (z / 172.0) ** 2) + rng.uniform(-2, 2)
        depth, drop = width * 0.66, 18.0 + 2 * rib
        for side in (-1, 1):
            points = np.stack(
                [side * width * np.cos(angles), depth * np.sin(angles), z - drop * (np.sin(angles) + 1) / 2], axis=1
            )
            for start, end in pairwise(points):
                half = np.linalg.norm(end - start) / 2
                thickness = rng.uniform(3.2, 4.2)
                parts.append(((start + end) / 2, (1.1 * half, thickness, 1.5 * thickness), end - start, _RIB))
    return parts


def _vessels(rng: np.random.Generator) -> list[tuple]:
    """Forty-five vessels in each lung, thinner away from the hilum."""
    parts = []
    for side in (-1, 1):
        hilum = np.array([side * 38.0, 0.0, 10.0])
        for _ in range(45):
            direction = rng.normal(size=3) * (0.7, 0.8, 1.3)
            direction *= rng.uniform(0.3, 0.85) / np.linalg.norm(direction)
            center = np.array([side * 72.0, 2.0, 12.0]) + direction * (54.0, 74.0, 112.0)
            away = center - hilum
            radius = 5.5 * np.exp(-np.linalg.norm(away) / 90) + 0.8
            parts.append((center, (rng.uniform(2.5, 4.5) * radius, radius, radius), away, 0.014))
    return parts


def _frame(axis: np.ndarray) -> np.ndarray:
    """Orthonormal columns (axis, across, the third), the third as close to +z as can be."""
    first = axis / np.linalg.norm(axis)
    up = np.array([0.0, 0.0, 1.0]) if abs(first[2]) < 0.95 else np.array([0.0, 1.0, 0.0])
    second = np.cross(up, first)
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def voxelise(phantom: Ellipsoids, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Mean attenuation of every voxel over :data:`SUPERSAMPLING`³ samples.

    Args:
        phantom: the ellipsoids.
        shape: voxels (x, y, z).
        affine: voxel index to RAS mm (4, 4).

    Returns:
        float32 array (x, y, z) [1/mm].
    """
    volume = np.zeros(shape, dtype=np.float32)
    steps = (np.arange(SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, -1)
    inverse = np.linalg.inv(affine)
    for center, matrix, mu in zip(phantom.centers, phantom.matrices, phantom.mu, strict=True):
        # The same ellipsoid in voxel indices.
        to_ball = matrix @ affine[:3, :3]
        middle = inverse[:3, :3] @ center + inverse[:3, 3]
        reach = np.linalg.norm(np.linalg.inv(to_ball), axis=1) + 0.5
        low = np.maximum(np.ceil(middle - reach).astype(int), 0)
        high = np.minimum(np.floor(middle + reach).astype(int) + 1, shape)
        for start in range(low[0], high[0], _SLAB):
            stop = min(start + _SLAB, high[0])
            box = tuple(slice(a, b) for a, b in zip((start, *low[1:]), (stop, *high[1:]), strict=True))
            volume[box] += mu * _coverage(box, to_ball, middle, offsets)
    return volume


def _coverage(box: tuple[slice, ...], to_ball: np.ndarray, middle: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Share of each voxel's samples that lie in an ellipsoid; only voxels near its surface are sampled."""
    axes = [np.arange(part.start, part.stop) - middle[axis] for axis, part in enumerate(box)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    radius = np.sqrt(sum((row[0] * x + row[1] * y + row[2] * z) ** 2 for row in to_ball))
    margin = np.linalg.norm(offsets, axis=0).max() * np.linalg.norm(to_ball, ord=2)
    coverage = (radius <= 1).astype(np.float32)
    near = np.nonzero(np.abs(radius - 1) <= margin)
    centers = to_ball @ np.stack([axes[axis][index] for axis, index in enumerate(near)])
    shifts = to_ball @ offsets
    chunk = 1 << 16
    for start in range(0, centers.shape[1], chunk):
        part = slice(start, start + chunk)
        samples = sum((centers[k, part, None] + shifts[k]) ** 2 for k in range(3))
        coverage[tuple(index[part] for index in near)] = (samples <= 1).mean(axis=1)
    return coverage


def exact_line_integrals(phantom: Ellipsoids, beam: ConeBeam) -> np.ndarray:
    """Line integrals of the ellipsoids along the rays through the pixel centres.

    Args:
        phantom: the ellipsoids, all between source and detector.
        beam: the geometry, of any pose.

    Returns:
        float64 array (view, rows, cols), without unit.
    """
    rows, cols = beam.detector_shape
    row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    pixels = np.stack([col.ravel(), row.ravel(), np.ones(rows * cols)])
    views = []
    for matrix in beam.projection_matrices():
        to_world = np.linalg.inv(matrix[:, :3])
        source, directions = -to_world @ matrix[:, 3], to_world @ pixels
        directions /= np.linalg.norm(directions, axis=0)
        total = np.zeros(rows * cols)
        for center, to_ball, mu in zip(phantom.centers, phantom.matrices, phantom.mu, strict=True):
            q, d = to_ball @ (source - center), to_ball @ directions
            a, b = np.einsum("ij,ij->j", d, d), q @ d
            inside = b * b - a * (q @ q - 1)
            hit = np.nonzero(inside > 0)[0]
            total[hit] += 2 * mu * np.sqrt(inside[hit]) / a[hit]
        views.append(total.reshape(rows, cols))
    return np.stack(views)


def cached(phantom: Ellipsoids, beam: ConeBeam, shape: tuple[int, int, int], affine: np.ndarray) -> tuple[Path, Path]:
    """Files with the voxels and the exact line integrals, made on first use in the system's temporary folder.

    Args:
        phantom: the ellipsoids.
        beam: the geometry.
        shape: voxels (x, y, z).
        affine: voxel index to RAS mm (4, 4).

    Returns:
        Paths of the volume (float32) and of the projections (float64), both ``.npy``.
    """
    folder = Path(tempfile.gettempdir()) / "progressive-cascade-benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    content = np.concatenate([beam.projection_matrices().ravel(), affine.ravel(), shape, beam.detector_shape])
    voxels = hashlib.sha256(np.concatenate([affine.ravel(), shape]).round(6).tobytes()).hexdigest()[:12]
    rays = hashlib.sha256(content.round(6).tobytes()).hexdigest()[:12]
    volume = folder / f"volume-{phantom.digest()}-{voxels}.npy"
    truth = folder / f"truth-{phantom.digest()}-{rays}.npy"
    if not volume.exists():
        _save(volume, voxelise(phantom, shape, affine))
    if not truth.exists():
        _save(truth, exact_line_integrals(phantom, beam))
    return volume, truth


def _save(path: Path, array: np.ndarray) -> None:
    """Write whole or not at all: an interrupted run must not leave half a phantom behind."""
    partial = path.with_name(f"{os.getpid()}-{path.name}")
    np.save(partial, array)
    partial.replace(path)
