# SPDX-License-Identifier: Apache-2.0
"""The projector against its peers: seconds, memory, error against analytic truth, mismatch of the transpose.

    python benchmarks/projector.py                    # everything; tens of minutes on two cores, 12 GB of memory
    python benchmarks/projector.py --quick            # 64³ alone, a minute or two
    python benchmarks/projector.py --rows ours rtk --grids 256
    python benchmarks/projector.py --device cuda
    python benchmarks/projector.py --paired --threads 1    # against itk-rtk alone, also on a machine that is not idle

A thorax of 401 ellipsoids in a cube of 358.4 mm, voxelised with 4³ samples per voxel, is projected from a source 700 mm
from the isocenter onto a detector of 716.8 mm, 1020 mm from the source, with twice the volume's pixels. The truth is
exact. Every row runs in a process of its own; "f+b" is the projection and its transpose applied to fixed weights: by
autograd, for itk-rtk by its back-projection filter. Seconds are medians; memory is what a call holds at its peak beyond
what was there before. Writes ``projector.json`` and ``projector.md`` (``projector_cuda.*`` on a GPU) to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from progressive_cascade.io import atomic_path, save_json
from projectors.agreement import agree_with_rtk, batch_equals_single_calls
from projectors.ellipsoids import cached, thorax
from projectors.measure import geometry, machine, measure
from projectors.paired import compare_with_rtk, paired_table
from projectors.peers import BUILDERS
from projectors.tables import add_ratios, markdown

GRIDS = (64, 128, 256, 512)
# Processor time that pairs of a grid and set of views take.
_PAIRED_SECONDS = 16.0
VIEWS = ("pa,left_lateral", "lao30_cranial15,lao45")
PROTOCOL = (
    "401 ellipsoids, 358.4 mm, 4³ samples per voxel; source_to_isocenter 700 mm, source_to_detector 1020 mm, detector "
    "716.8 mm; float32; truth from exact ray-ellipsoid chords at pixel centres; f+b: projection and its transpose (of "
    "itk-rtk its back-projection filter); medians; extra memory at the peak of a call; nanodrr and DiffDRR trilinear "
    "with two samples per voxel."
)
REPOSITORY = Path(__file__).resolve().parents[1]


def run_row(job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Measure one row in a process of its own.

    Args:
        job: see :func:`projectors.measure.measure`.
        timeout: give up after so long [s].

    Returns:
        The row; ``failed`` with the reason if the process did not come back with numbers.
    """
    row = {key: job[key] for key in ("row", "grid")} | {"views": ",".join(job["views"])}
    # Libraries read these when they are loaded, before anything in Python could tell them.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    environment = os.environ | dict.fromkeys(names, str(job["threads"]))
    command = [sys.executable, "-W", "ignore", __file__, "--job", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        return row | {"failed": f"not done after {timeout:g} s"}
    if done.returncode != 0:
        message = done.stderr.strip().splitlines()[-1:] or [f"ended by signal {-done.returncode}"]
        return row | {"failed": message[0][:200]}
    return row | json.loads(done.stdout.splitlines()[-1])


def run_cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every row on every grid, aligned and oblique views, as they come."""
    phantom = thorax()
    for grid in options.grids:
        for views in options.views:
            beam, affine = geometry(grid, tuple(views.split(",")))
            volume, truth = cached(phantom, beam, (grid,) * 3, affine)
            for name in options.rows:
                job = {"row": name, "grid": grid, "views": views.split(","), "device": options.device}
                job |= {"repeats": options.repeats, "threads": options.threads}
                yield run_row(job | {"volume": str(volume), "truth": str(truth)}, options.timeout)


def _print_row(row: dict[str, Any]) -> None:
    case = f"{row['grid']:4d}³ {row['views']:22s} {row['row']:18s}"
    if "forward_s" not in row:
        print(f"{case} {row.get('skipped') or 'FAILED: ' + row['failed']}", flush=True)
        return
    mib = (row["forward_mib"], row["forward_backward_mib"])
    memory = "".join("      –" if value is None else f"{value:7.0f}" for value in mib)
    ratios = f"{row['forward_ratio']:8.1f}{row['forward_backward_ratio']:8.1f}" if "forward_ratio" in row else ""
    times = f"{row['forward_s']:10.5f}{row['forward_backward_s']:10.5f}"
    print(f"{case}{times}{memory}  {row['error']:.5f}  {row['adjoint']:.0e}{ratios}", flush=True)


def _write(report: dict[str, Any], output: Path) -> None:
    """The report as JSON, and as a table beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=4) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(report), encoding="utf-8")


