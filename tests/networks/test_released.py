# SPDX-License-Identifier: Apache-2.0
"""Laws of checkpoints that exist: names stay, and a file written by an earlier version is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from progressive_cascade.inference.reconstruct import load_cascade
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.training.checkpoints import HalfPrecisionState

# SHA-256 of every entry's name, shape and type, a line each, in the first weights that were released with today's
# architecture, read off the files stage1_best.pt and model.pt themselves.
RELEASED = {
    1: "85a82aac025157aa",
    3: "8d4e316d7dfac78b",
}


@pytest.mark.parametrize("stage", RELEASED)
def test_released_entries_keep_their_names(stage: int) -> None:
    """Who renames a layer makes every checkpoint unreadable that somebody has trained."""
    state = HalfPrecisionState(ProgressiveCascade(stage=stage)).state_dict()
    lines = "\n".join(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == RELEASED[stage]


def test_weights_of_an_earlier_architecture_are_read(small_cascade, tmp_path: Path) -> None:
    """The first release had one level more in stage 2 than in stage 3; channels are read off the file."""
    channels = ((4, 8, 16), (4, 8, 16, 16), (4, 8, 16))
    network = small_cascade(
        unet_channels=channels, cross_attention=False, lift_channels=0, consistency_iterations=(0, 0, 3)
    )
    # As that release's training wrote it: a plain dictionary, parameters in half precision.
    parameters = {name for name, _ in network.named_parameters()}
    state = network.state_dict()
    torch.save(
        {name: value.half() if name in parameters else value for name, value in state.items()}, tmp_path / "a.pt"
    )
    read = load_cascade(tmp_path / "a.pt")
    found = read.state_dict()
    assert all(torch.equal(found[name], state[name].half().float()) for name in parameters)
    assert set(found) == set(state)
    assert found["stages.1.unet.before.conv1.weight"].shape[0] == 16
