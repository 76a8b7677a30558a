# SPDX-License-Identifier: Apache-2.0
"""Finding the body in a CT: the scanner's field of view, and a mask without table, clothes and cables.

Morphology is done slice by slice, because slices are often several times thicker than pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from progressive_cascade.errors import UserError

_BODY_HU = -300.0
# Air around the patient, noise included, has a median below this; lung (-700 to -900, emphysema included) and foam
# are above it.
_OUTSIDE_AIR_HU = -930.0
_LUNG_HU = (-950.0, -600.0)
_MASK_SPACING_MM = 2.0
# Radius that table tops, cables and clothes (2 to 8 mm thick) do not survive, and a child's arm does.
_OPENING_MM = 6.0
# A separate part is a limb where a disk of this radius fits in and it is as dense as flesh; tables and head rests
# are thinner, or less dense on average.
_LIMB_RADIUS_MM = 14.0
_LIMB_HU = -150.0
_LIMB_FRACTION = 0.002
_SKIN_MM = 2.0
_IN_PLANE = ndimage.generate_binary_structure(2, 1)[:, :, None]
_PAD = 8


@dataclass(frozen=True)
class Body:
    """A segmented body on a grid of about 2 mm.

    Args:
        mask: boolean array (x, y, z), True in the body, lungs and bowel included.
        hu: float32 array of the same shape, block averages of the CT [HU].
        affine: 4x4, voxel index to RAS mm.
        field: boolean array (x, y), where the scanner measured.
    """

    mask: np.ndarray
    hu: np.ndarray
    affine: np.ndarray
    field: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size (3,) [mm]."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def with_skin(self) -> np.ndarray:
        """The mask widened by 2 mm, so that resampling does not shave the skin."""
        return np.asarray(ndimage.binary_dilation(self.mask, _disk(_SKIN_MM, self.spacing)))

    def truncated_fraction(self) -> float:
        """Fraction of the axial contour that lies on the edge of the field of view."""
        contour = self.mask & ~_erode(self.mask, _IN_PLANE)
        return float(contour[_edge(self.field)].sum() / max(contour.sum(), 1))

    def lung_slices(self) -> np.ndarray:
        """Indices of the slices that show lung, by its density."""
        low, high = _LUNG_HU
        lung = self.mask & (self.hu > low) & (self.hu < high)
        area = lung.sum(axis=(0, 1)) * float(np.prod(self.spacing[:2]))
        return np.flatnonzero(area > 2000.0)


def find_field_of_view(hu: np.ndarray) -> np.ndarray:
    """Finds the disk that a scanner reconstructs in a square slice whose corners it pads with a constant.

    Padding never changes from slice to slice and holds the volume's least value. It is believed only where it is
    the outside of a centred disk; constant air around a body that was cut out is not.

    Args:
        hu: array (x, y, z) [HU].

    Returns:
        Boolean array (x, y), True where the scanner measured.
    """
    low = hu.min(axis=2)
    pad = (hu.max(axis=2) == low) & (low == low.min())
    everything = np.ones(pad.shape, dtype=bool)
    if not (pad[0, 0] and pad[0, -1] and pad[-1, 0] and pad[-1, -1]) or pad.all():
        return everything
    x, y = np.indices(pad.shape)
    radius = np.hypot(x - (pad.shape[0] - 1) / 2, y - (pad.shape[1] - 1) / 2)
    # Single pixels of air inside the disk may be constant, too: they are far fewer than 2 % of the corners.
    disk = radius < np.quantile(radius[pad], 0.02)
    agreement = (disk & ~pad).sum() / (disk | ~pad).sum()
    return disk if agreement > 0.97 else everything


def segment_body(hu: np.ndarray, affine: np.ndarray, field: np.ndarray) -> Body:
    """Segments the body, lungs and bowel included, without table, clothes and cables.

    Tissue is opened, so that thin things come off; the largest part stays, and limbs; what hangs on to them grows
    back; air they enclose is filled in.

    Args:
        hu: float32 array (x, y, z) in RAS order [HU].
        affine: 4x4, voxel index to RAS mm.
        field: boolean array (x, y), where the scanner measured.

    Returns:
        The body on a grid of about 2 mm.

    Raises:
        UserError: where there is no tissue thicker than a table top.
    """
    factors = np.maximum(1, np.rint(_MASK_SPACING_MM / np.linalg.norm(affine[:3, :3], axis=0))).astype(int)
    coarse, coarse_affine = _average_blocks(hu, affine, factors)
    field = _average_blocks(field[:, :, None].astype(np.float32), affine, np.array([*factors[:2], 1]))[0][:, :, 0] > 0.5
    spacing = np.linalg.norm(coarse_affine[:3, :3], axis=0)
    # A chest wall thinner than the opening survives only while the lung behind it counts as tissue, too.
    filled = _fill_enclosed(coarse > _BODY_HU, coarse, field)
    # So does the world outside the field of view, else a truncated body would lose its sides.
    padding = ((_PAD, _PAD), (_PAD, _PAD), (0, 0))
    around = np.pad(filled | ~field[:, :, None], padding, constant_values=True)
    opened = ndimage.binary_opening(around, _disk(_OPENING_MM, spacing))[_PAD:-_PAD, _PAD:-_PAD] & filled
    core = _largest_parts(opened, coarse, spacing)
    # The opening rounds off fingers, skin folds and breasts: tissue that hangs on to the rest grows back, a table
    # top beside the skin does not.
    steps = max(1, round(_OPENING_MM / float(spacing[:2].mean())))
    mask = np.asarray(ndimage.binary_dilation(core, _IN_PLANE, iterations=steps, mask=filled))
    for k in range(mask.shape[2]):
        mask[:, :, k] = _fill_slice(mask[:, :, k], coarse[:, :, k], field)
    return Body(mask, coarse, coarse_affine, field)


def _average_blocks(volume: np.ndarray, affine: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages blocks of voxels; the grid's world position follows."""
    kernel = tuple(int(min(factor, size)) for factor, size in zip(factors, volume.shape, strict=True))
    pooled = torch.nn.functional.avg_pool3d(torch.from_numpy(np.ascontiguousarray(volume))[None, None], kernel)
    scale = np.diag([*kernel, 1.0])
    scale[:3, 3] = (np.array(kernel) - 1) / 2
    return pooled[0, 0].numpy(), affine @ scale


