# SPDX-License-Identifier: Apache-2.0
"""Time of the projector, its transpose and its gradient, and the transpose's mismatch, on three grids.

    python benchmarks/projector.py [--output benchmarks/results/projector.json] [--repeats 3] [--device cpu]

Each row projects a random volume of 358.4 mm onto PA and lateral detectors of twice its grid, in float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from progressive_cascade import ConeBeam, backproject, line_integrals, volume_affine

GRIDS = (64, 128, 256)


def seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    """Median wall time of ``run`` after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(grid: int, repeats: int, device: str) -> dict[str, float]:
    """One row of the table."""
    generator = torch.Generator().manual_seed(0)
    mu = (0.02 * torch.rand(1, 1, grid, grid, grid, generator=generator)).to(device)
    beam = ConeBeam(detector_shape=(2 * grid, 2 * grid), pixel_spacing=(430.08 / (2 * grid),) * 2)
    affine = volume_affine((grid,) * 3, 358.4 / grid)
    y = torch.rand(1, 2, 2 * grid, 2 * grid, generator=generator).to(device)

    def both() -> None:
        leaf = mu.clone().requires_grad_()
        line_integrals(leaf, beam, affine=affine).sum().backward()

    ax, aty = line_integrals(mu, beam, affine=affine), backproject(y, beam, shape=mu.shape[2:], affine=affine)
    inner = (ax.double() * y).sum()
    return {
        "grid": grid,
        "forward_s": seconds(lambda: line_integrals(mu, beam, affine=affine), repeats, device),
        "transpose_s": seconds(lambda: backproject(y, beam, shape=mu.shape[2:], affine=affine), repeats, device),
        "forward_backward_s": seconds(both, repeats, device),
        "mismatch": float(abs(inner - (aty.double() * mu).sum()) / inner),
    }


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "projector.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = []
    print(f"{'grid':>6}{'forward s':>12}{'transpose s':>13}{'f + b s':>10}{'mismatch':>12}")
    for grid in GRIDS:
        row = measure(grid, options.repeats, options.device)
        rows.append(row)
        print(
            f"{grid:6d}{row['forward_s']:12.4f}{row['transpose_s']:13.4f}"
            f"{row['forward_backward_s']:10.4f}{row['mismatch']:12.1e}"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "device": options.device, "torch": torch.__version__}
    machine["threads"] = torch.get_num_threads()
    options.output.write_text(json.dumps({**machine, "rows": rows}, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
