# SPDX-License-Identifier: Apache-2.0
"""The table of geometries: what each costs, with the weights for any of them and with those of the chest stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {"any": "`any_geometry.pt`", "stand": "`model.pt`"}


def geometries_table(report: Mapping[str, Any]) -> list[str]:
    """PSNR, SSIM and error by geometry, case and weights.

    Args:
        report: what ``benchmarks/geometries.py`` wrote.

    Returns:
        Markdown lines; weights that do not take a geometry have no row there.
    """
    rows = [row for row in report["rows"] if row["scores"] is not None]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    found = {(row["condition"], row["weights"], row["case"]): row["scores"] for row in rows}
    lines = ["| X-rays | weights | " + " | ".join(cases) + " |", "|---" * (len(cases) + 2) + "|"]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        for weights, name in _NAMES.items():
            scores = [found.get((condition, weights, case)) for case in cases]
            if any(scores):
                cells = [_cell(each) for each in scores]
                lines.append(f"| {condition} | {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(scores: Mapping[str, float] | None) -> str:
    if scores is None:
        return "–"
    return f"{scores['native_psnr_3d_db']:.2f}, {scores['native_ssim_3d']:.3f}, {scores['native_body_mae_hu']:.0f}"
