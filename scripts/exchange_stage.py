# SPDX-License-Identifier: Apache-2.0
"""Give a cascade one stage of another checkpoint, or the mean of several.

    python scripts/exchange_stage.py stage3_best.pt --stage 1 --donor other/stage1_best.pt --output new.pt
    python scripts/exchange_stage.py stage3_best.pt --stage 1 --donor a/stage1_best.pt b/stage1_best.pt --output mean.pt

The last stage is trained behind a first stage that does not remember its CTs, so that what it mends is what a new
patient needs mended; it runs behind one that has seen them all (bundle/docs/IMPLEMENTATION.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from progressive_cascade.checkpoints import exchange_stage
from progressive_cascade.errors import UserError
from progressive_cascade.io import atomic_path


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
