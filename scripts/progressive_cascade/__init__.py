# SPDX-License-Identifier: Apache-2.0
"""Two X-rays in, a 256³ CT out: a progressive cascade of MONAI components.

What a script needs is imported from here. Each name is looked up in its room when it is first used, so that
``import progressive_cascade`` itself loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from progressive_cascade.doors import door

if TYPE_CHECKING:
    from progressive_cascade.attenuation import hu_to_mu, mu_to_hu
    from progressive_cascade.geometry import ConeBeam, load_geometry, save_geometry, volume_affine
    from progressive_cascade.inference.reconstruct import load_cascade, reconstruct
    from progressive_cascade.networks import ProgressiveCascade
    from progressive_cascade.phantom import generate_phantom
    from progressive_cascade.projector import DRR, backproject, line_integrals

__version__ = "0.1.0"

__all__ = [
    "DRR",
    "ConeBeam",
    "ProgressiveCascade",
    "__version__",
    "backproject",
    "generate_phantom",
    "hu_to_mu",
    "line_integrals",
    "load_cascade",
    "load_geometry",
    "mu_to_hu",
    "reconstruct",
    "save_geometry",
    "volume_affine",
]

__getattr__ = door(
    __name__,
    {
        "attenuation": ("hu_to_mu", "mu_to_hu"),
        "geometry": ("ConeBeam", "load_geometry", "save_geometry", "volume_affine"),
        "inference.reconstruct": ("load_cascade", "reconstruct"),
        "networks": ("ProgressiveCascade",),
        "phantom": ("generate_phantom",),
        "projector": ("DRR", "backproject", "line_integrals"),
    },
)
