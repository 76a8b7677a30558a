# SPDX-License-Identifier: Apache-2.0
"""One CT, as it was scanned, to the cube the networks see: RAS, isotropic, around the body, without the table.

The cube stays in the patient's world: its affine places it over the source CT in any viewer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import SpatialResample
from scipy import ndimage

from progressive_cascade.attenuation import AIR_HU
from progressive_cascade.ct.body import Body, find_field_of_view, segment_body
from progressive_cascade.ct.files import read_scan
from progressive_cascade.ct.scan import undefined_to_air
from progressive_cascade.ct.series import DicomSeries, read_dicom_series
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, volume_affine

MIN_HU = -1024
"""Lower end of a 12-bit CT [HU]."""
MAX_HU = 3071
"""Upper end of a 12-bit CT [HU]; metal beyond it carries no information."""
MIN_EXTENT_MM = 100.0
"""A CT shorter than this is refused."""
TRUNCATED_FRACTION = 0.05
"""A body of whose contour more than this lies on the edge of the field of view is called truncated."""
CENTERS = ("scan", "lungs")
"""What the middle of the cube follows along z in a CT longer than the cube."""

# The least value of a CT in HU that shows any air, lung included, is below this.
_AIRLESS_HU = -200.0


@dataclass(frozen=True)
class PreparedCase:
    """A CT on the cube of the networks.

    Args:
        hu: int16 array (x, y, z) [HU], -1000 (air) outside the body.
        valid: uint8 array (x, y, z), 1 where the scanner measured, 0 where the CT was extended.
        affine: 4x4, voxel index to the patient's RAS mm.
        source_shape: voxels of the source CT in RAS order.
        source_spacing: voxel size of the source CT in RAS order [mm].
        z_extent_mm: scanned length of the source CT [mm].
        repeated_mm: length of the cube that repeats the end slices [mm].
        truncated: fraction of the body's contour that lies on the edge of the field of view.
        fingerprint: SHA-256 of the source's voxels in RAS order, whole HU: the same for every copy of a CT, whatever
            its format, name, storage order or place in the world.
        notes: what was mended or assumed on reading, a sentence each.
    """

    hu: np.ndarray
    valid: np.ndarray
    affine: np.ndarray
    source_shape: tuple[int, int, int]
    source_spacing: tuple[float, float, float]
    z_extent_mm: float
    repeated_mm: float
    truncated: float
    fingerprint: str = ""
    notes: tuple[str, ...] = ()

    @property
    def isocenter(self) -> tuple[float, float, float]:
        """The cube's centre in the patient's world (RAS) [mm]."""
        x, y, z = self.affine[:3, :3] @ ((np.array(self.hu.shape) - 1) / 2) + self.affine[:3, 3]
        return float(x), float(y), float(z)


def prepare_case(
    source: str | os.PathLike[str] | DicomSeries,
    *,
    remove_table: bool = True,
    center: str = "scan",
    assume_spacing: Sequence[float] | None = None,
) -> PreparedCase:
    """Reads a CT and places it on the cube, see :func:`place_ct`.

    Args:
        source: a volume file, a folder of one DICOM series, or a series that was found in a larger tree.
        remove_table: set everything outside the body to air.
        center: one of :data:`CENTERS`.
        assume_spacing: see :func:`~progressive_cascade.ct.files.read_scan`.

    Raises:
        FileNotFoundError: where there is no such file.
        UserError: where it is damaged or is not a CT of a body in HU; the message names the file.
    """
    if isinstance(source, DicomSeries):
        scan, name = read_dicom_series(source), f"DICOM series {source.uid}"
    else:
        scan, name = read_scan(source, assume_spacing=assume_spacing), str(source)
    scan = undefined_to_air(scan)
    try:
        case = place_ct(scan.hu, scan.affine, remove_table=remove_table, center=center)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return replace(case, notes=scan.notes)


def place_ct(
    hu: np.ndarray,
    affine: np.ndarray,
    *,
    remove_table: bool = True,
    center: str = "scan",
    shape: tuple[int, int, int] = VOLUME_SHAPE,
    spacing: float = VOXEL_SIZE,
) -> PreparedCase:
    """Resamples a CT onto an RAS cube around the body, low-pass filtered where that is coarser than the source.

    The cube's centre is the centre of the body's bounding box across, and of the scanned extent along z. A CT
    shorter than the cube goes on with its end slices (valid = 0), a longer one is cropped.

    Args:
        hu: array (i, j, k) of any orientation [HU].
        affine: 4x4, voxel index to RAS mm.
        remove_table: set everything outside the body to air; otherwise only the padding outside the scan.
        center: `scan`, or `lungs` to keep the lungs in the cube when the CT is longer than it.
        shape: voxels of the cube.
        spacing: its isotropic voxel size [mm].

    Raises:
        UserError: where the array is not a CT in HU, shows no body, or is shorter than 100 mm.
    """
    hu, affine = to_ras(hu, affine)
    _check_ct(hu, affine)
    field = find_field_of_view(hu)
    hu = np.where(field[:, :, None], hu, AIR_HU).clip(MIN_HU, MAX_HU).astype(np.float32)
    source_spacing = np.linalg.norm(affine[:3, :3], axis=0)
    z_extent = float(hu.shape[2] * source_spacing[2])
    body = segment_body(hu, affine, field)
    target = _find_cube(body, hu, affine, center=center, shape=shape, spacing=spacing)
    cube, valid = _sample(hu, affine, target, field, shape=shape, spacing=spacing)
    if remove_table:
        skin = body.with_skin().astype(np.float32)
        cube[resample(skin, body.affine, target, shape=shape, surround=0.0) < 0.5] = AIR_HU
    return PreparedCase(
        hu=np.rint(cube).clip(MIN_HU, MAX_HU).astype(np.int16),
        valid=valid.astype(np.uint8),
        affine=target,
        source_shape=(hu.shape[0], hu.shape[1], hu.shape[2]),
        source_spacing=(float(source_spacing[0]), float(source_spacing[1]), float(source_spacing[2])),
        z_extent_mm=z_extent,
        repeated_mm=max(0.0, shape[2] * spacing - z_extent),
        truncated=body.truncated_fraction(),
        fingerprint=_fingerprint(hu),
    )


def _find_cube(
    body: Body, hu: np.ndarray, affine: np.ndarray, *, center: str, shape: tuple[int, int, int], spacing: float
) -> np.ndarray:
    """Where the cube lies: 4x4, its voxel index to RAS mm."""
    if center not in CENTERS:
        raise UserError(f"center must be one of {', '.join(CENTERS)}, got {center!r}")
    slices = shape[2] * spacing / float(np.linalg.norm(affine[:3, 2]))
    middle = _middle_slice(body, hu.shape[2], cube_slices=slices, center=center)
    return volume_affine(shape, spacing, _isocenter(body, affine, middle))


def _sample(
    hu: np.ndarray,
    affine: np.ndarray,
    target: np.ndarray,
    field: np.ndarray,
    *,
    shape: tuple[int, int, int],
    spacing: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The CT on the cube [HU], and where the scanner measured."""
    hu, affine = _crop_slices(hu, affine, target, shape=shape)
    inside = np.broadcast_to(field[:, :, None].astype(np.float32), hu.shape)
    valid = resample(inside, affine, target, shape=shape, mode="nearest", padding="zeros") > 0.5
    smooth = low_pass(hu, np.linalg.norm(affine[:3, :3], axis=0), spacing)
    return resample(smooth, affine, target, shape=shape, surround=AIR_HU), valid


