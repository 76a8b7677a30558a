# SPDX-License-Identifier: Apache-2.0
"""What each part of the cascade earns: networks and losses trained for the same time, scored on the same patients.

    python benchmarks/cascade.py --list
    python benchmarks/cascade.py                                   # every row, two seeds: hours; goes on where it was
    python benchmarks/cascade.py --rows default "no lifting" --seeds 0 --seconds 600 --scale full

Every row gets the same CPU seconds (of one thread, loading excluded), optimizer, schedule and phantoms, and about the
same number of parameters. ``--scale half`` works on 32³ and 64³ voxels and 256² radiographs, an eighth of the work,
``full`` on the shipped grids. Stage 2 starts from one stage 1, the default's of the same seed, frozen. Scores are
``native``: 3-D PSNR and SSIM, data_range 1, at the stage's own grid, on unseen phantoms.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablation.networks import ChannelToDepth
from ablation.samples import Samples, load_samples
from progressive_cascade import ConeBeam
from progressive_cascade.attenuation import hu_to_unit, unit_to_hu
from progressive_cascade.evaluation.metrics import evaluate_volume
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, volume_affine
from progressive_cascade.io import atomic_path
from progressive_cascade.losses import CascadeLoss
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.precision import mixed_precision
from progressive_cascade.training.engine import StageObjective

EXTENT = VOLUME_SHAPE[0] * VOXEL_SIZE
RESULTS = Path(__file__).parent / "results" / "cascade.json"
LEARNING_RATES = {1: 1.5e-3, 2: 2e-3}
LOSSES = {
    1: {"l1": 1.0, "mse": 5.0, "ssim": 0.3},
    2: {"l1": 1.0, "mse": 5.0, "ssim": 0.3, "perceptual": 0.005},
}
# Three levels at most: the coarsest grid of half a stage 1 is then 4³, and bfloat16 gradients on 2³ grids are unsound.
WIDTHS = {"unet_channels": ((24, 64, 96), (16, 48, 96), (16, 48, 96))}
# The 2-D network and what hangs on it; narrower throughout, so that the parameters stay about the same.
FULL: dict[str, Any] = {
    "cross_attention": True,
    "lift_channels": 8,
    "encoder_channels": (8, 16, 32, 48, 64),
    "token_dim": 64,
    "unet_channels": ((24, 56, 80), (16, 40, 80), (16, 48, 96)),
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        network: arguments of :class:`ProgressiveCascade` that differ from the default's.
        losses: weights that differ from the stage's.
        builder: another network altogether.
        rate: learning rate, where the stage's is not the best for it.
        stages: where the row makes sense.
    """

    network: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    builder: type[nn.Module] | None = None
    rate: float | None = None
    stages: tuple[int, ...] = (1, 2)


ROWS = {
    "default": Row(),
    "narrower": Row({"unet_channels": ((16, 48, 80), (12, 32, 80), (16, 48, 96))}, stages=(1,)),
    "wider": Row({"unet_channels": ((32, 96, 128), (24, 64, 128), (16, 48, 96))}, stages=(1,)),
    "closed by data consistency": Row({"consistency_iterations": (6, 4, 3)}),
    "normalised": Row({"normalize": (True, True, True)}, stages=(1,)),
    "not normalised": Row({"normalize": (False, False, False)}, rate=1e-3, stages=(2,)),
    "no MSE loss": Row(losses={"mse": 0.0}),
    "no SSIM loss": Row(losses={"ssim": 0.0}),
    "no perceptual loss": Row(losses={"perceptual": 0.0}, stages=(2,)),
    "with reprojection loss": Row(losses={"reprojection": 0.05}),
    "with the 2-D network": Row(FULL),
    "same, no lifting": Row({**FULL, "lift_pixels": False}),
    "same, no cross-attention": Row({**FULL, "cross_attention": False}),
    "same, no lifted features": Row({**FULL, "lift_channels": 0}),
    "same, no ViT": Row({**FULL, "vit_depth": 0}),
    "same, no cross-view attention": Row({**FULL, "cross_view": False}),
    "channel to depth, no geometry": Row(builder=ChannelToDepth, stages=(1,)),
}


def half_or_full(scale: str) -> ConeBeam:
    """The default geometry; at half scale its detector has half the pixels, and every grid follows."""
    return ConeBeam() if scale == "full" else ConeBeam(detector_shape=(256, 256), pixel_spacing=(1.68, 1.68))


def build(row: Row, stage: int, beam: ConeBeam, predecessor: Path | None) -> nn.Module:
    """The network of a row; at stage 2 the default's stage 1, loaded and frozen, and the row's stage 2.

    Args:
        row: which.
        stage: 1 or 2.
        beam: the geometry.
        predecessor: stage 1's state dict, for stage 2.

    Returns:
        The network; what is not trained needs no gradient.
    """
    if row.builder is not None:
        return row.builder(geometry=beam)
    if predecessor is None:
        return ProgressiveCascade(stage=stage, geometry=beam, **{**WIDTHS, **row.network})
    network = ProgressiveCascade(stage=stage, geometry=beam, freeze_earlier=True, **WIDTHS)
    variant = ProgressiveCascade(stage=stage, geometry=beam, **{**WIDTHS, **row.network})
    network.load_state_dict(torch.load(predecessor, weights_only=True), strict=False)
    # Stage 1 of the default has no 2-D network: a row that wants one trains it with its stage 2.
    network.stages[-1], network.xray = variant.stages[-1], variant.xray
    network.freeze_earlier = False
    return network


