# SPDX-License-Identifier: Apache-2.0
"""Pictures of radiographs, volumes and geometries."""

from __future__ import annotations

from progressive_cascade.report.diagrams import Curve, Diagram, draw_diagram
from progressive_cascade.report.drawing import central_planes, film_values
from progressive_cascade.report.figures import (
    comparison_figure,
    curves_figure,
    hero_figure,
    radiographs_figure,
    volume_figure,
)

__all__ = [
    "Curve",
    "Diagram",
    "central_planes",
    "comparison_figure",
    "curves_figure",
    "draw_diagram",
    "film_values",
    "hero_figure",
    "radiographs_figure",
    "volume_figure",
]
