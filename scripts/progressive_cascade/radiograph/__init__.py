# SPDX-License-Identifier: Apache-2.0
"""Radiographs as they come: files to pixels and facts with their sources, onto the detector, in pairs; mistakes."""

from __future__ import annotations

from progressive_cascade.radiograph.check import check_views
from progressive_cascade.radiograph.dicom_geometry import beam_from_dicom, beam_from_dicoms

__all__ = [
    "beam_from_dicom",
    "beam_from_dicoms",
    "check_views",
]
