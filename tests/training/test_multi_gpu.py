# SPDX-License-Identifier: Apache-2.0
"""The overlay for several devices, run as two CPU processes under torchrun (gloo)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.bundle.test_configs import BUNDLE
from tests.support.tiny import TINY


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """Both processes finish, the first one writes a checkpoint without DistributedDataParallel's prefix."""
    settings = {
        **TINY,
        "grid": 8,
        "num_phantoms": 2,
        "num_validation_phantoms": 2,
        "loss_weights": {"l1": 1.0},
        "ckpt_dir": str(tmp_path / "models"),
        "log_dir": str(tmp_path / "logs"),
        "cache_dir": str(tmp_path / "cache"),
    }
    overrides = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    files = "['configs/stage1.json','configs/multi_gpu.json']"
    command = [*launcher, "-m", "monai.bundle", "run", "training", "--config_file", files, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE.parent / "scripts"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONFAULTHANDLER"] = "1"
    done = subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr}"
    state = torch.load(tmp_path / "models" / "stage1_best.pt", weights_only=True)
    assert "stages.0.unet.out.weight" in state
