# SPDX-License-Identifier: Apache-2.0
"""The stages of the cascade: a coarse one from tokens, and residual refiners that take any window of the volume."""

from typing import List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade.consistency import DataConsistency, shrink_radiographs
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE
from progressive_cascade.networks.blocks import (
    CrossAttentionBlock,
    ResidualBlock,
    VolumeCrossAttention,
    channels_to_space,
    conv,
    space_to_channels,
    zero_init,
)
from progressive_cascade.networks.lifting import lift, voxel_axes
from progressive_cascade.networks.xray import normalize_line_integrals

EXTENT = VOLUME_SHAPE[0] * VOXEL_SIZE
"""Width of the reconstructed cube [mm]."""
# The residual y - A x of an earlier stage is about 0.1; this brings it to the range of the other inputs.
_RESIDUAL_SCALE = 5.0


class StageContext(NamedTuple):
    """What a stage reads from the radiographs, computed once for the whole volume.

    Attributes:
        pixels: radiographs, and where there is an earlier volume their unexplained part (b, view, 1 or 2, 2g, 2g).
        features: X-ray features to be lifted (b, view, c, g, g).
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
        pixel_channels: pixel maps that go in at twice the level's resolution.
        lift_channels: features per view to lift.
        dim: channels of the ViT's tokens.
        context_dim: channels of the tokens that come out.
        patch: side of a token's patch at this level, in pixels of the level; covers 2 x 2 of the ViT's tokens.
    """

    def __init__(
        self, *, level_channels: int, pixel_channels: int, lift_channels: int, dim: int, context_dim: int, patch: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.feed_back = nn.Linear(dim, level_channels)
        self.enter = conv(2, level_channels + 4 * pixel_channels, level_channels)
        self.leave = conv(2, level_channels, lift_channels)
        self.from_tokens = nn.Linear(dim, context_dim)
        self.from_patches = nn.Linear(lift_channels * patch * patch, context_dim)
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, level: Tensor, pixels: Tensor, tokens: Tensor, matrices: Tensor) -> StageContext:
        """level (b, view, c, g, g), pixels (b, view, k, 2g, 2g), tokens (b, m, dim) -> the stage's context."""
        b, views = level.shape[0], level.shape[1]
        side = level.shape[3] // self.patch
        fed = self.feed_back(tokens).reshape(b * views, 2 * side, 2 * side, -1).permute(0, 3, 1, 2)
        fed = F.interpolate(fed, size=[level.shape[3], level.shape[4]], mode="bilinear", align_corners=False)
        joined = torch.cat((level.flatten(0, 1) + fed, F.pixel_unshuffle(pixels.flatten(0, 1), 2)), dim=1)
        features = self.leave(F.silu(self.enter(joined)))
        patches = F.pixel_unshuffle(features, self.patch).flatten(2).transpose(1, 2)
        patches = patches.reshape(b, views * patches.shape[1], -1)
        per_view = tokens.reshape(b * views, 2 * side, 2 * side, -1).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(per_view, 2).flatten(2).transpose(1, 2).reshape(b, views * side * side, -1)
        context = self.norm(self.from_tokens(pooled) + self.from_patches(patches))
        features = features.reshape(b, views, features.shape[1], features.shape[2], features.shape[3])
        return StageContext(pixels=pixels, features=features, tokens=context, matrices=matrices)


