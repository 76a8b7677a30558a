# SPDX-License-Identifier: Apache-2.0
"""What a reconstruction is worth in other geometries than a chest stand's, with the weights for any of them.

    python benchmarks/geometries.py --dataset dataset
    python benchmarks/geometries.py --dataset dataset --conditions nominal 'turned 10°' --phantoms 2

Protocol: radiographs are simulated from the CT at 256³ in a geometry, `reconstruct` is told the geometry and does what
it does by default, refining included; scores are `native` at 256³. `stand` is the same with the weights of the chest
stand, where they take the geometry. What the JSON file holds is measured again where it was made with other weights;
the table of RESULTS.md is made from it by `make tables`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from progressive_cascade import ConeBeam
from progressive_cascade.errors import GeometryError
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.evaluation.metrics import evaluate_volume
from progressive_cascade.evaluation.perturbed import PERTURBATIONS, Perturbation
from progressive_cascade.inference.reconstruct import default_checkpoint, load_cascade, reconstruct, wide_checkpoint
from progressive_cascade.io import read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.training.cases import load_case
from progressive_cascade.training.data import FIRST_SEEDS, phantom_items

RESULTS = Path(__file__).parent / "results"


def conditions() -> dict[str, Perturbation]:
    """How a pair is taken and told, by condition."""
    stand = ConeBeam()
    shapes = {
        "nominal": stand,
        "source at 1000 mm": ConeBeam(800.0, 1000.0),
        "source at 1200 mm": ConeBeam(1000.0, 1200.0),
        "source at 2000 mm": ConeBeam(1750.0, 2000.0),
        "turned 5°": replace(stand, views=("lao5", "lao87_cranial3")),
        "turned 10°": replace(stand, views=("rao9.5", "lao81_caudal4")),
        "AP at the bedside": ConeBeam.preset("bedside_ap"),
        "right lateral": replace(stand, views=("pa", "right_lateral")),
    }
    return {
        **{name: Perturbation(told=beam) for name, beam in shapes.items()},
        "gain 0.8, told scaled": PERTURBATIONS["gain 0.8, told scaled"],
        "gain 1.2, told scaled": Perturbation(intensities="scaled", change=lambda image: 1.2 * image),
        "display curve": PERTURBATIONS["display curve"],
    }


def plan(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Group and item of every case, patients first."""
    for section in options.sections:
        for item in evaluation_items(options.dataset, section):
            yield ("validation" if section == "validation" else "test patients"), item
    for item in phantom_items(options.phantoms, FIRST_SEEDS["test"]):
        yield "phantoms", item


def measure(item: dict[str, Any], condition: str, weights: Path) -> dict[str, float] | None:
    """Scores and seconds of one reconstruction; None where the weights do not take the geometry."""
    case = load_case(item)
    told = conditions()[condition].take(case, seed=0)
    known: dict[str, Any] = {"calibrated": told.intensities == "calibrated"}
    if not known["calibrated"]:
        known["intensities"] = told.intensities
    start = time.monotonic()
    try:
        result = reconstruct(told.image, told.beam, network=load_cascade(weights), **known)
    except GeometryError:
        return None
    seconds = time.monotonic() - start
    scores = evaluate_volume(result.hu, case.hu, valid=case.valid)
    kept = ("native_psnr_3d_db", "native_ssim_3d", "native_mae_hu", "native_body_mae_hu")
    return {name: scores[name] for name in kept} | {"seconds": round(seconds, 1)}


def of_weights(report: dict[str, Any], weights: dict[str, str]) -> dict[str, Any]:
    """Of an earlier report what was measured with these files of weights, by their names and hashes."""
    same = {name for name, value in weights.items() if report["weights"].get(name) == value}
    return {"weights": weights, "rows": [row for row in report["rows"] if row["weights"] in same]}


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`")
    parser.add_argument("--sections", nargs="+", default=["validation", "test"], choices=("validation", "test"))
    parser.add_argument("--phantoms", type=int, default=4)
    parser.add_argument("--conditions", nargs="+", default=list(conditions()), choices=list(conditions()))
    parser.add_argument("--weights", nargs="+", default=["any", "stand"], choices=("any", "stand"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing."""
    options = parse_options(arguments)
    if options.dataset is None:
        options.sections = []
    path = options.results / "geometries.json"
    hashes = {"any": file_hash(wide_checkpoint()), "stand": file_hash(default_checkpoint())}
    report = of_weights(read_json(path), hashes) if path.is_file() else {"weights": hashes, "rows": []}
    done = {(row["case"], row["condition"], row["weights"]) for row in report["rows"]}
    cases = list(plan(options))
    for condition in options.conditions:
        for group, item in cases:
            for name in options.weights:
                weights = wide_checkpoint() if name == "any" else default_checkpoint()
                case = item.get("case") or f"phantom_{item['seed']}"
                if (case, condition, name) in done:
                    continue
                scores = measure(item, condition, weights)
                row = {"case": case, "group": group, "condition": condition, "weights": name, "scores": scores}
                report["rows"].append(row)
                save_json(report, path)
                print(case, condition, name, scores, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
