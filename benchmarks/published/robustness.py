# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks/robustness.py: what a reconstruction loses by what it was not told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conditions.radiographs import CONDITIONS, NOMINAL

_SCORES = {"native_psnr_3d_db": 2, "native_body_psnr_3d_db": 2, "reprojection_psnr_db": 1}
"""Columns: score and decimals."""


def robustness_table(report: Mapping[str, Any]) -> list[str]:
    """A row for every degree of every condition, means over patients.

    Args:
        report: what benchmarks/robustness.py wrote, to its end.

    Returns:
        Markdown lines.

    Raises:
        KeyError: if there is no summary.
    """
    settings, rows = report["settings"], report["rows"]
    cases = sorted({row["case"] for row in rows})
    over = f"of {cases[0]}" if len(cases) == 1 else f"means over {', '.join(cases)}"
    lines = [
        f"`{settings['checkpoint']['file']}` (SHA-256 {settings['checkpoint']['sha256'][:12]}) at {settings['grid']}³, "
        f"protocol `native`, {over}:",
        "",
        "| what the reconstruction is not told | degree | taken for | PSNR dB | in the body dB | re-projection dB |",
        "|---|---|---|---|---|---|",
    ]
    for point in report["summary"]:
        condition, value = point["condition"], point["value"]
        nominal = condition == NOMINAL
        label, degree = ("nothing", "") if nominal else (CONDITIONS[condition].label, f"{value:g}")
        numbers = [f"{point['scores'][name]['mean']:.{digits}f}" for name, digits in _SCORES.items()]
        kind = "calibrated" if point["calibrated"] else "uncalibrated"
        lines.append(f"| {label} | {degree} | {kind} | {' | '.join(numbers)} |")
    return lines
