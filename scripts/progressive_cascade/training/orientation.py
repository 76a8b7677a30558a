# SPDX-License-Identifier: Apache-2.0
"""Train the small network that sees how a radiograph lies.

    python -m progressive_cascade.training.orientation --dataset DATASET

Radiographs of phantoms and of the training CTs are simulated from many directions and distances, some of them of a CT
whose field of view cuts the body; each step draws a crop, a tone curve, noise, a collimation and a marker for every
one. The validation CTs choose nothing: their accuracy is printed. An interrupted training goes on from its last
hundred steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.io import atomic_path, read_state
from progressive_cascade.io.released import file_hash
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.physics.simulate import expose
from progressive_cascade.precision import usual_device
from progressive_cascade.radiograph.orientation import (
    NUM_COPIES,
    SIZE,
    OrientationNet,
    copies,
    default_weights,
    standardized,
)
from progressive_cascade.training.cases import load_case
from progressive_cascade.training.progress import Progress

_GRID, _SPACING = 64, 5.6
_SHAPE = (_GRID, _GRID, _GRID)
_PIXELS = 96
# Every phantom is another patient, every CT has to serve many times.
_EXAMINATIONS = {"phantom": 3, "ct": 30}
# Radius of the field of view of a CT that cuts the body, and the way from its middle to the grid's [mm].
_CUT_RADIUS, _CUT_OFFSET = (115.0, 175.0), 20.0
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


def cut_field(hu: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A CT with air where a round field of view, or a square one, ends in the body.

    Args:
        hu: 64³ voxels of 5.6 mm [HU].
        random: where radius, middle and form come from.
    """
    radius = random.uniform(*_CUT_RADIUS)
    place = (np.arange(_GRID) - (_GRID - 1) / 2) * _SPACING
    x, y = (np.abs(place - random.uniform(-_CUT_OFFSET, _CUT_OFFSET)) for _ in range(2))
    far = np.hypot.outer(x, y) if random.random() < 0.5 else np.maximum.outer(x, y)
    return np.where(far[:, :, None] < radius, hu, -1024)


def examine_often(hu: np.ndarray, num: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Radiographs of a CT as it is, of what smaller fields of view leave of it, and laterals of its mirror image.

    The left lateral of a mirrored CT is the right lateral of the CT in a mirror.

    Args:
        hu: 64³ voxels of 5.6 mm [HU].
        num: examinations as it is; as many of smaller fields, half as many of its mirror image.
        random: where they come from.

    Returns:
        As :func:`simulate_pictures`.
    """
    parts = [simulate_pictures(hu, num, random)]
    parts += [simulate_pictures(cut_field(hu, random), 3, random) for _ in range(num // 3)]
    for _ in range(num // 6):
        images, kinds = simulate_pictures(cut_field(hu[::-1].copy(), random), 3, random)
        parts.append((images[kinds == 1], kinds[kinds == 1]))
    images, kinds = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(kinds)


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
    rate: float = 3e-3,
    seed: int = 0,
    start: Path | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
) -> tuple[OrientationNet, Progress]:
    """Trains the network to find, among copies of a picture, the one that is read.

    Args:
        images: line integrals (n, 1, 96, 96), as they are read.
        kinds: (n,), 0 frontal, 1 lateral.
        steps: of AdamW, with a cosine.
        batch_size: pictures a step.
        rate: the largest, after a tenth of the steps.
        seed: of weights, order and variation.
        start: weights to go on from; None: from nothing.
        checkpoint: where the state is kept every 100 steps, and gone on from; None: nowhere.
        device: where to train.

    Returns:
        The network in eval mode, on the CPU, and what keeps the state, to be ended when the weights are written.
    """
    generator, network, kinds = torch.Generator().manual_seed(seed), _begin(seed, start).to(device), kinds.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "generator": generator}
    settings = {"steps": steps, "batch_size": batch_size, "rate": rate, "seed": seed, "pictures": len(images)}
    progress = Progress(checkpoint, parts, {**settings, "start": file_hash(start) if start else ""})
    began, losses = time.perf_counter(), []
    for step in range(progress.resume() + 1, steps + 1):
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        loss = _loss(network, vary(images[chosen], generator).to(device), kinds[chosen], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % _REPORT == 0 or step == steps:
            mean = sum(losses[-_REPORT:]) / len(losses[-_REPORT:])
            print(f"step {step}: loss {mean:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
            progress.keep(step)
    return network.eval().cpu(), progress


def _begin(seed: int, start: Path | None) -> OrientationNet:
    """A fresh network, or one with the weights to go on from."""
    torch.manual_seed(seed)
    network = OrientationNet()
    if start is not None:
        network.load_state_dict(read_state(start))
    return network


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


def _cts(dataset: Path, section: str) -> Iterator[np.ndarray]:
    for item in load_datalist(dataset, section):
        yield load_case(item).at_grid(_GRID).hu


def _training_pictures(dataset: Path, num_phantoms: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Those of the training CTs and of phantoms, two in five of the clinical population, one in three cut."""
    parts = [examine_often(hu, _EXAMINATIONS["ct"], random) for hu in _cts(dataset, "training")]
    num_clinical = 2 * num_phantoms // 5
    for population, num in (("basic", num_phantoms - num_clinical), ("clinical", num_clinical)):
        for seed in range(num):
            hu = generate_phantom(seed, shape=_SHAPE, spacing=_SPACING, population=population).hu
            seen = cut_field(hu, random) if seed % 3 == 2 else hu
            parts.append(simulate_pictures(seen, _EXAMINATIONS["phantom"], random))
    images, kinds = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(kinds)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulates, trains, prints the accuracy on the validation CTs and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2900)
    parser.add_argument("--rate", type=float, default=3e-3, help="the largest, after a tenth of the steps")
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--output", type=Path, default=default_weights())
    parser.add_argument("--device", default=usual_device(), help="default: cuda where there is one")
    options = parser.parse_args(argv)
    random = np.random.default_rng(0)
    images, kinds = _training_pictures(options.dataset, options.phantoms, random)
    print(f"{len(images)} pictures", flush=True)
    given = {name: getattr(options, name) for name in ("steps", "rate", "start", "device")}
    network, progress = train_orientation(images, kinds, checkpoint=Progress.beside(options.output), **given)
    unseen = [simulate_pictures(hu, 40, random) for hu in _cts(options.dataset, "validation")]
    if unseen:
        images, kinds = (torch.cat(tensors) for tensors in zip(*unseen, strict=True))
        print(f"validation CTs: {accuracy(network, images, kinds):.4f} of {3 * len(images)} pictures right")
    with atomic_path(options.output) as temporary:
        torch.save(network.state_dict(), temporary)
    progress.end()
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
