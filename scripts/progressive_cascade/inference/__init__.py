# SPDX-License-Identifier: Apache-2.0
"""From two radiographs to a CT: sliding windows, the reconstruction, its uncertainty, the inference workflow."""

from __future__ import annotations

from progressive_cascade.inference.acceptance import check_beam, describe_range, take_beam, trained_range
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.pairs import xray_pair_items
from progressive_cascade.inference.reconstruct import Reconstruction, default_checkpoint, load_cascade
from progressive_cascade.inference.transforms import (
    LoadGeometryd,
    LoadRadiographPaird,
    SetAffined,
    UnitToHUd,
    to_line_integrals,
)
from progressive_cascade.inference.uncertainty import load_uncertainty, predict_sigma

__all__ = [
    "CascadeInferer",
    "LoadGeometryd",
    "LoadRadiographPaird",
    "Reconstruction",
    "SetAffined",
    "UnitToHUd",
    "check_beam",
    "default_checkpoint",
    "describe_range",
    "load_cascade",
    "load_uncertainty",
    "predict_sigma",
    "take_beam",
    "to_line_integrals",
    "trained_range",
    "xray_pair_items",
]
