# SPDX-License-Identifier: Apache-2.0
"""Two X-rays in, a 256³ CT out: a progressive cascade of MONAI components."""

from __future__ import annotations

from progressive_cascade.geometry import ConeBeam, load_geometry, save_geometry, volume_affine
from progressive_cascade.projector import backproject, line_integrals

__version__ = "0.1.0"

__all__ = [
    "ConeBeam",
    "__version__",
    "backproject",
    "line_integrals",
    "load_geometry",
    "save_geometry",
    "volume_affine",
]
