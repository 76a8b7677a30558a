# SPDX-License-Identifier: Apache-2.0
"""The published tables, each a function from an evaluation's JSON to Markdown.

Every table is under a caption that says over whom it was taken, by which protocol, with which weights. Intervals are in
brackets behind the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from progressive_cascade.ct.tissues import TISSUES
from progressive_cascade.evaluation.scores import paired_gain, summarize

Report = Mapping[str, Any]
"""What :class:`progressive_cascade.evaluation.results.EvaluationReport` wrote."""

METHODS = {
    "mean_volume": "mean training volume",
    "back_projection": "back-projection",
    "least_squares": "least squares",
    "stage_1": "cascade, stage 1 (64³)",
    "stage_2": "cascade, stage 2 (128³)",
    "stage_3": "cascade, stage 3 (256³)",
}
"""Names of the methods in tables, in their order."""
BASELINES = ("mean_volume", "back_projection", "least_squares")
HOPES = {
    1: ("stage_1_at_64", "64³", "28–30", "0.85–0.90"),
    2: ("stage_2_at_128", "128³", "32–35", "0.92–0.95"),
    3: ("stage_3", "256³", "35–38", "0.95–0.97"),
}
"""Method, grid, and the PSNR [dB] and SSIM that are hoped for in print, by stage."""
NATIVE = {
    "PSNR dB": ("native_psnr_3d_db", 2),
    "SSIM": ("native_ssim_3d", 3),
    "MAE HU": ("native_mae_hu", 0),
    "PSNR in the body dB": ("native_body_psnr_3d_db", 2),
    "re-projection PSNR dB": ("reprojection_psnr_db", 1),
}
"""Columns of the main table: score and decimals."""
PAPERS = {
    "x2ct PSNR 3-D dB": ("x2ct_psnr_3d_db", 2),
    "x2ct PSNR slices dB": ("x2ct_psnr_slicewise_db", 2),
    "x2ct SSIM slices": ("x2ct_ssim_slicewise", 3),
    "perx2ct PSNR slices dB": ("perx2ct_psnr_slicewise_db", 2),
    "perx2ct SSIM (range 2)": ("perx2ct_ssim_3d_range2", 3),
    "xmed PSNR 3-D dB": ("xmed_psnr_3d_db", 2),
    "xmed SSIM 3-D": ("xmed_ssim_3d", 3),
}
"""Columns in the protocols of the papers."""
_FEW = 6
_PROTOCOL = (
    "Protocol `native`: 3-D PSNR and SSIM on [-1024, 1024] HU, data_range 1, over the scanned voxels; mean over "
    "patients [95 % bootstrap interval]. X-rays simulated from the CT at 512², default geometry, no noise."
)
_OTHERS = (
    "These numbers may not be compared with those printed for LIDC directly: the patients, the grid of 256³ at 1.4 mm "
    "in place of 128³ at 2.5 mm, and the geometry and intensity of the X-rays are all others; and the PSNR of `x2ct` "
    "and `perx2ct` takes a peak of 4095 for values that span 2500, which adds 4.29 dB to any result."
)


def main_table(report: Report) -> list[str]:
    """Every method at 256³, whatever its own grid."""
    return [
        *_caption(report, f". {_PROTOCOL} All at 256³, smaller grids interpolated."),
        *_table(report["summary"], NATIVE),
    ]


def hopes_table(report: Report) -> list[str]:
    """Every stage on its own grid, beside what is hoped for in print."""
    columns = {title: NATIVE[title] for title in ("PSNR dB", "SSIM", "MAE HU", "re-projection PSNR dB")}
    lines = [
        *_caption(
            report,
            ", each stage on its own grid against the CT averaged to it, beside what is hoped for in print; for two "
            f"views at 256³ that is attested nowhere. {_PROTOCOL}",
        ),
        *_header(["stage", "grid", "hoped for: PSNR dB, SSIM", *columns]),
    ]
    for stage, (method, grid, psnr, ssim) in HOPES.items():
        if method in report["summary"]:
            cells = _cells(report["summary"][method], columns)
            lines.append(_row([str(stage), grid, f"{psnr}, {ssim}", *cells]))
    return lines


def gains_table(report: Report) -> list[str]:
    """What each stage adds, and what the cascade adds to the best baseline, on the same patients."""
    best = max(
        (name for name in BASELINES if name in report["summary"]),
        key=lambda name: report["summary"][name]["native_psnr_3d_db"]["mean"],
    )
    pairs = (("stage_1", best), ("stage_2", "stage_1"), ("stage_3", "stage_2"), ("stage_3", best))
    columns = {"PSNR dB": NATIVE["PSNR dB"], "SSIM": ("native_ssim_3d", 4), "MAE HU": ("native_mae_hu", 1)}
    lines = [
        *_caption(
            report, f": differences on the same patient, at 256³. An interval that holds zero is a tie. {_PROTOCOL}"
        ),
        *_header(["difference", *columns]),
    ]
    for method, reference in pairs:
        gains = {score: paired_gain(report["cases"], method, reference, score) for score, _ in columns.values()}
        if any(gains.values()):
            cells = _cells({score: gain for score, gain in gains.items() if gain}, columns, signed=True)
            lines.append(_row([f"{METHODS[method]} − {METHODS[reference]}", *cells]))
    return lines


def tissues_table(report: Report) -> list[str]:
    """Error and bias of the last stage by tissue, everywhere and inside the body."""
    scores = report["summary"]["stage_3"]
    lines = [
        *_caption(
            report,
            f": stage 3 by tissue, as the HU of the true CT tell it. A positive bias is too dense. {_PROTOCOL}",
        ),
        *_header(["tissue", "HU", "MAE HU", "bias HU", "MAE in the body HU", "bias in the body HU"]),
    ]
    for tissue, (low, high) in TISSUES.items():
        names = [f"native_{region}{tissue}_{kind}_hu" for region in ("", "body_") for kind in ("mae", "bias")]
        borders = f"below {high:g}" if low == -float("inf") else f"from {low:g}" if high == float("inf") else ""
        cells = _cells(scores, {name: (name, 0) for name in names})
        lines.append(_row([tissue, borders or f"{low:g} to {high:g}", *cells]))
    return lines


def papers_table(report: Report) -> list[str]:
    """The protocols of the papers, with what keeps their numbers apart."""
    return [
        *_caption(
            report,
            ", in the protocols of the papers, over the whole volume at 256³; mean over patients [95 % bootstrap "
            f"interval]. {_OTHERS}",
        ),
        *_table(report["summary"], PAPERS),
    ]


def patients_table(report: Report) -> list[str]:
    """Every patient by name: the last stage and the baselines."""
    lines = [
        *_caption(report, f", one by one, at 256³. {_PROTOCOL}"),
        *_header(["patient", "method", *NATIVE]),
    ]
    for case in report["cases"]:
        own = summarize([case])
        for method in (*BASELINES, "stage_3"):
            if method in own:
                lines.append(_row([case["patient"], METHODS[method], *_cells(own[method], NATIVE)]))
    return lines


TABLES: dict[str, Callable[[Report], list[str]]] = {
    "main": main_table,
    "hopes": hopes_table,
    "gains": gains_table,
    "tissues": tissues_table,
    "papers": papers_table,
    "each": patients_table,
}
"""Tables by the name that stands in a document's marker."""


