# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks/cascade.py: what each row differs from the default by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

_SCALES = {"half": "half scale (32³ and 64³ voxels, radiographs of 256²)", "full": "full scale (64³ and 128³ voxels)"}
_PSNR, _SSIM, _BODY = "native_psnr_3d_db", "native_ssim_3d", "native_body_psnr_3d_db"


def ablation_table(report: Mapping[str, Any]) -> list[str]:
    """Mean over seeds and, in brackets, every seed's own difference from the default of the same seed.

    Args:
        report: what benchmarks/cascade.py wrote.

    Returns:
        Markdown lines, a table for each stage.

    Raises:
        KeyError: if a stage lacks the default.
    """
    lines = []
    for stage in sorted({run["stage"] for run in report["runs"]}):
        rows: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
        for run in report["runs"]:
            if run["stage"] == stage:
                rows[run["row"]][run["seed"]] = run
        default = rows["default"]
        lines += [
            *([""] if lines else []),
            f"Stage {stage}, {_SCALES[report['scale']]}, {report['seconds']:g} CPU seconds of training for each run, "
            f"{report['phantoms']} phantoms, scores on {report['unseen']} others:",
            "",
            "| | seeds | ΔPSNR dB (each seed) | ΔSSIM | Δ in the body dB | parameters | steps | s per volume |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, seeds in rows.items():
            lines.append(_row(name, seeds, default))
    return lines


def _row(name: str, seeds: Mapping[int, Mapping[str, Any]], default: Mapping[int, Mapping[str, Any]]) -> str:
    def mean(key: str) -> float:
        return sum(run[key] for run in seeds.values()) / len(seeds)

    def gains(key: str) -> list[float]:
        return [run[key] - default[seed][key] for seed, run in sorted(seeds.items()) if seed in default]

    costs = f"{mean('parameters') / 1e6:.2f} M | {mean('steps'):.0f} | {mean('reconstruction_seconds'):.2f}"
    if name == "default":
        return f"| default | {len(seeds)} | {mean(_PSNR):.2f} | {mean(_SSIM):.3f} | {mean(_BODY):.2f} | {costs} |"
    psnr, ssim, body = gains(_PSNR), gains(_SSIM), gains(_BODY)
    each = ", ".join(f"{gain:+.2f}" for gain in psnr)
    return (
        f"| {name} | {len(seeds)} | {sum(psnr) / len(psnr):+.2f} ({each}) | {sum(ssim) / len(ssim):+.3f} | "
        f"{sum(body) / len(body):+.2f} | {costs} |"
    )
