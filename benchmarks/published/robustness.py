# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks/robustness.py: what a reconstruction loses by what it was not told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conditions.radiographs import CONDITIONS, NOMINAL

_SCORES = {"native_psnr_3d_db": 2, "aligned_native_psnr_3d_db": 2, "native_body_mae_hu": 0, "unexplained": 2}
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
    kinds = {row["case"]: row["kind"] for row in rows}
    counts = [f"{list(kinds.values()).count(kind)} {kind}" for kind in dict.fromkeys(kinds.values())]
    lines = [
        f"`{settings['checkpoint']['file']}` (SHA-256 {settings['checkpoint']['sha256'][:12]}) at {settings['grid']}³, "
        f"refined in {settings['refine']['steps']} steps, protocol `native`, means over {len(kinds)} cases "
        f"({', '.join(counts)}); in brackets what is lost against nothing wrong:",
        "",
        "| what it is not told | degree | told | PSNR dB | aligned dB | body MAE HU | unexplained |",
        "|---|---|---|---|---|---|---|",
    ]
    nominal = next(point["scores"] for point in report["summary"] if point["condition"] == NOMINAL)
    for point in report["summary"]:
        condition, scores = point["condition"], point["scores"]
        is_nominal = condition == NOMINAL
        label, degree = ("nothing", "") if is_nominal else (CONDITIONS[condition].label, f"{point['value']:g}")
        numbers = []
        for name, digits in _SCORES.items():
            number = f"{scores[name]['mean']:.{digits}f}" if name in scores else ""
            if name.endswith("_db") and number and not is_nominal:
                number += f" ({scores[name]['mean'] - nominal[name]['mean']:+.2f})"
            numbers.append(number)
        lines.append(f"| {label} | {degree} | {point['told']} | {' | '.join(numbers)} |")
    return lines