def describe_cases(report: Report) -> str:
    """Who was evaluated: how many phantoms of which seeds, or which patients."""
    names = list(dict.fromkeys(case["patient"] for case in report["cases"]))
    seeds = [int(name.removeprefix("phantom_")) for name in names if name.startswith("phantom_")]
    if len(seeds) == len(names):
        one = len(names) == 1
        which = f"seed {seeds[0]}" if one else f"seeds {min(seeds)} to {max(seeds)}"
        return f"{len(names)} {'phantom' if one else 'phantoms'} nobody has trained on ({which})"
    return f"{len(names)} real {'patient' if len(names) == 1 else 'patients'} held out for testing ({', '.join(names)})"


def describe_weights(report: Report) -> str:
    """The weights by file and the first twelve digits of their SHA-256."""
    files = (f"`{entry['file']}` {entry['sha256'][:12]}" for entry in report["checkpoints"].values())
    return f"Weights (SHA-256): {', '.join(files)}"


def _caption(report: Report, text: str) -> list[str]:
    """Who, how and with which weights, in lines of the documents' width, and the empty line before the table."""
    few = 1 < len({case["patient"] for case in report["cases"]}) < _FEW
    note = " Of so few patients an interval is hardly more than their range." if few else ""
    caption = f"{describe_cases(report)}{text}{note} {describe_weights(report)}."
    return [*wrap(caption, 120, break_on_hyphens=False), ""]


def _table(summary: Mapping[str, Any], columns: Mapping[str, tuple[str, int]]) -> list[str]:
    """A row for each method that was evaluated."""
    rows = [_row([title, *_cells(summary[name], columns)]) for name, title in METHODS.items() if name in summary]
    return [*_header(["method", *columns]), *rows]


def _cells(scores: Mapping[str, Any], columns: Mapping[str, tuple[str, int]], *, signed: bool = False) -> list[str]:
    """Mean and interval of each column's score, a dash where there is none."""
    sign = "+" if signed else ""
    cells = []
    for name, decimals in columns.values():
        if name not in scores:
            cells.append("–")
            continue
        numbers = [scores[name]["mean"], *(scores[name]["ci95"] or [])]
        # Adding zero turns -0 into 0.
        mean, *ends = (f"{round(number, decimals) + 0.0:{sign}.{decimals}f}" for number in numbers)
        cells.append(f"{mean} [{', '.join(ends)}]" if ends else mean)
    return cells


def _header(titles: Sequence[str]) -> list[str]:
    return [_row(titles), "|---" * len(titles) + "|"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
