# SPDX-License-Identifier: Apache-2.0
"""Train the weights of the perceptual loss: a VGG16 trunk that names the tissue of each pixel of CT slices.

Two sources of truth: phantoms know their anatomy; CT volumes are named by smoothed HU thresholds. The network sees the
slices with wrong calibration, noise and blur, so that it has to recognise tissue by texture and surroundings. Only the
trunk is kept, as a bare half-precision state dict:

    python -m progressive_cascade.training.perceptual --dataset DATASET

An interrupted training goes on from its last hundred steps.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers.simplelayers import GaussianFilter
from torch import Tensor, nn

from progressive_cascade.attenuation import hu_to_unit
from progressive_cascade.ct.datalist import read_datalist
from progressive_cascade.io import atomic_path
from progressive_cascade.losses.perceptual import CT_WEIGHTS, VGG16Trunk
from progressive_cascade.paths import bundle_root
from progressive_cascade.phantom import LABELS, generate_phantom
from progressive_cascade.precision import mixed_precision, usual_device
from progressive_cascade.training.progress import Progress

# Upper ends [HU] of air, lung, fat, soft tissue, bone; the gaps between them (partial volumes) are not scored.
_TISSUES = ((-2000.0, -950.0), (-950.0, -500.0), (-200.0, -20.0), (-20.0, 120.0), (150.0, 4000.0))
_IGNORED = 255
_SMOOTHING_MM = 1.5  # noise of a voxel must not decide its name
_LEARNING_RATE = 1e-3
_KEEP_EVERY = 100
_HELD_OUT_SEED = 10_000  # phantoms from here on are only looked at for the accuracy


@dataclass(frozen=True)
class Case:
    """One volume with a class per voxel: `hu` int16 and `classes` uint8, both (x, y, z)."""

    hu: Tensor
    classes: Tensor


class TissueNamer(nn.Module):
    """VGG16 trunk with one linear head per source, reading every tap at full resolution.

    Args:
        num_classes: classes of each source.
    """

    def __init__(self, num_classes: dict[str, int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.trunk = VGG16Trunk()
        for layer in self.trunk:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.get_parameter("bias"))
        self.heads = nn.ModuleDict(
            {
                source: nn.ModuleList(nn.Conv2d(channels, count, 1) for channels in self.trunk.tap_channels)
                for source, count in num_classes.items()
            }
        )

    def forward(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits (n, classes, h, w) of each source's images (n, 1, h, w) in [0, 1]."""
        counts = [len(batch) for batch in images.values()]
        features = self.trunk(torch.cat(list(images.values())).contiguous(memory_format=torch.channels_last))
        parts = zip(*(feature.split(counts) for feature in features), strict=True)
        return {source: self._name(self.heads[source], taps) for source, taps in zip(images, parts, strict=True)}

    @staticmethod
    def _name(heads: nn.Module, taps: Sequence[Tensor]) -> Tensor:
        size = taps[0].shape[-2:]
        logits = [head(tap) for head, tap in zip(heads.children(), taps, strict=True)]
        return sum((F.interpolate(part, size, mode="bilinear") for part in logits[1:]), logits[0]).float()


def load_ct(path: Path, spacing: float) -> Case:
    """Read a CT, bring it to RAS and to isotropic voxels, and name its tissues by HU.

    Args:
        path: NIfTI file in HU.
        spacing: voxel size [mm] of the result.

    Returns:
        The case; partial volumes carry the ignored class.
    """
    image = nib.as_closest_canonical(nib.load(path))
    zooms = np.asarray(image.header.get_zooms()[:3], dtype=float)
    hu = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None, None]
    wanted = [max(1, round(size * zoom / spacing)) for size, zoom in zip(hu.shape[2:], zooms, strict=True)]
    finer = [min(size, goal) for size, goal in zip(hu.shape[2:], wanted, strict=True)]
    hu = F.interpolate(F.adaptive_avg_pool3d(hu, (finer[0], finer[1], finer[2])), wanted, mode="trilinear")
    smooth = GaussianFilter(3, _SMOOTHING_MM / spacing)(hu)
    classes = torch.full_like(hu, _IGNORED, dtype=torch.uint8)
    for number, (low, high) in enumerate(_TISSUES):
        classes[(smooth >= low) & (smooth < high)] = number
    return Case(hu[0, 0].round().short(), classes[0, 0])


def phantom_classes() -> tuple[Tensor, int]:
    """Class of each anatomy label (256,), and the number of classes; left and right, alike in a flip, are one."""
    names = [name.removesuffix("_left").removesuffix("_right") for name in LABELS]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
    table = torch.zeros(256, dtype=torch.uint8)
    for name, label in zip(names, LABELS.values(), strict=True):
        table[label] = numbers[name]
    return table, len(numbers) + 1


