# SPDX-License-Identifier: Apache-2.0
"""Laws of jobs on a Dask cluster: they end as on one machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("distributed")

from tests.support.service import DEADLY, SLOW, WRONG, finished, pair, serving


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a cluster of two processes on this machine."""
    import distributed

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
            assert isinstance(cluster, distributed.LocalCluster)
            yield cluster.scheduler_address


def test_jobs_run_on_a_cluster(tmp_path: Path, scheduler: str) -> None:
    """Done, wrong, late, and one that kills its workers: states, results and words are those of one machine."""
    with serving(tmp_path, dask=scheduler, workers=2, job_seconds=3.0) as client:
        levels = (100, WRONG, SLOW, DEADLY, 101)
        jobs = [client.post("/jobs", files=pair(level)).json()["id"] for level in levels]
        ends = [finished(client, job) for job in jobs]
    assert [end["state"] for end in ends] == ["done", "failed", "failed", "failed", "done"]
    assert [end["error"] for end in ends[1:3]] == [
        "input/pa.png must show a patient, got nothing",
        "it took longer than 3 s",
    ]
    assert "2 times" in ends[3]["error"]
    ran = (tmp_path / "ran.txt").read_text().split()
    assert len(ran) == 2
    result = tmp_path / "data" / "jobs" / jobs[0] / "result"
    assert (result / "ct.nii.gz").read_text() == "ct of 8"