def _fill_enclosed(tissue: np.ndarray, hu: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Fills lungs and bowel before the table is gone, but not the gaps between body and table.

    A gap reaches the edge of the field of view in some slice, or ends with the scan; a lung does neither, or is
    enclosed in its slice and denser than air.
    """
    labels, num_parts = _label(~tissue & field[:, :, None])
    is_open = np.zeros(num_parts + 1, dtype=bool)
    is_open[np.unique(labels[_edge(field)])] = True
    is_open[np.unique(labels[:, :, [0, -1]])] = True
    filled = tissue | ((labels > 0) & ~is_open[labels])
    for k in range(tissue.shape[2]):
        parts, num_parts = _label(~filled[:, :, k] & field)
        for part in np.setdiff1d(np.arange(1, num_parts + 1), parts[_edge(field)]):
            enclosed = parts == part
            if np.median(hu[:, :, k][enclosed]) > _OUTSIDE_AIR_HU:
                filled[:, :, k] |= enclosed
    return filled


def _largest_parts(opened: np.ndarray, hu: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Keeps the largest 3-D component, and others that are as thick and dense as a limb."""
    labels, num_parts = _label(opened)
    if num_parts == 0:
        raise UserError(f"CT must show a body, got no connected tissue above {_BODY_HU:g} HU")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    kept = labels == largest
    thick = np.unique(labels[_erode(opened, _disk(_LIMB_RADIUS_MM, spacing))])
    for part in np.setdiff1d(thick, [0, largest]):
        limb = labels == part
        if sizes[part] > _LIMB_FRACTION * sizes[largest] and hu[limb].mean() > _LIMB_HU:
            kept |= limb
    return kept


def _fill_slice(mask: np.ndarray, hu: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Adds the air the body encloses in one axial slice, and lung that the edge of the field of view cuts."""
    labels, num_parts = _label(~mask & field)
    if num_parts == 0 or not mask.any():
        return mask
    # Cut lung has body in front and behind; what lies between back and mattress has not.
    between = np.logical_or.accumulate(mask, axis=1) & np.logical_or.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    outside = np.zeros(num_parts + 1, dtype=bool)
    for part in np.setdiff1d(labels[_edge(field)], [0]):
        air = labels == part
        outside[part] = between[air].mean() < 0.5 or np.median(hu[air]) < _OUTSIDE_AIR_HU
    return mask | ((labels > 0) & ~outside[labels])


def _edge(field: np.ndarray) -> np.ndarray:
    """The outermost pixels of the field of view."""
    return field & ~_erode(field)


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the face-connected parts of a mask from 1."""
    labels = np.empty(mask.shape, dtype=np.int32)
    return labels, int(ndimage.label(mask, output=labels))  # type: ignore[arg-type]


def _erode(mask: np.ndarray, structure: np.ndarray | None = None) -> np.ndarray:
    return np.asarray(ndimage.binary_erosion(mask, structure), dtype=bool)


def _disk(radius_mm: float, spacing: np.ndarray) -> np.ndarray:
    """A disk in the axial plane, at least 3 pixels wide, as a 3-D structure of one slice."""
    radius = max(radius_mm, float(spacing[:2].max()))
    reach = np.floor(radius / spacing[:2] + 1e-6).astype(int)
    x, y = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    return (np.hypot(x * spacing[0], y * spacing[1]) <= radius + 1e-6)[:, :, None]
