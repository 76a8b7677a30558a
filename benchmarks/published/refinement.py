# SPDX-License-Identifier: Apache-2.0
"""Tables of what refining on a case's own radiographs gains, from the rows of ``refine*.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
Pair = tuple[Row, Row]

KINDS = ("validation", "mirrored", "phantom", "test")
STEPS = (1, 2, 4, 6, 8)
LONG_STEPS = (5, 10, 20, 30)
CONDITIONS = {
    "calibrated": "calibrated",
    "gain_0.8": "gain 0.8, told `scaled`",
    "gain_1.2": "gain 1.2, told `scaled`",
    "offset_0.3": "offset 0.3, told `scaled`",
    "display_curve": "display curve, told `display`",
    "lateral_turned_2": "lateral turned 2°",
    "photons_10000": "10,000 photons",
    "photons_1000": "1000 photons",
}
ABLATION = {
    "one_frame": "the cube in one place alone",
    "rate_0.0001": "rate 1e-4",
    "rate_0.001": "rate 1e-3",
    "decoder": "decoder alone",
    "last_layer": "last layer alone",
    "rank_4": "changes of rank 4 alone, rate 3e-3",
    "pose": "pose looked for",
    "no_discrepancy": "without the discrepancy stop",
    "steps_30": "up to 30 steps, without the discrepancy stop",
    "voxels": "conjugate gradients in voxels instead",
}


def refinement_table(report: Mapping[str, Any]) -> list[str]:
    """Off and on, for every condition and kind of case."""
    lines = ["| radiographs | cases | PSNR dB | gain dB (least) | SSIM | body Dice | lung Dice |", "|---" * 7 + "|"]
    for condition, label in CONDITIONS.items():
        for kind, pairs in _by_kind(report, "on", condition):
            gains = [_score(on, "psnr") - _score(off, "psnr") for off, on in pairs]
            cells = [
                label,
                _count(kind, pairs),
                _change(pairs, "psnr", 2),
                f"{fmean(gains):+.2f} ({min(gains):+.2f})",
                *(_change(pairs, name, 3) for name in ("ssim", "body_dice", "lung_dice")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def trust_table(report: Mapping[str, Any]) -> list[str]:
    """What later stages gain from taking fitted intensities for true ones, and stages 2 and 3 behind stage 1."""
    lines = ["| radiographs | cases | off | on | on, later stages told `uncalibrated` |", "|---|---|---|---|---|"]
    for condition, label in CONDITIONS.items():
        for kind, pairs in _by_kind(report, "on_not_consistent", condition):
            on = [_variant(report, off, "on") for off, _ in pairs]
            values = [fmean(_score(row, "psnr") for row in rows if row) for rows in (*zip(*pairs, strict=True), on)]
            lines.append(f"| {label} | {_count(kind, pairs)} | {values[0]:.2f} | {values[2]:.2f} | {values[1]:.2f} |")
    return lines


def later_stages_table(report: Mapping[str, Any]) -> list[str]:
    """What stages 2 and 3 add to stage 1, interpolated to 256³, unrefined and refined; calibrated radiographs."""
    lines = ["| cases | stage 1 alone, off → on | all stages, off → on | they add, off → on |", "|---|---|---|---|"]
    for kind, every in _by_kind(report, "on", "calibrated"):
        pairs = [pair for pair in every if all("stage_1_psnr" in row for row in pair)]
        if not pairs:
            continue
        coarse = [fmean(row["stage_1_psnr"] for row in rows) for rows in zip(*pairs, strict=True)]
        final = [fmean(_score(row, "psnr") for row in rows) for rows in zip(*pairs, strict=True)]
        added = " → ".join(f"{last - first:+.2f}" for first, last in zip(coarse, final, strict=True))
        first, last = (f"{off:.2f} → {on:.2f}" for off, on in (coarse, final))
        lines.append(f"| {_count(kind, pairs)} | {first} | {last} | {added} |")
    return lines


def ablation_table(report: Mapping[str, Any]) -> list[str]:
    """Gain of every variant and of the shipped one on the same cases, calibrated radiographs."""
    lines = ["| refined | cases | gain dB | as shipped, same cases | steps kept |", "|---" * 5 + "|"]
    for variant, label in ABLATION.items():
        for kind, pairs in _by_kind(report, variant, "calibrated"):
            same = [(off, _variant(report, off, "on")) for off, _ in pairs]
            kept = _range([row["report"]["kept"] for _, row in pairs if "report" in row])
            cells = [label, _count(kind, pairs), *(_gain(some, _psnr) for some in (pairs, same)), kept]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def steps_table(report: Mapping[str, Any], *, steps: Sequence[int] = STEPS, variant: str = "on") -> list[str]:
    """Gain after so many steps, and at the step that the held-back patches chose; calibrated radiographs."""
    lines = [f"| cases | {' | '.join(f'{step} steps' for step in steps)} | kept |", "|---" * (len(steps) + 2) + "|"]
    for kind, pairs in _by_kind(report, variant, "calibrated"):
        cells = [_gain(pairs, partial(_psnr_after, step)) for step in steps]
        lines.append(f"| {' | '.join([_count(kind, pairs), *cells, _gain(pairs, _psnr)])} |")
    return lines


def _by_kind(report: Mapping[str, Any], variant: str, condition: str) -> Iterable[tuple[str, list[Pair]]]:
    """Unrefined and refined rows of the same cases, by kind of case."""
    for kind in KINDS:
        chosen = [row for row in report["rows"] if (row["kind"], row["condition"]) == (kind, condition)]
        off = {row["case"]: row for row in chosen if row["variant"] == "off"}
        pairs = [(off[row["case"]], row) for row in chosen if row["variant"] == variant]
        if pairs:
            yield kind, pairs


def _variant(report: Mapping[str, Any], like: Row, variant: str) -> Row:
    keys = ("kind", "case", "condition")
    (found,) = (row for row in report["rows"] if row["variant"] == variant and all(row[k] == like[k] for k in keys))
    return found


def _psnr(row: Row) -> float:
    return _score(row, "psnr")


def _psnr_after(step: int, row: Row) -> float:
    """Where refining had stopped before, the last one's."""
    return float(row["psnr_by_step"][min(step, len(row["psnr_by_step"]) - 1)])


def _score(row: Row, name: str) -> float:
    return float(row["scores"][name])


def _change(pairs: list[Pair], name: str, digits: int) -> str:
    if any(name not in row["scores"] for rows in pairs for row in rows):
        return "–"
    return " → ".join(f"{fmean(_score(row, name) for row in rows):.{digits}f}" for rows in zip(*pairs, strict=True))


def _gain(pairs: list[Pair], after: Callable[[Row], float]) -> str:
    return f"{fmean(after(on) - _score(off, 'psnr') for off, on in pairs):+.2f}"


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "–"
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _count(kind: str, pairs: list[Pair]) -> str:
    names = {"validation": "validation", "mirrored": "mirrored", "phantom": "phantoms", "test": "test patients"}
    return names[kind] if kind == "validation" else f"{len(pairs)} {names[kind]}"


REFINEMENT_TABLES = {
    "refine main": refinement_table,
    "refine steps": steps_table,
    "refine long": partial(steps_table, steps=LONG_STEPS, variant="steps_30"),
    "refine ablation": ablation_table,
    "refine_256 main": refinement_table,
    "refine_256 stages": later_stages_table,
    "refine_256 trust": trust_table,
}
"""By the names that markers give them."""
