# SPDX-License-Identifier: Apache-2.0
"""How honest the standard deviation of a reconstruction is: errors of unseen patients against the sigma predicted.

    python benchmarks/uncertainty.py --phantoms 20 --dataset DATASET     # some 30 s per patient on one core

For phantoms that nothing was trained on, and a dataset's test patients, over all scanned voxels of the cube and inside
the body (:func:`progressive_cascade.evaluation.metrics.body_mask`):

    coverage      share of the voxels whose error is within 1 and 2 sigma; errors are not Gaussian, whose share would
                  be 68.3 and 95.4 %
    reliability   voxels in ten bins of growing sigma, equally many in each: root mean square of sigma and of the error
    correlation   Pearson's, of sigma and |error|
    nll           negative log likelihood of a Gaussian per voxel, beside that of the best single sigma for all of them

Writes ``uncertainty.json`` and ``uncertainty.md`` to benchmarks/results, and ``bundle/docs/uncertainty.png``: maps of
error and sigma of the first patient, and the reliability of all.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from progressive_cascade import ConeBeam, volume_affine
from progressive_cascade.attenuation import HU_MAX, HU_MIN
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.evaluation.metrics import body_mask
from progressive_cascade.geometry import VOXEL_SIZE
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.reconstruct import default_checkpoint, load_cascade, reconstruct
from progressive_cascade.inference.uncertainty import belongs_to, default_uncertainty, load_uncertainty, predict_sigma
from progressive_cascade.io import atomic_path, finite, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.paths import bundle_root
from progressive_cascade.physics.simulate import expose
from progressive_cascade.report.diagrams import Curve, Diagram, draw_diagram
from progressive_cascade.report.drawing import caption, central_planes, draw_plane, heading, mosaic, save_figure
from progressive_cascade.training.cases import Case, load_case

GAUSSIAN = {1: math.erf(1 / math.sqrt(2)), 2: math.erf(2 / math.sqrt(2))}
"""Share of a Gaussian within one and two standard deviations."""
NUM_BINS = 10
REGIONS = ("cube", "body")
_EDGES = np.geomspace(0.5, 4096.0, 401)
_SHOWN_HU = 500.0
_ROWS = {
    "coverage_1_sigma": "within 1 σ",
    "coverage_2_sigma": "within 2 σ",
    "mean_squared_z": "mean (error / σ)²",
    "rms_error_hu": "RMS error [HU]",
    "rms_sigma_hu": "RMS σ [HU]",
    "correlation": "correlation of σ and \\|error\\|",
    "nll": "NLL per voxel",
    "nll_constant": "NLL of one σ for all",
}


@dataclass
class Tally:
    """Sums over voxels, of any number of patients, from which every figure follows.

    Attributes:
        sums: by name.
        bins: count, squared errors and squared sigmas by sigma, (3, 400).
    """

    sums: dict[str, float] = field(default_factory=dict)
    bins: np.ndarray = field(default_factory=lambda: np.zeros((3, len(_EDGES) - 1)))

    def add(self, error: np.ndarray, sigma: np.ndarray) -> None:
        """Count voxels.

        Args:
            error: (n,) [HU].
            sigma: (n,), positive [HU].
        """
        error, sigma = np.abs(error).astype(np.float64), sigma.astype(np.float64)
        terms = {
            "count": np.ones_like(error),
            "error": error,
            "squared_error": error**2,
            "sigma": sigma,
            "squared_sigma": sigma**2,
            "product": error * sigma,
            "log_sigma": np.log(sigma),
            "squared_z": (error / sigma) ** 2,
            "within_1": error <= sigma,
            "within_2": error <= 2 * sigma,
        }
        for name, values in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values.sum())
        index = np.searchsorted(_EDGES, sigma).clip(1, len(_EDGES) - 1) - 1
        for row, name in enumerate(("count", "squared_error", "squared_sigma")):
            self.bins[row] += np.bincount(index, terms[name], len(_EDGES) - 1)

    def summary(self) -> dict[str, Any]:
        """Every figure of the module's docstring."""
        count = self.sums["count"]
        mean = {name: value / count for name, value in self.sums.items()}
        covariance = mean["product"] - mean["error"] * mean["sigma"]
        spread = (mean["squared_error"] - mean["error"] ** 2) * (mean["squared_sigma"] - mean["sigma"] ** 2)
        constant = 0.5 * math.log(2 * math.pi)
        return {
            "voxels": int(count),
            "coverage_1_sigma": mean["within_1"],
            "coverage_2_sigma": mean["within_2"],
            "mean_squared_z": mean["squared_z"],
            "rms_error_hu": math.sqrt(mean["squared_error"]),
            "rms_sigma_hu": math.sqrt(mean["squared_sigma"]),
            "correlation": covariance / math.sqrt(spread) if spread > 0 else math.nan,
            "nll": mean["log_sigma"] + 0.5 * mean["squared_z"] + constant,
            "nll_constant": 0.5 * math.log(max(mean["squared_error"], 1e-12)) + 0.5 + constant,
            "reliability": self.reliability(),
        }

    def reliability(self) -> list[dict[str, float]]:
        """Ten bins of growing sigma with about equally many voxels; fewer where many voxels share one sigma."""
        count = self.bins[0]
        middle = (count.cumsum() - count / 2) / max(count.sum(), 1.0)
        group = np.minimum((middle * NUM_BINS).astype(int), NUM_BINS - 1)
        number, squared_error, squared_sigma = (np.bincount(group, row, NUM_BINS) for row in self.bins)
        return [
            {
                "voxels": int(number[index]),
                "rms_sigma_hu": math.sqrt(squared_sigma[index] / number[index]),
                "rms_error_hu": math.sqrt(squared_error[index] / number[index]),
            }
            for index in np.flatnonzero(number)
        ]


