# SPDX-License-Identifier: Apache-2.0
"""Who prepares the series of an archive: this process, the cores of this machine, or a cluster of Dask workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.io import take_lock

CLUSTERS = ("slurm",)
_INSTALL = "pip install 'progressive-cascade[dask]'"
# Fewer series than this per process are done before the processes have started.
_SERIES_PER_PROCESS = 4
_SLURM_JOBS = 8
_WORK, _LOCK = ".preparing", "lock"
Job = TypeVar("Job")
Row = TypeVar("Row")


@dataclass(frozen=True)
class Workers:
    """Who works.

    Args:
        processes: on this machine, or jobs of a cluster; 0: this process; None: as many as it has cores, or as few as
            the jobs keep busy.
        scheduler: address of a Dask scheduler, such as ``tcp://node:8786``, whose workers see the same files.
        cluster: one of :data:`CLUSTERS`: Dask workers as jobs of a batch system, by dask-jobqueue's settings.
    """

    processes: int | None = None
    scheduler: str | None = None
    cluster: str | None = None

    def run(self, function: Callable[[Job], Row], jobs: list[Job]) -> Iterator[Row]:
        """Applies a function to every job.

        Returns:
            The results in the jobs' order, each as soon as it and those before it are there.

        Raises:
            UserError: if Dask is not installed, or the scheduler does not answer.
            RunError: if a process was killed.
        """
        with self._executor(len(jobs)) as executor:
            if executor is None:
                yield from map(function, jobs)
                return
            try:
                yield from executor.map(function, jobs)
            except BrokenProcessPool as error:
                raise RunError(
                    "a process was killed, as a system does to what takes too much memory: lower --workers; the same "
                    "command goes on with the series that are missing"
                ) from error

    @contextmanager
    def _executor(self, num_jobs: int) -> Iterator[Any]:
        if self.scheduler is not None or self.cluster is not None:
            with _dask_client(self.scheduler, self.processes or _SLURM_JOBS) as client:
                yield client.get_executor(pure=False)
            return
        processes = num_jobs // _SERIES_PER_PROCESS if self.processes is None else self.processes
        processes = min(processes, num_cores()) if self.processes is None else processes
        if processes < 2 and self.processes != 1:
            yield None
            return
        # Spawned, because a fork of a process that has run torch's threads may hang.
        pool: Executor = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
        with pool:
            yield pool


@contextmanager
def kept_work(output: Path) -> Iterator[Path]:
    """A hidden folder in the dataset's for series that are done: an interruption leaves it to the next call."""
    existed = output.exists()
    work = output / _WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"output folder {output} must be writable, got: {error.strerror}") from error
    if not take_lock(descriptor):
        os.close(descriptor)
        raise UserError(f"output folder {output} must be written by one `prepare` at a time, got another that runs")
    done = False
    try:
        yield work
        done = True
    except UserError:
        done = True
        raise
    finally:
        if done:
            shutil.rmtree(work, ignore_errors=True)
            if not existed and not any(output.iterdir()):
                output.rmdir()
        os.close(descriptor)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _dask_client(scheduler: str | None, jobs: int) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(f"--scheduler and --cluster need Dask: {_INSTALL}") from error
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise UserError(f"--scheduler must be a Dask scheduler that answers, got {scheduler}: {error}") from error
        with client:
            yield client
        return
    try:
        from dask_jobqueue import SLURMCluster  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"--cluster needs dask-jobqueue: {_INSTALL}") from error
    try:
        cluster = SLURMCluster()
    except ValueError as error:  # it has no default for cores and memory
        reason = " ".join(str(error).split())
        raise UserError(f"--cluster slurm must find cores and memory in dask's jobqueue.yaml: {reason}") from error
    with cluster, Client(cluster) as client:
        cluster.scale(jobs=jobs)
        yield client
