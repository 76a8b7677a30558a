# SPDX-License-Identifier: Apache-2.0
"""Several processes on this machine train one stage, started and watched by torch's elastic launcher."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Sequence
from types import FrameType

from progressive_cascade.errors import RunError


def run_processes(command: Sequence[str], *, processes: int, restarts: int = 0) -> None:
    """Runs a Python command line in several processes, as ``torchrun --standalone`` does; ends when all have.

    When one ends early, the others are ended with it, within the half minute that the launcher grants them; with
    restarts left, all are started again and go on from the last checkpoint. SIGTERM and SIGINT are passed on to all,
    and so is SIGUSR1, as SIGTERM: the launcher cannot pass it on as what it is.

    Args:
        command: arguments of the interpreter.
        processes: how many.
        restarts: so many times in all.

    Raises:
        RunError: naming the process that ended first, and how.
        SystemExit: 128 + the signal's number, where one ended the run.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.5,
    )
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _as_term)
    # As torchrun: more threads than cores would make each process slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RunError(_describe(rank, failure.pid, failure.exitcode)) from error
    except SignalException as error:
        sys.exit(128 + int(error.sigval))


def _as_term(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _describe(rank: int, pid: int, code: int) -> str:
    go_on = "the others were ended with it; the same command goes on from the last checkpoint"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as a system does to what takes too much memory" if name == "SIGKILL" else ""
        return f"process {rank} ({pid}) was killed by {name}{hint}; {go_on}"
    return f"process {rank} ({pid}) ended with exit code {code}, its line above says why; {go_on}"
