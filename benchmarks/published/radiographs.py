# SPDX-License-Identifier: Apache-2.0
"""Tables of radiographs as they come, from what benchmarks/radiographs.py wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from progressive_cascade.inference.first_look import LEAST_AGREEMENT
from progressive_cascade.radiograph.warn import SLICE_LIMIT

HALVES = ("training CTs and phantoms, which chose the thresholds", "validation CTs and other phantoms")


def forms_table(report: Mapping[str, Any]) -> list[str]:
    """A row per form; the eight ways of a NIfTI are one."""
    lines = [
        "One validation CT on a 64³ grid, stage 1, against the volume of its plain NIfTI pair: calibrated, or declared",
        "display values. Seconds of CPU time, one thread, to read a pair and bring it onto the detector.",
        "",
        "| files | taken for | mean difference [HU] | ΔPSNR [dB], native | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    ways = [row for row in report["forms"] if row["form"].startswith("NIfTI")]
    others = [row for row in report["forms"] if not row["form"].startswith("NIfTI")]
    worst = max(ways, key=lambda row: row["difference_hu"])
    for row in ({**worst, "form": f"NIfTI, the worst of {len(ways)} ways"}, *others):
        change = row["psnr_db"] - row["plain_psnr_db"]
        known = {"signal": "calibrated, by its open field"}.get(row["known"], row["known"])
        lines.append(f"| {row['form']} | {known} | {row['difference_hu']:.2f} | {change:+.2f} | {row['seconds']:.1f} |")
    return lines


def orientation_table(report: Mapping[str, Any]) -> list[str]:
    """Answers by what is wrong with them; the network counts a frontal and its mirror image as one."""
    confusion = np.array(report["orientation"]["confusion"])
    lines = [
        "CTs that the network has not learnt from, varied as in training (crop, noise, collimation, marker):",
        "2 views × 8 ways × inverted or not × 3 tone curves.",
        "",
        "| shown | pictures | all right | mirrored instead | other turn | not seen as inverted, or so | other view |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, name in enumerate(("frontal", "lateral")):
        counts = dict.fromkeys(("right", "mirror", "turn", "inverted", "view"), 0)
        for answer, found in np.argwhere(confusion > 0):
            if answer % 2 == kind:
                counts[_mistake(int(answer), int(found))] += int(confusion[answer, found])
        total = sum(counts.values())
        shares = " | ".join(f"{100 * counts[what] / total:.1f} %" for what in counts)
        lines.append(f"| {name} | {total} | {shares} |")
    return lines


def _mistake(answer: int, found: int) -> str:
    if answer == found:
        return "right"
    if answer % 2 != found % 2:
        return "view"
    first, second = answer // 2, found // 2
    if first // 8 != second // 8:
        return "inverted"
    return "mirror" if first % 4 == second % 4 else "turn"


def pairs_table(report: Mapping[str, Any]) -> list[str]:
    """How many pairs were put right, warned of or refused, by what was wrong with them."""
    lines = [
        "Simulated, at 64³, of which no tag says how they lie; half of them line integrals, half grey levels. A body",
        "that leaves the field is a warning, too, and not counted: it is true of CTs that were cut off. The network",
        "that sees how a picture lies learnt from the training CTs, too.",
        "",
        "| pairs | patients | line integrals: put right, warned of, refused | grey levels: likewise |",
        "|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row["kind"] for row in report["pairs"]):
        for half, patients in enumerate(HALVES):
            rows = [row for row in report["pairs"] if (row["kind"], row["half"]) == (kind, half)]
            cells = [_share([row for row in rows if row["calibrated"] is known]) for known in (True, False)]
            lines.append(f"| {kind.replace('_', ' ')} | {patients} | {' | '.join(cells)} |")
    return lines


def _share(rows: list[Mapping[str, Any]]) -> str:
    return f"{sum(map(is_noticed, rows))} of {len(rows)}" if rows else "–"


def is_noticed(row: Mapping[str, Any]) -> bool:
    """Whether the program did or said anything about a pair, by its thresholds of today."""
    if row["refused"]:
        return True
    doubted = any("looks" in line for line in row["warnings"])
    low = min(row["agreement_db"]) < LEAST_AGREEMENT[row["calibrated"]]
    return bool(row["notes"]) or doubted or low or row["slice_difference"] > SLICE_LIMIT[row["calibrated"]]


RADIOGRAPH_TABLES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "radiographs forms": forms_table,
    "radiographs orientation": orientation_table,
    "radiographs pairs": pairs_table,
}
"""By the name a marker gives them."""
