# SPDX-License-Identifier: Apache-2.0
"""Where source, patient and detector stand: `ConeBeam`, presets, views, poses, ranges for training, the sidecar."""

from __future__ import annotations

from progressive_cascade.geometry.beam import PRESETS, VOLUME_SHAPE, VOXEL_SIZE, ConeBeam, parse_beam, volume_affine
from progressive_cascade.geometry.sidecar import load_geometry, save_geometry
from progressive_cascade.geometry.variety import (
    TOLERANCE,
    GeometryErrors,
    GeometryRange,
    Misfit,
    parse_errors,
    parse_range,
)
from progressive_cascade.geometry.views import VIEWS

__all__ = [
    "PRESETS",
    "TOLERANCE",
    "VIEWS",
    "VOLUME_SHAPE",
    "VOXEL_SIZE",
    "ConeBeam",
    "GeometryErrors",
    "GeometryRange",
    "Misfit",
    "load_geometry",
    "parse_beam",
    "parse_errors",
    "parse_range",
    "save_geometry",
    "volume_affine",
]
