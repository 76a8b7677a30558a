# SPDX-License-Identifier: Apache-2.0
"""Pictures of radiographs and volumes for people who read X-rays and CT.

The patient's right, and in lateral views the front, is on the image's left; the head is up. Windows and colour scales
are fixed, so that two pictures compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from progressive_cascade.report.diagrams import Diagram, blank_figure, draw_diagram
from progressive_cascade.report.drawing import (
    TEXT,
    USUAL_VIEWS,
    Plane,
    caption,
    central_planes,
    color_bar,
    draw_difference,
    draw_plane,
    draw_radiograph,
    heading,
    mosaic,
    save_figure,
    view_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec
    from matplotlib.image import AxesImage

WINDOWS: dict[str, tuple[float, float]] = {"lung": (1500.0, -600.0), "soft tissue": (400.0, 40.0)}
"""Display windows (width, level) [HU], as set at a reading station."""
WIDE_WINDOW = (1600.0, -300.0)
"""The one window of a comparison (width, level) [HU]: wide enough for lung and bone."""

_RADIOGRAPH_MM = 430.0


def radiographs_figure(image: np.ndarray, path: str | PathLike[str]) -> None:
    """Draws both radiographs side by side, bone bright.

    Args:
        image: line integrals (2, rows, cols), PA then left lateral.
        path: PNG file; written whole or not at all.

    Raises:
        ValueError: where the image has another shape.
    """
    image = _parse_radiographs("image", image)
    height = _RADIOGRAPH_MM * image.shape[1] / image.shape[2]
    figure, grid = mosaic([_RADIOGRAPH_MM] * 2, [height], top=0.3)
    for index, view in enumerate(USUAL_VIEWS):
        axes = figure.add_subplot(grid[0, index])
        draw_radiograph(axes, image[index], view)
        heading(axes, view_title(view))
    save_figure(figure, path)


def volume_figure(
    hu: np.ndarray,
    spacing: float | Sequence[float],
    path: str | PathLike[str],
    radiographs: np.ndarray | None = None,
    views: Sequence[str] = USUAL_VIEWS,
) -> None:
    """Draws a CT on three planes through its centre, in a lung and in a soft-tissue window.

    Args:
        hu: CT numbers (x, y, z) along right, anterior, superior [HU].
        spacing: voxel size [mm], one number or one per axis.
        path: PNG file; written whole or not at all.
        radiographs: line integrals (2, rows, cols) the CT was made from, drawn beside it.
        views: their names.

    Raises:
        ValueError: where a shape or the spacing is impossible.
    """
    planes = central_planes(_parse_volume("hu", hu), _parse_spacing(spacing))
    side = max(plane.extent[0] for plane in planes)
    widths = [plane.extent[1] for plane in planes]
    first = 0
    if radiographs is not None:
        radiographs = _parse_radiographs("radiographs", radiographs)
        widths, first = [side, *widths], 1
    figure, grid = mosaic(widths, [side, side], top=0.3)
    if radiographs is not None:
        for row, image in enumerate(radiographs):
            axes = figure.add_subplot(grid[row, 0])
            draw_radiograph(axes, image, views[row])
            caption(axes, view_title(views[row]))
            if row == 0:
                heading(axes, "radiographs")
    rows = [
        _Row(f"{name}   W {width:g}  L {level:g}", planes, (width, level)) for name, (width, level) in WINDOWS.items()
    ]
    _draw_planes(figure, grid, rows, first=first)
    save_figure(figure, path)


def comparison_figure(
    truth_hu: np.ndarray,
    pred_hu: np.ndarray,
    *,
    radiographs: np.ndarray,
    reprojected: np.ndarray,
    path: str | PathLike[str],
    title: str = "",
    spacing: float | Sequence[float] = 1.4,
    views: Sequence[str] = USUAL_VIEWS,
) -> None:
    """Draws truth, reconstruction and error on three planes, and the radiographs against the re-projected ones.

    Args:
        truth_hu: the CT (x, y, z) [HU].
        pred_hu: the reconstruction, same shape [HU].
        radiographs: line integrals (2, rows, cols) the reconstruction was made from.
        reprojected: line integrals of the reconstruction, same shape.
        path: PNG file; written whole or not at all.
        title: one line above, for example the case and its scores.
        spacing: voxel size [mm], one number or one per axis.
        views: names of the radiographs' views.

    Raises:
        ValueError: where shapes are impossible or disagree.
    """
    truth_hu, pred_hu = _parse_volume("truth_hu", truth_hu), _parse_volume("pred_hu", pred_hu)
    radiographs = _parse_radiographs("radiographs", radiographs)
    reprojected = _parse_radiographs("reprojected", reprojected)
    _check_same_shape("pred_hu", pred_hu, truth_hu)
    _check_same_shape("reprojected", reprojected, radiographs)
    voxel = _parse_spacing(spacing)
    error = pred_hu.astype(np.float32) - truth_hu
    rows = [
        _Row("truth", central_planes(truth_hu, voxel), WIDE_WINDOW),
        _Row("reconstruction", central_planes(pred_hu, voxel), WIDE_WINDOW),
        _Row("reconstruction − truth", central_planes(error, voxel), None),
    ]
    side = max(plane.extent[0] for plane in rows[0].planes)
    widths = [*(plane.extent[1] for plane in rows[0].planes), side, side]
    figure, grid = mosaic(widths, [side] * 3, top=0.55 if title else 0.3, bottom=0.52)
    if title:
        figure.text(0.006, 1 - 0.09 / figure.get_figheight(), title, fontsize=10, color=TEXT, va="top")
    drawn = _draw_planes(figure, grid, rows)
    color_bar(figure, drawn, first=grid[2, 0], last=grid[2, 2], label="reconstruction − truth [HU]")
    for index, view in enumerate(views):
        panels = [figure.add_subplot(grid[row, 3 + index]) for row in range(3)]
        drawn = _draw_reprojection(panels, radiographs[index], reprojected[index], view, named=index == 0)
    color_bar(figure, drawn, first=grid[2, 3], last=grid[2, 4], label="re-projected − radiograph [line integral]")
    save_figure(figure, path)


def hero_figure(
    radiographs: np.ndarray,
    volumes: Mapping[str, np.ndarray],
    path: str | PathLike[str],
    *,
    spacing: float | Sequence[float] = 1.4,
) -> None:
    """Draws the README's picture: two radiographs, then a row of three planes for each named volume.

    Args:
        radiographs: line integrals (2, rows, cols).
        volumes: CT numbers (x, y, z) [HU] by name, for example the reconstruction and the true CT; of one shape.
        path: PNG file; written whole or not at all.
        spacing: voxel size [mm], one number or one per axis.

    Raises:
        ValueError: where a shape is impossible or there is no volume.
    """
    radiographs = _parse_radiographs("radiographs", radiographs)
    if not volumes:
        raise ValueError("volumes must hold at least one volume, got none")
    voxel = _parse_spacing(spacing)
    rows = [
        _Row(name, central_planes(_parse_volume(f"volumes[{name!r}]", hu), voxel), WIDE_WINDOW)
        for name, hu in volumes.items()
    ]
    side = max(plane.extent[0] for plane in rows[0].planes)
    # The radiographs stand one above the other and share the height of all rows.
    film = side * len(rows) / 2
    widths = [film, 0.13 * side, *(plane.extent[1] for plane in rows[0].planes)]
    figure, grid = mosaic(widths, [side] * len(rows), top=0.3)
    films = grid[:, 0].subgridspec(2, 1, hspace=0.02)
    for index, view in enumerate(USUAL_VIEWS):
        axes = figure.add_subplot(films[index])
        draw_radiograph(axes, radiographs[index], view)
        caption(axes, view_title(view))
        if index == 0:
            heading(axes, "two X-rays")
    arrow = figure.add_subplot(grid[:, 1])
    arrow.set_axis_off()
    arrow.text(0.5, 0.5, "→", fontsize=18, color=TEXT, ha="center", va="center")
    _draw_planes(figure, grid, rows, first=2)
    save_figure(figure, path)


def curves_figure(rows: Sequence[Sequence[Diagram]], path: str | PathLike[str], *, title: str = "") -> None:
    """Draws a table of diagrams: what changes goes along the columns, what is measured down the rows.

    Args:
        rows: diagrams, as many in each row.
        path: PNG file; written whole or not at all.
        title: one line above.

    Raises:
        ValueError: where there is no diagram, or the rows differ in length.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"rows must hold the same number of diagrams, at least one, got {[len(row) for row in rows]}")
    figure, panels = blank_figure(len(rows), len(rows[0]))
    for axes_row, row in zip(panels, rows, strict=True):
        for axes, diagram in zip(axes_row, row, strict=True):
            draw_diagram(axes, diagram)
    figure.suptitle(title, fontsize=10, color=TEXT, x=0.01, ha="left")
    save_figure(figure, path)


