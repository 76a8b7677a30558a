# SPDX-License-Identifier: Apache-2.0
"""What refining stage 1 on the case's own radiographs gains, by what is known of them.

    python benchmarks/refine.py --dataset dataset                                  # 64³: every condition, every case
    python benchmarks/refine.py --dataset dataset --grid 256 --conditions calibrated gain_0.8
    python benchmarks/refine.py --dataset dataset --variants last_layer rate_0.001 # ablation, at 64³

Protocol: radiographs are simulated from the CT at 256³ under a condition, taken for what the condition says is known of
them, and reconstructed; scores are `native`, on stage 1's own grid against the CT averaged to 64³, or at 256³ by the
whole cascade. Dice is the overlap of voxels above -400 HU (body) and between -950 and -500 HU (lungs). What is in the
JSON file is not measured again; cases stand in an order in which a part of them is already useful. The tables of
EXPERIMENTS.md are made from it by `make tables`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conditions.cases import open_case, plan_cases
from low_rank import with_low_rank
from progressive_cascade import ConeBeam
from progressive_cascade.attenuation import unit_to_hu
from progressive_cascade.consistency import DataConsistency, estimate_noise
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.metrics import parse_truth, score_volume
from progressive_cascade.geometry.views import view_name
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.reconstruct import load_cascade
from progressive_cascade.inference.refine import RefineSettings, refine
from progressive_cascade.io import finite, read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.stages import EXTENT
from progressive_cascade.paths import bundle_root
from progressive_cascade.physics import Exposure
from progressive_cascade.physics.simulate import expose
from progressive_cascade.training.cases import Case

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
VARIANTS: dict[str, dict[str, Any]] = {
    "on": {},
    "rate_0.0001": {"learning_rate": 1e-4},
    "rate_0.001": {"learning_rate": 1e-3},
    "decoder": {"parameters": ("unet.up", "unet.decode", "unet.out")},
    "last_layer": {"parameters": ("unet.out",)},
    "no_discrepancy": {"discrepancy": 0.0},
    "rank_4": {"rank": 4, "learning_rate": 3e-3},
    "steps_30": {"steps": 30, "discrepancy": 0.0},
    "one_frame": {"frames": ((0, 0, 0),)},
    "pose": {"pose": True},
}
"""Ways to refine: what differs from the default; `rank` of the changes of stage 1's weights, learnt in their place.
Beside them `voxels`: conjugate gradients instead, ten steps."""
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


def scorer(case: Case, grid: int) -> Callable[[Tensor], dict[str, float]]:
    """Scores of a volume (1, 1, g, g, g) in [0, 1] on a grid."""
    case = case if case.hu.shape[0] == grid else case.at_grid(grid)
    truth = parse_truth(case.hu, valid=case.valid)

    def score(unit: Tensor) -> dict[str, float]:
        hu = unit_to_hu(unit[0, 0].clamp(0, 1)).round().numpy()
        scores = score_volume(hu, truth, ["native"])
        return {
            "psnr": scores["native_psnr_3d_db"],
            "ssim": scores["native_ssim_3d"],
            "body_dice": dice(hu, case.hu, _BODY_HU, np.inf),
            "lung_dice": dice(hu, case.hu, *_LUNG_HU),
        }

    return score


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the CPU seconds it took."""
    start = time.process_time()
    return work(), time.process_time() - start


class Steps:
    """The PSNR after every step, and the time that scoring took."""

    def __init__(self, score: Callable[[Tensor], dict[str, float]]) -> None:
        self.score, self.psnr, self.cpu_s = score, [], 0.0

    def __call__(self, step: int, volume: Tensor) -> None:
        """Takes note of a step's volume."""
        scores, seconds = timed(partial(self.score, volume))
        self.psnr.append(scores["psnr"])
        self.cpu_s += seconds


