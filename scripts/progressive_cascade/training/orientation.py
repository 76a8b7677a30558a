# SPDX-License-Identifier: Apache-2.0
"""Train the small network that sees how a radiograph lies.

    python -m progressive_cascade.training.orientation --dataset DATASET

Radiographs of phantoms and of the training CTs are simulated from many directions and distances; each step draws a
crop, a tone curve, noise, a collimation and a marker for every one. The validation CTs choose nothing: their accuracy
is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.io import atomic_path
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.physics.simulate import expose
from progressive_cascade.radiograph.orientation import (
    NUM_COPIES,
    SIZE,
    OrientationNet,
    copies,
    default_weights,
    standardized,
)
from progressive_cascade.training.cases import load_case

_GRID, _SPACING = 64, 5.6
_SHAPE = (_GRID, _GRID, _GRID)
_PIXELS = 96
# Every phantom is another patient, every CT has to serve many times.
_EXAMINATIONS = {"phantom": 4, "ct": 40}
_REPORT = 100
# Of the copies: mirrored, inverted.
_HARD = (4, 8)


def simulate_pictures(hu: np.ndarray, num: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Frontal and lateral radiographs of a CT, from directions about those of a chest stand.

    Args:
        hu: 64³ voxels of 5.6 mm [HU].
        num: examinations; each gives a frontal and a lateral.
        random: where they come from.

    Returns:
        Line integrals (2 num, 1, 96, 96) and their kinds (2 num,), 0 frontal, 1 lateral.
    """
    volume = torch.as_tensor(hu, dtype=torch.float32)[None, None]
    affine, images = volume_affine(_SHAPE, _SPACING), []
    for _ in range(num):
        to_detector = random.uniform(1000.0, 2000.0)
        x, y, z = (float(value) for value in random.uniform(-35.0, 35.0, 3))
        pitch = 358.4 / _PIXELS * random.uniform(0.85, 1.3)
        lean, nod = random.uniform(-10, 10), random.uniform(-7, 7)
        sides = ("lao" if lean > 0 else "rao", "cranial" if nod > 0 else "caudal")
        frontal = f"{sides[0]}{abs(lean):.2f}_{sides[1]}{abs(nod):.2f}"
        lateral = f"lao{90 + lean:.2f}_{sides[1]}{abs(nod):.2f}"
        beam = ConeBeam(
            source_to_isocenter=to_detector - random.uniform(150.0, 350.0),
            source_to_detector=to_detector,
            detector_shape=(_PIXELS, _PIXELS),
            pixel_spacing=(pitch, pitch),
            views=(frontal, lateral),
            isocenter=(x, y, z),
            detector_rotation=random.uniform(-6.0, 6.0),
        )
        with torch.no_grad():
            images.append(expose(volume, beam, affine=affine)[0])
    return torch.cat(images)[:, None], torch.tensor([0, 1] * num)


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """A crop, a tone curve, noise, a collimation and a marker for each line-integral picture.

    Args:
        images: (b, 1, 96, 96).
        generator: where they come from.

    Returns:
        (b, 1, 64, 64), of zero mean and unit variance.
    """
    b = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b, 1, 1, 1, generator=generator)

    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = uniform(0.7, 1.1).flatten(), uniform(0.7, 1.1).flatten()
    theta[:, :, 2] = torch.cat((uniform(-0.15, 0.15), uniform(-0.15, 0.15)), dim=1).flatten(1)
    grid = F.affine_grid(theta, [b, 1, SIZE, SIZE], align_corners=False)
    cut = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    low = torch.quantile(cut.flatten(1), 0.02, dim=1).reshape(b, 1, 1, 1)
    high = torch.quantile(cut.flatten(1), 0.98, dim=1).reshape(b, 1, 1, 1)
    grey = (cut - low) / (high - low).clamp(min=1e-3)
    power = grey.clamp(0, 1) ** torch.exp(uniform(-0.9, 0.9))
    curve = torch.sigmoid((grey - uniform(0.3, 0.7)) * uniform(3.0, 9.0))
    window = ((grey - uniform(0.0, 0.15)) / uniform(0.7, 1.0)).clamp(0, 1)
    transmission = 1 - torch.exp(-cut.clamp(min=0) * uniform(0.3, 1.0))
    which = uniform(0, 4)
    toned = torch.where(which < 1, power, torch.where(which < 2, curve, torch.where(which < 3, window, transmission)))
    toned = toned + uniform(0.0, 0.06) * torch.randn(toned.shape, generator=generator)
    row, col = torch.arange(SIZE).reshape(1, 1, -1, 1), torch.arange(SIZE).reshape(1, 1, 1, -1)
    open_field = (row >= uniform(-30, 7)) & (row < SIZE - uniform(-30, 7))
    open_field = open_field & (col >= uniform(-30, 7)) & (col < SIZE - uniform(-30, 7))
    toned = torch.where(open_field, toned, uniform(-0.2, 1.2))
    near = ((row - uniform(3, SIZE - 3)).abs() < 2) & ((col - uniform(-9, 9) % SIZE).abs() < 2)
    return standardized(torch.where(near & (uniform(0, 1) < 0.4), toned.new_tensor(1.3), toned))


