# SPDX-License-Identifier: Apache-2.0
"""What a reconstruction loses by what it was not told: wrong angles and distances, noise, uncalibrated pixels.

    python benchmarks/robustness.py                          # five unseen phantoms; about an hour on one core
    python benchmarks/robustness.py --dataset dataset        # a dataset's test patients in their place
    python benchmarks/robustness.py --conditions view_angle photons
    python benchmarks/robustness.py --quick                  # stage 1, one phantom, the ends of each curve: a minute

The X-rays are taken as each condition says; the reconstruction believes in the nominal geometry, and in line integrals
unless it is told otherwise:

    view_angle   the lateral was taken so many degrees off, towards the front (left anterior oblique)
    distance     the patient stood nearer to the detector: source_to_isocenter is so many percent longer than assumed
    photons      quantum noise of so many photons that a pixel would detect without a patient
    scale        the line integrals are multiplied by an unknown factor, taken for calibrated and declared not to be
    offset       the line integrals are shifted by an unknown amount, likewise
    grey_levels  display values, 500 times the line integral plus 100, which nobody takes for line integrals
    missing_view the lateral is blank, which the command line would refuse

Protocol `native` on the cascade's own grid, and how well the result explains the X-rays it was given. Writes
``robustness.json`` after every point, goes on where an earlier run with the same weights stopped, and draws
``robustness.png`` beside it, or into ``bundle/docs`` where every curve was measured into the default folder. What
becomes of a missing, blank or repeated lateral is tried on the command line, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from conditions.missing_views import try_missing_views
from conditions.radiographs import CONDITIONS, NOMINAL, Point, plan_points, take_radiographs
from progressive_cascade import ConeBeam, line_integrals, volume_affine
from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.consistency import agreement
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.baselines import EXTENT
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.evaluation.metrics import parse_truth, reprojection_psnr, score_volume
from progressive_cascade.evaluation.results import infer_hu
from progressive_cascade.evaluation.scores import CONFIDENCE, patient_means, summarize_values
from progressive_cascade.geometry import VOLUME_SHAPE
from progressive_cascade.inference.reconstruct import check_beam, default_checkpoint, load_cascade
from progressive_cascade.io import finite, read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.paths import bundle_root
from progressive_cascade.report.diagrams import Curve, Diagram
from progressive_cascade.report.figures import curves_figure
from progressive_cascade.training.cases import load_case

MEASURES = {
    "native_psnr_3d_db": "PSNR [dB], native",
    "native_body_psnr_3d_db": "PSNR in the body [dB], native",
    "reprojection_psnr_db": "re-projection PSNR [dB]",
}
"""What is drawn, from top to bottom; the JSON has every score of the protocol."""
RESULTS = Path(__file__).parent / "results"
Summary = dict[tuple[str, float, bool], dict[str, Any]]
"""Summaries of scores by condition, degree, and whether the radiographs were taken for calibrated."""


class Bench:
    """A cascade, the geometry it believes in, and what was measured so far.

    Args:
        checkpoint: its weights.
        output: folder of ``robustness.json``.
        device: where to reconstruct.

    Raises:
        UserError: if the file there is of other weights.
    """

    def __init__(self, checkpoint: Path, output: Path, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.output = output
        self.network = load_cascade(checkpoint, device)
        size = self.network.image_size
        pitch = ConeBeam().pixel_spacing[0] * ConeBeam().detector_shape[0] / size
        self.beam = replace(ConeBeam(), detector_shape=(size, size), pixel_spacing=(pitch, pitch))
        check_beam(self.network, self.beam)
        settings = {
            "checkpoint": {"file": checkpoint.name, "sha256": file_hash(checkpoint)},
            "geometry": self.beam.to_dict(),
            "grid": self.network.grid,
            "protocol": "native",
            "confidence": CONFIDENCE,
        }
        self.report: dict[str, Any] = {"settings": settings, "missing_views": {}, "rows": []}
        if self.path.is_file():
            earlier = read_json(self.path)
            if earlier.get("settings") != settings:
                raise UserError(f"{self.path} must be of the same weights to go on with: move it away")
            self.report.update({key: earlier[key] for key in ("missing_views", "rows")})

    @property
    def path(self) -> Path:
        """The file of all numbers."""
        return self.output / "robustness.json"

    def measure(self, item: dict[str, Any], points: Sequence[Point]) -> None:
        """Every point of a patient that is not in the file yet.

        Args:
            item: of :func:`evaluation_items`.
            points: what to measure.
        """
        name = str(item.get("case", item["patient"]))
        done = {(row["case"], row["condition"], row["value"], row["calibrated"]) for row in self.report["rows"]}
        left = [point for point in points if (name, point.condition, point.value, point.calibrated) not in done]
        if not left:
            return
        full, grid = load_case(item), self.network.grid
        # The X-rays are of a volume finer than the reconstruction, where there is one.
        fine, truth = full.at_grid(min(VOLUME_SHAPE[0], 2 * grid)), full.at_grid(grid)
        reference = parse_truth(truth.hu, valid=truth.valid)
        if not self.report["missing_views"]:
            image, _ = take_radiographs(fine, self.beam, Point(NOMINAL, 0.0, True), seed=0)
            self.report["missing_views"] = finite(try_missing_views(image[0, 0].numpy(), self.beam, self.checkpoint))
        for point in left:
            image, calibrated = take_radiographs(fine, self.beam, point, seed=int(item.get("seed", 0)))
            hu = infer_hu(self.network, image, self.beam, calibrated=calibrated)
            scores = score_volume(hu, reference, ["native"])
            mu = hu_to_mu(torch.from_numpy(hu))[None, None]
            projected = line_integrals(mu, self.beam, affine=volume_affine((grid, grid, grid), EXTENT / grid))
            scores["reprojection_psnr_db"] = reprojection_psnr(projected, image)
            row = {"condition": point.condition, "value": point.value, "calibrated": calibrated, "case": name}
            agreed = agreement(projected[0].numpy(), image[0].numpy(), self.beam.views)
            row |= {"patient": item["patient"], "scores": {"cascade": scores}, "agreement": agreed}
            self.report["rows"].append(finite(row))
            save_json(self.report, self.path)
            print(f"{name}  {point.condition} {point.value:g}: {scores['native_psnr_3d_db']:.2f} dB", flush=True)

    def write(self, picture: Path) -> None:
        """Add the summary to the file and draw it.

        Args:
            picture: PNG file.
        """
        summary = self._summarize()
        self.report["summary"] = [
            {"condition": condition, "value": value, "calibrated": calibrated, "scores": scores}
            for (condition, value, calibrated), scores in summary.items()
        ]
        save_json(finite(self.report), self.path)
        names = [name for name in CONDITIONS if any(row["condition"] == name for row in self.report["rows"])]
        # A condition of a single degree is a number of the JSON, not a curve.
        drawn = [name for name in names if len(CONDITIONS[name].values) > 1]
        if drawn:
            rows = [
                [
                    _trimmed(_diagram(summary, name, measure), first_row=row == 0, first_column=column == 0)
                    for column, name in enumerate(drawn)
                ]
                for row, measure in enumerate(MEASURES)
            ]
            settings = self.report["settings"]
            patients = len({row["patient"] for row in self.report["rows"]})
            title = (
                f"{settings['checkpoint']['file']} ({settings['checkpoint']['sha256'][:8]}), {settings['grid']}³, "
                f"{patients} {'patient' if patients == 1 else 'patients'}; bands: 95 % intervals"
            )
            curves_figure(rows, picture, title=title)

    def _summarize(self) -> Summary:
        points: dict[tuple[str, float, bool], list[dict[str, Any]]] = {}
        for row in self.report["rows"]:
            points.setdefault((row["condition"], row["value"], row["calibrated"]), []).append(row)
        summary = {}
        for key, rows in points.items():
            means = {name: list(patient_means(rows, "cascade", name).values()) for name in rows[0]["scores"]["cascade"]}
            summary[key] = {name: summarize_values(values) for name, values in means.items() if values}
        return summary


def _diagram(summary: Summary, name: str, measure: str) -> Diagram:
    """The curves of one condition and one score."""
    condition, curves = CONDITIONS[name], []
    for calibrated in condition.declared:
        found = {}
        for value in condition.values:
            nominal = calibrated and value == condition.nominal
            key = (NOMINAL, 0.0, True) if nominal else (name, float(value), calibrated)
            if measure in summary.get(key, {}):
                found[value] = summary[key][measure]
        means = [score["mean"] for score in found.values()]
        bands = [score["ci95"] or [score["mean"]] * 2 for score in found.values()]
        label = "taken for calibrated" if calibrated else "declared uncalibrated"
        curves.append(Curve(label, list(found), means, [low for low, _ in bands], [high for _, high in bands]))
    return Diagram(name.replace("_", " "), condition.label, MEASURES[measure], curves, log_x=condition.log_x)


def _trimmed(diagram: Diagram, *, first_row: bool, first_column: bool) -> Diagram:
    """Titles stand above the first row alone, names of measures beside the first column alone."""
    title, y_label = diagram.title if first_row else "", diagram.y_label if first_column else ""
    return replace(diagram, title=title, y_label=y_label)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, help="unseen phantoms (default: 5, with --dataset 0, with --quick 1)")
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`, whose test patients to take")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: the shipped ones, with --quick stage 1's)")
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--quick", action="store_true", help="one phantom, the ends of each curve")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the picture")
    parser.add_argument("--picture", type=Path, help="PNG file (default: in --output; of the full run in bundle/docs)")
    options = parser.parse_args(arguments)
    if options.phantoms is None:
        options.phantoms = 0 if options.dataset else 1 if options.quick else 5
    if options.checkpoint is None:
        stage1 = bundle_root() / "models" / "stage1_best.pt"
        options.checkpoint = stage1 if options.quick else default_checkpoint()
    if options.picture is None:
        published = options.output == RESULTS and not options.quick and set(options.conditions) == set(CONDITIONS)
        options.picture = (bundle_root() / "docs" if published else options.output) / "robustness.png"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is left, then write and draw everything."""
    options = parse_options(arguments)
    try:
        bench = Bench(options.checkpoint, options.output, options.device)
        items = evaluation_items(options.dataset, num_phantoms=options.phantoms)
        for item in items:
            bench.measure(item, list(plan_points(options.conditions, quick=options.quick)))
    except UserError as error:
        print(f"robustness: error: {error}", file=sys.stderr)
        return 2
    bench.write(options.picture)
    print(f"{len(bench.report['rows'])} points: {bench.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
