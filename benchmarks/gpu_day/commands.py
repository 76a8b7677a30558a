# SPDX-License-Identifier: Apache-2.0
"""The commands as a user types them, on little data: training of each stage, several processes, evaluation, export."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
_FEW_STEPS = {"epochs": 1, "batch_size": 2, "num_phantoms": 4, "num_validation_phantoms": 1, "num_workers": 2}
MINIATURE: dict[str, Any] = {
    "geometry": {
        "source_to_isocenter": 1500,
        "source_to_detector": 1800,
        "detector_shape": [64, 64],
        "pixel_spacing": [6.72, 6.72],
    },
    "unet_channels": [[4, 8], [4, 8], [4, 8]],
    "simulation_grid": 32,
    "num_workers": 0,
}
"""A cascade of 8, 16 and 32 voxels; the tests' miniatures start from it."""


def miniature_settings(stage: int) -> dict[str, Any]:
    """Overrides that make a stage's config one of a few voxels, without SSIM and slices, for which they are too few."""
    return {
        **MINIATURE,
        "batch_size": 2,
        "num_phantoms": 2,
        "grid": 4 << stage,
        "loss_weights": {"l1": 1.0, "mse": 1.0, **({"gradient": 0.5, "reprojection": 0.05} if stage == 3 else {})},
        "window": None if stage == 1 else 16,
    }


def commands(folder: Path, *, processes: int, miniature: bool) -> Iterator[tuple[str, list[str], Path]]:
    """Name, command and working folder of each, in an order in which each finds what it needs.

    Args:
        folder: where they write.
        processes: of the training by several, one for each GPU.
        miniature: on a few voxels.

    Yields:
        What to run.
    """
    bundle = [sys.executable, "-m", "monai.bundle", "run"]
    for stage in (1, 2, 3):
        options = _training(folder, stage, miniature)
        command = [*bundle, "training", "--config_file", f"configs/stage{stage}.json", *options]
        yield f"training, stage {stage}", command, BUNDLE
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    files = "['configs/stage1.json','configs/multi_gpu.json']"
    options = _training(folder, 1, miniature, models="distributed", num_validation_phantoms=processes)
    yield (
        f"training, stage 1, torchrun with {processes}",
        [*torchrun, "-m", "monai.bundle", "run", "training", "--config_file", files, *options],
        BUNDLE,
    )
    if miniature:
        return
    program = [sys.executable, "-m", "progressive_cascade.cli"]
    evaluation = {"num_phantoms": 1, "baselines": False, "pictures": False, "output_dir": folder / "evaluation"}
    yield "evaluation", [*bundle, "--config_file", "configs/evaluate.json", *_options(evaluation)], BUNDLE
    yield "export", [*program, "export", "--output", str(folder / "zoo")], BUNDLE
    yield "demo", [*program, "demo", "--output", str(folder / "demo")], BUNDLE
    exported = folder / "zoo" / "chest_xray_ct_reconstruction"
    pairs = {"dataset_dir": folder / "demo" / "xrays", "output_dir": folder / "cts"}
    command = [*bundle, "--config_file", "configs/inference.json", *_options(pairs)]
    yield "inference of the exported bundle", command, exported


def _training(
    folder: Path, stage: int, miniature: bool, *, models: str = "models", num_validation_phantoms: int = 1
) -> list[str]:
    places = {"ckpt_dir": folder / models, "log_dir": folder / models / f"logs{stage}", "cache_dir": folder / "cache"}
    settings = {**_FEW_STEPS, **places, **(miniature_settings(stage) if miniature else {})}
    settings["num_validation_phantoms"] = num_validation_phantoms  # each process validates one at least
    return _options(settings)


def _options(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in (f"--{key}", _text(value))]


def _text(value: Any) -> str:
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value) if value is not None else "None"
