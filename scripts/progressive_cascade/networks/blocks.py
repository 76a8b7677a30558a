# SPDX-License-Identifier: Apache-2.0
"""Blocks the networks share: residual convolutions, normalisation voxel by voxel, attention, and voxel shuffling.

MONAI's attention blocks need einops; these need torch alone and stay scriptable. There is no normalisation over space
anywhere: a window must come out the same whether it is cut from the volume before or after.
"""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def conv(spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
    """A size-preserving convolution in 2-D or 3-D."""
    layer = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return layer(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def zero_init(layer: nn.Module) -> nn.Module:
    """Start a layer at zero, so that the residual branch it ends begins as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def space_to_channels(volume: Tensor, factor: int) -> Tensor:
    """(b, c, x f, y f, z f) -> (b, c f³, x, y, z): MONAI's pixelunshuffle for three dimensions, scriptable."""
    b, c, x, y, z = volume.shape
    x, y, z = x // factor, y // factor, z // factor
    volume = volume.reshape(b, c, x, factor, y, factor, z, factor)
    return volume.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * factor * factor * factor, x, y, z)


def channels_to_space(volume: Tensor, factor: int) -> Tensor:
    """(b, c f³, x, y, z) -> (b, c, x f, y f, z f), the inverse of :func:`space_to_channels`."""
    b, c, x, y, z = volume.shape
    channels = c // (factor * factor * factor)
    volume = volume.reshape(b, channels, factor, factor, factor, x, y, z)
    return volume.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, channels, x * factor, y * factor, z * factor)


class Block(nn.Module):
    """A block that can trade compute for memory: with ``gradient_checkpointing`` only its inputs are kept."""

    gradient_checkpointing: bool

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """One tensor in, one of the same shape out; a block that reads more has a forward of its own."""
        if not torch.jit.is_scripting():
            if self.gradient_checkpointing and self.training:
                return checkpoint(self.compute, x, use_reentrant=False)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """What the block does."""
        raise NotImplementedError


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel or voxel, without a scale of its own: a convolution follows.

    It knows nothing of the neighbours, so that a window is normalised as the whole volume is (Liu et al., A ConvNet for
    the 2020s, 2022, doi 10.1109/CVPR52688.2022.01167). A scale's gradient, summed over a volume in bfloat16, would be
    off by a factor of ten.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, ...) -> (b, c, ...)."""
        x = F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


class ResidualBlock(Block):
    """x + conv(act(conv(act(x)))), its last convolution starting at zero; or x + conv(act(conv(norm(x)))).

    Args:
        spatial_dims: 2 or 3.
        channels: in and out.
        normalize: normalise the branch's input over its channels in place of activating it.
    """

    def __init__(self, spatial_dims: int, channels: int, *, normalize: bool = False) -> None:
        super().__init__()
        self.enter = ChannelNorm(channels) if normalize else nn.SiLU()
        self.conv1 = conv(spatial_dims, channels, channels)
        self.conv2 = zero_init(conv(spatial_dims, channels, channels))

    def compute(self, x: Tensor) -> Tensor:
        """(b, c, ...) -> (b, c, ...)."""
        return x + self.conv2(F.silu(self.conv1(self.enter(x))))


class Attention(nn.Module):
    """Multi-head attention by scaled dot products, of a sequence to itself or to a context.

    Args:
        dim: channels of the sequence.
        num_heads: heads; must divide ``dim``.
        context_dim: channels of the context; default: self-attention.
    """

    def __init__(self, dim: int, num_heads: int, context_dim: Optional[int] = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide the embedding {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim if context_dim is None else context_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (b, n, dim) attends to context (b, m, context_dim) -> (b, n, dim)."""
        b, n, dim = x.shape
        q = self.query(x).reshape(b, n, self.num_heads, dim // self.num_heads).transpose(1, 2)
        kv = self.key_value(context).reshape(b, context.shape[1], 2, self.num_heads, dim // self.num_heads)
        kv = kv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, kv[0], kv[1])
        return self.out(attended.transpose(1, 2).reshape(b, n, dim))


class SelfAttentionBlock(Block):
    """Pre-norm self-attention and MLP.

    Args:
        dim: channels.
        num_heads: heads.
        mlp_ratio: hidden width of the MLP over ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = _mlp(dim, mlp_ratio)

    def compute(self, x: Tensor) -> Tensor:
        """x (b, n, dim) -> (b, n, dim)."""
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, normed)
        return x + self.mlp(self.norm_mlp(x))


class VolumeCrossAttention(Block):
    """Lets a coarse volume look at X-ray tokens: voxels are the queries of a zero-initialised residual.

    Args:
        channels: of the volume.
        num_heads: heads.
        context_dim: channels of the X-ray tokens.
    """

    def __init__(self, channels: int, num_heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, num_heads, context_dim)
        zero_init(self.attention.out)

    def forward(self, volume: Tensor, context: Tensor) -> Tensor:
        """volume (b, c, x, y, z), context (b, m, context_dim) -> (b, c, x, y, z)."""
        if not torch.jit.is_scripting():
            if self.gradient_checkpointing and self.training:
                return checkpoint(self.compute, volume, context, use_reentrant=False)
        return self.compute(volume, context)

    def compute(self, volume: Tensor, context: Tensor) -> Tensor:
        """The block itself."""
        tokens = volume.flatten(2).transpose(1, 2)
        attended = self.attention(self.norm(tokens), context)
        return volume + attended.transpose(1, 2).reshape(volume.shape)


def _mlp(dim: int, ratio: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))
