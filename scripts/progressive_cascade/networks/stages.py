# SPDX-License-Identifier: Apache-2.0
"""One stage of the cascade: a residual 3-D U-Net that reads the radiographs where every voxel projects to."""

from itertools import pairwise
from typing import List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade.attenuation import AIR_HU, HU_MAX, HU_MIN
from progressive_cascade.consistency import DataConsistency, shrink_radiographs
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE
from progressive_cascade.networks.blocks import (
    ChannelNorm,
    ResidualBlock,
    VolumeCrossAttention,
    channels_to_space,
    conv,
    space_to_channels,
    zero_init,
)
from progressive_cascade.networks.lifting import lift, voxel_axes
from progressive_cascade.networks.xray import TOKEN_STRIDE, normalize_line_integrals

EXTENT = VOLUME_SHAPE[0] * VOXEL_SIZE
"""Width of the reconstructed cube [mm]."""
# The residual y - A x of an earlier volume is about 0.1; this brings it to the range of the other inputs.
_RESIDUAL_SCALE = 5.0
_PIXEL_MAPS = 2


class StageContext(NamedTuple):
    """What a stage reads from the radiographs, computed once for the whole volume.

    Attributes:
        pixels: radiographs, and the part of them that the volume so far leaves unexplained (b, view, 2, 2g, 2g).
        features: X-ray features to be lifted (b, view, c, g, g); no channels where the stage lifts none.
        tokens: X-ray tokens at the stage's scale (b, m, context_dim).
        matrices: (b, view, 3, 4), RAS mm to pixels of the full detector.
    """

    pixels: Tensor
    features: Tensor
    tokens: Tensor
    matrices: Tensor


class ScaleAdapter(nn.Module):
    """Reads one pyramid level for one stage: the ViT's context fed back down to it, features to lift, and tokens.

    Args:
        level_channels: channels of the pyramid level.
        lift_channels: features per view to lift.
        dim: channels of the ViT's tokens.
        context_dim: channels of the tokens that come out.
        patch: side of a token's patch at this level, in pixels of the level.
    """

    def __init__(self, *, level_channels: int, lift_channels: int, dim: int, context_dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.feed_back = nn.Linear(dim, level_channels)
        self.enter = conv(2, level_channels + 4 * _PIXEL_MAPS, level_channels)
        self.leave = conv(2, level_channels, lift_channels)
        self.from_tokens = nn.Linear(dim, context_dim)
        self.from_patches = nn.Linear(lift_channels * patch * patch, context_dim)
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, level: Tensor, pixels: Tensor, tokens: Tensor, matrices: Tensor) -> StageContext:
        """level (b, view, c, g, g), pixels (b, view, 2, 2g, 2g), tokens (b, m, dim) -> the stage's context."""
        b, views = level.shape[0], level.shape[1]
        side = level.shape[3] // self.patch
        fed = self.feed_back(tokens).reshape(b * views, side, side, -1).permute(0, 3, 1, 2)
        fed = F.interpolate(fed, size=[level.shape[3], level.shape[4]], mode="bilinear", align_corners=False)
        joined = torch.cat((level.flatten(0, 1) + fed, F.pixel_unshuffle(pixels.flatten(0, 1), 2)), dim=1)
        features = self.leave(F.silu(self.enter(joined)))
        patches = F.pixel_unshuffle(features, self.patch).flatten(2).transpose(1, 2)
        patches = patches.reshape(b, views * patches.shape[1], -1)
        context = self.norm(self.from_tokens(tokens) + self.from_patches(patches))
        features = features.reshape(b, views, features.shape[1], features.shape[2], features.shape[3])
        return StageContext(pixels=pixels, features=features, tokens=context, matrices=matrices)


