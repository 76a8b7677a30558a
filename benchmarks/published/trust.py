# SPDX-License-Identifier: Apache-2.0
"""Tables of the expected error and of recalibrated sigma, from what ``benchmarks/trust.py`` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ERRORS = {
    "body_mae_hu": ("MAE in the body [HU]", ".0f"),
    "psnr_3d_db": ("PSNR [dB]", ".1f"),
    "lungs_surface_mm": ("border of the lungs [mm]", ".1f"),
    "body_surface_mm": ("border of the body [mm]", ".1f"),
}


def trust_table(report: Mapping[str, Any]) -> list[str]:
    """Rank correlation, coverage, and how far off, by error and part.

    Args:
        report: of the benchmark.
    """
    head = ("expected", "cases", "unlike the others", "patients", "rank correlation", "interval holds", "median width")
    lines = ["| " + " | ".join((*head, "median miss")) + " |", "|---" * 8 + "|"]
    for error, parts in report["errors"].items():
        name, form = _ERRORS[error]
        for part, found in parts.items():
            if "coverage" not in found:
                continue
            rank = "–" if found["rank_correlation"] is None else f"{found['rank_correlation']:.2f}"
            off = f"{found['median_width']:{form}} | {found['median_miss']:{form}}"
            counts = f"{found['cases']} | {found['unlike']} | {found['patients']} | {rank} | {found['coverage']:.0%}"
            lines.append(f"| {name}, {part} | {counts} | {off} |")
    return lines


def sigma_table(report: Mapping[str, Any]) -> list[str]:
    """Shares within 1 and 2 sigma before and after, of unseen patients, by tissue.

    Args:
        report: of the benchmark.
    """
    lines = [
        "| | within 1 σ, before → after | within 2 σ, before → after |",
        "|---|---|---|",
        "| Gaussian | 68.3% | 95.4% |",
    ]
    for name, found in report["sigma"].items():
        if isinstance(found, Mapping):
            lines.append(f"| {name} | {_shares(found, 0)} | {_shares(found, 1)} |")
    test = report.get("test", {}).get("sigma")
    if test:
        lines.append(f"| body, test patients | {_shares(test['body'], 0)} | {_shares(test['body'], 1)} |")
    return lines


def cases_table(report: Mapping[str, Any]) -> list[str]:
    """Every test patient and phantom: what was expected in the body, and what it was.

    Args:
        report: of the benchmark.
    """
    lines = ["| case | X-rays | expected MAE in the body [HU] | true |", "|---|---|---|---|"]
    for row in report["test"]["rows"]:
        if row["error"] == "body_mae_hu":
            low, high = row["interval"]
            expected = f"{row['expected']:.0f} ({low:.0f} to {high:.0f})"
            lines.append(f"| {row['patient']} | {row['perturbation']} | {expected} | {row['true']:.0f} |")
    for case in report["test"]["refused"]:
        lines.append(f"| {case['patient']} | {case['perturbation']} | none: {case['reason']} | |")
    return lines


def _shares(found: Mapping[str, Any], index: int) -> str:
    values = [found[key]["shares"][index] for key in ("before", "after")]
    return " → ".join("–" if value is None else f"{value:.1%}" for value in values)


TRUST_TABLES = {"trust main": trust_table, "trust sigma": sigma_table, "trust test": cases_table}
