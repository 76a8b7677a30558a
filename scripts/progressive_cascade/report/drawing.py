# SPDX-License-Identifier: Apache-2.0
"""The parts of the pictures of report.py: slices turned as they are read, panels on a common millimetre scale.

matplotlib is imported where it is drawn with, because `import progressive_cascade` must not pull it in.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from progressive_cascade.geometry.views import view_axes
from progressive_cascade.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec, SubplotSpec
    from matplotlib.image import AxesImage

ERROR_LIMIT_HU = 500.0
"""End of the colour scale of errors [HU]."""
DIFFERENCE_LIMIT = 0.5
"""End of the colour scale of differences between line integrals (no unit)."""
USUAL_VIEWS = ("pa", "left_lateral")
"""The views of a pair, where none are named."""
TEXT = "#dfe2e6"
"""Colour of titles."""
FAINT = "#9aa1ab"
"""Colour of axes."""
BACKGROUND = "#0c0d10"
"""Colour behind everything."""
DPI = 160
"""Resolution of all pictures [dots per inch]."""

# Blue below, black at zero, amber above: zero vanishes into the background and only errors shine.
_DIVERGING = ("#9be1ff", "#2f8fd0", "#123a5c", BACKGROUND, "#6b2f0c", "#e07b1f", "#ffe0a3")
_NAMES = {"pa": "PA", "ap": "AP", "left_lateral": "Left lateral", "right_lateral": "Right lateral"}
_SCALE_BAR_MM = 50.0
# Width of the Gaussian as a fraction of the image, and gain; chosen by eye on simulated chests.
_FILM_BANDS = ((0.03, 0.8), (0.08, 0.4))
_FILM_GAMMA = 1.2
_INCHES_PER_MM = 1 / 130.0
_GAP_INCHES = 0.04


@dataclass(frozen=True)
class Plane:
    """One slice as an image.

    Args:
        name: axial, coronal or sagittal.
        image: values (rows, cols), row 0 on top.
        extent: height and width [mm].
        sides: the letters at the image's left and right edge.
    """

    name: str
    image: np.ndarray
    extent: tuple[float, float]
    sides: tuple[str, str]


def central_planes(volume: np.ndarray, spacing: tuple[float, float, float]) -> list[Plane]:
    """The three slices through a volume's centre, turned as a radiologist reads them.

    Axial slices are seen from the feet, coronal ones from the front, sagittal ones from the patient's left.

    Args:
        volume: array (x, y, z) along right, anterior, superior.
        spacing: voxel size per axis [mm].

    Returns:
        Axial, coronal, sagittal.
    """
    x, y, z = (size // 2 for size in volume.shape)
    right, anterior, superior = (size * step for size, step in zip(volume.shape, spacing, strict=True))
    return [
        Plane("axial", volume[::-1, ::-1, z].T, (anterior, right), ("R", "L")),
        Plane("coronal", volume[::-1, y, ::-1].T, (superior, right), ("R", "L")),
        Plane("sagittal", volume[x, ::-1, ::-1].T, (superior, anterior), ("A", "P")),
    ]


def mosaic(
    widths: Sequence[float], heights: Sequence[float], *, top: float, bottom: float = _GAP_INCHES
) -> tuple[Figure, GridSpec]:
    """A dark figure with a tight grid of panels on one scale.

    Args:
        widths: of the columns [mm].
        heights: of the rows [mm].
        top: margin [inches].
        bottom: margin [inches].

    Returns:
        The figure and its grid.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A tall column of few rows would make a picture of post-stamp size.
    scale = max(_INCHES_PER_MM, 2.2 / max(heights))
    gaps = _GAP_INCHES * (len(widths) + 1), _GAP_INCHES * (len(heights) - 1)
    width = sum(widths) * scale + gaps[0]
    height = sum(heights) * scale + gaps[1] + top + bottom
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND, dpi=DPI)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(heights),
        len(widths),
        width_ratios=widths,
        height_ratios=heights,
        left=_GAP_INCHES / width,
        right=1 - _GAP_INCHES / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=_GAP_INCHES * len(widths) / (sum(widths) * scale),
        hspace=_GAP_INCHES * len(heights) / (sum(heights) * scale),
    )
    return figure, grid


