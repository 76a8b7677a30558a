# SPDX-License-Identifier: Apache-2.0
"""What phantoms teach: a stage 1 trained on phantoms alone, scored on CTs it has never seen.

    python benchmarks/phantom_gap.py --dataset dataset                              # two seeds, 32³, minutes of CPU
    python benchmarks/phantom_gap.py --dataset dataset --scale full --phantoms 1500 --steps 6000 --device cuda
    python benchmarks/phantom_gap.py --dataset dataset --test     # the test patients too, once, at the end

Steps, seeds and sizes are fixed, so that two populations differ by their phantoms alone. Scores are 3-D PSNR
(data_range 1 on [-1024, 1024] HU, valid voxels) on stage 1's own grid, and the shares of the squared error (see
:mod:`gap.shares`). ``--scale half`` is 32³ voxels of 11.2 mm with radiographs of 256², ``full`` 64³ and 512². The
training and validation sections of the dataset are scored, none of which the network has seen. What is in
``phantom_gap.json`` is not measured again; phantoms painted once stay in the cache.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gap.figure import save_figure
from gap.patients import EXTENT, SCALES, Patients, load_cts, load_phantoms
from gap.shares import SHARES, error_parts
from progressive_cascade.attenuation import hu_to_unit, unit_to_hu
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import volume_affine
from progressive_cascade.io import finite, read_json, save_json
from progressive_cascade.losses import CascadeLoss
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.precision import mixed_precision
from progressive_cascade.training.engine import StageObjective

RESULTS = Path(__file__).parent / "results"
LOSSES = {"l1": 1.0, "mse": 5.0, "ssim": 0.3}
LATER_STAGES = ((16, 48, 96), (16, 48, 96))  # of the network's signature; not built
RATE = 1.5e-3


def train(patients: Patients, *, steps: int, batch: int, seed: int, scale: str, device: str) -> ProgressiveCascade:
    """A stage 1 from nothing: AdamW with warm-up and cosine over a fixed number of steps."""
    torch.manual_seed(seed)
    own = SCALES[scale]
    network = ProgressiveCascade(stage=1, geometry=own.beam, unet_channels=(own.channels, *LATER_STAGES)).to(device)
    objective = StageObjective(CascadeLoss(LOSSES))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    order = np.random.default_rng(seed)
    grid = network.grid
    affine = torch.as_tensor(volume_affine((grid, grid, grid), EXTENT / grid)).float().to(device)
    network.train()
    for _ in range(steps):
        index = torch.from_numpy(order.choice(len(patients.names), batch, replace=False))
        image, matrices = patients.images[index].to(device).float(), patients.matrices[index].to(device)
        label, calibrated = patients.hu[index].to(device).float(), torch.ones(batch, device=device)
        targets: dict[str, Any] = {
            "label": hu_to_unit(label),
            "valid": torch.ones_like(label),
            "image": image,
            "matrices": matrices,
            "affine": affine,
            "calibrated": calibrated,
            "weights": None,
            "window": None,
        }
        with mixed_precision(device):
            prediction = network(image, matrices, calibrated)
        optimizer.zero_grad()
        objective(prediction, targets).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def answer(network: ProgressiveCascade, patients: Patients, case: int, device: str) -> np.ndarray:
    """What a network makes of one case: (x, y, z) [HU]."""
    image, matrices = (t[case : case + 1].to(device).float() for t in (patients.images, patients.matrices))
    prediction = network(image, matrices, torch.ones(1, device=device))
    return unit_to_hu(prediction[0, 0].float().clamp(0, 1)).cpu().numpy()


def score(network: ProgressiveCascade, patients: Patients, device: str) -> dict[str, dict[str, float]]:
    """Error and its parts, by case."""
    scores = {}
    for case, name in enumerate(patients.names):
        hu = answer(network, patients, case, device)
        scores[name] = error_parts(hu, patients.hu[case, 0].numpy(), patients.valid[case, 0].numpy() > 0)
    return scores


def draw(network: ProgressiveCascade, patients: Patients, options: argparse.Namespace, population: str) -> None:
    """The picture of one case."""
    name, path = options.picture[0], Path(options.picture[1])
    if name not in patients.names:
        raise UserError(f"--picture must name one of {', '.join(patients.names)}, got {name!r}")
    case = patients.names.index(name)
    truth = patients.hu[case, 0].numpy().astype(np.float32)
    title = f"{name}, stage 1 trained on phantoms of {population}; borders at -400 HU: truth green, answer orange"
    save_figure(answer(network, patients, case, options.device), truth, title=title, path=path)


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Thoraxes and abdomens, as the files are called."""
    return {
        "thorax": [name for name in names if name.startswith("thorax")],
        "abdomen": [name for name in names if name.startswith("abdomen")],
    }


