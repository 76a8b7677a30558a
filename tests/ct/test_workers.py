# SPDX-License-Identifier: Apache-2.0
"""Laws of who prepares an archive: whoever it is, and however often interrupted, the dataset has the same bytes."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade.cli import main
from progressive_cascade.ct.prepare import prepare_dataset
from progressive_cascade.ct.workers import Workers
from progressive_cascade.errors import UserError
from progressive_cascade.io import save_nifti
from tests.support.cube import place_coarsely
from tests.support.processes import Child
from tests.support.trunk import trunk_affine, trunk_hu


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three CTs that differ a little."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(3):
        save_nifti(trunk_hu().astype(np.int16) + np.int16(number), trunk_affine(), folder / f"p{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset as this process makes it."""
    return _content(archive, tmp_path_factory.mktemp("expected"), Workers(0))


def _prepare(archive: Path, output: Path, workers: Workers) -> None:
    """On few voxels, here and in whatever process this runs in."""
    with pytest.MonkeyPatch.context() as patch:
        place_coarsely(patch)
        prepare_dataset(archive, output, workers=workers)


def _content(archive: Path, output: Path, workers: Workers) -> dict[str, bytes]:
    _prepare(archive, output, workers)
    return _files(output)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_prepare_does_no_series_twice(archive, expected, tmp_path):
    """kill -9 after the first series: the second call keeps that file, does the others, and leaves the same dataset."""
    child = Child(tmp_path / "log", _prepare, archive, tmp_path / "dataset", Workers(0))
    work = tmp_path / "dataset" / ".preparing"
    child.wait_for(lambda: (work / "done" / "p0.json").exists())
    child.signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, child.text()
    assert not (tmp_path / "dataset" / "datalist.json").exists()
    done = [path.name for path in (work / "done").iterdir()]
    before = {name: (work / "ct" / name.replace("json", "nii.gz")).stat().st_ino for name in done}
    (work / "ct" / "gone.nii.gz").write_bytes(b"of a series that is no longer there")
    _prepare(archive, tmp_path / "dataset", Workers(0))
    after = {name: (tmp_path / "dataset" / "ct" / name.replace("json", "nii.gz")).stat().st_ino for name in done}
    assert 1 <= len(done) < 3 and before == after
    assert _files(tmp_path / "dataset") == expected


def test_two_prepares_at_once_do_not_share_a_folder(archive, expected, tmp_path):
    """The second one is one line and touches nothing; the first goes on as if alone."""
    child = Child(tmp_path / "log", _prepare, archive, tmp_path / "dataset", Workers(0))
    work = tmp_path / "dataset" / ".preparing"
    child.wait_for(lambda: (work / "done").exists())
    child.signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=r"dataset must be written by one `prepare` at a time, got another that runs"):
        _prepare(archive, tmp_path / "dataset", Workers(0))
    child.signal(signal.SIGCONT)
    assert child.wait() == 0, child.text()
    assert _files(tmp_path / "dataset") == expected


def test_a_dask_cluster_prepares_the_same_bytes(archive, expected, tmp_path):
    """LocalCluster against this process: every file of the dataset."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        scheduler = cluster.scheduler_address
        assert _content(archive, tmp_path / "dataset", Workers(scheduler=scheduler)) == expected


def test_a_scheduler_that_does_not_answer_is_one_line(archive, tmp_path, capsys):
    """Before any work; nothing is left."""
    pytest.importorskip("distributed")
    arguments = ["prepare", str(archive), "--output", str(tmp_path / "dataset"), "--scheduler", "nonsense://here"]
    assert main(arguments) == 2
    assert "--scheduler must be a Dask scheduler that answers, got nonsense://here" in capsys.readouterr().err
    assert not (tmp_path / "dataset").exists()


def test_a_cluster_without_cores_and_memory_is_one_line():
    """What dask's own configuration must say."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    with pytest.raises(UserError, match="--cluster slurm must find cores and memory"):
        list(Workers(cluster="slurm").run(str, [1]))
