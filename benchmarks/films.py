# SPDX-License-Identifier: Apache-2.0
"""Films whose patient is known: console pictures, cropped, of unknown size, at other heights, simulated from a CT.

    python benchmarks/films.py --dataset DATASET      # the shipped weights, a minute a case on one core, resumable
    python benchmarks/films.py --dataset DATASET --weights models/any_geometry.pt

Protocol: of the validation CT, mirror images of training CTs and unseen clinical phantoms two films of 8 bits are made
as a console makes them (a tube's spectrum, scatter, noise, a monotone curve, local contrast, black and white cut off),
both cropped to 80 to 100 % of their sides, the lateral up to 30 mm higher or lower, each view up to 2° from where it is
said to be. `reconstruct` reads them as it reads any PNG, takes them for 43 cm, brings them into register; scored is
stage 1's volume, before and after refining, on its own grid. Writes ``films.json``, a row a case and file of weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from conditions.cases import open_case, plan_cases
from progressive_cascade.cli import build_parser
from progressive_cascade.cli.radiographs import read_pair
from progressive_cascade.inference.opposite import first_volume
from progressive_cascade.inference.reconstruct import load_cascade, wide_checkpoint
from progressive_cascade.inference.refine import RefineSettings, refine
from progressive_cascade.io import finite, read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.training.cases import Case
from progressive_cascade.training.simulation import SimulateBatch
from refine import scorer

RESULTS = Path(__file__).parent / "results"
# Everything about a film but its crop and its height: source and field as a chest stand has them.
_STAND = {"source_to_isocenter": [1450, 1550], "field": [358, 358.4], "turn": 2}
_CONSOLE = {
    "display": 1.0,
    "scaled": 0.0,
    "spectra": 1.0,
    "kilovolts": [100, 130],
    "collimated": 0.0,
    "photons": [3e4, 1e6],
}
_CROPPED, _HIGHER_MM = (0.8, 1.0), 30.0


def make_films(case: Case, number: int, folder: Path) -> tuple[Path, Path]:
    """A frontal and a lateral PNG of a case.

    Args:
        case: whose CT, at 256³.
        number: of the case; everything that varies follows from it.
        folder: where they are written.
    """
    random = np.random.default_rng(number)
    simulate = SimulateBatch(
        64, geometry_range=dict(_STAND), acquisition=dict(_CONSOLE), surroundings_mm=42.0, seed=number
    )
    image = simulate({"label": torch.from_numpy(case.hu.astype(np.float32))[None, None]})[0][0].numpy()
    size = image.shape[-1]
    side = round(size * random.uniform(*_CROPPED))
    start = (size - side) // 2
    down = round(random.uniform(-1, 1) * min(_HIGHER_MM * size / _STAND["field"][0], start))
    paths = []
    for view, (name, top) in enumerate((("pa", start), ("lateral", start + down))):
        cut = image[view, top : top + side, start : start + side]
        grey = 255 * (cut - cut.min()) / (cut.max() - cut.min())
        paths.append(folder / f"{name}.png")
        Image.fromarray(grey.round().astype(np.uint8)).save(paths[-1])
    return paths[0], paths[1]


def measure(case: Case, films: tuple[Path, Path], network: ProgressiveCascade, weights: Path) -> dict[str, Any]:
    """Scores of stage 1's volume, and what is said of the pair."""
    command = ["reconstruct", "--pa", str(films[0]), "--lateral", str(films[1]), "--output", "ct.nii.gz"]
    options = build_parser().parse_args([*command, "--checkpoint", str(weights)])
    with redirect_stdout(StringIO()):
        pair = read_pair(options, network)
    matrices = torch.as_tensor(pair.beam.projection_matrices(), dtype=torch.float32)[None]
    image, score = torch.from_numpy(pair.image)[None], scorer(case, 64)
    mask = None if pair.weights is None else torch.from_numpy(pair.weights)[None].float()
    known = torch.tensor([float(pair.calibrated)])
    with torch.no_grad():
        first = first_volume(network, image, matrices, known, mask)
    found = refine(network, image, matrices, known=pair.intensities, settings=RefineSettings(), mask=mask)
    report = found.reports[0]
    return {
        "first": score(first),
        "refined": score(found.volume),
        "residual": report.residual_before,
        "steps": report.steps,
        "agreement_db": list(pair.first_agreement.values()),
        "warnings": len(pair.warnings),
        "notes": pair.notes,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, write after each case, print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`")
    parser.add_argument("--phantoms", type=int, default=4)
    parser.add_argument("--mirrored", type=int, default=3)
    parser.add_argument("--weights", type=Path, default=wide_checkpoint())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    path, name = options.results / "films.json", file_hash(options.weights)
    report: dict[str, Any] = read_json(path) if path.is_file() else {"rows": []}
    network = load_cascade(options.weights)
    items = plan_cases(options.dataset, phantoms=options.phantoms, mirrored=options.mirrored, test=False)
    for number, (kind, item) in enumerate(items):
        item = {**item, "population": "clinical"} if kind == "phantom" else item
        who = item.get("case") or f"phantom_{item['seed']}"
        if any((row["weights"], row["kind"], row["case"]) == (name, kind, who) for row in report["rows"]):
            continue
        case = open_case(kind, item)
        with tempfile.TemporaryDirectory() as folder:
            films = make_films(case, number, Path(folder))
            row = {"weights": name, "kind": kind, "case": who, **measure(case, films, network, options.weights)}
        report["rows"].append(row)
        save_json(finite(report), path)
        print({key: value for key, value in row.items() if key != "weights"}, flush=True)
    own = [row for row in report["rows"] if row["weights"] == name]
    for kind in dict.fromkeys(row["kind"] for row in own):
        rows = [row for row in own if row["kind"] == kind]
        means = [float(np.mean([row[which]["psnr"] for row in rows])) for which in ("first", "refined")]
        print(f"{kind}: {len(rows)} cases, stage 1 {means[0]:.2f} dB, refined {means[1]:.2f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
