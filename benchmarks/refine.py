# SPDX-License-Identifier: Apache-2.0
"""What refining stage 1 on the case's own radiographs gains, by what is known of them.

    python benchmarks/refine.py --dataset dataset                    # validation, mirrored training CTs, two phantoms
    python benchmarks/refine.py --dataset dataset --full             # calibrated radiographs at 256³, too
    python benchmarks/refine.py --conditions calibrated gain_0.8

Every condition is measured without and with refinement, on stage 1's own grid (protocol `native` against the CT
averaged to 64³). Cases stand in an order in which a part of them is already useful; what is in ``refine.json`` is not
measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progressive_cascade import ConeBeam
from progressive_cascade.attenuation import unit_to_hu
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.evaluation.metrics import parse_truth, score_volume
from progressive_cascade.geometry.views import view_name
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.reconstruct import file_hash, load_cascade, reconstruct
from progressive_cascade.inference.refine import RefineSettings, refine
from progressive_cascade.io import finite, read_json, save_json
from progressive_cascade.paths import bundle_root
from progressive_cascade.physics import Exposure
from progressive_cascade.physics.simulate import expose
from progressive_cascade.training.cases import Case, load_case

RESULTS = Path(__file__).parent / "results"
CONDITIONS = (
    "calibrated",
    "gain_0.8",
    "photons_1000",
    "offset_0.3",
    "display_curve",
    "gain_1.2",
    "lateral_turned_2",
    "photons_10000",
)
_KNOWN = {"gain_0.8": "scaled", "gain_1.2": "scaled", "offset_0.3": "scaled", "display_curve": "display"}
_LUNG_HU, _BODY_HU = (-950.0, -500.0), -400.0


def take(case: Case, condition: str) -> Tensor:
    """The radiographs of a patient under a condition, on the scale of line integrals (1, view, rows, cols)."""
    x, y, z, _ = case.affine @ np.array([*((np.array(case.hu.shape) - 1) / 2), 1.0])
    beam = ConeBeam().at((float(x), float(y), float(z)))
    if condition == "lateral_turned_2":
        beam = replace(beam, views=(beam.views[0], view_name(88)))
    exposure = Exposure(photons=float(condition[8:])) if condition.startswith("photons_") else None
    hu = torch.from_numpy(case.hu.astype(np.float32))[None, None]
    image = expose(hu, beam, affine=case.affine, exposure=exposure, generator=torch.Generator().manual_seed(0))
    if condition.startswith("gain_"):
        return image * float(condition[5:])
    if condition.startswith("offset_"):
        return image + float(condition[7:])
    if condition == "display_curve":
        # A sigmoid, as consoles apply it, and then what the command line makes of unknown values.
        grey = 1.0 / (1.0 + torch.exp(-(image - 3.0) / 1.2))
        ends = torch.quantile(grey.flatten(2)[..., ::5], torch.tensor([0.01, 0.99]), dim=2)[..., None, None]
        return (grey - ends[0]) * (6.0 / (ends[1] - ends[0]))
    return image


def dice(hu: np.ndarray, truth: np.ndarray, low: float, high: float) -> float:
    """Overlap of the voxels between two CT numbers."""
    ours, theirs = ((volume >= low) & (volume < high) for volume in (hu, truth))
    return float(2 * (ours & theirs).sum() / max(1, ours.sum() + theirs.sum()))


def score(hu: np.ndarray, case: Case) -> dict[str, float]:
    """Scores of a volume on its own grid."""
    truth = case if case.hu.shape[0] == len(hu) else case.at_grid(len(hu))
    scores = score_volume(hu, parse_truth(truth.hu, valid=truth.valid), ["native"])
    kept = {
        name: scores[name]
        for name in ("native_psnr_3d_db", "native_ssim_3d", "native_body_psnr_3d_db")
        if name in scores
    }
    return kept | {
        "body_dice": dice(hu, truth.hu, _BODY_HU, np.inf),
        "lung_dice": dice(hu, truth.hu, *_LUNG_HU),
    }


def measure(case: Case, condition: str, network: Any, settings: RefineSettings) -> list[dict[str, Any]]:
    """Without and with refinement, at 64³."""
    image, known = take(case, condition), _KNOWN.get(condition, "calibrated")
    matrices, rows = network.projection_matrices[None], []
    flag = torch.tensor([float(known == "calibrated")])
    start = time.process_time()
    with torch.no_grad():
        before = network(image, matrices, flag)
    rows.append({"refined": False, "cpu_s": time.process_time() - start, **_scores(before, case)})
    start = time.process_time()
    found = refine(network, image, matrices, known=known, settings=settings)
    report = found.reports[0].to_dict()
    rows.append(
        {"refined": True, "cpu_s": time.process_time() - start, **_scores(found.volume, case), "report": report}
    )
    if known != "calibrated":
        # What a pair is worth that is believed to be line integrals, the fault's full price.
        with torch.no_grad():
            rows.append({"refined": False, "believed": True, **_scores(network(image, matrices), case)})
    return rows


def _scores(unit: Tensor, case: Case) -> dict[str, Any]:
    return {"scores": score(unit_to_hu(unit[0, 0].clamp(0, 1)).round().numpy(), case)}


def measure_full(case: Case, condition: str, network: Any, settings: RefineSettings) -> list[dict[str, Any]]:
    """Without and with refinement, at 256³ by the whole cascade."""
    image, known = take(case, condition), _KNOWN.get(condition, "calibrated")
    rows = []
    for steps in (0, settings.steps):
        start = time.process_time()
        result = reconstruct(
            image[0].numpy(),
            ConeBeam(),
            network=network,
            inferer=CascadeInferer(amp=True),
            calibrated=known == "calibrated",
            intensities="display" if known == "calibrated" else known,
            refine=replace(settings, steps=steps),
        )
        row = {"refined": steps > 0, "cpu_s": time.process_time() - start, "scores": score(result.hu, case)}
        rows.append(row)
    return rows


def cases(dataset: Path | None, phantoms: int, *, test: bool) -> list[tuple[str, dict[str, Any]]]:
    """Items by kind: validation, mirror images of training patients and phantoms in turn, then test patients."""
    made = [("phantom", item) for item in evaluation_items(num_phantoms=phantoms)] if phantoms else []
    if dataset is None:
        return made
    mirrored = [("mirrored", item) for item in evaluation_items(dataset, "training")]
    mixed = [one for pair in zip(mirrored, made, strict=False) for one in pair]
    rest = mirrored[len(made) :] + made[len(mirrored) :]
    first = [("validation", item) for item in evaluation_items(dataset, "validation")]
    return [*first, *mixed, *rest, *([("test", item) for item in evaluation_items(dataset, "test")] if test else [])]


def open_case(kind: str, item: dict[str, Any]) -> Case:
    """Loads a case; a mirrored one as its mirror image, left for right."""
    case = load_case(item)
    if kind != "mirrored":
        return case
    valid = None if case.valid is None else case.valid[::-1].copy()
    return Case(f"mirrored_{case.name}", case.patient, case.hu[::-1].copy(), case.affine, valid)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`")
    parser.add_argument("--phantoms", type=int, default=2)
    parser.add_argument("--steps", type=int, default=RefineSettings().steps)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--full", action="store_true", help="by the whole cascade at 256³, not stage 1 at 64³")
    parser.add_argument("--test", action="store_true", help="the test patients, too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        settings = RefineSettings(steps=options.steps)
        weights = bundle_root() / "models" / ("model.pt" if options.full else "stage1_best.pt")
        heading = {"sha256": file_hash(weights), "steps": options.steps}
        path = options.output / ("refine_256.json" if options.full else "refine.json")
        report = read_json(path) if path.is_file() else {"settings": heading, "rows": []}
        if report["settings"] != heading:
            raise UserError(f"{path} must be of the same weights and steps to go on with: move it away")
        network = load_cascade(weights)
        for kind, item in cases(options.dataset, options.phantoms, test=options.test):
            name = str(item.get("case", item["patient"]))
            done = {row["condition"] for row in report["rows"] if (row["kind"], row["case"]) == (kind, name)}
            left = [condition for condition in options.conditions if condition not in done]
            case = open_case(kind, item) if left else None
            for condition in left:
                assert case is not None
                found = (measure_full if options.full else measure)(case, condition, network, settings)
                report["rows"] += [{"kind": kind, "case": name, "condition": condition, **row} for row in found]
                save_json(finite(report), path)
                gain = [row["scores"]["native_psnr_3d_db"] for row in found[:2]]
                print(f"{kind} {name} {condition}: {gain[0]:.2f} -> {gain[1]:.2f} dB", flush=True)
    except (UserError, FileNotFoundError) as error:
        print(f"refine: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