class LiftedUNet(nn.Module):
    """A 3-D U-Net, downsampling by space-to-channels, its last layer starting at zero.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        channels: width of each level; each works on half the grid of the one before.
        context_dim: channels of the X-ray tokens that the coarsest level attends to; None: no attention.
        num_heads: attention heads.
        normalize: normalise every voxel over its channels, at the start of each block and before the last layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        context_dim: Optional[int] = None,
        num_heads: int = 4,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        pairs = list(pairwise(channels))

        def block(width: int) -> ResidualBlock:
            return ResidualBlock(3, width, normalize=normalize)

        self.enter = conv(3, in_channels, channels[0], 1)
        self.encode = nn.ModuleList(
            # The first level costs the most and gets one block, the others two.
            nn.Sequential(*(block(width) for _ in range(1 if level == 0 else 2)))
            for level, width in enumerate(channels[:-1])
        )
        self.down = nn.ModuleList(conv(3, 8 * fine, coarse, 1) for fine, coarse in pairs)
        self.before = block(channels[-1])
        self.attend = None if context_dim is None else VolumeCrossAttention(channels[-1], num_heads, context_dim)
        self.after = block(channels[-1])
        self.up = nn.ModuleList(conv(3, coarse, 8 * fine, 1) for fine, coarse in reversed(pairs))
        self.decode = nn.ModuleList(block(fine) for fine, _ in reversed(pairs))
        self.norm = ChannelNorm(channels[0]) if normalize else nn.Identity()
        self.out = zero_init(conv(3, channels[0], out_channels))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (b, in, x, y, z), tokens (b, m, context_dim) -> (b, out, x, y, z)."""
        x = self.enter(x)
        skips: List[Tensor] = []
        for encode, down in zip(self.encode, self.down):
            x = encode(x)
            skips.append(x)
            x = down(space_to_channels(x, 2))
        x = self.before(x)
        if self.attend is not None:
            x = self.attend(x, tokens)
        x = self.after(x)
        for up, decode in zip(self.up, self.decode):
            x = decode(skips.pop() + channels_to_space(up(x), 2))
        return self.out(F.silu(self.norm(x)))


