# SPDX-License-Identifier: Apache-2.0
"""Procedural thoraxes: any number of different, seeded patients, with their anatomy labels.

A population is a table of distributions: `basic`, which the shipped weights were trained on, or `clinical`. Random
numbers become lengths in mm and HU before any voxel exists (:mod:`.patient`); shapes are signed distances and chains of
capsules in the patient's frame; :mod:`.raster` and :mod:`.tubes` paint them on the grid that is asked for.
"""

from __future__ import annotations

from progressive_cascade.phantom.generate import Phantom, generate_phantom
from progressive_cascade.phantom.labels import LABELS
from progressive_cascade.phantom.population import POPULATIONS, parse_population

__all__ = ["LABELS", "POPULATIONS", "Phantom", "generate_phantom", "parse_population"]
