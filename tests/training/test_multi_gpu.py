# SPDX-License-Identifier: Apache-2.0
"""The overlay for several devices, run as two CPU processes (gloo)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from progressive_cascade.training.kept import list_states
from tests.support.exported import make_source
from tests.support.kills import Miniature, compare_ranks
from tests.support.processes import start_ranks, tiny_settings


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the phantoms are kept between trainings."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the miniature's stages, for the next one to start from."""
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_train_like_one_with_twice_the_batch(stage, cache, source, tmp_path):
    """Ten steps of each stage's own loss: weights and average agree to 1e-5, the score, too; one process writes."""
    good, told = compare_ranks(Miniature(tmp_path, cache, source, stage))
    assert good, told


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
