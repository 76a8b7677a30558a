# SPDX-License-Identifier: Apache-2.0
"""What a reconstruction loses by what it was not told: wrong angles and distances, noise, uncalibrated pixels.

    python benchmarks/robustness.py --dataset dataset        # half an hour a case on one core
    python benchmarks/robustness.py --phantoms 5             # unseen phantoms alone
    python benchmarks/robustness.py --conditions view_angle photons
    python benchmarks/robustness.py --quick                  # stage 1, one phantom, the ends of each curve: a minute

The X-rays are taken as each condition says; the reconstruction believes in the chest stand, and in line integrals
unless it is told otherwise:

    view_angle   the lateral was taken so many degrees off, towards the front (left anterior oblique)
    distance     the patient stood nearer to the detector: source_to_isocenter is so many percent longer than assumed
    pixel_size   the detector's pixels are so many percent larger than assumed
    photons      quantum noise of so many photons that a pixel would detect without a patient
    scale        the line integrals are multiplied by an unknown factor, taken for calibrated and told `scaled`
    offset       the line integrals are shifted by an unknown amount, likewise
    display      values as a picture shows them, windowed with a gamma of 0.7, told `display`

Every pair is reconstructed as `reconstruct` does it by default, refined on its radiographs. Scores are `native` at
256³. Wrong lengths scale the answer: those pairs, turned laterals and the nominal pair are also scored after a
similarity alignment with the CT (`progressive_cascade.evaluation.alignment`), and pairs of wrong lengths also taken for
as large as stage 1 explains them best (`--find-size`).
Without --dataset there are phantoms alone; with it also the validation CTs and mirror images of the first so many
training CTs, the thoraxes first, whom the networks do not know.

Writes ``robustness.json`` after every point, goes on where an earlier run with the same weights stopped, and draws
``robustness.png`` beside it, or into ``bundle/docs`` where every curve was measured into the default folder. What
becomes of a missing, blank or repeated lateral is tried on the command line, too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from conditions.cases import open_case, plan_cases
from conditions.missing_views import try_missing_views
from conditions.radiographs import CONDITIONS, LOOKED_FOR, NOMINAL, Point, plan_points
from progressive_cascade import ConeBeam
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.alignment import align
from progressive_cascade.evaluation.metrics import Truth, parse_truth, score_volume
from progressive_cascade.evaluation.perturbed import Told
from progressive_cascade.evaluation.scores import CONFIDENCE, patient_means, summarize_values
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE
from progressive_cascade.inference.reconstruct import Reconstruction, default_checkpoint, load_cascade, reconstruct
from progressive_cascade.inference.refine import DEFAULT_STEPS, REVISION
from progressive_cascade.inference.size import ASKED, at_size, find_size
from progressive_cascade.io import finite, read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.paths import bundle_root
from progressive_cascade.radiograph.pair import Pair
from progressive_cascade.report.diagrams import Curve, Diagram
from progressive_cascade.report.figures import curves_figure
from progressive_cascade.training.cases import Case

MEASURES = {
    "native_psnr_3d_db": "PSNR [dB], native",
    "native_body_mae_hu": "error in the body [HU]",
    "unexplained": "unexplained by stage 1",
}
"""What is drawn, from top to bottom; the JSON has every score that is kept."""
KEPT = ("native_psnr_3d_db", "native_ssim_3d", "native_mae_hu", "native_body_psnr_3d_db", "native_body_mae_hu")
RESULTS = Path(__file__).parent / "results"
Summary = dict[tuple[str, float, str], dict[str, Any]]
"""Summaries of scores by condition, degree, and what was told of the intensities."""


class Bench:
    """A cascade, the geometry it believes in, and what was measured so far.

    Args:
        checkpoint: its weights.
        output: folder of ``robustness.json``.
        device: where to reconstruct.

    Raises:
        UserError: if the file there is of other weights or another way of refining.
    """

    def __init__(self, checkpoint: Path, output: Path, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.output = output
        self.network = load_cascade(checkpoint, device)
        size = self.network.image_size
        pitch = ConeBeam().pixel_spacing[0] * ConeBeam().detector_shape[0] / size
        self.stand = replace(ConeBeam(), detector_shape=(size, size), pixel_spacing=(pitch, pitch))
        settings = {
            "checkpoint": {"file": checkpoint.name, "sha256": file_hash(checkpoint)},
            "geometry": self.stand.to_dict(),
            "grid": VOLUME_SHAPE[0],
            "refine": {"steps": DEFAULT_STEPS, "revision": REVISION},
            "protocol": "native",
            "confidence": CONFIDENCE,
        }
        self.report: dict[str, Any] = {"settings": settings, "missing_views": {}, "rows": []}
        if self.path.is_file():
            earlier = read_json(self.path)
            if earlier.get("settings") != settings:
                raise UserError(f"{self.path} must be of the same weights and steps to go on with: move it away")
            self.report.update({key: earlier[key] for key in ("missing_views", "rows")})

    @property
    def path(self) -> Path:
        """The file of all numbers."""
        return self.output / "robustness.json"

    def measure(self, kind: str, item: dict[str, Any], points: Sequence[Point]) -> None:
        """Every point of a patient that is not in the file yet.

        Args:
            kind: ``validation``, ``mirrored`` or ``phantom``.
            item: of :func:`plan_cases`.
            points: what to measure.
        """
        name = str(item.get("case", item["patient"]))
        done = {(row["case"], row["condition"], row["value"], row["told"]) for row in self.report["rows"]}
        left = [point for point in points if (name, point.condition, point.value, point.told) not in done]
        if not left:
            return
        case = open_case(kind, item)
        truth = parse_truth(case.hu, valid=case.valid)
        if not self.report["missing_views"]:
            told = Point(NOMINAL, 0.0, "calibrated").perturbation(self.stand).take(case, seed=0)
            self.report["missing_views"] = finite(try_missing_views(told.image[0], self.stand, self.checkpoint))
        for point in left:
            start = time.process_time()
            told = point.perturbation(self.stand).take(case, seed=int(item.get("seed", 0)))
            result = self._reconstruct(told, look_for_size=point.told == LOOKED_FOR)
            row = {"condition": point.condition, "value": point.value, "told": point.told, "case": name}
            row |= {"patient": item["patient"], "kind": kind, **_score(result, case, truth, point)}
            row["cpu_s"] = round(time.process_time() - start, 1)
            self.report["rows"].append(finite(row))
            save_json(self.report, self.path)
            psnr = row["scores"]["cascade"]["native_psnr_3d_db"]
            print(f"{name}  {point.condition} {point.value:g} {point.told}: {psnr:.2f} dB", flush=True)

    def _reconstruct(self, told: Told, *, look_for_size: bool) -> Reconstruction:
        """As `reconstruct` does it by default, or with `--find-size`."""
        if told.intensities != "calibrated":
            known = {"calibrated": False, "intensities": told.intensities}
            return reconstruct(told.image, told.beam, network=self.network, **known)
        pair = Pair(told.image, None, told.beam, "calibrated")
        if look_for_size and (found := find_size(self.network, pair)).is_off(ASKED):
            pair = at_size(pair, found.size)
        return reconstruct(pair.image, told.beam, network=self.network, weights=pair.weights)

    def write(self, picture: Path) -> None:
        """Add the summary to the file and draw it.

        Args:
            picture: PNG file.
        """
        summary = self._summarize()
        self.report["summary"] = [
            {"condition": condition, "value": value, "told": told, "scores": scores}
            for (condition, value, told), scores in summary.items()
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
        points: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
        for row in self.report["rows"]:
            points.setdefault((row["condition"], row["value"], row["told"]), []).append(row)
        planned = [(point.condition, point.value, point.told) for point in plan_points(list(CONDITIONS))]
        summary = {}
        for key, rows in sorted(points.items(), key=lambda entry: planned.index(entry[0])):
            means = {name: list(patient_means(rows, "cascade", name).values()) for name in rows[0]["scores"]["cascade"]}
            summary[key] = {name: summarize_values(values) for name, values in means.items() if values}
        return summary


def _score(result: Reconstruction, case: Case, truth: Truth, point: Point) -> dict[str, Any]:
    """Scores of a reconstruction, those after an alignment under names that begin with ``aligned_``."""
    found = score_volume(result.hu, truth, ["native"])
    scores = {name: found[name] for name in KEPT}
    scores["unexplained"] = result.refinement.residual_before if result.refinement else float("nan")
    row: dict[str, Any] = {"scores": {"cascade": scores}}
    lengths = point.condition in CONDITIONS and CONDITIONS[point.condition].is_length
    if point.told == "calibrated" and (lengths or point.condition in (NOMINAL, "view_angle")):
        moved, similarity = align(result.hu, case.hu, spacing=VOXEL_SIZE, valid=case.valid)
        after = score_volume(moved, truth, ["native"])
        scores |= {f"aligned_{name}": after[name] for name in KEPT}
        row["similarity"] = asdict(similarity)
    return row


def _diagram(summary: Summary, name: str, measure: str) -> Diagram:
    """The curves of one condition and one score."""
    condition, curves = CONDITIONS[name], []
    ways = [(told, "", told if told == LOOKED_FOR else f"told {told}") for told in condition.told]
    if condition.is_length:
        ways.append(("calibrated", "aligned_", "after alignment"))
    for told, prefix, label in ways:
        found = {}
        for value in condition.values:
            nominal = told == "calibrated" and value == condition.nominal
            scores = summary.get((NOMINAL, 0.0, told) if nominal else (name, float(value), told), {})
            if prefix + measure in scores:
                found[value] = scores[prefix + measure]
        if found:
            means = [score["mean"] for score in found.values()]
            bands = [score["ci95"] or [score["mean"]] * 2 for score in found.values()]
            low, high = ([band[end] for band in bands] for end in (0, 1))
            curves.append(Curve(label, list(found), means, low, high))
    return Diagram(name.replace("_", " "), condition.label, MEASURES[measure], curves, log_x=condition.log_x)


def _trimmed(diagram: Diagram, *, first_row: bool, first_column: bool) -> Diagram:
    """Titles stand above the first row alone, names of measures beside the first column alone."""
    title, y_label = diagram.title if first_row else "", diagram.y_label if first_column else ""
    return replace(diagram, title=title, y_label=y_label)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, help="unseen phantoms (default: 2, with --quick 1)")
    parser.add_argument("--mirrored", type=int, default=2, help="mirror images of so many training CTs (default: 2)")
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`; without: phantoms alone")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: the shipped ones, with --quick stage 1's)")
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--quick", action="store_true", help="one phantom, the ends of each curve")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the picture")
    parser.add_argument("--picture", type=Path, help="PNG file (default: in --output; of the full run in bundle/docs)")
    options = parser.parse_args(arguments)
    if options.phantoms is None:
        options.phantoms = 1 if options.quick else 2
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
        for kind, item in plan_cases(options.dataset, phantoms=options.phantoms, mirrored=options.mirrored):
            bench.measure(kind, item, list(plan_points(options.conditions, quick=options.quick)))
    except UserError as error:
        print(f"robustness: error: {error}", file=sys.stderr)
        return 2
    bench.write(options.picture)
    print(f"{len(bench.report['rows'])} points: {bench.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
