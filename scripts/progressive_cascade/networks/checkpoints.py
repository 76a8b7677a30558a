# SPDX-License-Identifier: Apache-2.0
"""Bare state dicts of cascades: is this one of the architecture, stage and geometry at hand?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.io import read_state
from progressive_cascade.networks.cascade import ProgressiveCascade
from progressive_cascade.paths import check_shipped


def load_checkpoint(network: ProgressiveCascade, path: str | Path) -> None:
    """Fill a cascade from a checkpoint of exactly its architecture and stage.

    Args:
        network: the cascade.
        path: bare state dict.

    Raises:
        UserError: if the file is missing, no checkpoint, of another architecture or stage, or a shipped one that was
            changed.
    """
    check_shipped(path)
    state = read_state(path)
    check_architecture(network, state, path)
    network.load_state_dict(state)


def check_geometry(network: ProgressiveCascade, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse a checkpoint that was trained for another geometry.

    Raises:
        UserError: naming the file and both sets of projection matrices.
    """
    theirs, ours = state["projection_matrices"].float(), network.projection_matrices.cpu()
    if not same_geometry(theirs, ours):
        raise UserError(
            f"checkpoint {path} must have the geometry of the config: its projection matrices are "
            f"{_rounded(theirs)}, the config's {_rounded(ours)}"
        )


def check_architecture(
    network: ProgressiveCascade, state: Mapping[str, Tensor], path: str | Path, *, stage: int | None = None
) -> None:
    """Refuse a checkpoint of another architecture or stage.

    Args:
        network: the cascade to be filled.
        state: content of the checkpoint.
        path: its file, for the message.
        stage: whose checkpoint it must be; default: the network's own stage.

    Raises:
        UserError: naming the file and the first entry that differs.
    """
    stage = network.stage if stage is None else stage
    own = network.state_dict()
    # What a checkpoint was trained for is no part of the architecture; those of before do not keep it.
    needed = names_up_to(network, stage) - ({"range_values"} - set(state))
    wrong = sorted(name for name in needed if name not in state or state[name].shape != own[name].shape)
    different = wrong + sorted(set(state) - set(own))
    if different:
        raise UserError(
            f"checkpoint {path} must hold stage {stage} of this architecture; first difference: {different[0]}"
        )


def stage_prefix(stage: int) -> str:
    """What the names of a stage's entries in a state dict start with."""
    return f"stages.{stage - 1}."


def same_geometry(matrices: Tensor, others: Tensor) -> bool:
    """Whether two sets of projection matrices mean one geometry, up to rounding."""
    return torch.allclose(matrices, others, rtol=1e-4, atol=1e-2)


def names_up_to(network: ProgressiveCascade, stage: int) -> set[str]:
    """Names of a cascade's state dict, without the stages after one."""
    later = tuple(stage_prefix(index) for index in range(stage + 1, network.stage + 1))
    return {name for name in network.state_dict() if not name.startswith(later)}


def _rounded(matrices: Tensor) -> list[Any]:
    return np.round(matrices.numpy().astype(np.float64), 2).tolist()
