# SPDX-License-Identifier: Apache-2.0
"""The weights of an exported bundle: one checkpoint per stage, each of exactly the architecture its configs build."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.io import read_state
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.cascade import NUM_STAGES
from progressive_cascade.networks.checkpoints import check_architecture, check_geometry

OTHER_GEOMETRIES = "any_geometry.pt"
"""Of a folder of models: the cascade for other geometries than the chest stand's."""


@dataclass(frozen=True)
class StageWeights:
    """A stage's weights.

    Attributes:
        network: the cascade up to this stage, filled, in eval mode.
        content: of its checkpoint, a bare state dict.
    """

    network: ProgressiveCascade
    content: bytes


def collect_weights(models: Path, inference: Mapping[str, Any], stage: int) -> dict[int, StageWeights]:
    """Reads and checks the checkpoints of all stages up to one.

    Args:
        models: folder with ``stage1_best.pt`` and so on; where it holds none of them, but a ``model.pt`` (as a wheel
            does), the stages are cut out of that.
        inference: the inference config, which builds the network.
        stage: the last stage.

    Returns:
        Weights by stage, 1 to ``stage``.

    Raises:
        UserError: if a checkpoint is missing, or of another architecture, stage or geometry.
    """
    stages = range(1, stage + 1)
    files = {number: models / f"stage{number}_best.pt" for number in stages}
    whole = models / "model.pt"
    if whole.is_file() and not any(path.is_file() for path in files.values()):
        return _cut(whole, inference, stage)
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f"weights {missing[0]} must exist; train that stage, or name another folder with --models")
    weights = {}
    for number, path in files.items():
        weights[number] = StageWeights(_filled(read_state(path), inference, number, path), path.read_bytes())
    if stage == NUM_STAGES and whole.is_file():
        _check_same(whole, files[stage])
    return weights


def other_geometries(models: Path, inference: Mapping[str, Any], stage: int) -> bytes | None:
    """The whole cascade's weights for other geometries than the chest stand's, where a folder holds them.

    Args:
        models: folder that may hold ``any_geometry.pt``.
        inference: the inference config, which builds the network.
        stage: the last stage that is exported; below the cascade's last one there are none.

    Returns:
        The checkpoint, or None.

    Raises:
        UserError: if it is of another architecture or geometry.
    """
    path = models / OTHER_GEOMETRIES
    if stage < NUM_STAGES or not path.is_file():
        return None
    _filled(read_state(path), inference, stage, path)
    return path.read_bytes()


def build_network(inference: Mapping[str, Any], stage: int) -> ProgressiveCascade:
    """The cascade that the inference config builds, up to a stage.

    Args:
        inference: the inference config.
        stage: 1, 2 or 3.

    Returns:
        The network, not filled, in eval mode.
    """
    return ConfigParser({**inference, "stage": stage}).get_parsed_content("network_def").eval()


def _filled(state: Mapping[str, Tensor], inference: Mapping[str, Any], stage: int, path: Path) -> ProgressiveCascade:
    network = build_network(inference, stage)
    check_architecture(network, state, path)
    check_geometry(network, state, path)
    network.load_state_dict(state)
    return network


def _cut(whole: Path, inference: Mapping[str, Any], stage: int) -> dict[int, StageWeights]:
    """Earlier stages are frozen while a later one trains, so that the last checkpoint holds them all."""
    state = read_state(whole)
    weights = {}
    for number in range(1, stage + 1):
        own = build_network(inference, number).state_dict()
        # Nothing is cut for the last stage, so that a checkpoint with foreign entries is still refused.
        part = state if number == NUM_STAGES else {name: value for name, value in state.items() if name in own}
        content = whole.read_bytes() if number == NUM_STAGES else _to_bytes(part)
        weights[number] = StageWeights(_filled(part, inference, number, whole), content)
    return weights


def _check_same(whole: Path, last: Path) -> None:
    """Two files in one folder claim to be the last stage: the command line runs one, training writes the other."""
    ours, theirs = read_state(whole), read_state(last)
    same = set(ours) == set(theirs) and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    if not same:
        raise UserError(f"{whole} must hold the weights of {last.name}, it differs; copy the right one over the other")


def _to_bytes(state: Mapping[str, Tensor]) -> bytes:
    # Into memory, not into a file: torch writes the file's name into it, and a temporary one would change every time.
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    return stream.getvalue()
