# SPDX-License-Identifier: Apache-2.0
"""The public face of the projector: volumes, geometries and affines in, line integrals out, every argument checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV, hu_to_mu
from progressive_cascade.geometry import ConeBeam, parse_beam
from progressive_cascade.projector.operator import project, transpose_project

Beams = ConeBeam | Sequence[ConeBeam]


def line_integrals(
    mu: Tensor,
    beam: Beams,
    *,
    affine: np.ndarray | Tensor,
    weights: str = "joseph",
    method: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """Project a volume of linear attenuation onto the detectors of a geometry: ``p = ∫ mu dl``.

    Voxel and pixel centres lie at integer indices; between voxel centres mu is interpolated, and outside the volume it
    is 0. Rays that miss the volume give exactly 0.

    Args:
        mu: linear attenuation (b, 1, x, y, z) [1/mm].
        beam: the acquisition geometry, or one per volume (of the same number of views and detector shape).
        affine: voxel index to RAS mm, (4, 4), or (b, 4, 4) for one per volume; oblique, anisotropic, flipped: any.
        weights: ``joseph`` (linear interpolation) or ``distance`` (distance-driven: the pixel's footprint).
        method: ``auto``; ``separable``: by slices, refused where that cannot be done; ``ray``: ray by ray.
        backend: ``auto``; ``numba``: compiled, on the CPU; ``triton``: compiled, on CUDA, ray by ray whatever the view,
            Joseph's weights alone; ``torch``: matrix products, on any device.

    Returns:
        Line integrals (b, view, rows, cols), without unit, float32 (float64 for float64 input).

    Raises:
        ValueError: if a shape is wrong, mu or the affine is not finite, the affine is singular, the source lies inside
            the volume, or the rays of a view miss it altogether. On a GPU neither mu nor an affine that lies there is
            looked at, which would wait for all that is queued: what is impossible comes out as NaN.
        TypeError: if ``mu`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> from progressive_cascade import ConeBeam, line_integrals, volume_affine
        >>> cube = torch.full((1, 1, 32, 32, 32), 0.02)
        >>> p = line_integrals(cube, ConeBeam(), affine=volume_affine((32, 32, 32), 2.0))
        >>> round(float(p[0, 0, 255, 255]), 3)
        1.28
    """
    _check_volume(mu)
    matrices, affines, beams = _parse_geometry(beam, affine, len(mu))
    options: dict[str, Any] = {"weights": weights, "method": method, "backend": backend}
    p = project(mu, matrices, affines, beams[0].detector_shape, source_to_detector=_reaches(beams), **options)
    _check_finite(p, mu)
    return p


def backproject(
    projections: Tensor,
    beam: Beams,
    *,
    shape: Sequence[int],
    affine: np.ndarray | Tensor,
    weights: str = "joseph",
    method: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """The exact transpose of :func:`line_integrals`: ``<A x, y> = <x, Aᵀ y>``.

    Args:
        projections: line integrals (b, view, rows, cols).
        beam: the acquisition geometry, or one per volume.
        shape: voxels (x, y, z) of the volume.
        affine: voxel index to RAS mm, (4, 4) or (b, 4, 4).
        weights: as for :func:`line_integrals`.
        method: as for :func:`line_integrals`.
        backend: as for :func:`line_integrals`.

    Returns:
        Volume (b, 1, x, y, z) [mm].

    Raises:
        ValueError: if a shape is wrong or the geometry cannot be projected (see :func:`line_integrals`).
        TypeError: if ``projections`` is not a floating-point tensor.
    """
    if not isinstance(projections, Tensor) or not projections.is_floating_point():
        kind = getattr(projections, "dtype", type(projections).__name__)
        raise TypeError(f"projections must be a floating-point tensor, got {kind}")
    matrices, affines, beams = _parse_geometry(beam, affine, len(projections))
    expected = (len(beams[0].views), *beams[0].detector_shape)
    if projections.dim() != 4 or tuple(projections.shape[1:]) != expected:
        raise ValueError(f"projections must have shape (b, {expected}), got {tuple(projections.shape)}")
    if len(shape) != 3 or any(size < 1 for size in shape):
        raise ValueError(f"shape must be three positive numbers of voxels, got {tuple(shape)}")
    sizes = (int(shape[0]), int(shape[1]), int(shape[2]))
    options: dict[str, Any] = {"weights": weights, "method": method, "backend": backend}
    return transpose_project(projections, matrices, affines, sizes, source_to_detector=_reaches(beams), **options)


class DRR(nn.Module):
    """Digitally reconstructed radiographs of a CT in HU: ``p = ∫ mu(HU) dl`` on each view's detector.

    Args:
        beam: the geometry, as :class:`ConeBeam` or the mapping of its fields that a JSON config holds.
        energy_kev: effective photon energy [keV].
        affine: voxel index to RAS mm of the volumes that come without one.
        weights: as for :func:`line_integrals`.
        backend: as for :func:`line_integrals`.
    """

    def __init__(
        self,
        beam: ConeBeam | dict | str = "chest_stand",
        energy_kev: float = EFFECTIVE_ENERGY_KEV,
        affine: np.ndarray | None = None,
        *,
        weights: str = "joseph",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.beam = parse_beam(beam)
        self.energy_kev = energy_kev
        self.affine = affine
        self.weights = weights
        self.backend = backend
        self._seen = False

    def forward(self, hu: Tensor, affine: np.ndarray | Tensor | None = None) -> Tensor:
        """Project.

        Args:
            hu: CT numbers (b, 1, x, y, z) [HU].
            affine: voxel index to RAS mm, (4, 4) or (b, 4, 4); default: the one given at construction.

        Returns:
            Line integrals (b, view, rows, cols).

        Raises:
            ValueError: if there is no affine at all, the volume is not in HU (on a GPU the first one alone is looked
                at, to wait for it once), or the geometry cannot be projected.
        """
        affine = self.affine if affine is None else affine
        if affine is None:
            raise ValueError("affine must be given here or at construction, got None")
        if hu.device.type == "cpu" or not self._seen:
            _check_hu(hu)
            self._seen = True
        mu = hu_to_mu(hu.float(), self.energy_kev)
        return line_integrals(mu, self.beam, affine=affine, weights=self.weights, backend=self.backend)


def _check_volume(mu: Any) -> None:
    if not isinstance(mu, Tensor) or not mu.is_floating_point():
        raise TypeError(f"mu must be a floating-point tensor, got {getattr(mu, 'dtype', type(mu).__name__)}")
    if mu.dim() != 5 or mu.shape[1] != 1 or mu.numel() == 0:
        raise ValueError(f"mu must have shape (b, 1, x, y, z), got {tuple(mu.shape)}")


def _check_finite(projections: Tensor, mu: Tensor) -> None:
    """A voxel that is not finite shows in its shadow, which is cheaper to look through than the volume."""
    if projections.device.type != "cpu" or bool(torch.isfinite(projections.detach()).all()):
        return
    wrong = (~torch.isfinite(mu)).nonzero()
    if len(wrong):
        voxel = wrong[0].tolist()
        raise ValueError(f"mu must be finite, got {float(mu[tuple(voxel)])} at {voxel}")


def _reaches(beams: Sequence[ConeBeam]) -> list[float]:
    """Where the rays of each volume end [mm]."""
    return [beam.source_to_detector for beam in beams]


def _check_hu(hu: Tensor) -> None:
    """Refuse what cannot be CT numbers: a range without air that starts at 0 is an image or a normalised volume."""
    low, high = (float(end) for end in torch.aminmax(hu.detach()))
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"hu must be finite, got values from {low} to {high}")
    if 0.0 <= low < high <= 255.0:
        raise ValueError(f"hu must be CT numbers [HU], got values from {low:g} to {high:g}, without air")


def _parse_geometry(beam: Beams, affine: Any, batch: int) -> tuple[Tensor, Tensor, list[ConeBeam]]:
    """Matrices (b, view, 3, 4) and affines (b, 4, 4) in float64, affines where they lie, and a geometry per volume."""
    beams = [beam] * batch if isinstance(beam, ConeBeam) else list(beam)
    if len(beams) != batch or not all(isinstance(one, ConeBeam) for one in beams):
        raise ValueError(f"beam must be a ConeBeam, or one for each of the {batch} volumes, got {len(beams)}")
    shapes = {(len(one.views), one.detector_shape) for one in beams}
    if len(shapes) > 1:
        raise ValueError(f"beam must have one number of views and one detector_shape per batch, got {sorted(shapes)}")
    places = torch.as_tensor(affine).detach()
    places = places if places.device.type == "mps" else places.double()  # which it lacks
    if places.shape not in ((4, 4), (batch, 4, 4)):
        raise ValueError(f"affine must have shape (4, 4) or ({batch}, 4, 4), got {tuple(places.shape)}")
    matrices = torch.stack([torch.from_numpy(one.projection_matrices()) for one in beams])
    return matrices, places.expand(batch, 4, 4), beams