def write_pairs(options: argparse.Namespace) -> None:
    """Ours against itk-rtk by turns: ``projector_rtk.json`` and its table."""
    report: dict[str, Any] = {"machine": machine("cpu", options.threads), "rows": []}
    output = options.output.with_name("projector_rtk.json")
    for row in compare_with_rtk(options.grids, options.views, seconds=_PAIRED_SECONDS, threads=options.threads):
        report["rows"].append(row)
        save_json(report, output)
        with atomic_path(output.with_suffix(".md")) as temporary:
            temporary.write_text("\n".join(paired_table(report)) + "\n", encoding="utf-8")
    print("\n".join(paired_table(report)))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--grids", type=int, nargs="+", help=f"voxels a side, default {GRIDS}")
    parser.add_argument("--views", nargs="+", default=VIEWS, help=f"sets of views, default {' '.join(VIEWS)}")
    parser.add_argument("--repeats", type=int, help="timed runs after one to warm up; fewer where a run takes long")
    parser.add_argument("--paired", action="store_true", help="ours and itk-rtk by turns, in processor time")
    parser.add_argument("--quick", action="store_true", help="64³ alone, three repeats")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of every row")
    parser.add_argument("--timeout", type=float, default=1800, help="longest time for one row [s]")
    parser.add_argument("--cts", type=Path, default=REPOSITORY.parent / "shared" / "data" / "ct", help="real CTs")
    parser.add_argument("--no-checks", action="store_true", help="leave out the agreement with itk-rtk and the batch")
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .md")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.grids = options.grids or (GRIDS[:1] if options.quick else GRIDS)
    options.repeats = options.repeats or (3 if options.quick else 7)
    if options.repeats < 1 or options.threads < 1 or min(options.grids) < 8:
        parser.error("--repeats and --threads must be at least 1, --grids at least 8")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device must be available, got {options.device}: torch sees no CUDA device")
    name = "projector_cuda.json" if options.device.startswith("cuda") else "projector.json"
    options.output = options.output or REPOSITORY / "benchmarks" / "results" / name
    return options


def main() -> None:
    """Measure, print, write."""
    options = parse_options()
    if options.job is not None:
        print(json.dumps(measure(options.job)))
        return
    if options.paired:
        write_pairs(options)
        return
    memory = "MiB f, f+b"
    print(f"{'case':46s}{'forward s':>10s}{'f+b s':>10s}{memory:>14s}    error  adjoint   × ours f, f+b")
    report: dict[str, Any] = {"machine": machine(options.device, options.threads), "protocol": PROTOCOL}
    report["rows"] = []
    for row in run_cases(options):
        report["rows"].append(row)
        add_ratios(report["rows"])
        _print_row(row)
        _write(report, options.output)  # half an hour of rows outlives whatever happens next
    if not options.no_checks:
        report["batch_equals_single_calls"] = batch_equals_single_calls(64, options.device)
        if not options.device.startswith("cuda"):
            report["agreement"] = agree_with_rtk(options.cts, options.threads)
    _write(report, options.output)
    print(f"\n{markdown(report)}\nwrote {options.output} and {options.output.with_suffix('.md').name}")
    if any("failed" in row and row["row"].startswith("ours") for row in report["rows"]):
        sys.exit("a row of our own failed")


if __name__ == "__main__":
    main()