def train_orientation(
    images: Tensor,
    kinds: Tensor,
    *,
    steps: int,
    batch_size: int = 24,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> OrientationNet:
    """Trains the network to find, among copies of a picture, the one that is read.

    Args:
        images: line integrals (n, 1, 96, 96), as they are read.
        kinds: (n,), 0 frontal, 1 lateral.
        steps: of AdamW, with a cosine.
        batch_size: pictures a step.
        seed: of weights, order and variation.
        checkpoint: where the state is kept every 100 steps, and read from if the file is there; None: nowhere.

    Returns:
        The network in eval mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = OrientationNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "generator": generator}
    first = _resume(parts, checkpoint)
    start, losses = time.perf_counter(), []
    for step in range(first + 1, steps + 1):
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        loss = _loss(network, vary(images[chosen], generator), kinds[chosen], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % _REPORT == 0 or step == steps:
            mean = sum(losses[-_REPORT:]) / len(losses[-_REPORT:])
            print(f"step {step}: loss {mean:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
            _keep(parts, step, checkpoint)
    return network.eval()


def _keep(parts: Mapping[str, Any], step: int, checkpoint: Path | None) -> None:
    if checkpoint is None:
        return
    state = {name: part.get_state() if name == "generator" else part.state_dict() for name, part in parts.items()}
    with atomic_path(checkpoint) as temporary:
        torch.save({**state, "step": step}, temporary)


def _resume(parts: Mapping[str, Any], checkpoint: Path | None) -> int:
    """The step that was reached; 0 where there is no checkpoint."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.set_state(state[name]) if name == "generator" else part.load_state_dict(state[name])
    return int(state["step"])


def _loss(network: OrientationNet, pictures: Tensor, kinds: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy over six of the sixteen copies: pictures lie as they are read, so the first one is right.

    Its mirror image and its negative are always there, being the hardest to tell from it; the others are drawn.
    """
    rest = torch.tensor([copy for copy in range(1, NUM_COPIES) if copy not in _HARD])
    drawn = rest[torch.randperm(len(rest), generator=generator)[:3]]
    shown = torch.cat((torch.tensor([0, *_HARD]), drawn))
    return F.cross_entropy(network.judge(copies(pictures)[:, shown]), kinds)


def accuracy(network: OrientationNet, images: Tensor, kinds: Tensor, *, repeats: int = 3, seed: int = 1) -> float:
    """Share of varied pictures whose kind, way of lying and inversion are all right."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        right = [(network(vary(images, generator)).argmax(dim=1) == kinds).float().mean() for _ in range(repeats)]
    return float(torch.stack(right).mean())


def _pictures(dataset: Path, section: str, random: np.random.Generator, num: int) -> Iterator[tuple[Tensor, Tensor]]:
    for item in load_datalist(dataset, section):
        yield simulate_pictures(load_case(item).at_grid(_GRID).hu, num, random)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulates, trains, prints the accuracy on the validation CTs and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument("--phantoms", type=int, default=110)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--output", type=Path, default=default_weights())
    options = parser.parse_args(argv)
    random = np.random.default_rng(0)
    parts = list(_pictures(options.dataset, "training", random, _EXAMINATIONS["ct"]))
    for seed in range(options.phantoms):
        made = generate_phantom(seed, shape=_SHAPE, spacing=_SPACING)
        parts.append(simulate_pictures(made.hu, _EXAMINATIONS["phantom"], random))
    images, kinds = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    print(f"{len(images)} pictures", flush=True)
    checkpoint = options.output.with_name(f"{options.output.stem}_checkpoint.pt")
    network = train_orientation(images, kinds, steps=options.steps, checkpoint=checkpoint)
    unseen = list(_pictures(options.dataset, "validation", random, 40))
    if unseen:
        images, kinds = (torch.cat(tensors) for tensors in zip(*unseen, strict=True))
        print(f"validation CTs: {accuracy(network, images, kinds):.4f} of {3 * len(images)} pictures right")
    with atomic_path(options.output) as temporary:
        torch.save(network.state_dict(), temporary)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
