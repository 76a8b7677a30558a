# SPDX-License-Identifier: Apache-2.0
"""The overlay for several devices, run as two CPU processes (gloo)."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from progressive_cascade.training.kept import list_states, load_state
from tests.support.exported import make_source
from tests.support.processes import Child, start_ranks, tiny_settings, train

LOSSES = {
    1: {"l1": 1.0, "mse": 5.0},
    2: {"l1": 1.0, "mse": 5.0, "ssim": 0.3, "perceptual": 0.005},
    3: {"l1": 1.0, "mse": 5.0, "ssim": 0.3, "perceptual": 0.005, "gradient": 0.5, "reprojection": 0.05},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the phantoms are kept between trainings."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the miniature's stages, for the next one to start from."""
    return make_source(tmp_path_factory.mktemp("source"))


def _state(folder: Path, stage: int) -> dict[str, Any]:
    return load_state(list_states(folder / f"logs{stage}" / "checkpoints")[0])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_train_like_one_with_twice_the_batch(stage, cache, source, tmp_path):
    """Ten steps of each stage's own loss: weights and average agree to 1e-5, the score, too; one process writes."""
    predecessor = {"predecessor": str(source / "models" / f"stage{stage - 1}_best.pt")} if stage > 1 else {}
    common = {
        "epochs": 1, "epoch_size": 20, "checkpoint_minutes": 10, "loss_weights": LOSSES[stage],
        "num_validation_phantoms": 3, **predecessor,
    }  # fmt: skip
    single = tiny_settings(tmp_path / "one", cache, stage, batch_size=2, **common)
    assert Child(tmp_path / "log", train, single, stage).wait() == 0
    pair = start_ranks(tmp_path, tiny_settings(tmp_path / "two", cache, stage, batch_size=1, **common), stage)
    assert [child.wait() for child in pair] == [0, 0], pair[0].text() + pair[1].text()
    one, two = (_state(tmp_path / name, stage) for name in ("one", "two"))
    assert one["iteration"] == two["iteration"] == 10
    for name, value in one["network"].items():
        torch.testing.assert_close(two["network"][name], value, rtol=0, atol=1e-5)
        torch.testing.assert_close(two["average"]["network"][name], one["average"]["network"][name], rtol=0, atol=1e-5)
    assert two["best"]["best_metric"] == pytest.approx(one["best"]["best_metric"], abs=1e-3)
    assert len(list((tmp_path / "two").rglob("step_*.pt"))) == 1


def test_when_a_process_dies_the_other_says_so(cache, tmp_path):
    """kill -9 of one of two: the other ends within a minute, by itself, in one line."""
    settings = tiny_settings(tmp_path, cache, epochs=500, num_validation_phantoms=2)
    pair = start_ranks(tmp_path, settings)
    pair[0].wait_for(lambda: bool(list_states(tmp_path / "logs1" / "checkpoints")))
    pair[1].signal(signal.SIGKILL)
    start = time.monotonic()
    assert pair[0].wait(60) == 1
    assert time.monotonic() - start < 60
    assert "process 0 lost the others" in pair[0].text()
    assert pair[1].wait() == -signal.SIGKILL


def test_more_processes_than_cases_are_refused(cache, tmp_path):
    """One validation case for two processes: a line before the first step, not a hang at the first validation."""
    pair = start_ranks(tmp_path, tiny_settings(tmp_path, cache, num_validation_phantoms=1))
    assert [child.wait() for child in pair] == [1, 1]
    assert "num_validation_phantoms must be at least 2 for 2 processes, got 1" in pair[0].text()
