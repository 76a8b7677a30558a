# SPDX-License-Identifier: Apache-2.0
"""The projector beside its peers on the device: aligned, oblique, and a batch of different geometries."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from gpu_day.machine import busy, synchronize
from progressive_cascade import line_integrals
from projectors.ellipsoids import cached, thorax
from projectors.measure import geometry, measure, time_calls

VIEWS = {"aligned": ("pa", "left_lateral"), "oblique": ("lao30_cranial15", "lao45")}
ROWS = ("ours", "ours-torch", "nanodrr", "diffdrr-trilinear", "diffdrr-siddon")


def measure_row(row: str, device: str, *, grid: int, repeats: int) -> Iterator[dict[str, Any]]:
    """One projector, aligned and oblique; see ``benchmarks/projector.py`` for the protocol.

    Args:
        row: one of :data:`ROWS`.
        device: ``cuda`` or ``cpu``.
        grid: voxels a side.
        repeats: timed runs.

    Yields:
        A row for each set of views.
    """
    for case, views in VIEWS.items():
        beam, affine = geometry(grid, views)
        volume, truth = cached(thorax(), beam, (grid, grid, grid), affine)
        job = {"row": row, "grid": grid, "views": list(views), "device": device, "repeats": repeats}
        job |= {"threads": torch.get_num_threads(), "volume": str(volume), "truth": str(truth)}
        yield {"projector": row, "case": case, "grid": grid, **measure(job)}


def measure_batch(device: str, *, grid: int, size: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A batch of different geometries in one call, and the same sample by sample.

    Args:
        device: ``cuda`` or ``cpu``.
        grid: voxels a side.
        size: volumes, each with a geometry of its own, every other one oblique.
        repeats: timed runs.

    Yields:
        A row for our automatic choice and one for plain torch: seconds per volume.
    """
    aligned, affine = geometry(grid, VIEWS["aligned"])
    oblique = replace(aligned, views=VIEWS["oblique"])
    beams = [(aligned, oblique)[k % 2].at((2.0 * k, -3.0 * k, 1.5 * k)) for k in range(size)]
    generator = torch.Generator().manual_seed(0)
    mu = (0.02 * torch.rand(size, 1, grid, grid, grid, generator=generator)).to(device).requires_grad_()
    for backend in ("auto", "torch"):

        def both(backend: str = backend, which: slice = slice(None)) -> Any:
            p = line_integrals(mu[which], beams[which], affine=affine, backend=backend)
            return torch.autograd.grad(p.sum(), mu)

        def forward(backend: str = backend, which: slice = slice(None)) -> Any:
            with torch.no_grad():
                return line_integrals(mu[which], beams[which], affine=affine, backend=backend)

        def one_by_one(backend: str = backend) -> None:
            for k in range(size):
                forward(backend, slice(k, k + 1))

        row = {"projector": "ours" if backend == "auto" else "ours-torch", "case": "batch", "grid": grid, "batch": size}
        for name, run in (("forward", forward), ("forward_backward", both), ("forward_one_by_one", one_by_one)):
            synchronize(device)
            row[f"{name}_s"] = statistics.median(time_calls(run, device, repeats)[2]) / size
        yield row | ({"forward_busy": busy(forward, device)} if backend == "auto" else {})