def train(
    network: nn.Module, samples: Samples, *, losses: dict[str, float], rate: float, seconds: float, seed: int
) -> int:
    """AdamW with warm-up and cosine over CPU seconds, one patient a step, mixed precision.

    Args:
        network: trained in place.
        samples: training patients.
        losses: weights by term.
        rate: highest learning rate.
        seconds: CPU seconds of this process to spend.
        seed: of the order of the patients.

    Returns:
        Steps taken.
    """
    objective = StageObjective(CascadeLoss(losses, perceptual_slices=1, amp=True))
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.01)
    order = np.random.default_rng(seed)
    network.train()
    steps, spent = 0, 0.0
    while spent < seconds:
        index = torch.from_numpy(order.choice(len(samples.hu), 1))
        image, targets = batch(samples, index, network.grid)  # pyright: ignore[reportArgumentType]
        start = time.process_time()
        share = spent / seconds
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (share + 1e-3) / 0.05) * 0.5 * (1 + math.cos(math.pi * share))
        with mixed_precision("cpu"):
            prediction = network(image, targets["matrices"], targets["calibrated"])
        optimizer.zero_grad()
        objective(prediction, targets).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps += 1
        spent += time.process_time() - start
    return steps


def batch(samples: Samples, index: Tensor, grid: int) -> tuple[Tensor, dict[str, Any]]:
    """Radiographs and targets of some patients, as :class:`SimulateBatch` makes them."""
    hu = nn.functional.avg_pool3d(samples.hu[index].float(), samples.hu.shape[2] // grid)
    return samples.images[index], {
        "label": hu_to_unit(hu),
        "valid": torch.ones_like(hu),
        "image": samples.images[index],
        "matrices": samples.matrices[index],
        "affine": torch.as_tensor(volume_affine((grid,) * 3, EXTENT / grid)).float(),
        "calibrated": torch.ones(len(index)),
        "weights": None,
        "window": None,
    }


@torch.inference_mode()
def score(network: nn.Module, samples: Samples) -> dict[str, float]:
    """Mean `native` scores over patients, and the seconds of one reconstruction."""
    network.eval()
    scores, start = [], time.process_time()
    volumes = []
    for patient in range(len(samples.hu)):
        image, targets = batch(samples, torch.tensor([patient]), network.grid)  # pyright: ignore[reportArgumentType]
        with mixed_precision("cpu"):
            volumes.append((network(image, targets["matrices"], targets["calibrated"]), targets["label"]))
    seconds = (time.process_time() - start) / len(volumes)
    for prediction, label in volumes:
        scores.append(evaluate_volume(unit_to_hu(prediction[0, 0].clamp(0, 1)), unit_to_hu(label[0, 0])))
    names = ("native_psnr_3d_db", "native_ssim_3d", "native_body_psnr_3d_db")
    return {
        **{name: round(float(np.mean([s[name] for s in scores])), 4) for name in names},
        "reconstruction_seconds": round(seconds, 3),
    }


def run(name: str, stage: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one row with one seed, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    beam, row = half_or_full(options.scale), ROWS[name]
    cache = options.cache
    kept = cache / f"ablation_stage1_{options.scale}_{options.seconds:g}_{seed}.pt"
    network = build(row, stage, beam, kept if stage == 2 else None)
    finest = beam.detector_shape[0] // 4
    training = load_samples("training", options.phantoms, grid=finest, beam=beam, cache=cache)
    losses = {**LOSSES[stage], **row.losses}
    rate = row.rate or LEARNING_RATES[stage]
    steps = train(network, training, losses=losses, rate=rate, seconds=options.seconds, seed=seed)
    if name == "default" and stage == 1:
        torch.save(network.state_dict(), kept)
    unseen = load_samples("validation", options.unseen, grid=finest, beam=beam, cache=cache)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return {"row": name, "stage": stage, "seed": seed, "parameters": trained, "steps": steps, **score(network, unseen)}


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help="default: all")
    parser.add_argument("--stages", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU seconds of training for each run")
    parser.add_argument("--scale", choices=("half", "full"), default="half")
    parser.add_argument("--phantoms", type=int, default=600, help="patients to train on")
    parser.add_argument("--unseen", type=int, default=24, help="patients to score")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path("runs/ablation"), help="folder of phantoms and of stage 1")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    return parser.parse_args()


def main() -> int:
    """Run what is missing, one process for each run, and write the JSON after each."""
    options = parse_options()
    if options.list:
        print("\n".join(ROWS))
        return 0
    settings = {name: getattr(options, name) for name in ("scale", "seconds", "phantoms", "unseen")}
    before = (
        json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {**settings, "runs": []}
    )
    runs = before.pop("runs")
    if before != settings:
        print(
            f"cascade: error: {options.output} was made with {before}, not {settings}; name another --output",
            file=sys.stderr,
        )
        return 2
    for stage in options.stages:
        names = [name for name in options.rows or ROWS if stage in ROWS[name].stages]
        done = {(r["row"], r["stage"], r["seed"]) for r in runs}
        wanted = [(name, stage, seed) for seed in options.seeds for name in names if (name, stage, seed) not in done]
        # Stage 2 starts from what this leaves.
        context = get_context("spawn" if sys.platform == "win32" else "forkserver")
        with ProcessPoolExecutor(options.jobs, mp_context=context, max_tasks_per_child=1) as pool:
            for future in as_completed([pool.submit(run, *job, options) for job in wanted]):
                runs.append(future.result())
                print(runs[-1], flush=True)
                with atomic_path(options.output) as temporary:
                    temporary.write_text(json.dumps({**settings, "runs": runs}, indent=4) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
