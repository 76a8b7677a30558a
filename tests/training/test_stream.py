# SPDX-License-Identifier: Apache-2.0
"""Laws of the order of samples: every case once in a pass, the same for any number of processes, nothing remembered."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import RandomizableTransform, Transform

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.training.stream import CaseDataset, SampleStream, start_worker


def test_a_pass_holds_every_case_once():
    """Samples of one pass are a permutation, passes differ, and a batch may reach into the next."""
    stream = SampleStream(range(5), batch_size=2, seed=3)
    samples = [sample for _ in range(5) for sample in stream]
    assert [draw for _, draw, _ in samples] == list(range(30))
    assert [step for _, _, step in samples] == [step for step in range(15) for _ in range(2)]
    cases = [case for case, _, _ in samples]
    passes = [cases[start : start + 5] for start in range(0, 30, 5)]
    assert all(sorted(each) == list(range(5)) for each in passes) and len(set(map(tuple, passes))) > 1
    assert len(stream) == 6 and stream.step == 15


def test_samples_come_again_after_some_passes():
    """With two passes that repeat, the third brings the samples of the first, each of its case, in another order."""
    stream = SampleStream(range(5), batch_size=1, seed=3, repeat_passes=2)
    samples = [(case, draw) for _ in range(4) for case, draw, _ in stream]
    passes = [samples[start : start + 5] for start in range(0, 20, 5)]
    assert [set(each) for each in passes[2:]] == [set(each) for each in passes[:2]] and passes[0] != passes[2]
    assert {draw for _, draw in samples} == set(range(10)) and set(passes[0]).isdisjoint(passes[1])
    with pytest.raises(UserError, match="repeat_passes must be a whole number of at least 1 or null, got 0"):
        SampleStream([1], batch_size=1, repeat_passes=0)


def test_processes_share_the_samples_of_one(monkeypatch):
    """Two processes with half a batch each deal out what one with the whole batch has."""
    whole = list(SampleStream(range(7), batch_size=4))
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        halves.append(list(SampleStream(range(7), batch_size=2)))
    for step in range(2):
        dealt = [sample for half in halves for sample in half if sample[2] == step]
        assert dealt == [sample for sample in whole if sample[2] == step]


def test_an_impossible_stream_is_refused():
    """No case, no batch."""
    with pytest.raises(UserError, match="at least one case"):
        SampleStream([], batch_size=1)
    with pytest.raises(UserError, match="batch_size must be a whole number of at least 1, got 0"):
        SampleStream([1], batch_size=0)


class _Read(Transform):
    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["seed"] in (1, 2):
            raise OSError("unreadable")
        return {**item, "label": torch.full((1,), float(item["seed"]))}


class _Shake(RandomizableTransform):
    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "label": item["label"] + self.R.uniform()}


def _dataset(folder: Path, **options: Any) -> CaseDataset:
    return CaseDataset([{"seed": seed} for seed in range(4)], Compose([_Read(), _Shake()]), folder, **options)


def test_augmentation_follows_the_sample(tmp_path):
    """Another sample of the same case differs, the same sample does not, whatever was read before."""
    first, second = _dataset(tmp_path), _dataset(tmp_path)
    assert first[0, 7, 3]["label"] != first[0, 8, 4]["label"]
    assert first[3, 9, 4]["label"] == second[3, 9, 4]["label"] != _dataset(tmp_path, seed=1)[3, 9, 4]["label"]
    assert (first[0, 7, 3]["draw"], first[0, 7, 3]["step"], first[0, 7, 3]["skipped"]) == (7, 3, "")


def test_a_torn_cache_is_made_anew(tmp_path):
    """A file that ends early is no reason to stop."""
    expected = _dataset(tmp_path)[0, 0, 0]["label"]
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="damaged"):
        assert _dataset(tmp_path)[0, 0, 0]["label"] == expected
    assert _dataset(tmp_path)[0, 0, 0]["label"] == expected


def test_an_unreadable_case_is_named_or_skipped(tmp_path):
    """By default it ends the run; with skip_bad the next readable case stands in, and says for which."""
    with pytest.raises(RunError, match="case phantom 1 cannot be read: unreadable"):
        _dataset(tmp_path)[1, 0, 0]
    item = _dataset(tmp_path, skip_bad=1)[1, 0, 0]
    assert np.floor(item["label"].item()) == 3
    assert item["skipped"].split("\n") == [f"case phantom {seed} cannot be read: unreadable" for seed in (1, 2)]


def _work(ready: Connection) -> None:
    start_worker(0)
    ready.send(True)
    time.sleep(60)


def test_a_worker_ends_by_its_parents_signal_alone():
    """SIGTERM, SIGINT and SIGUSR1 of others pass it by; a parent that exits after an error does not wait for ever."""
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_work, args=(theirs,), daemon=True)
    worker.start()
    assert ours.recv()
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(timeout=0.3)
    assert worker.exitcode is None
    worker.terminate()
    worker.join(timeout=10)
    assert worker.exitcode == 0
