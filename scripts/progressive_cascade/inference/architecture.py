# SPDX-License-Identifier: Apache-2.0
"""The architecture of a cascade, read off the names and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from progressive_cascade.geometry import ConeBeam


def architecture_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of :class:`ProgressiveCascade` read off the shapes of its parameters."""
    image_size = int(state["detector_size"])
    pixel = ConeBeam().pixel_spacing[0] * ConeBeam().detector_shape[0] / image_size
    stage = _count(state, "stages.")
    first = "stages.0."
    views, lifted = state["projection_matrices"].shape[0], state[f"{first}unet.enter.weight"].shape[1] - 11
    arguments = {
        "stage": stage,
        # The matrices in the state dict replace this geometry's; only its detector's shape matters here.
        "geometry": ConeBeam(detector_shape=(image_size, image_size), pixel_spacing=(pixel, pixel)),
        "unet_channels": [_unet_channels(state, f"stages.{index}.unet.") for index in range(stage)],
        "cross_attention": f"{first}unet.attend.norm.weight" in state,
        "lift_pixels": lifted > 0,
        "lift_channels": max(0, lifted // views - 16),
    }
    if "xray.position" not in state:
        return arguments
    return {
        **arguments,
        "encoder_channels": [state[f"xray.encode.{level}.conv1.weight"].shape[0] for level in range(5)],
        "token_dim": state["xray.position"].shape[3],
        "vit_depth": _count(state, "xray.blocks."),
    }


def _unet_channels(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    levels = _count(state, f"{prefix}encode.")
    finer = [state[f"{prefix}encode.{level}.0.conv1.weight"].shape[0] for level in range(levels)]
    return [*finer, state[f"{prefix}before.conv1.weight"].shape[0]]


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