def measure(case: Case, predict: Any) -> tuple[dict[str, Tally], dict[str, np.ndarray]]:
    """Errors and sigmas of one patient.

    Args:
        case: the truth.
        predict: from line integrals (view, rows, cols) of the ideal exposure to a CT and its sigma [HU].

    Returns:
        A tally per region, and the volumes ``hu``, ``error`` and ``sigma``.
    """
    hu = torch.from_numpy(case.hu.astype(np.float32))[None, None]
    size = case.hu.shape
    affine = volume_affine((size[0], size[1], size[2]), VOXEL_SIZE)
    found, sigma = predict(expose(hu, ConeBeam(), affine=affine)[0].numpy())
    error = found.astype(np.float32) - case.hu.astype(np.float32).clip(HU_MIN, HU_MAX)
    scanned = np.ones(size, bool) if case.valid is None else case.valid > 0
    masks = {"cube": scanned, "body": scanned & body_mask(case.hu)}
    tallies = {name: Tally() for name in REGIONS}
    for name, mask in masks.items():
        tallies[name].add(error[mask], sigma[mask])
    return tallies, {"hu": found, "error": np.where(scanned, error, 0), "sigma": sigma}


def merge(tallies: Sequence[Tally]) -> Tally:
    """One tally of all voxels."""
    names = tallies[0].sums
    sums = {name: sum(tally.sums[name] for tally in tallies) for name in names}
    return Tally(sums, np.sum([tally.bins for tally in tallies], axis=0))


