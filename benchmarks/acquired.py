# SPDX-License-Identifier: Apache-2.0
"""What becomes of radiographs that were acquired, not simulated: pairs of films from the web, as anybody finds them.

    git clone https://github.com/ieee8023/covid-chestxray-dataset
    python benchmarks/acquired.py covid-chestxray-dataset               # about 30 s a pair on one core, resumable
    python benchmarks/acquired.py covid-chestxray-dataset --mismatched  # also a frontal with another patient's lateral

Protocol: of every patient and day the first PA or AP and the first lateral (Cohen et al. 2020, arXiv 2006.11988;
pictures of 300² to 4300², no distances, no CT to compare with). `reconstruct` reads each pair with `any_geometry.pt`
as it does by default; kept are what was done to it and what is warned of, what stage 1 then explains of it, and what it
leaves unexplained after a tone curve was found. Pictures are named by their number alone. Writes ``acquired.json``,
from which `make tables` makes the table of EXPERIMENTS.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from progressive_cascade.cli import build_parser
from progressive_cascade.cli.radiographs import read_pair
from progressive_cascade.errors import UserError
from progressive_cascade.inference.reconstruct import load_cascade, wide_checkpoint
from progressive_cascade.inference.refine import RefineSettings, refine
from progressive_cascade.io import finite, read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade
from published.acquired import acquired_table

RESULTS = Path(__file__).parent / "results"
# The lateral of so many pairs further on goes with a frontal that it does not belong to.
_FURTHER_ON = 7


def find_pairs(dataset: Path) -> list[tuple[Path, Path]]:
    """Frontal and lateral of every patient and day of whom both pictures are there, in the order of the list.

    Raises:
        UserError: if the folder holds no ``metadata.csv``, or no pair.
    """
    listed = dataset / "metadata.csv"
    if not listed.is_file():
        raise UserError(f"{dataset} must be a clone of the dataset, it has no metadata.csv")
    days: dict[tuple[str, str], dict[str, Path]] = {}
    with listed.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kind = {"PA": "frontal", "AP": "frontal", "L": "lateral"}.get(row["view"])
            path = dataset / row.get("folder", "images") / row["filename"]
            if row["modality"] == "X-ray" and kind and path.is_file():
                days.setdefault((row["patientid"], row["offset"]), {}).setdefault(kind, path)
    pairs = [(day["frontal"], day["lateral"]) for day in days.values() if len(day) == 2]
    if not pairs:
        raise UserError(f"{dataset} must hold pictures of frontals and laterals, it has no pair of them")
    return pairs


def measure(frontal: Path, lateral: Path, network: ProgressiveCascade) -> dict[str, Any]:
    """What `reconstruct` says of a pair before it reconstructs it, or why it does not."""
    command = ["reconstruct", "--pa", str(frontal), "--lateral", str(lateral), "--output", "ct.nii.gz"]
    options = build_parser().parse_args([*command, "--checkpoint", str(wide_checkpoint())])
    try:
        with redirect_stdout(StringIO()):
            pair = read_pair(options, network)
    except UserError as error:
        return {"refused": str(error).replace(str(frontal), "the frontal").replace(str(lateral), "the lateral")}
    matrices = torch.as_tensor(pair.beam.projection_matrices(), dtype=torch.float32)[None]
    mask = None if pair.weights is None else torch.from_numpy(pair.weights)[None].float()
    # No residual is believed, so that no step is taken.
    settings = RefineSettings(steps=1, believable=1e-9)
    image = torch.from_numpy(pair.image)[None]
    found = refine(network, image, matrices, known=pair.intensities, settings=settings, mask=mask).reports[0]
    return {
        "notes": pair.notes,
        "warnings": pair.warnings,
        "agreement_db": list(pair.first_agreement.values()),
        "slice_difference": pair.slice_difference,
        "residual": found.residual_before,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, write after each pair, print the summaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="clone of the dataset")
    parser.add_argument("--mismatched", action="store_true", help="also every other frontal with another's lateral")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    path, weights = options.results / "acquired.json", file_hash(wide_checkpoint())
    report: dict[str, Any] = read_json(path) if path.is_file() else {"weights": weights, "rows": []}
    try:
        if report["weights"] != weights:
            raise UserError(f"{path} was measured with other weights: move it away")
        pairs, network = find_pairs(options.dataset), load_cascade(wide_checkpoint())
        plan = [(number, number) for number in range(len(pairs))]
        if options.mismatched:
            plan += [(number, (number + _FURTHER_ON) % len(pairs)) for number in range(0, len(pairs), 2)]
        done = {(row["frontal"], row["lateral"]) for row in report["rows"]}
        for first, second in plan:
            if (first, second) not in done:
                row = {"frontal": first, "lateral": second, "mismatched": first != second}
                report["rows"].append(row | measure(pairs[first][0], pairs[second][1], network))
                save_json(finite(report), path)
                print(report["rows"][-1], flush=True)
    except UserError as error:
        print(f"acquired: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(acquired_table(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
