# SPDX-License-Identifier: Apache-2.0
"""Jobs: one process each, with a limit; what it printed by then counts, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_day.commands import commands
from gpu_day.projection import ROWS

ROOT = Path(__file__).resolve().parents[2]
MARK = "ROW "
"""What a line of standard output begins with that is a row in JSON."""
# Fewer seconds than these are not worth a start of Python, torch and a GPU.
_WORTHWHILE = 5.0
# Seconds in which a job that is asked to end does so.
_GRACE = 10.0


@dataclass(frozen=True)
class Job:
    """One process.

    Args:
        part: which part of the report its rows belong to.
        name: of the job.
        command: program and arguments.
        limit: seconds after which it is ended.
        folder: where it runs.
    """

    part: str
    name: str
    command: list[str]
    limit: float
    folder: Path = ROOT


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Args:
        miniature: whether the networks are.
        grid: voxels a side for the projector.
        repeats: timed runs.
        steps: of training, timed together.
        rows: of the projector's table.
        settings: of the reconstruction, whether in bfloat16 and in which window.
        tests: arguments of pytest.
    """

    miniature: bool
    grid: int
    repeats: int
    steps: int
    rows: tuple[str, ...]
    settings: tuple[tuple[bool, int | None], ...]
    tests: tuple[str, ...]


FULL = Size(
    miniature=False,
    grid=256,
    repeats=7,
    steps=20,
    rows=ROWS,
    settings=((False, None), (True, None), (False, 160), (True, 160)),
    tests=("tests",),
)
TINY = Size(
    miniature=True,
    grid=16,
    repeats=1,
    steps=2,
    rows=("ours", "nanodrr"),
    settings=((False, 32),),
    tests=("tests/projector/test_triton.py", "-k", "batch or missing or memory"),
)


def list_jobs(size: Size, device: str, processes: int, folder: Path) -> list[Job]:
    """All jobs, those first that tell most.

    Args:
        size: of everything.
        device: ``cuda`` or ``cpu``.
        processes: of distributed training.
        folder: where commands write.

    Returns:
        The jobs.
    """
    own = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu.py"), "--job"]

    def measuring(part: str, name: str, limit: float, **job: Any) -> Job:
        return Job(part, name, [*own, json.dumps({"part": part, "device": device, **job})], limit)

    projection = {"grid": size.grid, "repeats": size.repeats}
    jobs = [measuring("projector", row, 60, row=row, **projection) for row in size.rows]
    jobs.append(measuring("projector", "batch", 60, row="batch", size=4, **projection))
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", *size.tests]
    jobs.append(Job("tests", "marked cuda", pytest, 120))
    for stage in (1, 2, 3):
        settings = {"stage": stage, "steps": size.steps, "miniature": size.miniature}
        jobs.append(measuring("training", f"stage {stage}", 60, **settings))
    for amp, window in size.settings:
        name = f"{'bfloat16' if amp else 'float32'}, window {window or 'whole'}"
        settings = {"amp": amp, "window": window, "repeats": size.repeats, "miniature": size.miniature}
        jobs.append(measuring("reconstruction", name, 45, **settings))
    listed = commands(folder, processes=processes, miniature=size.miniature)
    return [*jobs, *(Job("commands", name, command, 75, place) for name, command, place in listed)]


def run_job(job: Job, seconds_left: float) -> list[dict[str, Any]]:
    """Run a job.

    Args:
        job: the job.
        seconds_left: of the whole budget.

    Returns:
        Its rows, and behind them how it ended: ``state`` (``done``, ``failed``, ``too long``, ``no time left``), its
        ``seconds`` and, where it is not done, the end of what it printed.
    """
    ending: dict[str, Any] = {"part": job.part, "job": job.name}
    limit = min(job.limit, seconds_left)
    if limit < _WORTHWHILE:
        return [ending | {"state": "no time left", "seconds": 0.0}]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        start = time.perf_counter()
        state = _wait(job, limit, output)
        ending |= {"state": state, "seconds": round(time.perf_counter() - start, 1)}
        output.seek(0)
        lines = output.read().splitlines()
    rows = [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    said = [line for line in lines if line.strip() and not line.startswith(MARK)]
    if state != "done" or job.part == "tests":
        ending["end"] = said[-12:] if state != "done" else said[-1:]
    return [*({"part": job.part, "job": job.name, **row} for row in rows), ending]


def _wait(job: Job, limit: float, output: Any) -> str:
    search = os.pathsep.join(filter(None, [str(ROOT / "scripts"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg"}
    if not torch.cuda.is_available():
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")  # a trial shares the processor
    options: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    options["start_new_session"] = os.name == "posix"
    process = subprocess.Popen(job.command, cwd=job.folder, env=environment, **options)
    try:
        return "done" if process.wait(limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "too long"
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """Ends a job with all its processes.

    torchrun starts each rank in a session of its own, out of reach of a signal to the group, and ends them when it is
    asked to.
    """
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
