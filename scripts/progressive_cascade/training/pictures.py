# SPDX-License-Identifier: Apache-2.0
"""What a validation's first case looks like: slices of truth and reconstruction, for TensorBoard and summary."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.attenuation import hu_to_unit

AXES = ("sagittal", "coronal", "axial")


def slices(volume: Tensor) -> list[Tensor]:
    """The middle sagittal, coronal and axial slice as they are read: head or front up, the patient's right on the left.

    Args:
        volume: (x, y, z), +x right, +y front, +z head.

    Returns:
        Three pictures (rows, cols).
    """
    x, y, z = (side // 2 for side in volume.shape)
    # Rows from the top down, columns from the left: sagittal front left, coronal and axial the patient's right left.
    pictures = (volume[x].flip(0, 1).T, volume[:, y].flip(0, 1).T, volume[:, :, z].flip(0, 1).T)
    return [picture.contiguous() for picture in pictures]


def truth_slices(batch: Mapping[str, Any]) -> tuple[list[None], Tensor]:
    """A validation batch as (image, label) of MONAI's ``TensorBoardImageHandler``: the truth's slices side by side."""
    label = torch.as_tensor(batch["label"]).float()
    return [None], _beside(hu_to_unit(label)[:, 0])


def prediction_slices(output: Mapping[str, Any]) -> Tensor:
    """An evaluator's output as that handler's prediction: the slices side by side (b, 1, rows, cols)."""
    return _beside(output["pred"][:, 0].detach().float())


def to_bytes(picture: Tensor, *, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Grey values as uint8, on the CPU."""
    return ((picture.detach().float().cpu() - low) / max(high - low, 1e-9)).clamp(0, 1).mul(255).round().to(torch.uint8)


def to_data_url(picture: Tensor) -> str:
    """A grey picture (rows, cols), uint8, as a PNG within a page."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.numpy())).save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _beside(volumes: Tensor) -> Tensor:
    return torch.stack([torch.cat(slices(volume), dim=1)[None] for volume in volumes.cpu()])
