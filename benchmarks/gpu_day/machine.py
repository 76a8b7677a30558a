# SPDX-License-Identifier: Apache-2.0
"""What a GPU's numbers depend on: card, driver, versions; and the clock and memory of either kind of device."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = ("progressive-cascade", "torch", "triton", "monai", "pytorch-ignite", "numpy", "nanodrr", "diffdrr")


def describe() -> dict[str, Any]:
    """Card, driver and versions; on a machine without a GPU its processor."""
    cuda = torch.cuda.is_available()
    return {
        "card": torch.cuda.get_device_name() if cuda else "cpu",
        "cards": torch.cuda.device_count() if cuda else 0,
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def slug(card: str) -> str:
    """A card's name as part of a file's.

    Example:
        >>> slug("NVIDIA H100 80GB HBM3")
        'nvidia_h100_80gb_hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")


def synchronize(device: str) -> None:
    """Wait for all that is queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: str) -> float | None:
    """Most memory that tensors held since the last :func:`reset_peak` [GiB]; None on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 3) if device == "cuda" else None


def reset_peak(device: str) -> None:
    """Count the peak anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def busy(run: Callable[[], Any], device: str, *, most: int = 8) -> dict[str, Any]:
    """What a GPU is busy with during a call: seconds of all kernels, their number, and the longest ones.

    Args:
        run: the call, warmed up.
        device: ``cuda``, or ``cpu``, of which nothing is said.
        most: kernels to name.

    Returns:
        ``busy_s``, ``launches`` and ``kernels``, seconds by name; empty on a CPU.
    """
    if device != "cuda":
        return {}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in profile.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us() * 1e-6)
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:most]
    return {
        "busy_s": sum(map(sum, kernels.values())),
        "launches": sum(map(len, kernels.values())),
        "kernels": {name[:80]: round(sum(times), 6) for name, times in longest},
    }


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
