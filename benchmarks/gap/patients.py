# SPDX-License-Identifier: Apache-2.0
"""The phantoms a small stage 1 is trained on and the CTs it is scored on, kept in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade import ConeBeam
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, volume_affine
from progressive_cascade.io import atomic_path
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.physics.simulate import expose, jittered_beam
from progressive_cascade.training.cases import load_case

EXTENT = VOLUME_SHAPE[0] * VOXEL_SIZE
_CHUNK = 20  # phantoms a file: what an interrupted run has to paint again at most


@dataclass(frozen=True)
class Scale:
    """Grids of one yardstick.

    Args:
        grid: voxels per axis of stage 1.
        painted: voxels per axis a phantom is painted with.
        channels: of stage 1's U-Net.
        beam: the nominal geometry; its detector is 8 times as wide as the grid.
    """

    grid: int
    painted: int
    channels: tuple[int, ...]
    beam: ConeBeam


SCALES = {
    "half": Scale(32, 64, (16, 32, 48), ConeBeam(detector_shape=(256, 256), pixel_spacing=(1.68, 1.68))),
    "full": Scale(64, 128, (24, 64, 96), ConeBeam()),
}


@dataclass(frozen=True)
class Patients:
    """Radiographs and truths.

    Args:
        names: of the cases.
        images: line integrals (n, view, rows, cols), float16.
        matrices: (n, view, 3, 4), of each patient's own geometry.
        hu: (n, 1, g, g, g), int16, on stage 1's grid.
        valid: the same, uint8, 1 where the scanner measured.
    """

    names: list[str]
    images: Tensor
    matrices: Tensor
    hu: Tensor
    valid: Tensor

    @staticmethod
    def join(parts: Sequence[Patients]) -> Patients:
        """All patients of all parts."""
        tensors = (torch.cat([getattr(p, name) for p in parts]) for name in ("images", "matrices", "hu", "valid"))
        return Patients([name for p in parts for name in p.names], *tensors)


def load_phantoms(population: str, num: int, scale: str, cache: Path) -> Patients:
    """The first phantoms of the training section, each in a geometry that differs by up to 2 % and 5 mm.

    Args:
        population: whose distributions they are drawn from.
        num: patients.
        scale: of :data:`SCALES`.
        cache: folder of the files; what is there is not painted again.
    """
    parts = []
    for first in range(0, num, _CHUNK):
        path = cache / f"{population}_{scale}_{first}.pt"
        if not path.is_file():
            _keep(Patients.join([_phantom(population, seed, scale) for seed in range(first, first + _CHUNK)]), path)
            print(f"{population}: {first + _CHUNK} phantoms", flush=True)
        parts.append(_load(path))
    whole = Patients.join(parts)
    return Patients(whole.names[:num], *(t[:num] for t in (whole.images, whole.matrices, whole.hu, whole.valid)))


def load_cts(dataset: Path, sections: Sequence[str], scale: str, cache: Path) -> Patients:
    """The prepared CTs of some sections in the nominal geometry, radiographs taken at full resolution."""
    parts = []
    for item in [item for section in sections for item in evaluation_items(dataset, section)]:
        path = cache / f"ct_{scale}_{item['case']}.pt"
        if not path.is_file():
            _keep(_ct(item, SCALES[scale]), path)
        parts.append(_load(path))
    return Patients.join(parts)


def _phantom(population: str, seed: int, name: str) -> Patients:
    scale = SCALES[name]
    spacing = EXTENT / scale.painted
    made = generate_phantom(
        seed, shape=(scale.painted, scale.painted, scale.painted), spacing=spacing, population=population
    )
    hu = torch.from_numpy(made.hu.astype(np.float32))[None, None]
    beam = jittered_beam(scale.beam, np.random.default_rng(seed), distance_jitter=0.02, shift_jitter=5.0)
    return _patient(f"{population}_{seed}", hu, torch.ones_like(hu), beam=beam, scale=scale)


def _ct(item: dict, scale: Scale) -> Patients:
    case = load_case(item)
    assert case.valid is not None
    hu, valid = (torch.from_numpy(v.astype(np.float32))[None, None] for v in (case.hu, case.valid))
    return _patient(case.name, hu, valid, beam=scale.beam, scale=scale)


def _patient(name: str, hu: Tensor, valid: Tensor, *, beam: ConeBeam, scale: Scale) -> Patients:
    size = hu.shape[2]
    image = expose(hu, beam, affine=volume_affine((size, size, size), EXTENT / size))
    return Patients(
        [name],
        image.half(),
        torch.as_tensor(beam.projection_matrices()).float()[None],
        F.avg_pool3d(hu, size // scale.grid).round().to(torch.int16),
        (-F.max_pool3d(-valid, size // scale.grid) > 0).to(torch.uint8),
    )


def _keep(patients: Patients, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(vars(patients), temporary)


def _load(path: Path) -> Patients:
    return Patients(**torch.load(path, weights_only=True))
