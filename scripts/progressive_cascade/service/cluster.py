# SPDX-License-Identifier: Apache-2.0
"""Jobs on a Dask cluster: files travel with the job, no folder is shared.

A Dask worker keeps one :class:`~progressive_cascade.service.process.WorkerProcess`, so that time limit, a death over a
job and the network loaded once are what they are on one machine.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from progressive_cascade.service.process import WorkerProcess
from progressive_cascade.service.settings import Outcome

_POLL = 0.1
_LOAD_SECONDS = 300.0
_TURNS = threading.Lock()


class ClusterWorker:
    """Runs one job at a time on a cluster.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.
        runner: what a worker loads, ``module:function``; the package must be installed there.
        settings: what that is told, JSON; paths in it are the cluster's.
    """

    def __init__(self, address: str, runner: str, settings: Mapping[str, Any]) -> None:
        self._address, self._runner, self._settings = address, runner, dict(settings)
        self._client: Any = None
        self.starts, self.problem = 0, ""

    @property
    def is_ready(self) -> bool:
        """Whether the scheduler answers and has a worker."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            return self._client is not None and bool(self._client.scheduler_info(n_workers=-1)["workers"])
        return False

    def ensure(self) -> bool:
        """Connects where that is not done yet."""
        if self._client is None:
            from distributed import Client

            try:
                self._client = Client(self._address, timeout=10, set_as_default=False)
                self.starts += 1
                self.problem = ""
            except (OSError, TimeoutError, ValueError) as error:
                self.problem = f"--dask must be the address of a scheduler, got {self._address}: {error}"
        return self.is_ready

    def run(self, folder: Path, arguments: Sequence[str], *, seconds: float, is_wanted: Callable[[], bool]) -> Outcome:
        """Runs a job on one of the cluster's workers, and brings its results into ``folder/work``."""
        from distributed import CancelledError, KilledWorker

        files = read_files(folder / "input")
        future = self._client.submit(
            run_remotely, self._runner, self._settings, files, list(arguments), seconds, pure=False, retries=0
        )
        # A machine may vanish in silence; its job then counts as one that ended its worker.
        end = time.monotonic() + seconds + _LOAD_SECONDS
        while not future.done():
            if not is_wanted() or time.monotonic() > end:
                future.cancel(force=True)
                return Outcome("stopped") if time.monotonic() <= end else Outcome("died")
            time.sleep(_POLL)
        try:
            kind, line, results = future.result()
        except (KilledWorker, CancelledError):
            return Outcome("died")
        write_files(folder / "work", results)
        return Outcome(kind, line)

    def stop(self) -> None:
        """Leaves the cluster."""
        if self._client is not None:
            self._client.close()
            self._client = None


def run_remotely(
    runner: str, settings: Mapping[str, Any], files: Mapping[str, bytes], arguments: Sequence[str], seconds: float
) -> tuple[str, str, dict[str, bytes]]:
    """What a Dask worker does: kind and line of the outcome, and the files of the result."""
    with _TURNS, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "input", files)
        (folder / "work").mkdir()
        worker = _own_worker(runner, json.dumps(dict(settings), sort_keys=True))
        end = time.monotonic() + _LOAD_SECONDS
        while not worker.ensure():
            if worker.problem or time.monotonic() > end:
                return "broken", worker.problem or f"the network must load within {_LOAD_SECONDS:g} s, it did not", {}
            time.sleep(_POLL)
        outcome = worker.run(folder, arguments, seconds=seconds, is_wanted=lambda: True)
        return outcome.kind, outcome.line, read_files(folder / "work") if outcome.kind == "done" else {}


@cache
def _own_worker(runner: str, settings: str) -> WorkerProcess:
    return WorkerProcess(runner, json.loads(settings))


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their path inside it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files whose paths are inside a folder, and waits until they are on the disk."""
    from progressive_cascade.io import sync

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sync(path)
    sync(folder)
