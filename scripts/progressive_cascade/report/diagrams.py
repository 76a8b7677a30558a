# SPDX-License-Identifier: Apache-2.0
"""Curves with bands on the dark ground of the other pictures: what is measured, against what was changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from progressive_cascade.report.drawing import BACKGROUND, DPI, FAINT, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#2f8fd0", "#e07b1f", "#9be1ff", "#ffe0a3")
_MARKERS = "os^D"


@dataclass(frozen=True)
class Curve:
    """One line of a diagram.

    Args:
        label: what it is, for the legend.
        x: positions.
        y: values, one per position.
        low: lower ends of the band around it.
        high: upper ends.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Diagram:
    """Curves that share their axes.

    Args:
        title: above the diagram, may be empty.
        x_label: quantity and unit of the x axis.
        y_label: quantity and unit of the y axis, may be empty where a neighbour on the left says it.
        curves: the lines.
        log_x: whether the x axis is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = False


def blank_figure(num_rows: int, num_columns: int, *, shared: bool = True) -> tuple[Figure, list[list[Axes]]]:
    """A dark figure of diagrams, and their axes by row and column; ``shared`` rows share their y axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * num_columns, 2.0 * num_rows + 0.3), facecolor=BACKGROUND, dpi=DPI)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    return figure, figure.subplots(num_rows, num_columns, sharey="row" if shared else False, squeeze=False).tolist()


def draw_diagram(axes: Axes, diagram: Diagram) -> None:
    """Draws curves with their bands; several are told apart by colour, marker and legend."""
    for curve, color, marker in zip(diagram.curves, _COLORS, _MARKERS, strict=False):
        axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
        axes.plot(curve.x, curve.y, color=color, marker=marker, markersize=3.5, linewidth=1.4, label=curve.label)
    if diagram.log_x:
        axes.set_xscale("log")
    dress(axes, title=diagram.title, x_label=diagram.x_label, y_label=diagram.y_label)
    if len(diagram.curves) > 1:
        axes.legend(fontsize=6.5, frameon=False, labelcolor=TEXT)


def dress(axes: Axes, *, title: str, x_label: str, y_label: str) -> None:
    """Gives a diagram its ground, grid, frame and words."""
    axes.set_facecolor(BACKGROUND)
    axes.grid(color=FAINT, alpha=0.15, linewidth=0.6)
    axes.tick_params(which="both", labelsize=7, colors=FAINT, length=2, pad=2)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.set_xlabel(x_label, fontsize=7.5, color=FAINT, labelpad=2)
    axes.set_ylabel(y_label, fontsize=7.5, color=FAINT, labelpad=2)
    axes.set_title(title, fontsize=9, color=TEXT, pad=5)