def measure_coarse(
    case: Case, condition: str, network: ProgressiveCascade, settings: RefineSettings, variants: Sequence[str]
) -> list[dict[str, Any]]:
    """Without refinement and by each of its variants, on stage 1's own grid."""
    image, known, score = take(case, condition), _KNOWN.get(condition, "calibrated"), scorer(case, network.grid)
    matrices, rows = network.projection_matrices[None], []
    with torch.no_grad():
        flag = torch.tensor([float(known == "calibrated")])
        unrefined, seconds = timed(lambda: network(image, matrices, flag))
        rows.append({"variant": "off", "cpu_s": seconds, "scores": score(unrefined)})
        if known != "calibrated":
            # What a pair is worth that is believed to be line integrals, the fault's full price.
            rows.append({"variant": "believed", "scores": score(network(image, matrices))})
    for variant in variants:
        if variant == "voxels":
            noise = float(estimate_noise(image).max())
            solver = DataConsistency(network.grid, EXTENT / network.grid, 10, noise=noise)
            with torch.no_grad():
                volume, seconds = timed(partial(solver, unrefined, image, matrices))
            rows.append({"variant": variant, "cpu_s": seconds, "scores": score(volume)})
            continue
        steps = Steps(score)
        changes, tuned = dict(VARIANTS[variant]), network
        if rank := changes.pop("rank", 0):
            tuned, changes["parameters"] = with_low_rank(network, rank)
        chosen = replace(settings, **changes)
        found, seconds = timed(partial(refine, tuned, image, matrices, known=known, settings=chosen, observe=steps))
        kept = {"report": found.reports[0].to_dict(), "psnr_by_step": steps.psnr}
        rows.append({"variant": variant, "cpu_s": seconds - steps.cpu_s, "scores": score(found.volume), **kept})
    return rows


def measure_full(
    case: Case, condition: str, network: ProgressiveCascade, settings: RefineSettings, variants: Sequence[str]
) -> list[dict[str, Any]]:
    """The same at 256³ by the whole cascade; where intensities were fitted, also with them not taken for true."""
    image, known, score = take(case, condition), _KNOWN.get(condition, "calibrated"), scorer(case, network.grid)
    matrices, inferer, rows = network.projection_matrices[None], CascadeInferer(None, amp=True), []
    flag = torch.tensor([float(known == "calibrated")])

    def finish(variant: str, image: Tensor, flag: Tensor, coarse: Tensor | None, **more: Any) -> None:
        with torch.inference_mode():
            volume, seconds = timed(lambda: inferer(image, network, matrices, flag, coarse=coarse))
        rows.append({"variant": variant, "cpu_s": seconds + more.pop("cpu_s", 0.0), "scores": score(volume), **more})
        if coarse is not None:
            large = torch.nn.functional.interpolate(coarse, volume.shape[2:], mode="trilinear", align_corners=False)
            rows[-1]["stage_1_psnr"] = score(large)["psnr"]

    # No step: the very volume the cascade makes by itself.
    sure = known == "calibrated"
    unrefined = refine(network, image, matrices, settings=replace(settings, steps=0)).volume if sure else None
    finish("off", image, flag, unrefined)
    for variant in variants:
        chosen = replace(settings, **VARIANTS[variant])
        found, seconds = timed(partial(refine, network, image, matrices, known=known, settings=chosen))
        report = found.reports[0].to_dict()
        finish(variant, found.image, torch.ones(1), found.volume, report=report, cpu_s=seconds)
        if not sure:
            finish(f"{variant}_not_consistent", found.image, flag, found.volume)
    return rows


def run(options: argparse.Namespace, path: Path) -> None:
    """Measure what is left."""
    full = options.grid == 256
    settings = RefineSettings(steps=options.steps)
    weights = bundle_root() / "models" / ("model.pt" if full else "stage1_best.pt")
    heading = {"sha256": file_hash(weights), "steps": options.steps}
    report = read_json(path) if path.is_file() else {"settings": heading, "rows": []}
    if report["settings"] != heading:
        raise UserError(f"{path} must be of the same weights and steps to go on with: move it away")
    network = load_cascade(weights)
    for kind, item in plan_cases(
        options.dataset, phantoms=options.phantoms, mirrored=options.mirrored, test=options.test
    ):
        name, case = str(item.get("case", item["patient"])), None
        for condition in options.conditions:
            key = {"kind": kind, "case": name, "condition": condition}
            done = {row["variant"] for row in report["rows"] if key.items() <= row.items()}
            left = [variant for variant in options.variants if variant not in done]
            if not left:
                continue
            case = case or open_case(kind, item)
            found = (measure_full if full else measure_coarse)(case, condition, network, settings, left)
            report["rows"] += [{**key, **row} for row in found if row["variant"] not in done]
            save_json(finite(report), path)
            told = ", ".join(f"{row['variant']} {row['scores']['psnr']:.2f}" for row in found)
            print(f"{kind} {name} {condition}: {told} dB", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`; without: phantoms alone")
    parser.add_argument("--phantoms", type=int, default=2)
    parser.add_argument("--mirrored", type=int, default=11, help="how many mirror images of training CTs")
    parser.add_argument("--test", action="store_true", help="the test patients alone, once everything is chosen")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, "voxels"], default=["on"])
    parser.add_argument("--grid", type=int, choices=(64, 256), default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    path = options.output / ("refine_256.json" if options.grid == 256 else "refine.json")
    try:
        run(options, path)
    except (UserError, FileNotFoundError) as error:
        print(f"refine: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
