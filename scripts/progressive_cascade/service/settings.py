# SPDX-License-Identifier: Apache-2.0
"""What a service is told when it starts, and what a job came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MAX_DEATHS = 2
"""So many workers may die over one job before it is given up."""
MAX_INTERRUPTIONS = 5
"""So often the whole service may be ended under one job before it is given up."""


@dataclass(frozen=True)
class Settings:
    """What a service is told when it starts.

    Attributes:
        folder: where queue, uploads and results lie.
        runner: what a worker imports, ``module:function``; called once with `runner_settings`, it gives what is called
            with the arguments of each job.
        runner_settings: JSON, such as checkpoint and device.
        workers: jobs at a time.
        max_queue: jobs that wait or run; more are refused.
        max_upload: bytes of one request, and of what a zip holds unpacked.
        upload_seconds: in which a request has to arrive.
        job_seconds: in which a job has to end.
        keep_hours: after which the results of a job are removed.
        grace_seconds: in which running jobs may end when the service is asked to.
        token: what requests have to carry as `Authorization: Bearer`; None: nothing.
        hosts: names under which the service may be asked; None: any.
        dask: address of a Dask scheduler that runs the jobs; None: processes of this machine do.
    """

    folder: Path
    runner: str
    runner_settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    max_queue: int = 32
    max_upload: int = 128 << 20
    upload_seconds: float = 120.0
    job_seconds: float = 900.0
    keep_hours: float = 24.0
    grace_seconds: float = 30.0
    token: str | None = None
    hosts: tuple[str, ...] | None = ("localhost", "127.0.0.1", "[::1]")
    dask: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job on a worker.

    Attributes:
        kind: ``done``; ``refused``, the input is wrong; ``broken``, something else is; ``late``; ``died``, the worker;
            ``stopped``, because that was asked for.
        line: what is told of it.
    """

    kind: Literal["done", "refused", "broken", "late", "died", "stopped"]
    line: str = ""
