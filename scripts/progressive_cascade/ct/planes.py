# SPDX-License-Identifier: Apache-2.0
"""The images of a DICOM series as planes in space: which of them make up a volume, in what order, at what places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from progressive_cascade.errors import UserError

# Two slices closer than this are of one place.
_SAME_PLACE_MM = 0.01
# How far a slice may stand from where even spacing would have it, as a fraction of the spacing.
_JITTER = 0.1
# At most this share of the slices may be filled in from their neighbours, or one.
_FILLED = 0.1
# Between lung and the densest bone there is tissue; a padding value in between may be a patient's.
_TISSUE_HU = (-900.0, 3000.0)


@dataclass(frozen=True)
class Plane:
    """One image of a series.

    Args:
        file: where it is stored.
        frame: its number in a file of many, from 0; None where it is the file's only one.
        shape: columns, rows.
        origin: centre of its first pixel, LPS [mm].
        direction: unit vectors along a row, along a column, and normal to both, as the columns of a 3x3 matrix.
        spacing: between columns, between rows [mm].
        kind: DICOM's ImageType.
        padding: least and greatest value that stands for nothing measured [HU], or None.
        rescale: slope and intercept from stored values to HU.
    """

    file: str
    frame: int | None
    shape: tuple[int, int]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    spacing: tuple[float, float]
    kind: str = ""
    padding: tuple[float, float] | None = None
    rescale: tuple[float, float] = (1.0, 0.0)

    @property
    def is_localizer(self) -> bool:
        """Whether it is an overview rather than a slice."""
        return "LOCALIZER" in self.kind.upper() or "SCOUT" in self.kind.upper()

    @property
    def place(self) -> float:
        """Where it stands along its normal [mm]."""
        return float(np.reshape(self.direction, (3, 3))[:, 2] @ np.array(self.origin))


def select_planes(
    planes: Sequence[Plane], same: Callable[[Plane, Plane], bool]
) -> tuple[list[Plane], list[str], str | None]:
    """The planes that make up a volume.

    Args:
        planes: all images of a series.
        same: tells whether two images hold the same pixels.

    Returns:
        The planes in the order of their places, notes on those left out, and why they are no volume, or None.
    """
    axial = [plane for plane in planes if not plane.is_localizer]
    if not axial:
        return list(planes), [], "a localizer"
    alike = _largest_group(axial)
    kept, doubled = _without_copies(alike)
    left_out = {
        "localizer images left out": len(planes) - len(axial),
        "images of another size or direction left out": len(axial) - len(alike),
        "slices there twice, used once": len(doubled),
    }
    notes = [f"{number} {text}" for text, number in left_out.items() if number]
    different = sum(not same(plane, twin) for plane, twin in doubled)
    if different:
        return kept, notes, f"{different} positions hold two different images (several phases?)"
    return kept, notes, "a single slice" if len(kept) == 1 else None


def stack_affine(planes: Sequence[Plane]) -> np.ndarray:
    """Voxel index (column, row, slice) to RAS mm.

    The slice axis runs from the first plane to the last, so that a tilted gantry's shear is kept.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(planes[0].direction, (3, 3)) * (*planes[0].spacing, 1.0)
    affine[:3, 3] = planes[0].origin
    affine[:3, 2] = (np.array(planes[-1].origin) - planes[0].origin) / (len(planes) - 1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def find_missing(planes: Sequence[Plane], name: str) -> list[int]:
    """Behind which planes one slice is missing that its neighbours can stand for.

    Args:
        planes: in the order of their places.
        name: what an error begins with.

    Returns:
        Indices, ascending; empty where the planes are evenly spaced.

    Raises:
        UserError: where slices are missing that cannot be filled in, or stand out of line; the message names the
            place.
    """
    origins = np.array([plane.origin for plane in planes])
    gaps = np.linalg.norm(np.diff(origins, axis=0), axis=1)
    usual = float(np.median(gaps))
    missing = [int(index) for index in np.flatnonzero(np.abs(gaps / usual - 2) <= 2 * _JITTER)]
    if len(missing) > max(1, _FILLED * len(planes)) or (len(missing) > 1 and np.diff(missing).min() == 1):
        missing = []
    after = np.concatenate([[0], np.cumsum(1 + np.isin(np.arange(len(gaps)), missing))])
    even = origins[0] + (after / after[-1])[:, None] * (origins[-1] - origins[0])
    off = np.linalg.norm(origins - even, axis=1)
    if off.max() <= _JITTER * usual:
        return missing
    widest = int(gaps.argmax())
    lost = round(gaps[widest] / usual) - 1
    if lost > 0:
        what = f"gaps of {gaps.min():.2f} to {gaps.max():.2f} mm, the widest behind z = {origins[widest][2]:.1f} mm"
        raise UserError(f"{name} must have evenly spaced slices, got {what} ({lost} slices missing there?)")
    worst = int(off.argmax())
    raise UserError(
        f"{name} must have evenly spaced slices, got one {off[worst]:.2f} mm out of line at z = "
        f"{origins[worst][2]:.1f} mm where slices are {usual:.2f} mm apart"
    )


def fill_missing(hu: np.ndarray, missing: Sequence[int]) -> np.ndarray:
    """Puts the mean of both neighbours behind each of the given slices of (column, row, slice)."""
    means = [(hu[..., index].astype(np.float32) + hu[..., index + 1]) / 2 for index in missing]
    if not means:
        return hu
    new = np.stack([np.rint(mean) if hu.dtype.kind == "i" else mean for mean in means], axis=-1).astype(hu.dtype)
    return np.insert(hu, [index + 1 for index in missing], new, axis=2)


def padding_to_nan(hu: np.ndarray, planes: Sequence[Plane]) -> tuple[np.ndarray, list[str]]:
    """Marks what the files declare as padding.

    A padding value that tissue can have is not believed, because it would make holes in the patient.

    Returns:
        The array, float32 with NaN where there is padding, and a note where it was not believed.
    """
    notes = []
    for index, plane in enumerate(planes):
        if plane.padding is None:
            continue
        low, high = plane.padding
        if low < _TISSUE_HU[1] and high > _TISSUE_HU[0]:
            notes.append(f"the padding value {low:g} HU may be tissue and is not taken for padding")
            continue
        padded = (hu[..., index] >= low - 1e-3) & (hu[..., index] <= high + 1e-3)
        if padded.any():
            hu = hu.astype(np.float32, copy=False)
            hu[..., index][padded] = np.nan
    return hu, list(dict.fromkeys(notes))


def _largest_group(planes: Sequence[Plane]) -> list[Plane]:
    """The planes that share a size, a pixel spacing and a direction with most others."""
    groups: dict[tuple, list[Plane]] = {}
    for plane in planes:
        numbers = (round(number, 3) + 0.0 for number in (*plane.direction, *plane.spacing))
        groups.setdefault((*plane.shape, *numbers), []).append(plane)
    return max(groups.values(), key=len)


def _without_copies(planes: Sequence[Plane]) -> tuple[list[Plane], list[tuple[Plane, Plane]]]:
    """The planes in the order of their places, and those that stand where another does as pairs."""
    order = sorted(planes, key=lambda plane: (plane.place, plane.file, plane.frame or 0))
    kept, doubled = [order[0]], []
    for plane in order[1:]:
        if plane.place - kept[-1].place < _SAME_PLACE_MM:
            doubled.append((plane, kept[-1]))
        else:
            kept.append(plane)
    return kept, doubled