class _Row(NamedTuple):
    """Planes of one volume, what they are called, and their window (width, level) [HU]; None: a difference."""

    name: str
    planes: list[Plane]
    window: tuple[float, float] | None


def _draw_planes(figure: Figure, grid: GridSpec, rows: Sequence[_Row], *, first: int = 0) -> AxesImage:
    """Draws rows of planes from a column of the grid on, and gives back the last one drawn, for a colour bar."""
    for index, row in enumerate(rows):
        for column, plane in enumerate(row.planes):
            axes = figure.add_subplot(grid[index, first + column])
            drawn = draw_plane(axes, plane, window=row.window)
            if index == 0:
                heading(axes, plane.name)
            if column == 0:
                caption(axes, row.name)
    return drawn


def _draw_reprojection(
    panels: Sequence[Axes], radiograph: np.ndarray, reprojected: np.ndarray, view: str, *, named: bool
) -> AxesImage:
    """Draws a radiograph, the same re-projected, and their difference, which is given back; rows are named or not."""
    draw_radiograph(panels[0], radiograph, view)
    draw_radiograph(panels[1], reprojected, view, like=radiograph)
    drawn = draw_difference(panels[2], reprojected - radiograph, view)
    heading(panels[0], view_title(view))
    if named:
        for axes, name in zip(panels, ("radiograph", "re-projected", "difference"), strict=True):
            caption(axes, name)
    return drawn


def _parse_volume(name: str, hu: np.ndarray) -> np.ndarray:
    hu = np.asarray(hu)
    if hu.ndim != 3 or 0 in hu.shape:
        raise ValueError(f"{name} must be a volume (x, y, z), got shape {hu.shape}")
    return hu


def _parse_radiographs(name: str, image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, dtype=np.float32)
    if image.ndim != 3 or image.shape[0] != 2 or 0 in image.shape:
        raise ValueError(f"{name} must be two radiographs (2, rows, cols), got shape {image.shape}")
    return image


def _parse_spacing(spacing: float | Sequence[float]) -> tuple[float, float, float]:
    steps = np.broadcast_to(np.asarray(spacing, dtype=float), (3,)) if np.size(spacing) in (1, 3) else np.zeros(3)
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"spacing must be one or three positive lengths in mm, got {spacing!r}")
    return float(steps[0]), float(steps[1]), float(steps[2])


def _check_same_shape(name: str, array: np.ndarray, reference: np.ndarray) -> None:
    if array.shape != reference.shape:
        raise ValueError(f"{name} must have shape {reference.shape}, got {array.shape}")
