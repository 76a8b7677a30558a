# SPDX-License-Identifier: Apache-2.0
"""The measured rows as Markdown."""

from __future__ import annotations

from typing import Any

from projectors.peers import BUILDERS

RATIOS = ("forward", "forward_backward")


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Give every row its time over that of our automatic choice on the same grid and views, in place.

    Args:
        rows: measured rows; those without times, or whose case lacks the row ``ours``, are left alone.
    """
    ours = {(row["grid"], row["views"]): row for row in rows if row["row"] == "ours" and "forward_s" in row}
    for row in rows:
        reference = ours.get((row["grid"], row["views"]))
        if reference is not None and "forward_s" in row:
            for step in RATIOS:
                row[f"{step}_ratio"] = row[f"{step}_s"] / reference[f"{step}_s"]


def markdown(report: dict[str, Any]) -> str:
    """The whole report.

    Args:
        report: what ``benchmarks/projector.py`` writes as JSON.

    Returns:
        Markdown text: the protocol, a table for each grid and set of views, the checks.
    """
    machine = report["machine"]
    lines = [
        "# Projectors, measured",
        "",
        f"{machine['processor']}, {machine['threads']} threads, device {machine['device']}, {machine['system']}, "
        f"Python {machine['python']}, torch {machine['torch']}. {report['protocol']}",
    ]
    cases = dict.fromkeys((row["grid"], row["views"]) for row in report["rows"])
    for grid, views in cases:
        rows = [row for row in report["rows"] if (row["grid"], row["views"]) == (grid, views)]
        lines += ["", f"## {grid}³ to {2 * grid}², {views.replace(',', ' and ')}", "", *_table(rows)]
    lines += _checks(report)
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cuda = any("card" in row for row in rows)
    titles = ["projector", "forward s", "f+b s", "× ours, f / f+b", "MiB, f / f+b", "relative L2 error", "adjoint"]
    titles += ["bandwidth, f / f+b"] if cuda else []
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        title = BUILDERS[row["row"]][0] + (f" {row['version']}" if "version" in row else "")
        if "forward_s" not in row:
            lines.append(f"| {title} | {row.get('skipped') or row['failed']} |" + " |" * (len(titles) - 2))
            continue
        cells = [title, _number(row["forward_s"]), _number(row["forward_backward_s"])]
        cells.append(_pair(row, "_ratio", "{:.3g}"))
        cells.append(_pair(row, "_mib", "{:.0f}"))
        exact = row.get("adjoint_float64")
        cells += [f"{row['error']:.5f}", f"{row['adjoint']:.0e}" + ("" if exact is None else f" (float64 {exact:.0e})")]
        cells += [_pair(row, "_bandwidth_share", "{:.0%}")] if cuda else []
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: float) -> str:
    return f"{value:.3g}" if value >= 1e-3 else f"{value:.2e}"


def _pair(row: dict[str, Any], suffix: str, style: str) -> str:
    values = [row.get(step + suffix) for step in RATIOS]
    return " / ".join("–" if value is None else style.format(value) for value in values)


def _checks(report: dict[str, Any]) -> list[str]:
    lines = []
    if report.get("agreement"):
        lines += ["", "## Agreement with itk-rtk on real CTs, turned obliquely", ""]
        lines += [
            "Both in float32, on CTs in a shell of nothing. `ray` follows each ray as RTK does; `auto` goes through a "
            "detector parallel to the volume, another interpolation whose error is in the tables above.",
            "",
        ]
        lines += ["| CT | ours | relative L2 difference per view |", "|---|---|---|"]
        for row in report["agreement"]:
            if "skipped" in row:
                lines.append(f"| {row['ct']} | {row['skipped']} | |")
                continue
            views = zip(row["views"], row["differences"], strict=True)
            lines.append(f"| {row['ct']} | {row['method']} | {', '.join(f'{v} {d:.1e}' for v, d in views)} |")
    if report.get("batch_equals_single_calls") is not None:
        answer = "yes" if report["batch_equals_single_calls"] else "NO"
        lines += ["", f"Four different volumes and poses in one call equal four calls bit for bit: {answer}."]
    return lines
