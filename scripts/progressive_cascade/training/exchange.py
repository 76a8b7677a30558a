# SPDX-License-Identifier: Apache-2.0
"""Give a cascade one stage of another checkpoint, or the mean of several.

    python -m progressive_cascade.training.exchange stage3_best.pt --stage 1 --donor a.pt --output new.pt
    python -m progressive_cascade.training.exchange stage3_best.pt --stage 1 --donor a.pt b.pt --output mean.pt

The last stage is trained behind a first stage that does not remember its CTs, so that what it mends is what a new
patient needs mended; it runs behind one that has seen them all (bundle/docs/EXPERIMENTS.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.io import atomic_path, read_state
from progressive_cascade.networks.checkpoints import same_geometry, stage_prefix


def exchange_stage(path: str | Path, stage: int, *donors: str | Path) -> dict[str, Tensor]:
    """The weights of one cascade with one stage of another, or with the mean of several others'.

    A later stage learns best behind an earlier one that makes on its training data the errors it makes on new data; it
    then runs behind the best there is. The mean of runs that started from the same weights often is better than each
    (Wortsman et al., Model soups, 2022, arXiv 2203.05482).

    Args:
        path: checkpoint of the cascade, bare state dict.
        stage: which stage to take from the donors, 1 to 3.
        donors: checkpoints that hold this stage.

    Returns:
        A bare state dict.

    Raises:
        UserError: if a file is missing or no checkpoint or lacks the stage, the stages' shapes or the geometries
            differ, or the stages read features of a 2-D encoder, which they share and which cannot be exchanged.
        ValueError: without a donor.
    """
    if not donors:
        raise ValueError("donors must name at least one checkpoint, got none")
    state = read_state(path)
    own = _stage_of(state, stage, path)
    if any(name.startswith("xray.") for name in state):
        raise UserError(f"checkpoint {path} must have no 2-D encoder: its stages share that and cannot be exchanged")
    parts = []
    for donor in donors:
        other = read_state(donor)
        parts.append(_stage_of(other, stage, donor))
        if _shapes(parts[-1]) != _shapes(own):
            raise UserError(f"checkpoint {donor} must have stage {stage} of the architecture of {path}")
        if not same_geometry(state["projection_matrices"], other["projection_matrices"]):
            raise UserError(f"checkpoint {donor} must have the geometry of {path}, got other projection matrices")
    mean = {
        name: torch.stack([part[name].double() for part in parts]).mean(dim=0).to(value.dtype)
        for name, value in own.items()
    }
    # What geometries a cascade takes is what its stage 1 has learnt.
    ranges = [read_state(donor).get("range_values") for donor in donors] if stage == 1 else []
    return {**state, **mean, **({"range_values": ranges[0]} if ranges and ranges[0] is not None else {})}


def _stage_of(state: Mapping[str, Tensor], stage: int, path: str | Path) -> dict[str, Tensor]:
    part = {name: value for name, value in state.items() if name.startswith(stage_prefix(stage))}
    if not part:
        raise UserError(f"checkpoint {path} must hold stage {stage}, got none of its weights")
    return part


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def main(command_line: Sequence[str] | None = None) -> int:
    """Exchange, write."""
    parser = argparse.ArgumentParser(description="Give a cascade one stage of another checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="the cascade: a bare state dict")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), required=True, help="which stage to take")
    parser.add_argument("--donor", type=Path, nargs="+", required=True, help="checkpoints that hold this stage")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    arguments = parser.parse_args(command_line)
    try:
        state = exchange_stage(arguments.checkpoint, arguments.stage, *arguments.donor)
    except UserError as error:
        print(f"exchange_stage: error: {error}", file=sys.stderr)
        return 2
    with atomic_path(arguments.output) as temporary:
        torch.save(state, temporary)
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
