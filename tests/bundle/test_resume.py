# SPDX-License-Identifier: Apache-2.0
"""A stage that is killed and taken up again ends with the weights of one that was not, to the bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from progressive_cascade.training.kept import list_states
from tests.support.kills import Miniature, differences
from tests.support.processes import Child, tiny_settings, train


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the phantoms are kept between trainings."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert Child(folder / "log", train, tiny_settings(folder, cache)).wait() == 0
    return folder


def test_a_killed_run_ends_like_one_that_was_not(uninterrupted, cache, tmp_path):
    """kill -9 within the first and within a later epoch, the newest checkpoint cut short before the last attempt."""
    folder = tmp_path / "checkpoints"
    settings = tiny_settings(tmp_path, cache, resume="auto")
    states = tmp_path / "logs1" / "checkpoints"
    for attempt, step in enumerate((2, 5)):
        child = Child(tmp_path / f"log{attempt}", train, settings)
        child.wait_for(lambda step=step: any(path.stem >= f"step_{step:08d}" for path in list_states(states)))
        child.signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    newest, before = list_states(states)[:2]
    newest.write_bytes(newest.read_bytes()[:-1000])
    last = Child(tmp_path / "log", train, settings)
    assert last.wait() == 0, last.text()
    assert f"{newest.name} is damaged" in last.text() and f"passed over for {before.name}" in last.text()
    assert "going on from" in last.text()
    ends = [Miniature(each, cache, cache) for each in (uninterrupted, tmp_path)]
    assert differences(*ends) == []
    assert not folder.exists() and len(list_states(states)) == 2


def test_a_changed_run_is_refused_with_the_difference(uninterrupted, cache, tmp_path):
    """Another rate is named with both values; --force-resume goes on; a finished run says that it is."""
    settings = tiny_settings(uninterrupted, cache, resume="auto")
    refused = Child(tmp_path / "refused", train, {**settings, "learning_rate": 0.5})
    assert refused.wait() == 1
    assert "belongs to another run; settings: learning_rate: 0.0015 -> 0.5" in refused.text()
    before = list_states(uninterrupted / "logs1" / "checkpoints")
    forced = Child(tmp_path / "forced", train, {**settings, "learning_rate": 0.5, "force_resume": True})
    assert forced.wait() == 0
    assert "resumed although changed: settings: learning_rate" in forced.text()
    assert "this run is finished (3 epochs, 9 steps" in forced.text()
    assert list_states(uninterrupted / "logs1" / "checkpoints") == before
