# SPDX-License-Identifier: Apache-2.0
"""Enhanced multi-frame CT: one DICOM file of many slices, each with a place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.ct.planes import Plane
from progressive_cascade.errors import UserError
from progressive_cascade.io.dicom_layout import read_layout
from progressive_cascade.io.limits import check_shape


def read_frame_planes(file: str) -> list[Plane]:
    """The frames of a file as planes.

    Raises:
        UserError: where frames say neither place nor direction nor spacing.
    """
    import pydicom

    read_layout(Path(file), file)
    ds = pydicom.dcmread(file, stop_before_pixels=True)
    shared = _first(ds, "SharedFunctionalGroupsSequence")
    check_shape([int(ds.get(name, 1)) for name in ("Rows", "Columns", "NumberOfFrames")], file)
    own = list(ds.get("PerFrameFunctionalGroupsSequence", []))
    if len(own) != int(ds.get("NumberOfFrames", 1)):
        raise UserError(f"{file} must say where each of its frames stands")
    return [_plane(ds, [group, shared], file, number) for number, group in enumerate(own)]


def read_frames(planes: Sequence[Plane]) -> np.ndarray:
    """The pixels of planes that are frames.

    Args:
        planes: in the order of the result, from one file or several.

    Returns:
        Array (column, row, slice), float32 [HU].
    """
    import pydicom

    stored = {file: pydicom.dcmread(file).pixel_array for file in {plane.file for plane in planes}}
    slices = []
    for plane in planes:
        pixels = stored[plane.file] if stored[plane.file].ndim == 3 else stored[plane.file][None]
        slope, intercept = plane.rescale
        slices.append(pixels[plane.frame or 0].T.astype(np.float32) * np.float32(slope) + np.float32(intercept))
    return np.stack(slices, axis=2)


def padding_in_hu(
    value: Any, limit: Any, *, signed: bool, bits: int, rescale: tuple[float, float]
) -> tuple[float, float] | None:
    """DICOM's PixelPaddingValue and PixelPaddingRangeLimit as a range of HU; None where there is none.

    Programs write the value signed or not, whatever the pixels are, so it is brought to the pixels' range.
    """
    if value in (None, ""):
        return None
    stored = [int(number) % 2**bits for number in (value, value if limit in (None, "") else limit)]
    numbers = [number - 2**bits if signed and number >= 2 ** (bits - 1) else number for number in stored]
    low, high = sorted(rescale[0] * number + rescale[1] for number in numbers)
    return low, high


def _plane(ds: Any, groups: Sequence[Any], file: str, number: int) -> Plane:
    place, turn, measures = (
        _group(groups, name) for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    )
    try:
        origin = tuple(float(value) for value in place.ImagePositionPatient)
        along_row, along_column = np.array(turn.ImageOrientationPatient, dtype=float).reshape(2, 3)
        rows, columns = (float(value) for value in measures.PixelSpacing)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file} must say where each of its frames stands, frame {number + 1} does not") from error
    values = _group(groups, "PixelValueTransformationSequence")
    slope, intercept = float(values.get("RescaleSlope", 1)), float(values.get("RescaleIntercept", 0))
    kind = _group(groups, "CTImageFrameTypeSequence").get("FrameType", ds.get("ImageType", ""))
    padding = padding_in_hu(
        ds.get("PixelPaddingValue"),
        ds.get("PixelPaddingRangeLimit"),
        signed=bool(ds.PixelRepresentation),
        bits=int(ds.BitsAllocated),
        rescale=(slope, intercept),
    )
    return Plane(
        file=file,
        frame=number,
        shape=(int(ds.Columns), int(ds.Rows)),
        origin=(origin[0], origin[1], origin[2]),
        direction=tuple(
            np.stack([along_row, along_column, np.cross(along_row, along_column)], axis=1).ravel().tolist()
        ),
        spacing=(columns, rows),
        kind="\\".join(kind) if not isinstance(kind, str) else kind,
        padding=padding,
        rescale=(slope, intercept),
    )


def _group(groups: Sequence[Any], name: str) -> Any:
    """The first item of a sequence, of the frame's own groups or else of the shared ones."""
    import pydicom

    return next((found for group in groups if (found := _first(group, name)) is not None), pydicom.Dataset())


def _first(ds: Any, name: str) -> Any:
    items = ds.get(name) if ds is not None else None
    return items[0] if items else None
