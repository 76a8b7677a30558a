# SPDX-License-Identifier: Apache-2.0
"""Laws of caches that are filled before a training: whoever fills them, they hold what the training would put in."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from progressive_cascade.cli import main
from progressive_cascade.ct.workers import Workers
from progressive_cascade.paths import bundle_root
from progressive_cascade.training.caches import fill_caches
from tests.support.processes import as_options, tiny_settings


def _fill(output: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The caches of a stage of 8³ voxels with one phantom to train on, and one to validate on."""
    monkeypatch.chdir(bundle_root())
    config = ConfigParser()
    config.read_config("configs/stage1.json")
    config.update(tiny_settings(output, output / "cache", num_phantoms=1, num_validation_phantoms=1))
    count = fill_caches(config, workers)
    files = {path.name: path.read_bytes() for path in (output / "cache").rglob("*.pt")}
    assert len(files) == count == 2
    return files


def test_a_dask_cluster_fills_the_same_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LocalCluster against this process: every byte of every file; and a training finds each by its name."""
    distributed = pytest.importorskip("distributed")
    expected = _fill(tmp_path / "alone", Workers(0), monkeypatch)
    with distributed.LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        filled = _fill(tmp_path / "shared", Workers(scheduler=cluster.scheduler_address), monkeypatch)
    assert filled == expected
    monkeypatch.setattr("progressive_cascade.phantom.generate_phantom", None)
    assert _fill(tmp_path / "alone", Workers(0), monkeypatch) == expected, "nothing is generated again"


def test_a_training_without_its_scheduler_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first step."""
    pytest.importorskip("distributed")
    options = as_options(tiny_settings(tmp_path, tmp_path / "cache"))
    assert main([*options, "--scheduler", "nonsense://here"]) == 2
    assert "--scheduler must be a Dask scheduler that answers, got nonsense://here" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.pt"))