def write_table(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The figures as Markdown.

    Args:
        groups: summaries by region, by group of patients.
    """
    columns = [(group, region) for group in groups for region in REGIONS]
    lines = ["| | Gaussian | " + " | ".join(f"{group}, {region}" for group, region in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for key, label in _ROWS.items():
        ideal = {"coverage_1_sigma": f"{GAUSSIAN[1]:.1%}", "coverage_2_sigma": f"{GAUSSIAN[2]:.1%}"}.get(key, "")
        ideal = "1" if key == "mean_squared_z" else ideal
        values = [groups[group][region][key] for group, region in columns]
        form = ".1%" if key.startswith("coverage") else ".0f" if key.endswith("_hu") else ".2f"
        lines.append(f"| {label} | {ideal} | " + " | ".join(f"{value:{form}}" for value in values) + " |")
    for group in groups:
        bins = groups[group]["body"]["reliability"]
        lines += ["", f"| {group}, body | " + " | ".join(f"bin {number + 1}" for number in range(len(bins))) + " |"]
        lines.append("|---" * (len(bins) + 1) + "|")
        for key, label in (("rms_sigma_hu", "RMS σ [HU]"), ("rms_error_hu", "RMS error [HU]")):
            lines.append(f"| {label} | " + " | ".join(f"{part[key]:.0f}" for part in bins) + " |")
    return lines


def draw(volumes: Mapping[str, np.ndarray], groups: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw CT, error and sigma of one patient on three planes, and the reliability of all."""
    spacing = (VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE)
    errors = (_SHOWN_HU, _SHOWN_HU / 2)
    rows = [
        ("reconstruction", volumes["hu"], (1600.0, -300.0)),
        (f"|error|, 0 to {_SHOWN_HU:g} HU", np.abs(volumes["error"]), errors),
        (f"sigma, 0 to {_SHOWN_HU:g} HU", volumes["sigma"], errors),
    ]
    side = volumes["hu"].shape[0] * VOXEL_SIZE
    figure, grid = mosaic([side] * 3 + [1.6 * side], [side] * 3, top=0.3)
    for row, (name, volume, window) in enumerate(rows):
        for column, plane in enumerate(central_planes(volume, spacing)):
            axes = figure.add_subplot(grid[row, column])
            draw_plane(axes, plane, window=window)
            if row == 0:
                heading(axes, plane.name)
            if column == 0:
                caption(axes, name)
    curves = []
    for group, regions in groups.items():
        x, y = ([part[key] for part in regions["body"]["reliability"]] for key in ("rms_sigma_hu", "rms_error_hu"))
        curves.append(Curve(f"{group}, body", x, y, y, y))
    ends = [0.0, max(max(*curve.x, *curve.y) for curve in curves)]
    curves.append(Curve("error = sigma", ends, ends, ends, ends))
    axes = figure.add_subplot(grid[:, 3])
    draw_diagram(axes, Diagram(title, "predicted sigma [HU]", "RMS error [HU]", curves))
    box = axes.get_position()
    # The mosaic leaves no room for the numbers of an axis.
    axes.set_position((box.x0 + 0.16 * box.width, box.y0 + 0.12, 0.8 * box.width, box.height - 0.16))
    save_figure(figure, path)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every patient, write the three files, and return what the JSON holds."""
    head, network = load_uncertainty(options.weights), load_cascade(options.checkpoint, options.device)
    if not belongs_to(head, options.checkpoint):
        print(f"note: the uncertainty was calibrated with another checkpoint than {options.checkpoint}")
    inferer = CascadeInferer(amp=True)

    def predict(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        result = reconstruct(image, ConeBeam(), network=network, inferer=inferer, refine=options.refine)
        return result.hu, predict_sigma(result, ConeBeam(), head)

    tallies: dict[str, list[dict[str, Tally]]] = {}
    cases, shown = [], {}
    for item in evaluation_items(options.dataset, options.section, num_phantoms=options.phantoms):
        case = load_case(item)
        found, volumes = measure(case, predict)
        shown = shown or volumes
        tallies.setdefault("phantoms" if "seed" in item else "patients", []).append(found)
        cases.append({"case": case.name, **{name: tally.summary() for name, tally in found.items()}})
        body = cases[-1]["body"]
        print(f"{case.name}: within 1 σ {body['coverage_1_sigma']:.1%}, 2 σ {body['coverage_2_sigma']:.1%}", flush=True)
    groups = {
        group: {"cases": len(parts)} | {name: merge([part[name] for part in parts]).summary() for name in REGIONS}
        for group, parts in tallies.items()
    }
    files = {"checkpoint": options.checkpoint, "uncertainty": options.weights}
    report = {name: {"file": path.name, "sha256": file_hash(path)} for name, path in files.items()}
    report |= {"refine_steps": options.refine, "section": options.section}
    report |= {"gaussian_coverage": list(GAUSSIAN.values()), "groups": groups, "cases": cases}
    save_json(finite(report), options.output / "uncertainty.json")
    table = "\n".join(write_table(groups))
    with atomic_path(options.output / "uncertainty.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    draw(shown, groups, options.picture, f"{len(cases)} unseen patients")
    print(table)
    return report


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=20, help="unseen phantoms")
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`, whose test patients to add")
    parser.add_argument("--section", choices=("validation", "test"), default="test", help="of the dataset")
    parser.add_argument("--refine", type=int, default=0, help="steps in which stage 1 is refined")
    parser.add_argument("--checkpoint", type=Path, default=default_checkpoint(), help="the cascade's weights")
    parser.add_argument("--weights", type=Path, default=default_uncertainty(), help="the uncertainty's weights")
    parser.add_argument("--device", default="cpu", help="where to reconstruct")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the numbers")
    parser.add_argument("--picture", type=Path, default=bundle_root() / "docs" / "uncertainty.png")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, draw."""
    try:
        run(parse_options(arguments))
    except (UserError, FileNotFoundError) as error:
        print(f"uncertainty: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
