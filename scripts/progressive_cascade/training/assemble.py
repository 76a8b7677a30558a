# SPDX-License-Identifier: Apache-2.0
r"""Name a trained cascade for use, with its own first stage or with another one.

    python -m progressive_cascade.training.assemble --checkpoint stage3_best.pt --output model.pt
    python -m progressive_cascade.training.assemble --checkpoint model.pt --first_stage any/stage1_best.pt \
        --output any_geometry.pt

Stage 1 alone learns which geometries a cascade takes; stages 2 and 3 mend what any stage 1 leaves
(bundle/docs/EXPERIMENTS.md), so that two first stages share them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.inference.reconstruct import load_cascade
from progressive_cascade.io import atomic_path, read_state
from progressive_cascade.networks.checkpoints import same_geometry, stage_prefix


def with_first_stage(
    path: str | Path, first_stage: str | Path, average_with: str | Path | None = None
) -> dict[str, Tensor]:
    """The weights of a cascade, its stage 1 and the geometries this takes from another checkpoint.

    Args:
        path: checkpoint of the cascade, bare state dict.
        first_stage: checkpoint that holds the stage 1 to take.
        average_with: checkpoint whose stage 1 went on learning from that one: the mean of both is taken, which keeps
            what the one knows and most of what the other learnt.

    Returns:
        A bare state dict.

    Raises:
        UserError: if a file is missing or no checkpoint, the stages' shapes or the geometries differ, or the stages
            read features of a 2-D encoder, which they share.
    """
    state, donor = read_state(path), read_state(first_stage)
    for file, content in ((path, state), (first_stage, donor)):
        if any(name.startswith("xray.") for name in content):
            raise UserError(f"checkpoint {file} must have no 2-D encoder: its stages share that and cannot be parted")
    own, other = _first_stage(state, path), _first_stage(donor, first_stage)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in other.items()}:
        raise UserError(f"checkpoint {first_stage} must have stage 1 of the architecture of {path}")
    if not same_geometry(state["projection_matrices"], donor["projection_matrices"]):
        raise UserError(f"checkpoint {first_stage} must have the geometry of {path}, got other projection matrices")
    if average_with is not None:
        learnt = _first_stage(read_state(average_with), average_with)
        if {name: value.shape for name, value in learnt.items()} != {
            name: value.shape for name, value in other.items()
        }:
            raise UserError(f"checkpoint {average_with} must have stage 1 of the architecture of {first_stage}")
        other = {name: _mean(value, learnt[name]) for name, value in other.items()}
    later = {name: value for name, value in state.items() if name not in own and name != "range_values"}
    taken = {"range_values": donor["range_values"]} if "range_values" in donor else {}
    return {**later, **other, **taken}


def _mean(one: Tensor, other: Tensor) -> Tensor:
    return ((one.float() + other.float()) / 2).to(one.dtype) if one.is_floating_point() else one


def _first_stage(state: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    part = {name: value for name, value in state.items() if name.startswith(stage_prefix(1))}
    if not part:
        raise UserError(f"checkpoint {path} must hold stage 1, got none of its weights")
    return part


def main(command_line: Sequence[str] | None = None) -> int:
    """Assemble, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="the cascade: a bare state dict")
    parser.add_argument("--first_stage", type=Path, help="checkpoint whose stage 1 to take (default: the cascade's)")
    parser.add_argument("--average_with", type=Path, help="one that went on from that stage 1: take the mean of both")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    arguments = parser.parse_args(command_line)
    try:
        if arguments.first_stage is None:
            if arguments.average_with is not None:
                raise UserError("--average_with must come with --first_stage")
            load_cascade(arguments.checkpoint)
            state = read_state(arguments.checkpoint)
        else:
            state = with_first_stage(arguments.checkpoint, arguments.first_stage, arguments.average_with)
    except UserError as error:
        print(f"assemble: error: {error}", file=sys.stderr)
        return 2
    with atomic_path(arguments.output) as temporary:
        torch.save(state, temporary)
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
