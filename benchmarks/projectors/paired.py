# SPDX-License-Identifier: Apache-2.0
"""Our operator against itk-rtk, turn by turn in one process and in processor time, which other programs hardly change.

A pair is one call of either, ours first and RTK first by turns; the ratio is RTK's time over ours, its median over all
pairs is what counts, and the quartiles say how sure it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from projectors.measure import geometry
from projectors.peers import RTK, Ours, Problem

_STEPS = ("forward", "forward_backward")


def compare_with_rtk(
    grids: Sequence[int], views: Sequence[str], *, seconds: float, threads: int
) -> Iterator[dict[str, Any]]:
    """Measure every grid and set of views.

    Args:
        grids: voxels a side.
        views: sets of views, comma-separated.
        seconds: of processor time for a grid and set of views.
        threads: of either projector.

    Yields:
        ``grid``, ``views``, and for each step seconds of processor time of either, the median ratio and its quartiles.
    """
    torch.set_num_threads(threads)
    for grid in grids:
        for names in views:
            beam, affine = geometry(grid, tuple(names.split(",")))
            rng = np.random.default_rng(0)
            weights = rng.random((len(beam.views), *beam.detector_shape), dtype=np.float32)
            problem = Problem(0.02 * rng.random((grid, grid, grid), dtype=np.float32), affine, beam, weights)
            ours, rtk = Ours(problem), RTK(problem)
            row: dict[str, Any] = {"grid": grid, "views": names}
            for step in _STEPS:
                row[step] = _pairs(getattr(ours, step), getattr(rtk, step), seconds / len(_STEPS))
            yield row


def paired_table(report: Mapping[str, Any]) -> list[str]:
    """The rows as Markdown.

    Args:
        report: ``machine`` and ``rows``.

    Returns:
        Lines.
    """
    machine = report["machine"]
    lines = [
        f"{machine['processor']}, threads: {machine['threads']}, torch {machine['torch']}: ours and itk-rtk's Joseph "
        "by turns in one process,",
        "processor time; medians, in brackets the quartiles of the ratio.",
        "",
        "| case | forward ms, ours / RTK | RTK over ours | f+b ms, ours / RTK | RTK over ours |",
        "|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        cells = [f"{row['grid']}³ to {2 * row['grid']}², {row['views'].replace(',', ' and ')}"]
        for step in _STEPS:
            part = row[step]
            low, high = part["quartiles"]
            cells.append(f"{1e3 * part['ours_cpu_s']:.3g} / {1e3 * part['rtk_cpu_s']:.3g}")
            cells.append(f"{part['ratio']:.2f} [{low:.2f}, {high:.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _pairs(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> dict[str, Any]:
    times: list[tuple[float, float]] = []
    calls = _calls(ours), _calls(theirs)
    start = time.process_time()
    while len(times) < 3 or time.process_time() - start < seconds:
        order = (0, 1) if len(times) % 2 else (1, 0)
        pair = {which: _processor_seconds((ours, theirs)[which], calls[which]) for which in order}
        times.append((pair[0], pair[1]))
    mine, other = (np.array(column) for column in zip(*times, strict=True))
    quartiles = np.quantile(other / mine, (0.25, 0.5, 0.75))
    return {
        "ours_cpu_s": float(np.median(mine)),
        "rtk_cpu_s": float(np.median(other)),
        "ratio": float(quartiles[1]),
        "quartiles": [float(quartiles[0]), float(quartiles[2])],
        "pairs": len(times),
    }


def _calls(run: Callable[[], Any]) -> int:
    """So many calls together take long enough for the clock; the first one, which compiles, does not count."""
    run()
    return max(1, int(0.02 / max(_processor_seconds(run, 1), 1e-4)))


def _processor_seconds(run: Callable[[], Any], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls
