# SPDX-License-Identifier: Apache-2.0
"""Laws of the queue: what was accepted survives kill -9 of the service, and ends in one whole result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
import httpx

import progressive_cascade
from progressive_cascade.errors import UserError
from progressive_cascade.service import Store
from progressive_cascade.service.settings import MAX_INTERRUPTIONS, Outcome
from progressive_cascade.service.store import QueueFull
from tests.support.service import SLOW, finished, pair, serving, wait_for

_SERVER = """
import sys, uvicorn
from pathlib import Path
from progressive_cascade.service import build_app
from tests.support.service import settings
made = settings(Path(sys.argv[1]), runner_settings={"seconds": 1.0}, grace_seconds=20.0)
uvicorn.run(build_app(made), port=int(sys.argv[2]), log_level="warning")
"""


@contextmanager
def _service(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    ours = str(Path(progressive_cascade.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ours, *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(folder), str(port)], env=environment)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        try:
            wait_for(lambda: _is_up(client))
            yield process, client
        finally:
            process.kill()
            process.wait()


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_accepted_jobs_survive_kill_9(tmp_path: Path, free_port: int) -> None:
    """One runs, two wait, the service is killed; the next one ends all three, each whole and told once, and then ends
    by itself when it is asked to.
    """
    with _service(tmp_path, free_port) as (process, client):
        jobs = [client.post("/jobs", files=pair(SLOW)).json()["id"] for _ in range(3)]
        wait_for(lambda: client.get(f"/jobs/{jobs[0]}").json()["state"] == "running")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with _service(tmp_path, free_port) as (process, client):
        assert [finished(client, job)["state"] for job in jobs] == ["done"] * 3
        assert {client.get(f"/jobs/{job}/ct.nii.gz").text for job in jobs} == {"ct of 8"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    assert {(tmp_path / "ran.txt").read_text().count(job) for job in jobs} == {1}


def test_ending_lets_running_jobs_wait(tmp_path: Path) -> None:
    """A job that does not end within grace is stopped and runs after the next start; it counts against nobody."""
    with serving(tmp_path, grace_seconds=0.1) as client:
        job = client.post("/jobs", files=pair(SLOW)).json()["id"]
        wait_for(lambda: client.get(f"/jobs/{job}").json()["state"] == "running")
    with serving(tmp_path, runner_settings={"seconds": 0.0}) as client:
        assert finished(client, job)["state"] == "done"


def test_a_job_must_end_in_time(tmp_path: Path) -> None:
    """Its worker is stopped, and it is told so."""
    with serving(tmp_path, job_seconds=0.5) as client:
        job = finished(client, client.post("/jobs", files=pair(SLOW)).json()["id"])
        assert (job["state"], job["error"]) == ("failed", "it took longer than 0.5 s")


def _queued(store: Store, **arguments: Any) -> str:
    identifier, folder = store.new_folder()
    (folder / "input" / "pa.png").write_bytes(b"-")
    return store.add(identifier, ["--pa", "input/pa.png"], **arguments).id


def test_a_whole_result_is_taken_after_a_crash(tmp_path: Path) -> None:
    """Between its renaming and the row: it is not made twice; one that is not whole is."""
    store = Store(tmp_path)
    jobs = [_queued(store) for _ in range(2)]
    for _ in jobs:
        assert store.claim()
    (store.job_folder(jobs[0]) / "work").rename(store.job_folder(jobs[0]) / "result")
    (store.job_folder(jobs[1]) / "work" / "ct.nii.gz").write_bytes(b"half")
    (store.folder / "jobs" / "orphan").mkdir()
    store.close()
    after = Store(tmp_path)
    assert [getattr(after.get(job), "state", "") for job in jobs] == ["done", "queued"]
    assert not (store.folder / "jobs" / "orphan").exists()
    assert after.claim() and not list((after.job_folder(jobs[1]) / "work").iterdir())


def test_a_job_that_ends_the_service_is_given_up(tmp_path: Path) -> None:
    """As one that takes all of the machine's memory would, start after start."""
    store = Store(tmp_path)
    job = _queued(store)
    for _ in range(MAX_INTERRUPTIONS):
        assert store.claim()
        store.close()
        store = Store(tmp_path)
    assert getattr(store.get(job), "state", "") == "failed" and store.claim() is None


def test_a_queue_has_bounds_and_an_owner(tmp_path: Path) -> None:
    """One job more is refused, a second service too, and what has been kept long enough goes."""
    store = Store(tmp_path, max_queue=1)
    job = _queued(store, key="a")
    assert _queued(store, key="a") == job
    with pytest.raises(QueueFull):
        _queued(store)
    with pytest.raises(UserError, match="another service uses it"):
        Store(tmp_path)
    claimed = store.claim()
    assert claimed and store.settle(claimed, Outcome("done")) == "done"
    assert store.expire(1.0) == 0 and store.expire(-1.0) == 1 and store.get(job) is None
    assert not store.job_folder(job).exists()
