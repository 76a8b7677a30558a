# SPDX-License-Identifier: Apache-2.0
"""``python -m progressive_cascade.service.worker RUNNER SETTINGS``: a process that loads once and runs job after job.

Jobs come as lines of JSON on stdin, ``{"folder": ..., "arguments": [...]}``, and outcomes leave as lines on stdout. The
process works inside the job's folder, so that no message names another place. It ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from progressive_cascade.errors import RunError, UserError

Run = Callable[[Sequence[str]], None]


def main() -> None:
    """Loads, says so, and runs what comes."""
    runner, settings = sys.argv[1:3]
    # What libraries print must not mix with outcomes.
    outcomes = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, jobs), daemon=True).start()
    try:
        run = load(runner, json.loads(settings))
    except (UserError, RunError, OSError, ImportError) as error:
        _tell(outcomes, "broken", str(error))
        return
    _tell(outcomes, "ready", "")
    while True:
        job = jobs.get()
        os.chdir(job["folder"])
        _tell(outcomes, *attempt(run, job["arguments"]))
        os.chdir("/")


def load(runner: str, settings: Any) -> Run:
    """What runs jobs, from ``module:function``."""
    module, _, name = runner.partition(":")
    return getattr(import_module(module), name)(settings)


def attempt(run: Run, arguments: Sequence[str]) -> tuple[str, str]:
    """Runs one job; the kind of its outcome and a line."""
    try:
        run(arguments)
        _sync_results(Path("work"))
    except UserError as error:
        return "refused", str(error)
    except (RunError, MemoryError, OSError) as error:
        return "broken", str(error) or type(error).__name__
    except Exception as error:
        # Messages may hold what a header says of a patient, places in the code do not.
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "broken", f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
    return "done", ""


def _sync_results(folder: Path) -> None:
    """Waits until everything that was written is on the disk."""
    from progressive_cascade.io import sync

    for path in (folder, *folder.rglob("*")):
        sync(path)


def _read(stream: TextIO, jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in stream:
        jobs.put(json.loads(line))
    # Whoever started this process is gone: what it does is of no more use to anybody.
    os._exit(3)


def _tell(stream: TextIO, kind: str, line: str) -> None:
    stream.write(json.dumps({"kind": kind, "line": " ".join(line.split())[:2000]}) + "\n")


if __name__ == "__main__":
    main()