class CoarseStage(nn.Module):
    """Stage 1: volume tokens on a quarter of the grid attend to each other and to the X-rays, then are decoded.

    Args:
        grid: voxels per axis, a multiple of 4.
        image_size: pixels per side of the radiographs, 8 times ``grid``.
        num_views: radiographs per patient.
        level_channels: channels of the pyramid level this stage reads.
        dim: channels of the X-ray tokens.
        voxel_dim: channels of a volume token.
        depth: transformer blocks.
        num_heads: attention heads.
        channels: of the decoder, which works on half the grid.
        decoder_depth: its residual blocks.
        lift_channels: features per view to lift.
        consistency_iterations: conjugate-gradient steps at the end.
        axes: volume axes along (beam, rows, columns) of every view, see :class:`DataConsistency`.
    """

    def __init__(
        self,
        *,
        grid: int = 64,
        image_size: int = 512,
        num_views: int = 2,
        level_channels: int = 96,
        dim: int = 256,
        voxel_dim: int = 256,
        depth: int = 2,
        num_heads: int = 4,
        channels: int = 64,
        decoder_depth: int = 4,
        lift_channels: int = 16,
        consistency_iterations: int = 6,
        axes: Optional[Sequence[int]] = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.image_size = image_size
        self.extent = EXTENT
        self.adapter = ScaleAdapter(
            level_channels=level_channels,
            pixel_channels=1,
            lift_channels=lift_channels,
            dim=dim,
            context_dim=voxel_dim,
            patch=4,
        )
        lifted = num_views * lift_channels
        self.embed = nn.Linear(64 * num_views + 8 * lifted, voxel_dim)
        self.position = nn.Parameter(torch.randn(1, (grid // 4) ** 3, voxel_dim) * 0.02)
        self.blocks = nn.ModuleList(CrossAttentionBlock(voxel_dim, num_heads, voxel_dim) for _ in range(depth))
        self.to_half = conv(3, voxel_dim, 8 * channels, 1)
        self.join = conv(3, channels + lifted + 8 * num_views, channels)
        self.decode = nn.ModuleList(ResidualBlock(3, channels) for _ in range(decoder_depth))
        self.out = conv(3, channels, 8)
        # The mean of a thorax in its cube, in [0, 1]: a start above vacuum, where the consistency step has a gradient.
        nn.init.constant_(self.out.bias, 0.3)  # pyright: ignore[reportArgumentType]
        self.consistency = DataConsistency(grid, self.extent / grid, consistency_iterations, axes=axes)

    def forward(
        self, level: Tensor, tokens: Tensor, image: Tensor, matrices: Tensor, calibrated: Optional[Tensor] = None
    ) -> Tensor:
        """Reconstruct the coarse volume.

        Args:
            level: pyramid level (b, view, c, grid, grid).
            tokens: X-ray tokens (b, m, dim).
            image: line integrals (b, view, image_size, image_size).
            matrices: (b, view, 3, 4).
            calibrated: (b,), see :class:`DataConsistency`.

        Returns:
            (b, 1, grid, grid, grid) in [0, 1].
        """
        small, _ = shrink_radiographs(image, matrices, 2 * self.grid)
        pixels = normalize_line_integrals(small).unsqueeze(2)
        context = self.adapter(level, pixels, tokens, matrices)
        g, start = self.grid, [0, 0, 0]
        at_full = voxel_axes(start, [g, g, g], self.extent / g, self.extent, image)
        at_half = voxel_axes(start, [g // 2, g // 2, g // 2], 2.0 * self.extent / g, self.extent, image)
        lifted_pixels = lift(context.pixels, matrices, at_full, self.image_size)
        lifted = lift(context.features, matrices, at_half, self.image_size)
        x = torch.cat((space_to_channels(lifted_pixels, 4), space_to_channels(lifted, 2)), dim=1)
        x = self.embed(x.flatten(2).transpose(1, 2)) + self.position
        for block in self.blocks:
            x = block(x, context.tokens)
        x = x.transpose(1, 2).reshape(x.shape[0], -1, g // 4, g // 4, g // 4)
        x = channels_to_space(self.to_half(x), 2)
        x = self.join(torch.cat((x, lifted, space_to_channels(lifted_pixels, 2)), dim=1))
        for decode in self.decode:
            x = decode(x)
        x = channels_to_space(self.out(F.silu(x)).float(), 2)
        return self.consistency(x, image, matrices, calibrated)


class RefineStage(nn.Module):
    """Stages 2 and 3: a residual 3-D U-Net on the upsampled earlier volume and what the radiographs add to it.

    It works on half the grid (space-to-channels), reads the radiographs through lifting and, at its coarsest level,
    through cross-attention, and takes any window of the volume whose size is a multiple of 8. Its last layer starts at
    zero: a fresh stage equals its input.

    Args:
        grid: voxels per axis of the whole volume.
        image_size: pixels per side of the radiographs.
        num_views: radiographs per patient.
        level_channels: channels of the pyramid level this stage reads.
        patch: side of a token's patch at that level.
        dim: channels of the X-ray tokens.
        channels: of the U-Net at 1/2, 1/4 and 1/8 of the grid.
        num_heads: attention heads.
        lift_channels: features per view to lift.
        consistency_iterations: conjugate-gradient steps at the end.
        axes: volume axes along (beam, rows, columns) of every view, see :class:`DataConsistency`.
    """

    def __init__(
        self,
        *,
        grid: int,
        image_size: int = 512,
        num_views: int = 2,
        level_channels: int,
        patch: int,
        dim: int = 256,
        channels: Sequence[int] = (32, 64, 96),
        num_heads: int = 4,
        lift_channels: int = 16,
        consistency_iterations: int = 4,
        axes: Optional[Sequence[int]] = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.image_size = image_size
        self.extent = EXTENT
        self.residual_scale = _RESIDUAL_SCALE
        c1, c2, c3 = channels
        self.adapter = ScaleAdapter(
            level_channels=level_channels,
            pixel_channels=2,
            lift_channels=lift_channels,
            dim=dim,
            context_dim=c3,
            patch=patch,
        )
        self.enter = conv(3, 8 + 16 * num_views + num_views * lift_channels + 3, c1, 1)
        self.encode1 = ResidualBlock(3, c1)
        self.down2 = conv(3, 8 * c1, c2, 1)
        self.encode2 = nn.Sequential(ResidualBlock(3, c2), ResidualBlock(3, c2))
        self.down3 = conv(3, 8 * c2, c3, 1)
        self.encode3 = ResidualBlock(3, c3)
        self.attend = VolumeCrossAttention(c3, num_heads, c3)
        self.decode3 = ResidualBlock(3, c3)
        self.up2 = conv(3, c3, 8 * c2, 1)
        self.decode2 = ResidualBlock(3, c2)
        self.up1 = conv(3, c2, 8 * c1, 1)
        self.decode1 = ResidualBlock(3, c1)
        self.out = zero_init(conv(3, c1, 8))
        self.consistency = DataConsistency(grid, self.extent / grid, consistency_iterations, axes=axes)

    def context(
        self,
        prior: Tensor,
        level: Tensor,
        tokens: Tensor,
        image: Tensor,
        matrices: Tensor,
        calibrated: Optional[Tensor] = None,
    ) -> StageContext:
        """What every window of a volume shares.

        Args:
            prior: the upsampled earlier volume, whole (b, 1, grid, grid, grid).
            level: pyramid level (b, view, c, s, s).
            tokens: X-ray tokens (b, m, dim).
            image: line integrals (b, view, image_size, image_size).
            matrices: (b, view, 3, 4).
            calibrated: (b,); where it is 0 the unexplained part of the radiographs is unknown and taken as 0.

        Returns:
            The context.
        """
        unexplained = self.consistency.residual(prior, image, matrices) * self.residual_scale
        if calibrated is not None:
            unexplained = unexplained * (calibrated.reshape(-1, 1, 1, 1) > 0)
        small, _ = shrink_radiographs(image, matrices, 2 * self.grid)
        pixels = torch.stack((normalize_line_integrals(small), unexplained), dim=2)
        return self.adapter(level, pixels, tokens, matrices)

    def forward(self, window: Tensor, start: List[int], context: StageContext) -> Tensor:
        """Refine a window.

        Args:
            window: cut from the upsampled earlier volume (b, 1, x, y, z), in [0, 1]; sizes are multiples of 8.
            start: its first voxel (x, y, z) in the volume; even numbers.
            context: of the whole volume.

        Returns:
            (b, 1, x, y, z), float32.
        """
        size = [window.shape[2], window.shape[3], window.shape[4]]
        voxel = self.extent / self.grid
        at_full = voxel_axes(start, size, voxel, self.extent, window)
        half_start, half_size = (
            [start[0] // 2, start[1] // 2, start[2] // 2],
            [size[0] // 2, size[1] // 2, size[2] // 2],
        )
        at_half = voxel_axes(half_start, half_size, 2.0 * voxel, self.extent, window)
        grid = torch.meshgrid(at_half[0], at_half[1], at_half[2], indexing="ij")
        coordinates = torch.stack((grid[0], grid[1], grid[2])).unsqueeze(0) * (2.0 / self.extent)
        x = torch.cat(
            (
                space_to_channels(window.float() - 0.5, 2),
                space_to_channels(lift(context.pixels, context.matrices, at_full, self.image_size), 2),
                lift(context.features, context.matrices, at_half, self.image_size),
                coordinates.expand(window.shape[0], -1, -1, -1, -1),
            ),
            dim=1,
        )
        x1 = self.encode1(self.enter(x))
        x2 = self.encode2(self.down2(space_to_channels(x1, 2)))
        x3 = self.encode3(self.down3(space_to_channels(x2, 2)))
        x3 = self.decode3(self.attend(x3, context.tokens))
        x2 = self.decode2(x2 + channels_to_space(self.up2(x3), 2))
        x1 = self.decode1(x1 + channels_to_space(self.up1(x2), 2))
        return window.float() + channels_to_space(self.out(F.silu(x1)).float(), 2)