def make_phantoms(seeds: Sequence[int], size: int) -> list[Case]:
    """Phantoms on a grid of `size` voxels a side, with their anatomy as classes."""
    table, _ = phantom_classes()
    cases = []
    for seed in seeds:
        phantom = generate_phantom(seed, shape=(size, size, size), spacing=1.4 * 256 / size)
        cases.append(Case(torch.from_numpy(phantom.hu), table[torch.from_numpy(phantom.labels).long()]))
    return cases


def draw_view(cases: Sequence[Case], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A square window of a random slice, resized: image (1, 1, size, size) [HU] and classes (1, size, size)."""
    case = cases[int(rng.integers(len(cases)))]
    axis = int(rng.integers(3))
    index = int(rng.integers(case.hu.shape[axis]))
    hu, classes = (volume.select(axis, index) for volume in (case.hu, case.classes))
    side = min(int(size * rng.uniform(0.5, 1.25)), *hu.shape)
    row, col = (int(rng.integers(extent - side + 1)) for extent in hu.shape)
    window = (slice(row, row + side), slice(col, col + side))
    image = F.interpolate(hu[window][None, None].float(), (size, size), mode="bilinear", antialias=True)
    names = F.interpolate(classes[window][None, None], (size, size), mode="nearest-exact")[0]
    flips = [axis for axis in (-2, -1) if rng.random() < 0.5]
    return image.flip(flips), names.flip(flips)


def distort(hu: Tensor, rng: np.random.Generator) -> Tensor:
    """Wrong calibration, blur and white or correlated noise, another draw for each of the images (n, 1, h, w)."""
    distorted = []
    for image in hu.split(1):
        image = image * rng.uniform(0.9, 1.1) + rng.uniform(-60, 60)
        noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        if rng.random() < 0.5:
            noise = 2.5 * GaussianFilter(2, 0.8)(noise)  # 2.5 restores the variance that the filter takes
        image = image + rng.uniform(0, 60) * noise
        if rng.random() < 0.5:
            image = GaussianFilter(2, rng.uniform(0.3, 1.2))(image)
        distorted.append(image)
    return torch.cat(distorted)


def class_weights(cases: Sequence[Case], num_classes: int) -> Tensor:
    """Weights ~ frequency^-1/2 with mean 1 over the voxels, so that small organs count without ruling."""
    counts = sum(torch.bincount(case.classes.flatten(), minlength=256)[:num_classes] for case in cases)
    share = torch.as_tensor(counts) / torch.as_tensor(counts).sum()
    weights = torch.where(share > 0, share.clamp_min(1e-6).rsqrt(), 0.0)
    return weights / (weights * share).sum()


def train(
    model: TissueNamer,
    cases: dict[str, list[Case]],
    *,
    steps: int,
    batch: int,
    size: int,
    seed: int,
    checkpoint: Path | None = None,
) -> Progress:
    """Minimise the cross entropy of all sources' heads over one shared trunk.

    Args:
        model: trained in place, on its device.
        cases: volumes by source.
        steps: of AdamW, with a cosine.
        batch: views per step, all sources together.
        size: side of the views [pixels].
        seed: seed of views and distortions.
        checkpoint: where the state is kept, and gone on from; None: nowhere.

    Returns:
        What keeps the state, to be ended when the weights are written.
    """
    rng = np.random.default_rng(seed)
    device = next(model.parameters()).device
    weights = {source: class_weights(cases[source], count).to(device) for source, count in model.num_classes.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    settings = {"steps": steps, "batch": batch, "size": size, "seed": seed}
    settings |= {f"{source} cases": len(volumes) for source, volumes in cases.items()}
    progress = Progress(checkpoint, {"model": model, "optimizer": optimizer, "views": rng}, settings)
    for step in range(progress.resume(), steps):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        images, names = _draw(cases, batch, size, rng, device)
        with mixed_precision(device.type):
            logits = model(images)
        losses = [
            F.cross_entropy(logits[source], names[source], weights[source], ignore_index=_IGNORED) for source in cases
        ]
        loss = torch.stack(losses).nansum()  # nan: a batch without one scored pixel
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, steps // 20) == 0:
            print(f"{(step + 1) / steps:4.0%}  step {step + 1}  loss {loss.item():.4f}", flush=True)
        if (step + 1) % _KEEP_EVERY == 0:
            progress.keep(step + 1)
    return progress


def _draw(
    cases: dict[str, list[Case]], batch: int, size: int, rng: np.random.Generator, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch of distorted views, as many of each source, and the classes of their pixels."""
    images, names = {}, {}
    for source, volumes in cases.items():
        views = [draw_view(volumes, size, rng) for _ in range(max(1, batch // len(cases)))]
        images[source] = hu_to_unit(distort(torch.cat([view[0] for view in views]), rng)).to(device)
        names[source] = torch.cat([view[1] for view in views]).long().to(device)
    return images, names


@torch.no_grad()
def accuracy(model: TissueNamer, source: str, cases: Sequence[Case], every: int = 12) -> dict[str, float]:
    """Pixel accuracy, and its mean over classes, on undistorted whole slices of all three planes."""
    num_classes = model.num_classes[source]
    confusion, device = torch.zeros(num_classes, num_classes, dtype=torch.long), next(model.parameters()).device
    for case in cases:
        for axis in range(3):
            for index in range(every // 2, case.hu.shape[axis], every):
                image = hu_to_unit(case.hu.select(axis, index)[None, None].float())
                truth = case.classes.select(axis, index).flatten().long()
                with mixed_precision(device.type):
                    guess = model({source: image.to(device)})[source].argmax(1).flatten().cpu()
                scored = truth != _IGNORED
                pairs = truth[scored] * num_classes + guess[scored]
                confusion += torch.bincount(pairs, minlength=num_classes**2).view(num_classes, -1)
    present = confusion.sum(1) > 0
    recall = confusion.diagonal()[present] / confusion.sum(1)[present]
    return {
        "pixel_accuracy": (confusion.diagonal().sum() / confusion.sum()).item(),
        "mean_class_accuracy": recall.mean().item(),
    }


def save_trunk(trunk: VGG16Trunk, path: Path) -> None:
    """Write the trunk's bare half-precision state dict; a reader never meets half a file."""
    with atomic_path(path) as temporary:
        torch.save({name: value.half().cpu().contiguous() for name, value in trunk.state_dict().items()}, temporary)


def find_ct(dataset: Path | None, section: str, files: Sequence[Path]) -> list[Path]:
    """CT files given one by one, and those of a prepared dataset's section."""
    found = list(files)
    if dataset is not None:
        found += [dataset / item["label"] for item in read_datalist(dataset)[section] if "label" in item]
    return found


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bundle = bundle_root()
    parser.add_argument("--output", type=Path, default=bundle / "models" / CT_WEIGHTS)
    parser.add_argument("--dataset", type=Path, help="prepared folder with datalist.json")
    parser.add_argument("--ct", type=Path, nargs="*", default=[], help="training CTs (NIfTI, HU)")
    parser.add_argument("--validation-ct", type=Path, nargs="*", default=[], help="CTs for the accuracy only")
    parser.add_argument("--ct-spacing", type=float, default=2.0, help="voxel size for CTs [mm]")
    parser.add_argument("--phantoms", type=int, default=16, help="number of training phantoms")
    parser.add_argument("--phantom-size", type=int, default=128, help="voxels a side over 358.4 mm")
    parser.add_argument("--steps", type=int, default=1000, help="half a second each on one core")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=96, help="side of the training views [pixels]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=usual_device(), help="default: cuda where there is one")
    return parser.parse_args(arguments)


def main(command_line: Sequence[str] | None = None) -> None:
    """Train, report the accuracy, write the weights."""
    arguments = parse_arguments(command_line)
    torch.manual_seed(arguments.seed)
    cases = {"phantom": make_phantoms(range(arguments.phantoms), arguments.phantom_size)}
    held_out = {"phantom": make_phantoms(range(_HELD_OUT_SEED, _HELD_OUT_SEED + 3), arguments.phantom_size)}
    for group, section, files in (
        (cases, "training", arguments.ct),
        (held_out, "validation", arguments.validation_ct),
    ):
        paths = find_ct(arguments.dataset, section, files)
        if paths:
            group["ct"] = [load_ct(path, arguments.ct_spacing) for path in paths]
    sizes = {"phantom": phantom_classes()[1], "ct": len(_TISSUES)}
    model = TissueNamer({source: sizes[source] for source in cases})
    model = model.to(arguments.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    given = {name: getattr(arguments, name) for name in ("steps", "batch", "size", "seed")}
    progress = train(model, cases, checkpoint=Progress.beside(arguments.output), **given)
    save_trunk(model.trunk, arguments.output)
    progress.end()
    for source in cases.keys() & held_out.keys():
        scores = accuracy(model, source, held_out[source])
        print(f"held-out {source}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
