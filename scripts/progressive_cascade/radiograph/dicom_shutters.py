# SPDX-License-Identifier: Apache-2.0
"""Shutters (PS3.3 C.7.6.11) and collimators (C.8.7.3) of a DICOM radiograph: the pixels inside all of them."""

from __future__ import annotations

import numpy as np

from progressive_cascade.radiograph.dicom_tags import DicomHeader

_EDGES = ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")


def shutter_mask(header: DicomHeader, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels that no shutter and no collimator covers.

    Args:
        header: the file's; rows and columns are counted from 1.
        shape: (rows, cols).

    Returns:
        Boolean (rows, cols).

    Raises:
        UserError: if a shutter's edges are no numbers.
    """
    mask = np.ones((shape[0], shape[1]), dtype=bool)
    row, col = np.arange(1, shape[0] + 1)[:, None], np.arange(1, shape[1] + 1)[None]
    for prefix in ("Shutter", "Collimator"):
        shapes = header.texts(f"{prefix}Shape")
        if "RECTANGULAR" in shapes:
            left, right, upper, lower = (header.number(f"{prefix}{edge}") for edge in _EDGES)
            mask &= (col > (left or 0)) & (row > (upper or 0))
            mask &= (col < (right or shape[1] + 1)) & (row < (lower or shape[0] + 1))
        circle = "CenterOfCircularShutter" if prefix == "Shutter" else "CenterOfCircularCollimator"
        radius = "RadiusOfCircularShutter" if prefix == "Shutter" else "RadiusOfCircularCollimator"
        center, size = header.numbers(circle, 2), header.number(radius)
        if "CIRCULAR" in shapes and center is not None and size is not None:
            mask &= (row - center[0]) ** 2 + (col - center[1]) ** 2 <= size**2
        name = f"VerticesOfThePolygonal{prefix}"
        vertices = header.numbers(name, *range(6, 400, 2)) if "POLYGONAL" in shapes else None
        if vertices is not None:
            mask &= _inside(np.reshape(vertices, (-1, 2)), (shape[0], shape[1]))
    return mask


def _inside(vertices: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels inside a polygon of (row, column) vertices, counted from 1."""
    from PIL import Image, ImageDraw

    canvas = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(canvas).polygon([(float(col) - 1, float(row) - 1) for row, col in vertices], fill=1)
    return np.asarray(canvas, dtype=bool)