def draw_plane(axes: Axes, plane: Plane, *, window: tuple[float, float] | None) -> AxesImage:
    """Draws a slice of a CT in a window (width, level) [HU], or an error in colour where there is none."""
    height, width = plane.extent
    if window is None:
        low, high, colors = -ERROR_LIMIT_HU, ERROR_LIMIT_HU, diverging_colors()
    else:
        low, high, colors = window[1] - window[0] / 2, window[1] + window[0] / 2, "gray"
    extent = (0, width, height, 0)
    drawn = axes.imshow(plane.image, cmap=colors, vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    _undress(axes, plane.sides)
    if width > 2 * _SCALE_BAR_MM:
        right, y = width * 0.97, height * 0.965
        bar = axes.plot([right - _SCALE_BAR_MM, right], [y, y], color=TEXT, linewidth=1.0, solid_capstyle="butt")
        _outline(bar[0])
        label = axes.text(right - _SCALE_BAR_MM / 2, height * 0.955, f"{_SCALE_BAR_MM:g} mm", fontsize=6, color=TEXT)
        label.set(ha="center", va="bottom")
        _outline(label)
        axes.set(xlim=(0, width), ylim=(height, 0))
    return drawn


def view_title(view: str) -> str:
    """The name of a view for people.

    Example:
        >>> view_title("left_lateral"), view_title("lao30_cranial15")
        ('Left lateral', 'LAO 30 cranial 15')
    """
    if view in _NAMES:
        return _NAMES[view]
    words = view.replace("_", " ").replace("lao", "LAO ").replace("rao", "RAO ")
    return words.replace("cranial", "cranial ").replace("caudal", "caudal ")


def view_sides(view: str) -> tuple[str, str]:
    """The patient's sides, R, L, A or P, that a view shows on the image's left and right.

    Example:
        >>> view_sides("left_lateral"), view_sides("right_lateral")
        (('A', 'P'), ('P', 'A'))
    """
    x, y, _ = view_axes(view)[1]
    if abs(x) >= abs(y):
        return ("L", "R") if x > 0 else ("R", "L")
    return ("P", "A") if y > 0 else ("A", "P")


def draw_radiograph(axes: Axes, image: np.ndarray, view: str, *, like: np.ndarray | None = None) -> AxesImage:
    """Draws line integrals as a chest film is shown: bone bright, air black, local contrast raised.

    Args:
        axes: where to draw.
        image: line integrals (rows, cols).
        view: name of the view, which says what lies at its sides.
        like: line integrals whose brightness scale to take; default: the image's own.

    Returns:
        The drawn image.
    """
    tone = film_tone(image, like=like)
    drawn = axes.imshow(tone, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    _undress(axes, view_sides(view))
    return drawn


def draw_difference(axes: Axes, difference: np.ndarray, view: str) -> AxesImage:
    """Draws a difference between line integrals (rows, cols) in colour."""
    limit = DIFFERENCE_LIMIT
    drawn = axes.imshow(difference, cmap=diverging_colors(), vmin=-limit, vmax=limit, interpolation="bilinear")
    _undress(axes, view_sides(view))
    return drawn


def film_tone(image: np.ndarray, *, like: np.ndarray | None = None) -> np.ndarray:
    """Line integrals as the brightness of a chest film: bone bright, air black, local contrast raised.

    Args:
        image: line integrals (rows, cols).
        like: line integrals whose brightness scale to take; default: the image's own.

    Returns:
        Brightness in [0, 1], same shape.
    """
    film = film_values(image)
    reference = film if like is None else film_values(like)
    white = max(float(np.quantile(reference, 0.995)), 1e-3)
    return (film / white).clip(0, 1) ** _FILM_GAMMA


def film_values(image: np.ndarray) -> np.ndarray:
    """Raises the local contrast of line integrals, as the display processing of a digital detector does.

    Unsharp masking, linear: `p + sum_i a_i (p - G_i p)` with a Gaussian G of 3 % and one of 8 % of the width.

    Args:
        image: line integrals (rows, cols).

    Returns:
        Display values, same shape; for the eye, not for measurement.
    """
    image = np.asarray(image, dtype=np.float32)
    rows, cols = image.shape
    film = image.copy()
    for width, gain in _FILM_BANDS:
        film += gain * (image - _smoothing(rows, width * cols) @ image @ _smoothing(cols, width * cols).T)
    return film


@functools.lru_cache(maxsize=8)
def _smoothing(size: int, sigma: float) -> np.ndarray:
    """A Gaussian along a line mirrored at its ends, (size, size): at widths of many pixels faster than its taps."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(np.eye(size, dtype=np.float32), sigma, axis=0)


def diverging_colors() -> Colormap:
    """Colours of errors, dark at zero."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("error", _DIVERGING)


def heading(axes: Axes, text: str) -> None:
    """Names a column above its first panel."""
    axes.set_title(text, fontsize=9, color=TEXT, pad=5)


def caption(axes: Axes, text: str) -> None:
    """Names a panel in its upper left corner."""
    label = axes.text(0.025, 0.975, text, transform=axes.transAxes, fontsize=7.5, color=TEXT, ha="left", va="top")
    _outline(label)


def color_bar(figure: Figure, drawn: AxesImage, *, first: SubplotSpec, last: SubplotSpec, label: str) -> None:
    """Adds a horizontal colour bar below the panels from `first` to `last`."""
    left, right = first.get_position(figure).x0, last.get_position(figure).x1
    middle, width = (left + right) / 2, (right - left) * 0.5
    inch = 1 / figure.get_figheight()
    axes = figure.add_axes((middle - width / 2, 0.36 * inch, width, 0.08 * inch))
    bar = figure.colorbar(drawn, cax=axes, orientation="horizontal", extend="both")
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.tick_params(labelsize=7, colors=FAINT, length=2, pad=2)
    axes.set_xlabel(label, fontsize=7.5, color=FAINT, labelpad=1)


def save_figure(figure: Figure, path: str | PathLike[str]) -> None:
    """Writes the figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=BACKGROUND)


def _undress(axes: Axes, sides: tuple[str, str]) -> None:
    """Removes the axes and marks the sides of the patient."""
    axes.set_axis_off()
    for x, letter, align in ((0.02, sides[0], "left"), (0.98, sides[1], "right")):
        label = axes.text(x, 0.5, letter, transform=axes.transAxes, fontsize=7.5, color=TEXT, ha=align, va="center")
        _outline(label)


def _outline(artist: Artist) -> None:
    """Sets light strokes off from bright anatomy."""
    from matplotlib.patheffects import withStroke

    artist.set_path_effects([withStroke(linewidth=2.0, foreground=BACKGROUND, alpha=0.75)])
