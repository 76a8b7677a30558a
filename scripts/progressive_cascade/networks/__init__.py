# SPDX-License-Identifier: Apache-2.0
"""The cascade's networks: radiograph features, geometric lifting, the three stages, and the cascade around them."""

from progressive_cascade.networks.cascade import ProgressiveCascade
from progressive_cascade.networks.lifting import lift, voxel_axes
from progressive_cascade.networks.stages import RefinementStage
from progressive_cascade.networks.xray import XrayConditioningModule, XrayFeatures

__all__ = [
    "ProgressiveCascade",
    "RefinementStage",
    "XrayConditioningModule",
    "XrayFeatures",
    "lift",
    "voxel_axes",
]