def mean_parts(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Means over cases and seeds."""
    return {
        key: float(np.mean([run["cases"][name][key] for run in runs for name in names])) for key in ("psnr_db", *SHARES)
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: each population's means by group, and the spread of its seeds."""
    lines = [
        f"| phantoms | CTs | PSNR dB (spread of seeds) | {' | '.join(name.replace('_', ' ') for name in SHARES)} |",
        f"|---|---|---|{'---|' * len(SHARES)}",
    ]
    for population in dict.fromkeys(run["population"] for run in runs):
        own = [run for run in runs if run["population"] == population]
        for group, names in groups(sorted(own[0]["cases"])).items():
            if not names:
                continue
            means = mean_parts(own, names)
            seeds = [mean_parts([run], names)["psnr_db"] for run in own]
            spread = f"{np.ptp(seeds):.2f}" if len(seeds) > 1 else "one seed"
            shares = " | ".join(f"{100 * means[name]:.0f} %" for name in SHARES)
            lines.append(f"| {population} | {group} ({len(names)}) | {means['psnr_db']:.2f} ({spread}) | {shares} |")
    return "\n".join(lines)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="folder written by `prepare`")
    parser.add_argument("--populations", nargs="+", default=["basic"], metavar="NAME", help="of phantoms to train on")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the weights and of the order")
    parser.add_argument("--scale", choices=sorted(SCALES), default="half")
    parser.add_argument("--phantoms", type=int, default=600, help="patients to train on")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--test", action="store_true", help="score the test section, too")
    parser.add_argument(
        "--picture", nargs=2, metavar=("CASE", "PATH"), help="of what the last network trained makes of it"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/phantom_gap"), help="folder of radiographs and truths")
    parser.add_argument("--output", type=Path, default=RESULTS / "phantom_gap.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, write it after each run, print the table."""
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in ("scale", "phantoms", "steps", "batch", "test")}
    try:
        report = read_json(options.output) if options.output.is_file() else {"settings": settings, "runs": []}
        if report["settings"] != settings:
            raise UserError(f"{options.output} was made with {report['settings']}: name another --output")
        sections = ["training", "validation", *(["test"] if options.test else [])]
        cts = load_cts(options.dataset, sections, options.scale, options.cache)
        done = {(run["population"], run["seed"]) for run in report["runs"]}
        for population in options.populations:
            for seed in options.seeds:
                if (population, seed) in done:
                    continue
                phantoms = load_phantoms(population, options.phantoms, options.scale, options.cache)
                start = time.process_time()
                network = train(
                    phantoms,
                    steps=options.steps,
                    batch=options.batch,
                    seed=seed,
                    scale=options.scale,
                    device=options.device,
                )
                spent = time.process_time() - start
                cases = score(network, cts, options.device)
                if options.picture:
                    draw(network, cts, options, population)
                report["runs"].append({"population": population, "seed": seed, "cpu_s": spent, "cases": cases})
                save_json(finite(report), options.output)
    except (UserError, FileNotFoundError) as error:
        print(f"phantom_gap: error: {error}", file=sys.stderr)
        return 2
    print(table(report["runs"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
