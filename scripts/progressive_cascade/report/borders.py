# SPDX-License-Identifier: Apache-2.0
"""A picture of borders alone: outlines of body and lungs, in the truth and in reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from progressive_cascade.report.drawing import (
    BACKGROUND,
    TEXT,
    Plane,
    caption,
    central_planes,
    mosaic,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BORDER_HU = -400.0
"""Between lung or air and tissue [HU]."""
COLORS = ("#ff9f40", "#40c8ff", "#7dff7a")
"""Of the reconstructions, in their order."""
_TISSUE = "#3a3f47"
# Vessels in the lung are no borders; two voxels of 1.4 mm hide them and move a border hardly.
_SMOOTHING_MM = 2.8


def borders_figure(
    truth_hu: np.ndarray,
    reconstructions: Mapping[str, np.ndarray],
    path: str | PathLike[str],
    *,
    title: str = "",
    spacing: float = 1.4,
) -> None:
    """Draws borders at -400 HU on three planes: the truth as an area without grey values, reconstructions as lines.

    Args:
        truth_hu: the CT (x, y, z) [HU].
        reconstructions: up to three volumes of the same shape [HU], by name.
        path: PNG file; written whole or not at all.
        title: one line above.
        spacing: voxel size [mm].

    Raises:
        ValueError: where there are no or too many reconstructions, or one has another shape.
    """
    if not 1 <= len(reconstructions) <= len(COLORS):
        raise ValueError(f"reconstructions must be 1 to {len(COLORS)}, got {len(reconstructions)}")
    for name, hu in reconstructions.items():
        if hu.shape != truth_hu.shape or hu.ndim != 3:
            raise ValueError(f"reconstructions[{name!r}] must have the truth's shape {truth_hu.shape}, got {hu.shape}")
    names = ["truth", *reconstructions]
    planes = [_smooth_planes(hu, spacing) for hu in (truth_hu, *reconstructions.values())]
    side = max(plane.extent[0] for plane in planes[0])
    figure, grid = mosaic([plane.extent[1] for plane in planes[0]], [side], top=0.62)
    height = figure.get_figheight()
    figure.text(0.006, 1 - 0.09 / height, title, fontsize=10, color=TEXT, va="top")
    for index, (name, color) in enumerate(zip(names, (_TISSUE, *COLORS), strict=False)):
        mark, place = "■" if index == 0 else "—", 0.006 + index / len(names)
        figure.text(
            place, 1 - 0.36 / height, f"{mark} {name}", fontsize=9, color=TEXT if not index else color, va="top"
        )
    for column, truth in enumerate(planes[0]):
        _draw_borders(figure.add_subplot(grid[0, column]), truth, [volume[column] for volume in planes[1:]])
    save_figure(figure, path)


def _draw_borders(axes: Axes, truth: Plane, others: Sequence[Plane]) -> None:
    """The truth's tissue as an area, the others' borders as lines."""
    axes.set_facecolor(BACKGROUND)
    rows, cols = (np.arange(n) * step for n, step in zip(truth.image.shape, _steps(truth), strict=True))
    axes.contourf(cols, rows, truth.image, levels=[BORDER_HU, np.inf], colors=[_TISSUE])
    for plane, color in zip(others, COLORS, strict=False):
        axes.contour(cols, rows, plane.image, levels=[BORDER_HU], colors=[color], linewidths=0.9, linestyles="solid")
    axes.set(xlim=(0, truth.extent[1]), ylim=(truth.extent[0], 0), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    caption(axes, f"{truth.name}   {truth.sides[0]} … {truth.sides[1]}")


def _smooth_planes(hu: np.ndarray, spacing: float) -> list[Plane]:
    from scipy.ndimage import gaussian_filter

    return central_planes(gaussian_filter(hu.astype(np.float32), _SMOOTHING_MM / spacing), (spacing, spacing, spacing))


def _steps(plane: Plane) -> tuple[float, float]:
    """Height and width of a pixel [mm]."""
    return plane.extent[0] / plane.image.shape[0], plane.extent[1] / plane.image.shape[1]
