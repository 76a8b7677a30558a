# SPDX-License-Identifier: Apache-2.0
"""The configs of the three stages, made from one source: ``train.json``, and what a stage has of its own.

``configs/train.json`` is written by hand and trains stage 3; ``stage1.json`` to ``stage3.json`` are complete files
all the same, because people run, read and override them one by one. After a change here or there::

    python -m progressive_cascade.training.stages
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from progressive_cascade.io import atomic_path, read_json
from progressive_cascade.paths import bundle_root

_COMMAND = "Run from the bundle's folder: python -m monai.bundle run training --config_file configs/stage{}.json"
_LOSS_1 = {"l1": 1.0, "mse": 5.0, "ssim": 0.3, "perceptual": 0.0, "gradient": 0.0, "reprojection": 0.0}
_LOSS_2 = {**_LOSS_1, "perceptual": 0.005}
_LOSS_3 = {**_LOSS_2, "gradient": 0.5, "reprojection": 0.05}

STAGES: dict[int, dict[str, Any]] = {
    1: {
        "_desc_": "Trains stage 1: structure on 64³ voxels (L1 + MSE + SSIM).",
        "predecessor": None,
        "epochs": 40,
        "batch_size": 8,
        "learning_rate": 0.0015,
        "simulation_grid": 128,
        "window": None,
        "loss_weights": _LOSS_1,
    },
    2: {
        "_desc_": "Trains stage 2: texture on 128³ voxels (L1 + MSE + SSIM + VGG perceptual), stage 1 frozen.",
        "predecessor": "$@ckpt_dir + '/stage1_best.pt'",
        "epochs": 30,
        "batch_size": 4,
        "learning_rate": 0.0015,
        "simulation_grid": 128,
        "window": 128,
        "loss_weights": _LOSS_2,
    },
    3: {
        "_desc_": (
            "Trains stage 3: detail and agreement with the radiographs on 256³ voxels (+ gradient + DRR reprojection), "
            "stages 1 and 2 frozen."
        ),
        "predecessor": "$@ckpt_dir + '/stage2_best.pt'",
        "epochs": 20,
        "batch_size": 2,
        "learning_rate": 0.001,
        "simulation_grid": 256,
        "window": 128,
        "loss_weights": _LOSS_3,
    },
}
"""What a stage's config has of its own, beside its number, its log's folder and its checkpoint's name."""


def stage_config(source: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """A stage's config.

    Args:
        source: content of ``train.json``.
        stage: 1, 2 or 3.

    Returns:
        A complete config with the source's keys in the source's order.

    Raises:
        KeyError: if the source lacks a key that the stage sets.
    """
    config = deepcopy(dict(source))
    own = {**STAGES[stage], "stage": stage, "log_dir": f"$@bundle_root + '/logs/stage{stage}'"}
    own["_desc_"] = f"{own['_desc_']} {_COMMAND.format(stage)}"
    missing = sorted(set(own) - set(config))
    if missing:
        raise KeyError(f"train.json must have every key that a stage sets, {missing} are missing")
    config |= deepcopy(own)
    config["validate"]["named_handlers"]["best"]["key_metric_filename"] = f"stage{stage}_best.pt"
    return config


def main() -> None:
    """Writes the three files beside their source."""
    folder = bundle_root() / "configs"
    source = read_json(folder / "train.json")
    for stage in STAGES:
        text = json.dumps(stage_config(source, stage), indent=4, ensure_ascii=False) + "\n"
        with atomic_path(folder / f"stage{stage}.json") as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
