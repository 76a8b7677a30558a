# SPDX-License-Identifier: Apache-2.0
"""How well radiographs as they come are taken: their forms, how they lie, and pairs that are none.

    python benchmarks/radiographs.py --dataset dataset                     # all parts; an hour on one core
    python benchmarks/radiographs.py --dataset dataset --parts pairs --pairs 50

    forms        one validation CT in every kind of file, against the volume of its plain NIfTI pair, at stage 1
    reading      seconds of processor time to read a pair of 3000 x 3000 and bring it onto the detector, by kind of file
    orientation  what the small network sees on CTs it has not learnt from: view x 8 ways x inverted or not x 3 curves
    pairs        right pairs, and wrong ones: mirrored, turned, inverted, transposed, exchanged, of two patients, of a
                 size wrong by 20 %; half of them line integrals, half grey levels, of which no tag says how they lie

Of `pairs`, the first half is of training CTs and phantoms, which choose the thresholds of the program; the second of
validation CTs and other phantoms, which choose nothing. Writes ``radiographs.json`` after every pair and goes on where
an earlier run stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from conditions.files import write_forms
from conditions.large_files import write_large
from conditions.wrong_pairs import KINDS, make_pair, patients
from progressive_cascade.attenuation import hu_to_mu, unit_to_hu
from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.metrics import evaluate_volume
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.inference.acceptance import model_of
from progressive_cascade.inference.examine import examine
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.reconstruct import load_cascade
from progressive_cascade.inference.transforms import to_line_integrals
from progressive_cascade.io import read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.paths import bundle_root
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.projector import line_integrals
from progressive_cascade.radiograph.lengths import Choices
from progressive_cascade.radiograph.orientation import NUM_COPIES, copies, default_weights, load_orientation_net
from progressive_cascade.radiograph.pair import Pair, assemble_pair
from progressive_cascade.radiograph.read import read_radiograph
from progressive_cascade.training.cases import load_case
from progressive_cascade.training.orientation import simulate_pictures, vary

PARTS = ("forms", "reading", "orientation", "pairs")
_GRID = 64
_SHAPE = (_GRID, _GRID, _GRID)


def measure_forms(network: ProgressiveCascade, dataset: Path) -> list[dict[str, Any]]:
    """A row per form: seconds to read and bring onto the detector, and its volume against the plain pair's."""
    case = load_case(load_datalist(dataset, "validation")[0]).at_grid(_GRID)
    mu, affine = hu_to_mu(torch.as_tensor(case.hu, dtype=torch.float32)[None, None]), volume_affine(_SHAPE, 5.6)

    def project(shape: tuple[int, int], pitch: float) -> np.ndarray:
        taken = ConeBeam(detector_shape=shape, pixel_spacing=(pitch, pitch))
        return line_integrals(mu, taken, affine=affine)[0].numpy()

    beam = ConeBeam()
    plain = project(beam.detector_shape, beam.pixel_spacing[0])
    volume = {
        "calibrated": _volume(network, plain, calibrated=True),
        "display": _volume(network, to_line_integrals(plain, display=True)[0], calibrated=False),
    }
    volume["signal"] = volume["calibrated"]
    psnr = {name: evaluate_volume(hu, case.hu)["native_psnr_3d_db"] for name, hu in volume.items()}
    rows, done = [], {}
    with TemporaryDirectory() as folder:
        for form in write_forms(project, beam, Path(folder)):
            start = time.process_time()
            read = (read_radiograph(form.frontal), read_radiograph(form.lateral))
            pair = assemble_pair(*read, model=model_of(network), choices=Choices(surroundings="none"))
            seconds = time.process_time() - start
            key = pair.image.tobytes()
            if key not in done:
                done[key] = _volume(network, pair.image, calibrated=pair.calibrated, weights=pair.weights)
            rows.append(
                {
                    "form": form.name,
                    "known": form.known,
                    "seconds": seconds,
                    "difference_hu": float(np.abs(done[key] - volume[form.known]).mean()),
                    "psnr_db": evaluate_volume(done[key], case.hu)["native_psnr_3d_db"],
                    "plain_psnr_db": psnr[form.known],
                }
            )
            print(rows[-1], flush=True)
    return rows


def _volume(network: ProgressiveCascade, image: np.ndarray, *, calibrated: bool, weights: Any = None) -> np.ndarray:
    seen = None if weights is None else torch.as_tensor(weights)[None]
    with torch.inference_mode():
        unit = CascadeInferer()(
            torch.as_tensor(image)[None], network, calibrated=torch.tensor([float(calibrated)]), weights=seen
        )
    return unit_to_hu(unit)[0, 0].numpy()


