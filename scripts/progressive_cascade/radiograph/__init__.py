# SPDX-License-Identifier: Apache-2.0
"""Radiographs as they come: what DICOM headers say of the geometry, and mistakes that the picture shows."""

from __future__ import annotations

from progressive_cascade.radiograph.check import check_views
from progressive_cascade.radiograph.dicom_geometry import beam_from_dicom, beam_from_dicoms

__all__ = [
    "beam_from_dicom",
    "beam_from_dicoms",
    "check_views",
]
