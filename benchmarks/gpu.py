# SPDX-License-Identifier: Apache-2.0
"""One command for a day on a GPU: tests, projector, training, reconstruction and the bundle's commands, in 8 minutes.

    python benchmarks/gpu.py                  # or `make gpu`
    python benchmarks/gpu.py --allow-cpu      # everything on a few voxels, to try the kit itself where there is no GPU
    python benchmarks/gpu.py --parts projector training

Every job is a process of its own with a limit; when one fails the next begins, and when the budget is spent those that
are left say so. Nothing is fetched from a network. Peers of the projector are measured where they are installed.

Writes ``gpu_<card>.json`` and ``gpu_<card>.md`` to ``benchmarks/results``, anew after every job;
``benchmarks/results_tables.py`` brings them into the README. Ends with 1 where a job failed, with 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gpu_day.commands import miniature_settings
from gpu_day.jobs import FULL, MARK, ROOT, TINY, Job, list_jobs, run_job
from gpu_day.machine import describe, slug
from gpu_day.tables import markdown
from progressive_cascade.io import atomic_path, save_json

PARTS = ("projector", "tests", "training", "reconstruction", "commands")
BUDGET_S = 465.0


def measure(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a measuring job, in this process.

    Args:
        job: ``part``, ``device`` and the arguments of the part's function.

    Returns:
        Its rows as they come.
    """
    part, device, miniature = job.pop("part"), job.pop("device"), job.pop("miniature", False)
    if part == "projector":
        from gpu_day.projection import measure_batch, measure_row

        row = job.pop("row")
        yield from measure_batch(device, **job) if row == "batch" else measure_row(row, device, **job)
    elif part == "training":
        from gpu_day.training import measure_steps

        yield measure_steps(**job, device=device, settings=miniature_settings(job["stage"]) if miniature else {})
    else:
        from gpu_day.reconstruction import measure_reconstruction

        yield measure_reconstruction(device, miniature=miniature, **job)


def run_all(jobs: Iterable[Job], report: dict[str, Any], output: Path, *, budget: float) -> None:
    """Run jobs one by one and keep what is known after each of them.

    Args:
        jobs: in their order.
        report: gets ``rows`` and ``jobs``.
        output: JSON file; the table goes beside it as .md.
        budget: seconds for all of them.
    """
    start = time.monotonic()
    for job in jobs:
        *rows, ending = run_job(job, start + budget - time.monotonic())
        report["rows"] += rows
        report["jobs"].append(ending)
        report["seconds"] = round(time.monotonic() - start, 1)
        save_json(report, output)
        with atomic_path(output.with_suffix(".md")) as temporary:
            temporary.write_text(markdown(report), encoding="utf-8")
        print(f"{ending['seconds']:6.1f} s  {job.part:15s}{job.name:40s}{ending['state']}", flush=True)
        for line in ending.get("end", []) if ending["state"] != "done" else []:
            print(f"          {line[:200]}")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allow-cpu", action="store_true", help="without a GPU run everything on a few voxels")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help=f"seconds altogether, default {BUDGET_S:g}")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder to write")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse_options(arguments)
    if options.job is not None:
        for row in measure(options.job):
            print(MARK + json.dumps(row), flush=True)
        return 0
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device on this machine", file=sys.stderr)
        if not options.allow_cpu:
            print("--allow-cpu tries the kit on a few voxels; its times mean nothing", file=sys.stderr)
            return 2
    report: dict[str, Any] = {"machine": describe(), "budget_s": options.budget, "rows": [], "jobs": []}
    options.results.mkdir(parents=True, exist_ok=True)
    output = options.results / f"gpu_{slug(report['machine']['card'])}.json"
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        size, processes = (FULL, torch.cuda.device_count()) if cuda else (TINY, 2)
        jobs = list_jobs(size, "cuda" if cuda else "cpu", processes, Path(folder))
        wanted = [job for job in jobs if job.part in options.parts]
        run_all(wanted, report, output, budget=options.budget)
    print(f"\n{markdown(report)}\nwrote {output} and {output.with_suffix('.md').name}, {report['seconds']:.0f} s")
    return int(any(job["state"] != "done" for job in report["jobs"]))


if __name__ == "__main__":
    sys.exit(main())
