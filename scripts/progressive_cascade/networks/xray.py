# SPDX-License-Identifier: Apache-2.0
"""What the stages read from the radiographs: a feature pyramid per view, and tokens that know both views."""

from typing import List, NamedTuple, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE
from progressive_cascade.networks.blocks import ResidualBlock, SelfAttentionBlock, conv
from progressive_cascade.networks.lifting import pixel_rays

TOKEN_STRIDE = 32
"""Pixels of the radiograph per side of a token."""
# Line integrals through a thorax span about 0..8; this maps them to about -1..1.5.
_LINE_INTEGRAL_MEAN = 2.0
_LINE_INTEGRAL_SCALE = 0.4
# Half the cube [mm]: the unit of the coordinates that the U-Nets read.
_HALF_EXTENT = VOLUME_SHAPE[0] * VOXEL_SIZE / 2.0


class XrayFeatures(NamedTuple):
    """Output of :class:`XrayConditioningModule` for (b, view, s, s) radiographs.

    Attributes:
        fine: (b, view, c, s/2, s/2), for stage 3.
        medium: (b, view, c, s/4, s/4), for stage 2.
        coarse: (b, view, c, s/8, s/8), for stage 1.
        tokens: (b, view * (s/32)², dim), the context of both views.
    """

    fine: Tensor
    medium: Tensor
    coarse: Tensor
    tokens: Tensor


def normalize_line_integrals(
    image: Tensor, mean: float = _LINE_INTEGRAL_MEAN, scale: float = _LINE_INTEGRAL_SCALE
) -> Tensor:
    """Line integrals to the range the convolutions work in."""
    return (image - mean) * scale


class XrayConditioningModule(nn.Module):
    """A shared 2-D encoder, and a vision transformer over the tokens of both views.

    Downsampling is by pixel-unshuffle, so that every level covers the detector exactly and lifting needs no offset.
    The transformer's context returns to each level in the stage that reads it (:class:`ScaleAdapter`), so that a
    frozen encoder holds no untrained part. Every token is told which ray of the patient's world it lies on, so that it
    can be found by its place wherever source and detector stand.

    Args:
        image_size: pixels per side, a multiple of 32.
        num_views: radiographs per patient.
        channels: of the levels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image size.
        dim: channels of a token.
        depth: transformer blocks; 0: tokens know their own patch alone.
        num_heads: attention heads.
        cross_view: tokens attend to both views; otherwise each to its own.
    """

    def __init__(
        self,
        *,
        image_size: int = 512,
        num_views: int = 2,
        channels: Sequence[int] = (12, 24, 48, 96, 128),
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        cross_view: bool = True,
    ) -> None:
        super().__init__()
        if image_size % TOKEN_STRIDE:
            raise ValueError(f"image_size must be a multiple of {TOKEN_STRIDE}, got {image_size}")
        if len(channels) != 5:
            raise ValueError(f"encoder_channels must be five numbers, one per level, got {list(channels)}")
        self.image_size = image_size
        self.num_views = num_views
        self.channels = list(channels)
        inputs = [1, *channels[:-1]]
        self.down = nn.ModuleList(conv(2, 4 * before, after) for before, after in zip(inputs, channels, strict=True))
        self.encode = nn.ModuleList(ResidualBlock(2, width) for width in channels)
        self.cross_view = cross_view
        side = image_size // TOKEN_STRIDE
        self.token_side = side
        self.to_tokens = nn.Linear(channels[-1], dim)
        self.position = nn.Parameter(torch.randn(1, 1, side * side, dim) * 0.02)
        self.view = nn.Parameter(torch.randn(1, num_views, 1, dim) * 0.02)
        self.half_extent = _HALF_EXTENT
        self.rays = nn.Linear(6, dim)
        self.blocks = nn.ModuleList(SelfAttentionBlock(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor, matrices: Tensor) -> XrayFeatures:
        """Encode radiographs.

        Args:
            image: line integrals (b, view, image_size, image_size).
            matrices: (b, view, 3, 4), RAS mm about the isocenter to pixels.

        Returns:
            The pyramid and the tokens.
        """
        b, views, rows, cols = image.shape
        if views != self.num_views or rows != self.image_size or cols != self.image_size:
            raise ValueError(
                f"image must have shape (b, {self.num_views}, {self.image_size}, {self.image_size}), got {image.shape}"
            )
        x = normalize_line_integrals(image).reshape(b * views, 1, rows, cols)
        levels: List[Tensor] = []
        for down, encode in zip(self.down, self.encode):
            x = encode(down(F.pixel_unshuffle(x, 2)))
            levels.append(x)
        side = self.token_side
        tokens = self.to_tokens(x.flatten(2).transpose(1, 2)).reshape(b, views, side * side, -1)
        rays = self.rays(pixel_rays(matrices, side, self.image_size, self.half_extent))
        tokens = tokens + self.position + self.view + rays
        tokens = tokens.flatten(1, 2) if self.cross_view else tokens.flatten(0, 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = tokens.reshape(b, views * side * side, -1)
        shaped: List[Tensor] = []
        for level in levels:
            shaped.append(level.reshape(b, views, level.shape[1], level.shape[2], level.shape[3]))
        return XrayFeatures(fine=shaped[0], medium=shaped[1], coarse=shaped[2], tokens=self.norm(tokens))
