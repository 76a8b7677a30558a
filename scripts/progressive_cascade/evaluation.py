# SPDX-License-Identifier: Apache-2.0
"""Score reconstructions of known CTs, beside the baselines a learned prior must beat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.attenuation import HU_MAX, HU_MIN, hu_to_mu, mu_to_hu, unit_to_hu
from progressive_cascade.consistency import agreement, shrink_radiographs, solve_consistency
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, ConeBeam, volume_affine
from progressive_cascade.io import finite, save_json, save_nifti
from progressive_cascade.metrics import PROTOCOLS, body_mask, evaluate_volume, reprojection_psnr
from progressive_cascade.projector import backproject, parse_beam, project
from progressive_cascade.report import comparison_figure
from progressive_cascade.transforms import LoadCased

METRICS_FILE = "evaluation_metrics.json"
"""Name of the file with all scores."""
# The unlearned solvers run here: twice as fine as a voxel of stage 1, and 16 times cheaper than the full grid.
_BASELINE_GRID = 128
_LEAST_SQUARES_ITERATIONS = 30
_LEAST_SQUARES_REGULARIZATION = 10.0


def normalized_backprojection(image: Tensor, beam: ConeBeam, grid: int = _BASELINE_GRID) -> Tensor:
    """Every ray's mean attenuation smeared back along it: one SIRT step from zero, ``Aᵀ(y / A1) / Aᵀ1``.

    Args:
        image: line integrals (b, view, rows, cols).
        beam: their geometry, isocenter at the origin.
        grid: voxels per axis.

    Returns:
        mu (b, 1, grid, grid, grid) [1/mm].
    """
    shape = (grid, grid, grid)
    affine = volume_affine(shape, _extent() / grid)
    small, matrices, affines = _at_grid(image, beam, grid)
    lengths = project(
        torch.ones(len(image), 1, *shape, device=image.device), matrices, affines, (small.shape[2], small.shape[3])
    )
    coarse = _coarse_beam(beam, small)
    numerator = backproject(small / lengths.clamp(min=1e-3) * (lengths > 1e-3), coarse, shape=shape, affine=affine)
    denominator = backproject((lengths > 1e-3).to(small), coarse, shape=shape, affine=affine)
    return numerator / denominator.clamp(min=1e-6)


def least_squares(image: Tensor, beam: ConeBeam, grid: int = _BASELINE_GRID) -> Tensor:
    """The smallest volume that explains the radiographs: data consistency from zero, without any prior.

    Args:
        image: line integrals (b, view, rows, cols).
        beam: their geometry, isocenter at the origin.
        grid: voxels per axis.

    Returns:
        mu (b, 1, grid, grid, grid) [1/mm], not below vacuum.
    """
    small, matrices, affines = _at_grid(image, beam, grid)
    start = torch.zeros(len(image), 1, grid, grid, grid, device=image.device)
    regularization = torch.tensor(_LEAST_SQUARES_REGULARIZATION, device=image.device)
    return solve_consistency(start, small, matrices, affines, regularization, _LEAST_SQUARES_ITERATIONS).clamp(min=0)


def mean_volume(items: Sequence[Mapping[Any, Any]], grid: int = _BASELINE_GRID) -> np.ndarray | None:
    """Mean of CTs, voxel by voxel: what can be said of a patient without looking at the radiographs.

    Args:
        items: cases of the training section (:func:`progressive_cascade.data.training_items`).
        grid: voxels per axis at which they are loaded.

    Returns:
        float32 (256, 256, 256) [HU] in the HU window, or None without items.
    """
    if not items:
        return None
    load = LoadCased(spatial_size=grid)
    total = torch.zeros(1, 1, grid, grid, grid)
    for item in items:
        total += load(item)["label"].float().clamp(HU_MIN, HU_MAX)
    return _to_full_grid(total / len(items))[0, 0].numpy()


class EvaluationReport:
    """Handler: scores every case at 256³, draws the comparison, and writes all numbers to one JSON file.

    Args:
        output_dir: folder to write to.
        geometry: of the simulated radiographs, as for :class:`ProgressiveCascade`.
        protocols: names out of :data:`progressive_cascade.metrics.PROTOCOLS`.
        save_nifti: also write each reconstruction as CASE.nii.gz.
        pictures: draw ``comparison_CASE.png``.
        baselines: also score back-projection and data-consistent least squares.
        mean: mean training volume (256, 256, 256) [HU] to score, or None.
        description: what to keep beside the numbers: checkpoint, hash, dataset.

    Raises:
        UserError: if a protocol does not exist.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        geometry: str | dict | ConeBeam = "chest_stand",
        protocols: Sequence[str] = ("native",),
        save_nifti: bool = False,
        pictures: bool = True,
        baselines: bool = True,
        mean: np.ndarray | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        unknown = [name for name in protocols if name not in PROTOCOLS]
        if unknown:
            raise UserError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {', '.join(unknown)}")
        self.output_dir = Path(output_dir)
        self.beam = parse_beam(geometry).at((0.0, 0.0, 0.0))
        self.protocols = list(protocols)
        self.save_nifti = save_nifti
        self.pictures = pictures
        self.baselines = baselines
        self.mean = mean
        self.description = dict(description or {})
        self.cases: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Score after every batch, write at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.score_batch)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def score_batch(self, engine: Engine) -> None:
        """Score the cases of a batch; see :class:`progressive_cascade.engine.SimulateBatch` for its targets."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        full = _to_full_grid(output["pred"].detach().float()).clamp(0, 1)
        for index, case in enumerate(batch["case"]):
            image = output["label"]["image"][index : index + 1]
            truth = torch.as_tensor(batch["label"][index, 0]).cpu().numpy()
            valid = torch.as_tensor(batch["valid"][index, 0]).cpu().numpy()
            affine = torch.as_tensor(batch["affine"][index]).cpu().numpy()
            hu = unit_to_hu(full[index, 0]).round().cpu().numpy()
            self.score_case(str(case), hu, truth, valid=valid, image=image, affine=affine)

    def score_case(
        self,
        case: str,
        hu: np.ndarray,
        truth: np.ndarray,
        *,
        valid: np.ndarray | None,
        image: Tensor,
        affine: np.ndarray,
    ) -> dict[str, dict[str, float]]:
        """Score one reconstruction and the baselines, draw and keep them.

        Args:
            case: its name, used in file names.
            hu: the reconstruction (x, y, z) [HU].
            truth: the CT, same shape [HU].
            valid: 1 where the CT was scanned, None for everywhere.
            image: line integrals (1, view, rows, cols) it was made from.
            affine: (4, 4), voxel index to the patient's RAS mm.

        Returns:
            Scores by name, by method.
        """
        body = body_mask(truth)
        methods = {"cascade": hu}
        if self.mean is not None:
            methods["mean_volume"] = self.mean
        if self.baselines:
            methods["back_projection"] = _mu_to_full_hu(normalized_backprojection(image, self.beam))
            methods["least_squares"] = _mu_to_full_hu(least_squares(image, self.beam))
        measured = image[0].cpu().numpy()
        scores: dict[str, dict[str, float]] = {}
        reprojected = measured
        for name, volume in methods.items():
            scores[name] = {}
            for protocol in self.protocols:
                scores[name].update(evaluate_volume(volume, truth, protocol=protocol, valid=valid, body=body))
            projected = self._reproject(volume)
            scores[name]["reprojection_psnr_db"] = reprojection_psnr(projected, measured)
            if name == "cascade":
                reprojected = projected
        agreed = agreement(reprojected, measured, self.beam.views)
        self.cases.append({"case": case, "scores": scores, "agreement": agreed})
        if self.save_nifti:
            save_nifti(hu.astype(np.int16), affine, self.output_dir / f"{case}.nii.gz")
        if self.pictures:
            psnr = next(iter(scores["cascade"].values()))
            comparison_figure(
                truth,
                hu,
                radiographs=measured,
                reprojected=reprojected,
                path=self.output_dir / f"comparison_{case}.png",
                title=f"{case}: {psnr:.2f} dB ({self.protocols[0]} protocol)",
                spacing=_extent() / truth.shape[0],
            )
        return scores

    def _reproject(self, hu: np.ndarray) -> np.ndarray:
        beam = self.beam
        volume = hu_to_mu(torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32)))[None, None]
        matrices = torch.as_tensor(beam.projection_matrices())[None]
        shape = (hu.shape[0], hu.shape[1], hu.shape[2])
        affine = torch.as_tensor(volume_affine(shape, _extent() / shape[0]))[None]
        return project(volume, matrices, affine, beam.detector_shape)[0].numpy()

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean and standard deviation of every score, per method."""
        return summarize(self.cases)

    def write(self, engine: Engine | None = None) -> None:
        """Write ``evaluation_metrics.json``: the description, a summary per method, and every case."""
        report = {
            **self.description,
            "protocols": self.protocols,
            "grid": list(VOLUME_SHAPE),
            "voxel_size_mm": VOXEL_SIZE,
            "num_cases": len(self.cases),
            "summary": self.summary(),
            "cases": self.cases,
        }
        save_json(finite(report), self.output_dir / METRICS_FILE)