class RefinementStage(nn.Module):
    """One stage: a residual on the volume so far, from a U-Net on half its grid, and data consistency.

    The radiographs enter by lifting, the pixels themselves and features of a 2-D encoder, and by cross-attention at
    the U-Net's coarsest level. A stage takes any window of the volume whose size is a multiple of `multiple`; a fresh
    one equals its input.

    Args:
        grid: voxels per axis of the whole volume.
        image_size: pixels per side of the radiographs.
        num_views: radiographs per patient.
        level_channels: channels of the pyramid level this stage reads; 0: there is no 2-D encoder.
        dim: channels of the X-ray tokens.
        channels: of the U-Net at 1/2, 1/4, ... of the grid.
        num_heads: attention heads.
        lift_pixels: lift the radiographs and their unexplained part.
        lift_channels: features per view to lift; 0: none.
        cross_attention: whether the coarsest level attends to X-ray tokens.
        consistency_iterations: conjugate-gradient steps at the end.
        normalize: whether the U-Net normalises its features, voxel by voxel.
        gain: factor on the U-Net's output.
        axes: volume axes along (beam, rows, columns) of every view, see :class:`DataConsistency`.
    """

    def __init__(
        self,
        *,
        grid: int,
        image_size: int = 512,
        num_views: int = 2,
        level_channels: int,
        dim: int = 128,
        channels: Sequence[int] = (32, 64, 96),
        num_heads: int = 4,
        lift_pixels: bool = True,
        lift_channels: int = 8,
        cross_attention: bool = True,
        consistency_iterations: int = 4,
        normalize: bool = False,
        gain: float = 1.0,
        axes: Optional[Sequence[int]] = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.image_size = image_size
        self.extent = EXTENT
        self.residual_scale = _RESIDUAL_SCALE
        self.gain = gain
        self.lowest = (AIR_HU - HU_MIN) / (HU_MAX - HU_MIN)
        self.multiple = 2 ** len(channels)
        self.lift_pixels = lift_pixels
        self.lift_features = lift_pixels and lift_channels > 0 and level_channels > 0
        reads_features = level_channels > 0 and (self.lift_features or cross_attention)
        self.adapter: Optional[ScaleAdapter] = None
        if reads_features:
            self.adapter = ScaleAdapter(
                level_channels=level_channels,
                lift_channels=max(lift_channels, 1),
                dim=dim,
                context_dim=channels[-1],
                patch=grid * TOKEN_STRIDE // image_size,
            )
        lifted = 8 * _PIXEL_MAPS * num_views * lift_pixels + num_views * lift_channels * self.lift_features
        self.unet = LiftedUNet(
            8 + lifted + 3,
            8,
            channels=channels,
            context_dim=channels[-1] if cross_attention and reads_features else None,
            num_heads=num_heads,
            normalize=normalize,
        )
        self.consistency = DataConsistency(grid, self.extent / grid, consistency_iterations, axes=axes)

    def context(
        self,
        prior: Tensor,
        level: Tensor,
        tokens: Tensor,
        image: Tensor,
        matrices: Tensor,
        calibrated: Optional[Tensor] = None,
        weights: Optional[Tensor] = None,
    ) -> StageContext:
        """What every window of a volume shares.

        Args:
            prior: the volume so far, whole (b, 1, grid, grid, grid).
            level: pyramid level (b, view, c, s, s).
            tokens: X-ray tokens (b, m, dim).
            image: line integrals (b, view, image_size, image_size).
            matrices: (b, view, 3, 4).
            calibrated: (b,); where it is 0 the unexplained part of the radiographs is unknown and taken as 0.
            weights: of the pixels (b, view, image_size, image_size); where it is 0 nothing is unexplained.

        Returns:
            The context.
        """
        unexplained = self.consistency.residual(prior, image, matrices, weights) * self.residual_scale
        if calibrated is not None:
            unexplained = unexplained * (calibrated.reshape(-1, 1, 1, 1) > 0)
        small, _ = shrink_radiographs(image, matrices, 2 * self.grid, weights)
        pixels = torch.stack((normalize_line_integrals(small), unexplained), dim=2)
        if self.adapter is not None:
            return self.adapter(level, pixels, tokens, matrices)
        return StageContext(pixels=pixels, features=level, tokens=tokens, matrices=matrices)

    def forward(self, window: Tensor, start: List[int], context: StageContext) -> Tensor:
        """Refine a window, without the data consistency.

        Args:
            window: cut from the volume so far (b, 1, x, y, z), in [0, 1]; sizes are multiples of ``multiple``.
            start: its first voxel (x, y, z) in the volume; even numbers.
            context: of the whole volume.

        Returns:
            (b, 1, x, y, z), float32, between vacuum and 1. Every result is held there, whether data consistency follows
            or not: a sample in which air below vacuum suddenly counts has a gradient a hundred times another's.
        """
        size = [window.shape[2], window.shape[3], window.shape[4]]
        voxel = self.extent / self.grid
        at_full = voxel_axes(start, size, voxel, self.extent, window)
        half_start = [start[0] // 2, start[1] // 2, start[2] // 2]
        half_size = [size[0] // 2, size[1] // 2, size[2] // 2]
        at_half = voxel_axes(half_start, half_size, 2.0 * voxel, self.extent, window)
        grid = torch.meshgrid(at_half[0], at_half[1], at_half[2], indexing="ij")
        coordinates = torch.stack((grid[0], grid[1], grid[2])).unsqueeze(0) * (2.0 / self.extent)
        parts = [space_to_channels(window.float() - 0.5, 2), coordinates.expand(window.shape[0], -1, -1, -1, -1)]
        if self.lift_pixels:
            parts.append(space_to_channels(lift(context.pixels, context.matrices, at_full, self.image_size), 2))
        if self.lift_features:
            parts.append(lift(context.features, context.matrices, at_half, self.image_size))
        residual = self.unet(torch.cat(parts, dim=1), context.tokens)
        return (window.float() + self.gain * channels_to_space(residual.float(), 2)).clamp(self.lowest, 1.0)
