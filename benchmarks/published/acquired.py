# SPDX-License-Identifier: Apache-2.0
"""The table of acquired radiographs: what was done to pairs from the web, and how well stage 1 explains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def acquired_table(report: Mapping[str, Any]) -> list[str]:
    """Markdown: right pairs, and mismatched ones where they were measured; medians with the range of all.

    Args:
        report: what ``acquired.py`` wrote.
    """
    lines = [
        "| pairs | read | lateral turned about | moved or scaled | frontal called mirrored | "
        "worse view explained [dB] | residual | slices differ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, mismatched in (("right", False), ("another patient's lateral", True)):
        rows = [row for row in report["rows"] if row["mismatched"] == mismatched]
        read = [row for row in rows if "refused" not in row]
        if read:
            cells = [
                f"{len(read)} of {len(rows)}",
                str(_count(read, "notes", "lateral X-ray looks mirrored")),
                str(_count(read, "notes", "so the first stage explains")),
                str(_count(read, "warnings", "frontal X-ray looks mirrored")),
                _range([min(row["agreement_db"]) for row in read], 1),
                _range([row["residual"] for row in read], 2),
                _range([row["slice_difference"] for row in read], 2),
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _count(rows: Sequence[Mapping[str, Any]], kind: str, words: str) -> int:
    return sum(any(words in line for line in row[kind]) for row in rows)


def _range(values: Sequence[float], digits: int) -> str:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
