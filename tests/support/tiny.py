# SPDX-License-Identifier: Apache-2.0
"""Settings that make of any workflow a miniature of seconds."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "geometry": {
        "source_to_isocenter": 1500,
        "source_to_detector": 1800,
        "detector_shape": [64, 64],
        "pixel_spacing": [6.72, 6.72],
    },
    "unet_channels": [[4, 8], [4, 8], [4, 8]],
    "num_workers": 0,
    "num_phantoms": 1,
    "num_validation_phantoms": 1,
    "batch_size": 1,
    "epochs": 1,
    "simulation_grid": 32,
    "amp": False,
}
"""A miniature of the cascade: grids of 8, 16 and 32 voxels."""
