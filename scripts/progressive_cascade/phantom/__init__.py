# SPDX-License-Identifier: Apache-2.0
"""Procedural thoraxes: any number of different, seeded patients, with their anatomy labels.

Random numbers become lengths in mm and HU before any voxel exists (:mod:`.patient`); shapes are signed distances and
chains of capsules in the patient's frame; :mod:`.raster` and :mod:`.tubes` paint them on the grid that is asked for.
"""

from __future__ import annotations

from progressive_cascade.phantom.generate import Phantom, generate_phantom
from progressive_cascade.phantom.labels import LABELS

__all__ = ["LABELS", "Phantom", "generate_phantom"]
