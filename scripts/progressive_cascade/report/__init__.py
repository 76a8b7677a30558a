# SPDX-License-Identifier: Apache-2.0
"""Pictures of radiographs, volumes and geometries, and pages that show a case."""

from __future__ import annotations

from progressive_cascade.report.borders import borders_figure
from progressive_cascade.report.diagrams import Curve, Diagram, draw_diagram
from progressive_cascade.report.drawing import central_planes, film_values
from progressive_cascade.report.figures import (
    comparison_figure,
    curves_figure,
    hero_figure,
    radiographs_figure,
    volume_figure,
)
from progressive_cascade.report.finished import read_case
from progressive_cascade.report.index import index_page
from progressive_cascade.report.page import ReportCase, write_page

__all__ = [
    "Curve",
    "Diagram",
    "ReportCase",
    "borders_figure",
    "central_planes",
    "comparison_figure",
    "curves_figure",
    "draw_diagram",
    "film_values",
    "hero_figure",
    "index_page",
    "radiographs_figure",
    "read_case",
    "volume_figure",
    "write_page",
]
