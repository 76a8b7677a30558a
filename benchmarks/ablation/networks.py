# SPDX-License-Identifier: Apache-2.0
"""The family that knows no geometry: 2-D encoders whose channels become depth (Ying et al., X2CT-GAN, 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade import ConeBeam
from progressive_cascade.consistency import shrink_radiographs
from progressive_cascade.networks.blocks import ResidualBlock, channels_to_space, conv
from progressive_cascade.networks.stages import LiftedUNet
from progressive_cascade.networks.xray import normalize_line_integrals


class ChannelToDepth(nn.Module):
    """Two radiographs to a volume by an encoder per view whose channels are read as depth, and a 3-D U-Net.

    Args:
        geometry: for the size of the detector, a square.
        depth_channels: channels each view contributes to the U-Net.
        unet_channels: widths of the U-Net, on half the grid.
    """

    def __init__(
        self, *, geometry: ConeBeam, depth_channels: int = 8, unet_channels: tuple[int, ...] = (24, 64, 88), **_: Any
    ) -> None:
        super().__init__()
        self.grid = geometry.detector_shape[0] // 8
        self.depth_channels = depth_channels
        width = 48
        self.encoders = nn.ModuleList(
            nn.Sequential(
                conv(2, 16, width),
                ResidualBlock(2, width),
                ResidualBlock(2, width),
                conv(2, width, self.grid // 2 * depth_channels, 1),
            )
            for _ in geometry.views
        )
        self.unet = LiftedUNet(depth_channels * len(geometry.views), 8, channels=unet_channels)
        nn.init.constant_(self.unet.out.bias, 0.3)  # pyright: ignore[reportArgumentType]

    def forward(self, image: Tensor, projection_matrices: Tensor, calibrated: Tensor | None = None) -> Tensor:
        """image (b, 2, s, s) PA and lateral -> (b, 1, s/8, s/8, s/8) in [0, 1]."""
        small, _ = shrink_radiographs(image, projection_matrices, 2 * self.grid)
        half = self.grid // 2
        volumes = []
        for view, encoder in enumerate(self.encoders):
            maps = encoder(F.pixel_unshuffle(normalize_line_integrals(small[:, view : view + 1]), 4))
            # (b, c, depth, row, col): rows run down, columns towards -x in the PA, towards -y in the lateral.
            depth = maps.reshape(len(maps), self.depth_channels, half, half, half).flip(3, 4)
            volumes.append(depth.permute(0, 1, 4, 2, 3) if view == 0 else depth.permute(0, 1, 2, 4, 3))
        return channels_to_space(self.unet(torch.cat(volumes, dim=1), image).float(), 2)
