# SPDX-License-Identifier: Apache-2.0
"""Stage 1 whose weights change in a few directions alone: W + U V of low rank (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from progressive_cascade.networks import ProgressiveCascade


class LowRank(nn.Module):
    """A change of a convolution's weights, none at first.

    Args:
        weight: (out, in, ...), seen as a matrix (out, rest).
        rank: of the change.
        generator: of the first V; U is zero.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rest = weight[0].numel()
        self.left = nn.Parameter(torch.zeros(len(weight), rank))
        self.right = nn.Parameter(torch.randn(rank, rest, generator=generator) / math.sqrt(rest))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weights, as shaped as those."""
        return weight + (self.left @ self.right).reshape(weight.shape)


def with_low_rank(network: ProgressiveCascade, rank: int) -> tuple[ProgressiveCascade, tuple[str, ...]]:
    """A copy of a cascade whose first stage's convolutions have changes of low rank beside their weights.

    Args:
        network: the cascade.
        rank: of every change.

    Returns:
        The copy, and the names of the changes among the first stage's parameters.
    """
    copy, generator = deepcopy(network), torch.Generator().manual_seed(0)
    first = copy.stages[0]
    for module in first.modules():
        if isinstance(module, nn.Conv3d):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, generator))
    names = [name for name, _ in first.named_parameters()]
    return copy.eval(), tuple(name for name in names if name.endswith((".left", ".right")))
