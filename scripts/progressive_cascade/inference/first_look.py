# SPDX-License-Identifier: Apache-2.0
"""How well the first stage alone explains its radiographs: before any data consistency, wrong inputs show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.consistency import agreement, shrink_radiographs
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.inference.opposite import mirror_pictures, usual_beam
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.stages import EXTENT
from progressive_cascade.projector import line_integrals

LEAST_AGREEMENT = {True: 29.0, False: 24.5}
"""PSNR of the first stage's re-projection below which a calibrated (True) or another (False) pair is warned of [dB].

Of 31 right pairs of training CTs and phantoms the calibrated ones reached 30.2, grey levels 25.1; of two patients or a
size wrong by 20 % they reached at most 23.5, and 17 to 28 (``benchmarks/radiographs.py``).
"""


def agreement_warnings(scores: Mapping[str, float], *, calibrated: bool) -> list[str]:
    """What :func:`first_agreement` says against a pair: one line, or none.

    Args:
        scores: PSNR by view [dB].
        calibrated: whether the pair holds true line integrals.
    """
    least = LEAST_AGREEMENT[calibrated]
    low = [f"{view} {score:.1f} dB" for view, score in scores.items() if score < least]
    if not low:
        return []
    return [
        f"before data consistency the X-rays are explained worse than right pairs are ({least:g} dB): "
        f"{', '.join(low)}; are they of one patient, the right way round, and of the right size?"
    ]


def first_agreement(
    network: ProgressiveCascade,
    image: np.ndarray,
    beam: ConeBeam,
    *,
    calibrated: bool = True,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """PSNR per view of the first stage's re-projection, at two pixels per voxel.

    Uncalibrated radiographs are compared after the best factor and offset of each view.

    Args:
        network: a cascade of any stage.
        image: line integrals (view, rows, cols).
        beam: their geometry.
        calibrated: whether they are true ones.
        weights: of the pixels (view, rows, cols).

    Returns:
        PSNR by view [dB].
    """
    usual = usual_beam(beam)
    if usual is not None:
        image = mirror_pictures(image, beam)
        weights = None if weights is None else mirror_pictures(weights, beam)
        scores = first_agreement(network, image, usual, calibrated=calibrated, weights=weights)
        return dict(zip(beam.views, scores.values(), strict=True))
    device = network.projection_matrices.device
    given = torch.as_tensor(image, dtype=torch.float32, device=device)[None]
    seen = torch.ones_like(given) if weights is None else torch.as_tensor(weights, device=device)[None].to(given)
    matrices = torch.as_tensor(beam.at((0.0, 0.0, 0.0)).projection_matrices(), dtype=torch.float32, device=device)[None]
    grid = network.image_size // 8
    with torch.inference_mode():
        mu = _first_attenuation(network, given, matrices, seen, torch.tensor([float(calibrated)], device=device))
        small, _ = shrink_radiographs(given, matrices, 2 * grid, seen)
        covered = F.interpolate(seen, small.shape[2:], mode="area") > 0.5
        affine = volume_affine((grid, grid, grid), EXTENT / grid)
        explained = line_integrals(mu, _coarser(beam, network.image_size, small.shape[2:]), affine=affine)
    explained = explained[0].cpu().numpy()
    measured, mask = small[0].cpu().numpy(), covered[0].cpu().numpy()
    if not calibrated:
        explained = np.stack([_fitted(*views) for views in zip(explained, measured, mask, strict=True)])
    scores = agreement(explained, measured, beam.views, mask.astype(np.float32))
    return {view: scores[view]["psnr_db"] for view in beam.views}


def _first_attenuation(
    network: ProgressiveCascade, image: Tensor, matrices: Tensor, seen: Tensor, flag: Tensor
) -> Tensor:
    """The first stage's attenuation [1/mm], before data consistency."""
    stage, grid = network.stages[0], network.image_size // 8
    levels, tokens = image, image
    if network.xray is not None:
        features = network.xray(image)
        levels, tokens = features.coarse, features.tokens
    volume = torch.full([1, 1, grid, grid, grid], network.start_value, device=image.device)
    context = stage.context(volume, levels, tokens, image, matrices, flag, seen)  # pyright: ignore[reportCallIssue]
    return stage.consistency.to_mu(stage(volume, [0, 0, 0], context))  # pyright: ignore


def _coarser(beam: ConeBeam, image_size: int, shape: Sequence[int]) -> ConeBeam:
    """The geometry about its isocenter, on fewer and larger pixels."""
    pixels = tuple(pitch * image_size / shape[1] for pitch in beam.pixel_spacing)
    return replace(beam.at((0.0, 0.0, 0.0)), detector_shape=tuple(shape), pixel_spacing=pixels)


def _fitted(explained: np.ndarray, measured: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The view with the factor and offset that bring it nearest to the measured one."""
    if not mask.any():
        return explained
    factor, offset = np.polyfit(explained[mask].astype(np.float64), measured[mask].astype(np.float64), 1)
    return (factor * explained + offset).astype(np.float32)
