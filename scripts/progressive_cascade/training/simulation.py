# SPDX-License-Identifier: Apache-2.0
"""A training batch on the device, out of CT volumes: other patients, their radiographs, the target, its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.engines import PrepareBatch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV, decompose_hu, hu_to_mu, hu_to_unit
from progressive_cascade.ct.augment import RandAnatomyd, surround
from progressive_cascade.geometry import (
    VOLUME_SHAPE,
    VOXEL_SIZE,
    ConeBeam,
    GeometryErrors,
    GeometryRange,
    parse_beam,
    parse_errors,
    parse_range,
    volume_affine,
)
from progressive_cascade.physics import Acquired, AcquisitionRange, acquire, harden, log_counts, noisy_counts
from progressive_cascade.physics.simulate import jittered_beam
from progressive_cascade.precision import upload
from progressive_cascade.projector import project
from progressive_cascade.training.stream import AUGMENTATION, SIMULATION, SPECTRUM, UNTOLD, WINDOW, derive

_EXTENT = VOLUME_SHAPE[0] * VOXEL_SIZE
# A line integral that is as good as none: 2.5 mm of water.
_NOTHING = 0.05


class SimulateBatch(PrepareBatch):
    """Turns CT volumes into a training batch on the device: another patient, radiographs, the target, its mask.

    What varies is a function of the seed and of the sample (its ``draw``), the window one of the step, so that it does
    not matter in which process, batch or attempt a sample is simulated. Batches without these numbers are counted.

    Args:
        grid: voxels per axis of the target; the volumes' own grid must be a multiple.
        geometry: as for :class:`ProgressiveCascade`.
        distance_jitter: the distances of each sample vary by this share, uniformly.
        shift_jitter: the isocenter of each sample varies by this much per axis, uniformly [mm].
        photons: photons per pixel without a patient for Poisson noise; None: no noise.
        uncalibrated: share of the samples whose radiographs get an unknown scale (±20 %) and offset (±0.3).
        geometry_range: geometries a share of the samples is drawn from, :class:`.geometry.GeometryRange` or its fields;
            None: all have the nominal one, jittered.
        range_share: that share.
        acquisition: how radiographs are taken and what is known of their values,
            :class:`.physics.AcquisitionRange` or its fields, in place of `photons` and `uncalibrated`.
        display_errors: how far the geometry that the network is told is off where the picture is one for the eye, whose
            size and place nobody kept, :class:`.geometry.GeometryErrors` or its fields; None: not at all.
        augment: makes another patient of each; None: all stay as they are.
        surroundings_mm: how far around the cube the radiographs see the patient [mm]: his trunk goes on along z with
            the cube's end slices, and what augmentation moves out across is still there.
        window: side of the random window the last stage is trained on; None: the whole volume.
        energy_kev: effective photon energy [keV].
        seed: of the jitter, the noise and the windows.

    Raises:
        ValueError: if an argument does not fit.
    """

    def __init__(
        self,
        grid: int,
        *,
        geometry: str | dict | ConeBeam = "chest_stand",
        distance_jitter: float = 0.0,
        shift_jitter: float = 0.0,
        photons: float | None = None,
        uncalibrated: float = 0.0,
        geometry_range: GeometryRange | dict | None = None,
        range_share: float = 1.0,
        acquisition: AcquisitionRange | dict | None = None,
        display_errors: GeometryErrors | dict | None = None,
        augment: RandAnatomyd | None = None,
        surroundings_mm: float = 0.0,
        window: int | None = None,
        energy_kev: float = EFFECTIVE_ENERGY_KEV,
        seed: int = 0,
    ) -> None:
        if not 0 <= distance_jitter < 0.1:
            raise ValueError(f"distance_jitter must lie in [0, 0.1), got {distance_jitter}")
        if photons is not None and photons <= 0:
            raise ValueError(f"photons must be positive or None, got {photons}")
        if not 0 <= surroundings_mm <= 150:
            raise ValueError(f"surroundings_mm must lie in [0, 150], got {surroundings_mm}")
        if window is not None and (window % 8 or not 0 < window <= grid):
            raise ValueError(f"window must be a multiple of 8 up to the grid {grid}, got {window}")
        self.grid = grid
        self.beam = parse_beam(geometry)
        self.distance_jitter = distance_jitter
        self.shift_jitter = shift_jitter
        self.photons = photons
        self.uncalibrated = uncalibrated
        self.geometry_range = parse_range(geometry_range)
        self.range_share = range_share
        self.acquisition = (
            AcquisitionRange.from_dict(dict(acquisition)) if isinstance(acquisition, Mapping) else acquisition
        )
        self.display_errors = parse_errors(display_errors)
        self.augment = augment
        self.surroundings_mm = surroundings_mm
        self.window = window
        self.energy_kev = energy_kev
        self.seed = seed
        self._calls = 0
        self._affines: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any], tuple, dict[str, Any]]:
        """Simulate.

        Args:
            batchdata: ``label`` (b, 1, g, g, g) [HU] and optionally ``valid`` of the same shape (1 where scanned),
                and ``draw`` and ``step`` (b,) of :class:`~.stream.SampleStream`.
            device: where to simulate.
            non_blocking: of the copy to the device.
            kwargs: of ``Tensor.to``.

        Returns:
            Line integrals (b, view, rows, cols), the targets (``label`` in [0, 1] and ``valid`` at the stage's grid;
            ``image`` and, where not every pixel is the cube's alone to explain, ``weights``; ``matrices``, ``affine``,
            ``calibrated``, ``window``), and the network's further arguments.

        Raises:
            ValueError: if the volumes' grid is no multiple of the stage's.
        """
        hu, valid = self._read(batchdata, {"device": device, "non_blocking": non_blocking, **kwargs})
        draws, step = self._numbers(batchdata, len(hu))
        margin = round(self.surroundings_mm / (_EXTENT / hu.shape[2]))
        seen, valid = self._patients(hu, valid, draws, margin)
        inner = slice(margin, margin + hu.shape[2])
        hu = seen[:, :, inner, inner, inner]
        random = [derive(self.seed, SIMULATION, draw) for draw in draws]
        true = np.stack([self._draw_matrices(each) for each in random])
        matrices = upload(true, hu.device)
        acquired = self._radiographs(seen, matrices, random, step, voxel=_EXTENT / hu.shape[2])
        targets = {
            **self._target(hu, valid),
            "image": acquired.image,
            "matrices": matrices,
            "calibrated": acquired.calibrated,
            "weights": self._weights(acquired.weights, seen, margin, matrices),
            "window": self._random_window(step),
        }
        arguments = {
            "projection_matrices": self._told(matrices, true, acquired.display, draws),
            "calibrated": acquired.calibrated,
            "weights": acquired.weights,
            "window": targets["window"],
        }
        return acquired.image, targets, (), {name: each for name, each in arguments.items() if each is not None}

    def _read(self, batchdata: Mapping[str, Any], where: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The CTs [HU] and where they are valid, on the device."""
        hu = torch.as_tensor(batchdata["label"]).to(**where).float()
        if hu.dim() != 5 or hu.shape[2] % self.grid or len(set(hu.shape[2:])) != 1:
            raise ValueError(f"label must be cubes of a multiple of {self.grid} voxels, got {tuple(hu.shape)}")
        valid = batchdata.get("valid")
        return hu, torch.ones_like(hu) if valid is None else torch.as_tensor(valid).to(hu)

    def _target(self, hu: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """What is to be reconstructed, at the stage's grid."""
        factor = hu.shape[2] // self.grid
        return {
            "label": hu_to_unit(F.avg_pool3d(hu, factor)),
            "valid": (F.avg_pool3d(valid.float(), factor) > 0.99).float(),
            "affine": self._affine(self.grid, _EXTENT / self.grid, hu.device),
        }

    def _patients(self, hu: Tensor, valid: Tensor, draws: Sequence[int], margin: int) -> tuple[Tensor, Tensor]:
        """Other patients, each from its own numbers, and what is around their cubes; where the cubes are valid."""
        if self.augment is None:
            return surround(hu, margin), valid
        seeds = [int(derive(self.seed, AUGMENTATION, draw).integers(2**32)) for draw in draws]
        return self.augment.vary(hu, valid, seeds, margin=margin)

    def _radiographs(
        self, hu: Tensor, matrices: Tensor, random: Sequence[np.random.Generator], step: int, *, voxel: float
    ) -> Acquired:
        """Line integrals as they are acquired."""
        affine = self._affine(hu.shape[2], voxel, hu.device).expand(len(hu), 4, 4)

        def lines(volume: Tensor) -> Tensor:
            return project(volume, matrices, affine, self.beam.detector_shape)

        if self.acquisition is not None:
            kilovolts = self.acquisition.draw_kilovolts(derive(self.seed, SPECTRUM, step))
            if kilovolts is None:
                primary = lines(hu_to_mu(hu, self.energy_kev))
            else:
                water, bone = (lines(part) for part in decompose_hu(hu, self.energy_kev))
                primary = harden(water, bone, kilovolts)
            return acquire(primary, self.acquisition, random, pitch=self._pitches(matrices))
        image = lines(hu_to_mu(hu, self.energy_kev))
        if self.photons is not None:
            image = _noisy(image, self.photons, random)
        if self.uncalibrated > 0:
            return self._decalibrate(image, random)
        return Acquired(image, torch.ones(len(hu), device=hu.device), None)

    def _weights(self, weights: Tensor | None, seen: Tensor, margin: int, matrices: Tensor) -> Tensor | None:
        """Of the pixels that the cube alone has to explain: 0 where a ray also crosses the patient around it."""
        if not margin:
            return weights
        around = hu_to_mu(seen, self.energy_kev)
        cube = slice(margin, -margin)
        around[:, :, cube, cube, cube] = 0
        voxel = _EXTENT / (seen.shape[2] - 2 * margin)
        affine = self._affine(seen.shape[2], voxel, seen.device).expand(len(seen), 4, 4)
        alone = (project(around, matrices, affine, self.beam.detector_shape) < _NOTHING).to(seen)
        return alone if weights is None else weights * alone

    def _affine(self, size: int, voxel: float, device: torch.device) -> Tensor:
        """Voxel index of a grid around the isocenter to RAS mm, float32 (4, 4); sent to a device once."""
        if (size, device) not in self._affines:
            self._affines[size, device] = upload(volume_affine((size, size, size), voxel), device)
        return self._affines[size, device]

    def _numbers(self, batchdata: Mapping[str, Any], count: int) -> tuple[list[int], int]:
        """The samples' numbers in the run, and the step's."""
        if "draw" in batchdata:
            return torch.as_tensor(batchdata["draw"]).tolist(), int(torch.as_tensor(batchdata["step"])[0])
        step, self._calls = self._calls, self._calls + 1
        return list(range(step * count, (step + 1) * count)), step

    def _pitches(self, matrices: Tensor) -> Tensor:
        """Pixel size of each sample's first view in the plane through the isocenter (b,) [mm]."""
        column, along = matrices[:, 0, 0, :3], matrices[:, 0, 2, :3]
        return matrices[:, 0, 2, 3] / torch.linalg.cross(column, along).norm(dim=1)

    def _draw_matrices(self, random: np.random.Generator) -> np.ndarray:
        if self.geometry_range is not None and random.random() < self.range_share:
            return self.geometry_range.draw(self.beam, random)
        if self.distance_jitter == 0 and self.shift_jitter == 0:
            return self.beam.projection_matrices()
        beam = jittered_beam(self.beam, random, distance_jitter=self.distance_jitter, shift_jitter=self.shift_jitter)
        return beam.projection_matrices()

    def _told(self, matrices: Tensor, true: np.ndarray, display: Tensor | None, draws: Sequence[int]) -> Tensor:
        """The matrices that the network is told: of pictures for the eye others than the true ones."""
        if self.display_errors is None or display is None:
            return matrices
        size = self.beam.detector_shape[0]
        told = [
            self.display_errors.apply(each, size, derive(self.seed, UNTOLD, draw))
            for each, draw in zip(true, draws, strict=True)
        ]
        return torch.where(display[:, None, None, None] > 0, upload(np.stack(told), matrices.device), matrices)

    def _decalibrate(self, image: Tensor, random: Sequence[np.random.Generator]) -> Acquired:
        drawn = np.array([(each.random(), each.uniform(0.8, 1.2), each.uniform(-0.3, 0.3)) for each in random])
        lost = drawn[:, 0] < self.uncalibrated
        scale, offset = np.where(lost, drawn[:, 1], 1.0), np.where(lost, drawn[:, 2], 0.0)
        scale, offset, kept = upload(np.stack([scale, offset, ~lost]), image.device)
        return Acquired(image * scale[:, None, None, None] + offset[:, None, None, None], kept, None)

    def _random_window(self, step: int) -> list[int] | None:
        if self.window is None or self.window == self.grid:
            return None
        # Starts are multiples of 8, so that a window's coarsest voxels are the volume's.
        start = derive(self.seed, WINDOW, step).integers(0, (self.grid - self.window) // 8 + 1, 3) * 8
        return [*(int(value) for value in start), self.window, self.window, self.window]


def _noisy(line_integrals: Tensor, photons: float, random: Sequence[np.random.Generator]) -> Tensor:
    """Poisson noise, each sample's from its own numbers."""
    noisy = []
    for expected, each in zip(photons * torch.exp(-line_integrals), random, strict=True):
        generator = torch.Generator(device=line_integrals.device)
        generator.manual_seed(int(each.integers(2**62)))
        noisy.append(noisy_counts(expected, generator=generator))
    return log_counts(torch.stack(noisy), photons)
