# SPDX-License-Identifier: Apache-2.0
"""What SupervisedTrainer cannot do: simulate the batch's radiographs, weigh a window's loss, measure a masked PSNR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.engines import PrepareBatch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV, decompose_hu, hu_to_mu, hu_to_unit
from progressive_cascade.ct.augment import RandAnatomyd
from progressive_cascade.geometry import (
    VOLUME_SHAPE,
    VOXEL_SIZE,
    ConeBeam,
    GeometryRange,
    parse_beam,
    parse_range,
    volume_affine,
)
from progressive_cascade.losses import CascadeLoss, Reprojection
from progressive_cascade.physics import AcquisitionRange, acquire, harden, log_counts, noisy_counts
from progressive_cascade.physics.simulate import jittered_beam
from progressive_cascade.projector import project
from progressive_cascade.training.stream import AUGMENTATION, SIMULATION, SPECTRUM, WINDOW, derive

_EXTENT = VOLUME_SHAPE[0] * VOXEL_SIZE


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
        augment: makes another patient of each; None: all stay as they are.
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
        augment: RandAnatomyd | None = None,
        window: int | None = None,
        energy_kev: float = EFFECTIVE_ENERGY_KEV,
        seed: int = 0,
    ) -> None:
        if not 0 <= distance_jitter < 0.1:
            raise ValueError(f"distance_jitter must lie in [0, 0.1), got {distance_jitter}")
        if photons is not None and photons <= 0:
            raise ValueError(f"photons must be positive or None, got {photons}")
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
        self.augment = augment
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
            Line integrals (b, view, rows, cols), the targets (``label`` in [0, 1] and ``valid`` at the stage's grid,
            ``image``, ``matrices``, ``affine``, ``calibrated``, ``window``), and the network's further arguments.

        Raises:
            ValueError: if the volumes' grid is no multiple of the stage's.
        """
        hu = torch.as_tensor(batchdata["label"]).to(device=device, non_blocking=non_blocking, **kwargs).float()
        if hu.dim() != 5 or hu.shape[2] % self.grid or len(set(hu.shape[2:])) != 1:
            raise ValueError(f"label must be cubes of a multiple of {self.grid} voxels, got {tuple(hu.shape)}")
        valid = batchdata.get("valid")
        valid = torch.ones_like(hu) if valid is None else torch.as_tensor(valid).to(hu)
        draws, step = self._numbers(batchdata, len(hu))
        hu, valid = self._augmented(hu, valid, draws)
        random = [derive(self.seed, SIMULATION, draw) for draw in draws]
        geometries = np.stack([self._draw_matrices(each) for each in random])
        matrices = _send(geometries, hu.device)
        image, calibrated = self._radiographs(hu, matrices, random, step)
        window = self._random_window(step)
        factor = hu.shape[2] // self.grid
        targets = {
            "label": hu_to_unit(F.avg_pool3d(hu, factor)),
            "valid": (F.avg_pool3d(valid.float(), factor) > 0.99).float(),
            "image": image,
            "matrices": matrices,
            "affine": self._affine(self.grid, hu.device),
            "calibrated": calibrated,
            "window": window,
        }
        arguments: dict[str, Any] = {"projection_matrices": matrices, "calibrated": calibrated}
        if window is not None:
            arguments["window"] = window
        return image, targets, (), arguments

    def _augmented(self, hu: Tensor, valid: Tensor, draws: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Other patients, each from its own numbers."""
        if self.augment is None:
            return hu, valid
        made = []
        for label, mask, draw in zip(hu, valid, draws, strict=True):
            self.augment.set_random_state(seed=int(derive(self.seed, AUGMENTATION, draw).integers(2**32)))
            made.append(self.augment({"label": label, "valid": mask}))
        return torch.stack([each["label"] for each in made]), torch.stack([each["valid"] for each in made])

    def _radiographs(
        self, hu: Tensor, matrices: Tensor, random: Sequence[np.random.Generator], step: int
    ) -> tuple[Tensor, Tensor]:
        """Line integrals as they are acquired, and for each sample 1 where their scale and offset are kept."""
        affine = self._affine(hu.shape[2], hu.device).expand(len(hu), 4, 4)

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
        return image, torch.ones(len(hu), device=hu.device)

    def _affine(self, size: int, device: torch.device) -> Tensor:
        """Voxel index of a cube's grid to RAS mm, float32 (4, 4); sent to a device once."""
        if (size, device) not in self._affines:
            self._affines[size, device] = _send(volume_affine((size, size, size), _EXTENT / size), device)
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

    def _decalibrate(self, image: Tensor, random: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
        drawn = np.array([(each.random(), each.uniform(0.8, 1.2), each.uniform(-0.3, 0.3)) for each in random])
        lost = drawn[:, 0] < self.uncalibrated
        scale, offset = np.where(lost, drawn[:, 1], 1.0), np.where(lost, drawn[:, 2], 0.0)
        scale, offset, kept = _send(np.stack([scale, offset, ~lost]), image.device)
        return image * scale[:, None, None, None] + offset[:, None, None, None], kept

    def _random_window(self, step: int) -> list[int] | None:
        if self.window is None or self.window == self.grid:
            return None
        # Starts are multiples of 8, so that a window's coarsest voxels are the volume's.
        start = derive(self.seed, WINDOW, step).integers(0, (self.grid - self.window) // 8 + 1, 3) * 8
        return [*(int(value) for value in start), self.window, self.window, self.window]


class StageObjective(nn.Module):
    """The weighted loss of a stage on what :class:`SimulateBatch` made; each term is kept by name for the log.

    Args:
        loss: the weighted sum.
    """

    def __init__(self, loss: CascadeLoss) -> None:
        super().__init__()
        self.loss = loss
        self._values: dict[str, Tensor] = {}
        self._terms: dict[str, float] = {}

    @property
    def terms(self) -> dict[str, float]:
        """The last batch's terms by name; a GPU is waited for when they are asked for, once for all."""
        if self._values:
            self._terms = dict(zip(self._values, torch.stack(list(self._values.values())).cpu().tolist(), strict=True))
            self._values = {}
        return self._terms

    def forward(self, prediction: Tensor, targets: Mapping[str, Any]) -> Tensor:
        """Loss of a whole prediction; where a window was refined, voxel terms look at that window alone.

        Args:
            prediction: (b, 1, g, g, g) in [0, 1].
            targets: of :class:`SimulateBatch`.

        Returns:
            Scalar.
        """
        reprojection = Reprojection(
            volume=prediction,
            image=targets["image"],
            matrices=targets["matrices"],
            affine=targets["affine"].expand(len(prediction), 4, 4),
            calibrated=targets["calibrated"],
        )
        where = (slice(None), slice(None), *_window_slices(targets["window"]))
        terms = self.loss(
            prediction[where], targets["label"][where], valid=targets["valid"][where], reprojection=reprojection
        )
        self._values = {name: value.detach() for name, value in terms.items()}
        return terms["loss"]


class MaskedPSNR(CumulativeIterationMetric):
    """3-D PSNR inside the scanned region, data_range 1: the ``native`` protocol's PSNR, batch by batch."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None:
            raise ValueError("y must be the label and its valid mask, got None")
        label, valid = y[:, :1], y[:, 1:]
        count = valid.sum(dim=(1, 2, 3, 4)).clamp(min=1)
        mse = ((y_pred.clamp(0, 1) - label) ** 2 * valid).sum(dim=(1, 2, 3, 4)) / count
        return -10 * torch.log10(mse.clamp(min=1e-10))[:, None]

    def aggregate(self) -> Tensor:
        """Mean over the cases [dB]."""
        return torch.as_tensor(self.get_buffer()).mean()


def psnr_inputs(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Evaluator output to the arguments of :class:`MaskedPSNR`."""
    targets = output["label"]
    return output["pred"].detach(), torch.cat((targets["label"], targets["valid"]), dim=1)


def _noisy(line_integrals: Tensor, photons: float, random: Sequence[np.random.Generator]) -> Tensor:
    """Poisson noise, each sample's from its own numbers."""
    noisy = []
    for expected, each in zip(photons * torch.exp(-line_integrals), random, strict=True):
        generator = torch.Generator(device=line_integrals.device)
        generator.manual_seed(int(each.integers(2**62)))
        noisy.append(noisy_counts(expected, generator=generator))
    return log_counts(torch.stack(noisy), photons)


def _send(values: np.ndarray, device: torch.device) -> Tensor:
    """Numbers as float32 on a device, without waiting for what a GPU is at."""
    host = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def _window_slices(window: Sequence[int] | None) -> tuple[slice, slice, slice]:
    if window is None:
        return (slice(None), slice(None), slice(None))
    x, y, z = (slice(window[axis], window[axis] + window[axis + 3]) for axis in range(3))
    return x, y, z
