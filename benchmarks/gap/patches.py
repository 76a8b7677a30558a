# SPDX-License-Identifier: Apache-2.0
"""Small cubes of one tissue out of CTs and phantoms, and what is left of them when a shortcut is taken away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.attenuation import HU_MAX, HU_MIN
from progressive_cascade.io import atomic_path
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.training.cases import load_case

SIZE = 32
"""Voxels of 1.4 mm along an edge of a patch."""

_STRIDE = 4  # distance of the places a patch may be taken from
_SMOOTHING = 5  # voxels: what is finer is noise and grain


@dataclass(frozen=True)
class Tissue:
    """What a patch must hold.

    Args:
        low: of the HU that count.
        high: likewise.
        share: of the patch's voxels that must lie between them, at least.
    """

    low: float
    high: float
    share: float


TISSUES = {
    "soft": Tissue(-150, 150, 0.95),
    "lung": Tissue(-980, -500, 0.75),
    "bone": Tissue(250, 3000, 0.04),
}
"""Flesh and fat; lung with its vessels; places where bone is (or medium: both have it)."""

VIEWS = ("whole", "no mean", "fine", "fine, one level", "coarse", "three numbers")
"""The patch; without its mean; what is finer than 7 mm; that, divided by its deviation; averages over 5.6 mm; its mean,
its deviation and that of what is fine."""


def draw_patches(hu: np.ndarray, valid: np.ndarray, tissue: Tissue, *, count: int, seed: int) -> np.ndarray:
    """Patches of one tissue, drawn from the places that hold it.

    Args:
        hu: (x, y, z) [HU].
        valid: where the scanner measured, the same; patches lie wholly within.
        tissue: what they hold.
        count: patches; all there are where they are fewer.
        seed: of the draw.

    Returns:
        (n, 32, 32, 32), int16.
    """
    volume = torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))[None, None]
    held = _share((volume >= tissue.low) & (volume <= tissue.high))
    measured = _share(torch.from_numpy(valid)[None, None])
    places = ((held >= tissue.share) & (measured > 1 - 0.5 / SIZE**3)).nonzero().numpy() * _STRIDE
    rng = np.random.default_rng(seed)
    chosen = places[rng.permutation(len(places))[:count]]
    cubes = [hu[x : x + SIZE, y : y + SIZE, z : z + SIZE] for x, y, z in chosen]
    return np.stack(cubes).astype(np.int16) if cubes else np.zeros((0, SIZE, SIZE, SIZE), dtype=np.int16)


def _share(mask: Tensor) -> Tensor:
    """Share of each patch's voxels that lie in a mask (1, 1, x, y, z): averages of averages."""
    return F.avg_pool3d(F.avg_pool3d(mask.float(), _STRIDE), SIZE // _STRIDE, stride=1)[0, 0]


def ct_patches(item: dict, *, count: int, cache: Path) -> dict[str, np.ndarray]:
    """Patches of each tissue of a prepared CT, kept in a file."""
    path = cache / f"ct_{item['case']}.npz"
    if not path.is_file():
        case = load_case(item)
        assert case.valid is not None
        _keep(path, case.hu, np.asarray(case.valid) > 0, count)
    return dict(np.load(path))


def phantom_patches(population: str, seed: int, *, count: int, cache: Path) -> dict[str, np.ndarray]:
    """Patches of each tissue of a phantom of 256³, kept in a file."""
    path = cache / f"{population}_{seed}.npz"
    if not path.is_file():
        hu = generate_phantom(seed, population=population).hu
        _keep(path, hu, np.ones(hu.shape, dtype=bool), count)
    return dict(np.load(path))


def _keep(path: Path, hu: np.ndarray, valid: np.ndarray, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.clip(hu, HU_MIN, HU_MAX)
    cubes = {name: draw_patches(hu, valid, tissue, count=count, seed=0) for name, tissue in TISSUES.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **cubes)


def look(patches: Tensor, view: str) -> Tensor:
    """What a classifier is shown of patches (n, 1, 32, 32, 32) [HU]: one of :data:`VIEWS`."""
    smooth = F.avg_pool3d(patches, _SMOOTHING, stride=1, padding=_SMOOTHING // 2, count_include_pad=False)
    fine = patches - smooth
    if view == "whole":
        return patches
    if view == "no mean":
        return patches - patches.mean((2, 3, 4), keepdim=True)
    if view == "fine":
        return fine
    if view == "fine, one level":
        return fine / fine.std((2, 3, 4), keepdim=True).clamp_min(1e-3)
    if view == "coarse":
        return F.avg_pool3d(patches, 4)
    if view == "three numbers":
        numbers = [patches.mean((2, 3, 4)), patches.std((2, 3, 4)), fine.std((2, 3, 4))]
        return torch.cat(numbers, 1)
    raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
