# SPDX-License-Identifier: Apache-2.0
"""Draw the figure of bundle/docs/PROJECTOR.md: how slices, a virtual detector and single rays project.

python -m progressive_cascade.report.projector_figure [--output bundle/docs/projector.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from progressive_cascade.io import atomic_path
from progressive_cascade.paths import bundle_root

OUTPUT = bundle_root() / "docs" / "projector.png"
SOURCE = (-7.0, 0.0)
RAY, SLICE, REAL, VIRTUAL = "#c2410c", "#94a3b8", "#0f172a", "#2563eb"


def draw_volume(axes: Axes, title: str) -> None:
    """Slices of a volume, and the source."""
    for x in np.arange(-1.75, 2.0, 0.5):
        axes.plot([x, x], [-2, 2], color=SLICE, lw=1)
    axes.plot(*SOURCE, "o", color=RAY, ms=7)
    axes.annotate("source", SOURCE, (0, 9), textcoords="offset points", ha="center")
    axes.set_title(title, fontsize=11)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_xlim(-7.8, 5.2)
    axes.set_ylim(-3.8, 3.7)


def draw_ray(axes: Axes, end: np.ndarray, *, crossings: bool = True) -> None:
    """A ray to a pixel, and where it crosses the slices."""
    axes.plot(*np.stack([SOURCE, end], axis=1), color=RAY, lw=1)
    if crossings:
        x = np.arange(-1.75, 2.0, 0.5)
        y = SOURCE[1] + (x - SOURCE[0]) * (end[1] - SOURCE[1]) / (end[0] - SOURCE[0])
        inside = np.abs(y) < 2
        axes.plot(x[inside], y[inside], ".", color=RAY, ms=5)


def draw() -> plt.Figure:
    """The three panels."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2))
    draw_volume(panels[0], "detector parallel to the slices:\na scale and a shift per slice")
    panels[0].plot([4, 4], [-3.2, 3.2], color=REAL, lw=3)
    for y in (-2.4, -0.8, 0.8, 2.4):
        draw_ray(panels[0], np.array([4, y]))
    panels[0].annotate("detector", (4, -3.2), (0, -13), textcoords="offset points", ha="center")

    draw_volume(panels[1], "oblique: the same onto a virtual detector,\nthen one homography")
    panels[1].plot([0, 0], [-2.3, 2.3], color=VIRTUAL, lw=2.5)
    panels[1].annotate("virtual", (0, -2.3), (0, -13), textcoords="offset points", ha="center", color=VIRTUAL)
    along = np.array([-0.5, 1.0]) / np.hypot(0.5, 1.0)
    for t in (-3.2, 3.2):
        draw_ray(panels[1], np.array([3.6, 0.0]) + t * 0.8 * along, crossings=False)
    ends = np.array([3.6, 0.0]) + np.array([[-3.2], [3.2]]) * along
    panels[1].plot(*ends.T, color=REAL, lw=3)
    for t in (-1.3, 1.3):
        end = np.array([3.6, 0.0]) + t * along
        draw_ray(panels[1], end, crossings=False)
        at = SOURCE[1] + (0 - SOURCE[0]) * (end[1] - SOURCE[1]) / (end[0] - SOURCE[0])
        panels[1].plot(0, at, "o", color=VIRTUAL, ms=5)
        panels[1].plot(*end, "o", color=REAL, ms=5)

    draw_volume(panels[2], "anything else, and gradients for the pose:\nray by ray (Joseph), each along its own axis")
    steep = np.array([[4.2, -2.6], [2.4, 3.6]])
    panels[2].plot(*steep.T, color=REAL, lw=3)
    for t in (0.1, 0.5, 0.9):
        draw_ray(panels[2], steep[0] + t * (steep[1] - steep[0]))
    figure.tight_layout()
    return figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw the figure of bundle/docs/PROJECTOR.md.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    with atomic_path(options.output) as temporary:
        draw().savefig(temporary, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