def _fingerprint(hu: np.ndarray) -> str:
    whole = np.ascontiguousarray(np.rint(hu), dtype=np.int16)
    return hashlib.sha256(repr(whole.shape).encode() + whole.tobytes()).hexdigest()


def to_ras(hu: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permutes and flips the axes so that they run closest to right, anterior, superior; a view, no copy.

    Args:
        hu: array (i, j, k).
        affine: 4x4, voxel index to RAS mm.

    Returns:
        The array (x, y, z), and its affine.

    Raises:
        UserError: where the array has other than 3 dimensions.
    """
    if hu.ndim != 3:
        raise UserError(f"CT must have 3 dimensions, got shape {hu.shape}")
    orientation = nib.orientations.io_orientation(affine)
    flipped = nib.orientations.apply_orientation(hu, orientation)
    return flipped, affine @ nib.orientations.inv_ornt_aff(orientation, hu.shape)


def check_hu(hu: np.ndarray) -> None:
    """Refuses grey levels, a mask, or a CT without its offset; NaN is passed over.

    Args:
        hu: array of any shape.

    Raises:
        UserError: where the values cannot be those of a chest in HU.
    """
    low, high = float(np.nanmin(hu)), float(np.nanmax(hu))
    if low >= 0 and high <= 255:
        raise UserError(f"CT must be in HU, got values in [{low:g}, {high:g}] (grey levels of a picture?)")
    if low > _AIRLESS_HU:
        raise UserError(f"CT must be in HU and show air, got a minimum of {low:g} (stored without its -1024 offset?)")


def _check_ct(hu: np.ndarray, affine: np.ndarray) -> None:
    if not np.isfinite(hu).all():
        raise UserError("CT must hold finite numbers, got NaN or infinity")
    check_hu(hu)
    extent = hu.shape[2] * float(np.linalg.norm(affine[:3, 2]))
    if extent < MIN_EXTENT_MM:
        raise UserError(f"CT must be at least {MIN_EXTENT_MM:g} mm long from feet to head, got {extent:.1f} mm")


def _middle_slice(body: Body, num_slices: int, *, cube_slices: float, center: str) -> float:
    """Slice index of the source CT the cube's middle comes to."""
    middle = (num_slices - 1) / 2
    lungs = body.lung_slices()
    if center == "scan" or num_slices <= cube_slices or len(lungs) == 0:
        return middle
    step = num_slices / body.mask.shape[2]
    slack = (num_slices - cube_slices) / 2
    return float(np.clip((lungs[0] + lungs[-1] + 1) / 2 * step - 0.5, middle - slack, middle + slack))


def _isocenter(body: Body, affine: np.ndarray, middle: float) -> tuple[float, float, float]:
    """The body's bounding-box centre across, on the given slice of the source CT, in world mm."""
    across = []
    for others in ((1, 2), (0, 2)):
        occupied = np.flatnonzero(body.mask.any(axis=others))
        across.append((occupied[0] + occupied[-1]) / 2)
    index = np.linalg.solve(affine, body.affine @ np.array([*across, 0.0, 1.0]))
    x, y, z, _ = affine @ np.array([index[0], index[1], middle, 1.0])
    return float(x), float(y), float(z)


def _crop_slices(
    hu: np.ndarray, affine: np.ndarray, target: np.ndarray, *, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out slices of a long CT that lie well outside the cube, to save memory."""
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in shape), indexing="ij")).reshape(3, -1)
    slices = (np.linalg.solve(affine, target) @ np.vstack([corners, np.ones(8)]))[2]
    margin = 8
    first = int(np.clip(np.floor(slices.min()) - margin, 0, hu.shape[2] - 1))
    last = int(np.clip(np.ceil(slices.max()) + margin, first, hu.shape[2] - 1))
    shift = np.eye(4)
    shift[2, 3] = first
    return hu[:, :, first : last + 1].copy(), affine @ shift


def low_pass(hu: np.ndarray, spacing: np.ndarray, target_spacing: float) -> np.ndarray:
    """Gaussian against aliasing, of the width scikit-image's `resize` takes: (ratio - 1) / 2 voxels.

    Args:
        hu: array (i, j, k).
        spacing: of its voxels (3) [mm].
        target_spacing: of the voxels it will be sampled on [mm]; along axes where that is less nothing is smoothed.
    """
    sigma = np.maximum(0.0, (target_spacing / spacing - 1) / 2)
    return ndimage.gaussian_filter(hu, sigma, mode="nearest") if sigma.any() else hu


def resample(
    volume: np.ndarray,
    affine: np.ndarray,
    target: np.ndarray,
    *,
    shape: tuple[int, int, int],
    surround: float | None = None,
    mode: str = "bilinear",
    padding: str = "border",
) -> np.ndarray:
    """Samples a volume on another grid.

    Args:
        volume: array (i, j, k).
        affine: 4x4, its voxel index to RAS mm.
        target: 4x4, that of the other grid.
        shape: voxels of the other grid.
        surround: what follows the volume across, its end slices going on along z; default: see `padding`.
        mode: ``bilinear`` or ``nearest``.
        padding: what lies beyond, ``border`` (the nearest voxel) or ``zeros``.

    Returns:
        float32 array of that shape.
    """
    if surround is not None:
        volume = np.pad(volume, ((1, 1), (1, 1), (0, 0)), constant_values=surround)
        shift = np.eye(4)
        shift[:2, 3] = -1
        affine = affine @ shift
    sampler = SpatialResample(mode=mode, padding_mode=padding, dtype=np.float32)
    image = MetaTensor(torch.from_numpy(np.ascontiguousarray(volume))[None], affine=torch.from_numpy(affine))
    out = sampler(image, dst_affine=torch.from_numpy(target), spatial_size=shape)
    return np.asarray(out)[0]
