# SPDX-License-Identifier: Apache-2.0
"""Workers that take jobs from the queue, one thread each; a janitor that removes what has been kept long enough."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from progressive_cascade.service.metrics import Metrics
from progressive_cascade.service.process import WorkerProcess
from progressive_cascade.service.settings import Outcome, Settings
from progressive_cascade.service.store import Job, Store

LOG = logging.getLogger("progressive_cascade.service")
_IDLE, _JANITOR = 0.2, 60.0


class Worker(Protocol):
    """What runs jobs: a process of this machine, or a cluster's."""

    starts: int
    problem: str

    @property
    def is_ready(self) -> bool:
        """Whether it can take a job now."""
        ...

    def ensure(self) -> bool:
        """Does what is needed to be ready; whether it is."""
        ...

    def run(self, folder: Path, arguments: Sequence[str], *, seconds: float, is_wanted: Callable[[], bool]) -> Outcome:
        """Runs a job in its folder."""
        ...

    def stop(self) -> None:
        """Ends it."""
        ...


class Pool:
    """Runs the jobs of a queue.

    Args:
        store: the queue.
        settings: of the service.
        metrics: counts what happens.
    """

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store, self._settings, self._metrics = store, settings, metrics
        self.workers: list[Worker] = [make_worker(settings) for _ in range(settings.workers)]
        self._is_closing, self._is_stopping = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True, name=f"worker {number}")
            for number, worker in enumerate(self.workers)
        ]
        self._threads.append(threading.Thread(target=self._clean, daemon=True, name="janitor"))

    def start(self) -> None:
        """Starts workers and janitor."""
        for thread in self._threads:
            thread.start()

    @property
    def num_ready(self) -> int:
        """Workers that are alive and have loaded."""
        return sum(worker.is_ready for worker in self.workers)

    @property
    def is_closing(self) -> bool:
        """Whether no more jobs are begun."""
        return self._is_closing.is_set()

    @property
    def problem(self) -> str:
        """Why a worker cannot load, empty where none is known."""
        return next((worker.problem for worker in self.workers if worker.problem), "")

    def close(self) -> None:
        """Begins no more jobs, waits for those that run as long as grace allows; the others wait for the next start."""
        self._is_closing.set()
        end = time.monotonic() + self._settings.grace_seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._is_stopping.set()
        for thread in self._threads:
            thread.join()
        for worker in self.workers:
            worker.stop()

    def _serve(self, worker: Worker) -> None:
        starts = 0
        while not self._is_closing.is_set():
            try:
                is_ready = worker.ensure()
                self._metrics.restarts.inc(max(0, worker.starts - max(starts, 1)))
                starts = worker.starts
                job = self._store.claim() if is_ready else None
                if job is None:
                    self._is_closing.wait(_IDLE)
                    continue
                self._run(worker, job)
            except Exception as error:  # a full disk must not end the thread
                LOG.error("worker thread: %s", type(error).__name__)
                self._is_closing.wait(5.0)

    def _run(self, worker: Worker, job: Job) -> None:
        begun = time.monotonic()
        outcome = worker.run(
            self._store.job_folder(job.id),
            job.arguments,
            seconds=self._settings.job_seconds,
            is_wanted=lambda: not self._is_stopping.is_set() and self._store.get(job.id) is not None,
        )
        try:
            state = self._store.settle(job, outcome)
        except OSError as error:  # a full disk, mostly
            outcome = Outcome("broken", f"its result could not be kept: {error.strerror}")
            state = self._store.settle(job, outcome)
        seconds = time.monotonic() - begun
        self._metrics.outcomes.labels(outcome.kind).inc()
        if state in ("done", "failed"):
            self._metrics.finished.labels(state).inc()
            self._metrics.seconds.observe(seconds)
        LOG.info("job %s: %s after %.1f s, now %s", job.id, outcome.kind, seconds, state)

    def _clean(self) -> None:
        while not self._is_closing.wait(_JANITOR):
            count = self._store.expire(self._settings.keep_hours)
            if count:
                LOG.info("%d jobs were removed after %g h", count, self._settings.keep_hours)


def make_worker(settings: Settings) -> Worker:
    """A worker of this machine, or of the cluster that the settings name."""
    if settings.dask is None:
        return WorkerProcess(settings.runner, settings.runner_settings)
    from progressive_cascade.service.cluster import ClusterWorker

    return ClusterWorker(settings.dask, settings.runner, settings.runner_settings)
