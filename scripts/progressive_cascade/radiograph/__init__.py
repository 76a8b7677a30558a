# SPDX-License-Identifier: Apache-2.0
"""Radiographs as they come: what DICOM headers say of the geometry, and mistakes that the picture shows."""
