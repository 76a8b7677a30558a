# SPDX-License-Identifier: Apache-2.0
"""Growth: the trained lifted U-Net becomes the start of the full network, which equals it before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.checkpoints import stage_prefix


def grow_state(network: ProgressiveCascade, state: Mapping[str, Tensor], *, stage: int) -> dict[str, Tensor]:
    """A checkpoint with what the network has beyond it: the 2-D network, lifted features, cross-attention.

    What the U-Nets newly read counts for nothing at first: their weights for lifted features and the output of their
    attention are zero. The 2-D network itself is the network's own, fresh one. A part that a trained part would read
    is not added, since the answer would change, nor is a wider or deeper U-Net; a comparison with the architecture
    (:func:`progressive_cascade.networks.checkpoints.check_architecture`) then names what is missing.

    Args:
        network: the cascade to be filled.
        state: content of a checkpoint.
        stage: how many stages the checkpoint holds.

    Returns:
        The state dict of a cascade that gives what the checkpoint's gives.
    """
    own, grown = network.state_dict(), dict(state)
    for part, readers in _parts(stage):
        if not _holds(state, part, *readers):
            grown |= {name: value for name, value in own.items() if name.startswith(part)}
    for prefix in map(stage_prefix, range(1, stage + 1)):
        if not _holds(state, f"{prefix}unet.attend."):
            silent = [name for name in grown if name.startswith(f"{prefix}unet.attend.attention.out.")]
            grown |= {name: torch.zeros_like(grown[name]) for name in silent}
        enter = f"{prefix}unet.enter.weight"
        if enter in state and not _holds(state, f"{prefix}adapter."):
            grown[enter] = _widen(state[enter], own[enter], _lifted_channels(network, prefix))
    return grown


def frozen_growth(network: ProgressiveCascade, state: Mapping[str, Tensor], grown: Mapping[str, Tensor]) -> str | None:
    """The first entry that growth adds and that would stay as it was initialised, or None.

    Args:
        network: the cascade to be trained.
        state: content of the checkpoint it grows from.
        grown: the same, grown.

    Returns:
        A name of the network's state dict.
    """
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return min(set(grown) - set(state) - trained, default=None)


def _parts(stage: int) -> Iterator[tuple[str, list[str]]]:
    """Parts that growth adds, as prefixes of their entries, each with those that read it."""
    prefixes = [stage_prefix(number) for number in range(1, stage + 1)]
    yield "xray.", [f"{prefix}adapter." for prefix in prefixes]
    for prefix in prefixes:
        yield f"{prefix}adapter.", [f"{prefix}unet.attend."]
        yield f"{prefix}unet.attend.", []


def _holds(state: Mapping[str, Tensor], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in state)


def _lifted_channels(network: ProgressiveCascade, prefix: str) -> int:
    """Input channels of a stage's U-Net that are lifted features: they come last."""
    if not network.get_submodule(prefix.rstrip(".")).lift_features:
        return 0
    leave: Tensor = network.get_parameter(f"{prefix}adapter.leave.bias")
    return len(leave) * network.projection_matrices.shape[0]


def _widen(weight: Tensor, own: Tensor, channels: int) -> Tensor:
    """A convolution's weight with zeros for input channels that are new, if these alone distinguish it from ours."""
    if weight.dim() != own.dim() or weight.shape[1] + channels != own.shape[1]:
        return weight
    return F.pad(weight, (0, 0) * (own.dim() - 2) + (0, channels))