def summarize(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation of every score over the cases, per method; infinite scores are left out.

    Args:
        cases: ``{"case": name, "scores": {method: {score: value}}}``.

    Returns:
        ``{method: {score: {"mean": m, "std": s}}}``.
    """
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for method in cases[0]["scores"] if cases else ():
        summary[method] = {}
        for score in cases[0]["scores"][method]:
            values = [value for case in cases if math.isfinite(value := case["scores"][method][score])]
            if values:
                summary[method][score] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return summary


def _extent() -> float:
    return VOLUME_SHAPE[0] * VOXEL_SIZE


def _at_grid(image: Tensor, beam: ConeBeam, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    matrices = torch.as_tensor(beam.projection_matrices(), dtype=torch.float32, device=image.device)
    small, small_matrices = shrink_radiographs(image, matrices.expand(len(image), -1, -1, -1), 2 * grid)
    affine = torch.as_tensor(
        volume_affine((grid, grid, grid), _extent() / grid), dtype=torch.float32, device=image.device
    )
    return small, small_matrices, affine.expand(len(image), 4, 4)


def _coarse_beam(beam: ConeBeam, small: Tensor) -> ConeBeam:
    factor = beam.detector_shape[1] // small.shape[3]
    fields = {
        **beam.to_dict(),
        "detector_shape": tuple(small.shape[2:]),
        "pixel_spacing": tuple(spacing * factor for spacing in beam.pixel_spacing),
    }
    return ConeBeam.from_dict(fields)


def _to_full_grid(volume: Tensor) -> Tensor:
    if tuple(volume.shape[2:]) == VOLUME_SHAPE:
        return volume
    return F.interpolate(volume, VOLUME_SHAPE, mode="trilinear", align_corners=False)


def _mu_to_full_hu(mu: Tensor) -> np.ndarray:
    return _to_full_grid(mu_to_hu(mu).clamp(HU_MIN, HU_MAX))[0, 0].cpu().numpy()