def measure_reading(network: ProgressiveCascade) -> list[dict[str, Any]]:
    """A row per form: the least of two runs, one thread; and how far the pair is from the uncompressed one."""
    made = generate_phantom(3, shape=_SHAPE, spacing=5.6)
    mu, beam = hu_to_mu(torch.as_tensor(made.hu, dtype=torch.float32)[None, None]), ConeBeam()
    image = line_integrals(mu, beam, affine=volume_affine(_SHAPE, 5.6))[0].numpy()
    rows, plain = [], None
    with TemporaryDirectory() as folder:
        for form, frontal, lateral in write_large(image, Path(folder)):
            runs = []
            for _ in range(2):
                start = time.process_time()
                read = (read_radiograph(frontal), read_radiograph(lateral))
                decoded = time.process_time()
                pair = assemble_pair(*read, model=model_of(network))
                runs.append((time.process_time() - start, decoded - start))
            seconds, decoding = min(runs)
            size = (frontal.stat().st_size + lateral.stat().st_size) / 1e6
            rows.append({"form": form, "seconds": seconds, "decoding": decoding, "megabytes": size})
            plain = pair.image if form == "DICOM, uncompressed" else plain
            if plain is not None:
                rows[-1]["rms_difference"] = float(np.sqrt(np.mean((pair.image - plain) ** 2)))
            print(rows[-1], flush=True)
    return rows


def measure_orientation(dataset: Path, num: int = 6) -> dict[str, Any]:
    """Answers of the network on validation CTs: right, and each way of being wrong."""
    network, random = load_orientation_net(), np.random.default_rng(7)
    if network is None:
        raise UserError("the bundle has no models/orientation.pt; python -m progressive_cascade.training.orientation")
    confusion = np.zeros((32, 32), dtype=int)
    for item in load_datalist(dataset, "validation"):
        images, kinds = simulate_pictures(load_case(item).at_grid(_GRID).hu, num, random)
        for curve in range(3):
            for copy in range(NUM_COPIES):
                # Each copy is another picture: its own crop, curve and noise.
                varied = vary(images, torch.Generator().manual_seed(NUM_COPIES * curve + copy))
                with torch.inference_mode():
                    seen = network(copies(varied)[:, copy]).argmax(dim=1)
                # What brings copy c back: of turned and mirrored ones the same turn, of turned ones the opposite.
                turn, mirrored, inverted = copy % 4, copy % 8 >= 4, copy // 8
                back = turn if mirrored else -turn % 4
                answer = 8 * inverted + 4 * mirrored + back
                for kind, found in zip(kinds.tolist(), seen.tolist(), strict=True):
                    confusion[2 * answer + kind, found] += 1
    return {"confusion": confusion.tolist(), "sha256": file_hash(default_weights())}


def measure_pairs(
    network: ProgressiveCascade, dataset: Path, rows: list[dict[str, Any]], num: int, keep: Callable[[], None]
) -> None:
    """Adds rows until there are `num` right and `num` wrong pairs in each half; both halves grow together."""
    pools = [patients(dataset, section) for section in ("training", "validation")]
    have = {(row["half"], row["kind"], row["index"]) for row in rows}
    for index in range(num):
        for half, pool in enumerate(pools):
            for kind in ("right", KINDS[index % len(KINDS)]):
                if (half, kind, index) not in have:
                    rows.append({"half": half, "kind": kind, "index": index, **_judge(network, pool, kind, index)})
                    print(rows[-1], flush=True)
                    keep()


def _judge(network: ProgressiveCascade, pool: Sequence[np.ndarray], kind: str, index: int) -> dict[str, Any]:
    """What the program says of a pair."""
    given = make_pair(pool, kind, index)

    def assemble(mirror_frontal: bool) -> Pair:
        choices = Choices(mirror_frontal=mirror_frontal, surroundings="none")
        return assemble_pair(*given.radiographs, model=model_of(network), choices=choices)

    try:
        pair = examine(assemble, network)
    except UserError as error:
        return {"calibrated": given.calibrated, "refused": str(error)}
    return {
        "calibrated": pair.calibrated,
        "refused": "",
        "upright": bool(given.is_upright(pair)),
        "notes": pair.notes,
        "warnings": pair.warnings,
        "mirror": pair.mirror,
        "agreement_db": list(pair.first_agreement.values()),
        "mirrored_db": pair.first_mirrored,
        "slice_difference": pair.slice_difference,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pairs", type=int, default=100, help="right ones of each half; as many wrong ones")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "radiographs.json")
    options = parser.parse_args(arguments)
    report = read_json(options.output) if options.output.is_file() else {}
    weights = bundle_root() / "models" / "stage1_best.pt"
    network = load_cascade(weights)
    report["weights"] = {"file": weights.name, "sha256": file_hash(weights)}
    if "forms" in options.parts:
        report["forms"] = measure_forms(network, options.dataset)
        save_json(report, options.output)
    if "reading" in options.parts:
        report["reading"] = measure_reading(network)
        save_json(report, options.output)
    if "orientation" in options.parts:
        report["orientation"] = measure_orientation(options.dataset)
        save_json(report, options.output)
    if "pairs" in options.parts:
        rows = report.setdefault("pairs", [])
        measure_pairs(network, options.dataset, rows, options.pairs, lambda: save_json(report, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
