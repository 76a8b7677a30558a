# SPDX-License-Identifier: Apache-2.0
"""A worker from outside: started, watched, stopped in time, started again when it has died."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from progressive_cascade.service.settings import Outcome

_POLL = 0.1
# A worker that cannot load is tried again after so many seconds, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class WorkerProcess:
    """A process of :mod:`progressive_cascade.service.worker`; one thread may use it at a time.

    Args:
        runner: what it loads, ``module:function``.
        settings: what that is told, JSON.
    """

    def __init__(self, runner: str, settings: Mapping[str, Any]) -> None:
        self._command = [sys.executable, "-m", f"{__package__}.worker", runner, json.dumps(dict(settings))]
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[dict[str, str] | None] = queue.Queue()
        self._is_loaded = False
        self._next_start, self._pause = 0.0, _FIRST_PAUSE
        self.starts = 0
        self.problem = ""

    @property
    def is_ready(self) -> bool:
        """Whether it has loaded and is alive."""
        return self._is_loaded and self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process, where there is one."""
        return None if self._process is None else self._process.pid

    def ensure(self) -> bool:
        """Starts it where it is not alive, and takes note of its word that it has loaded.

        Returns:
            Whether it is ready.
        """
        if self._process is None or self._process.poll() is not None:
            if self._process is not None and not self._is_loaded and self._next_start == 0:
                self._drain()
                self._next_start = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            if time.monotonic() < self._next_start:
                return False
            self._start()
        elif not self._is_loaded:
            self._drain()
        return self.is_ready

    def run(self, folder: Path, arguments: Sequence[str], *, seconds: float, is_wanted: Callable[[], bool]) -> Outcome:
        """Runs a job, while it is wanted and not late; a worker that is stopped is killed.

        Args:
            folder: in which it works; results go into ``work`` there.
            arguments: of the runner.
            seconds: after which it is late.
            is_wanted: asked now and then.

        Returns:
            What became of it.
        """
        process, end = self._process, time.monotonic() + seconds
        if process is None or process.stdin is None:
            return Outcome("stopped")
        try:
            process.stdin.write(json.dumps({"folder": str(folder.absolute()), "arguments": list(arguments)}) + "\n")
            process.stdin.flush()
        except OSError:  # it died before the job began, which is not the job's fault
            return Outcome("stopped")
        while True:
            try:
                told = self._lines.get(timeout=_POLL)
            except queue.Empty:
                if not is_wanted():
                    self.stop()
                    return Outcome("stopped")
                if time.monotonic() > end:
                    self.stop()
                    return Outcome("late", f"it took longer than {seconds:g} s")
                continue
            if told is None:
                self.stop()  # it may be dying still, and must not be given the next job
                return Outcome("died")
            return Outcome(told["kind"], told["line"])  # type: ignore[arg-type]

    def stop(self) -> None:
        """Kills the process and waits for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
        self._is_loaded = False

    def _start(self) -> None:
        self.stop()
        self._lines = queue.Queue()
        self._next_start = 0.0
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            # What this process imports, wherever it found it, is what the worker imports.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)},
            # A terminal's Ctrl-C is for the service, which then asks its workers.
            start_new_session=os.name != "nt",
        )
        self.starts += 1
        threading.Thread(target=_forward, args=(self._process, self._lines), daemon=True).start()

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            told = self._lines.get(timeout=_POLL)
            if told is not None and told["kind"] == "ready":
                self._is_loaded, self._pause, self.problem = True, _FIRST_PAUSE, ""
            elif told is not None:
                self.problem = told["line"]
            elif not self.problem:
                self.problem = "a worker ended while it loaded"


def _forward(process: subprocess.Popen[str], lines: queue.Queue[dict[str, str] | None]) -> None:
    """Outcomes, line by line; None at the end."""
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                lines.put(json.loads(line))
    lines.put(None)
