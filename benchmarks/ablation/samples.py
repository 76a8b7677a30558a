# SPDX-License-Identifier: Apache-2.0
"""Phantoms and their radiographs in memory, the same for every row."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import PersistentDataset
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade import ConeBeam
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, volume_affine
from progressive_cascade.physics.simulate import expose, jittered_beam
from progressive_cascade.training.data import FIRST_SEEDS, phantom_items
from progressive_cascade.training.transforms import LoadCased

_GRID = 128


class Samples(NamedTuple):
    """Patients of one section.

    Attributes:
        hu: (n, 1, g, g, g), int16, on the finest grid a stage needs.
        images: line integrals (n, view, rows, cols), float32.
        matrices: (n, view, 3, 4), of each patient's own geometry.
    """

    hu: Tensor
    images: Tensor
    matrices: Tensor


def load_samples(section: str, num: int, *, grid: int, beam: ConeBeam, cache: Path) -> Samples:
    """Phantoms of a section, from a file that is made the first time.

    Training patients stand in geometries that differ by up to 2 % and 5 mm, as in training; the others in the nominal
    one. Radiographs have no noise.

    Args:
        section: "training" or "validation".
        num: patients.
        grid: voxels per axis of `hu`.
        beam: the nominal geometry.
        cache: folder of the files.

    Returns:
        The patients.
    """
    path = cache / f"ablation_{section}_{num}_{grid}_{beam.detector_shape[0]}.pt"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(_simulate(section, num, grid, beam, cache), path)
    return Samples(*torch.load(path, weights_only=True, mmap=True))


def _simulate(section: str, num: int, grid: int, beam: ConeBeam, cache: Path) -> tuple[Tensor, Tensor, Tensor]:
    items = phantom_items(num, FIRST_SEEDS[section])
    patients = PersistentDataset(items, LoadCased(_GRID), cache_dir=cache / str(_GRID))
    random = np.random.default_rng(0)
    affine = volume_affine((_GRID,) * 3, VOXEL_SIZE * VOLUME_SHAPE[0] / _GRID)
    volumes, images, matrices = [], [], []
    for number in range(num):
        hu = torch.as_tensor(patients[number]["label"]).float()[None]
        own = jittered_beam(beam, random, distance_jitter=0.02, shift_jitter=5.0) if section == "training" else beam
        volumes.append(F.avg_pool3d(hu, _GRID // grid).round().to(torch.int16))
        images.append(expose(hu, own, affine=affine))
        matrices.append(torch.as_tensor(own.projection_matrices()).float()[None])
    return torch.cat(volumes), torch.cat(images), torch.cat(matrices)
