# SPDX-License-Identifier: Apache-2.0
"""A small network beside the cascade: how far from the truth a reconstruction is expected to be, block by block."""

import math
from typing import List, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade.networks.blocks import ResidualBlock, channels_to_space, conv, space_to_channels, zero_init

NUM_INPUTS = 10
"""Channels of the input; :func:`progressive_cascade.inference.uncertainty.describe` says which."""
MIN_SIGMA_HU = 1.0
"""Smallest standard deviation before calibration; a CT is rounded to whole HU."""
MAX_SIGMA_HU = 1024.0
"""Largest one, half of the networks' HU window: an error of that size is no knowledge at all."""


class UncertaintyHead(nn.Module):
    """Predicts the standard deviation of a reconstruction's error: a heteroscedastic head outside the cascade.

    A 3-D U-Net of three levels behind a pixel-unshuffle. It sees the reconstruction and its radiographs alone, so that
    it fits any cascade and can be trained after it.

    Args:
        channels: of the three levels, at a half, a quarter and an eighth of the input's grid.
    """

    scale: Tensor
    cascade_sha256: Tensor

    def __init__(self, channels: Sequence[int] = (24, 40, 56)) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.enter = conv(3, 8 * NUM_INPUTS, fine)
        self.encode1 = ResidualBlock(3, fine)
        self.down1 = conv(3, 8 * fine, middle, 1)
        self.encode2 = ResidualBlock(3, middle)
        self.down2 = conv(3, 8 * middle, coarse, 1)
        self.encode3 = ResidualBlock(3, coarse)
        self.up2 = conv(3, coarse, middle, 1)
        self.decode2 = ResidualBlock(3, middle)
        self.up1 = conv(3, middle, fine, 1)
        self.decode1 = ResidualBlock(3, fine)
        self.out = zero_init(conv(3, fine, 8, 1))
        # What calibration on held-out cases multiplies every standard deviation with.
        self.register_buffer("scale", torch.ones(()))
        # The checkpoint whose errors were learned; all zero: none.
        self.register_buffer("cascade_sha256", torch.zeros(32, dtype=torch.uint8))

    def forward(self, inputs: Tensor) -> Tensor:
        """The logarithm of the standard deviation.

        Args:
            inputs: (b, 10, g, g, g), g a multiple of 8.

        Returns:
            log(sigma / HU), (b, 1, g, g, g), float32, always finite.
        """
        first = self.encode1(self.enter(space_to_channels(inputs, 2)))
        second = self.encode2(self.down1(space_to_channels(first, 2)))
        third = self.encode3(self.down2(space_to_channels(second, 2)))
        second = self.decode2(second + _enlarge(self.up2(third), second))
        first = self.decode1(first + _enlarge(self.up1(second), first))
        # Bounds that are smooth: where air is reproduced exactly, the likelihood alone would ask for a sigma of zero.
        share = torch.sigmoid(channels_to_space(self.out(F.silu(first)), 2).float())
        low, high = math.log(MIN_SIGMA_HU), math.log(MAX_SIGMA_HU)
        return low + (high - low) * share + self.scale.log()


def _enlarge(volume: Tensor, like: Tensor) -> Tensor:
    """Trilinear interpolation to another volume's grid."""
    size: List[int] = [like.shape[2], like.shape[3], like.shape[4]]
    return F.interpolate(volume, size, mode="trilinear", align_corners=False)
