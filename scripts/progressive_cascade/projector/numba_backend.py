# SPDX-License-Identifier: Apache-2.0
"""The compiled backend for the CPU: tensors in and out, the work shared among as many threads as torch uses.

A share is a part of what is written, never of what is read, so that results do not depend on the number of threads.
No compiler is needed where this runs: numba brings its own.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.projector import numba_rays, numba_slices, numba_virtual
from progressive_cascade.projector.plan import PixelLine, SlicePlan

# Shares differ in load, and threads start late on a busy machine: whoever is free takes the next one.
_SHARES_PER_THREAD = 3
# Two million steps take about two milliseconds, a waiting thread a few hundredths to wake.
_STEPS_WORTH_A_THREAD = 2_000_000
# Each share places the pixels anew: at 64³ six shares of a transpose cost 1.6 times the time of one, two 1.2 times.
_STEPS_WORTH_MORE_SHARES = 20_000_000
# A pixel of bicubic interpolation and its homography.
_CUBIC_STEPS = 20


def project_slices(slices: Tensor, plan: SlicePlan, weights: str) -> Tensor:
    """As :func:`.slices.project_slices`, on the CPU."""
    volume, slow, fast, swapped = _by_memory(slices, plan)
    lines, distance_driven = ((slow.scale, slow.offset), (fast.scale, fast.offset)), weights == "distance"
    span = plan.read_spans[1 if swapped else 0]
    out = np.zeros((slow.count, fast.count), volume.dtype)
    _share(
        lambda low, high: numba_slices.sum_slices(volume, *lines, distance_driven, span, out, low, high),
        slow.count,
        _steps(plan),
    )
    return torch.from_numpy(out.T if swapped else out)


def spread_slices(slices: Tensor, values: Tensor, plan: SlicePlan, weights: str) -> None:
    """As :func:`.slices.spread_slices`, on the CPU."""
    if min(slices.stride()[1:]) > slices.stride(0):
        copy = torch.zeros(slices.shape, dtype=slices.dtype)
        spread_slices(copy, values, plan, weights)
        slices += copy
        return
    volume, slow, fast, swapped = _by_memory(slices, plan)
    lines, distance_driven = ((slow.scale, slow.offset), (fast.scale, fast.offset)), weights == "distance"
    span = plan.read_spans[1 if swapped else 0]
    given = (values.t() if swapped else values).contiguous().numpy()
    _share(
        lambda low, high: numba_slices.spread_slices(volume, *lines, distance_driven, span, given, low, high),
        slow.size,
        _steps(plan),
    )


def resample(virtual: Tensor, plan: SlicePlan, detector_shape: tuple[int, int]) -> Tensor:
    """As :func:`.slices.resample`, on the CPU."""
    source = virtual.contiguous().numpy()
    out = np.empty(detector_shape, source.dtype)
    metric, normal, homography, box = _pose(plan)
    if homography is None:
        numba_virtual.weigh(source, metric, normal, out, 0, len(out))
    else:
        _share(
            lambda low, high: numba_virtual.resample(source, homography, metric, normal, box, out, low, high),
            len(out),
            _CUBIC_STEPS * out.size,
        )
    return torch.from_numpy(out)


def resample_transpose(values: Tensor, plan: SlicePlan) -> Tensor:
    """As :func:`.slices.resample_transpose`, on the CPU."""
    given = values.contiguous().numpy()
    metric, normal, homography, box = _pose(plan)
    if homography is None:
        out = np.empty(given.shape, given.dtype)
        numba_virtual.weigh(given, metric, normal, out, 0, len(out))
    else:
        out = np.zeros((plan.row.count, plan.col.count), given.dtype)
        _share(
            lambda low, high: numba_virtual.resample_transpose(given, homography, metric, normal, box, out, low, high),
            len(out),
            _CUBIC_STEPS * given.size,
        )
    return torch.from_numpy(out)


def sum_rays(volume: Tensor, axis: Tensor, lines: Tensor, span: Tensor) -> Tensor:
    """As :func:`.rays.sum_rays`, on the CPU."""
    flat = volume.contiguous()
    out = np.zeros(len(axis), flat.numpy().dtype)
    rays = _rays(axis, lines, span)
    data, shape = flat.view(-1).numpy(), np.array(flat.shape)
    _share(lambda low, high: numba_rays.sum_rays(data, shape, *rays, out, low, high), len(out), _ray_steps(span))
    return torch.from_numpy(out)


def spread_rays(values: Tensor, volume: Tensor, axis: Tensor, lines: Tensor, span: Tensor) -> None:
    """As :func:`.rays.spread_rays`, on the CPU."""
    given = values.contiguous().numpy()
    out = volume.view(-1).numpy()
    rays, sizes = _rays(axis, lines, span), np.array(volume.shape)
    _share(lambda low, high: numba_rays.spread_rays(out, sizes, *rays, given, low, high), len(volume), _ray_steps(span))


def differentiate_rays(volume: Tensor, axis: Tensor, lines: Tensor, span: Tensor) -> Tensor:
    """As :func:`.rays.differentiate_rays`, on the CPU."""
    flat = volume.contiguous()
    out = np.zeros((len(axis), 4))
    rays = _rays(axis, lines, span)
    data, shape = flat.view(-1).numpy(), np.array(flat.shape)
    _share(
        lambda low, high: numba_rays.differentiate_rays(data, shape, *rays, out, low, high),
        len(out),
        _ray_steps(span),
    )
    return torch.from_numpy(out)


def _share(work: Callable[[int, int], Any], count: int, steps: int) -> None:
    """Call ``work(low, high)`` on consecutive shares of ``range(count)``, on as many threads as torch may use.

    Args:
        work: releases the interpreter's lock.
        count: what is shared.
        steps: of the innermost loops altogether; a thread does not start for a few of them.
    """
    threads = min(torch.get_num_threads(), count) if steps > _STEPS_WORTH_A_THREAD else 1
    number = threads * (_SHARES_PER_THREAD if threads > 1 and steps > _STEPS_WORTH_MORE_SHARES else 1)
    shares = iter(list(itertools.pairwise([count * i // number for i in range(number + 1)])))

    def drain() -> None:
        for low, high in shares:
            work(low, high)

    helpers = [_pool(os.getpid(), threads - 1).submit(drain) for _ in range(threads - 1)]
    drain()  # the caller works, too; a helper that has not begun by the time everything is done is not waited for
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that wait for the next call; a forked process, in which they do not live on, starts its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"projector-{process}")


def _steps(plan: SlicePlan) -> int:
    return len(plan.row.scale) * plan.row.count * plan.col.count


def _ray_steps(span: Tensor) -> int:
    return int((span[:, 1] - span[:, 0]).sum())


def _by_memory(slices: Tensor, plan: SlicePlan) -> tuple[np.ndarray, PixelLine, PixelLine, bool]:
    """The slices with their densest axis last, the slow and the fast line, and whether rows are the fast one."""
    swapped = slices.stride(1) < slices.stride(2)
    ordered = slices.transpose(1, 2) if swapped else slices
    if ordered.stride(2) > ordered.stride(0):
        ordered = ordered.contiguous()
    slow, fast = (plan.col, plan.row) if swapped else (plan.row, plan.col)
    return ordered.numpy(), slow, fast, swapped


def _pose(plan: SlicePlan) -> tuple[np.ndarray, np.ndarray, Any, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Metric, normal, homography and the box (inverse, source, shape) of a view."""
    inverse = np.ascontiguousarray(plan.inverse)
    return plan.metric, inverse[plan.axes[0]], plan.homography, (inverse, plan.source, plan.shape)


def _rays(axis: Tensor, lines: Tensor, span: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return axis.contiguous().numpy(), lines.detach().contiguous().numpy(), span.contiguous().numpy()
